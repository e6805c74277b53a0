//! The thread of a vCPU: enter the guest, serve what made it leave, again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use amdvi_guest::boot::{EXIT_PORT, LOG_PORT};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::error::KvmError;
use super::payload::Payload;

/// Most bytes that the log keeps; a payload that prints for ever loses the rest.
const LOG_BYTES: usize = 1 << 20;
/// Longest line of the log.
const LINE_BYTES: usize = 4096;
/// Longest x86 instruction.
const INSTRUCTION_BYTES: usize = 15;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// A CPU wrote to the exit port.
    Exit(u32),
    /// A CPU can't go on.
    Stopped { cpu: usize, why: String },
}

/// What all vCPU threads and the one that waits for them share.
pub(super) struct Shared<B> {
    bus: Arc<B>,
    memory: GuestMemoryMmap,
    payload: Payload,
    /// Threads are to end.
    pub(super) stop: AtomicBool,
    ending: Mutex<Option<Ending>>,
    ended: Condvar,
    log: Mutex<String>,
}

impl<B> Shared<B> {
    pub(super) fn new(bus: Arc<B>, memory: GuestMemoryMmap, payload: Payload) -> Self {
        Self {
            bus,
            memory,
            payload,
            stop: AtomicBool::new(false),
            ending: Mutex::new(None),
            ended: Condvar::new(),
            log: Mutex::new(String::new()),
        }
    }

    /// Waits for the first ending; `None` when none came in time.
    pub(super) fn wait(&self, limit: Duration) -> Option<Ending> {
        let (ending, _) = self
            .ended
            .wait_timeout_while(lock(&self.ending), limit, |ending| ending.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ending.clone()
    }

    /// Takes what was printed.
    pub(super) fn take_log(&self) -> String {
        std::mem::take(&mut lock(&self.log))
    }

    /// Ends the run. The first ending counts: what follows is its consequence.
    fn end(&self, ending: Ending) {
        lock(&self.ending).get_or_insert(ending);
        self.ended.notify_all();
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Nothing here leaves half-made state behind a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines that one CPU prints; lines of different CPUs don't mix.
struct Lines<'a> {
    log: &'a Mutex<String>,
    line: Vec<u8>,
}

impl Lines<'_> {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.flush();
            } else if self.line.len() < LINE_BYTES {
                self.line.push(*byte);
            }
        }
    }

    fn flush(&mut self) {
        let mut log = lock(self.log);
        if log.len() + self.line.len() < LOG_BYTES {
            log.push_str(&String::from_utf8_lossy(&self.line));
            log.push('\n');
        }
        self.line.clear();
    }
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.flush();
        }
    }
}

/// Ends the run when a thread panics: its device model is at fault, not the guest.
struct PanicWatch<'a, B> {
    cpu: usize,
    shared: &'a Shared<B>,
}

impl<B> Drop for PanicWatch<'_, B> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.end(Ending::Stopped {
                cpu: self.cpu,
                why: "a device of the VMM panicked while it served this CPU".to_owned(),
            });
        }
    }
}

enum Step {
    Continue,
    Exit(u32),
    Stop(String),
}

/// Runs CPU `index` until the run ends; returns where the CPU was then.
pub(super) fn run<B: Bus>(index: usize, mut fd: VcpuFd, shared: &Shared<B>) -> String {
    let _watch = PanicWatch { cpu: index, shared };
    let mut lines = Lines {
        log: &shared.log,
        line: Vec::new(),
    };
    while !shared.stop.load(Ordering::SeqCst) {
        match step(&mut fd, shared, &mut lines) {
            Step::Continue => {}
            Step::Exit(code) => {
                drop(lines);
                shared.end(Ending::Exit(code));
                break;
            }
            Step::Stop(why) => {
                drop(lines);
                let why = format!("{why} at {}", place(&fd, shared));
                shared.end(Ending::Stopped { cpu: index, why });
                break;
            }
        }
    }
    format!("CPU {index} at {}", place(&fd, shared))
}

