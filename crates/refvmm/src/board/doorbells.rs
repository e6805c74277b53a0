//! Registers whose write only wakes somebody, which the machine then does by itself: ioeventfds.

use std::fmt;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Injector;

/// Where a function can have such registers.
#[derive(Clone)]
pub struct Doorbells(Arc<dyn Injector>);

impl Doorbells {
    pub(super) fn new(machine: Arc<dyn Injector>) -> Self {
        Self(machine)
    }

    /// Has the guest's writes to `gpa`, of any width, ring `bell` for as long as the result lives. They
    /// then do not come to the function. `None`: they come as all others do, because the machine
    /// can't do that, or has something else there.
    pub fn add(&self, gpa: u64, bell: &EventFd) -> Option<Doorbell> {
        let bell = bell.try_clone().ok()?;
        self.0.add_doorbell(gpa, &bell).then(|| Doorbell {
            machine: Arc::clone(&self.0),
            gpa,
            bell,
        })
    }
}

/// A register that rings a bell.
pub struct Doorbell {
    machine: Arc<dyn Injector>,
    gpa: u64,
    bell: EventFd,
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        self.machine.remove_doorbell(self.gpa, &self.bell);
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doorbell({:#x})", self.gpa)
    }
}
