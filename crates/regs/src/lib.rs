//! Registers and in-memory formats of the AMD IOMMU (AMD-Vi), bit by bit.
//!
//! This crate knows *bits* and nothing else: no walk, no cache, no state. Every type mirrors one
//! structure of AMD publication 48882 ("AMD I/O Virtualization Technology (IOMMU) Specification")
//! and cites the section or table it comes from. Where public sources disagree the choice is
//! recorded in `docs/spec-choices.md`.
//!
//! | Module | Formats |
//! |---|---|
//! | [`mmio`] | every MMIO register, with its offset |
//! | [`pci`] | capability block, MSI and HyperTransport MSI mapping capabilities |
//! | [`dte`], [`irte`] | Device Table Entry, Interrupt Remapping Table Entries |
//! | [`pte`], [`guest_pte`], [`gcr3`] | host (v1) and guest (v2) page tables, GCR3 table |
//! | [`command`], [`event`], [`log`] | commands, events, PPR and GA log entries |
//! | [`ivrs`] | the ACPI table: reader and writer |
//! | [`viommu`] | hardware vIOMMU regions (preliminary) |
//! | [`msi`], [`id`] | interrupt messages; segments, DeviceIDs, DomainIDs |
//! | [`mem`] | the one trait by which engines reach guest memory |
//!
//! Values that a guest controls are *open*: a reserved or unknown value is representable, so that
//! decoding guest memory can never panic or be undefined behaviour. `RESERVED` constants say which
//! bits a layout does not define. Everything prints as an engineer wants to see it in a log.
//!
//! ```
//! use amdvi_regs::command::{Command, CompletionWait};
//! use amdvi_regs::dte::{Dte, IntCtl};
//! use amdvi_regs::mmio::ExtendedFeature;
//!
//! // A DTE as its four words stand in memory.
//! let dte = Dte::from_words([0x6000_0000_0123_4603, 7, 0x2000_0000_0020_0017, 0]);
//! assert!(dte.q2.iv());
//! assert_eq!(IntCtl::from_bits(dte.q2.int_ctl()), IntCtl::Remap);
//! assert_eq!(
//!     dte.to_string(),
//!     "V TV mode=3 root=0x1234000 IR IW domain=0x0007 | IV len=2^11 root=0x200000 IntCtl=remap"
//! );
//!
//! // A command, out and back in.
//! let wait = CompletionWait::new().with_s(true).with_store_address_8(0x1000 >> 3);
//! let command = Command::decode(Command::from(wait).words());
//! assert_eq!(command, Command::CompletionWait(wait));
//! assert_eq!(command.reserved_bits_set(), 0);
//!
//! // A feature register.
//! let efr = ExtendedFeature::new().with_ga_sup(true).with_hats(2);
//! assert_eq!(efr.to_string(), "GASup HATS=2 GATS=0");
//! ```
//!
//! # Features
//!
//! - `serde`: `Serialize` and `Deserialize` for the plain types; a bit field serializes as its
//!   number.
#![no_std]
#![forbid(unsafe_code)]

pub mod command;
pub mod dte;
pub mod event;
mod fmt;
pub mod gcr3;
pub mod guest_pte;
pub mod id;
pub mod irte;
pub mod ivrs;
pub mod log;
pub mod mem;
pub mod mmio;
pub mod msi;
pub mod pci;
pub mod pte;
pub mod viommu;

pub use id::{DeviceId, DomainId, Segment};
pub use mem::{MemoryError, PhysMemory};
