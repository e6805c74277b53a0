//! Literal bit positions; see `main.rs`.

use amdvi_regs::ivrs::{DteSetting, IvInfo, IvhdAttributes, IvhdFeatures, IvhdInfo};

use crate::pin::pin;

pin!(iv_info_fields_stand_at_their_bits, IvInfo, u32, first 0,
    reserved 0xff80_001c == [IvInfo::RESERVED], {
    efr_sup, with_efr_sup [0];
    dma_remap_sup, with_dma_remap_sup [1];
    gva_size, with_gva_size [7:5];
    pa_size, with_pa_size [14:8];
    va_size, with_va_size [21:15];
    ht_ats_resv, with_ht_ats_resv [22];
});

pin!(ivhd_info_fields_stand_at_their_bits, IvhdInfo, u16, first 0,
    reserved 0xe0e0 == [IvhdInfo::RESERVED], {
    msi_num, with_msi_num [4:0];
    unit_id, with_unit_id [12:8];
});

pin!(ivhd_features_fields_stand_at_their_bits, IvhdFeatures, u32, first 0,
    reserved 0 == [IvhdFeatures::RESERVED], {
    xt_sup, with_xt_sup [0];
    nx_sup, with_nx_sup [1];
    gt_sup, with_gt_sup [2];
    glx_sup, with_glx_sup [4:3];
    ia_sup, with_ia_sup [5];
    ga_sup, with_ga_sup [6];
    he_sup, with_he_sup [7];
    pas_max, with_pas_max [12:8];
    pn_counters, with_pn_counters [16:13];
    pn_banks, with_pn_banks [22:17];
    msi_num_ppr, with_msi_num_ppr [27:23];
    gats, with_gats [29:28];
    hats, with_hats [31:30];
});

pin!(ivhd_attributes_fields_stand_at_their_bits, IvhdAttributes, u32, first 0,
    reserved 0xf000_1ffe == [IvhdAttributes::RESERVED], {
    hat_dis, with_hat_dis [0];
    pn_counters, with_pn_counters [16:13];
    pn_banks, with_pn_banks [22:17];
    msi_num_ppr, with_msi_num_ppr [27:23];
});

pin!(dte_setting_fields_stand_at_their_bits, DteSetting, u8, first 0,
    reserved 0x8 == [DteSetting::RESERVED], {
    init_pass, with_init_pass [0];
    eint_pass, with_eint_pass [1];
    nmi_pass, with_nmi_pass [2];
    sys_mgt, with_sys_mgt [5:4];
    lint0_pass, with_lint0_pass [6];
    lint1_pass, with_lint1_pass [7];
});
