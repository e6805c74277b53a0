//! Literal bit positions; see `main.rs`.

use amdvi_regs::viommu::{
    ExtendedInterruptId, ExtendedInterruptTableEntry, IdMapControl, VfCommandControl,
    VfEventControl, VfLogBBase, VfMisc, VfPprControl,
};

use crate::pin::pin;

pin!(id_map_control_fields_stand_at_their_bits, IdMapControl, u64, first 0,
    reserved 0x4000_3fff_c000_3ffe == [IdMapControl::RESERVED], {
    valid, with_valid [0];
    host_id, with_host_id [29:14];
    guest_id, with_guest_id [61:46];
    write, with_write [63];
});

pin!(vf_misc_fields_stand_at_their_bits, VfMisc, u64, first 0,
    reserved 0xffff_ffff_0000_ffff == [VfMisc::RESERVED], {
    translate_dev_id, with_translate_dev_id [31:16];
});

pin!(vf_log_bbase_fields_stand_at_their_bits, VfLogBBase, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [VfLogBBase::RESERVED], {
    base_page, with_base_page [51:12];
});

pin!(vf_command_control_fields_stand_at_their_bits, VfCommandControl, u64, first 0,
    reserved 0xfff0_0000_0000_0cf0 == [VfCommandControl::RESERVED], {
    length, with_length [3:0];
    cmd_buf_en, with_cmd_buf_en [8];
    com_wait_int_en, with_com_wait_int_en [9];
    base_page, with_base_page [51:12];
});

pin!(vf_event_control_fields_stand_at_their_bits, VfEventControl, u64, first 0,
    reserved 0xfff0_0000_0000_0000 == [VfEventControl::RESERVED], {
    length, with_length [3:0];
    length_b, with_length_b [7:4];
    event_log_en, with_event_log_en [8];
    event_int_en, with_event_int_en [9];
    dual_event_log_en, with_dual_event_log_en [11:10];
    base_page, with_base_page [51:12];
});

pin!(vf_ppr_control_fields_stand_at_their_bits, VfPprControl, u64, first 0,
    reserved 0xff00_0000_0000_0000 == [VfPprControl::RESERVED], {
    length, with_length [3:0];
    length_b, with_length_b [7:4];
    ppr_log_en, with_ppr_log_en [8];
    ppr_int_en, with_ppr_int_en [9];
    ppr_en, with_ppr_en [10];
    dual_ppr_log_en, with_dual_ppr_log_en [12:11];
    ppr_auto_rsp_en, with_ppr_auto_rsp_en [13];
    blk_stop_mrk_en, with_blk_stop_mrk_en [14];
    ppr_auto_rsp_aon, with_ppr_auto_rsp_aon [15];
    base_page, with_base_page [55:16];
});

pin!(extended_interrupt_id_fields_stand_at_their_bits, ExtendedInterruptId, u32, first 0,
    reserved 0xfffc_0000 == [ExtendedInterruptId::RESERVED], {
    guest_id, with_guest_id [15:0];
    kind, with_kind [17:16];
});

pin!(extended_interrupt_table_entry_fields_stand_at_their_bits, ExtendedInterruptTableEntry, u64, first 0,
    reserved 0xfff0_0000_0000_0002 == [ExtendedInterruptTableEntry::RESERVED], {
    valid, with_valid [0];
    length, with_length [5:2];
    address_64, with_address_64 [51:6];
});
