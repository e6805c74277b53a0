//! The DMA channels: one operation each at a time, in the background.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use amdvi_guest::endpoint::dma::{
    CHANNELS, Checksum, EQUAL, INTERRUPT_ON, LIMIT, STRIDE, TRANSACTION, channel, op, status,
};
use amdvi_guest::endpoint::reg;

use serde::{Deserialize, Serialize};

use super::dma::{Aborted, Dma};
use super::lock;
use crate::board::snapshot::{Hex, StateError, ensure};

mod run;

use run::Run;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    status: u32,
    reason: u32,
    result: u64,
    fault_iova: u64,
}

/// How far an operation has come: between two transactions, or between reading for one and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The operation, which software may have programmed anew by now.
    program: Program,
    done: u64,
    checksum: u64,
    difference: u64,
    /// What was read and not yet written.
    read: Option<Hex>,
}

#[derive(Default)]
struct State {
    program: Program,
    outcome: Outcome,
    thread: Option<JoinHandle<()>>,
    /// Of an operation that was suspended.
    progress: Option<Progress>,
}

/// A channel as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelState {
    program: Program,
    outcome: Outcome,
    done: u64,
    ended: u64,
    progress: Option<Progress>,
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
    /// What was cancelled is to go on later.
    suspend: AtomicBool,
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
                suspend: AtomicBool::new(false),
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

    /// Suspends every operation. Nothing is on its way any more when it returns.
    pub(super) fn freeze(&self) {
        for channel in &self.channels {
            channel.suspend();
        }
    }

    /// Lets what was suspended go on.
    pub(super) fn thaw(&self) {
        for channel in &self.channels {
            channel.resume();
        }
    }

    pub(super) fn save(&self) -> Vec<ChannelState> {
        self.channels.iter().map(|channel| channel.save()).collect()
    }

    pub(super) fn restore(&self, states: &[ChannelState]) -> Result<(), StateError> {
        ensure(
            states.len() == self.channels.len(),
            "another number of DMA channels",
        )?;
        for (channel, state) in self.channels.iter().zip(states) {
            channel.restore(state)?;
        }
        Ok(())
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

    fn suspend(&self) {
        let _control = lock(&self.control);
        self.suspend.store(true, Ordering::Release);
        self.cancel.store(true, Ordering::Release);
        self.join();
        self.cancel.store(false, Ordering::Release);
        self.suspend.store(false, Ordering::Release);
    }

    fn resume(self: &Arc<Self>) {
        let _control = lock(&self.control);
        let progress = lock(&self.state).progress.take();
        if let Some(progress) = progress {
            self.go_on(progress, true);
        }
    }

    fn save(&self) -> ChannelState {
        let state = lock(&self.state);
        ChannelState {
            program: state.program,
            outcome: state.outcome,
            done: self.done.load(Ordering::Acquire),
            ended: self.ended.load(Ordering::Acquire),
            progress: state.progress.clone(),
        }
    }

    fn restore(&self, saved: &ChannelState) -> Result<(), StateError> {
        let runs = saved.outcome.status == status::RUNNING;
        ensure(
            runs == saved.progress.is_some(),
            "a DMA channel that runs without an operation, or has one and does not run",
        )?;
        let possible = saved.progress.as_ref().is_none_or(|progress| {
            let read = progress.read.as_ref().map_or(0, |read| read.0.len() as u64);
            let rest = u64::from(progress.program.length).checked_sub(progress.done);
            rest.is_some_and(|rest| read <= rest.min(TRANSACTION))
                && progress.program.length <= LIMIT
        });
        ensure(possible, "a DMA channel that is further than its operation")?;
        let mut state = lock(&self.state);
        state.program = saved.program;
        state.outcome = saved.outcome;
        state.progress.clone_from(&saved.progress);
        self.done.store(saved.done, Ordering::Release);
        self.ended.store(saved.ended, Ordering::Release);
        Ok(())
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
        self.go_on(Progress::new(program), program.operation & op::SYNC == 0);
    }

    /// Carries an operation out from where it is, in a thread of its own if there can be one.
    fn go_on(self: &Arc<Self>, progress: Progress, in_background: bool) {
        if in_background {
            let (this, theirs) = (Arc::clone(self), progress.clone());
            let work = move || this.run(theirs);
            let builder = std::thread::Builder::new().name("endpoint-channel".into());
            if let Ok(thread) = builder.spawn(work) {
                lock(&self.state).thread = Some(thread);
                return;
            }
        }
        self.run(progress);
    }

    /// Carries the operation out, and says so, unless it is suspended.
    fn run(&self, progress: Progress) {
        let program = progress.program;
        let enabled = self.dma().shared().tlb.enabled();
        let outcome = match program.problem(enabled) {
            // What was possible once goes on.
            Some(status) if progress.is_new() => Outcome {
                status,
                ..Outcome::default()
            },
            _ => match self.carry_out(progress) {
                Ok(outcome) => outcome,
                Err(progress) => {
                    lock(&self.state).progress = Some(progress);
                    return;
                }
            },
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

    /// What became of it, or where it was suspended.
    fn carry_out(&self, progress: Progress) -> Result<Outcome, Progress> {
        let program = progress.program;
        let mut done = progress.done;
        let read = progress.read.map(|read| read.0);
        let mut run = Run {
            channel: self,
            program: &program,
            checksum: Checksum::resumed(progress.checksum),
            buffer: Box::new([0; TRANSACTION as usize]),
            expected: Box::new([0; TRANSACTION as usize]),
            difference: progress.difference,
            read: false,
        };
        if let Some(read) = read {
            // It was checked when it was restored.
            let len = read.len().min(run.buffer.len());
            run.buffer[..len].copy_from_slice(&read[..len]);
            run.read = true;
        }
        let cancelled = || self.cancel.load(Ordering::Acquire);
        let suspended = || self.suspend.load(Ordering::Acquire);
        if program.is_atomic() {
            return match run.atomic() {
                Err(Aborted::NoPage) if suspended() => Err(run.progress(done)),
                outcome => Ok(run.atomic_outcome(outcome)),
            };
        }
        while done < u64::from(program.length) {
            if cancelled() {
                return match suspended() {
                    true => Err(run.progress(done)),
                    false => Ok(run.outcome(status::CANCELLED)),
                };
            }
            let len = run.next(done);
            if let Err((iova, aborted)) = run.transaction(done, len) {
                if aborted == Aborted::NoPage && cancelled() {
                    return match suspended() {
                        true => Err(run.progress(done)),
                        false => Ok(run.outcome(status::CANCELLED)),
                    };
                }
                return Ok(Outcome {
                    status: status::ABORTED,
                    reason: aborted.reason(),
                    fault_iova: iova,
                    ..run.outcome(status::ABORTED)
                });
            }
            done += len as u64;
            self.done.store(done, Ordering::Release);
        }
        Ok(run.outcome(status::DONE))
    }
}

impl Progress {
    fn new(program: Program) -> Self {
        Self {
            program,
            done: 0,
            checksum: Checksum::default().value(),
            difference: EQUAL,
            read: None,
        }
    }

    fn is_new(&self) -> bool {
        *self == Self::new(self.program)
    }
}
