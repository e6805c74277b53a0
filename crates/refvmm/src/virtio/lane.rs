//! A queue, the thread that serves it, and what they share with the function's registers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use amdvi_vmm_glue::dma::DmaMemory;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Chain;
use super::interrupts::Interrupts;
use super::pci::{Common, QueueRegisters};
use super::{Broken, feature, lock};
use crate::board::Handle;
use crate::board::snapshot::{Hex, StateError, ensure};
use crate::ram::Memory;

/// Memory as a device sees it, for as long as an access lasts.
pub(crate) type Dma<'a> = DmaMemory<'a, Memory>;

/// Why the serving of a queue ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody else needs the queue: the device is being reset or loses the bus.
    Wanted,
    /// The device can't go on.
    Broken(Broken),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

const AVAILABLE: Broken = Broken("the available ring can't be read");
const USED: Broken = Broken("the used ring can't be written");

/// What all queues of a device have in common.
pub(crate) struct Core {
    gate: AtomicU8,
    features: AtomicU64,
    pub(super) common: Mutex<Common>,
    pub(super) interrupts: Interrupts,
    name: &'static str,
    reported: AtomicBool,
}

/// The driver set DRIVER_OK.
pub(super) const LIVE: u8 = 1;
/// PCI Command: Bus Master Enable.
pub(super) const MASTER: u8 = 2;
/// The device needs a reset.
pub(super) const BROKEN: u8 = 4;
/// The machine stands still.
pub(super) const FROZEN: u8 = 8;

impl Core {
    pub(super) fn new(name: &'static str, common: Common, interrupts: Interrupts) -> Self {
        Self {
            gate: AtomicU8::new(0),
            features: AtomicU64::new(0),
            common: Mutex::new(common),
            interrupts,
            name,
            reported: AtomicBool::new(false),
        }
    }

    /// Opens or closes parts of the gate that everything passes. The previous state.
    pub(super) fn gate(&self, bits: u8, open: bool) -> bool {
        let before = if open {
            self.gate.fetch_or(bits, Ordering::AcqRel)
        } else {
            self.gate.fetch_and(!bits, Ordering::AcqRel)
        };
        before & bits == bits
    }

    /// Whether all of these parts are open.
    pub(super) fn gate_is(&self, bits: u8) -> bool {
        self.gate.load(Ordering::Acquire) & bits == bits
    }

    fn may_run(&self) -> bool {
        self.gate.load(Ordering::Acquire) == LIVE | MASTER
    }

    /// The features that were negotiated.
    pub(crate) fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    pub(super) fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    /// The device can't go on: tells the driver, and does nothing more until the reset.
    pub(super) fn fail(&self, broken: Broken, handle: &Handle) {
        self.gate(BROKEN, true);
        // The first one is enough to tell a person; a guest could bring any number about.
        if !self.reported.swap(true, Ordering::AcqRel) {
            eprintln!("{}: {broken}; the device needs a reset", self.name);
        }
        if lock(&self.common).set_needs_reset() {
            self.interrupts.config_changed(handle);
        }
    }
}

/// A queue as it is saved: virtio-queue's state, and what its handler took from the host and has not
/// given to the driver yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneState {
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
    held: Hex,
}

/// One queue.
pub(crate) struct Lane {
    index: u16,
    core: Arc<Core>,
    handle: Arc<Handle>,
    queue: Mutex<Queue>,
    /// Held by the thread while it takes its turn; taken before `queue`.
    handler: Mutex<Box<dyn Handler>>,
    kick: EventFd,
    /// Somebody waits for `queue`; a mutex alone lets a busy thread take it again and again.
    wanted: AtomicBool,
    /// The queue is going to be reset, so what is in flight need not be finished.
    abandon: AtomicBool,
    stop: AtomicBool,
}

