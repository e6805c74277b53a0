//! What the driver needs of the machine it runs on.

use core::fmt;

/// Width of an MMIO, port or configuration access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits (MMIO only).
    Qword,
}

impl Width {
    /// The width in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// The machine under the driver: memory, MMIO, ports, CPUs and their interrupt handlers.
///
/// Addresses are guest physical addresses. CPU 0 runs the scenario; the others wait for
/// interrupts. Handlers only count: what arrived is read back with [`interrupts`](Self::interrupts).
pub trait Platform {
    /// Reads a 64-bit word of RAM (volatile, atomic; 8-byte aligned).
    fn read_u64(&self, gpa: u64) -> u64;
    /// Writes a 64-bit word of RAM (volatile, atomic; 8-byte aligned).
    fn write_u64(&mut self, gpa: u64, value: u64);
    /// Reads a 32-bit word of RAM.
    fn read_u32(&self, gpa: u64) -> u32;
    /// Writes a 32-bit word of RAM.
    fn write_u32(&mut self, gpa: u64, value: u32);
    /// Reads a byte of RAM or ROM (ACPI tables).
    fn read_u8(&self, gpa: u64) -> u8;

    /// Replaces the 16-byte-aligned pair at `gpa`. Not atomic as a whole: high word first, unless
    /// the platform can do better.
    fn write_pair(&mut self, gpa: u64, words: [u64; 2]) {
        self.write_u64(gpa + 8, words[1]);
        self.write_u64(gpa, words[0]);
    }

    /// Takes `bytes` of zeroed RAM, aligned to `align` (a power of two); `None` when RAM is used
    /// up. Never given back.
    fn alloc(&mut self, bytes: u64, align: u64) -> Option<u64>;

    /// Reads a device register.
    fn mmio_read(&mut self, gpa: u64, width: Width) -> u64;
    /// Writes a device register.
    fn mmio_write(&mut self, gpa: u64, width: Width, value: u64);
    /// Reads an I/O port (byte, word or dword).
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes an I/O port (byte, word or dword).
    fn port_write(&mut self, port: u16, width: Width, value: u32);

    /// The address of the ACPI RSDP.
    fn rsdp(&self) -> u64;

    /// The x2APIC IDs of the CPUs; index 0 runs the scenario.
    fn apic_ids(&self) -> &[u32];
    /// How often CPU `cpu` (an index) has handled `vector` since start. NMIs count as vector 2.
    fn interrupts(&self, cpu: usize, vector: u8) -> u64;
    /// A counter that CPU `cpu` keeps increasing while it is alive (not in wait-for-SIPI).
    fn heartbeat(&self, cpu: usize) -> u64;
    /// Lets other CPUs and devices make progress while the scenario waits.
    fn pause(&mut self);
    /// A monotonic clock, in nanoseconds.
    fn now_ns(&mut self) -> u64;

    /// Prints a line for the person who watches.
    fn log(&mut self, line: fmt::Arguments<'_>);
}
