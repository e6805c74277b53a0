//! I/O Virtualization Memory Definition blocks (48882 §5.2).

use core::fmt;

use super::bytes::{put, u16_at, u64_at};
use crate::fmt::display_flags;
use crate::id::{DeviceId, Segment};

/// Bytes of an IVMD block.
pub const IVMD_SIZE: usize = 32;

/// To whom an IVMD block applies: its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum IvmdKind {
    /// 20h: all devices.
    All,
    /// 21h: one device.
    Device,
    /// 22h: the devices from DeviceID to the auxiliary DeviceID inclusive.
    Range,
}

impl IvmdKind {
    /// The block type byte, `None` for a type that is no IVMD.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x20 => Some(Self::All),
            0x21 => Some(Self::Device),
            0x22 => Some(Self::Range),
            _ => None,
        }
    }

    /// The block type byte.
    pub const fn bits(self) -> u8 {
        match self {
            Self::All => 0x20,
            Self::Device => 0x21,
            Self::Range => 0x22,
        }
    }
}

impl fmt::Display for IvmdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h", self.bits())
    }
}

bitflags::bitflags! {
    /// Flags of an IVMD block.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IvmdFlags: u8 {
        /// Bit 0, Unity: the range is mapped one to one.
        const UNITY = 1 << 0;
        /// Bit 1, IR: read permission.
        const IR = 1 << 1;
        /// Bit 2, IW: write permission.
        const IW = 1 << 2;
        /// Bit 3, ExclusionRange.
        const EXCLUSION_RANGE = 1 << 3;
    }
}

display_flags!(IvmdFlags, {
    UNITY: "Unity",
    IR: "IR",
    IW: "IW",
    EXCLUSION_RANGE: "ExclusionRange",
});

/// An IVMD block: memory that devices use without a driver's knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivmd {
    /// To whom the block applies.
    pub kind: IvmdKind,
    /// Flags.
    pub flags: IvmdFlags,
    /// The device, or the first of the range.
    pub device_id: DeviceId,
    /// The last device of the range.
    pub last_device_id: DeviceId,
    /// PCI segment of the devices (Linux; other readers take the bytes as reserved).
    pub segment: Segment,
    /// First byte of the memory range.
    pub start: u64,
    /// Bytes of the memory range.
    pub length: u64,
}

impl Ivmd {
    /// Reads a block; `bytes` has at least [`IVMD_SIZE`] bytes.
    pub(super) fn from_block(kind: IvmdKind, bytes: &[u8]) -> Self {
        Self {
            kind,
            flags: IvmdFlags::from_bits_retain(bytes[1]),
            device_id: DeviceId(u16_at(bytes, 4)),
            last_device_id: DeviceId(u16_at(bytes, 6)),
            segment: Segment(u16_at(bytes, 8)),
            start: u64_at(bytes, 16),
            length: u64_at(bytes, 24),
        }
    }

    /// Writes the block; `out` has at least [`IVMD_SIZE`] bytes.
    pub(super) fn write(&self, out: &mut [u8]) {
        out[..IVMD_SIZE].fill(0);
        out[0] = self.kind.bits();
        out[1] = self.flags.bits();
        put(out, 2, &(IVMD_SIZE as u16).to_le_bytes());
        put(out, 4, &self.device_id.0.to_le_bytes());
        put(out, 6, &self.last_device_id.0.to_le_bytes());
        put(out, 8, &self.segment.0.to_le_bytes());
        put(out, 16, &self.start.to_le_bytes());
        put(out, 24, &self.length.to_le_bytes());
    }

    /// Whether the block applies to a device of the block's segment.
    pub const fn applies_to(&self, device: DeviceId) -> bool {
        match self.kind {
            IvmdKind::All => true,
            IvmdKind::Device => device.0 == self.device_id.0,
            IvmdKind::Range => self.device_id.0 <= device.0 && device.0 <= self.last_device_id.0,
        }
    }
}

impl fmt::Display for Ivmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IVMD {} devices=", self.kind)?;
        match self.kind {
            IvmdKind::All => f.write_str("all")?,
            IvmdKind::Device => write!(f, "{}:{}", self.segment, self.device_id)?,
            IvmdKind::Range => write!(
                f,
                "{}:{}-{}",
                self.segment, self.device_id, self.last_device_id
            )?,
        }
        write!(
            f,
            " start={:#x} length={:#x} flags=[{}]",
            self.start, self.length, self.flags
        )
    }
}
