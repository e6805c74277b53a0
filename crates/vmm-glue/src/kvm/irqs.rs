//! The part of a KVM VM that delivers interrupts.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// What the adapters ask of KVM. Implemented for [`VmFd`]; a test supplies its own.
pub trait KvmIrqs {
    /// `KVM_SET_GSI_ROUTING`: replaces the VM's whole routing table.
    ///
    /// # Errors
    /// That of the ioctl; the old table then stays in force.
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()>;

    /// `KVM_SIGNAL_MSI`. `true` when a local APIC took the interrupt, `false` when no APIC matched
    /// the destination or the guest blocks it.
    ///
    /// # Errors
    /// That of the ioctl.
    fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool>;
}

/// What [`Irqfds`](super::Irqfds) ask of KVM besides.
pub trait KvmIrqfds: KvmIrqs {
    /// `KVM_IRQFD`: from now on KVM takes what is written to `event` for an interrupt of `gsi`, the
    /// writes included that nobody has read.
    ///
    /// # Errors
    /// That of the ioctl; nothing has changed.
    fn assign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()>;

    /// `KVM_IRQFD` with `KVM_IRQFD_FLAG_DEASSIGN`: `event` is an ordinary eventfd again, and every
    /// interrupt that it had caused is at its local APIC.
    ///
    /// # Errors
    /// That of the ioctl; nothing has changed.
    fn deassign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()>;
}

impl KvmIrqs for VmFd {
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        let routing = KvmIrqRouting::from_entries(entries).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "KVM_SET_GSI_ROUTING with {} entries: {error:?}",
                    entries.len()
                ),
            )
        })?;
        VmFd::set_gsi_routing(self, &routing).map_err(io::Error::from)
    }

    fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool> {
        VmFd::signal_msi(self, msi)
            .map(|delivered| delivered > 0)
            .map_err(io::Error::from)
    }
}

impl KvmIrqfds for VmFd {
    fn assign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.register_irqfd(event, gsi).map_err(io::Error::from)
    }

    fn deassign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.unregister_irqfd(event, gsi).map_err(io::Error::from)
    }
}

impl<K: KvmIrqs + ?Sized> KvmIrqs for &K {
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        (**self).set_gsi_routing(entries)
    }

    fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool> {
        (**self).signal_msi(msi)
    }
}

impl<K: KvmIrqs + ?Sized> KvmIrqs for Arc<K> {
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        (**self).set_gsi_routing(entries)
    }

    fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool> {
        (**self).signal_msi(msi)
    }
}

impl<K: KvmIrqfds + ?Sized> KvmIrqfds for &K {
    fn assign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        (**self).assign_irqfd(event, gsi)
    }

    fn deassign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        (**self).deassign_irqfd(event, gsi)
    }
}

impl<K: KvmIrqfds + ?Sized> KvmIrqfds for Arc<K> {
    fn assign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        (**self).assign_irqfd(event, gsi)
    }

    fn deassign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        (**self).deassign_irqfd(event, gsi)
    }
}
