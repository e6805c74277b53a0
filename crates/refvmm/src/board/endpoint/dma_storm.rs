//! The background stream of DMA writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use amdvi_guest::endpoint::storm_offset;
use serde::{Deserialize, Serialize};

use super::dma::{AddressSpace, Dma};
use super::lock;
use super::stream::Stream;

/// Writes of one turn: so many that an invalidation is likely to fall between two of them.
const BURST: u64 = 64;

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    aborted: AtomicU64,
}

/// What the stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    iova: u64,
    bytes: u64,
}

/// The stream as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DmaStormState {
    running: Option<Target>,
    sent: u64,
    aborted: u64,
}

/// The stream, with a way to memory of its own as each queue of a real device has.
pub(super) struct DmaStorm {
    dma: Arc<Dma>,
    counters: Arc<Counters>,
    target: Mutex<Option<Target>>,
    stream: Stream,
}

impl DmaStorm {
    pub(super) fn new(dma: Dma) -> Self {
        Self {
            dma: Arc::new(dma),
            counters: Arc::default(),
            target: Mutex::default(),
            stream: Stream::default(),
        }
    }

    pub(super) fn running(&self) -> bool {
        self.stream.running()
    }

    /// Writes that have ended.
    pub(super) fn sent(&self) -> u64 {
        self.counters.sent.load(Ordering::Acquire)
    }

    /// Writes that were aborted.
    pub(super) fn aborted(&self) -> u64 {
        self.counters.aborted.load(Ordering::Acquire)
    }

    /// Starts to write to the `bytes`, whole pages, at `iova`. An empty range, and a stream that
    /// already runs, change nothing.
    pub(super) fn start(&self, iova: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if self.stream.running() {
            return;
        }
        self.counters.sent.store(0, Ordering::Release);
        self.counters.aborted.store(0, Ordering::Release);
        let target = Target { iova, bytes };
        *lock(&self.target) = Some(target);
        self.go_on(target);
    }

    /// Writes from where the counters are.
    fn go_on(&self, Target { iova, bytes }: Target) {
        let (dma, counters) = (Arc::clone(&self.dma), Arc::clone(&self.counters));
        self.stream.start("endpoint-dma", || {
            let mut n = counters.sent.load(Ordering::Acquire);
            move || {
                for _ in 0..BURST {
                    n += 1;
                    let at = iova.wrapping_add(storm_offset(n, bytes / 4096));
                    let done = dma.write(AddressSpace::PLAIN, at, &n.to_le_bytes()).is_ok();
                    // Aborted first: who sees the write as ended sees its outcome too.
                    if !done {
                        counters.aborted.fetch_add(1, Ordering::AcqRel);
                    }
                    counters.sent.store(n, Ordering::Release);
                }
            }
        });
    }

    /// Stops the stream; its last write has ended when this returns.
    pub(super) fn stop(&self) {
        *lock(&self.target) = None;
        self.stream.stop();
    }

    /// Halts the stream.
    pub(super) fn freeze(&self) {
        self.stream.stop();
    }

    /// Lets it go on if it ran.
    pub(super) fn thaw(&self) {
        let target = *lock(&self.target);
        if let Some(target) = target {
            self.go_on(target);
        }
    }

    pub(super) fn save(&self) -> DmaStormState {
        DmaStormState {
            running: *lock(&self.target),
            sent: self.sent(),
            aborted: self.aborted(),
        }
    }

    pub(super) fn restore(&self, state: &DmaStormState) {
        // Without a page there is nothing to write to.
        *lock(&self.target) = state.running.filter(|target| target.bytes >= 4096);
        self.counters.sent.store(state.sent, Ordering::Release);
        self.counters
            .aborted
            .store(state.aborted, Ordering::Release);
    }
}
