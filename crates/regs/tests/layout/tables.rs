//! Literal bit positions; see `main.rs`.

use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2, DteQ3};
use amdvi_regs::gcr3::Gcr3Entry;
use amdvi_regs::guest_pte::GuestPte;
use amdvi_regs::irte::{Irte32, Irte128GuestLo, Irte128Hi, Irte128Lo};
use amdvi_regs::msi::{MsiAddress, MsiData};
use amdvi_regs::pte::HostPte;

use crate::pin::pin;

pin!(dte_q0_fields_stand_at_their_bits, DteQ0, u64, first 0,
    reserved 0x8000_0000_0000_000c == [Dte::Q0_RESERVED], {
    v, with_v [0];
    tv, with_tv [1];
    cxl_attr, with_cxl_attr [6:4];
    had, with_had [8:7];
    mode, with_mode [11:9];
    host_pt_root, with_host_pt_root [51:12];
    ppr, with_ppr [52];
    gprp, with_gprp [53];
    giov, with_giov [54];
    gv, with_gv [55];
    glx, with_glx [57:56];
    gcr3_lo, with_gcr3_lo [60:58];
    ir, with_ir [61];
    iw, with_iw [62];
});

pin!(dte_q1_fields_stand_at_their_bits, DteQ1, u64, first 64,
    reserved 0 == [Dte::Q1_RESERVED], {
    domain_id, with_domain_id [79:64];
    gcr3_mid, with_gcr3_mid [95:80];
    i, with_i [96];
    se, with_se [97];
    sa, with_sa [98];
    io_ctl, with_io_ctl [100:99];
    cache, with_cache [101];
    sd, with_sd [102];
    ex, with_ex [103];
    sys_mgt, with_sys_mgt [105:104];
    sats, with_sats [106];
    gcr3_hi, with_gcr3_hi [127:107];
});

pin!(dte_q2_fields_stand_at_their_bits, DteQ2, u64, first 128,
    reserved 0x30_0000_0000_0000 == [Dte::Q2_RESERVED], {
    iv, with_iv [128];
    int_tab_len, with_int_tab_len [132:129];
    ig, with_ig [133];
    int_tab_root, with_int_tab_root [179:134];
    guest_paging_mode, with_guest_paging_mode [183:182];
    init_pass, with_init_pass [184];
    eint_pass, with_eint_pass [185];
    nmi_pass, with_nmi_pass [186];
    hpt_mode, with_hpt_mode [187];
    int_ctl, with_int_ctl [189:188];
    lint0_pass, with_lint0_pass [190];
    lint1_pass, with_lint1_pass [191];
});

pin!(dte_q3_fields_stand_at_their_bits, DteQ3, u64, first 192,
    reserved 0x3f_0000_0000_7fff == [Dte::Q3_RESERVED], {
    vimu_en, with_vimu_en [207];
    g_device_id, with_g_device_id [223:208];
    guest_id, with_guest_id [239:224];
    attr_v, with_attr_v [246];
    mode0_fc, with_mode0_fc [247];
    snoop_attribute, with_snoop_attribute [255:248];
});

pin!(irte32_fields_stand_at_their_bits, Irte32, u32, first 0,
    reserved 0xff00_0000 == [Irte32::RESERVED], {
    remap_en, with_remap_en [0];
    sup_iopf, with_sup_iopf [1];
    int_type, with_int_type [4:2];
    rq_eoi, with_rq_eoi [5];
    dm, with_dm [6];
    guest_mode, with_guest_mode [7];
    destination, with_destination [15:8];
    vector, with_vector [23:16];
});

pin!(irte128_lo_fields_stand_at_their_bits, Irte128Lo, u64, first 0,
    reserved 0xffff_ffff_0000_0000 == [Irte128Lo::RESERVED], {
    remap_en, with_remap_en [0];
    sup_iopf, with_sup_iopf [1];
    int_type, with_int_type [4:2];
    rq_eoi, with_rq_eoi [5];
    dm, with_dm [6];
    guest_mode, with_guest_mode [7];
    destination_lo, with_destination_lo [31:8];
});

pin!(irte128_hi_fields_stand_at_their_bits, Irte128Hi, u64, first 64,
    reserved 0xf0_0000_0000_0f00 == [Irte128Hi::RESERVED], {
    vector, with_vector [71:64];
    ga_root, with_ga_root [115:76];
    destination_hi, with_destination_hi [127:120];
});

pin!(irte128_guest_lo_fields_stand_at_their_bits, Irte128GuestLo, u64, first 0,
    reserved 0x18 == [Irte128GuestLo::RESERVED], {
    remap_en, with_remap_en [0];
    sup_iopf, with_sup_iopf [1];
    ga_log_intr, with_ga_log_intr [2];
    ga_ppi_dis, with_ga_ppi_dis [5];
    is_run, with_is_run [6];
    guest_mode, with_guest_mode [7];
    destination_lo, with_destination_lo [31:8];
    ga_tag, with_ga_tag [63:32];
});

pin!(host_pte_fields_stand_at_their_bits, HostPte, u64, first 0,
    reserved 0x1f0_0000_0000_0000 == [HostPte::PTE_RESERVED], {
    pr, with_pr [0];
    ignored_4_1, with_ignored_4_1 [4:1];
    a, with_a [5];
    d, with_d [6];
    ignored_8_7, with_ignored_8_7 [8:7];
    next_level, with_next_level [11:9];
    address_page, with_address_page [51:12];
    pmc, with_pmc [58:57];
    u, with_u [59];
    fc, with_fc [60];
    ir, with_ir [61];
    iw, with_iw [62];
    ignored_63, with_ignored_63 [63];
});

pin!(guest_pte_fields_stand_at_their_bits, GuestPte, u64, first 0,
    reserved 0, {
    p, with_p [0];
    rw, with_rw [1];
    us, with_us [2];
    pwt, with_pwt [3];
    pcd, with_pcd [4];
    a, with_a [5];
    d, with_d [6];
    ps, with_ps [7];
    g, with_g [8];
    avail_11_9, with_avail_11_9 [11:9];
    address_page, with_address_page [51:12];
    avail_62_52, with_avail_62_52 [62:52];
    xd, with_xd [63];
});

pin!(gcr3_entry_fields_stand_at_their_bits, Gcr3Entry, u64, first 0,
    reserved 0xfff0_0000_0000_0ffe == [Gcr3Entry::RESERVED], {
    v, with_v [0];
    address_page, with_address_page [51:12];
});

pin!(msi_address_fields_stand_at_their_bits, MsiAddress, u32, first 0,
    reserved 0xff3, {
    logical, with_logical [2];
    redirection_hint, with_redirection_hint [3];
    dest, with_dest [19:12];
    window, with_window [31:20];
});

pin!(msi_data_fields_stand_at_their_bits, MsiData, u32, first 0,
    reserved 0xffff_3800, {
    vector, with_vector [7:0];
    delivery_mode, with_delivery_mode [10:8];
    assert, with_assert [14];
    level, with_level [15];
});