fn step<B: Bus>(fd: &mut VcpuFd, shared: &Shared<B>, lines: &mut Lines<'_>) -> Step {
    let exit = match fd.run() {
        Ok(exit) => exit,
        // A kick, or a vCPU that was sent INIT and waits for a SIPI.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Step::Continue,
        Err(error) => return Step::Stop(format!("KVM_RUN failed: {error}")),
    };
    let bus = &*shared.bus;
    match exit {
        VcpuExit::IoOut(EXIT_PORT, data) => {
            let mut code = [0; 4];
            let bytes = data.len().min(4);
            code[..bytes].copy_from_slice(&data[..bytes]);
            return Step::Exit(u32::from_le_bytes(code));
        }
        VcpuExit::IoOut(LOG_PORT, data) => lines.put(data),
        VcpuExit::IoOut(port, data) => bus.port_out(port, data),
        VcpuExit::IoIn(port, data) => bus.port_in(port, data),
        VcpuExit::MmioRead(gpa, data) => bus.mmio_read(gpa, data),
        VcpuExit::MmioWrite(gpa, data) => bus.mmio_write(gpa, data),
        VcpuExit::IoapicEoi(vector) => bus.ioapic_eoi(vector),
        VcpuExit::Intr => {}
        VcpuExit::Shutdown => return Step::Stop("triple fault".to_owned()),
        VcpuExit::InternalError => {
            return Step::Stop(
                "KVM_EXIT_INTERNAL_ERROR: KVM can't go on, most likely because its instruction \
                 emulator doesn't know the instruction"
                    .to_owned(),
            );
        }
        VcpuExit::FailEntry(reason, _) => {
            return Step::Stop(format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}"));
        }
        // The APIC is in the kernel, which then waits there.
        VcpuExit::Hlt => {
            return Step::Stop("KVM_EXIT_HLT in spite of an in-kernel APIC".to_owned());
        }
        other => return Step::Stop(format!("unexpected exit {other:?}")),
    }
    Step::Continue
}

/// RIP, its function, and the bytes there.
fn place<B>(fd: &VcpuFd, shared: &Shared<B>) -> String {
    let Ok(regs) = fd.get_regs() else {
        return "an unknown place".to_owned();
    };
    let mut text = format!("RIP {:#x}", regs.rip);
    if let Some(function) = shared.payload.function(regs.rip) {
        text += &format!(" in {function}");
    }
    let mut bytes = [0; INSTRUCTION_BYTES];
    if shared
        .memory
        .read_slice(&mut bytes, GuestAddress(regs.rip))
        .is_ok()
    {
        text += " (";
        for byte in bytes {
            text += &format!("{byte:02x} ");
        }
        text.truncate(text.trim_end().len());
        text += ")";
    }
    text
}

/// Makes the kick signal interrupt system calls instead of ending the process.
pub(super) fn install_kick_handler() -> Result<(), KvmError> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}
    RESULT
        .get_or_init(|| register_signal_handler(SIGRTMIN(), nothing).map_err(|e| e.errno()))
        .map_err(|errno| KvmError::Call {
            call: "sigaction",
            source: std::io::Error::from_raw_os_error(errno),
        })
}

/// Makes a vCPU thread leave the guest.
pub(super) fn kick(thread: &JoinHandle<String>) {
    // The only failure is a thread that has ended meanwhile.
    let _ = thread.kill(SIGRTMIN());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::bus::NoDevices;

    #[test]
    fn lines_of_two_cpus_do_not_mix_and_the_log_is_bounded() {
        let log = Mutex::new(String::new());
        let new = || Lines {
            log: &log,
            line: Vec::new(),
        };
        let (mut a, mut b) = (new(), new());
        a.put(b"one ");
        b.put(b"two\n");
        a.put(b"line\nunfinished");
        drop(a);
        assert_eq!(*lock(&log), "two\none line\nunfinished\n");
        for _ in 0..LOG_BYTES {
            b.put(b"0123456789\n");
        }
        b.put(&vec![b'x'; 10 * LINE_BYTES]);
        b.flush();
        assert!(lock(&log).len() <= LOG_BYTES);
    }

    #[test]
    fn the_first_ending_counts() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let shared = Shared::new(Arc::new(NoDevices), memory, Payload::flat(0, &[]));
        assert_eq!(shared.wait(Duration::ZERO), None);
        shared.end(Ending::Exit(3));
        shared.end(Ending::Exit(4));
        assert_eq!(shared.wait(Duration::ZERO), Some(Ending::Exit(3)));
        assert!(shared.stop.load(Ordering::SeqCst));
    }
}
