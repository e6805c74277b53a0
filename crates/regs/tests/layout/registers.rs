//! Literal bit positions; see `main.rs`.

use amdvi_regs::mmio::{
    Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2, RingBase, RingPointer, Status,
    XtInterruptControl,
};

use crate::pin::pin;

pin!(control_fields_stand_at_their_bits, Control, u64, first 0,
    reserved 0x202_0000_0000_0000 == [Control::RESERVED], {
    iommu_en, with_iommu_en [0];
    ht_tun_en, with_ht_tun_en [1];
    event_log_en, with_event_log_en [2];
    event_int_en, with_event_int_en [3];
    com_wait_int_en, with_com_wait_int_en [4];
    inv_time_out, with_inv_time_out [7:5];
    pass_pw, with_pass_pw [8];
    res_pass_pw, with_res_pass_pw [9];
    coherent, with_coherent [10];
    isoc, with_isoc [11];
    cmd_buf_en, with_cmd_buf_en [12];
    ppr_log_en, with_ppr_log_en [13];
    ppr_int_en, with_ppr_int_en [14];
    ppr_en, with_ppr_en [15];
    gt_en, with_gt_en [16];
    ga_en, with_ga_en [17];
    crw, with_crw [21:18];
    smi_f_en, with_smi_f_en [22];
    slf_wb_dis, with_slf_wb_dis [23];
    smi_f_log_en, with_smi_f_log_en [24];
    gam_en, with_gam_en [27:25];
    ga_log_en, with_ga_log_en [28];
    ga_int_en, with_ga_int_en [29];
    dual_ppr_log_en, with_dual_ppr_log_en [31:30];
    dual_event_log_en, with_dual_event_log_en [33:32];
    dev_tbl_seg_en, with_dev_tbl_seg_en [36:34];
    priv_abrt_en, with_priv_abrt_en [38:37];
    ppr_auto_rsp_en, with_ppr_auto_rsp_en [39];
    marc_en, with_marc_en [40];
    blk_stop_mrk_en, with_blk_stop_mrk_en [41];
    ppr_auto_rsp_aon, with_ppr_auto_rsp_aon [42];
    num_int_remap_mode, with_num_int_remap_mode [44:43];
    eph_en, with_eph_en [45];
    had_update, with_had_update [47:46];
    gd_update_dis, with_gd_update_dis [48];
    xt_en, with_xt_en [50];
    int_cap_xt_en, with_int_cap_xt_en [51];
    v_cmd_en, with_v_cmd_en [52];
    v_iommu_en, with_v_iommu_en [53];
    ga_update_dis, with_ga_update_dis [54];
    ga_ppi_en, with_ga_ppi_en [55];
    tmpm_en, with_tmpm_en [56];
    gcr3_trp_mode, with_gcr3_trp_mode [58];
    irt_cache_dis, with_irt_cache_dis [59];
    gst_buffer_trp_mode, with_gst_buffer_trp_mode [60];
    snp_avic_en, with_snp_avic_en [63:61];
});

pin!(extended_feature_fields_stand_at_their_bits, ExtendedFeature, u64, first 0,
    reserved 0x4c00_0000 == [ExtendedFeature::RESERVED], {
    pre_f_sup, with_pre_f_sup [0];
    ppr_sup, with_ppr_sup [1];
    xt_sup, with_xt_sup [2];
    nx_sup, with_nx_sup [3];
    gt_sup, with_gt_sup [4];
    ga_ppi_sup, with_ga_ppi_sup [5];
    ia_sup, with_ia_sup [6];
    ga_sup, with_ga_sup [7];
    he_sup, with_he_sup [8];
    pc_sup, with_pc_sup [9];
    hats, with_hats [11:10];
    gats, with_gats [13:12];
    glx_sup, with_glx_sup [15:14];
    smi_f_sup, with_smi_f_sup [17:16];
    smi_frc, with_smi_frc [20:18];
    gam_sup, with_gam_sup [23:21];
    dual_ppr_log_sup, with_dual_ppr_log_sup [25:24];
    dual_event_log_sup, with_dual_event_log_sup [29:28];
    sat_sup, with_sat_sup [31];
    pas_max, with_pas_max [36:32];
    us_sup, with_us_sup [37];
    dev_tbl_seg_sup, with_dev_tbl_seg_sup [39:38];
    ppr_ovrflw_early_sup, with_ppr_ovrflw_early_sup [40];
    ppr_auto_rsp_sup, with_ppr_auto_rsp_sup [41];
    marc_sup, with_marc_sup [43:42];
    blk_stop_mrk_sup, with_blk_stop_mrk_sup [44];
    perf_opt_sup, with_perf_opt_sup [45];
    msi_cap_mmio_sup, with_msi_cap_mmio_sup [46];
    snoop_attr_sup, with_snoop_attr_sup [47];
    gio_sup, with_gio_sup [48];
    ha_sup, with_ha_sup [49];
    eph_sup, with_eph_sup [50];
    attr_fw_sup, with_attr_fw_sup [51];
    hd_sup, with_hd_sup [52];
    v2_hd_dis_sup, with_v2_hd_dis_sup [53];
    inv_iotlb_type_sup, with_inv_iotlb_type_sup [54];
    v_iommu_sup, with_v_iommu_sup [55];
    vm_guard_io_sup, with_vm_guard_io_sup [56];
    vm_table_size, with_vm_table_size [60:57];
    ga_update_dis_sup, with_ga_update_dis_sup [61];
    force_phy_dest_sup, with_force_phy_dest_sup [62];
    snp_sup, with_snp_sup [63];
});

