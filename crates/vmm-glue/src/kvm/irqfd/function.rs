//! The vectors of one function.

use std::fmt;
use std::io;
use std::sync::Arc;

use amdvi_irt::{Delivery, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::{DeliveryMode, Msi};
use vmm_sys_util::eventfd::EventFd;

use super::Irqfds;
use super::vector::{State, Vector};
use crate::kvm::{KvmIrqfds, KvmMessage};
use crate::remap::RemapSource;

/// One function's vectors on irqfds. Made by [`Irqfds::function`]; dropping it gives the irqfds and GSIs
/// back.
///
/// A vector is used in one of two ways:
///
/// - a device in the VMM calls [`trigger`](Self::trigger) with the message that its MSI-X table has, and
///   sends by itself what has no route;
/// - a device elsewhere (vhost, VFIO) writes the vector's [`producer`](Self::producer). The VMM tells
///   [`set_message`](Self::set_message) what the MSI-X table says, polls the eventfd (edge-triggered:
///   what a masked vector holds back stays in it), and calls [`service`](Self::service) when it can be
///   read, which it only can while KVM does not take the writes.
pub struct FunctionIrqfds<K: KvmIrqfds> {
    vm: Arc<Irqfds<K>>,
    pub(super) iommu: u32,
    pub(super) device_id: DeviceId,
    source: Box<dyn RemapSource + Send + Sync>,
    vectors: Box<[Vector]>,
}

/// A vector that a new table is to route.
pub(super) struct Planned<K: KvmIrqfds> {
    function: Arc<FunctionIrqfds<K>>,
    index: usize,
    msi: Msi,
    delivery: Delivery,
}

impl<K: KvmIrqfds> FunctionIrqfds<K> {
    pub(super) fn new(
        vm: Arc<Irqfds<K>>,
        iommu: u32,
        device_id: DeviceId,
        source: Box<dyn RemapSource + Send + Sync>,
        vectors: u16,
    ) -> Self {
        Self {
            vm,
            iommu,
            device_id,
            source,
            vectors: (0..vectors).map(|_| Vector::default()).collect(),
        }
    }

    fn vector(&self, vector: u16) -> Option<&Vector> {
        self.vectors.get(usize::from(vector))
    }

    /// A device in the VMM sends `vector`, whose message is `msi`. If there is a route for that, the
    /// eventfd is written and the answer is what KVM delivers; `before` is called with it just before.
    /// Otherwise (`None`) the caller requests the interrupt from the IOMMU and sends what that answers.
    ///
    /// Once COMPLETION_WAIT is complete, nothing goes out by a route that was invalidated before. Not
    /// to be called while a request is in flight.
    pub fn trigger(
        &self,
        vector: u16,
        msi: Msi,
        before: impl FnOnce(&Delivery),
    ) -> Option<Delivery> {
        let vector = self.vector(vector)?;
        let mut state = vector.lock();
        if state.msi != Some(msi) {
            self.set_to(&mut state, Some(msi));
        }
        if state.route.is_none() {
            if !state.warm(1) {
                self.vm.tally.by_userspace();
                return None;
            }
            // Without the lock, which comes after that of the list of functions.
            drop(state);
            self.vm.promote();
            state = vector.lock();
            if state.route.is_none() || state.msi != Some(msi) {
                state.heat = 0;
                self.vm.tally.by_userspace();
                return None;
            }
        }
        let delivery = state.route?;
        before(&delivery);
        let written = state.signal();
        self.vm.note("irqfd", written);
        self.vm.tally.by_irqfd();
        Some(delivery)
    }

    /// The eventfd of `vector`, for a device elsewhere to write.
    ///
    /// # Errors
    /// The process has no file descriptor left, or there is no such vector.
    pub fn producer(&self, vector: u16) -> io::Result<EventFd> {
        let vector = self.vector(vector).ok_or(io::ErrorKind::NotFound)?;
        vector.lock().share()
    }

    /// What the MSI-X table says of `vector` now: its message, or `None` while the vector is masked or
    /// MSI-X disabled. What is written to the eventfd meanwhile is sent once there is a message.
    pub fn set_message(&self, vector: u16, msi: Option<Msi>) {
        if let Some(entry) = self.vector(vector) {
            let mut state = entry.lock();
            if state.msi != msi {
                self.set_to(&mut state, msi);
            }
            drop(state);
            self.service(vector);
        }
    }

    /// The eventfd of `vector` can be read: takes what KVM does not take, and requests it from the IOMMU,
    /// which logs its event if it blocks it. A masked vector keeps it.
    pub fn service(&self, vector: u16) {
        let Some(vector) = self.vector(vector) else {
            return;
        };
        let mut state = vector.lock();
        let (None, Some(msi)) = (state.route, state.msi) else {
            return;
        };
        let writes = state.take_writes();
        if writes == 0 {
            return;
        }
        // As one interrupt, which is what KVM makes of several writes at once, too.
        self.source
            .request_with(msi, &mut |delivery| self.send(delivery));
        self.vm.tally.by_userspace();
        let hot = state.warm(writes);
        drop(state);
        if hot {
            self.vm.promote();
            let mut state = vector.lock();
            if state.route.is_none() {
                state.heat = 0;
            }
        }
    }

    /// What is delivered for `vector` without the VMM, if it is.
    pub fn route(&self, vector: u16) -> Option<Delivery> {
        self.vector(vector)?.lock().route
    }

    /// See [`Irqfds::settle`].
    pub(super) fn settle(&self) {
        let kvm = &self.vm.kvm;
        for vector in &self.vectors {
            let mut state = vector.lock();
            let settled = state.settle(
                |event, gsi| kvm.deassign_irqfd(event, gsi),
                |event, gsi| kvm.assign_irqfd(event, gsi),
            );
            self.vm.note("KVM_IRQFD (settle)", settled);
        }
    }

    fn send(&self, delivery: &Delivery) {
        let sent = KvmMessage::encode(delivery, self.vm.format)
            .map_err(|error| error.to_string())
            .and_then(|message| {
                let sent = self.vm.kvm.signal_msi(message.to_msi());
                sent.map_err(|error| format!("KVM_SIGNAL_MSI of {delivery}: {error}"))
            });
        self.vm.note("not delivered", sent.map(drop));
    }

    fn set_to(&self, state: &mut State, msi: Option<Msi>) {
        self.take_back(state);
        state.msi = msi;
    }

    /// The vector's interrupts go through the VMM from now on; those of before are delivered.
    fn take_back(&self, state: &mut State) {
        let taken = state.take_back(|event, gsi| self.vm.kvm.deassign_irqfd(event, gsi));
        if let Some(gsi) = state.own_gsi() {
            let mut table = self.vm.table();
            if taken.is_ok() {
                table.retire(gsi);
            } else {
                // Rather lost than delivered to a target that the guest has taken away.
                let _ = table.set(gsi, None);
            }
        }
        self.vm.note("KVM_IRQFD (deassign)", taken);
    }

    /// What the tables say now of every vector that has a route: those that must not be delivered by a
    /// route are taken back at once, those with another target are returned.
    pub(super) fn rederive(self: &Arc<Self>, plan: &mut Vec<Planned<K>>) -> Rederived {
        let (vectors, changed) = self.changed(|state| state.route.is_some());
        let mut rederived = Rederived {
            vectors: vectors as u64,
            taken_back: 0,
        };
        for Changed {
            index,
            msi,
            delivery,
        } in changed
        {
            match delivery {
                Some(delivery) if self.is_routable(&delivery) => {
                    plan.push(self.planned(index, msi, delivery));
                }
                _ => {
                    self.take_back(&mut self.vectors[index].lock());
                    rederived.taken_back += 1;
                }
            }
        }
        rederived
    }

    /// The vectors that wait for a route and can have one.
    pub(super) fn warm(self: &Arc<Self>, plan: &mut Vec<Planned<K>>) {
        for changed in self.changed(State::is_warm).1 {
            if let Some(delivery) = changed.delivery
                && self.is_routable(&delivery)
            {
                plan.push(self.planned(changed.index, changed.msi, delivery));
            }
        }
    }

    /// Asks the source about all vectors that are `wanted`: how many these are, and those for which it
    /// says something else than their route.
    ///
    /// A vector's lock is not held while the source is asked, since whoever holds one may wait for the
    /// source. A vector that is given another message meanwhile loses its route for good: who gives routes
    /// has the list of functions, and that is the caller.
    fn changed(&self, wanted: impl Fn(&State) -> bool) -> (usize, Vec<Changed>) {
        let (mut places, mut messages) = (Vec::new(), Vec::new());
        for (index, vector) in self.vectors.iter().enumerate() {
            let state = vector.lock();
            if let (true, Some(msi)) = (wanted(&state), state.msi) {
                places.push((index, state.route));
                messages.push(msi);
            }
        }
        let mut changed = Vec::new();
        let mut asked = places.iter().zip(&messages);
        self.source.routes(&messages, &mut |delivery| {
            if let Some((&(index, route), &msi)) = asked.next()
                && route != delivery
            {
                changed.push(Changed {
                    index,
                    msi,
                    delivery,
                });
            }
        });
        (messages.len(), changed)
    }

    fn planned(self: &Arc<Self>, index: usize, msi: Msi, delivery: Delivery) -> Planned<K> {
        Planned {
            function: Arc::clone(self),
            index,
            msi,
            delivery,
        }
    }

    /// Whether a route can do what is to be delivered. What it can't is rare, and needs the VMM's eyes
    /// anyhow: a level-triggered message an EOI, SMI and ExtINT somebody who knows what to do.
    fn is_routable(&self, delivery: &Delivery) -> bool {
        delivery.trigger == Trigger::Edge
            && matches!(
                delivery.delivery_mode,
                DeliveryMode::Fixed | DeliveryMode::LowestPriority
            )
            && KvmMessage::encode(delivery, self.vm.format).is_ok()
    }
}

/// A vector for whose message the source now says something else than its route.
struct Changed {
    index: usize,
    msi: Msi,
    delivery: Option<Delivery>,
}

/// What [`FunctionIrqfds::rederive`] has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rederived {
    pub(super) vectors: u64,
    pub(super) taken_back: u64,
}

