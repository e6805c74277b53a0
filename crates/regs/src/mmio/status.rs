use bitfield_struct::bitfield;

use crate::fmt::display_fields;

/// IOMMU Status Register, MMIO 2020h (48882 §3.4.15).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Status {
    /// Bit 0, EventOverflow (RW1C).
    pub event_overflow: bool,
    /// Bit 1, EventLogInt (RW1C).
    pub event_log_int: bool,
    /// Bit 2, ComWaitInt (RW1C).
    pub com_wait_int: bool,
    /// Bit 3, EventLogRun (RO).
    pub event_log_run: bool,
    /// Bit 4, CmdBufRun (RO).
    pub cmd_buf_run: bool,
    /// Bit 5, PPROverflow (RW1C).
    pub ppr_overflow: bool,
    /// Bit 6, PPRInt (RW1C).
    pub ppr_int: bool,
    /// Bit 7, PPRLogRun (RO).
    pub ppr_log_run: bool,
    /// Bit 8, GALogRun (RO).
    pub ga_log_run: bool,
    /// Bit 9, GALOverflow (RW1C).
    pub gal_overflow: bool,
    /// Bit 10, GAInt (RW1C).
    pub ga_int: bool,
    /// Bit 11, PPROverflowB (RW1C).
    pub ppr_overflow_b: bool,
    /// Bit 12, PPRLogActive (RO): 0 log A, 1 log B.
    pub ppr_log_active: bool,
    /// Bits \[14:13\], reserved.
    #[bits(2)]
    pub rsvd_14_13: u8,
    /// Bit 15, EvtOverflowB (RW1C).
    pub evt_overflow_b: bool,
    /// Bit 16, EvtLogActive (RO): 0 log A, 1 log B.
    pub evt_log_active: bool,
    /// Bit 17, PPROvrflwEarlyB (RW1C).
    pub ppr_ovrflw_early_b: bool,
    /// Bit 18, PPROvrflwEarly (RW1C).
    pub ppr_ovrflw_early: bool,
    /// Bits \[63:19\], reserved.
    #[bits(45)]
    pub rsvd_63_19: u64,
}

impl Status {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_fff8_6000;
    /// Bits that software clears by writing 1.
    pub const RW1C: u64 = 0x6_8e67;
    /// Bits that only hardware changes.
    pub const RO: u64 = 0x1_1198;
}

display_fields!(Status, reserved Status::RESERVED, {
    "EventOverflow": event_overflow,
    "EventLogInt": event_log_int,
    "ComWaitInt": com_wait_int,
    "EventLogRun": event_log_run,
    "CmdBufRun": cmd_buf_run,
    "PPROverflow": ppr_overflow,
    "PPRInt": ppr_int,
    "PPRLogRun": ppr_log_run,
    "GALogRun": ga_log_run,
    "GALOverflow": gal_overflow,
    "GAInt": ga_int,
    "PPROverflowB": ppr_overflow_b,
    "PPRLogActive": ppr_log_active,
    "EvtOverflowB": evt_overflow_b,
    "EvtLogActive": evt_log_active,
    "PPROvrflwEarlyB": ppr_ovrflw_early_b,
    "PPROvrflwEarly": ppr_ovrflw_early,
});
