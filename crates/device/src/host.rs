//! What the device asks of the VMM around it.

use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::command::InvalidationRange;

use crate::ats::InvalidationWait;

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

    /// The command processor waits for devices to answer invalidations. Return whether it should.
    ///
    /// The IOMMU has no clock. A VMM whose devices answer [late](crate::InvalidationAnswer::Later)
    /// returns `true` and calls [`Iommu::expire_invalidations`](crate::Iommu::expire_invalidations)
    /// with `wait` when [`timeout`](InvalidationWait::timeout) has passed; with a timeout of `None`
    /// the guest wants to wait for as long as it takes, and the VMM may never call it. It may be
    /// called again for the same invalidations when the guest writes registers meanwhile.
    ///
    /// The default is `false`: a device that has not answered at once has failed, the guest gets its
    /// IOTLB_INV_TIMEOUT event, and no guest can be made to hang.
    fn await_invalidations(&self, wait: &InvalidationWait) -> bool {
        let _ = wait;
        false
    }
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

    /// DMA mappings of these domains and ranges are gone or have changed: whoever keeps copies of
    /// them drops these, and reads the tables again if it wants to know what is there now.
    ///
    /// Called when [`changed`](Self::changed) is, after it, with everything that INVALIDATE_IOMMU_PAGES
    /// and INVALIDATE_IOMMU_ALL named since; a function that moves to another domain or table is a
    /// matter of `changed`. Observers of interrupts have nothing to do here.
    fn invalidated(&self, ranges: &Invalidated) {
        let _ = ranges;
    }
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

/// DMA mappings that the guest has invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidated {
    /// By DomainID and addresses; at most [`Invalidated::MAX_RANGES`], and none inside another.
    Ranges(Vec<(u16, InvalidationRange)>),
    /// Any mapping of any domain.
    All,
}

impl Invalidated {
    /// More ranges than this become whole domains, and more domains become [`Invalidated::All`].
    pub const MAX_RANGES: usize = 64;

    /// Nothing.
    pub(crate) const fn none() -> Self {
        Self::Ranges(Vec::new())
    }

    /// Whether nothing is invalidated.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Ranges(list) if list.is_empty())
    }

    /// Whether a mapping of `domain` for the bytes from `first` to `last` inclusive is among them.
    pub fn covers(&self, domain: u16, first: u64, last: u64) -> bool {
        match self {
            Self::Ranges(list) => list
                .iter()
                .any(|(d, range)| *d == domain && range.overlaps(first, last)),
            Self::All => true,
        }
    }

    pub(crate) fn add(&mut self, domain: u16, range: InvalidationRange) {
        let Self::Ranges(list) = self else { return };
        let inside = |outer: InvalidationRange, inner: InvalidationRange| {
            outer.first() <= inner.first() && inner.last() <= outer.last()
        };
        if list.iter().any(|(d, r)| *d == domain && inside(*r, range)) {
            return;
        }
        list.retain(|(d, r)| *d != domain || !inside(range, *r));
        if list.len() == Self::MAX_RANGES {
            let mut domains: Vec<u16> = list.iter().map(|(d, _)| *d).chain([domain]).collect();
            domains.sort_unstable();
            domains.dedup();
            if domains.len() > Self::MAX_RANGES {
                *self = Self::All;
                return;
            }
            *list = domains
                .into_iter()
                .map(|d| (d, InvalidationRange::All))
                .collect();
        } else {
            list.push((domain, range));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(n: u64) -> InvalidationRange {
        InvalidationRange::decode(n << 13, false)
    }

    #[test]
    fn a_range_inside_another_is_told_once() {
        let mut invalidated = Invalidated::none();
        invalidated.add(1, page(1));
        invalidated.add(1, page(1));
        invalidated.add(2, page(1));
        invalidated.add(1, InvalidationRange::All);
        invalidated.add(1, page(7));
        assert_eq!(
            invalidated,
            Invalidated::Ranges(vec![(2, page(1)), (1, InvalidationRange::All)])
        );
        assert!(invalidated.covers(1, 0, 0) && !invalidated.covers(2, 0, 0xfff));
    }

    #[test]
    fn many_ranges_become_domains_and_many_domains_become_all() {
        let mut invalidated = Invalidated::none();
        for n in 0..Invalidated::MAX_RANGES as u64 {
            invalidated.add((n % 2) as u16, page(n));
            assert!(!invalidated.covers(0, 1 << 40, 1 << 40));
        }
        invalidated.add(2, page(0));
        let everything = |d| (d, InvalidationRange::All);
        assert_eq!(
            invalidated,
            Invalidated::Ranges([0, 1, 2].map(everything).to_vec())
        );
        for domain in 3..Invalidated::MAX_RANGES as u16 {
            invalidated.add(domain, page(0));
        }
        assert_ne!(invalidated, Invalidated::All);
        invalidated.add(1000, page(0));
        assert_eq!(invalidated, Invalidated::All);
    }
}
