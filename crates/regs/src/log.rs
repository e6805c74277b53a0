//! Peripheral page request log and guest virtual APIC log entries (48882 §2.6, §2.7).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size in bytes of a GA log entry.
pub const GA_LOG_ENTRY_SIZE: u64 = 8;

/// GA log entry (8 bytes).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
