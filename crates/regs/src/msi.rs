//! The x86 interrupt message: what a device writes to FEEx_xxxxh.
//!
//! 48882 §2.2.5 takes these as its input; the layout itself is AMD64 APM volume 2, chapter 16.

use core::fmt;

use bitfield_struct::bitfield;

use crate::fmt::{Always, Hex, List};

/// Base of the MSI window, FEE0_0000h–FEEF_FFFFh.
pub const MSI_WINDOW_BASE: u64 = 0xfee0_0000;
/// Last byte of the MSI window.
pub const MSI_WINDOW_END: u64 = 0xfeef_ffff;

/// Whether a write to `address` is an interrupt request (48882 §2.1.4.2: FEEx_xxxxh).
pub const fn is_msi_address(address: u64) -> bool {
    address >= MSI_WINDOW_BASE && address <= MSI_WINDOW_END
}

/// MSI address, low 32 bits.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiAddress {
    /// Bits \[1:0\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 2, DM: destination mode. 0 physical, 1 logical. Selects the 2K index rule when it is 1.
    pub logical: bool,
    /// Bit 3, RH: redirection hint.
    pub redirection_hint: bool,
    /// Bits \[11:4\], reserved (KVM keeps destination\[14:8\] in \[11:5\] in its own extension).
    __: u8,
    /// Bits \[19:12\], destination APIC ID \[7:0\].
    pub dest: u8,
    /// Bits \[31:20\]: FEEh.
    #[bits(12, default = 0xfee)]
    pub window: u16,
}

/// MSI data.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiData {
    /// Bits \[7:0\], vector.
    pub vector: u8,
    /// Bits \[10:8\], delivery mode, see [`DeliveryMode`].
    #[bits(3)]
    pub delivery_mode: u8,
    /// Bits \[13:11\], reserved.
    #[bits(3)]
    __: u8,
    /// Bit 14: level (1 assert).
    pub assert: bool,
    /// Bit 15: trigger mode (1 level).
    pub level: bool,
    /// Bits \[31:16\], reserved.
    __: u16,
}

impl MsiData {
    /// Bits \[10:0\]: the IRTE index of a remappable message (48882 §2.2.5, figure 14).
    pub const fn irte_index(self) -> u16 {
        (self.into_bits() & 0x7ff) as u16
    }
}

/// The delivery (message) types of data\[10:8\]. Open: 3 and 6 are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum DeliveryMode {
    /// 000b, fixed.
    Fixed,
    /// 001b, arbitrated (lowest priority).
    LowestPriority,
    /// 010b, SMI.
    Smi,
    /// 100b, NMI.
    Nmi,
    /// 101b, INIT.
    Init,
    /// 111b, ExtINT.
    ExtInt,
    /// 011b or 110b.
    Reserved(u8),
}

impl DeliveryMode {
    /// Decodes the low three bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            7 => Self::ExtInt,
            other => Self::Reserved(other),
        }
    }

    /// The three-bit encoding.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::ExtInt => 7,
            Self::Reserved(bits) => bits & 7,
        }
    }
}

/// An interrupt message as a device sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Msi {
    /// The address written, FEEx_xxxxh.
    pub address: u64,
    /// The data written.
    pub data: u32,
}

impl fmt::Display for DeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::LowestPriority => "lowest-priority",
            Self::Smi => "SMI",
            Self::Nmi => "NMI",
            Self::Init => "INIT",
            Self::ExtInt => "ExtINT",
            Self::Reserved(bits) => return write!(f, "reserved({bits})"),
        })
    }
}

impl fmt::Display for MsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("address", Hex(self.into_bits().into()))
            .field("dest", Hex(self.dest().into()))
            .field("logical", self.logical())
            .field("RH", self.redirection_hint())
            .finish()
    }
}

impl fmt::Display for MsiData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("vector", Hex(self.vector().into()))
            .field(
                "mode",
                Always(DeliveryMode::from_bits(self.delivery_mode())),
            )
            .field("level", self.level())
            .field("assert", self.assert())
            .finish()
    }
}

impl fmt::Display for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address={:#x} data={:#x}", self.address, self.data)
    }
}
