//! One emulated AMD IOMMU (AMD-Vi): register file, command processor, event and GA logs, PCI
//! function, its own interrupts, save and restore.
//!
//! The device knows nothing of KVM or of any VMM: it needs guest memory
//! ([`PhysMemory`](amdvi_regs::PhysMemory)) and somebody who delivers interrupts ([`Host`]).
//!
//! ```
//! use std::sync::Arc;
//! use amdvi_device::{Host, Iommu, Signal, options::Options};
//! use amdvi_irt::Delivery;
//! use amdvi_regs::{DeviceId, PhysMemory, mmio::offset, msi::Msi};
//! # use amdvi_regs::MemoryError;
//! # struct NoMemory;
//! # impl PhysMemory for NoMemory {
//! #     fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> { Err(MemoryError { gpa }) }
//! #     fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> { Err(MemoryError { gpa }) }
//! #     fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn compare_exchange_u64(&self, gpa: u64, _: u64, _: u64)
//! #         -> Result<Result<u64, u64>, MemoryError> { Err(MemoryError { gpa }) }
//! # }
//! # let memory = NoMemory;
//! struct Vmm;
//! impl Host for Vmm {
//!     fn deliver(&self, delivery: &Delivery) { println!("{delivery}") }
//!     fn doorbell(&self, _: u32) {}
//!     fn commands_pending(&self) {}
//! }
//!
//! let options: Options = "amd-iommu,numint2k=on".parse()?;
//! let iommu = Iommu::new(&options, Arc::new(memory), Arc::new(Vmm));
//! // vCPUs reach its registers …
//! let mut efr2 = [0; 8];
//! iommu.mmio_read(offset::EXTENDED_FEATURE_2, &mut efr2);
//! assert_eq!(efr2[1], 1); // NumIntRemapSup = 01b
//! // … and devices send their interrupts through it; it is not enabled yet.
//! let mut nic = iommu.endpoint(DeviceId::new(0, 5, 0));
//! let sent = nic.signal(Msi { address: 0xfee0_1000, data: 0x31 });
//! assert!(matches!(sent, Signal::Delivered(delivery) if delivery.vector == 0x31));
//! # Ok::<(), amdvi_device::options::OptionError>(())
//! ```
#![forbid(unsafe_code)]

mod ats;
mod commands;
mod endpoint;
mod host;
mod iommu;
mod logs;
mod mmio;
pub mod options;
mod page_request;
pub mod pci;
mod replay;
mod save;
mod state;

#[cfg(feature = "fuzzing")]
pub mod fuzz;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;

pub use amdvi_dma::{
    Access, AddressSpace, Answer, Answered, Mapped, Mapping, Mappings, Pasid, Permissions, Piece,
};
pub use ats::{
    DeviceAts, DeviceInvalidation, InvalidationAnswer, InvalidationTicket, InvalidationWait,
};
pub use endpoint::{Abort, DmaOperation, Endpoint, Signal};
pub use host::{Changes, Host, Invalidated, Observer};
pub use iommu::Iommu;
pub use options::Options;
pub use page_request::{PageRefusal, PageRequest, PageRequested, PageResponse};
pub use save::{RestoreError, SavedState};
