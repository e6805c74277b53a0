//! How long an IOMMU waits for devices that do not answer an invalidation: CONTROL.InvTimeOut, by the
//! host's clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use amdvi_device::InvalidationWait;

/// The time at which the wait of one IOMMU ends, if it waits and if there is one.
///
/// The worker looks at it, so nobody is held meanwhile: neither the CPU that wrote the command ring's
/// tail nor another IOMMU's commands. With InvTimeOut = 0 the guest has asked for no end, and none comes:
/// it has its CPUs, and can restart the command ring with a time or reset the IOMMU.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<Option<(Instant, InvalidationWait)>>);

impl Patience {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, InvalidationWait)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IOMMU waits from `now` on.
    pub(super) fn begin(&self, wait: &InvalidationWait, now: Instant) {
        let mut current = self.lock();
        let end = wait.timeout.and_then(|timeout| now.checked_add(timeout));
        *current = match (*current, end) {
            // The guest has restarted its ring: the wait begins anew, and its end stays.
            (Some((former, same)), Some(end)) if same.latest == wait.latest => {
                Some((former.min(end), *wait))
            }
            // One for newer invalidations covers the older ones.
            (_, end) => end.map(|end| (end, *wait)),
        };
    }

    /// When to look again.
    pub(super) fn end(&self) -> Option<Instant> {
        self.lock().map(|(end, _)| end)
    }

    /// The wait that is over `now`, once.
    pub(super) fn take_over(&self, now: Instant) -> Option<InvalidationWait> {
        self.lock()
            .take_if(|(end, _)| *end <= now)
            .map(|(_, wait)| wait)
    }

    /// The IOMMU is replaced: another one would take its tickets for its own.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }
}
