//! The threads of the vCPUs: enter the guest, serve what made it leave, again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::end::{End, Ending, lock};
use super::error::KvmError;
use super::internal::InternalError;
use crate::ram::Memory;

/// Longest x86 instruction.
const INSTRUCTION_BYTES: usize = 15;
/// How long a vCPU thread may take to leave a device.
const LEAVE: Duration = Duration::from_secs(5);

/// How often a vCPU that did nothing is run again.
const MOST_TRIES: u32 = 3;

/// What the threads share.
struct Shared<B> {
    bus: Arc<B>,
    memory: Memory,
    end: Arc<End>,
    pause: Arc<Pause>,
}

/// The running vCPUs of a machine.
pub(crate) struct Crew {
    threads: Vec<JoinHandle<String>>,
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    end: Arc<End>,
    pause: Arc<Pause>,
}

/// Where the threads wait while their machine stands still.
#[derive(Default)]
struct Pause {
    wanted: AtomicBool,
    /// Threads that wait.
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Pause {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Waits for the end of the pause.
    fn sit_out(&self) {
        let mut waiting = lock(&self.waiting);
        *waiting += 1;
        self.changed.notify_all();
        let mut waiting = self
            .changed
            .wait_while(waiting, |_| self.is_wanted())
            .unwrap_or_else(PoisonError::into_inner);
        *waiting -= 1;
    }

    fn end(&self) {
        // Under the lock, so that no thread is between its look and its sleep.
        let _waiting = lock(&self.waiting);
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// A machine whose CPUs stand still, each between two instructions; they go on when this is dropped.
pub(crate) struct Paused<'a> {
    crew: &'a Crew,
}

impl Paused<'_> {
    /// The CPUs, in order.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        self.crew.vcpus.iter().map(|vcpu| lock(vcpu))
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.crew.pause.end();
    }
}

/// Why CPUs don't stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PauseError {
    /// The run is over.
    #[error("the guest has ended")]
    Ended,
    /// A thread does not come back from a device.
    #[error("a CPU is held up by a device of the VMM (is there nobody who reads its output?)")]
    Stuck,
}

impl Crew {
    /// Starts a thread for each vCPU. `memory` is what the guest has as RAM: the threads keep it
    /// mapped while the guest can use it.
    ///
    /// # Errors
    /// A thread can't be started; those that were are ended again.
    pub(crate) fn start<B: Bus + 'static>(
        vcpus: Vec<VcpuFd>,
        bus: Arc<B>,
        memory: Memory,
        end: Arc<End>,
    ) -> Result<Self, KvmError> {
        install_kick_handler()?;
        let pause = Arc::<Pause>::default();
        let shared = Arc::new(Shared {
            bus,
            memory,
            end: Arc::clone(&end),
            pause: Arc::clone(&pause),
        });
        let mut crew = Self {
            threads: Vec::with_capacity(vcpus.len()),
            vcpus: Vec::with_capacity(vcpus.len()),
            end,
            pause,
        };
        for (index, fd) in vcpus.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let fd = Arc::new(Mutex::new(fd));
            crew.vcpus.push(Arc::clone(&fd));
            let spawned = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run(index, &fd, &shared));
            match spawned {
                Ok(thread) => crew.threads.push(thread),
                Err(source) => {
                    crew.join();
                    return Err(KvmError::Call {
                        call: "starting a vCPU thread",
                        source,
                    });
                }
            }
        }
        Ok(crew)
    }

    /// Brings all CPUs to a halt, each with everything done that it asked of a device.
    ///
    /// # Errors
    /// The run has ended, or a CPU does not come; they all go on then.
    pub(crate) fn pause(&self) -> Result<Paused<'_>, PauseError> {
        self.pause.wanted.store(true, Ordering::SeqCst);
        // From here on a drop lets them go on.
        let paused = Paused { crew: self };
        let limit = Instant::now() + LEAVE;
        let mut waiting = lock(&self.pause.waiting);
        while *waiting < self.threads.len() {
            if self.end.is_reached() || self.threads.iter().any(JoinHandle::is_finished) {
                return Err(PauseError::Ended);
            }
            if Instant::now() > limit {
                return Err(PauseError::Stuck);
            }
            // As in `join`: a signal may come just before a thread enters the guest.
            for thread in &self.threads {
                let _ = thread.kill(SIGRTMIN());
            }
            waiting = self
                .pause
                .changed
                .wait_timeout(waiting, Duration::from_millis(1))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(waiting);
        Ok(paused)
    }

    /// Ends all vCPU threads; returns where each CPU was. A thread that a device of the VMM holds
    /// for ever is left behind: it keeps what it uses.
    pub(crate) fn join(self) -> Vec<String> {
        self.end.stop();
        let end = Instant::now() + LEAVE;
        // A signal that arrives just before the thread enters the guest is lost on it, so each
        // thread is kicked until it has ended.
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < end {
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                // The only failure is a thread that has ended meanwhile.
                let _ = thread.kill(SIGRTMIN());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let place = |(index, thread): (usize, JoinHandle<String>)| {
            if !thread.is_finished() {
                return format!("CPU {index} is stuck in a device of the VMM");
            }
            thread
                .join()
                .unwrap_or_else(|_| format!("CPU {index}'s thread panicked"))
        };
        self.threads.into_iter().enumerate().map(place).collect()
    }
}

