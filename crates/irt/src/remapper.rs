//! A requester's way through interrupt remapping.

use alloc::sync::Arc;
use core::fmt;

use amdvi_core::{Fabric, InFlight, Requester, Slot, Subject, View};
use amdvi_regs::log::GaLogEntry;
use amdvi_regs::mmio::CounterEvent;
use amdvi_regs::msi::{DeliveryMode, Msi, MsiData, is_msi_address};
use amdvi_regs::{DeviceId, PhysMemory};

use crate::cache::Cache;
use crate::delivery::Delivery;
use crate::fault::Fault;
use crate::walk::{self, Purpose};

/// What becomes of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An interrupt to deliver: remapped, or forwarded as it was.
    Deliver(Delivery),
    /// Posted to a guest virtual APIC: the IRR bit in its backing page is set.
    Posted(Posted),
    /// Not delivered; the requester sees a target abort.
    Blocked(Fault),
}

impl Outcome {
    /// What is to be delivered, if anything is.
    pub fn delivery(&self) -> Option<Delivery> {
        match self {
            Self::Deliver(delivery) => Some(*delivery),
            Self::Posted(_) | Self::Blocked(_) => None,
        }
    }
}

/// What remains to be done for an interrupt that was posted to a guest virtual APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The virtual processor does not run and GALogIntr = 1: append this to the GA log.
    pub ga_log: Option<GaLogEntry>,
    /// The virtual processor runs (IsRun = 1): signal the doorbell of this physical APIC ID.
    pub doorbell: Option<u32>,
}

/// The message types of the legacy interrupt controller, which have pass bits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LintPin {
    /// LINT0, DTE.Lint0Pass.
    Lint0,
    /// LINT1, DTE.Lint1Pass.
    Lint1,
}

/// An outcome, and the guard that keeps COMPLETION_WAIT waiting while it is carried out.
#[derive(Debug)]
pub struct Remapped<'a> {
    /// The outcome.
    pub outcome: Outcome,
    _in_flight: InFlight<'a>,
}

/// The interrupt side of one requester handle: one function (a PCI function, an IOAPIC, an HPET)
/// and one thread.
pub struct Remapper {
    requester: Requester,
    cache: Cache,
}

impl Remapper {
    /// Entries that a cache needs to hold a whole interrupt remapping table of 2048 entries.
    pub const FULL_CACHE: usize = 2048;

    /// A handle for `device_id` whose cache covers the indices below `cached_entries` (at most
    /// 2048, 8 bytes each).
    ///
    /// Its [`slot`](Self::slot) must be known to whoever invalidates and drains.
    pub fn new(fabric: Arc<Fabric>, device_id: DeviceId, cached_entries: usize) -> Self {
        Self {
            requester: Requester::new(fabric, device_id),
            cache: Cache::new(cached_entries),
        }
    }

    /// The shared part of the handle.
    pub fn slot(&self) -> &Arc<Slot> {
        self.requester.slot()
    }

