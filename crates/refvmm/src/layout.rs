//! The machine's address map: one place for every number that RAM, firmware tables and devices
//! must agree on.

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
pub const ACPI_END: u64 = 0x0010_0000;

/// First GPA that a guest may allocate: behind the payload, which is loaded at 1 MiB.
pub const HEAP_START: u64 = 0x0100_0000;

/// Window for the 32-bit memory BARs of PCI functions; RAM below 4 GiB ends here at the latest.
pub const PCI_MEMORY: u64 = 0xc000_0000;
/// BAR 0 of the test endpoint as the board places it; the guest may move it.
pub const ENDPOINT_BAR0: u32 = 0xc000_0000;
/// BAR 2 of the test endpoint.
pub const ENDPOINT_BAR2: u32 = 0xc001_0000;
/// BAR 4 of the test endpoint.
pub const ENDPOINT_BAR4: u32 = 0xc002_0000;

/// The ECAM window of segment 0: 1 MiB for each bus.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Buses that the ECAM window decodes.
pub const ECAM_BUSES: u64 = 256;

/// First byte behind the windows of PCI: BARs and ECAM.
pub const PCI_MEMORY_END: u64 = ECAM_BASE + (ECAM_BUSES << 20);
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
