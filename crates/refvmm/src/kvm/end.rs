//! How a run ends: a device or a CPU says so once, and whoever waits for it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The payload wrote this to its exit port.
    Exit(u32),
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// A CPU had an exception for whose handling it had no way left.
    TripleFault {
        /// Index of the CPU.
        cpu: usize,
        /// Where it was.
        place: String,
    },
    /// A CPU can't go on.
    Stopped {
        /// Index of the CPU.
        cpu: usize,
        /// The exit, and where the CPU was.
        why: String,
    },
    /// Whoever runs the VMM wants it to end.
    Quit,
    /// The machine is in a file now.
    Saved,
    /// The machine runs in another process now.
    Moved,
}

/// The place where a run's end is told; as many ends as there are causes share it.
#[derive(Debug, Default)]
pub struct End {
    reached: AtomicBool,
    ending: Mutex<Option<Ending>>,
    changed: Condvar,
}

impl End {
    /// Ends the run. The first ending counts: what follows is its consequence.
    pub fn reach(&self, ending: Ending) {
        lock(&self.ending).get_or_insert(ending);
        self.reached.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether the CPUs are to stop.
    pub fn is_reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }

    /// Stops the CPUs without an ending, when time is up.
    pub(super) fn stop(&self) {
        self.reached.store(true, Ordering::SeqCst);
    }

    /// Waits for the first ending, for ever without a limit; `None` when none came in time.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Ending> {
        let ending = lock(&self.ending);
        let none_yet = |ending: &mut Option<Ending>| ending.is_none();
        match limit {
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(ending, limit, none_yet);
                waited.unwrap_or_else(PoisonError::into_inner).0.clone()
            }
            None => {
                let waited = self.changed.wait_while(ending, none_yet);
                waited.unwrap_or_else(PoisonError::into_inner).clone()
            }
        }
    }
}

/// Nothing here leaves half-made state behind a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_counts() {
        let end = End::default();
        assert_eq!(end.wait(Some(Duration::ZERO)), None);
        assert!(!end.is_reached());
        end.reach(Ending::Exit(3));
        end.reach(Ending::PowerOff);
        assert_eq!(end.wait(None), Some(Ending::Exit(3)));
        assert!(end.is_reached());
    }
}
