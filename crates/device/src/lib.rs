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
//!
//! # Devices with PASIDs, TLBs and page requests
//!
//! An [`Endpoint`] is also the way of a device that uses PASIDs ([`Endpoint::translate_for`],
//! [`Endpoint::access_for`]), that has a TLB of its own ([`Endpoint::translation_request`] fills it,
//! [`Endpoint::access_translated`] uses it, and a [`DeviceAts`] hears what to drop from it), and that
//! asks for pages ([`Endpoint::page_request`]):
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use amdvi_device::{
//!     Access, Answer, DeviceAts, DeviceInvalidation, Endpoint, InvalidationAnswer, PageRequest,
//!     PageRequested, PageResponse, Pasid,
//! };
//!
//! /// A TLB of one entry, and the answers that have come.
//! #[derive(Default)]
//! struct Tlb {
//!     entry: Mutex<Option<(Pasid, Answer)>>,
//!     responses: Mutex<Vec<PageResponse>>,
//! }
//!
//! impl DeviceAts for Tlb {
//!     fn invalidate(&self, what: &DeviceInvalidation) -> InvalidationAnswer {
//!         let mut entry = self.entry.lock().unwrap();
//!         let goes = |(pasid, answer): &(Pasid, Answer)| {
//!             let last = answer.iova | ((1 << answer.shift) - 1);
//!             what.pasid == Some(pasid.value()) && what.range.overlaps(answer.iova, last)
//!         };
//!         if entry.as_ref().is_some_and(goes) {
//!             *entry = None;
//!         }
//!         InvalidationAnswer::Done
//!     }
//!     fn page_response(&self, response: &PageResponse) {
//!         self.responses.lock().unwrap().push(*response);
//!     }
//! }
//!
//! /// Once, when the device is built: `endpoint.set_ats(tlb.clone())`. Then, for each access:
//! fn write(endpoint: &mut Endpoint, tlb: &Arc<Tlb>, pasid: Pasid, iova: u64) -> bool {
//!     let Ok(answer) = endpoint.translation_request(Some(pasid), iova, Access::Write) else {
//!         return false; // Not allowed; the guest has its event.
//!     };
//!     if answer.permissions.contains(Access::Write.needs()) {
//!         // While the answer lives: an invalidation that comes later finds it.
//!         *tlb.entry.lock().unwrap() = Some((pasid, *answer));
//!         let gpa = answer.gpa | iova & ((1 << answer.shift) - 1);
//!         drop(answer);
//!         let written = |_: &_| { /* write to guest memory */ };
//!         return endpoint.access_translated(Some(pasid), gpa, 4, Access::Write, written).is_ok();
//!     }
//!     drop(answer);
//!     let request = PageRequest {
//!         pasid: Some(pasid), address: iova, read: true, write: true, tag: 1, last: true,
//!     };
//!     match endpoint.page_request(&request) {
//!         PageRequested::Logged => true, // Try again when `page_response` has been called.
//!         PageRequested::Answered(answer) => answer.is_some_and(|a| a.code == PageResponse::SUCCESS),
//!         PageRequested::Refused(..) | PageRequested::Lost => false,
//!     }
//! }
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
