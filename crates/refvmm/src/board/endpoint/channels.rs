//! The DMA channels: one operation each at a time, in the background.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use amdvi_dma::Pasid;
use amdvi_guest::endpoint::dma::{
    CHANNELS, Checksum, EQUAL, INTERRUPT_ON, LIMIT, STRIDE, TRANSACTION, channel, fill, op, pasid,
    status,
};
use amdvi_guest::endpoint::reg;

use super::dma::{Aborted, AddressSpace, Atomic, Dma};
use super::lock;
use super::tlb::Enabled;

/// First byte behind the channels in BAR 0.
pub(super) const END: u64 = reg::DMA_CHANNEL_0 + CHANNELS as u64 * STRIDE;

/// What a channel needs of the function around it.
pub(super) trait Owner: Send + Sync {
    /// A new way to memory.
    fn dma(&self) -> Dma;
    /// An operation has ended that asked for this vector.
    fn interrupt(&self, vector: u32);
}

/// What software programs.
#[derive(Clone, Copy, Default)]
struct Program {
    source: u64,
    target: u64,
    length: u32,
    operation: u32,
    operand: u64,
    expected: u64,
    interrupt: u32,
    pasid: u32,
}

/// What became of an operation.
#[derive(Clone, Copy, Default)]
struct Outcome {
    status: u32,
    reason: u32,
    result: u64,
    fault_iova: u64,
}

#[derive(Default)]
struct State {
    program: Program,
    outcome: Outcome,
    thread: Option<JoinHandle<()>>,
}

struct Channel {
    owner: Arc<dyn Owner>,
    dma: OnceLock<Dma>,
    /// Held while an operation is started or stopped, and taken before `state`.
    control: Mutex<()>,
    state: Mutex<State>,
    done: AtomicU64,
    ended: AtomicU64,
    cancel: AtomicBool,
}

/// All channels of an endpoint.
pub(super) struct Channels {
    channels: Vec<Arc<Channel>>,
}

/// The half of a 64-bit register that a 32-bit write goes to.
fn set_half(word: &mut u64, upper: bool, value: u32) {
    *word = if upper {
        *word & 0xffff_ffff | u64::from(value) << 32
    } else {
        *word & !0xffff_ffff | u64::from(value)
    };
}

impl Channels {
    pub(super) fn new(owner: &Arc<dyn Owner>) -> Self {
        let channel = |_| {
            Arc::new(Channel {
                owner: Arc::clone(owner),
                dma: OnceLock::new(),
                control: Mutex::default(),
                state: Mutex::default(),
                done: AtomicU64::new(0),
                ended: AtomicU64::new(0),
                cancel: AtomicBool::new(false),
            })
        };
        Self {
            channels: (0..CHANNELS).map(channel).collect(),
        }
    }

    fn at(&self, offset: u64) -> Option<(&Arc<Channel>, u64)> {
        let offset = offset.checked_sub(reg::DMA_CHANNEL_0)?;
        let channel = self.channels.get((offset / STRIDE) as usize)?;
        Some((channel, offset % STRIDE))
    }

    /// The aligned 64-bit word at `offset` of BAR 0.
    pub(super) fn word(&self, offset: u64) -> u64 {
        self.at(offset)
            .map_or(0, |(channel, register)| channel.word(register))
    }

    /// Writes a 32-bit register at `offset` of BAR 0.
    pub(super) fn set(&self, offset: u64, value: u32) {
        if let Some((channel, register)) = self.at(offset) {
            channel.set(register, value);
        }
    }

    /// Stops every channel and forgets what was programmed. Nothing is on its way any more when it
    /// returns.
    pub(super) fn reset(&self) {
        for channel in &self.channels {
            channel.stop();
            *lock(&channel.state) = State::default();
            channel.done.store(0, Ordering::Release);
            channel.ended.store(0, Ordering::Release);
        }
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        for channel in &self.channels {
            channel.stop();
        }
    }
}

impl Channel {
    fn word(&self, register: u64) -> u64 {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let state = lock(&self.state);
        let (program, outcome) = (&state.program, &state.outcome);
        match register {
            channel::SOURCE => program.source,
            channel::TARGET => program.target,
            channel::LENGTH => pair(program.length, program.operation),
            channel::OPERAND => program.operand,
            channel::EXPECTED => program.expected,
            channel::RESULT => outcome.result,
            channel::STATUS => pair(outcome.status, outcome.reason),
            channel::DONE => self.done.load(Ordering::Acquire),
            channel::FAULT_IOVA => outcome.fault_iova,
            channel::INTERRUPT => pair(program.interrupt, program.pasid),
            channel::ENDED => self.ended.load(Ordering::Acquire),
            _ => 0,
        }
    }

