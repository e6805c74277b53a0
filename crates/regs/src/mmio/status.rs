use bitfield_struct::bitfield;

/// IOMMU Status Register, MMIO 2020h (48882 §3.4.15).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
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
    /// Bits that software clears by writing 1.
    pub const RW1C: u64 = 0x6_8e67;
    /// Bits that only hardware changes.
    pub const RO: u64 = 0x1_1198;
}
