//! Interrupt Remapping Table Entries (48882 §2.2.5).
//!
//! Three layouts: 32 bits (GAEn=0, table 20), 128 bits with GuestMode=0 (table 21) and 128 bits
//! with GuestMode=1 (table 22, guest virtual APIC).

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fmt::{Always, Hex, List};
use crate::msi::DeliveryMode;

/// Size in bytes of a 32-bit IRTE.
pub const IRTE32_SIZE: u64 = 4;
/// Size in bytes of a 128-bit IRTE.
pub const IRTE128_SIZE: u64 = 16;

/// 32-bit IRTE (CONTROL.GAEn = 0; 48882 §2.2.5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Irte32 {
    /// Bit 0, RemapEn.
    pub remap_en: bool,
    /// Bit 1, SupIOPF: suppress the IO_PAGE_FAULT event of this entry.
    pub sup_iopf: bool,
    /// Bits \[4:2\], IntType: 0 fixed, 1 arbitrated, others reserved.
    #[bits(3)]
    pub int_type: u8,
    /// Bit 5, RqEoi: request EOI from the destination.
    pub rq_eoi: bool,
    /// Bit 6, DM: destination mode, 0 physical, 1 logical.
    pub dm: bool,
    /// Bit 7, GuestMode: must be 0 in this layout.
    pub guest_mode: bool,
    /// Bits \[15:8\], Destination APIC ID.
    pub destination: u8,
    /// Bits \[23:16\], Vector.
    pub vector: u8,
    /// Bits \[31:24\], reserved.
    pub rsvd_31_24: u8,
}

/// Low half of a 128-bit IRTE with GuestMode = 0 (48882 §2.2.5.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Irte128Lo {
    /// Bit 0, RemapEn.
    pub remap_en: bool,
    /// Bit 1, SupIOPF.
    pub sup_iopf: bool,
    /// Bits \[4:2\], IntType.
    #[bits(3)]
    pub int_type: u8,
    /// Bit 5, RqEoi.
    pub rq_eoi: bool,
    /// Bit 6, DM.
    pub dm: bool,
    /// Bit 7, GuestMode: 0 in this layout.
    pub guest_mode: bool,
    /// Bits \[31:8\], Destination\[23:0\]; without XTEn only \[7:0\] count.
    #[bits(24)]
    pub destination_lo: u32,
    /// Bits \[63:32\], reserved.
    pub rsvd_63_32: u32,
}

/// High half of a 128-bit IRTE, both modes (48882 §2.2.5.2, §2.2.5.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Irte128Hi {
    /// Bits \[71:64\], Vector.
    pub vector: u8,
    /// Bits \[75:72\], reserved.
    #[bits(4)]
    pub rsvd_75_72: u8,
    /// Bits \[115:76\]: guest virtual APIC table root \[51:12\] (GuestMode = 1), else reserved.
    #[bits(40)]
    pub ga_root: u64,
    /// Bits \[119:116\], reserved.
    #[bits(4)]
    pub rsvd_119_116: u8,
    /// Bits \[127:120\], Destination\[31:24\]; used with XTEn.
    pub destination_hi: u8,
}

/// Low half of a 128-bit IRTE with GuestMode = 1 (48882 §2.2.5.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Irte128GuestLo {
    /// Bit 0, RemapEn.
    pub remap_en: bool,
    /// Bit 1, SupIOPF.
    pub sup_iopf: bool,
    /// Bit 2, GALogIntr: log to the GA log when the virtual processor is not running.
    pub ga_log_intr: bool,
    /// Bits \[4:3\], reserved.
    #[bits(2)]
    pub rsvd_4_3: u8,
    /// Bit 5, GAPPIDis: needs EFR2.GAPPIDisSup.
    pub ga_ppi_dis: bool,
    /// Bit 6, IsRun: the virtual processor runs on Destination.
    pub is_run: bool,
    /// Bit 7, GuestMode: 1 in this layout.
    pub guest_mode: bool,
    /// Bits \[31:8\], Destination\[23:0\] of the physical processor.
    #[bits(24)]
    pub destination_lo: u32,
    /// Bits \[63:32\], GATag.
    pub ga_tag: u32,
}

impl Irte32 {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xff00_0000;
}

impl Irte128Lo {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_0000_0000;
}

impl Irte128Hi {
    /// Bits without a defined meaning in both modes: \[75:72\] and \[119:116\].
    pub const RESERVED: u64 = 0x00f0_0000_0000_0f00;

    /// The byte address of the guest virtual APIC backing page (GuestMode = 1).
    pub const fn ga_root_address(self) -> u64 {
        self.ga_root() << 12
    }
}

impl Irte128GuestLo {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x0000_0000_0000_0018;
}

