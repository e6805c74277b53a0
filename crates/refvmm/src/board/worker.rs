//! The thread that runs the IOMMUs' commands when a tail write left some over, and that ends their
//! waits for devices.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::socket::Socket;

#[derive(Clone, Copy, Default)]
struct Todo {
    run: bool,
    stop: bool,
    /// Nothing is to be run for now.
    hold: bool,
    /// The worker has begun and not ended.
    busy: bool,
}

/// Tells the worker that there is something to do. Cheap, and takes no lock of the device.
#[derive(Default)]
pub(crate) struct Bell {
    todo: Mutex<Todo>,
    rung: Condvar,
    rested: Condvar,
}

impl Bell {
    /// Commands are pending.
    pub(crate) fn ring(&self) {
        self.set(|todo| todo.run = true);
    }

    /// There is another time at which something is to be done.
    pub(crate) fn set_clock(&self) {
        self.set(|_| ());
    }

    fn set(&self, change: impl FnOnce(&mut Todo)) {
        change(&mut self.todo.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_one();
    }

    /// Waits for work, of which there is some when it is `due` at the latest; `false` when the worker is
    /// to end.
    fn wait(&self, due: impl Fn() -> Option<Instant>) -> bool {
        let mut todo = self.todo.lock().unwrap_or_else(PoisonError::into_inner);
        while !todo.stop {
            // With the lock: who makes it due earlier rings afterwards.
            let left = due().map(|due| due.saturating_duration_since(Instant::now()));
            todo = match left {
                _ if todo.hold => self.rung.wait(todo).unwrap_or_else(PoisonError::into_inner),
                _ if todo.run => break,
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    let waited = self.rung.wait_timeout(todo, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.rung.wait(todo).unwrap_or_else(PoisonError::into_inner),
            };
        }
        todo.run = false;
        todo.busy = true;
        !todo.stop
    }

    /// The worker has ended a piece of work: whether it may go on.
    fn may_go_on(&self) -> bool {
        !self
            .todo
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .hold
    }

    /// The worker waits again; `more`: there is something left to do.
    fn rest(&self, more: bool) {
        let mut todo = self.todo.lock().unwrap_or_else(PoisonError::into_inner);
        todo.busy = false;
        todo.run |= more;
        self.rested.notify_all();
    }
}

/// The running thread; ends when dropped.
pub(crate) struct Worker {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(bell: Arc<Bell>, sockets: Vec<Arc<Socket>>) -> std::io::Result<Self> {
        let theirs = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("iommu-commands".into())
            .spawn(move || {
                let due = || {
                    let ends = sockets.iter().filter_map(|socket| socket.patience_ends());
                    ends.min()
                };
                while theirs.wait(due) {
                    let now = Instant::now();
                    sockets.iter().for_each(|socket| socket.expire(now));
                    // A device is taken anew for each bounded piece of work, so that it can be
                    // replaced in between; the devices take turns.
                    let mut more = true;
                    while more && theirs.may_go_on() {
                        more = false;
                        for socket in &sockets {
                            more |= socket.with(|iommu| iommu.run_commands());
                        }
                    }
                    theirs.rest(more);
                }
            })?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }

    /// Lets the thread rest: when this returns it runs no commands, and begins with none.
    pub(crate) fn freeze(&self) {
        self.bell.set(|todo| todo.hold = true);
        let todo = self.bell.todo.lock();
        let resting = self
            .bell
            .rested
            .wait_while(todo.unwrap_or_else(PoisonError::into_inner), |todo| {
                todo.busy
            });
        drop(resting);
    }

    /// Lets it go on with what is to be done.
    pub(crate) fn thaw(&self) {
        self.bell.set(|todo| todo.hold = false);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.set(|todo| todo.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