impl<K: KvmIrqfds> Planned<K> {
    fn vector(&self) -> &Vector {
        &self.function.vectors[self.index]
    }

    /// Sends the vector through the VMM instead.
    pub(super) fn take_back(&self) {
        self.function.take_back(&mut self.vector().lock());
    }

    /// Puts the route into the table; `false` when the vector can't have one.
    pub(super) fn stage(&self) -> bool {
        let vm = &self.function.vm;
        let mut state = self.vector().lock();
        if state.msi != Some(self.msi) {
            return false;
        }
        // A descriptor first: it is what runs out.
        if let Err(error) = state.event().map(drop) {
            vm.note("eventfd", Err(error));
            return false;
        }
        let mut table = vm.table();
        let Some(gsi) = state.gsi(|| table.allocate()) else {
            drop(table);
            vm.note("irqfd", Err("KVM has no GSI left"));
            return false;
        };
        let set = table.set(gsi, Some(&self.delivery));
        drop(table);
        let staged = set.is_ok();
        vm.note("irqfd", set.map(drop));
        staged
    }

    /// KVM has the route: it may have the eventfd, unless the vector was given another message since.
    pub(super) fn activate(&self) {
        let vm = &self.function.vm;
        let mut state = self.vector().lock();
        if state.msi == Some(self.msi) {
            let assigned =
                state.assign(self.delivery, |event, gsi| vm.kvm.assign_irqfd(event, gsi));
            if assigned.is_err() {
                self.function.take_back(&mut state);
            }
            vm.note("KVM_IRQFD", assigned);
        } else if let Some(gsi) = state.own_gsi() {
            vm.table().retire(gsi);
        }
    }
}

impl<K: KvmIrqfds> Drop for FunctionIrqfds<K> {
    fn drop(&mut self) {
        for vector in &self.vectors {
            let mut state = vector.lock();
            self.take_back(&mut state);
            if let Some(gsi) = state.own_gsi() {
                self.vm.table().release(gsi);
            }
        }
    }
}

impl<K: KvmIrqfds> fmt::Debug for FunctionIrqfds<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionIrqfds")
            .field("iommu", &self.iommu)
            .field("device_id", &self.device_id)
            .field("vectors", &self.vectors.len())
            .finish_non_exhaustive()
    }
}