    fn set(self: &Arc<Self>, register: u64, value: u32) {
        if register == channel::OPERATION && value & !op::SYNC == op::CANCEL {
            self.stop();
            return;
        }
        let mut state = lock(&self.state);
        if state.outcome.status == status::RUNNING {
            return;
        }
        let program = &mut state.program;
        let upper = register & 4 != 0;
        match register & !7 {
            channel::SOURCE => set_half(&mut program.source, upper, value),
            channel::TARGET => set_half(&mut program.target, upper, value),
            channel::OPERAND => set_half(&mut program.operand, upper, value),
            channel::EXPECTED => set_half(&mut program.expected, upper, value),
            channel::LENGTH if !upper => program.length = value,
            channel::INTERRUPT if !upper => program.interrupt = value,
            channel::INTERRUPT => program.pasid = value,
            _ => {}
        }
        if register == channel::OPERATION {
            program.operation = value;
            let program = *program;
            drop(state);
            self.start(program);
        }
    }

    /// Stops what the channel does, and waits until it has.
    fn stop(&self) {
        // Once for an operation that its starter waits for, which has the lock, and again for one
        // that was started meanwhile.
        self.cancel.store(true, Ordering::Release);
        let _control = lock(&self.control);
        self.cancel.store(true, Ordering::Release);
        self.join();
    }

    /// Waits for the thread of an operation.
    fn join(&self) {
        let thread = lock(&self.state).thread.take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn start(self: &Arc<Self>, program: Program) {
        let _control = lock(&self.control);
        {
            let mut state = lock(&self.state);
            if state.outcome.status == status::RUNNING {
                return;
            }
            state.outcome = Outcome {
                status: status::RUNNING,
                ..Outcome::default()
            };
        }
        self.done.store(0, Ordering::Release);
        // The one before has said that it ended, so this does not take long.
        self.join();
        self.cancel.store(false, Ordering::Release);
        if program.operation & op::SYNC == 0 {
            let this = Arc::clone(self);
            let work = move || this.run(&program);
            let builder = std::thread::Builder::new().name("endpoint-channel".into());
            if let Ok(thread) = builder.spawn(work) {
                lock(&self.state).thread = Some(thread);
                return;
            }
        }
        self.run(&program);
    }

    /// Carries the operation out, and says so.
    fn run(&self, program: &Program) {
        let enabled = self.dma().shared().tlb.enabled();
        let outcome = match program.problem(enabled) {
            Some(status) => Outcome {
                status,
                ..Outcome::default()
            },
            None => self.carry_out(program),
        };
        {
            let mut state = lock(&self.state);
            state.outcome = outcome;
            self.ended.fetch_add(1, Ordering::AcqRel);
        }
        if program.interrupt & INTERRUPT_ON != 0 {
            self.owner.interrupt(program.interrupt & 0x7ff);
        }
    }

    fn dma(&self) -> &Dma {
        self.dma.get_or_init(|| self.owner.dma())
    }

    fn carry_out(&self, program: &Program) -> Outcome {
        let mut run = Run {
            channel: self,
            program,
            checksum: Checksum::default(),
            buffer: Box::new([0; TRANSACTION as usize]),
            expected: Box::new([0; TRANSACTION as usize]),
            difference: EQUAL,
        };
        if program.is_atomic() {
            return run.atomic();
        }
        let mut done = 0;
        while done < u64::from(program.length) {
            if self.cancel.load(Ordering::Acquire) {
                return run.outcome(status::CANCELLED);
            }
            let len = run.next(done);
            if let Err((iova, aborted)) = run.transaction(done, len) {
                if aborted == Aborted::NoPage && self.cancel.load(Ordering::Acquire) {
                    return run.outcome(status::CANCELLED);
                }
                return Outcome {
                    status: status::ABORTED,
                    reason: aborted.reason(),
                    fault_iova: iova,
                    ..run.outcome(status::ABORTED)
                };
            }
            done += len as u64;
            self.done.store(done, Ordering::Release);
        }
        run.outcome(status::DONE)
    }
}

impl Program {
    fn code(&self) -> u32 {
        self.operation & !op::SYNC
    }

    fn is_atomic(&self) -> bool {
        matches!(self.code(), op::FETCH_ADD | op::SWAP | op::COMPARE_AND_SWAP)
    }

    fn reads(&self) -> bool {
        matches!(self.code(), op::CHECKSUM | op::COPY | op::COMPARE)
    }

