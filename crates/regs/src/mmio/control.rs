use bitfield_struct::bitfield;

use crate::fmt::display_fields;

/// IOMMU Control Register, MMIO 0018h (48882 §3.4.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Control {
    /// Bit 0, IommuEn: master enable.
    pub iommu_en: bool,
    /// Bit 1, HtTunEn: translate HyperTransport tunnel traffic.
    pub ht_tun_en: bool,
    /// Bit 2, EventLogEn.
    pub event_log_en: bool,
    /// Bit 3, EventIntEn.
    pub event_int_en: bool,
    /// Bit 4, ComWaitIntEn.
    pub com_wait_int_en: bool,
    /// Bits \[7:5\], InvTimeOut: 0 none, 1–6 = 1 ms…100 s, 7 reserved.
    #[bits(3)]
    pub inv_time_out: u8,
    /// Bit 8, PassPW.
    pub pass_pw: bool,
    /// Bit 9, ResPassPW.
    pub res_pass_pw: bool,
    /// Bit 10, Coherent; reset value 1.
    pub coherent: bool,
    /// Bit 11, Isoc.
    pub isoc: bool,
    /// Bit 12, CmdBufEn.
    pub cmd_buf_en: bool,
    /// Bit 13, PPRLogEn.
    pub ppr_log_en: bool,
    /// Bit 14, PPRIntEn.
    pub ppr_int_en: bool,
    /// Bit 15, PPREn.
    pub ppr_en: bool,
    /// Bit 16, GTEn.
    pub gt_en: bool,
    /// Bit 17, GAEn: 128-bit IRTEs.
    pub ga_en: bool,
    /// Bits \[21:18\], CRW: no public meaning.
    #[bits(4)]
    pub crw: u8,
    /// Bit 22, SmiFEn.
    pub smi_f_en: bool,
    /// Bit 23, SlfWBdis.
    pub slf_wb_dis: bool,
    /// Bit 24, SmiFLogEn.
    pub smi_f_log_en: bool,
    /// Bits \[27:25\], GAMEn: 0 = GM0, 1 = GM1 (guest virtual APIC).
    #[bits(3)]
    pub gam_en: u8,
    /// Bit 28, GALogEn.
    pub ga_log_en: bool,
    /// Bit 29, GAIntEn.
    pub ga_int_en: bool,
    /// Bits \[31:30\], DualPprLogEn.
    #[bits(2)]
    pub dual_ppr_log_en: u8,
    /// Bits \[33:32\], DualEventLogEn.
    #[bits(2)]
    pub dual_event_log_en: u8,
    /// Bits \[36:34\], DevTblSegEn: log2 of the device table segments.
    #[bits(3)]
    pub dev_tbl_seg_en: u8,
    /// Bits \[38:37\], PrivAbrtEn.
    #[bits(2)]
    pub priv_abrt_en: u8,
    /// Bit 39, PprAutoRspEn.
    pub ppr_auto_rsp_en: bool,
    /// Bit 40, MarcEn.
    pub marc_en: bool,
    /// Bit 41, BlkStopMrkEn.
    pub blk_stop_mrk_en: bool,
    /// Bit 42, PprAutoRspAon.
    pub ppr_auto_rsp_aon: bool,
    /// Bits \[44:43\], NumIntRemapMode: 00b 512, 01b 2048 interrupts per function.
    #[bits(2)]
    pub num_int_remap_mode: u8,
    /// Bit 45, EPHEn.
    pub eph_en: bool,
    /// Bits \[47:46\], HADUpdate.
    #[bits(2)]
    pub had_update: u8,
    /// Bit 48, GDUpdateDis.
    pub gd_update_dis: bool,
    /// Bit 49, reserved.
    pub rsvd_49: bool,
    /// Bit 50, XTEn: 32-bit destinations; needs GAEn.
    pub xt_en: bool,
    /// Bit 51, IntCapXTEn: the XT interrupt control registers replace MSI.
    pub int_cap_xt_en: bool,
    /// Bit 52, vCmdEn.
    pub v_cmd_en: bool,
    /// Bit 53, vIommuEn.
    pub v_iommu_en: bool,
    /// Bit 54, GAUpdateDis.
    pub ga_update_dis: bool,
    /// Bit 55, GAPPIEn.
    pub ga_ppi_en: bool,
    /// Bit 56, TMPMEn.
    pub tmpm_en: bool,
    /// Bit 57, reserved.
    pub rsvd_57: bool,
    /// Bit 58, GCR3TRPMode: the DTE's GCR3 root is a guest physical address.
    pub gcr3_trp_mode: bool,
    /// Bit 59, IRTCacheDis.
    pub irt_cache_dis: bool,
    /// Bit 60, GstBufferTRPMode.
    pub gst_buffer_trp_mode: bool,
    /// Bits \[63:61\], SNPAVICEn.
    #[bits(3)]
    pub snp_avic_en: u8,
}

