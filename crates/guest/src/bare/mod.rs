//! The bare-metal runtime: what stands between the VMM's entry and a scenario.
//!
//! There is no kernel and no `std` here. Guest physical and virtual addresses are the same (the VMM
//! set up an identity map), every CPU runs in ring 0, and all memory but the payload's own image,
//! the boot information and the page tables is for the scenario to use.
//!
//! Interrupt handlers count and do nothing else, so a scenario sees exactly what arrived where.
//! Vector [`TIMER_VECTOR`] and [`SPURIOUS_VECTOR`] are the runtime's own.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromBytes;

use crate::boot::{BOOT_INFO_GPA, BootInfo, MAX_CPUS, REPORT_GPA};
use crate::report::Report;
use crate::{scenarios, smoke};

mod apic;
mod cpu;
mod descriptors;
mod interrupts;
mod machine;
mod output;

pub use machine::Machine;
pub use output::panicked;

/// Vector of the timer that keeps the heartbeats going; scenarios leave it alone.
pub const TIMER_VECTOR: u8 = 0xef;
/// Spurious vector of the local APICs; scenarios leave it alone.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Exit code of a complete report.
pub const EXIT_DONE: u32 = 0;
/// Exit code of a panic; the log says where.
pub const EXIT_PANIC: u32 = 1;
/// Exit code of an exception, ORed with its vector; the log says where.
pub const EXIT_EXCEPTION: u32 = 0x100;

/// Bytes of each CPU's stack.
pub const STACK_BYTES: usize = 1 << 17;

/// The stacks, one for each CPU. The entry code indexes them by the number of the CPU.
#[repr(C, align(4096))]
pub struct Stacks([[u8; STACK_BYTES]; MAX_CPUS]);

impl Stacks {
    /// Untouched stacks.
    #[expect(
        clippy::new_without_default,
        reason = "built in one static, never at run time"
    )]
    pub const fn new() -> Self {
        Self([[0; STACK_BYTES]; MAX_CPUS])
    }
}

/// CPUs other than 0 that are ready for interrupts.
static READY: AtomicU64 = AtomicU64::new(0);

/// Runs the payload on CPU `index`.
///
/// # Safety
///
/// Only the entry code may call this: once on each CPU, with `boot` and `index` as the VMM handed
/// them over and the machine in the state that [`crate::boot`] describes.
pub unsafe extern "C" fn start(boot: u64, index: u64) -> ! {
    let boot = read_boot_info(boot);
    let index = index as usize;
    assert!(
        index < boot.cpus as usize,
        "the VMM started CPU {index} of {} CPUs",
        boot.cpus
    );
    // SAFETY: this CPU is in the state that `boot` describes and runs this line once; no other CPU
    // has its index.
    unsafe { descriptors::install(index) };
    apic::enable();
    cpu::enable_interrupts();
    if index != 0 {
        READY.fetch_add(1, Ordering::Release);
        loop {
            cpu::halt();
        }
    }

    let mut machine = Machine::new(boot);
    machine.wait_for_cpus(&READY);
    let Some(scenario) = boot.scenario.as_str() else {
        panic!("boot information: {:?} is no name", boot.scenario)
    };
    let report = match scenario {
        smoke::SCENARIO => smoke::run(&mut machine),
        smoke::PANIC => panic!("asked for"),
        smoke::EXCEPTION => cpu::undefined_instruction(),
        scenario => scenarios::run(scenario, &mut machine),
    };
    // SAFETY: the page at REPORT_GPA is mapped, is set aside for the report and nothing else in the
    // payload refers to it.
    unsafe { ptr::write_volatile(REPORT_GPA as *mut Report, report) };
    output::exit(EXIT_DONE)
}

/// Copies the boot information and checks it.
fn read_boot_info(gpa: u64) -> BootInfo {
    assert!(
        gpa == BOOT_INFO_GPA,
        "boot information at {gpa:#x}, expected {BOOT_INFO_GPA:#x}"
    );
    // SAFETY: the page is mapped, the VMM wrote it before it started the CPUs, and no CPU writes it.
    let bytes: [u8; size_of::<BootInfo>()] = unsafe { ptr::read_volatile(gpa as *const _) };
    let Ok(boot) = BootInfo::read_from_bytes(&bytes) else {
        unreachable!("the array has the structure's size");
    };
    assert!(
        boot.magic == BootInfo::MAGIC,
        "boot information: magic {:#x}, expected {:#x}: the payload and the VMM are of different builds",
        boot.magic,
        BootInfo::MAGIC
    );
    assert!(
        (1..=MAX_CPUS as u64).contains(&boot.cpus),
        "boot information: {} CPUs, expected 1 to {MAX_CPUS}",
        boot.cpus
    );
    boot
}
