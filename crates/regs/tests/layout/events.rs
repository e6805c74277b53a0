//! Literal bit positions; see `main.rs`.

use amdvi_regs::event::{
    CommandHardwareError, DevTabHardwareError, EventCounterZero, GuestEventFault,
    IllegalCommandError, IllegalDevTableEntry, InvalidDeviceRequest, InvalidPprRequest,
    IoPageFault, IotlbInvTimeout, PageTabHardwareError, RmpHardwareError, RmpPageFault,
    ViommuHardwareError,
};
use amdvi_regs::log::{GaLogEntry, PprLogEntry};

use crate::pin::pin;

pin!(illegal_dev_table_entry_fields_stand_at_their_bits, IllegalDevTableEntry, u128, first 0,
    reserved 0x3_0e56_0000_fff0_0000 == [IllegalDevTableEntry::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_19_16, with_pasid_19_16 [19:16];
    pasid_15_0, with_pasid_15_0 [47:32];
    gn, with_gn [48];
    i, with_i [51];
    rw, with_rw [53];
    rz, with_rz [55];
    tr, with_tr [56];
    code, with_code [63:60];
    address_4, with_address_4 [127:66];
});

pin!(io_page_fault_fields_stand_at_their_bits, IoPageFault, u128, first 0,
    reserved 0xe00_0000_fff0_0000 == [IoPageFault::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_19_16, with_pasid_19_16 [19:16];
    pasid_domain_id, with_pasid_domain_id [47:32];
    gn, with_gn [48];
    nx, with_nx [49];
    us, with_us [50];
    i, with_i [51];
    pr, with_pr [52];
    rw, with_rw [53];
    pe, with_pe [54];
    rz, with_rz [55];
    tr, with_tr [56];
    code, with_code [63:60];
    address, with_address [127:64];
});

pin!(dev_tab_hardware_error_fields_stand_at_their_bits, DevTabHardwareError, u128, first 0,
    reserved 0xf_08d7_ffff_ffff_0000 == [DevTabHardwareError::RESERVED], {
    device_id, with_device_id [15:0];
    i, with_i [51];
    rw, with_rw [53];
    tr, with_tr [56];
    kind, with_kind [58:57];
    code, with_code [63:60];
    address_16, with_address_16 [127:68];
});

pin!(page_tab_hardware_error_fields_stand_at_their_bits, PageTabHardwareError, u128, first 0,
    reserved 0x7_08d6_0000_ffff_0000 == [PageTabHardwareError::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_domain_id, with_pasid_domain_id [47:32];
    gn, with_gn [48];
    i, with_i [51];
    rw, with_rw [53];
    tr, with_tr [56];
    kind, with_kind [58:57];
    code, with_code [63:60];
    address_8, with_address_8 [127:67];
});

pin!(invalid_device_request_fields_stand_at_their_bits, InvalidDeviceRequest, u128, first 0,
    reserved 0xfa_0000_fff0_0000 == [InvalidDeviceRequest::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_19_16, with_pasid_19_16 [19:16];
    pasid_15_0, with_pasid_15_0 [47:32];
    gn, with_gn [48];
    us, with_us [50];
    tr, with_tr [56];
    kind, with_kind [59:57];
    code, with_code [63:60];
    address, with_address [127:64];
});

pin!(invalid_ppr_request_fields_stand_at_their_bits, InvalidPprRequest, u128, first 0,
    reserved 0xdfe_c000_0000_0000 == [InvalidPprRequest::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_15_0, with_pasid_15_0 [31:16];
    tag, with_tag [41:32];
    pasid_19_16, with_pasid_19_16 [45:42];
    rx, with_rx [48];
    gn, with_gn [57];
    code, with_code [63:60];
    address, with_address [127:64];
});

pin!(illegal_command_error_fields_stand_at_their_bits, IllegalCommandError, u128, first 0,
    reserved 0xf_0fff_ffff_ffff_ffff == [IllegalCommandError::RESERVED], {
    code, with_code [63:60];
    address_16, with_address_16 [127:68];
});

pin!(command_hardware_error_fields_stand_at_their_bits, CommandHardwareError, u128, first 0,
    reserved 0xf_09ff_ffff_ffff_ffff == [CommandHardwareError::RESERVED], {
    kind, with_kind [58:57];
    code, with_code [63:60];
    address_16, with_address_16 [127:68];
});

pin!(iotlb_inv_timeout_fields_stand_at_their_bits, IotlbInvTimeout, u128, first 0,
    reserved 0xf_0fff_ffff_ffff_0000 == [IotlbInvTimeout::RESERVED], {
    device_id, with_device_id [15:0];
    code, with_code [63:60];
    address_16, with_address_16 [127:68];
});

pin!(event_counter_zero_fields_stand_at_their_bits, EventCounterZero, u128, first 0,
    reserved 0xfff0_0000_0fff_ffff_ffff_ffff == [EventCounterZero::RESERVED], {
    code, with_code [63:60];
    note_51_32, with_note_51_32 [83:64];
    note_31_0, with_note_31_0 [127:96];
});

pin!(guest_event_fault_fields_stand_at_their_bits, GuestEventFault, u128, first 0,
    reserved 0xffff_ffff_ffff_ffff_0000_0000_ffff_ffff == [GuestEventFault::RESERVED], {
    guest_id, with_guest_id [47:32];
    flags, with_flags [59:48];
    code, with_code [63:60];
});

pin!(viommu_hardware_error_fields_stand_at_their_bits, ViommuHardwareError, u128, first 0,
    reserved 0xffff_fffc_0000 == [ViommuHardwareError::RESERVED], {
    guest_id, with_guest_id [15:0];
    source, with_source [17:16];
    flags, with_flags [59:48];
    code, with_code [63:60];
    address, with_address [127:64];
});

pin!(rmp_page_fault_fields_stand_at_their_bits, RmpPageFault, u128, first 0,
    reserved 0xff00_0000 == [RmpPageFault::RESERVED], {
    device_id, with_device_id [15:0];
    rmp_flags, with_rmp_flags [23:16];
    vm_guard_tag, with_vm_guard_tag [47:32];
    flags, with_flags [59:48];
    code, with_code [63:60];
    gpa, with_gpa [127:64];
});

pin!(rmp_hardware_error_fields_stand_at_their_bits, RmpHardwareError, u128, first 0,
    reserved 0x7_0000_0000_ffff_0000 == [RmpHardwareError::RESERVED], {
    device_id, with_device_id [15:0];
    vm_guard_tag, with_vm_guard_tag [47:32];
    flags, with_flags [59:48];
    code, with_code [63:60];
    address_8, with_address_8 [127:67];
});

pin!(ga_log_entry_fields_stand_at_their_bits, GaLogEntry, u64, first 0,
    reserved 0xfff_0000_0000_0000, {
    ga_tag, with_ga_tag [31:0];
    device_id, with_device_id [47:32];
    code, with_code [63:60];
});

pin!(ppr_log_entry_fields_stand_at_their_bits, PprLogEntry, u128, first 0,
    reserved 0xfff_0e19_c000_0000_0000 == [PprLogEntry::RESERVED], {
    device_id, with_device_id [15:0];
    pasid_15_0, with_pasid_15_0 [31:16];
    tag, with_tag [40:32];
    last_page, with_last_page [41];
    pasid_19_16, with_pasid_19_16 [45:42];
    exec, with_exec [49];
    read, with_read [50];
    write, with_write [53];
    us, with_us [54];
    rz, with_rz [55];
    gn, with_gn [56];
    code, with_code [63:60];
    address_page, with_address_page [127:76];
});
