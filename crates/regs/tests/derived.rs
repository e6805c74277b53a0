//! Numbers that follow from a register's fields.

use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2, HardwareEventUpper};

#[test]
fn hats_counts_host_levels_from_4_and_3_means_none() {
    let levels = [0, 1, 2, 3].map(|n| ExtendedFeature::new().with_hats(n).host_levels());
    assert_eq!(levels, [Some(4), Some(5), Some(6), None]);
}

#[test]
fn guest_translation_fields_count_only_with_gtsup() {
    let efr = ExtendedFeature::new()
        .with_gats(1)
        .with_glx_sup(1)
        .with_pas_max(15);
    assert_eq!((efr.guest_levels(), efr.gcr3_levels()), (None, None));
    assert_eq!(efr.max_pasid(), None);
    let efr = efr.with_gt_sup(true);
    assert_eq!((efr.guest_levels(), efr.gcr3_levels()), (Some(5), Some(2)));
    let efr = efr.with_gats(3).with_glx_sup(3);
    assert_eq!((efr.guest_levels(), efr.gcr3_levels()), (None, None));
}

#[test]
fn largest_pasid_is_two_to_the_pasmax_plus_one_minus_one() {
    let efr = ExtendedFeature::new().with_gt_sup(true);
    for (pas_max, pasid) in [
        (0, 1),
        (7, 0xff),
        (15, 0xffff),
        (19, 0xf_ffff),
        (31, u32::MAX),
    ] {
        assert_eq!(efr.with_pas_max(pas_max).max_pasid(), Some(pasid));
    }
}

#[test]
fn smi_filters_are_two_to_the_smifrc_and_at_most_16() {
    let efr = ExtendedFeature::new().with_smi_frc(2);
    assert_eq!(efr.smi_filters(), 0, "without SmiFSup");
    let efr = efr.with_smi_f_sup(1);
    assert_eq!(efr.smi_filters(), 4);
    assert_eq!(efr.with_smi_frc(4).smi_filters(), 16);
    assert_eq!(efr.with_smi_frc(7).smi_filters(), 16);
    assert_eq!(efr.with_smi_f_sup(2).smi_filters(), 0, "reserved");
}

#[test]
fn interrupts_per_function_are_512_unless_numintremapsup_is_1() {
    let count = |n| {
        ExtendedFeature2::new()
            .with_num_int_remap_sup(n)
            .interrupts_per_function()
    };
    assert_eq!([0, 1, 2, 3].map(count), [512, 2048, 512, 512]);
}

#[test]
fn invalidation_timeout_is_1_ms_to_100_s() {
    let ms = |n| Control::new().with_inv_time_out(n).inv_time_out_ms();
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6, 7].map(ms),
        [
            None,
            Some(1),
            Some(10),
            Some(100),
            Some(1_000),
            Some(10_000),
            Some(100_000),
            None
        ]
    );
}

#[test]
fn hardware_event_registers_hold_the_code_in_the_upper_one() {
    let words = [0x6000_0000_0000_0028, 0x1_2340];
    let (upper, lower) = HardwareEventUpper::from_event(words);
    assert_eq!((upper.event_code(), upper.first_operand()), (6, 0x28));
    assert_eq!(lower.second_operand(), 0x1_2340);
    assert_eq!(upper.event(lower), words);
}
