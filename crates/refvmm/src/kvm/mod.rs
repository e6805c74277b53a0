//! A virtual machine under KVM, and in it the bare-metal payload. (Linux in it is
//! [`crate::linux`].)
//!
//! The interrupt controller is split: local APICs in the kernel, in x2APIC mode with 32-bit
//! destinations, and the IOAPIC in the VMM, so that its interrupts pass through the IOMMU like
//! every other.

pub mod bus;
mod console;
pub(crate) mod cpu;
mod end;
mod error;
mod inject;
mod internal;
mod machine;
mod payload;
mod probe;
mod vcpu;
mod vm;

pub use bus::Bus;
pub use end::{End, Ending};
pub use error::KvmError;
pub use inject::{Injected, Injector};
pub(crate) use machine::Running;
pub use machine::{Config, Machine, RunResult, Start};
pub use payload::{Payload, PayloadError};
pub use probe::{Offer, probe};
pub(crate) use vcpu::{Crew, PauseError, Paused};
pub use vm::{IOAPIC_PINS, Vm};
pub(crate) use vm::{map_ram, open};
