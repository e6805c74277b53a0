//! Sending interrupt messages, one at a time or as a stream.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amdvi_device::Signal;
use amdvi_dma::Access;
use amdvi_guest::endpoint::outcome;
use amdvi_regs::msi::{Msi, is_msi_address};

use super::{MASKED, Request, dma::Dma, stream::Stream};
use crate::board::socket::Handle;

/// The endpoint's counters.
#[derive(Default)]
pub(super) struct Stats {
    outcome: AtomicU32,
    delivered: AtomicU64,
    blocked: AtomicU64,
    nanos: AtomicU64,
}

impl Stats {
    pub(super) fn outcome(&self) -> u32 {
        self.outcome.load(Ordering::Acquire)
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    pub(super) fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::Acquire)
    }

    pub(super) fn nanos(&self) -> u64 {
        self.nanos.load(Ordering::Acquire)
    }

    pub(super) fn reset(&self) {
        for counter in [&self.delivered, &self.blocked, &self.nanos] {
            counter.store(0, Ordering::Release);
        }
    }

    fn note(&self, outcome: u32, took: Duration) {
        match outcome {
            outcome::DELIVERED => self.delivered.fetch_add(1, Ordering::AcqRel),
            outcome::BLOCKED => self.blocked.fetch_add(1, Ordering::AcqRel),
            _ => 0,
        };
        self.nanos
            .fetch_add(took.as_nanos() as u64, Ordering::AcqRel);
        self.outcome.store(outcome, Ordering::Release);
    }
}

/// The way from an interrupt message to its outcome, for one thread.
pub(super) struct Sender {
    handle: Arc<Handle>,
    dma: Dma,
    stats: Arc<Stats>,
}

impl Sender {
    pub(super) fn new(handle: Arc<Handle>, dma: Dma) -> Self {
        Self {
            handle,
            dma,
            stats: Arc::default(),
        }
    }

    /// A sender with its own way through the IOMMU and the same counters.
    pub(super) fn for_another_thread(&self, handle: Arc<Handle>, dma: Dma) -> Self {
        Self {
            handle,
            dma,
            stats: Arc::clone(&self.stats),
        }
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(super) fn dma(&self) -> &Dma {
        &self.dma
    }

    /// Sends what the MSI-X table answered.
    pub(super) fn request(&self, request: Request) {
        match request {
            Request::Send(msi) => {
                self.send(msi);
            }
            Request::Masked => self.stats.outcome.store(MASKED, Ordering::Release),
        }
    }

    /// Sends a message and returns the outcome. A message whose address is not in the interrupt
    /// window is what it is on the bus: a memory write of four bytes.
    pub(super) fn send(&self, msi: Msi) -> u32 {
        let started = Instant::now();
        let outcome = if is_msi_address(msi.address) {
            match self.handle.signal(msi) {
                Signal::Delivered(_) => outcome::DELIVERED,
                Signal::Posted => outcome::POSTED,
                Signal::Blocked(_) => outcome::BLOCKED,
            }
        } else if self
            .dma
            .transfer(msi.address, &mut msi.data.to_le_bytes(), Access::Write)
        {
            outcome::NONE
        } else {
            outcome::BLOCKED
        };
        self.stats.note(outcome, started.elapsed());
        outcome
    }

    /// A DMA write. In the interrupt window it is an interrupt message, wherever it comes from.
    pub(super) fn write(&self, iova: u64, data: &mut [u8]) -> bool {
        match <[u8; 4]>::try_from(&*data) {
            Ok(data) if is_msi_address(iova) => {
                let msi = Msi {
                    address: iova,
                    data: u32::from_le_bytes(data),
                };
                self.send(msi) != outcome::BLOCKED
            }
            _ => self.dma.transfer(iova, data, Access::Write),
        }
    }
}

/// The background stream.
pub(super) struct Storm {
    sender: Arc<Sender>,
    sent: Arc<AtomicU64>,
    stream: Stream,
}

impl Storm {
    pub(super) fn new(sender: Sender) -> Self {
        Self {
            sender: Arc::new(sender),
            sent: Arc::default(),
            stream: Stream::default(),
        }
    }

    pub(super) fn running(&self) -> bool {
        self.stream.running()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Starts to send the vectors of `range`, round robin; `request` asks the MSI-X table. An empty
    /// range, and a stream that already runs, change nothing.
    pub(super) fn start(
        &self,
        range: Range<u32>,
        request: impl Fn(u32) -> Request + Send + 'static,
    ) {
        if range.is_empty() {
            return;
        }
        let (sender, sent) = (Arc::clone(&self.sender), Arc::clone(&self.sent));
        let mut vectors = range.cycle();
        self.stream.start("endpoint-storm", || {
            sent.store(0, Ordering::Release);
            move || {
                if let Some(vector) = vectors.next() {
                    let request = request(vector);
                    sender.request(request);
                    if matches!(request, Request::Send(_)) {
                        sent.fetch_add(1, Ordering::AcqRel);
                    }
                }
            }
        });
    }

    /// Stops the stream; its last message is delivered when this returns.
    pub(super) fn stop(&self) {
        self.stream.stop();
    }
}
