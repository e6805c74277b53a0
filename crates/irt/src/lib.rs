//! AMD IOMMU interrupt remapping: from an interrupt request to a delivery or a fault.
//!
//! Everything of 48882 §2.2.5 that happens between a device's write to FEEx_xxxxh and the local
//! APICs: up to 512 interrupts per function, or 2048 where EFR2 offers it and CONTROL turns it on;
//! 32-bit and 128-bit entries; pass bits; guest virtual APIC. The engine knows registers (through
//! [`amdvi_core::View`]), guest memory and the request, and nothing of threads, KVM or buses.
//!
//! ```
//! # use amdvi_regs::{DeviceId, MemoryError, PhysMemory};
//! # struct NoMemory;
//! # impl PhysMemory for NoMemory {
//! #     fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> { Err(MemoryError { gpa }) }
//! #     fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> { Err(MemoryError { gpa }) }
//! #     fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> { Err(MemoryError { gpa }) }
//! #     fn compare_exchange_u64(&self, gpa: u64, _: u64, _: u64) -> Result<Result<u64, u64>, MemoryError> { Err(MemoryError { gpa }) }
//! # }
//! # let memory = NoMemory;
//! use std::sync::Arc;
//! use amdvi_core::{Barrier, Fabric, View};
//! use amdvi_irt::{Outcome, Remapper};
//! use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};
//! use amdvi_regs::msi::Msi;
//!
//! let view = View::new(ExtendedFeature::new(), ExtendedFeature2::new());
//! let fabric = Arc::new(Fabric::new(view, Barrier::best()));
//! let mut nic = Remapper::new(fabric, DeviceId::new(0, 5, 0), Remapper::FULL_CACHE);
//!
//! // The IOMMU is not enabled yet: the message passes as it is.
//! let remapped = nic.remap(&memory, Msi { address: 0xfee0_1000, data: 0x31 });
//! let Outcome::Deliver(delivery) = remapped.outcome else { panic!() };
//! assert_eq!((delivery.dest, delivery.vector), (1, 0x31));
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod cache;
mod delivery;
mod fault;
mod remapper;
mod walk;

pub use delivery::{Delivery, DestMode, Trigger};
pub use fault::{Fault, FaultReason};
pub use remapper::{LintPin, Outcome, Posted, Remapped, Remapper};
