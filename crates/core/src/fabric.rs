//! Generations, in-flight guards, and the drain that COMPLETION_WAIT performs.

use alloc::sync::Arc;
use core::marker::PhantomData;

use amdvi_regs::DeviceId;

use crate::barrier::Barrier;
use crate::journal::{Invalidation, Journal};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::view::View;

/// What all requesters of one IOMMU share.
#[derive(Debug)]
pub struct Fabric {
    /// The registers that the engines read.
    pub view: View,
    /// The invalidations of translations. What concerns a whole function (its Device Table Entry,
    /// its interrupts) or everything has generations instead.
    pub journal: Journal,
    generation: AtomicU64,
    /// Counts the drains, from 1. An operation notes it down when it begins.
    epoch: AtomicU64,
    barrier: Barrier,
}

impl Fabric {
    /// A fabric around `view`.
    pub fn new(view: View, barrier: Barrier) -> Self {
        Self {
            view,
            journal: Journal::new(),
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(1),
            barrier,
        }
    }

    /// The barrier in use.
    pub fn barrier(&self) -> Barrier {
        self.barrier
    }

    /// Makes everything that any requester has cached unusable for operations that start from now
    /// on. O(1). What is in flight ends at the next [`drain`](Self::drain).
    pub fn invalidate_all(&self) {
        // Caches that outlive a requester know only the journal.
        self.journal.append(Invalidation::ALL);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Has every requester look at its caches' validity again before it uses them: that is where those
    /// look who counts. What requesters keep to themselves is dropped, what they share is not.
    pub fn wake(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The generation of what the requester with `slot` has cached, see [`InFlight::generation`].
    #[inline(always)]
    pub fn generation(&self, slot: &Slot) -> u64 {
        self.generation
            .load(Ordering::Acquire)
            .wrapping_add(slot.generation.load(Ordering::Acquire))
    }

    /// Waits until every operation has ended that may have begun before an invalidation that this
    /// thread has made or learnt of.
    ///
    /// To be called with no lock held: an operation in flight may need any lock of the device (to
    /// log a fault, say) before it can end. The wait is as long as the longest operation in
    /// flight; `relax` runs on every turn (yield to other threads there). A thread that is inside an
    /// operation of its own must not call it: it would wait for itself.
    pub fn drain<'a>(
        &self,
        slots: impl IntoIterator<Item = &'a Arc<Slot>>,
        mut relax: impl FnMut(),
    ) {
        // An operation that notes the new epoch has learnt of the invalidation with it (the
        // increment releases what came before), so a busy requester cannot keep a drain waiting.
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        self.barrier.heavy();
        for slot in slots {
            while (1..epoch).contains(&slot.in_flight.load(Ordering::Acquire)) {
                relax();
            }
        }
    }
}

/// The shared part of one requester handle.
///
/// Alone on its cache lines: its owner writes the in-flight word on every operation.
#[derive(Debug)]
#[repr(align(128))]
pub struct Slot {
    /// 0, or the epoch in which the operation in flight began.
    in_flight: AtomicU64,
    generation: AtomicU64,
    device_id: AtomicU32,
}

impl Slot {
    fn new(device_id: DeviceId) -> Self {
        Self {
            in_flight: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            device_id: AtomicU32::new(device_id.0.into()),
        }
    }

    /// The DeviceID that the requester presents now.
    #[inline]
    pub fn device_id(&self) -> DeviceId {
        DeviceId(self.device_id.load(Ordering::Acquire) as u16)
    }

    /// Gives the requester another DeviceID (its bus was renumbered) and drops what it has cached.
    pub fn set_device_id(&self, device_id: DeviceId) {
        self.device_id.store(device_id.0.into(), Ordering::Release);
        self.invalidate();
    }

    /// Makes what this requester has cached unusable for operations that start from now on.
    pub fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// A requester's handle on the fabric: one thread, one device function.
///
/// Several threads that act for one function each [`clone`](Clone::clone) a handle of their own.
#[derive(Debug)]
pub struct Requester {
    fabric: Arc<Fabric>,
    slot: Arc<Slot>,
    /// The fabric's barrier, here to spare the hit path a load.
    barrier: Barrier,
}

impl Requester {
    /// A handle for the function `device_id`. Its [`slot`](Self::slot) must be given to whoever
    /// invalidates and drains.
    pub fn new(fabric: Arc<Fabric>, device_id: DeviceId) -> Self {
        let barrier = fabric.barrier;
        Self {
            fabric,
            slot: Arc::new(Slot::new(device_id)),
            barrier,
        }
    }

    /// The fabric.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// The shared part.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Begins an operation. Until the guard is dropped, a drain waits for it.
    #[inline(always)]
    pub fn enter(&mut self) -> InFlight<'_> {
        // Before the barrier, or the pointers would be loaded twice.
        let (fabric, slot) = (&*self.fabric, &*self.slot);
        let epoch = fabric.epoch.load(Ordering::Acquire);
        #[cfg(loom)]
        self.barrier.interruptible();
        slot.in_flight.store(epoch, Ordering::Relaxed);
        self.barrier.light();
        InFlight {
            fabric,
            slot,
            not_send: PhantomData,
        }
    }
}

impl Clone for Requester {
    /// Another handle with a slot of its own, for the same function.
    fn clone(&self) -> Self {
        Self::new(self.fabric.clone(), self.slot.device_id())
    }
}

/// An operation in flight: what was translated may be used until this is dropped.
///
/// Keep it short, and never wait inside for the device's command processor.
#[derive(Debug)]
pub struct InFlight<'a> {
    fabric: &'a Fabric,
    slot: &'a Slot,
    not_send: PhantomData<*const ()>,
}

impl<'a> InFlight<'a> {
    /// The generation that an entry must have been filled in to be used by this operation.
    ///
    /// The sum of two counters that only grow: any invalidation makes it larger, so equality means
    /// that neither has happened.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.fabric.generation(self.slot)
    }

    /// What is shared.
    #[inline(always)]
    pub fn fabric(&self) -> &'a Fabric {
        self.fabric
    }

    /// Changes with the [`generation`](Self::generation) and with the journal's
    /// [`head`](Journal::head): while it is the same, neither has moved.
    ///
    /// The sum of counters that only grow.
    #[inline(always)]
    pub fn version(&self) -> u64 {
        self.generation().wrapping_add(self.fabric.journal.head())
    }

    /// The registers.
    #[inline]
    pub fn view(&self) -> &'a View {
        &self.fabric.view
    }

    /// The requester's slot.
    #[inline]
    pub fn slot(&self) -> &'a Slot {
        self.slot
    }

    /// The requester's DeviceID.
    #[inline]
    pub fn device_id(&self) -> DeviceId {
        self.slot.device_id()
    }
}

impl Drop for InFlight<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(loom)]
        self.fabric.barrier.interruptible();
        self.slot.in_flight.store(0, Ordering::Release);
    }
}