impl Lane {
    pub(super) fn new(
        index: u16,
        max_size: u16,
        core: Arc<Core>,
        handle: Arc<Handle>,
        handler: Box<dyn Handler>,
    ) -> io::Result<Self> {
        let queue = Queue::new(max_size)
            .map_err(|_| io::Error::other("a queue's size must be a power of two up to 32768"))?;
        Ok(Self {
            index,
            core,
            handle,
            queue: Mutex::new(queue),
            handler: Mutex::new(handler),
            kick: EventFd::new(EFD_NONBLOCK)?,
            wanted: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }

    /// Wakes the thread. Never blocks.
    pub(super) fn kick(&self) {
        // Fails only when the counter is full, and then it is awake.
        let _ = self.kick.write(1);
    }

    /// What [`kick`](Self::kick) writes to.
    pub(super) fn bell(&self) -> &EventFd {
        &self.kick
    }

    /// Takes the queue from its thread, at the end of a request at the latest.
    fn seize<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        self.wanted.store(true, Ordering::Release);
        let mut queue = lock(&self.queue);
        self.wanted.store(false, Ordering::Release);
        change(&mut queue)
    }

    /// Waits until the thread accesses no memory. To be called with the gate closed.
    pub(super) fn quiesce(&self) {
        self.seize(|_| ());
    }

    /// As [`quiesce`](Self::quiesce), and the handler has ended its turn, too.
    pub(super) fn freeze(&self) {
        self.quiesce();
        drop(lock(&self.handler));
    }

    pub(super) fn save(&self) -> LaneState {
        let handler = lock(&self.handler);
        let queue = lock(&self.queue).state();
        LaneState {
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            event_idx: queue.event_idx_enabled,
            size: queue.size,
            ready: queue.ready,
            desc: queue.desc_table,
            avail: queue.avail_ring,
            used: queue.used_ring,
            held: Hex(handler.held()),
        }
    }

    pub(super) fn restore(&self, state: &LaneState) -> Result<(), StateError> {
        let mut handler = lock(&self.handler);
        let mut queue = lock(&self.queue);
        let saved = QueueState {
            max_size: queue.max_size(),
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc,
            avail_ring: state.avail,
            used_ring: state.used,
        };
        *queue = Queue::try_from(saved)
            .map_err(|error| StateError(format!("queue {}: {error}", self.index)))?;
        ensure(
            handler.hold(&state.held.0),
            "a queue whose handler has more than it can hold",
        )
    }

    /// Disables the queue; requests in flight are abandoned.
    pub(super) fn reset(&self) {
        self.abandon.store(true, Ordering::Release);
        self.seize(|queue| {
            queue.reset();
            self.abandon.store(false, Ordering::Release);
        });
    }

    /// Enables the queue.
    pub(super) fn enable(&self, registers: &QueueRegisters) -> Result<(), Broken> {
        let event_idx = self.core.features() & feature::EVENT_IDX != 0;
        self.seize(|queue| {
            queue.reset();
            let set = queue
                .try_set_size(registers.size)
                .and_then(|()| queue.try_set_desc_table_address(GuestAddress(registers.desc)))
                .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(registers.driver)))
                .and_then(|()| queue.try_set_used_ring_address(GuestAddress(registers.device)));
            set.map_err(|_| Broken("a ring of an enabled queue is not aligned"))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok(())
        })
    }

    /// The queue for its thread, unless the device or the queue is not to be used now.
    pub(crate) fn open(&self) -> Option<Session<'_>> {
        let queue = lock(&self.queue);
        (queue.ready() && self.core.may_run()).then_some(Session { lane: self, queue })
    }

    /// Serves all requests that are available, and asks to be notified of further ones. `request`
    /// returns how many bytes it wrote.
    pub(crate) fn serve(&self, request: impl FnMut(&mut Session<'_>, Chain) -> Result<u32, Stop>) {
        if let Some(mut session) = self.open()
            && let Err(Stop::Broken(broken)) = session.serve(request)
        {
            session.fail(broken);
        }
    }

    /// Fills chains with what `source` has, as long as there are both. Whether the source has nothing
    /// more; otherwise there is nothing to fill.
    pub(crate) fn fill(&self, source: &mut impl Source) -> bool {
        let Some(mut session) = self.open() else {
            return false;
        };
        match session.fill(source) {
            Ok(exhausted) => exhausted,
            Err(Stop::Wanted) => false,
            Err(Stop::Broken(broken)) => {
                session.fail(broken);
                false
            }
        }
    }

    /// Starts the thread.
    pub(super) fn start(self: &Arc<Self>, name: String) -> io::Result<JoinHandle<()>> {
        const KICK: u64 = 0;
        const SOURCE: u64 = 1;
        let armed = || EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, SOURCE);
        let epoll = Epoll::new()?;
        let kick = EpollEvent::new(EventSet::IN, KICK);
        epoll.ctl(ControlOperation::Add, self.kick.as_raw_fd(), kick)?;
        let source = lock(&self.handler).source();
        if let Some(source) = source {
            epoll.ctl(ControlOperation::Add, source, armed())?;
        }
        let lane = Arc::clone(self);
        std::thread::Builder::new().name(name).spawn(move || {
            loop {
                let mut events = [EpollEvent::default(); 2];
                match epoll.wait(-1, &mut events) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // The descriptors are ours: this can't happen, and if it does nobody serves
                    // the queue.
                    Err(_) => return,
                }
                if lane.stop.load(Ordering::Acquire) {
                    return;
                }
                let _ = lane.kick.read();
                let again = lock(&lane.handler).turn(&lane);
                // It is disarmed once it has fired, so that a source which has ended, or has what
                // nobody takes, is not waited for.
                if let Some(source) = source
                    && again
                    && epoll
                        .ctl(ControlOperation::Modify, source, armed())
                        .is_err()
                {
                    // As above.
                    return;
                }
            }
        })
    }

    /// Lets the thread end soon.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.abandon.store(true, Ordering::Release);
        self.wanted.store(true, Ordering::Release);
        self.kick();
    }
}

/// What has data for the driver: a network, a person.
pub(crate) trait Source {
    /// Whether a piece must go into one chain as a whole, or not at all.
    const WHOLE: bool;

    /// The next piece, if there is one; never waits. The same again until it is taken.
    fn piece(&mut self) -> Option<&[u8]>;

    /// So many bytes of the piece are done with.
    fn take(&mut self, count: usize);
}

