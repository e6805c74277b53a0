//! The machine's address map: one place for every number that RAM, firmware tables and devices
//! must agree on.

use std::ops::Range;

/// RAM when `--memory` is not given, and the least: what the largest tables of a scenario take, and
/// slack.
pub const RAM_SIZE: u64 = 64 << 20;
/// The most RAM that can be asked for: one memory slot of KVM holds no more than 8 TiB.
pub const MAX_RAM_SIZE: u64 = 4 << 40;

/// Where a legacy PC's RAM ends, and the windows of video and option ROMs begin.
pub const LEGACY_WINDOWS: u64 = 0x000a_0000;

/// The ACPI RSDP: in the BIOS area, where a scan of low memory finds it too.
pub const RSDP: u64 = 0x000e_0000;
/// The ACPI tables, behind the RSDP.
pub const ACPI_TABLES: u64 = 0x000e_1000;
/// First byte behind the ACPI tables.
pub const ACPI_END: u64 = 0x000f_f000;
/// First byte behind all that is firmware below 1 MiB; in front of it is the reset vector.
pub const FIRMWARE_END: u64 = 0x0010_0000;

/// First GPA that a guest may allocate: behind the payload, which is loaded at 1 MiB.
pub const HEAP_START: u64 = 0x0100_0000;

/// Window for the 32-bit memory BARs of PCI functions; RAM below 4 GiB ends here at the latest.
pub const PCI_MEMORY: u64 = 0xc000_0000;
/// PCI segments that the address map has room for.
pub const MAX_SEGMENTS: usize = 4;

/// The window for the BARs of the `n`th segment, in the order of their numbers: 256 MiB for segment
/// 0, 64 MiB for each of the others.
pub const fn bar_window(n: usize) -> Range<u64> {
    const OTHERS: u64 = PCI_MEMORY + (256 << 20);
    match n {
        0 => PCI_MEMORY..OTHERS,
        n => OTHERS + ((n as u64 - 1) << 26)..OTHERS + ((n as u64) << 26),
    }
}

/// The ECAM window of segment 0: 1 MiB for each bus.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Buses that the ECAM window of segment 0 decodes.
pub const ECAM_BUSES: u64 = 256;
/// Buses that the ECAM window of each other segment decodes.
pub const OTHER_ECAM_BUSES: u64 = 16;

/// The ECAM window of the `n`th segment; those of the others lie behind that of segment 0.
pub const fn ecam(n: usize) -> Range<u64> {
    match n {
        0 => ECAM_BASE..PCI_MEMORY_END,
        n => {
            let size = OTHER_ECAM_BUSES << 20;
            let base = PCI_MEMORY_END + (n as u64 - 1) * size;
            base..base + size
        }
    }
}

/// First byte behind the windows of segment 0: BARs and ECAM.
pub const PCI_MEMORY_END: u64 = ECAM_BASE + (ECAM_BUSES << 20);

/// The first IOAPIC pin of PCI interrupts; below are those of legacy devices.
pub const FIRST_INTX_PIN: u8 = 16;
/// IOAPIC pins of PCI interrupts, all level-triggered and active low.
pub const INTX_PINS: u8 = 8;

/// The IOAPIC pin, which is also the GSI, that INTA–INTD (`pin` 0–3) of a device on a root bus is
/// wired to. The DSDT's _PRT says the same.
pub const fn intx_pin(device: u8, pin: u8) -> u8 {
    FIRST_INTX_PIN + (device % INTX_PINS + pin) % INTX_PINS
}
/// First byte behind IOAPIC, local APICs and interrupt messages.
pub const ABOVE_INTERRUPTS: u64 = 0xfef0_0000;

/// The IOAPIC's registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Bytes that the IOAPIC decodes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// The ID of the IOAPIC (4 bits), which IVRS and MADT must give alike.
pub const IOAPIC_ID: u8 = 0;

/// The local APICs' registers, for the MADT. CPUs use x2APIC.
pub const LOCAL_APIC_BASE: u32 = 0xfee0_0000;

/// APIC ID of the last CPU on a machine that must have one above 255.
pub const HIGH_APIC_ID: u32 = 300;
