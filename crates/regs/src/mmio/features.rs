use bitfield_struct::bitfield;

use crate::fmt::{Always, display_fields};

/// Extended Feature Register (EFR), MMIO 0030h (48882 §3.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtendedFeature {
    /// Bit 0, PreFSup: PREFETCH_IOMMU_PAGES.
    pub pre_f_sup: bool,
    /// Bit 1, PPRSup.
    pub ppr_sup: bool,
    /// Bit 2, XTSup: x2APIC.
    pub xt_sup: bool,
    /// Bit 3, NXSup.
    pub nx_sup: bool,
    /// Bit 4, GTSup.
    pub gt_sup: bool,
    /// Bit 5, GAPPISup.
    pub ga_ppi_sup: bool,
    /// Bit 6, IASup: INVALIDATE_IOMMU_ALL.
    pub ia_sup: bool,
    /// Bit 7, GASup: 128-bit IRTEs and the guest virtual APIC.
    pub ga_sup: bool,
    /// Bit 8, HESup: hardware event registers.
    pub he_sup: bool,
    /// Bit 9, PCSup: performance counters.
    pub pc_sup: bool,
    /// Bits \[11:10\], HATS: 0 = 4, 1 = 5, 2 = 6 levels, 3 = no host translation.
    #[bits(2)]
    pub hats: u8,
    /// Bits \[13:12\], GATS: guest levels, 0 = 4, 1 = 5.
    #[bits(2)]
    pub gats: u8,
    /// Bits \[15:14\], GLXSup: GCR3 table levels minus one.
    #[bits(2)]
    pub glx_sup: u8,
    /// Bits \[17:16\], SmiFSup.
    #[bits(2)]
    pub smi_f_sup: u8,
    /// Bits \[20:18\], SmiFRC.
    #[bits(3)]
    pub smi_frc: u8,
    /// Bits \[23:21\], GAMSup: 1 = guest virtual APIC (GM1).
    #[bits(3)]
    pub gam_sup: u8,
    /// Bits \[25:24\], DualPprLogSup.
    #[bits(2)]
    pub dual_ppr_log_sup: u8,
    /// Bits \[27:26\], reserved.
    #[bits(2)]
    pub rsvd_27_26: u8,
    /// Bits \[29:28\], DualEventLogSup.
    #[bits(2)]
    pub dual_event_log_sup: u8,
    /// Bit 30, reserved.
    pub rsvd_30: bool,
    /// Bit 31, SATSup.
    pub sat_sup: bool,
    /// Bits \[36:32\], PASmax: the maximum PASID is 2^(n+1)−1.
    #[bits(5)]
    pub pas_max: u8,
    /// Bit 37, USSup.
    pub us_sup: bool,
    /// Bits \[39:38\], DevTblSegSup: 0 none, n = 2^n segments.
    #[bits(2)]
    pub dev_tbl_seg_sup: u8,
    /// Bit 40, PprOvrflwEarlySup.
    pub ppr_ovrflw_early_sup: bool,
    /// Bit 41, PPRAutoRspSup.
    pub ppr_auto_rsp_sup: bool,
    /// Bits \[43:42\], MarcSup.
    #[bits(2)]
    pub marc_sup: u8,
    /// Bit 44, BlkStopMrkSup.
    pub blk_stop_mrk_sup: bool,
    /// Bit 45, PerfOptSup.
    pub perf_opt_sup: bool,
    /// Bit 46, MsiCapMmioSup: MMIO 0150h–0168h.
    pub msi_cap_mmio_sup: bool,
    /// Bit 47: SnoopAttrSup in one source, reserved in others.
    pub snoop_attr_sup: bool,
    /// Bit 48, GIoSup.
    pub gio_sup: bool,
    /// Bit 49, HASup.
    pub ha_sup: bool,
    /// Bit 50, EPHSup.
    pub eph_sup: bool,
    /// Bit 51, AttrFWSup.
    pub attr_fw_sup: bool,
    /// Bit 52, HDSup.
    pub hd_sup: bool,
    /// Bit 53, V2HDDisSup.
    pub v2_hd_dis_sup: bool,
    /// Bit 54, InvIotlbTypeSup.
    pub inv_iotlb_type_sup: bool,
    /// Bit 55, vIommuSup.
    pub v_iommu_sup: bool,
    /// Bit 56, VmGuardIoSup.
    pub vm_guard_io_sup: bool,
    /// Bits \[60:57\], VmTableSize.
    #[bits(4)]
    pub vm_table_size: u8,
    /// Bit 61, GAUpdateDisSup.
    pub ga_update_dis_sup: bool,
    /// Bit 62, ForcePhyDestSup.
    pub force_phy_dest_sup: bool,
    /// Bit 63, SNPSup.
    pub snp_sup: bool,
}

/// Extended Feature 2 Register (EFR2), MMIO 01A0h (48882 §3.4.16).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtendedFeature2 {
    /// Bit 0, no public meaning.
    pub rsvd_0: bool,
    /// Bit 1, SEVSNPIOSup.
    pub sev_snp_io_sup: bool,
    /// Bit 2, TMPMSup.
    pub tmpm_sup: bool,
    /// Bit 3, GCR3TRPMode: CONTROL\[58\] can be used.
    pub gcr3_trp_mode: bool,
    /// Bit 4, GAPPIDisSup.
    pub ga_ppi_dis_sup: bool,
    /// Bits \[7:5\], SNPAVICSup.
    #[bits(3)]
    pub snp_avic_sup: u8,
    /// Bits \[9:8\], NumIntRemapSup: 0 = 512, 1 = 2048 interrupts per function.
    #[bits(2)]
    pub num_int_remap_sup: u8,
    /// Bit 10, no public meaning.
    pub rsvd_10: bool,
    /// Bit 11, HTRangeIgnore: the HyperTransport special ranges are ordinary addresses.
    pub ht_range_ignore: bool,
    /// Bit 12, no public meaning.
    pub rsvd_12: bool,
    /// Bit 13, SNPPageMode0Sup.
    pub snp_page_mode0_sup: bool,
    /// Bits \[63:14\], no public meaning.
    #[bits(50)]
    pub rsvd_63_14: u64,
}

