//! AMD IOMMU DMA remapping: from an IOVA to a guest physical address.
//!
//! Three parts:
//!
//! - [`translate`] is a function of what it is given: a view of the registers ([`WalkContext`]), the
//!   two low words of the requester's Device Table Entry, a [`Request`] and guest memory. It answers
//!   with a [`Span`] (where the bytes are, up to the end of the page that maps them) or a [`Fault`]
//!   with the event record that the specification asks for. It holds no state.
//! - [`Mapper`] is a requester's handle: it finds the Device Table Entry and keeps it, looks into its
//!   own cache and, where a walk is long, into the [`Iotlb`] that all requesters share, and ties the result to the operation
//!   that a COMPLETION_WAIT waits for. It obeys the journal of [`amdvi_core`].
//! - [`AddressSpace`] tells what a requester's tables map now, range by range, for whoever keeps a copy.
//!
//! ```
//! use amdvi_dma::{Access, DmaEntry, Request, RequestKind, WalkContext, translate};
//! use amdvi_regs::dte::{DteQ0, DteQ1};
//! # use amdvi_regs::{DeviceId, MemoryError, PhysMemory};
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
//! let context = WalkContext { iommu_enabled: true, host_levels: 6, ..WalkContext::default() };
//! // An identity DTE that may only read.
//! let q0 = DteQ0::new().with_v(true).with_tv(true).with_ir(true);
//! let q1 = DteQ1::new().with_domain_id(7);
//! let entry = DmaEntry::new(q0, q1);
//! let request = Request {
//!     device_id: DeviceId::new(0, 3, 0),
//!     iova: 0x1234_5000,
//!     len: 64,
//!     access: Access::Write,
//!     kind: RequestKind::Untranslated,
//!     pasid: None,
//! };
//! let fault = translate(&context, &entry, &request, &memory).unwrap_err();
//! assert!(fault.event.is_some()); // IO_PAGE_FAULT: PR, RW, PE, DomainID 7
//!
//! let read = Request { access: Access::Read, ..request };
//! assert_eq!(translate(&context, &entry, &read, &memory).unwrap().gpa, 0x1234_5000);
//! ```
//!
//! Guest (v2) page tables are walked for requests with a PASID, and for those without one where the
//! DTE says so (GIoV), over the host page table of the DTE if it has one. Accessed and dirty bits are
//! set in guest tables and, as far as DTE.HAD asks for them, in the host's, by compare-and-exchange
//! with the word that was checked.
//!
//! A translation performs at most [`MAX_LOADS`] loads of guest memory ([`HOST_LOADS`] without a guest
//! table: one per level) and uses each loaded word as it was loaded: a guest that rewrites its tables
//! meanwhile gets the answer of one of the tables it wrote, never of a mixture within an entry. An entry
//! that is changed again and again while its bits are to be set ends the request: no translation tries
//! more than [`MAX_EXCHANGES`] exchanges.
//!
//! What is not here: secure ATS, whose DTE bit is a reserved one to this engine, so a device must not
//! offer SATSup on top of it; the privilege abort of Control.PrivAbrtEn, whose meaning no public source
//! tells; page requests, which are the device's; and caches of upper table levels.
#![cfg_attr(not(loom), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cache;
mod context;
mod count;
mod dte;
mod enumerate;
mod fault;
mod guest;
mod iotlb;
mod mapper;
mod outcome;
mod plain;
mod ranges;
mod request;
mod state;
mod sync;
mod translate;
mod walk;

pub use context::{Exclusion, GuestContext, WalkContext};
pub use dte::{DmaEntry, DteDefect, check_dte};
pub use enumerate::{AddressSpace, Mapping, Mappings};
pub use fault::{Fault, Reason, Stage};
pub use guest::{MAX_EXCHANGES, MAX_LOADS};
pub use iotlb::Iotlb;
pub use mapper::{Mapper, Operation};
pub use outcome::{Answer, Answered, Cause, Failed, Failure, Mapped, Piece};
pub use ranges::{
    AddressClass, HT_HOLE_BASE, HT_HOLE_END, HtRange, SYSTEM_MANAGEMENT_BASE, classify,
};
pub use request::{
    Access, Bypass, GuestLeaf, Leaf, Pasid, Permissions, Request, RequestKind, Span, Target,
};
pub use translate::{Spans, spans, translate};
pub use walk::HOST_LOADS;
