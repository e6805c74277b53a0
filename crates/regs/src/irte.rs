//! Interrupt Remapping Table Entries (48882 §2.2.5).
//!
//! Three layouts: 32 bits (GAEn=0, table 20), 128 bits with GuestMode=0 (table 21) and 128 bits
//! with GuestMode=1 (table 22, guest virtual APIC).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size in bytes of a 32-bit IRTE.
pub const IRTE32_SIZE: u64 = 4;
/// Size in bytes of a 128-bit IRTE.
pub const IRTE128_SIZE: u64 = 16;

/// 32-bit IRTE (CONTROL.GAEn = 0; 48882 §2.2.5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
