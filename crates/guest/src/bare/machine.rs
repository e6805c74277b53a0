//! The machine as a scenario sees it.

use core::arch::asm;
use core::fmt::{self, Write};
use core::hint;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::output::Line;
use super::{cpu, interrupts};
use crate::boot::BootInfo;
use crate::platform::{Platform, Width};

/// How long the other CPUs may take to come up.
const START_NS: u64 = 10_000_000_000;

/// The machine that the payload runs on.
pub struct Machine {
    boot: BootInfo,
    heap: u64,
    started: u64,
}

impl Machine {
    /// The machine that `boot` describes. There is one.
    pub(super) fn new(boot: BootInfo) -> Self {
        assert!(
            boot.tsc_per_us != 0,
            "boot information: no TSC frequency, so there is no clock"
        );
        Self {
            heap: boot.heap_start,
            boot,
            started: cpu::timestamp(),
        }
    }

    /// Waits until every other CPU takes interrupts.
    pub(super) fn wait_for_cpus(&mut self, ready: &AtomicU64) {
        let end = self.now_ns() + START_NS;
        while ready.load(Ordering::Acquire) + 1 < self.boot.cpus {
            assert!(
                self.now_ns() < end,
                "{} of {} other CPUs did not start within {} s",
                self.boot.cpus - 1 - ready.load(Ordering::Acquire),
                self.boot.cpus - 1,
                START_NS / 1_000_000_000,
            );
            self.pause();
        }
    }

    /// The pointer to a word of RAM; `gpa` must be aligned to the word, and below 4 GiB or in the
    /// heap, as far as the identity map reaches for sure.
    fn ram<T>(&self, gpa: u64) -> *mut T {
        let heap = self.boot.heap_start..self.boot.heap_end;
        assert!(
            gpa != 0
                && gpa.is_multiple_of(align_of::<T>() as u64)
                && (gpa < 1 << 32 || heap.contains(&gpa)),
            "no word of {} bytes can be accessed at {gpa:#x}",
            size_of::<T>()
        );
        gpa as *mut T
    }
}

// What the accesses below have in common: the address is mapped (`ram` checks it, MMIO addresses
// come from BARs and ACPI below 4 GiB) and belongs to no Rust object, because a scenario's addresses
// come from `alloc`, the ACPI tables and device registers. A scenario that invents an address gets
// what hardware would give it; its memory is only its own.
impl Platform for Machine {
    fn read_u64(&self, gpa: u64) -> u64 {
        // SAFETY: aligned, mapped RAM outside every Rust object, see above.
        unsafe { AtomicU64::from_ptr(self.ram(gpa)) }.load(Ordering::SeqCst)
    }

    fn write_u64(&mut self, gpa: u64, value: u64) {
        // SAFETY: aligned, mapped RAM outside every Rust object, see above.
        unsafe { AtomicU64::from_ptr(self.ram(gpa)) }.store(value, Ordering::SeqCst);
    }

    fn read_u32(&self, gpa: u64) -> u32 {
        // SAFETY: aligned, mapped RAM outside every Rust object, see above.
        unsafe { AtomicU32::from_ptr(self.ram(gpa)) }.load(Ordering::SeqCst)
    }

    fn write_u32(&mut self, gpa: u64, value: u32) {
        // SAFETY: aligned, mapped RAM outside every Rust object, see above.
        unsafe { AtomicU32::from_ptr(self.ram(gpa)) }.store(value, Ordering::SeqCst);
    }

    fn read_u8(&self, gpa: u64) -> u8 {
        // SAFETY: mapped RAM outside every Rust object, see above.
        unsafe { AtomicU8::from_ptr(self.ram(gpa)) }.load(Ordering::SeqCst)
    }

    /// The VMM hands the heap over zeroed, and nothing is ever given back: there is nothing to clear.
    fn alloc(&mut self, bytes: u64, align: u64) -> Option<u64> {
        assert!(align.is_power_of_two(), "alloc: alignment {align}");
        let start = self.heap.checked_add(align - 1)? & !(align - 1);
        let end = start.checked_add(bytes)?;
        if end > self.boot.heap_end {
            return None;
        }
        self.heap = end;
        Some(start)
    }