pin!(extended_feature2_fields_stand_at_their_bits, ExtendedFeature2, u64, first 0,
    reserved 0xffff_ffff_ffff_d401 == [ExtendedFeature2::RESERVED], {
    sev_snp_io_sup, with_sev_snp_io_sup [1];
    tmpm_sup, with_tmpm_sup [2];
    gcr3_trp_mode, with_gcr3_trp_mode [3];
    ga_ppi_dis_sup, with_ga_ppi_dis_sup [4];
    snp_avic_sup, with_snp_avic_sup [7:5];
    num_int_remap_sup, with_num_int_remap_sup [9:8];
    ht_range_ignore, with_ht_range_ignore [11];
    snp_page_mode0_sup, with_snp_page_mode0_sup [13];
});

pin!(status_fields_stand_at_their_bits, Status, u64, first 0,
    reserved 0xffff_ffff_fff8_6000 == [Status::RESERVED], {
    event_overflow, with_event_overflow [0];
    event_log_int, with_event_log_int [1];
    com_wait_int, with_com_wait_int [2];
    event_log_run, with_event_log_run [3];
    cmd_buf_run, with_cmd_buf_run [4];
    ppr_overflow, with_ppr_overflow [5];
    ppr_int, with_ppr_int [6];
    ppr_log_run, with_ppr_log_run [7];
    ga_log_run, with_ga_log_run [8];
    gal_overflow, with_gal_overflow [9];
    ga_int, with_ga_int [10];
    ppr_overflow_b, with_ppr_overflow_b [11];
    ppr_log_active, with_ppr_log_active [12];
    evt_overflow_b, with_evt_overflow_b [15];
    evt_log_active, with_evt_log_active [16];
    ppr_ovrflw_early_b, with_ppr_ovrflw_early_b [17];
    ppr_ovrflw_early, with_ppr_ovrflw_early [18];
});

pin!(device_table_base_fields_stand_at_their_bits, DeviceTableBase, u64, first 0,
    reserved 0xfff0_0000_0000_0e00 == [DeviceTableBase::RESERVED], {
    size, with_size [8:0];
    base_page, with_base_page [51:12];
});

pin!(ring_base_fields_stand_at_their_bits, RingBase, u64, first 0,
    reserved 0xf0f0_0000_0000_0fff == [RingBase::RESERVED], {
    base_page, with_base_page [51:12];
    length, with_length [59:56];
});

pin!(ring_pointer_fields_stand_at_their_bits, RingPointer, u64, first 0,
    reserved 0xffff_ffff_fff8_0000 == [RingPointer::RESERVED], {
    byte_offset, with_byte_offset [18:0];
});

pin!(xt_interrupt_control_fields_stand_at_their_bits, XtInterruptControl, u64, first 0,
    reserved 0xff_fe00_0000_00fb == [XtInterruptControl::RESERVED], {
    dest_mode, with_dest_mode [2];
    destination_lo, with_destination_lo [31:8];
    vector, with_vector [39:32];
    delivery_mode, with_delivery_mode [40];
    destination_hi, with_destination_hi [63:56];
});