/// What serves a queue, on the queue's thread.
pub(crate) trait Handler: Send {
    /// A descriptor that wakes the thread when it can be read, besides the driver's notifications.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// Does what there is to do, without waiting. Whether to wait for the source, too.
    fn turn(&mut self, lane: &Lane) -> bool;

    /// What it took from the host and has not given to the driver yet.
    fn held(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what another one held; `false` when that is more than it can have held.
    fn hold(&mut self, held: &[u8]) -> bool {
        held.is_empty()
    }
}

/// A queue while its thread serves it.
pub(crate) struct Session<'a> {
    lane: &'a Lane,
    queue: MutexGuard<'a, Queue>,
}

impl Session<'_> {
    /// The features that were negotiated.
    pub(crate) fn features(&self) -> u64 {
        self.lane.core.features()
    }

    /// Accesses memory. A COMPLETION_WAIT of the guest waits until this returns, so `access` must
    /// not wait for anything.
    pub(crate) fn memory<T>(&self, access: impl FnOnce(&Dma<'_>) -> T) -> T {
        let mut space = self.lane.handle.space();
        access(&space.enter())
    }

    /// Accesses the rings.
    fn ring<T>(
        &mut self,
        access: impl FnOnce(&mut Queue, &Dma<'_>) -> Result<T, Broken>,
    ) -> Result<T, Broken> {
        let mut space = self.lane.handle.space();
        access(&mut self.queue, &space.enter())
    }

    /// To be asked between the parts of a long request.
    pub(crate) fn go_on(&self) -> Result<(), Stop> {
        if self.lane.abandon.load(Ordering::Acquire) {
            Err(Stop::Wanted)
        } else {
            Ok(())
        }
    }

    /// Whether the driver made a chain available. When not, it is to notify of the next one.
    pub(crate) fn available(&mut self) -> Result<bool, Broken> {
        let some = self.ring(|queue, memory| {
            let available = queue
                .avail_idx(memory, Ordering::Acquire)
                .map_err(|_| AVAILABLE)?;
            Ok(available.0 != queue.next_avail())
        })?;
        Ok(some || self.wait_for_more()?)
    }

    /// The next chain, if there is one.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        self.ring(|queue, memory| {
            let size = queue.size();
            let available = queue
                .avail_idx(memory, Ordering::Acquire)
                .map_err(|_| AVAILABLE)?;
            if available.0 == queue.next_avail() {
                return Ok(None);
            }
            let mut chains = queue
                .iter(memory)
                .map_err(|_| Broken("the available ring has more entries than room"))?;
            // The iterator also ends at an entry that it can't read.
            let chain = chains.next().ok_or(AVAILABLE)?;
            Chain::read(chain, size).map(Some)
        })
    }

    /// Gives a chain back, with `len` bytes written to it, and tells the driver if it wants to know.
    pub(crate) fn complete(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        let notify = self.ring(|queue, memory| {
            queue.add_used(memory, head, len).map_err(|_| USED)?;
            queue.needs_notification(memory).map_err(|_| AVAILABLE)
        })?;
        if notify {
            let lane = self.lane;
            lane.core.interrupts.queue_used(lane.index, &lane.handle);
        }
        Ok(())
    }

    /// Asks the driver to notify of further chains. Whether there are some already.
    pub(crate) fn wait_for_more(&mut self) -> Result<bool, Broken> {
        self.ring(|queue, memory| queue.enable_notification(memory).map_err(|_| USED))
    }

    /// As [`Lane::fill`].
    fn fill<S: Source>(&mut self, source: &mut S) -> Result<bool, Stop> {
        while self.available()? {
            let Some(piece) = source.piece() else {
                return Ok(true);
            };
            let Some(chain) = self.pop()? else {
                continue;
            };
            let len = piece.len();
            if S::WHOLE && chain.writable.len() < len as u64 {
                // Lost, as on a network; the chain is for the next one.
                self.queue.go_to_previous_position();
                source.take(len);
            } else {
                // A buffer that the IOMMU refuses gets nothing. The event tells of it.
                let write = self.memory(|memory| chain.writable.write(memory, piece));
                let written = write.unwrap_or(0);
                source.take(if S::WHOLE { len } else { written });
                self.complete(chain.head, written as u32)?;
            }
            if self.lane.wanted.load(Ordering::Acquire) {
                return Err(Stop::Wanted);
            }
        }
        Ok(false)
    }

    /// As [`Lane::serve`].
    fn serve(
        &mut self,
        mut request: impl FnMut(&mut Self, Chain) -> Result<u32, Stop>,
    ) -> Result<(), Stop> {
        loop {
            self.ring(|queue, memory| queue.disable_notification(memory).map_err(|_| USED))?;
            while let Some(chain) = self.pop()? {
                let head = chain.head;
                let len = request(self, chain)?;
                self.complete(head, len)?;
                if self.lane.wanted.load(Ordering::Acquire) {
                    return Err(Stop::Wanted);
                }
            }
            if !self.wait_for_more()? {
                return Ok(());
            }
        }
    }

    /// The device can't go on.
    pub(crate) fn fail(&mut self, broken: Broken) {
        self.lane.core.fail(broken, &self.lane.handle);
    }
}
