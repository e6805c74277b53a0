//! What the device asks of the VMM around it.

use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;

/// The VMM's side: where interrupts go, and who continues with commands.
///
/// Methods are called with no lock of the device held. [`deliver`](Self::deliver) and
/// [`doorbell`](Self::doorbell) may be called while an operation of an endpoint is in flight, for
/// which a COMPLETION_WAIT waits: they must not access the device's registers.
pub trait Host: Send + Sync {
    /// Delivers an interrupt to the guest's local APICs.
    fn deliver(&self, delivery: &Delivery);

    /// Signals the AVIC doorbell of a physical APIC ID: a running virtual processor has a new
    /// interrupt in its virtual APIC backing page (48882 §2.2.5.3).
    fn doorbell(&self, physical_apic_id: u32);

    /// Commands remain after a bounded batch: call
    /// [`Iommu::run_commands`](crate::Iommu::run_commands) soon, from any thread but not from
    /// inside this call.
    fn commands_pending(&self);
}

/// Somebody who keeps a copy of what the guest's tables say: interrupt routes, mappings.
pub trait Observer: Send + Sync {
    /// What this observer derived from the guest's tables is out of date.
    ///
    /// Called at most once per COMPLETION_WAIT, before its store and its interrupt become visible
    /// to the guest and when every operation has ended that may have used what was invalidated;
    /// and after each register write that changes what all tables mean. No lock is held: the
    /// observer may access the device and resolve routes.
    fn changed(&self, changes: &Changes);
}

/// What an invalidation has touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// The Device Table Entry or the interrupt remapping table of these functions; sorted, at most
    /// [`Changes::MAX_DEVICES`].
    Devices(Vec<DeviceId>),
    /// Anything.
    All,
}

impl Changes {
    /// A longer list than this becomes [`Changes::All`].
    pub const MAX_DEVICES: usize = 64;

    /// Nothing.
    pub(crate) const fn none() -> Self {
        Self::Devices(Vec::new())
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Devices(list) if list.is_empty())
    }

    /// Whether `device_id` is touched.
    pub fn touches(&self, device_id: DeviceId) -> bool {
        match self {
            Self::Devices(list) => list.binary_search(&device_id).is_ok(),
            Self::All => true,
        }
    }

    pub(crate) fn add(&mut self, device_id: DeviceId) {
        let Self::Devices(list) = self else { return };
        let Err(place) = list.binary_search(&device_id) else {
            return;
        };
        if list.len() == Self::MAX_DEVICES {
            *self = Self::All;
        } else {
            list.insert(place, device_id);
        }
    }
}