    /// Remaps an interrupt request (48882 §2.2.5).
    ///
    /// Deliver while the result lives: it is what a COMPLETION_WAIT waits for, so that nothing
    /// arrives at a target that was invalidated before. A hit takes no lock, writes nothing shared
    /// and allocates nothing.
    #[inline(always)]
    pub fn remap(&mut self, memory: &(impl PhysMemory + ?Sized), msi: Msi) -> Remapped<'_> {
        let in_flight = self.requester.enter();
        self.cache.sync(in_flight.generation());
        let outcome = match self.cache.get(msi) {
            Some(delivery) => Outcome::Deliver(delivery),
            None => miss(
                &mut self.cache,
                in_flight.view(),
                in_flight.slot(),
                memory,
                msi,
            ),
        };
        Remapped {
            outcome,
            _in_flight: in_flight,
        }
    }

    /// Where `msi` would go now, without any effect: nothing is posted and nothing is to be
    /// logged. For setting up routes ahead of the interrupt.
    pub fn resolve(&mut self, memory: &(impl PhysMemory + ?Sized), msi: Msi) -> Outcome {
        let in_flight = self.requester.enter();
        walk::message(
            in_flight.view(),
            memory,
            in_flight.device_id(),
            msi,
            Purpose::Resolve,
        )
        .outcome
    }

    /// Tells where each of `messages` would go now, in their order: what [`resolve`](Self::resolve)
    /// says of it, `None` where nothing would be delivered. The DTE is read once for all of them, so
    /// that a large function's routes cost little more than their IRTEs.
    pub fn resolve_all(
        &mut self,
        memory: &(impl PhysMemory + ?Sized),
        messages: &[Msi],
        tell: impl FnMut(Option<Delivery>),
    ) {
        let in_flight = self.requester.enter();
        let (view, device_id) = (in_flight.view(), in_flight.device_id());
        walk::deliveries(view, memory, device_id, messages, tell);
    }

    /// Remaps a LINT message of the legacy interrupt controller.
    pub fn lint(&mut self, memory: &(impl PhysMemory + ?Sized), pin: LintPin) -> Remapped<'_> {
        let in_flight = self.requester.enter();
        let outcome = walk::lint(in_flight.view(), memory, in_flight.device_id(), pin);
        Remapped {
            outcome,
            _in_flight: in_flight,
        }
    }
}

#[cold]
#[inline(never)]
fn miss(
    cache: &mut Cache,
    view: &View,
    slot: &Slot,
    memory: &(impl PhysMemory + ?Sized),
    msi: Msi,
) -> Outcome {
    let counting = view.counters.interrupts();
    let cached = if counting {
        cache.resume();
        cache.get(msi)
    } else {
        None
    };
    let (outcome, remapped) = match cached {
        Some(delivery) => (Outcome::Deliver(delivery), true),
        None => {
            let walked = walk::message(view, memory, slot.device_id(), msi, Purpose::Deliver);
            if let (true, Outcome::Deliver(delivery)) = (walked.cacheable, &walked.outcome) {
                cache.put(msi, delivery);
            }
            (walked.outcome, walked.cacheable)
        }
    };
    if counting {
        cache.suspend();
        count(view, slot, msi, cached.is_some(), remapped, &outcome);
    }
    outcome
}

/// Counts an interrupt request. What a cached IRTE answers needs no DTE: that is a hit.
fn count(view: &View, slot: &Slot, msi: Msi, cached: bool, remapped: bool, outcome: &Outcome) {
    let control = view.control();
    if !control.iommu_en() || !is_msi_address(msi.address) {
        return;
    }
    let subject = Subject {
        device_id: Some(slot.device_id()),
        ..Subject::default()
    };
    let event = |event| view.counters.count(event, 1, &subject);
    event(if cached {
        CounterEvent::IntDteHit
    } else {
        CounterEvent::IntDteMis
    });
    let data = MsiData::from_bits(msi.data);
    let smi = DeliveryMode::from_bits(data.delivery_mode()) == DeliveryMode::Smi;
    match outcome {
        Outcome::Posted(_) => event(CounterEvent::VapicIntGuest),
        Outcome::Deliver(_) if remapped && control.ga_en() => {
            event(CounterEvent::VapicIntNonGuest);
        }
        Outcome::Deliver(_) if smi && !remapped => event(CounterEvent::SmiRecv),
        Outcome::Deliver(_) | Outcome::Blocked(_) => {}
    }
}

impl Clone for Remapper {
    /// Another handle for the same function, with a slot and an empty cache of its own.
    fn clone(&self) -> Self {
        Self {
            requester: self.requester.clone(),
            cache: Cache::new(self.cache.len()),
        }
    }
}

impl fmt::Debug for Remapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remapper")
            .field("slot", self.slot())
            .field("cached_entries", &self.cache.len())
            .finish()
    }
}
