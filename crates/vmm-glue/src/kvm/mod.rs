//! KVM: deliveries as `KVM_SIGNAL_MSI` messages and as GSI routes.
//!
//! For a VM with the *split* irqchip (local APICs in the kernel, IOAPIC in the VMM), x86-64 Linux.
//!
//! - [`KvmMessage`] is the one place that knows how KVM packs a delivery into address and data.
//! - [`RouteTable`] keeps the GSI routes of irqfds and of the IOAPIC's reserved pins, and calls
//!   KVM once per batch.
//! - [`KvmIrqs`] is the little of a `VmFd` that they need, so that a VMM can test without KVM.
//! - [`Irqfds`] keep the vectors of functions on irqfds, with routes that follow the guest's tables.
//! - `KvmPins` (with feature `ioapic`) connects an `Ioapic`'s pins to all of these.

mod irqfd;
mod irqs;
mod message;
#[cfg(feature = "ioapic")]
mod pins;
mod routes;

#[cfg(feature = "device")]
pub use irqfd::IrqfdObserver;
pub use irqfd::{FunctionIrqfds, IrqfdCounters, IrqfdErrors, Irqfds};
pub use irqs::{KvmIrqfds, KvmIrqs};
pub use message::{KvmMessage, MessageError, MsiFormat};
#[cfg(feature = "ioapic")]
pub use pins::{KvmPins, PinErrors};
pub use routes::{MAX_GSI, RouteError, RouteTable};
