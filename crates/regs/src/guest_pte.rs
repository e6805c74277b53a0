//! Guest (v2) page table entries (48882 §2.2.6): the x86-64 long mode format.

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fmt::{Hex, List};

/// One entry of a guest page table of any level.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestPte {
    /// Bit 0, P: present.
    pub p: bool,
    /// Bit 1, RW: writable.
    pub rw: bool,
    /// Bit 2, US: user access allowed.
    pub us: bool,
    /// Bit 3, PWT.
    pub pwt: bool,
    /// Bit 4, PCD.
    pub pcd: bool,
    /// Bit 5, A: accessed.
    pub a: bool,
    /// Bit 6, D: dirty (leaf).
    pub d: bool,
    /// Bit 7, PS at levels 2 and 3: leaf; PAT at level 1.
    pub ps: bool,
    /// Bit 8, G: global (leaf).
    pub g: bool,
    /// Bits \[11:9\], available to software.
    #[bits(3)]
    pub avail_11_9: u8,
    /// Bits \[51:12\], address as a page number; bit 12 is PAT in a large leaf.
    #[bits(40)]
    pub address_page: u64,
    /// Bits \[62:52\], available to software.
    #[bits(11)]
    pub avail_62_52: u16,
    /// Bit 63, XD (NX): no execution.
    pub xd: bool,
}

impl GuestPte {
    /// Whether the entry, found in a table at `level`, maps a page: always at level 1, with PS at
    /// levels 2 (2 MiB) and 3 (1 GiB).
    pub const fn is_leaf(self, level: u8) -> bool {
        level == 1 || (matches!(level, 2 | 3) && self.ps())
    }

    /// log2 of the page size of a leaf at `level`: 12, 21 or 30; `None` if this is no leaf.
    pub const fn page_shift(self, level: u8) -> Option<u32> {
        if self.is_leaf(level) {
            Some(12 + 9 * (level as u32 - 1))
        } else {
            None
        }
    }

    /// The byte address of the next table, or of the page of a leaf at `level` without its PAT bit.
    pub const fn address(self, level: u8) -> u64 {
        let address = self.address_page() << 12;
        match self.page_shift(level) {
            Some(shift) => address & !((1u64 << shift) - 1),
            None => address,
        }
    }

    /// PAT of a leaf at `level`: bit 7 at level 1, bit 12 of a large page; `false` if this is no
    /// leaf.
    pub const fn pat(self, level: u8) -> bool {
        match (level, self.is_leaf(level)) {
            (1, _) => self.ps(),
            (_, true) => self.address_page() & 1 != 0,
            _ => false,
        }
    }

    /// The bits that are set although an entry at `level` reserves them: the address bits between
    /// PAT and the page size of a large leaf, and PS at levels above 3.
    pub const fn reserved_bits_set(self, level: u8) -> u64 {
        let mask = match (level, self.ps()) {
            (2, true) => 0x001f_e000,
            (3, true) => 0x3fff_e000,
            (4.., true) => 0x80,
            _ => 0,
        };
        self.into_bits() & mask
    }
}

impl fmt::Display for GuestPte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("P", self.p())
            .field("address", Hex(self.address_page() << 12))
            .field("RW", self.rw())
            .field("US", self.us())
            .field("PWT", self.pwt())
            .field("PCD", self.pcd())
            .field("A", self.a())
            .field("D", self.d())
            .field("PS", self.ps())
            .field("G", self.g())
            .field("XD", self.xd())
            .field("avail[11:9]", self.avail_11_9())
            .field("avail[62:52]", self.avail_62_52())
            .finish()
    }
}
