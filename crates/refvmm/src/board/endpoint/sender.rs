//! Sending interrupt messages, one at a time or as a stream, and counting them.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_device::Signal;
use amdvi_guest::endpoint::outcome;
use amdvi_regs::msi::{Msi, is_msi_address};
use serde::{Deserialize, Serialize};

use super::dma::{AddressSpace, Dma};
use super::stream::Stream;
use super::{Request, lock};
use crate::board::routes::Vectors;
use crate::board::slot::Slot;
use crate::board::socket::Handle;

/// The messages of one vector.
#[derive(Default)]
struct VectorCount {
    sent: AtomicU32,
    delivered: AtomicU32,
}

/// The endpoint's counters.
pub(super) struct Stats {
    outcome: AtomicU32,
    delivered: AtomicU64,
    blocked: AtomicU64,
    sent: AtomicU64,
    held_back: AtomicU64,
    nanos: AtomicU64,
    vectors: Box<[VectorCount]>,
}

/// The counters as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StatsState {
    outcome: u32,
    delivered: u64,
    blocked: u64,
    sent: u64,
    held_back: u64,
    nanos: u64,
    /// Sent and delivered, of each vector.
    vectors: Vec<(u32, u32)>,
}

impl Stats {
    pub(super) fn save(&self) -> StatsState {
        StatsState {
            outcome: self.outcome(),
            delivered: self.delivered(),
            blocked: self.blocked(),
            sent: self.sent(),
            held_back: self.held_back(),
            nanos: self.nanos(),
            vectors: (0..self.vectors.len() as u64)
                .map(|vector| self.vector(vector))
                .collect(),
        }
    }

    pub(super) fn restore(&self, state: &StatsState) {
        self.outcome.store(state.outcome, Ordering::Release);
        for (counter, saved) in [
            (&self.delivered, state.delivered),
            (&self.blocked, state.blocked),
            (&self.sent, state.sent),
            (&self.held_back, state.held_back),
            (&self.nanos, state.nanos),
        ] {
            counter.store(saved, Ordering::Release);
        }
        for (vector, (sent, delivered)) in self.vectors.iter().zip(&state.vectors) {
            vector.sent.store(*sent, Ordering::Release);
            vector.delivered.store(*delivered, Ordering::Release);
        }
    }

    fn new(vectors: usize) -> Self {
        Self {
            outcome: AtomicU32::new(outcome::NONE),
            delivered: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            vectors: (0..vectors).map(|_| VectorCount::default()).collect(),
        }
    }

    pub(super) fn outcome(&self) -> u32 {
        self.outcome.load(Ordering::Acquire)
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    pub(super) fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::Acquire)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    pub(super) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Acquire)
    }

    pub(super) fn nanos(&self) -> u64 {
        self.nanos.load(Ordering::Acquire)
    }

    /// Messages of a vector that went to the IOMMU, and those that left it as interrupts; 0 for a
    /// vector that does not exist.
    pub(super) fn vector(&self, vector: u64) -> (u32, u32) {
        usize::try_from(vector)
            .ok()
            .and_then(|vector| self.vectors.get(vector))
            .map_or((0, 0), |count| {
                let load = |counter: &AtomicU32| counter.load(Ordering::Acquire);
                (load(&count.sent), load(&count.delivered))
            })
    }

    /// Vectors that were delivered at least once.
    pub(super) fn vectors_delivered(&self) -> usize {
        (0..self.vectors.len() as u64)
            .filter(|&vector| self.vector(vector).1 > 0)
            .count()
    }

    pub(super) fn reset(&self) {
        for counter in [
            &self.delivered,
            &self.blocked,
            &self.sent,
            &self.held_back,
            &self.nanos,
        ] {
            counter.store(0, Ordering::Release);
        }
        for vector in &self.vectors {
            vector.sent.store(0, Ordering::Release);
            vector.delivered.store(0, Ordering::Release);
        }
    }

    fn note(&self, vector: Option<u16>, outcome: u32, took: Duration) {
        match outcome {
            outcome::DELIVERED => self.delivered.fetch_add(1, Ordering::AcqRel),
            outcome::BLOCKED => self.blocked.fetch_add(1, Ordering::AcqRel),
            _ => 0,
        };
        self.sent.fetch_add(1, Ordering::AcqRel);
        if let Some(count) = vector.and_then(|vector| self.vectors.get(usize::from(vector))) {
            if outcome == outcome::DELIVERED {
                count.delivered.fetch_add(1, Ordering::AcqRel);
            }
            count.sent.fetch_add(1, Ordering::AcqRel);
        }
        self.nanos
            .fetch_add(took.as_nanos() as u64, Ordering::AcqRel);
        self.outcome.store(outcome, Ordering::Release);
    }

    fn hold_back(&self) {
        self.held_back.fetch_add(1, Ordering::AcqRel);
        self.outcome.store(outcome::MASKED, Ordering::Release);
    }
}

/// The way from an interrupt message to its outcome, for one thread.
pub(super) struct Sender {
    handle: Arc<Handle>,
    vectors: Vectors,
    dma: Dma,
    stats: Arc<Stats>,
}

impl Sender {
    /// A sender of the function in `slot`, which counts this many vectors.
    pub(super) fn new(slot: &Slot, dma: Dma, vectors: u16) -> Self {
        let handle = slot.handle();
        // One handle of the function hears of invalidations for all of them.
        handle.set_ats(dma.shared().tlb.clone());
        Self {
            handle,
            vectors: slot.vectors(vectors),
            dma,
            stats: Arc::new(Stats::new(vectors.into())),
        }
    }

