//! What happens when an interrupt or exception arrives.

use core::fmt::Write;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use super::output::{Line, exit};
use super::{EXIT_EXCEPTION, SPURIOUS_VECTOR, TIMER_VECTOR, apic};
use crate::boot::MAX_CPUS;

/// How often each CPU has handled each vector but the timer's. Only that CPU's handlers write its row.
static COUNTS: [[AtomicU64; 256]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; 256] }; MAX_CPUS];
/// Interrupts of all kinds that each CPU has handled; its timer sees to it that there are some.
static HEARTBEATS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// How often `cpu` has handled `vector`.
pub(super) fn count(cpu: usize, vector: u8) -> u64 {
    COUNTS[cpu][usize::from(vector)].load(Ordering::Acquire)
}

/// A counter that grows while `cpu` takes interrupts.
pub(super) fn heartbeat(cpu: usize) -> u64 {
    HEARTBEATS[cpu].load(Ordering::Acquire)
}

/// What lies on a handler's stack: the registers that `descriptors::common` saved, the stub's two
/// words, what the CPU pushed, and the index of the CPU above that.
#[repr(C)]
pub(super) struct Frame {
    saved: [u64; 9],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    cpu: u64,
}

impl Frame {
    /// Bytes below the vector: the nine registers that `descriptors::common` pushes.
    pub(super) const VECTOR_OFFSET: usize = offset_of!(Self, vector);
}

const NMI: u64 = 2;

/// Counts an interrupt; reports an exception and ends the run.
pub(super) extern "C" fn handle(frame: &Frame) {
    let cpu = frame.cpu as usize;
    match frame.vector {
        NMI => count_one(&COUNTS[cpu][NMI as usize]),
        32.. => {
            count_one(&HEARTBEATS[cpu]);
            match frame.vector as u8 {
                // A scenario counts what devices sent, and this is none of it.
                TIMER_VECTOR => apic::end_of_interrupt(),
                SPURIOUS_VECTOR if !apic::spurious_vector_in_service() => {}
                vector => {
                    count_one(&COUNTS[cpu][usize::from(vector)]);
                    apic::end_of_interrupt();
                }
            }
        }
        _ => exception(frame),
    }
}

/// Adds one, as the only writer. (An NMI may come between load and store of a fixed interrupt's
/// counter, but it has a counter of its own.)
fn count_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Release);
}

fn exception(frame: &Frame) -> ! {
    let name = match frame.vector {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        _ => "reserved",
    };
    let mut line = Line::new();
    let _ = write!(
        line,
        "exception {} ({name}) on CPU {}: RIP {:#x}, error code {:#x}, CR2 {:#x}, CS {:#x}, \
         RFLAGS {:#x}, RSP {:#x}, SS {:#x}, RAX {:#x}, RCX {:#x}, RDX {:#x}",
        frame.vector,
        frame.cpu,
        frame.rip,
        frame.error,
        fault_address(),
        frame.cs,
        frame.rflags,
        frame.rsp,
        frame.ss,
        frame.saved[8],
        frame.saved[7],
        frame.saved[6],
    );
    line.send();
    exit(EXIT_EXCEPTION | frame.vector as u32)
}

/// CR2.
fn fault_address() -> u64 {
    let address;
    // SAFETY: reads a register, in ring 0.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
    address
}