impl Control {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x0202_0000_0000_0000;
    /// NumIntRemapMode value for 2048 interrupts per function.
    pub const NUM_INT_REMAP_2K: u8 = 1;
    /// Value after reset: Coherent = 1.
    pub const RESET: Self = Self::new().with_coherent(true);
}

display_fields!(Control, reserved Control::RESERVED, {
    "IommuEn": iommu_en,
    "HtTunEn": ht_tun_en,
    "EventLogEn": event_log_en,
    "EventIntEn": event_int_en,
    "ComWaitIntEn": com_wait_int_en,
    "InvTimeOut": inv_time_out,
    "PassPW": pass_pw,
    "ResPassPW": res_pass_pw,
    "Coherent": coherent,
    "Isoc": isoc,
    "CmdBufEn": cmd_buf_en,
    "PPRLogEn": ppr_log_en,
    "PPRIntEn": ppr_int_en,
    "PPREn": ppr_en,
    "GTEn": gt_en,
    "GAEn": ga_en,
    "CRW": crw,
    "SmiFEn": smi_f_en,
    "SlfWBdis": slf_wb_dis,
    "SmiFLogEn": smi_f_log_en,
    "GAMEn": gam_en,
    "GALogEn": ga_log_en,
    "GAIntEn": ga_int_en,
    "DualPprLogEn": dual_ppr_log_en,
    "DualEventLogEn": dual_event_log_en,
    "DevTblSegEn": dev_tbl_seg_en,
    "PrivAbrtEn": priv_abrt_en,
    "PprAutoRspEn": ppr_auto_rsp_en,
    "MarcEn": marc_en,
    "BlkStopMrkEn": blk_stop_mrk_en,
    "PprAutoRspAon": ppr_auto_rsp_aon,
    "NumIntRemapMode": num_int_remap_mode,
    "EPHEn": eph_en,
    "HADUpdate": had_update,
    "GDUpdateDis": gd_update_dis,
    "XTEn": xt_en,
    "IntCapXTEn": int_cap_xt_en,
    "vCmdEn": v_cmd_en,
    "vIommuEn": v_iommu_en,
    "GAUpdateDis": ga_update_dis,
    "GAPPIEn": ga_ppi_en,
    "TMPMEn": tmpm_en,
    "GCR3TRPMode": gcr3_trp_mode,
    "IRTCacheDis": irt_cache_dis,
    "GstBufferTRPMode": gst_buffer_trp_mode,
    "SNPAVICEn": snp_avic_en,
});

impl Control {
    /// InvTimeOut in milliseconds: 1 ms to 100 s; `None` for no timeout (0) and the reserved value 7.
    pub const fn inv_time_out_ms(self) -> Option<u32> {
        match self.inv_time_out() {
            n @ 1..=6 => Some(10u32.pow(n as u32 - 1)),
            _ => None,
        }
    }
}
