//! How the VMM starts the payload and gets its report.
//!
//! The VMM puts every vCPU straight into 64-bit mode: identity-mapped page tables (the first 4 GiB
//! and the heap at least), CR0=8000_0033h, CR4=20h, EFER=500h, x2APIC enabled, interrupts off, RIP = the ELF
//! entry point, RDI = [`BOOT_INFO_GPA`], RSI = the index of the CPU. CPU 0 runs the scenario and
//! the others wait for interrupts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::report::Report;

/// Where [`BootInfo`] stands.
pub const BOOT_INFO_GPA: u64 = 0x7000;
/// Where the payload writes its [`Report`].
pub const REPORT_GPA: u64 = 0x8000;
/// Port to which the payload writes the bytes of its log.
pub const LOG_PORT: u16 = 0xe9;
/// Port that ends the run: a dword, 0 after a complete report, else a panic or exception code.
pub const EXIT_PORT: u16 = 0xf4;
/// Most CPUs that a payload can have.
pub const MAX_CPUS: usize = 16;

const _: () = assert!(size_of::<Report>() <= 0x1000);
const _: () = assert!(size_of::<BootInfo>() <= 0x1000);

/// What the payload is told.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    /// [`BootInfo::MAGIC`].
    pub magic: u64,
    /// GPA of the ACPI RSDP.
    pub rsdp: u64,
    /// First GPA of RAM that the payload may allocate, page aligned.
    pub heap_start: u64,
    /// First GPA behind that RAM.
    pub heap_end: u64,
    /// Index into `scenarios::ALL` of the scenario to run.
    pub scenario: u64,
    /// TSC ticks per microsecond; 0 when unknown.
    pub tsc_per_us: u64,
    /// Number of CPUs, 1–[`MAX_CPUS`].
    pub cpus: u64,
    /// x2APIC IDs of the CPUs.
    pub apic_ids: [u32; MAX_CPUS],
}

impl BootInfo {
    /// Marks a valid structure.
    pub const MAGIC: u64 = 0x6f66_6e69_746f_6f62;
}
