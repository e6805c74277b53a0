//! Where everything lies in the guest physical address space that both sides have.

use amdvi_regs::DeviceId;

/// RAM below this address: a Q35 machine with 4 GiB puts half of its memory there.
pub const LOW_RAM_END: u64 = 0x8000_0000;
/// The other half.
pub const HIGH_RAM: std::ops::Range<u64> = 0x1_0000_0000..0x1_8000_0000;
/// Video memory and ROMs of a PC: no RAM.
pub const LEGACY_HOLE: std::ops::Range<u64> = 0xa_0000..0x10_0000;

/// The device table: at most two pages, 256 entries, which is bus 0.
pub const DEVICE_TABLE: u64 = 0x0200_0000;
/// The command ring; up to 64 KiB.
pub const COMMANDS: u64 = 0x0201_0000;
/// The event log: 256 entries.
pub const EVENTS: u64 = 0x0202_0000;
/// Where COMPLETION_WAIT stores of cases go: [`STORE_WORDS`] words.
pub const STORE: u64 = 0x0203_0000;
/// Number of 64-bit words at [`STORE`] that are compared.
pub const STORE_WORDS: u64 = 16;
/// The store by which the runner marks the beginning of a case.
pub const MARKER: u64 = 0x0203_f000;
/// A page that the runner uses to look into a device's buffer.
pub const SCRATCH: u64 = 0x0203_8000;
/// Page table pages.
pub const TABLES: u64 = 0x0300_0000;
/// A page table page that stays empty.
pub const EMPTY_TABLE: u64 = 0x030f_f000;
/// The interrupt remapping table: 2048 entries of 16 bytes.
pub const IRT: u64 = 0x0310_0000;
/// A GPA without memory or device behind it.
pub const NOWHERE: u64 = 0x80_0000_0000;

/// Whether there is RAM at `gpa`.
pub fn is_ram(gpa: u64) -> bool {
    (gpa < LOW_RAM_END && !LEGACY_HOLE.contains(&gpa)) || HIGH_RAM.contains(&gpa)
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// QEMU's `edu`: DMA reads and writes, MSIs.
    Edu,
    /// QEMU's `iommu-testdev`: DMA writes.
    Testdev,
    /// The IOAPIC, at the DeviceID that QEMU gives it.
    Ioapic,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Edu, Self::Testdev, Self::Ioapic];

    /// Its DeviceID.
    pub const fn id(self) -> DeviceId {
        match self {
            Self::Edu => DeviceId::new(0, 0x05, 0),
            Self::Testdev => DeviceId::new(0, 0x10, 0),
            Self::Ioapic => DeviceId::new(0, 0x14, 0),
        }
    }

    /// GPA of its DTE.
    pub const fn dte(self) -> u64 {
        DEVICE_TABLE + self.id().0 as u64 * 32
    }
}