    /// A sender with its own way through the IOMMU and the same counters.
    pub(super) fn for_another_thread(&self, slot: &Slot, dma: Dma) -> Self {
        Self {
            handle: slot.handle(),
            vectors: self.vectors.clone(),
            dma,
            stats: Arc::clone(&self.stats),
        }
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether vectors can go past the IOMMU.
    pub(super) fn has_routes(&self) -> bool {
        self.vectors.have_routes()
    }

    pub(super) fn dma(&self) -> &Dma {
        &self.dma
    }

    /// Sends what the MSI-X table or the MSI capability answered for `vector`. Returns whether a
    /// message was sent.
    pub(super) fn request(&self, vector: u32, request: Request) -> bool {
        match request {
            Request::Send(msi) => {
                // It has a message, so it is one of 2048.
                self.send(Some(vector as u16), msi);
                true
            }
            Request::Masked => {
                self.stats.hold_back();
                false
            }
        }
    }

    /// Sends a message, that of a vector or one that software made up, and returns the outcome. A
    /// message whose address is not in the interrupt window is what it is on the bus: a memory write
    /// of four bytes.
    pub(super) fn send(&self, vector: Option<u16>, msi: Msi) -> u32 {
        if !self.dma.bus_master() {
            self.stats.hold_back();
            return outcome::MASKED;
        }
        let started = Instant::now();
        let outcome = if is_msi_address(msi.address) {
            let signal = match vector {
                Some(vector) => self.vectors.signal(&self.handle, vector, msi),
                None => self.handle.signal(msi),
            };
            match signal {
                Signal::Delivered(_) => outcome::DELIVERED,
                Signal::Posted => outcome::POSTED,
                Signal::Blocked(_) => outcome::BLOCKED,
            }
        } else if self
            .dma
            .write(AddressSpace::PLAIN, msi.address, &msi.data.to_le_bytes())
            .is_ok()
        {
            outcome::NONE
        } else {
            outcome::BLOCKED
        };
        self.stats.note(vector, outcome, started.elapsed());
        outcome
    }

    /// A DMA write. In the interrupt window it is an interrupt message, wherever it comes from.
    pub(super) fn write(&self, iova: u64, data: &[u8]) -> bool {
        match <[u8; 4]>::try_from(data) {
            Ok(data) if is_msi_address(iova) => {
                let msi = Msi {
                    address: iova,
                    data: u32::from_le_bytes(data),
                };
                !matches!(self.send(None, msi), outcome::BLOCKED | outcome::MASKED)
            }
            _ => self.dma.write(AddressSpace::PLAIN, iova, data).is_ok(),
        }
    }
}

/// The stream as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StormState {
    running: Option<Range<u32>>,
    sent: u64,
    turns: u64,
}

/// The background stream.
pub(super) struct Storm {
    sender: Arc<Sender>,
    sent: Arc<AtomicU64>,
    /// Vectors that had their turn, sent or not.
    turns: Arc<AtomicU64>,
    range: Mutex<Option<Range<u32>>>,
    stream: Stream,
}

impl Storm {
    pub(super) fn new(sender: Sender) -> Self {
        Self {
            sender: Arc::new(sender),
            sent: Arc::default(),
            turns: Arc::default(),
            range: Mutex::default(),
            stream: Stream::default(),
        }
    }

    pub(super) fn running(&self) -> bool {
        self.stream.running()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Starts to send the vectors of `range`, round robin; `request` asks for the message. An empty
    /// range, and a stream that already runs, change nothing.
    pub(super) fn start(
        &self,
        range: Range<u32>,
        request: impl Fn(u32) -> Request + Send + 'static,
    ) {
        if range.is_empty() || self.stream.running() {
            return;
        }
        self.sent.store(0, Ordering::Release);
        self.turns.store(0, Ordering::Release);
        *lock(&self.range) = Some(range.clone());
        self.go_on(range, request);
    }

    /// Sends from where the counters are.
    fn go_on(&self, range: Range<u32>, request: impl Fn(u32) -> Request + Send + 'static) {
        let (sender, sent) = (Arc::clone(&self.sender), Arc::clone(&self.sent));
        let turns = Arc::clone(&self.turns);
        self.stream.start("endpoint-storm", || {
            move || {
                let turn = turns.fetch_add(1, Ordering::AcqRel);
                // The range is not empty, and the remainder is less than its length.
                let vector = range.start + (turn % range.len() as u64) as u32;
                if sender.request(vector, request(vector)) {
                    sent.fetch_add(1, Ordering::AcqRel);
                }
            }
        });
    }

    /// Stops the stream; its last message is delivered when this returns.
    pub(super) fn stop(&self) {
        *lock(&self.range) = None;
        self.stream.stop();
    }

    /// Halts the stream, likewise.
    pub(super) fn freeze(&self) {
        self.stream.stop();
    }

    /// Lets it go on if it ran.
    pub(super) fn thaw(&self, request: impl Fn(u32) -> Request + Send + 'static) {
        let range = lock(&self.range).clone();
        if let Some(range) = range {
            self.go_on(range, request);
        }
    }

    pub(super) fn save(&self) -> StormState {
        StormState {
            running: lock(&self.range).clone(),
            sent: self.sent(),
            turns: self.turns.load(Ordering::Acquire),
        }
    }

    /// Takes over a stream of `vectors` vectors at most.
    pub(super) fn restore(&self, state: &StormState, vectors: u32) {
        let possible = |range: &Range<u32>| !range.is_empty() && range.end <= vectors;
        *lock(&self.range) = state.running.clone().filter(possible);
        self.sent.store(state.sent, Ordering::Release);
        self.turns.store(state.turns, Ordering::Release);
    }
}