    // Device registers are accessed by plain moves of the width asked for, at any alignment: a
    // scenario tests those too, and a Rust volatile access would have to be aligned.
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one arm runs")]
    fn mmio_read(&mut self, gpa: u64, width: Width) -> u64 {
        let value: u64;
        // SAFETY: a mapped address outside every Rust object, see above.
        unsafe {
            match width {
                Width::Byte => {
                    asm!("movzx {v:e}, byte ptr [{a}]", a = in(reg) gpa, v = out(reg) value, options(nostack));
                }
                Width::Word => {
                    asm!("movzx {v:e}, word ptr [{a}]", a = in(reg) gpa, v = out(reg) value, options(nostack));
                }
                Width::Dword => {
                    asm!("mov {v:e}, dword ptr [{a}]", a = in(reg) gpa, v = out(reg) value, options(nostack));
                }
                Width::Qword => {
                    asm!("mov {v:r}, qword ptr [{a}]", a = in(reg) gpa, v = out(reg) value, options(nostack));
                }
            }
        }
        value
    }

    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one arm runs")]
    fn mmio_write(&mut self, gpa: u64, width: Width, value: u64) {
        // SAFETY: a mapped address outside every Rust object, see above.
        unsafe {
            match width {
                Width::Byte => {
                    asm!("mov byte ptr [{a}], {v}", a = in(reg) gpa, v = in(reg_byte) value as u8, options(nostack));
                }
                Width::Word => {
                    asm!("mov word ptr [{a}], {v:x}", a = in(reg) gpa, v = in(reg) value, options(nostack));
                }
                Width::Dword => {
                    asm!("mov dword ptr [{a}], {v:e}", a = in(reg) gpa, v = in(reg) value, options(nostack));
                }
                Width::Qword => {
                    asm!("mov qword ptr [{a}], {v:r}", a = in(reg) gpa, v = in(reg) value, options(nostack));
                }
            }
        }
    }

    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one arm runs")]
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let value: u32;
        // SAFETY: a port of this machine; it has no effect on memory that Rust knows of.
        unsafe {
            match width {
                Width::Byte => {
                    asm!("in al, dx", "movzx eax, al", in("dx") port, out("eax") value, options(nostack));
                }
                Width::Word => {
                    asm!("in ax, dx", "movzx eax, ax", in("dx") port, out("eax") value, options(nostack));
                }
                Width::Dword => {
                    asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack));
                }
                Width::Qword => panic!("port {port:#x}: ports have no 64-bit accesses"),
            }
        }
        value
    }

    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one arm runs")]
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        // SAFETY: a port of this machine; it has no effect on memory that Rust knows of.
        unsafe {
            match width {
                Width::Byte => {
                    asm!("out dx, al", in("dx") port, in("eax") value, options(nostack));
                }
                Width::Word => {
                    asm!("out dx, ax", in("dx") port, in("eax") value, options(nostack));
                }
                Width::Dword => {
                    asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack));
                }
                Width::Qword => panic!("port {port:#x}: ports have no 64-bit accesses"),
            }
        }
    }

    fn rsdp(&self) -> u64 {
        self.boot.rsdp
    }

    fn apic_ids(&self) -> &[u32] {
        &self.boot.apic_ids[..self.boot.cpus as usize]
    }

    fn interrupts(&self, cpu: usize, vector: u8) -> u64 {
        interrupts::count(cpu, vector)
    }

    fn heartbeat(&self, cpu: usize) -> u64 {
        interrupts::heartbeat(cpu)
    }

    fn pause(&mut self) {
        hint::spin_loop();
    }

    fn now_ns(&mut self) -> u64 {
        (cpu::timestamp() - self.started) * 1000 / self.boot.tsc_per_us
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        let mut text = Line::new();
        let _ = text.write_fmt(line);
        text.send();
    }
}