/// A 128-bit IRTE whose GuestMode bit says which layout it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Irte128 {
    /// GuestMode = 0.
    Remap(Irte128Lo, Irte128Hi),
    /// GuestMode = 1.
    Guest(Irte128GuestLo, Irte128Hi),
}

impl Irte128 {
    /// Decodes the two words of an entry as they stand in memory, low word first. Never fails.
    pub const fn decode(words: [u64; 2]) -> Self {
        let lo = Irte128Lo::from_bits(words[0]);
        let hi = Irte128Hi::from_bits(words[1]);
        if lo.guest_mode() {
            Self::Guest(Irte128GuestLo::from_bits(words[0]), hi)
        } else {
            Self::Remap(lo, hi)
        }
    }

    /// The two words as they stand in memory, low word first.
    pub const fn words(&self) -> [u64; 2] {
        match self {
            Self::Remap(lo, hi) => [lo.into_bits(), hi.into_bits()],
            Self::Guest(lo, hi) => [lo.into_bits(), hi.into_bits()],
        }
    }

    /// The 32-bit destination APIC ID, Destination\[31:24\] from the high word included.
    pub const fn destination(&self) -> u32 {
        match self {
            Self::Remap(lo, hi) => lo.destination_lo() | (hi.destination_hi() as u32) << 24,
            Self::Guest(lo, hi) => lo.destination_lo() | (hi.destination_hi() as u32) << 24,
        }
    }
}

/// IntType uses the encoding of the MSI delivery mode.
fn int_type(bits: u8) -> Always<DeliveryMode> {
    Always(DeliveryMode::from_bits(bits))
}

impl fmt::Display for Irte32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("RemapEn", self.remap_en())
            .field("SupIOPF", self.sup_iopf())
            .field("type", int_type(self.int_type()))
            .field("RqEoi", self.rq_eoi())
            .field("GuestMode", self.guest_mode())
            .field("vector", Hex(self.vector().into()))
            .field("dest", Hex(self.destination().into()))
            .field("logical", self.dm())
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

impl fmt::Display for Irte128Lo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("RemapEn", self.remap_en())
            .field("SupIOPF", self.sup_iopf())
            .field("type", int_type(self.int_type()))
            .field("RqEoi", self.rq_eoi())
            .field("GuestMode", self.guest_mode())
            .field("dest[23:0]", Hex(self.destination_lo().into()))
            .field("logical", self.dm())
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

impl fmt::Display for Irte128Hi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("vector", Hex(self.vector().into()))
            .field("dest[31:24]", self.destination_hi())
            .field("vAPIC", self.ga_root_address())
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

impl fmt::Display for Irte128GuestLo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("RemapEn", self.remap_en())
            .field("SupIOPF", self.sup_iopf())
            .field("GALogIntr", self.ga_log_intr())
            .field("GAPPIDis", self.ga_ppi_dis())
            .field("IsRun", self.is_run())
            .field("GuestMode", self.guest_mode())
            .field("dest[23:0]", Hex(self.destination_lo().into()))
            .field("GATag", Hex(self.ga_tag().into()))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

impl fmt::Display for Irte128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dest = Hex(self.destination().into());
        match self {
            Self::Remap(lo, hi) => List::new(f)
                .field("RemapEn", lo.remap_en())
                .field("SupIOPF", lo.sup_iopf())
                .field("type", int_type(lo.int_type()))
                .field("RqEoi", lo.rq_eoi())
                .field("vector", Hex(hi.vector().into()))
                .field("dest", dest)
                .field("logical", lo.dm())
                .field("reserved", lo.into_bits() & Irte128Lo::RESERVED)
                // The vAPIC root has no meaning in this mode, so it is reserved as well.
                .field(
                    "reserved[127:64]",
                    hi.into_bits() & (Irte128Hi::RESERVED | 0x000f_ffff_ffff_f000),
                )
                .finish(),
            Self::Guest(lo, hi) => List::new(f)
                .field("RemapEn", lo.remap_en())
                .field("SupIOPF", lo.sup_iopf())
                .field("GALogIntr", lo.ga_log_intr())
                .field("GAPPIDis", lo.ga_ppi_dis())
                .field("IsRun", lo.is_run())
                .field("GuestMode", true)
                .field("vector", Hex(hi.vector().into()))
                .field("dest", dest)
                .field("GATag", Hex(lo.ga_tag().into()))
                .field("vAPIC", Hex(hi.ga_root_address()))
                .field("reserved", lo.into_bits() & Irte128GuestLo::RESERVED)
                .field("reserved[127:64]", hi.into_bits() & Irte128Hi::RESERVED)
                .finish(),
        }
    }
}
