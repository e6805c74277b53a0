//! Peripheral page request log and guest virtual APIC log entries (48882 §2.6, §2.7).

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fmt::{Always, Hex, List};
use crate::id::DeviceId;

/// Size in bytes of a GA log entry.
pub const GA_LOG_ENTRY_SIZE: u64 = 8;

/// GA log entry (8 bytes).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GaLogEntry {
    /// Bits \[31:0\], GATag of the IRTE.
    pub ga_tag: u32,
    /// Bits \[47:32\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:48\], reserved.
    #[bits(12)]
    pub rsvd_59_48: u16,
    /// Bits \[63:60\], code: 1 = GUEST_NR, 0 = not yet written.
    #[bits(4)]
    pub code: u8,
}

impl GaLogEntry {
    /// Code of a "guest not running" entry.
    pub const GUEST_NR: u8 = 1;
}

impl fmt::Display for GaLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List::new(f);
        match self.code() {
            Self::GUEST_NR => list.word("GUEST_NR"),
            code => list.field("code", Always(code)),
        };
        list.field("device", Always(DeviceId(self.device_id())))
            .field("tag", Hex(self.ga_tag().into()))
            .field("reserved", self.rsvd_59_48())
            .finish()
    }
}

/// Size in bytes of a PPR log entry.
pub const PPR_LOG_ENTRY_SIZE: u64 = 16;

/// PPR log entry (16 bytes): a page request of a device (48882 §2.6).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PprLogEntry {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], PASID\[15:0\].
    pub pasid_15_0: u16,
    /// Bits \[40:32\], Tag: page request group index.
    #[bits(9)]
    pub tag: u16,
    /// Bit 41, LastPage: the last request of its group.
    pub last_page: bool,
    /// Bits \[45:42\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[48:46\], reserved.
    #[bits(3)]
    pub rsvd_48_46: u8,
    /// Bit 49, EXEC: execution requested.
    pub exec: bool,
    /// Bit 50, READ: read requested.
    pub read: bool,
    /// Bits \[52:51\], reserved.
    #[bits(2)]
    pub rsvd_52_51: u8,
    /// Bit 53, WRITE: write requested.
    pub write: bool,
    /// Bit 54, US: user privilege.
    pub us: bool,
    /// Bit 55, RSVD: a reserved bit was set in a page table entry.
    pub rz: bool,
    /// Bit 56, GN: the PASID is valid.
    pub gn: bool,
    /// Bits \[59:57\], reserved.
    #[bits(3)]
    pub rsvd_59_57: u8,
    /// Bits \[63:60\], code: 1 = page request, 0 = not yet written.
    #[bits(4, default = Self::PAGE_REQUEST)]
    pub code: u8,
    /// Bits \[75:64\], reserved.
    #[bits(12)]
    pub rsvd_75_64: u16,
    /// Bits \[127:76\], address \[63:12\] of the page.
    #[bits(52)]
    pub address_page: u64,
}

impl PprLogEntry {
    /// Code of a page request.
    pub const PAGE_REQUEST: u8 = 1;
    /// Bits without a defined meaning.
    pub const RESERVED: u128 = 0x00000000_00000fff_0e19c000_00000000;

    /// The PASID, assembled from its two fields.
    pub const fn pasid(self) -> u32 {
        (self.pasid_19_16() as u32) << 16 | self.pasid_15_0() as u32
    }

    /// Sets both PASID fields; bits above 19 are dropped.
    #[must_use]
    pub const fn with_pasid(self, pasid: u32) -> Self {
        self.with_pasid_19_16((pasid >> 16) as u8 & 0xf)
            .with_pasid_15_0(pasid as u16)
    }

    /// The entry from its two words as they stand in memory, low word first.
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self::from_bits(words[0] as u128 | (words[1] as u128) << 64)
    }

    /// The two words as they stand in memory, low word first.
    pub const fn words(self) -> [u64; 2] {
        [self.into_bits() as u64, (self.into_bits() >> 64) as u64]
    }
}

impl fmt::Display for PprLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List::new(f);
        match self.code() {
            Self::PAGE_REQUEST => list.word("PAGE_REQUEST"),
            code => list.field("code", Always(code)),
        };
        list.field("device", Always(DeviceId(self.device_id())))
            .field_if(self.gn(), "pasid", Hex(self.pasid().into()))
            .field("address", Hex(self.address_page() << 12))
            .field("tag", Hex(self.tag().into()))
            .field("LastPage", self.last_page())
            .field("READ", self.read())
            .field("WRITE", self.write())
            .field("EXEC", self.exec())
            .field("US", self.us())
            .field("RSVD", self.rz())
            .field("GN", self.gn())
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}