/// Ends the run when a thread panics: its device model is at fault, not the guest.
struct PanicWatch<'a> {
    cpu: usize,
    end: &'a End,
}

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end.reach(Ending::Stopped {
                cpu: self.cpu,
                why: "a device of the VMM panicked while it served this CPU".to_owned(),
            });
        }
    }
}

enum Step {
    Continue,
    /// It did nothing. To be tried some times, and if it stays so, to be stopped.
    Again(String),
    TripleFault,
    Stop(String),
}

impl Step {
    /// What it comes to, as one of several: `tries` is how often the CPU did nothing before it.
    fn after(self, tries: &mut u32) -> Self {
        match self {
            Self::Again(why) if *tries == MOST_TRIES => Self::Stop(why),
            Self::Again(why) => {
                *tries += 1;
                Self::Again(why)
            }
            other => {
                *tries = 0;
                other
            }
        }
    }
}

/// Runs CPU `cpu` until the run ends; returns where the CPU was then.
fn run<B: Bus>(cpu: usize, vcpu: &Mutex<VcpuFd>, shared: &Shared<B>) -> String {
    let end = &shared.end;
    let _watch = PanicWatch { cpu, end };
    let mut fd = lock(vcpu);
    let mut tries = 0;
    while !end.is_reached() {
        let step = if !shared.pause.is_wanted() {
            step(cpu, &mut fd, &*shared.bus)
        } else {
            match complete(cpu, &mut fd, &*shared.bus) {
                Step::Continue => {
                    drop(fd);
                    shared.pause.sit_out();
                    fd = lock(vcpu);
                    Step::Continue
                }
                other => other,
            }
        };
        match step.after(&mut tries) {
            Step::Continue | Step::Again(_) => {}
            Step::TripleFault => {
                let place = place(&fd, shared);
                end.reach(Ending::TripleFault { cpu, place });
            }
            Step::Stop(why) => {
                let why = format!("{why} at {}", place(&fd, shared));
                end.reach(Ending::Stopped { cpu, why });
            }
        }
    }
    format!("CPU {cpu} at {}", place(&fd, shared))
}

/// Completes the access that the CPU left the guest for: its data is taken over, and the instruction
/// ends. Of an access in several parts the next ones may follow. Runs nothing else.
fn complete<B: Bus>(cpu: usize, fd: &mut VcpuFd, bus: &B) -> Step {
    fd.set_kvm_immediate_exit(1);
    let end = loop {
        match exit(cpu, fd, bus) {
            Ok(Step::Continue) => {}
            Ok(other) => break other,
            Err(Interrupted) => break Step::Continue,
        }
    };
    fd.set_kvm_immediate_exit(0);
    end
}

