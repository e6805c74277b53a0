//! GCR3 table (48882 §2.2.6): from a PASID to the root of its guest page table.

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fmt::{Hex, List};

/// Entries in one table.
pub const TABLE_ENTRIES: u64 = 512;
/// Size of an entry in bytes.
pub const ENTRY_SIZE: u64 = 8;

/// Levels of a GCR3 table for DTE.GLX, 1–3; `None` for the reserved value 3.
pub const fn levels(glx: u8) -> Option<u8> {
    match glx {
        0..=2 => Some(glx + 1),
        _ => None,
    }
}

/// Number of PASID bits that a table with `levels` (1–3) covers: 9, 18, 20; `None` for others.
pub const fn pasid_bits(levels: u8) -> Option<u32> {
    match levels {
        1 => Some(9),
        2 => Some(18),
        3 => Some(20),
        _ => None,
    }
}

/// The index of `pasid` in a table at `level`: PASID\[8:0\] at level 1 (the last), \[17:9\] at 2,
/// \[19:18\] at 3; `None` for other levels.
pub const fn index(pasid: u32, level: u8) -> Option<u64> {
    match level {
        1 => Some(pasid as u64 & 0x1ff),
        2 => Some((pasid as u64 >> 9) & 0x1ff),
        3 => Some((pasid as u64 >> 18) & 0x3),
        _ => None,
    }
}

/// One entry: of the last level, the root of a guest page table; above, the next GCR3 table.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gcr3Entry {
    /// Bit 0, V: valid.
    pub v: bool,
    /// Bits \[11:1\], reserved.
    #[bits(11)]
    pub rsvd_11_1: u16,
    /// Bits \[51:12\], address as a page number.
    #[bits(40)]
    pub address_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl Gcr3Entry {
    /// Bits that must be zero.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0ffe;

    /// The byte address.
    pub const fn address(self) -> u64 {
        self.address_page() << 12
    }

    /// The bits that are set although they are reserved.
    pub const fn reserved_bits_set(self) -> u64 {
        self.into_bits() & Self::RESERVED
    }
}

impl fmt::Display for Gcr3Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("V", self.v())
            .field("address", Hex(self.address()))
            .field("reserved", self.reserved_bits_set())
            .finish()
    }
}