impl ExtendedFeature2 {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_ffff_d401;
    /// NumIntRemapSup value that offers 2048 interrupts per function.
    pub const NUM_INT_REMAP_2K: u8 = 1;
}

impl ExtendedFeature {
    /// HATS value of a unit that has no host translation.
    pub const HATS_NONE: u8 = 3;
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x4c00_0000;
}

display_fields!(ExtendedFeature, reserved ExtendedFeature::RESERVED, {
    "PreFSup": pre_f_sup,
    "PPRSup": ppr_sup,
    "XTSup": xt_sup,
    "NXSup": nx_sup,
    "GTSup": gt_sup,
    "GAPPISup": ga_ppi_sup,
    "IASup": ia_sup,
    "GASup": ga_sup,
    "HESup": he_sup,
    "PCSup": pc_sup,
    "HATS": hats as Always,
    "GATS": gats as Always,
    "GLXSup": glx_sup,
    "SmiFSup": smi_f_sup,
    "SmiFRC": smi_frc,
    "GAMSup": gam_sup,
    "DualPprLogSup": dual_ppr_log_sup,
    "DualEventLogSup": dual_event_log_sup,
    "SATSup": sat_sup,
    "PASmax": pas_max,
    "USSup": us_sup,
    "DevTblSegSup": dev_tbl_seg_sup,
    "PprOvrflwEarlySup": ppr_ovrflw_early_sup,
    "PPRAutoRspSup": ppr_auto_rsp_sup,
    "MarcSup": marc_sup,
    "BlkStopMrkSup": blk_stop_mrk_sup,
    "PerfOptSup": perf_opt_sup,
    "MsiCapMmioSup": msi_cap_mmio_sup,
    "SnoopAttrSup": snoop_attr_sup,
    "GIoSup": gio_sup,
    "HASup": ha_sup,
    "EPHSup": eph_sup,
    "AttrFWSup": attr_fw_sup,
    "HDSup": hd_sup,
    "V2HDDisSup": v2_hd_dis_sup,
    "InvIotlbTypeSup": inv_iotlb_type_sup,
    "vIommuSup": v_iommu_sup,
    "VmGuardIoSup": vm_guard_io_sup,
    "VmTableSize": vm_table_size,
    "GAUpdateDisSup": ga_update_dis_sup,
    "ForcePhyDestSup": force_phy_dest_sup,
    "SNPSup": snp_sup,
});

display_fields!(ExtendedFeature2, reserved ExtendedFeature2::RESERVED, {
    "SEVSNPIOSup": sev_snp_io_sup,
    "TMPMSup": tmpm_sup,
    "GCR3TRPMode": gcr3_trp_mode,
    "GAPPIDisSup": ga_ppi_dis_sup,
    "SNPAVICSup": snp_avic_sup,
    "NumIntRemapSup": num_int_remap_sup,
    "HTRangeIgnore": ht_range_ignore,
    "SNPPageMode0Sup": snp_page_mode0_sup,
});

impl ExtendedFeature {
    /// Levels of the host page table at most, 4–6; `None` if there is no host translation.
    pub const fn host_levels(self) -> Option<u8> {
        match self.hats() {
            Self::HATS_NONE => None,
            hats => Some(hats + 4),
        }
    }

    /// Levels of a guest page table at most, 4–6; `None` without GTSup or for the reserved value 3.
    pub const fn guest_levels(self) -> Option<u8> {
        match (self.gt_sup(), self.gats()) {
            (false, _) | (true, 3..) => None,
            (true, gats) => Some(gats + 4),
        }
    }

    /// Levels of the GCR3 table at most, 1–3; `None` without GTSup or for the reserved value 3.
    pub const fn gcr3_levels(self) -> Option<u8> {
        if self.gt_sup() {
            crate::gcr3::levels(self.glx_sup())
        } else {
            None
        }
    }

    /// The largest PASID, 2^(PASmax+1) − 1; `None` without GTSup.
    pub const fn max_pasid(self) -> Option<u32> {
        if self.gt_sup() {
            Some(u32::MAX >> (31 - self.pas_max() as u32))
        } else {
            None
        }
    }

    /// Number of SMI filter registers, 2^SmiFRC up to the 16 that there is room for; 0 without
    /// SmiFSup.
    pub const fn smi_filters(self) -> u8 {
        match (self.smi_f_sup(), self.smi_frc()) {
            (1, log2 @ 0..=4) => 1 << log2,
            (1, _) => 16,
            _ => 0,
        }
    }
}

impl ExtendedFeature2 {
    /// Interrupts per function at most: 2048 with NumIntRemapSup = 1, else 512.
    pub const fn interrupts_per_function(self) -> u16 {
        if self.num_int_remap_sup() == Self::NUM_INT_REMAP_2K {
            2048
        } else {
            512
        }
    }
}
