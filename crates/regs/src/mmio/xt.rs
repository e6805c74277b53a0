use bitfield_struct::bitfield;

use crate::fmt::display_fields;

/// XT interrupt control: general 0170h, PPR 0178h, GA log 0180h (48882 §3.4.10).
///
/// Used for the IOMMU's own interrupts when CONTROL.IntCapXTEn = 1; never remapped.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct XtInterruptControl {
    /// Bits \[1:0\], reserved.
    #[bits(2)]
    pub rsvd_1_0: u8,
    /// Bit 2, DestMode: 0 physical, 1 logical.
    pub dest_mode: bool,
    /// Bits \[7:3\], reserved.
    #[bits(5)]
    pub rsvd_7_3: u8,
    /// Bits \[31:8\], Destination\[23:0\].
    #[bits(24)]
    pub destination_lo: u32,
    /// Bits \[39:32\], Vector.
    pub vector: u8,
    /// Bit 40, delivery mode: 0 fixed, 1 arbitrated.
    pub delivery_mode: bool,
    /// Bits \[55:41\], reserved.
    #[bits(15)]
    pub rsvd_55_41: u16,
    /// Bits \[63:56\], Destination\[31:24\].
    pub destination_hi: u8,
}

impl XtInterruptControl {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x00ff_fe00_0000_00fb;
    /// The 32-bit destination APIC ID.
    pub const fn destination(self) -> u32 {
        self.destination_lo() | (self.destination_hi() as u32) << 24
    }
}

impl XtInterruptControl {
    /// Sets both destination fields from a 32-bit APIC ID.
    #[must_use]
    pub const fn with_destination(self, apic_id: u32) -> Self {
        self.with_destination_lo(apic_id & 0xff_ffff)
            .with_destination_hi((apic_id >> 24) as u8)
    }
}

display_fields!(XtInterruptControl, reserved XtInterruptControl::RESERVED, {
    "Vector": vector,
    "Destination": destination,
    "logical": dest_mode,
    "arbitrated": delivery_mode,
});