    fn writes(&self) -> bool {
        matches!(self.code(), op::FILL | op::COPY)
    }

    /// Where the addresses are; only what runs in the background waits for pages.
    fn space<'a>(&self, cancel: &'a AtomicBool) -> AddressSpace<'a> {
        let pasid = (self.pasid & pasid::ON != 0)
            .then(|| Pasid::new(self.pasid & Pasid::MAX))
            .flatten();
        AddressSpace {
            pasid: pasid.map(|pasid| {
                pasid
                    .with_execute(self.pasid & pasid::EXECUTE != 0)
                    .with_privileged(self.pasid & pasid::PRIVILEGED != 0)
            }),
            cancel: (self.operation & op::SYNC == 0).then_some(cancel),
        }
    }

    /// The status of an operation that is not possible.
    fn problem(&self, enabled: Enabled) -> Option<u32> {
        let length = u64::from(self.length);
        let possible = if self.is_atomic() {
            matches!(length, 4 | 8) && self.target.is_multiple_of(length)
        } else {
            self.reads() || self.writes()
        };
        let in_range = (1..=LIMIT).contains(&self.length)
            && (!self.reads() || self.source.checked_add(length - 1).is_some())
            && (!self.writes() || self.target.checked_add(length - 1).is_some());
        // A bit of the prefix that is not enabled must not be sent.
        let may = |bit, enabled| enabled || self.pasid & bit == 0;
        let pasid = self.pasid & pasid::ON == 0
            || enabled.pasid
                && may(pasid::EXECUTE, enabled.execute)
                && may(pasid::PRIVILEGED, enabled.privileged);
        let bad = !possible || !in_range || !pasid;
        bad.then_some(status::BAD)
    }
}

/// An operation that is carried out.
struct Run<'a> {
    channel: &'a Channel,
    program: &'a Program,
    checksum: Checksum,
    buffer: Box<[u8; TRANSACTION as usize]>,
    expected: Box<[u8; TRANSACTION as usize]>,
    difference: u64,
}

impl Run<'_> {
    /// Bytes of the transaction that begins `done` bytes from the start.
    fn next(&self, done: u64) -> usize {
        let room = |iova: u64| TRANSACTION - iova.wrapping_add(done) % TRANSACTION;
        let mut len = u64::from(self.program.length) - done;
        if self.program.reads() {
            len = len.min(room(self.program.source));
        }
        if self.program.writes() {
            len = len.min(room(self.program.target));
        }
        // At most TRANSACTION.
        len as usize
    }

    fn transaction(&mut self, done: u64, len: usize) -> Result<(), (u64, Aborted)> {
        let dma = self.channel.dma();
        let space = self.program.space(&self.channel.cancel);
        let data = &mut self.buffer[..len];
        let (source, target) = (
            self.program.source.wrapping_add(done),
            self.program.target.wrapping_add(done),
        );
        if self.program.reads() {
            dma.read(space, source, data)
                .map_err(|aborted| (source, aborted))?;
        } else {
            fill(self.program.operand, done, data);
        }
        if self.program.writes() {
            dma.write(space, target, data)
                .map_err(|aborted| (target, aborted))?;
        }
        if self.program.code() != op::COMPARE {
            self.checksum.add(data);
        } else if self.difference == EQUAL {
            let expected = &mut self.expected[..len];
            fill(self.program.operand, done, expected);
            let different = data.iter().zip(expected.iter()).position(|(a, b)| a != b);
            if let Some(at) = different {
                self.difference = done + at as u64;
            }
        }
        Ok(())
    }

    fn outcome(&self, status: u32) -> Outcome {
        Outcome {
            status,
            result: if self.program.code() == op::COMPARE {
                self.difference
            } else {
                self.checksum.value()
            },
            ..Outcome::default()
        }
    }

    fn atomic(&self) -> Outcome {
        let program = self.program;
        let atomic = Atomic {
            operation: program.code(),
            operand: program.operand,
            expected: program.expected,
        };
        // 4 or 8.
        let len = program.length as usize;
        let space = program.space(&self.channel.cancel);
        match self
            .channel
            .dma()
            .atomic(space, program.target, len, atomic)
        {
            Ok(found) => {
                self.channel
                    .done
                    .store(program.length.into(), Ordering::Release);
                Outcome {
                    status: status::DONE,
                    result: found,
                    ..Outcome::default()
                }
            }
            Err(aborted) => Outcome {
                status: status::ABORTED,
                reason: aborted.reason(),
                fault_iova: program.target,
                ..Outcome::default()
            },
        }
    }
}
