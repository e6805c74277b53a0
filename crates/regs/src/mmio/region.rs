//! Registers that describe address ranges: exclusion, completion store, MARC, GA log tail address.

// The generated `*_checked` setters return `Result<_, ()>`; clippy reports that only for structs
// that come out of a macro, as `page_register!` makes them here.
#![allow(clippy::result_unit_err)]

use core::fmt;

use bitfield_struct::bitfield;

use crate::fmt::{Hex, List, display_fields};

/// Exclusion Base, MMIO 0020h (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExclusionBase {
    /// Bit 0, ExEn: the exclusion range is active.
    pub ex_en: bool,
    /// Bit 1, Allow: every device may use the range; 0: only devices with DTE.EX = 1.
    pub allow: bool,
    /// Bits \[11:2\], reserved.
    #[bits(10)]
    pub rsvd_11_2: u16,
    /// Bits \[51:12\], base as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl ExclusionBase {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0ffc;

    /// The first byte of the range.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }
}

impl fmt::Display for ExclusionBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("ExEn", self.ex_en())
            .field("Allow", self.allow())
            .field("base", Hex(self.address()))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

macro_rules! page_register {
    ($(#[$doc:meta])* $name:ident, $field:ident, $what:literal) => {
        $(#[$doc])*
        #[bitfield(u64)]
        #[derive(PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name {
            /// Bits \[11:0\], reserved.
            #[bits(12)]
            pub rsvd_11_0: u16,
            #[doc = concat!("Bits \\[51:12\\], ", $what, " as a page number.")]
            #[bits(40)]
            pub $field: u64,
            /// Bits \[63:52\], reserved.
            #[bits(12)]
            pub rsvd_63_52: u16,
        }

        impl $name {
            /// Bits without a defined meaning.
            pub const RESERVED: u64 = 0xfff0_0000_0000_0fff;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                List::new(f)
                    .field($what, Hex(self.$field() << 12))
                    .field("reserved", self.into_bits() & Self::RESERVED)
                    .finish()
            }
        }
    };
}

page_register!(
    /// Exclusion Limit, MMIO 0028h (48882 §3.4). The limit is inclusive: its last page belongs
    /// to the range, bits \[11:0\] count as ones.
    ExclusionLimit,
    limit_page,
    "limit"
);

impl ExclusionLimit {
    /// The last byte of the range.
    pub const fn last(self) -> u64 {
        self.limit_page() << 12 | 0xfff
    }
}

page_register!(
    /// Completion Store Base, MMIO 0020h when SNP is on (48882 §3.4): COMPLETION_WAIT may store
    /// only into the range.
    CompletionStoreBase,
    base_page,
    "base"
);

page_register!(
    /// Completion Store Limit, MMIO 0028h when SNP is on (48882 §3.4): inclusive, so that
    /// base = limit stands for one page.
    CompletionStoreLimit,
    limit_page,
    "limit"
);

page_register!(
    /// Memory access routing and control (MARC) aperture base, MMIO 0200h + 18h·n
    /// (48882 §3.4).
    MarcBase,
    base_page,
    "base"
);

page_register!(
    /// MARC aperture length, MMIO 0210h + 18h·n (48882 §3.4).
    MarcLength,
    length_pages,
    "length"
);

/// MARC aperture relocation, MMIO 0208h + 18h·n (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MarcRelocation {
    /// Bit 0, RelocEn: the aperture is active.
    pub reloc_en: bool,
    /// Bit 1, ReadOnly.
    pub read_only: bool,
    /// Bits \[11:2\], reserved.
    #[bits(10)]
    pub rsvd_11_2: u16,
    /// Bits \[51:12\], relocation address as a page number.
    #[bits(40)]
    pub address_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl MarcRelocation {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0ffc;
}

impl fmt::Display for MarcRelocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("RelocEn", self.reloc_en())
            .field("ReadOnly", self.read_only())
            .field("address", Hex(self.address_page() << 12))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

/// Guest Virtual APIC Log Tail Address, MMIO 00E8h (48882 §3.4): where hardware keeps a copy of
/// the GA log's tail pointer.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GaLogTailAddress {
    /// Bits \[2:0\], reserved.
    #[bits(3)]
    pub rsvd_2_0: u8,
    /// Bits \[51:3\], address of the 8-byte location, in units of 8 bytes.
    #[bits(49)]
    pub address_8: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl GaLogTailAddress {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0007;

    /// The byte address.
    pub const fn address(self) -> u64 {
        self.address_8() << 3
    }
}

display_fields!(GaLogTailAddress, reserved GaLogTailAddress::RESERVED, {
    "address": address as Hex,
});
