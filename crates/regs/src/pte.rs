//! Host (v1) page directory and page table entries (48882 §2.2.3): 64 bits at every level.

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fmt::{Always, Hex, List};

/// Entries in a table of any level but the top one of a six-level walk, which uses 128.
pub const TABLE_ENTRIES: u64 = 512;
/// The highest level of a walk.
pub const MAX_LEVEL: u8 = 6;

/// log2 of the bytes that one entry of a table at `level` (1–6) covers; `None` for other levels.
///
/// Level 1: 12, 2: 21, 3: 30, 4: 39, 5: 48, 6: 57.
pub const fn level_shift(level: u8) -> Option<u32> {
    if level >= 1 && level <= MAX_LEVEL {
        Some(12 + 9 * (level as u32 - 1))
    } else {
        None
    }
}

/// The index of `iova` in a table at `level` (1–6): nine bits, seven at level 6; `None` for other
/// levels.
pub const fn table_index(iova: u64, level: u8) -> Option<u64> {
    match level_shift(level) {
        Some(shift) => Some((iova >> shift) & (TABLE_ENTRIES - 1)),
        None => None,
    }
}

/// Number of IOVA bits that a table with `mode` levels (DTE.Mode) covers: 12 + 9·mode, 64 for mode
/// 6; `None` for mode 0 (no table) and 7 (reserved).
pub const fn iova_bits(mode: u8) -> Option<u32> {
    match level_shift(mode) {
        Some(shift) if mode < MAX_LEVEL => Some(shift + 9),
        Some(_) => Some(64),
        None => None,
    }
}

/// One entry of a host page table: a PDE when NextLevel is 1–6, else a PTE.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostPte {
    /// Bit 0, PR: present.
    pub pr: bool,
    /// Bits \[4:1\], ignored.
    #[bits(4)]
    pub ignored_4_1: u8,
    /// Bit 5, A: accessed (with HASup).
    pub a: bool,
    /// Bit 6, D: dirty (PTE, with HDSup); ignored in a PDE.
    pub d: bool,
    /// Bits \[8:7\], ignored.
    #[bits(2)]
    pub ignored_8_7: u8,
    /// Bits \[11:9\], NextLevel: 1–6 level of the next table; 0 leaf of this level's default size;
    /// 7 leaf whose size is encoded in the address.
    #[bits(3)]
    pub next_level: u8,
    /// Bits \[51:12\], table or page address as a page number.
    #[bits(40)]
    pub address_page: u64,
    /// Bits \[56:52\], reserved.
    #[bits(5)]
    pub rsvd_56_52: u8,
    /// Bits \[58:57\], PMC: cache attribute (PTE); reserved in a PDE and in older revisions.
    #[bits(2)]
    pub pmc: u8,
    /// Bit 59, U: untranslated access only (PTE); reserved in a PDE.
    pub u: bool,
    /// Bit 60, FC: force coherent (PTE); reserved in a PDE.
    pub fc: bool,
    /// Bit 61, IR: read permission.
    pub ir: bool,
    /// Bit 62, IW: write permission.
    pub iw: bool,
    /// Bit 63, ignored.
    pub ignored_63: bool,
}

impl HostPte {
    /// NextLevel of a leaf of the level's default size.
    pub const NEXT_LEVEL_LEAF: u8 = 0;
    /// NextLevel of a leaf whose size is encoded in the address.
    pub const NEXT_LEVEL_SIZED: u8 = 7;

    /// Address bits \[51:12\].
    pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
    /// Bits that must be zero in a PDE: \[60:52\].
    pub const PDE_RESERVED: u64 = 0x1ff0_0000_0000_0000;
    /// Bits that must be zero in a PTE: \[56:52\].
    pub const PTE_RESERVED: u64 = 0x01f0_0000_0000_0000;
    /// Bits that must be zero in a PTE of a revision without PMC: \[58:52\].
    pub const PTE_RESERVED_WITHOUT_PMC: u64 = 0x07f0_0000_0000_0000;

    /// Whether NextLevel makes this a leaf (PTE) rather than a PDE.
    pub const fn is_leaf(self) -> bool {
        matches!(
            self.next_level(),
            Self::NEXT_LEVEL_LEAF | Self::NEXT_LEVEL_SIZED
        )
    }

