//! Hardware events, SMI filters, device-specific registers, PPR tuning, vIOMMU status.

use bitfield_struct::bitfield;

use crate::fmt::{Always, Hex, display_fields};

/// Hardware Event Upper, MMIO 0040h (48882 §3.4): the code and the first operand.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HardwareEventUpper {
    /// Bits \[59:0\], first operand: bits \[59:0\] of the event.
    #[bits(60)]
    pub first_operand: u64,
    /// Bits \[63:60\], EventCode.
    #[bits(4)]
    pub event_code: u8,
}

impl HardwareEventUpper {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0;
}

display_fields!(HardwareEventUpper, reserved HardwareEventUpper::RESERVED, {
    "EventCode": event_code,
    "operand": first_operand,
});

/// Hardware Event Lower, MMIO 0048h (48882 §3.4): the second operand.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HardwareEventLower {
    /// Bits \[63:0\], second operand: bits \[127:64\] of the event, an address.
    pub second_operand: u64,
}

impl HardwareEventLower {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0;
}

display_fields!(HardwareEventLower, reserved HardwareEventLower::RESERVED, {
    "operand": second_operand as Hex,
});

impl HardwareEventUpper {
    /// The two registers that hold an event, given as its two words, low word first.
    pub const fn from_event(words: [u64; 2]) -> (Self, HardwareEventLower) {
        (
            Self::from_bits(words[0]),
            HardwareEventLower::from_bits(words[1]),
        )
    }

    /// The two words of the event that this register and `lower` hold, low word first.
    pub const fn event(self, lower: HardwareEventLower) -> [u64; 2] {
        [self.into_bits(), lower.into_bits()]
    }
}

/// Hardware Event Status, MMIO 0050h (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HardwareEventStatus {
    /// Bit 0, HEV (RW1C): the upper and lower registers hold an event.
    pub hev: bool,
    /// Bit 1, HEO (RW1C): a further event was lost; meaningful with HEV = 1.
    pub heo: bool,
    /// Bits \[63:2\], reserved.
    #[bits(62)]
    pub rsvd_63_2: u64,
}

impl HardwareEventStatus {
    /// Bits that software clears by writing 1.
    pub const RW1C: u64 = 3;
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_ffff_fffc;
}

display_fields!(HardwareEventStatus, reserved HardwareEventStatus::RESERVED, {
    "HEV": hev,
    "HEO": heo,
});

/// SMI Filter n, MMIO 0060h + 8n (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SmiFilter {
    /// Bits \[15:0\], SmiDid: the DeviceID whose SMIs pass.
    pub smi_did: u16,
    /// Bit 16, SmiDV: SmiDid is valid.
    pub smi_dv: bool,
    /// Bit 17, SmiFLock: the register is locked until reset.
    pub smi_f_lock: bool,
    /// Bits \[63:18\], reserved.
    #[bits(46)]
    pub rsvd_63_18: u64,
}

impl SmiFilter {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_fffc_0000;
}

display_fields!(SmiFilter, reserved SmiFilter::RESERVED, {
    "SmiDid": smi_did as Always,
    "SmiDV": smi_dv,
    "SmiFLock": smi_f_lock,
});

/// The device-specific registers DSFX 0138h (RO), DSCX 0140h and DSSX 0148h (48882 §3.4), which
/// share one layout.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceSpecific {
    /// Bits \[23:0\], implementation specific.
    #[bits(24)]
    pub implementation: u32,
    /// Bits \[27:24\], RevMinor.
    #[bits(4)]
    pub rev_minor: u8,
    /// Bits \[31:28\], RevMajor.
    #[bits(4)]
    pub rev_major: u8,
    /// Bits \[63:32\], reserved.
    pub rsvd_63_32: u32,
}

impl DeviceSpecific {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_0000_0000;
}

display_fields!(DeviceSpecific, reserved DeviceSpecific::RESERVED, {
    "RevMajor": rev_major,
    "RevMinor": rev_minor,
    "implementation": implementation,
});

/// Performance Optimization Control, MMIO 016Ch, 32 bits (48882 §3.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PerformanceOptimization {
    /// Bits \[12:0\], reserved.
    #[bits(13)]
    pub rsvd_12_0: u16,
    /// Bit 13, PerfOptEn.
    pub perf_opt_en: bool,
    /// Bits \[31:14\], reserved.
    #[bits(18)]
    pub rsvd_31_14: u32,
}

impl PerformanceOptimization {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xffff_dfff;
}

display_fields!(PerformanceOptimization, reserved PerformanceOptimization::RESERVED, {
    "PerfOptEn": perf_opt_en,
});

/// vIOMMU Status, MMIO 0190h. No public source names its fields, so it is kept as one word.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ViommuStatus {
    /// Bits \[63:0\], the raw value.
    pub raw: u64,
}

impl ViommuStatus {
    /// Bits without a defined meaning: unknown, so none is claimed to be reserved.
    pub const RESERVED: u64 = 0;
}

display_fields!(ViommuStatus, reserved ViommuStatus::RESERVED, {
    "raw": raw as Hex,
});

/// PPR Log Auto Response, MMIO 2080h (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PprAutoResponse {
    /// Bits \[3:0\], AutoRespCode: the response code, as in COMPLETE_PPR_REQUEST.
    #[bits(4)]
    pub auto_resp_code: u8,
    /// Bit 4, MaskGen.
    pub mask_gen: bool,
    /// Bits \[63:5\], reserved.
    #[bits(59)]
    pub rsvd_63_5: u64,
}

impl PprAutoResponse {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_ffff_ffe0;
}

display_fields!(PprAutoResponse, reserved PprAutoResponse::RESERVED, {
    "AutoRespCode": auto_resp_code as Always,
    "MaskGen": mask_gen,
});

/// PPR Log Overflow Early Indicator, MMIO 2088h (log A) and 2090h (log B) (48882 §3.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PprOverflowEarly {
    /// Bits \[14:0\], Threshold, in entries.
    #[bits(15)]
    pub threshold: u16,
    /// Bits \[29:15\], reserved.
    #[bits(15)]
    pub rsvd_29_15: u16,
    /// Bit 30, IntEn: interrupt when the threshold is reached.
    pub int_en: bool,
    /// Bit 31, En: the indicator is active.
    pub en: bool,
    /// Bits \[63:32\], reserved.
    pub rsvd_63_32: u32,
}

impl PprOverflowEarly {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_3fff_8000;
}

display_fields!(PprOverflowEarly, reserved PprOverflowEarly::RESERVED, {
    "Threshold": threshold,
    "IntEn": int_en,
    "En": en,
});
