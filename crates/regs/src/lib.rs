//! Registers and in-memory formats of the AMD IOMMU (AMD-Vi), bit by bit.
//!
//! This crate knows *bits* and nothing else: no walk, no cache, no state. Every type mirrors one
//! structure of AMD publication 48882 ("AMD I/O Virtualization Technology (IOMMU) Specification")
//! and cites the section or table it comes from. Where public sources disagree the choice is
//! recorded in `docs/spec-choices.md`.
//!
//! Values that a guest controls are *open*: a reserved or unknown value is representable, so that
//! decoding guest memory can never panic or be undefined behaviour.
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
