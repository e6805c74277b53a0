//! Literal bit positions; see `main.rs`.

use amdvi_regs::pci::{
    BaseAddressHigh, BaseAddressLow, CapabilityHeader, DeviceRange, HtMsiMapping, MiscInfo0,
    MiscInfo1, MsiAddressHigh, MsiAddressLow, MsiCapability, MsiDataRegister, ViommuCapabilityInfo,
    ViommuRegionBase,
};

use crate::pin::pin;

pin!(capability_header_fields_stand_at_their_bits, CapabilityHeader, u32, first 0,
    reserved 0xe000_0000 == [CapabilityHeader::RESERVED], {
    cap_id, with_cap_id [7:0];
    cap_ptr, with_cap_ptr [15:8];
    cap_type, with_cap_type [18:16];
    cap_rev, with_cap_rev [23:19];
    iotlb_sup, with_iotlb_sup [24];
    ht_tunnel, with_ht_tunnel [25];
    np_cache, with_np_cache [26];
    efr_sup, with_efr_sup [27];
    cap_ext, with_cap_ext [28];
});

pin!(base_address_low_fields_stand_at_their_bits, BaseAddressLow, u32, first 0,
    reserved 0x3ffe == [BaseAddressLow::RESERVED], {
    enable, with_enable [0];
    base_31_14, with_base_31_14 [31:14];
});

pin!(base_address_high_fields_stand_at_their_bits, BaseAddressHigh, u32, first 0,
    reserved 0 == [BaseAddressHigh::RESERVED], {
    base_63_32, with_base_63_32 [31:0];
});

pin!(device_range_fields_stand_at_their_bits, DeviceRange, u32, first 0,
    reserved 0x60 == [DeviceRange::RESERVED], {
    unit_id, with_unit_id [4:0];
    rng_valid, with_rng_valid [7];
    bus_number, with_bus_number [15:8];
    first_device, with_first_device [23:16];
    last_device, with_last_device [31:24];
});

pin!(misc_info0_fields_stand_at_their_bits, MiscInfo0, u32, first 0,
    reserved 0x780_0000 == [MiscInfo0::RESERVED], {
    msi_num, with_msi_num [4:0];
    gva_size, with_gva_size [7:5];
    pa_size, with_pa_size [14:8];
    va_size, with_va_size [21:15];
    ht_ats_resv, with_ht_ats_resv [22];
    msi_num_ppr, with_msi_num_ppr [31:27];
});

pin!(misc_info1_fields_stand_at_their_bits, MiscInfo1, u32, first 0,
    reserved 0xffff_ffe0 == [MiscInfo1::RESERVED], {
    msi_num_ga, with_msi_num_ga [4:0];
});

pin!(msi_capability_fields_stand_at_their_bits, MsiCapability, u32, first 0,
    reserved 0xff00_0000 == [MsiCapability::RESERVED], {
    cap_id, with_cap_id [7:0];
    cap_ptr, with_cap_ptr [15:8];
    msi_en, with_msi_en [16];
    mult_mess_cap, with_mult_mess_cap [19:17];
    mult_mess_en, with_mult_mess_en [22:20];
    addr_64, with_addr_64 [23];
});

pin!(msi_address_low_fields_stand_at_their_bits, MsiAddressLow, u32, first 0,
    reserved 0x3 == [MsiAddressLow::RESERVED], {
    address_31_2, with_address_31_2 [31:2];
});

pin!(msi_address_high_fields_stand_at_their_bits, MsiAddressHigh, u32, first 0,
    reserved 0 == [MsiAddressHigh::RESERVED], {
    address_63_32, with_address_63_32 [31:0];
});

pin!(msi_data_register_fields_stand_at_their_bits, MsiDataRegister, u32, first 0,
    reserved 0xffff_0000 == [MsiDataRegister::RESERVED], {
    data, with_data [15:0];
});

pin!(ht_msi_mapping_fields_stand_at_their_bits, HtMsiMapping, u32, first 0,
    reserved 0x7fc_0000 == [HtMsiMapping::RESERVED], {
    cap_id, with_cap_id [7:0];
    cap_ptr, with_cap_ptr [15:8];
    en, with_en [16];
    fixed, with_fixed [17];
    cap_type, with_cap_type [31:27];
});

pin!(viommu_capability_info_fields_stand_at_their_bits, ViommuCapabilityInfo, u32, first 0,
    reserved 0xff00_0000 == [ViommuCapabilityInfo::RESERVED], {
    id, with_id [15:0];
    rev, with_rev [23:16];
});

pin!(viommu_region_base_fields_stand_at_their_bits, ViommuRegionBase, u64, first 0,
    reserved 0 == [ViommuRegionBase::RESERVED], {
    enable, with_enable [0];
    address_63_1, with_address_63_1 [63:1];
});
