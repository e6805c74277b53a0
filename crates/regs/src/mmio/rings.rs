use core::fmt;

use bitfield_struct::bitfield;

use crate::fmt::{Always, Hex, List, display_fields};

/// Device Table Base Address, MMIO 0000h and segments 0100h–0130h (48882 §3.4.1, §3.4.9).
///
/// Segment registers have only eight size bits.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceTableBase {
    /// Bits \[8:0\], Size: the table has (Size+1)×4096 bytes, (Size+1)×128 entries.
    #[bits(9)]
    pub size: u16,
    /// Bits \[11:9\], reserved.
    #[bits(3)]
    pub rsvd_11_9: u8,
    /// Bits \[51:12\], DevTabBase as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl DeviceTableBase {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0e00;
    /// The byte address of the table.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }

    /// Number of entries in the table, 128–65536.
    pub const fn entries(self) -> u32 {
        (self.size() as u32 + 1) * 128
    }
}

/// Base register of a ring: command 0008h, event 0010h, PPR 0038h, GA 00E0h, PPR B 00F0h,
/// event B 00F8h (48882 §3.4.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RingBase {
    /// Bits \[11:0\], reserved.
    #[bits(12)]
    pub rsvd_11_0: u16,
    /// Bits \[51:12\], base as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[55:52\], reserved.
    #[bits(4)]
    pub rsvd_55_52: u8,
    /// Bits \[59:56\], length: 2^n entries for 8 ≤ n ≤ 15; smaller values are reserved.
    #[bits(4)]
    pub length: u8,
    /// Bits \[63:60\], reserved.
    #[bits(4)]
    pub rsvd_63_60: u8,
}

impl RingBase {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xf0f0_0000_0000_0fff;
    /// The smallest defined length encoding.
    pub const MIN_LEN: u8 = 8;

    /// The byte address of the ring.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }

    /// Bytes of a ring of 16-byte entries, `None` for a reserved length.
    pub const fn bytes(self) -> Option<u64> {
        if self.length() < Self::MIN_LEN {
            None
        } else {
            Some(1 << (self.length() + 4))
        }
    }
}

/// Head or tail pointer of a ring, MMIO 2000h–2078h (48882 §3.4.13): a byte offset.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RingPointer {
    /// Bits \[18:0\]: byte offset; \[3:0\] are reserved (\[2:0\] for the GA log).
    #[bits(19)]
    pub byte_offset: u32,
    /// Bits \[63:19\], reserved.
    #[bits(45)]
    pub rsvd_63_19: u64,
}

impl RingPointer {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_fff8_0000;
    /// Writable bits of a pointer into a ring of 16-byte entries.
    pub const MASK_16: u64 = 0x7_fff0;
    /// Writable bits of a pointer into the GA log, whose entries have 8 bytes.
    pub const MASK_8: u64 = 0x7_fff8;
}

impl fmt::Display for DeviceTableBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("base", Hex(self.address()))
            .field("entries", Always(self.entries()))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

impl fmt::Display for RingBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("base", Hex(self.address()))
            .field("ComLen", Always(self.length()))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

display_fields!(RingPointer, reserved RingPointer::RESERVED, {
    "offset": byte_offset,
});

impl DeviceTableBase {
    /// Bits that software can write in the register of segment 0.
    pub const MASK: u64 = 0x000f_ffff_ffff_f1ff;
    /// Bits that software can write in the registers of segments 1–7.
    pub const SEGMENT_MASK: u64 = 0x000f_ffff_ffff_f0ff;
    /// The largest Size per segment register, 0–7: a segment never exceeds its share of the
    /// 65536 DeviceIDs at the smallest number of segments that uses it.
    pub const MAX_SIZE: [u16; 8] = [0x1ff, 0xff, 0x7f, 0x7f, 0x3f, 0x3f, 0x3f, 0x3f];

    /// Splits a DeviceID into the segment that holds its DTE and the index in that segment, with
    /// 2^`segments_log2` segments (CONTROL.DevTblSegEn; values above 3 count as 3).
    ///
    /// The segment is the top bits of the DeviceID (48882 §2.2.2).
    pub const fn segment_of(device_id: u16, segments_log2: u8) -> (usize, u16) {
        let n = if segments_log2 > 3 { 3 } else { segments_log2 };
        let index_bits = 16 - n as u32;
        let segment = (device_id as u32 >> index_bits) as usize;
        (segment, (device_id as u32 & ((1 << index_bits) - 1)) as u16)
    }
}

impl RingBase {
    /// Bits that software can write.
    pub const MASK: u64 = 0x0f0f_ffff_ffff_f000;
    /// Value after reset: ComLen = 8, everything else 0.
    pub const RESET: Self = Self::new().with_length(Self::MIN_LEN);

    /// Entries of a ring of 16-byte entries, `None` for a reserved length.
    pub const fn entries(self) -> Option<u32> {
        if self.length() < Self::MIN_LEN {
            None
        } else {
            Some(1 << self.length())
        }
    }

    /// Entries of the GA log, whose entries have 8 bytes: twice as many in the same space.
    pub const fn ga_log_entries(self) -> Option<u32> {
        match self.entries() {
            Some(entries) => Some(entries * 2),
            None => None,
        }
    }
}