/// KVM_RUN ended without an exit.
struct Interrupted;

fn step<B: Bus>(cpu: usize, fd: &mut VcpuFd, bus: &B) -> Step {
    exit(cpu, fd, bus).unwrap_or(Step::Continue)
}

fn exit<B: Bus>(cpu: usize, fd: &mut VcpuFd, bus: &B) -> Result<Step, Interrupted> {
    let exit = match fd.run() {
        Ok(exit) => exit,
        // A kick, or a vCPU that was sent INIT and waits for a SIPI.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            return Err(Interrupted);
        }
        Err(error) => return Ok(Step::Stop(format!("KVM_RUN failed: {error}"))),
    };
    Ok(match exit {
        VcpuExit::IoOut(port, data) => {
            bus.port_out(cpu, port, data);
            Step::Continue
        }
        VcpuExit::IoIn(port, data) => {
            bus.port_in(port, data);
            Step::Continue
        }
        VcpuExit::MmioRead(gpa, data) => {
            bus.mmio_read(gpa, data);
            Step::Continue
        }
        VcpuExit::MmioWrite(gpa, data) => {
            bus.mmio_write(gpa, data);
            Step::Continue
        }
        VcpuExit::IoapicEoi(vector) => {
            bus.ioapic_eoi(vector);
            Step::Continue
        }
        VcpuExit::Intr => return Err(Interrupted),
        VcpuExit::Shutdown => Step::TripleFault,
        VcpuExit::InternalError => {
            let error = InternalError::of(fd);
            if error.is_of_delivery() {
                Step::Again(error.to_string())
            } else {
                Step::Stop(error.to_string())
            }
        }
        VcpuExit::FailEntry(reason, _) => {
            Step::Stop(format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}"))
        }
        // The APIC is in the kernel, which then waits there.
        VcpuExit::Hlt => Step::Stop("KVM_EXIT_HLT in spite of an in-kernel APIC".to_owned()),
        other => Step::Stop(format!("unexpected exit {other:?}")),
    })
}

/// RIP, its function, and the bytes there.
fn place<B: Bus>(fd: &VcpuFd, shared: &Shared<B>) -> String {
    let Ok(regs) = fd.get_regs() else {
        return "an unknown place".to_owned();
    };
    let mut text = format!("RIP {:#x}", regs.rip);
    if let Some(function) = shared.bus.function(regs.rip) {
        text += &format!(" in {function}");
    }
    let mut bytes = [0; INSTRUCTION_BYTES];
    // An instruction that crosses a page may continue elsewhere; it is shown up to there.
    let in_page = (0x1000 - (regs.rip & 0xfff) as usize).min(INSTRUCTION_BYTES);
    let bytes = &mut bytes[..in_page];
    let gpa = fd.translate_gva(regs.rip).ok().filter(|t| t.valid != 0);
    if let Some(at) = gpa
        && shared
            .memory
            .read_slice(bytes, GuestAddress(at.physical_address))
            .is_ok()
    {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!(" ({})", hex.join(" "));
    }
    text
}

/// Makes the kick signal interrupt system calls instead of ending the process.
fn install_kick_handler() -> Result<(), KvmError> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}
    RESULT
        .get_or_init(|| register_signal_handler(SIGRTMIN(), nothing).map_err(|e| e.errno()))
        .map_err(|errno| KvmError::Call {
            call: "sigaction",
            source: std::io::Error::from_raw_os_error(errno),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_does_nothing_is_run_again_some_times_in_a_row_and_then_stopped() {
        let mut tries = 0;
        let mut again = || Step::Again("delivery".to_owned()).after(&mut tries);
        for _ in 0..MOST_TRIES {
            assert!(matches!(again(), Step::Again(_)));
        }
        assert!(matches!(again(), Step::Stop(why) if why == "delivery"));
        assert!(matches!(Step::Continue.after(&mut tries), Step::Continue));
        let again = Step::Again(String::new()).after(&mut tries);
        assert!(matches!(again, Step::Again(_)), "it went on in between");
    }
}
