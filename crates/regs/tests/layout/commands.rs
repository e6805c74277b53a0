//! Literal bit positions; see `main.rs`.

use amdvi_regs::command::{
    CompletePprRequest, CompletionWait, InsertGuestEvent, InvalidateDevtabEntry,
    InvalidateInterruptTable, InvalidateIommuAll, InvalidateIommuPages, InvalidateIotlbPages,
    PrefetchIommuPages, ResetVmmio,
};

use crate::pin::pin;

pin!(completion_wait_fields_stand_at_their_bits, CompletionWait, u128, first 0,
    reserved 0xff0_0000_0000_0000 == [CompletionWait::RESERVED], {
    s, with_s [0];
    i, with_i [1];
    f, with_f [2];
    store_address_8, with_store_address_8 [51:3];
    opcode, with_opcode [63:60];
    store_data, with_store_data [127:64];
});

pin!(invalidate_devtab_entry_fields_stand_at_their_bits, InvalidateDevtabEntry, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0fff_ffff_ffff_0000 == [InvalidateDevtabEntry::RESERVED], {
    device_id, with_device_id [15:0];
    opcode, with_opcode [63:60];
});

pin!(invalidate_iommu_pages_fields_stand_at_their_bits, InvalidateIommuPages, u128, first 0,
    reserved 0xff8_0fff_0000_fff0_0000 == [InvalidateIommuPages::RESERVED], {
    pasid, with_pasid [19:0];
    domain_id, with_domain_id [47:32];
    opcode, with_opcode [63:60];
    s, with_s [64];
    pde, with_pde [65];
    gn, with_gn [66];
    address_page, with_address_page [127:76];
});

pin!(invalidate_iotlb_pages_fields_stand_at_their_bits, InvalidateIotlbPages, u128, first 0,
    reserved 0xfca_0000_0000_0000_0000 == [InvalidateIotlbPages::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_15_8, with_pasid_15_8 [23:16];
    max_pend, with_max_pend [31:24];
    queue_id, with_queue_id [47:32];
    pasid_7_0, with_pasid_7_0 [55:48];
    pasid_19_16, with_pasid_19_16 [59:56];
    opcode, with_opcode [63:60];
    s, with_s [64];
    gn, with_gn [66];
    kind, with_kind [69:68];
    address_page, with_address_page [127:76];
});

pin!(invalidate_interrupt_table_fields_stand_at_their_bits, InvalidateInterruptTable, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0fff_ffff_ffff_0000 == [InvalidateInterruptTable::RESERVED], {
    device_id, with_device_id [15:0];
    opcode, with_opcode [63:60];
});

pin!(prefetch_iommu_pages_fields_stand_at_their_bits, PrefetchIommuPages, u128, first 0,
    reserved 0xfea_0ff0_0000_00ff_0000 == [PrefetchIommuPages::RESERVED], {
    device_id, with_device_id [15:0];
    pf_count, with_pf_count [31:24];
    pasid, with_pasid [51:32];
    opcode, with_opcode [63:60];
    s, with_s [64];
    gn, with_gn [66];
    inval, with_inval [68];
    address_page, with_address_page [127:76];
});

pin!(complete_ppr_request_fields_stand_at_their_bits, CompletePprRequest, u128, first 0,
    reserved 0xffff_0000_ffff_fffb_0ff0_0000_ffff_0000 == [CompletePprRequest::RESERVED], {
    device_id, with_device_id [15:0];
    pasid, with_pasid [51:32];
    opcode, with_opcode [63:60];
    gn, with_gn [66];
    completion_tag, with_completion_tag [111:96];
});

pin!(invalidate_iommu_all_fields_stand_at_their_bits, InvalidateIommuAll, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0fff_ffff_ffff_ffff == [InvalidateIommuAll::RESERVED], {
    opcode, with_opcode [63:60];
});

pin!(insert_guest_event_fields_stand_at_their_bits, InsertGuestEvent, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0fff_0000_ffff_ffff == [InsertGuestEvent::RESERVED], {
    guest_id, with_guest_id [47:32];
    opcode, with_opcode [63:60];
});

pin!(reset_vmmio_fields_stand_at_their_bits, ResetVmmio, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0fff_ffff_6fff_0000 == [ResetVmmio::RESERVED], {
    guest_id, with_guest_id [15:0];
    all, with_all [28];
    v_cmd, with_v_cmd [31];
    opcode, with_opcode [63:60];
});