    /// The byte address as it stands, size bits of a sized leaf included.
    pub const fn address(self) -> u64 {
        self.address_page() << 12
    }

    /// The bits that are set although the layout, PDE or PTE by NextLevel, reserves them.
    pub const fn reserved_bits_set(self) -> u64 {
        let mask = if self.is_leaf() {
            Self::PTE_RESERVED
        } else {
            Self::PDE_RESERVED
        };
        self.into_bits() & mask
    }

    /// log2 of the page size that the address of a sized leaf (NextLevel = 7) encodes: k + 1, where
    /// k is the lowest zero bit at or above bit 12. 13–53; bit 52 counts as zero.
    pub const fn encoded_page_shift(self) -> u32 {
        self.address_page().trailing_ones() + 12 + 1
    }

    /// log2 of the page size of a leaf found in a table at `level` (1–6).
    ///
    /// `None` if this is no leaf, the level does not exist, or an encoded size is not between the
    /// default sizes of this level and the next (exclusive).
    pub const fn page_shift(self, level: u8) -> Option<u32> {
        let Some(default) = level_shift(level) else {
            return None;
        };
        match self.next_level() {
            Self::NEXT_LEVEL_LEAF => Some(default),
            Self::NEXT_LEVEL_SIZED => {
                let shift = self.encoded_page_shift();
                if shift > default && shift < default + 9 {
                    Some(shift)
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    /// The byte address of the page of a leaf at `level`, size bits and other bits below the size
    /// cleared; `None` as for [`HostPte::page_shift`].
    pub const fn page_address(self, level: u8) -> Option<u64> {
        match self.page_shift(level) {
            Some(shift) => Some(self.address() & !((1u64 << shift) - 1)),
            None => None,
        }
    }

    /// A present leaf for a page of 2^`shift` bytes at `address` in a table at `level`, without
    /// permissions. A size above the level's default is encoded with NextLevel = 7, and the caller
    /// writes the entry to each of the 2^(`shift` − default) slots that the page covers.
    ///
    /// Bits of `address` outside \[51:`shift`\] are dropped. `None` if the level does not exist or
    /// has no page of that size.
    pub const fn leaf(address: u64, level: u8, shift: u32) -> Option<Self> {
        let Some(default) = level_shift(level) else {
            return None;
        };
        // A sized page needs its lowest zero bit, shift − 1, inside the address field.
        if shift < default || shift >= default + 9 || shift > 52 {
            return None;
        }
        let aligned = address & Self::ADDRESS_MASK & !((1u64 << shift) - 1);
        let entry = Self::new().with_pr(true);
        Some(if shift == default {
            entry.with_address_page(aligned >> 12)
        } else {
            let size_bits = (1u64 << (shift - 1)) - 1;
            entry
                .with_next_level(Self::NEXT_LEVEL_SIZED)
                .with_address_page((aligned | size_bits) >> 12)
        })
    }

    /// A present PDE that points to the table at `address` of level `next_level` (1–6), without
    /// permissions; `None` for other levels. Bits of `address` outside \[51:12\] are dropped.
    pub const fn table(address: u64, next_level: u8) -> Option<Self> {
        if level_shift(next_level).is_none() {
            return None;
        }
        Some(
            Self::new()
                .with_pr(true)
                .with_next_level(next_level)
                .with_address_page((address & Self::ADDRESS_MASK) >> 12),
        )
    }
}

impl fmt::Display for HostPte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.is_leaf();
        let sized = self.next_level() == Self::NEXT_LEVEL_SIZED;
        let page = self.address() & !((1u64 << self.encoded_page_shift()) - 1);
        let shift = self.encoded_page_shift();
        List::new(f)
            .field("PR", self.pr())
            .field_if(!leaf, "table", Hex(self.address()))
            .field_if(!leaf, "next", self.next_level())
            .field_if(leaf && sized, "page", Hex(page))
            .field_if(leaf && sized, "size", Always(format_args!("2^{shift}")))
            .field_if(leaf && !sized, "page", Hex(self.address()))
            .field("A", self.a())
            .field_if(leaf, "D", self.d())
            .field_if(leaf, "PMC", self.pmc())
            .field_if(leaf, "U", self.u())
            .field_if(leaf, "FC", self.fc())
            .field("IR", self.ir())
            .field("IW", self.iw())
            .field("reserved", self.reserved_bits_set())
            .finish()
    }
}
