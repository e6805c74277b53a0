//! A virtual machine under KVM that runs the bare-metal payload.
//!
//! The interrupt controller is split: local APICs in the kernel, in x2APIC mode with 32-bit
//! destinations, and the IOAPIC in the VMM, so that its interrupts pass through the IOMMU like
//! every other.

pub mod bus;
mod cpu;
mod error;
mod inject;
mod machine;
mod payload;
mod probe;
mod vcpu;

pub use bus::Bus;
pub use error::KvmError;
pub use inject::{Injected, Injector};
pub use machine::{Config, IOAPIC_PINS, Machine, RunResult, Start};
pub use payload::{Payload, PayloadError};
pub use probe::{Offer, probe};
