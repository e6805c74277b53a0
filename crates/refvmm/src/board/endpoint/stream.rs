//! A thread that does one thing again and again until it is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lock;

/// Time between two turns of a stream. Without it a guest whose handler takes longer than a message
/// would only ever see merged interrupts, and on a small host the stream would take a CPU from the
/// guest, or the device's lock from whoever wants to replace the device.
const INTERVAL: Duration = Duration::from_micros(20);

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A background stream, running or not.
#[derive(Default)]
pub(super) struct Stream {
    running: Mutex<Option<Running>>,
}

impl Stream {
    pub(super) fn running(&self) -> bool {
        lock(&self.running).is_some()
    }

    /// Starts the stream with the turns that `prepare` makes; one that already runs goes on, and
    /// `prepare` is not asked.
    pub(super) fn start<T: FnMut() + Send + 'static>(
        &self,
        name: &str,
        prepare: impl FnOnce() -> T,
    ) {
        let mut running = lock(&self.running);
        if running.is_some() {
            return;
        }
        let mut turn = prepare();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let stream = move || {
            while !stopped.load(Ordering::Acquire) {
                turn();
                std::thread::sleep(INTERVAL);
            }
        };
        // Without a thread the stream does not run, and the register says so.
        if let Ok(thread) = std::thread::Builder::new().name(name.into()).spawn(stream) {
            *running = Some(Running { stop, thread });
        }
    }

    /// Stops the stream; its last turn has ended when this returns.
    pub(super) fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop.store(true, Ordering::Release);
            let _ = running.thread.join();
        }
    }
}
