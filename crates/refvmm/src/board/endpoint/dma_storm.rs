//! The background stream of DMA writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use amdvi_guest::endpoint::storm_offset;

use super::dma::{AddressSpace, Dma};
use super::stream::Stream;

/// Writes of one turn: so many that an invalidation is likely to fall between two of them.
const BURST: u64 = 64;

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    aborted: AtomicU64,
}

/// The stream, with a way to memory of its own as each queue of a real device has.
pub(super) struct DmaStorm {
    dma: Arc<Dma>,
    counters: Arc<Counters>,
    stream: Stream,
}

impl DmaStorm {
    pub(super) fn new(dma: Dma) -> Self {
        Self {
            dma: Arc::new(dma),
            counters: Arc::default(),
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
        let (dma, counters) = (Arc::clone(&self.dma), Arc::clone(&self.counters));
        self.stream.start("endpoint-dma", || {
            counters.sent.store(0, Ordering::Release);
            counters.aborted.store(0, Ordering::Release);
            let mut n = 0u64;
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
        self.stream.stop();
    }
}
