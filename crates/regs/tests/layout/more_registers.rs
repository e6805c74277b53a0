//! Literal bit positions; see `main.rs`.

use amdvi_regs::mmio::{
    CompletionStoreBase, CompletionStoreLimit, CounterConfig, CounterReport, CounterSource,
    CounterValue, DeviceIdMatch, DeviceSpecific, DomainMatch, ExclusionBase, ExclusionLimit,
    GaLogTailAddress, HardwareEventLower, HardwareEventStatus, HardwareEventUpper, MarcBase,
    MarcLength, MarcRelocation, PasidMatch, PerformanceOptimization, PprAutoResponse,
    PprOverflowEarly, SmiFilter, ViommuStatus,
};

use crate::pin::pin;

pin!(exclusion_base_fields_stand_at_their_bits, ExclusionBase, u64, first 0,
    reserved 0xfff0_0000_0000_0ffc == [ExclusionBase::RESERVED], {
    ex_en, with_ex_en [0];
    allow, with_allow [1];
    base_page, with_base_page [51:12];
});

pin!(exclusion_limit_fields_stand_at_their_bits, ExclusionLimit, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [ExclusionLimit::RESERVED], {
    limit_page, with_limit_page [51:12];
});

pin!(completion_store_base_fields_stand_at_their_bits, CompletionStoreBase, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [CompletionStoreBase::RESERVED], {
    base_page, with_base_page [51:12];
});

pin!(completion_store_limit_fields_stand_at_their_bits, CompletionStoreLimit, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [CompletionStoreLimit::RESERVED], {
    limit_page, with_limit_page [51:12];
});

pin!(marc_base_fields_stand_at_their_bits, MarcBase, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [MarcBase::RESERVED], {
    base_page, with_base_page [51:12];
});

pin!(marc_length_fields_stand_at_their_bits, MarcLength, u64, first 0,
    reserved 0xfff0_0000_0000_0fff == [MarcLength::RESERVED], {
    length_pages, with_length_pages [51:12];
});

pin!(marc_relocation_fields_stand_at_their_bits, MarcRelocation, u64, first 0,
    reserved 0xfff0_0000_0000_0ffc == [MarcRelocation::RESERVED], {
    reloc_en, with_reloc_en [0];
    read_only, with_read_only [1];
    address_page, with_address_page [51:12];
});

pin!(ga_log_tail_address_fields_stand_at_their_bits, GaLogTailAddress, u64, first 0,
    reserved 0xfff0_0000_0000_0007 == [GaLogTailAddress::RESERVED], {
    address_8, with_address_8 [51:3];
});

pin!(hardware_event_upper_fields_stand_at_their_bits, HardwareEventUpper, u64, first 0,
    reserved 0 == [HardwareEventUpper::RESERVED], {
    first_operand, with_first_operand [59:0];
    event_code, with_event_code [63:60];
});

pin!(hardware_event_lower_fields_stand_at_their_bits, HardwareEventLower, u64, first 0,
    reserved 0 == [HardwareEventLower::RESERVED], {
    second_operand, with_second_operand [63:0];
});

pin!(hardware_event_status_fields_stand_at_their_bits, HardwareEventStatus, u64, first 0,
    reserved 0xffff_ffff_ffff_fffc == [HardwareEventStatus::RESERVED], {
    hev, with_hev [0];
    heo, with_heo [1];
});

pin!(smi_filter_fields_stand_at_their_bits, SmiFilter, u64, first 0,
    reserved 0xffff_ffff_fffc_0000 == [SmiFilter::RESERVED], {
    smi_did, with_smi_did [15:0];
    smi_dv, with_smi_dv [16];
    smi_f_lock, with_smi_f_lock [17];
});

pin!(device_specific_fields_stand_at_their_bits, DeviceSpecific, u64, first 0,
    reserved 0xffff_ffff_0000_0000 == [DeviceSpecific::RESERVED], {
    implementation, with_implementation [23:0];
    rev_minor, with_rev_minor [27:24];
    rev_major, with_rev_major [31:28];
});

pin!(performance_optimization_fields_stand_at_their_bits, PerformanceOptimization, u32, first 0,
    reserved 0xffff_dfff == [PerformanceOptimization::RESERVED], {
    perf_opt_en, with_perf_opt_en [13];
});

pin!(viommu_status_fields_stand_at_their_bits, ViommuStatus, u64, first 0,
    reserved 0 == [ViommuStatus::RESERVED], {
    raw, with_raw [63:0];
});

pin!(ppr_auto_response_fields_stand_at_their_bits, PprAutoResponse, u64, first 0,
    reserved 0xffff_ffff_ffff_ffe0 == [PprAutoResponse::RESERVED], {
    auto_resp_code, with_auto_resp_code [3:0];
    mask_gen, with_mask_gen [4];
});

pin!(ppr_overflow_early_fields_stand_at_their_bits, PprOverflowEarly, u64, first 0,
    reserved 0xffff_ffff_3fff_8000 == [PprOverflowEarly::RESERVED], {
    threshold, with_threshold [14:0];
    int_en, with_int_en [30];
    en, with_en [31];
});

pin!(counter_config_fields_stand_at_their_bits, CounterConfig, u64, first 0,
    reserved 0xffff_ffff_fffc_087f == [CounterConfig::RESERVED], {
    n_counter, with_n_counter [10:7];
    n_counter_banks, with_n_counter_banks [17:12];
});

pin!(counter_value_fields_stand_at_their_bits, CounterValue, u64, first 0,
    reserved 0xffff_0000_0000_0000 == [CounterValue::RESERVED], {
    value, with_value [47:0];
});

pin!(counter_source_fields_stand_at_their_bits, CounterSource, u64, first 0,
    reserved 0xffff_ffff_3fff_ff00 == [CounterSource::RESERVED], {
    c_source, with_c_source [7:0];
    c_units, with_c_units [30];
    cac, with_cac [31];
});

pin!(pasid_match_fields_stand_at_their_bits, PasidMatch, u64, first 0,
    reserved 0xfff0_0000_7ff0_0000 == [PasidMatch::RESERVED], {
    value, with_value [19:0];
    enable, with_enable [31];
    mask, with_mask [51:32];
});

pin!(domain_match_fields_stand_at_their_bits, DomainMatch, u64, first 0,
    reserved 0xffff_0000_7fff_0000 == [DomainMatch::RESERVED], {
    value, with_value [15:0];
    enable, with_enable [31];
    mask, with_mask [47:32];
});

pin!(device_id_match_fields_stand_at_their_bits, DeviceIdMatch, u64, first 0,
    reserved 0xffff_0000_7fff_0000 == [DeviceIdMatch::RESERVED], {
    value, with_value [15:0];
    enable, with_enable [31];
    mask, with_mask [47:32];
});

pin!(counter_report_fields_stand_at_their_bits, CounterReport, u64, first 0,
    reserved 0x7ff0_0000_0000_0000 == [CounterReport::RESERVED], {
    counter_note, with_counter_note [51:0];
    cere, with_cere [63];
});
