//! What routes cost, and what went wrong.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counters of a VM's [`Irqfds`](super::Irqfds), since they were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IrqfdCounters {
    /// Times that KVM was given a whole new table, for whatever reason, those for the IOAPIC's pins
    /// included. Never more than `notifications`, those before the first notification aside, and those
    /// for the pins of an IOAPIC between two of them.
    pub commits: u64,
    /// Those of them that gave a route to vectors that had sent many interrupts through the VMM.
    pub promotions: u64,
    /// Times that the guest's interrupt tables changed for a function with vectors: COMPLETION_WAITs
    /// with an invalidation before them that touches one, and register writes that change what all
    /// tables mean.
    pub notifications: u64,
    /// Those of them after which KVM needed no new table.
    pub commits_avoided: u64,
    /// Routes that were derived from the tables again.
    pub rederived: u64,
    /// Those of them that went to the same target as before.
    pub unchanged: u64,
    /// Those of them whose vector goes through the VMM since: blocked, or rather sent by the VMM than worth
    /// a new table.
    pub taken_back: u64,
    /// Interrupts of devices in the VMM that went by a route.
    pub by_irqfd: u64,
    /// Interrupts that went through the VMM.
    pub by_userspace: u64,
}

/// What went wrong on the host's side. A guest can't act on these, so they are counted and the last one
/// is kept for the VMM's log. No interrupt is lost by them: what has no route goes through the VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IrqfdErrors {
    /// How many operations failed.
    pub count: u64,
    /// The last failure, as a sentence.
    pub last: Option<String>,
}

/// The counters as they are counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    promotions: AtomicU64,
    notifications: AtomicU64,
    commits_avoided: AtomicU64,
    rederived: AtomicU64,
    unchanged: AtomicU64,
    taken_back: AtomicU64,
    by_irqfd: AtomicU64,
    by_userspace: AtomicU64,
    errors: Mutex<IrqfdErrors>,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn promotion(&self) {
        add(&self.promotions, 1);
    }

    pub(super) fn by_irqfd(&self) {
        add(&self.by_irqfd, 1);
    }

    pub(super) fn by_userspace(&self) {
        add(&self.by_userspace, 1);
    }

    /// A notification: how many routes were derived again, how many of them have another target or none,
    /// how many vectors go through the VMM since, and whether KVM was given a table.
    pub(super) fn notification(&self, rederived: u64, changed: u64, taken_back: u64, table: bool) {
        add(&self.notifications, 1);
        add(&self.rederived, rederived);
        add(&self.unchanged, rederived - changed);
        add(&self.taken_back, taken_back);
        add(&self.commits_avoided, u64::from(!table));
    }

    pub(super) fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Relaxed)
    }

    pub(super) fn error(&self, what: &str, error: &dyn Display) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.count += 1;
        errors.last = Some(format!("{what}: {error}"));
    }

    pub(super) fn take_errors(&self) -> IrqfdErrors {
        std::mem::take(&mut self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn counters(&self, commits: u64) -> IrqfdCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IrqfdCounters {
            commits,
            promotions: get(&self.promotions),
            notifications: get(&self.notifications),
            commits_avoided: get(&self.commits_avoided),
            rederived: get(&self.rederived),
            unchanged: get(&self.unchanged),
            taken_back: get(&self.taken_back),
            by_irqfd: get(&self.by_irqfd),
            by_userspace: get(&self.by_userspace),
        }
    }
}
