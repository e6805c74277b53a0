//! One vector: its eventfd, and whether KVM takes what is written there.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Interrupts that a vector sends through the VMM before it is worth a new table: a table costs as much
/// as some hundred interrupts of a device in the VMM, or some ten of a device elsewhere.
pub(super) const HOT: u32 = 64;

/// A vector's state. Whoever sends holds the lock meanwhile, so that what takes the lock to change the
/// way knows that nobody is on the old one.
#[derive(Debug, Default)]
pub(super) struct Vector {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// What the function sends. `None`: nothing, or it is masked.
    pub(super) msi: Option<Msi>,
    /// The delivery that KVM makes of a write to the eventfd. `None`: the eventfd is the VMM's.
    pub(super) route: Option<Delivery>,
    /// Interrupts since the vector has no route.
    pub(super) heat: u32,
    event: Option<EventFd>,
    gsi: Option<u32>,
    /// KVM has the eventfd. Differs from `route` only when KVM refused to give it back.
    assigned: bool,
    /// The VMM has written the eventfd since KVM was last known to have delivered all.
    signalled: bool,
    /// Somebody else has the eventfd, too, and writes it when he likes.
    shared: bool,
}

impl Vector {
    /// A panic elsewhere doesn't make the state inconsistent: its fields change one at a time, and any
    /// combination is safe.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The vector's eventfd, made when it is first needed.
    pub(super) fn event(&mut self) -> io::Result<&EventFd> {
        if self.event.is_none() {
            self.event = Some(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        }
        self.event
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The vector's GSI, taken from `allocate` when it is first needed.
    pub(super) fn gsi(&mut self, allocate: impl FnOnce() -> Option<u32>) -> Option<u32> {
        self.gsi = self.gsi.or_else(allocate);
        self.gsi
    }

    /// The vector's GSI, if it ever had a route.
    pub(super) fn own_gsi(&self) -> Option<u32> {
        self.gsi
    }

    /// Whether the vector waits for a route.
    pub(super) fn is_warm(&self) -> bool {
        self.route.is_none() && self.heat > 0 && self.msi.is_some()
    }

    /// Counts interrupts that went through the VMM; whether it is time for a route.
    pub(super) fn warm(&mut self, interrupts: u64) -> bool {
        let more = u32::try_from(interrupts).unwrap_or(u32::MAX);
        self.heat = self.heat.saturating_add(more);
        self.heat >= HOT
    }

    /// Gives the eventfd to KVM, whose table routes the vector's GSI to `delivery`.
    pub(super) fn assign(
        &mut self,
        delivery: Delivery,
        assign: impl FnOnce(&EventFd, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        if let (false, Some(gsi)) = (self.assigned, self.gsi) {
            let event = self.event()?;
            assign(event, gsi)?;
            // KVM has taken writes from before for an interrupt, but has not read them; read later,
            // they would be a second one. From here on it reads each write.
            let _ = event.read();
            self.assigned = true;
        }
        self.route = Some(delivery);
        Ok(())
    }

    /// Takes the eventfd back from KVM: writes from now on stay in it until somebody reads them.
    pub(super) fn take_back(
        &mut self,
        deassign: impl FnOnce(&EventFd, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        self.route = None;
        self.heat = 0;
        if let (true, Some(event), Some(gsi)) = (self.assigned, &self.event, self.gsi) {
            deassign(event, gsi)?;
            (self.assigned, self.signalled) = (false, false);
        }
        Ok(())
    }

    /// The eventfd, for somebody else.
    pub(super) fn share(&mut self) -> io::Result<EventFd> {
        self.shared = true;
        self.event()?.try_clone()
    }

    /// Waits until KVM has delivered what was written before, as far as that is its task: the eventfd is
    /// taken back, which waits for that, and given again. What fails leaves the vector without a route.
    pub(super) fn settle(
        &mut self,
        deassign: impl FnOnce(&EventFd, u32) -> io::Result<()>,
        assign: impl FnOnce(&EventFd, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        if !(self.assigned && (self.signalled || self.shared)) {
            return Ok(());
        }
        let (Some(event), Some(gsi)) = (&self.event, self.gsi) else {
            return Ok(());
        };
        deassign(event, gsi)?;
        (self.assigned, self.signalled) = (false, false);
        if self.route.is_some() {
            if let Err(error) = assign(event, gsi) {
                (self.route, self.heat) = (None, 0);
                return Err(error);
            }
            self.assigned = true;
        }
        Ok(())
    }

    /// Writes the eventfd.
    pub(super) fn signal(&mut self) -> io::Result<()> {
        self.signalled = true;
        match &self.event {
            Some(event) => event.write(1),
            None => Ok(()),
        }
    }

    /// Takes what was written to the eventfd and KVM has not taken.
    pub(super) fn take_writes(&self) -> u64 {
        self.event
            .as_ref()
            .and_then(|event| event.read().ok())
            .unwrap_or(0)
    }
}
