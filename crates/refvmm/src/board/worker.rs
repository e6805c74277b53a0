//! The thread that runs the IOMMUs' commands when a tail write left some over.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::socket::Socket;

#[derive(Clone, Copy, Default)]
struct Todo {
    run: bool,
    stop: bool,
}

/// Tells the worker that there is something to do. Cheap, and takes no lock of the device.
#[derive(Default)]
pub(crate) struct Bell {
    todo: Mutex<Todo>,
    rung: Condvar,
}

impl Bell {
    /// Commands are pending.
    pub(crate) fn ring(&self) {
        self.set(|todo| todo.run = true);
    }

    fn set(&self, change: impl FnOnce(&mut Todo)) {
        change(&mut self.todo.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_one();
    }

    /// Waits for work; `false` when the worker is to end.
    fn wait(&self) -> bool {
        let todo = self.todo.lock().unwrap_or_else(PoisonError::into_inner);
        let mut todo = self
            .rung
            .wait_while(todo, |todo| !todo.run && !todo.stop)
            .unwrap_or_else(PoisonError::into_inner);
        todo.run = false;
        !todo.stop
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
                while theirs.wait() {
                    // A device is taken anew for each bounded piece of work, so that it can be
                    // replaced in between; the devices take turns.
                    let mut more = true;
                    while more {
                        more = false;
                        for socket in &sockets {
                            more |= socket.with(|iommu| iommu.run_commands());
                        }
                    }
                }
            })?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
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
