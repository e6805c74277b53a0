//! Masks that are more than the complement of the fields, and register offsets.

use amdvi_regs::dte::{DTE_SIZE, Dte};
use amdvi_regs::event::EVENT_SIZE;
use amdvi_regs::mmio::{Control, DeviceTableBase, RingBase, RingPointer, Status, offset};
use amdvi_regs::pte::HostPte;
use amdvi_regs::{command, irte, log};

#[test]
fn dte_reserved_masks_match_the_literal_masks() {
    assert_eq!(Dte::Q0_RESERVED, 1 << 63 | 0b1100);
    assert_eq!(Dte::Q1_RESERVED, 0);
    assert_eq!(Dte::Q2_RESERVED, 0b11 << (180 - 128));
    assert_eq!(Dte::Q3_RESERVED, 0x7fff | 0b11_1111 << (240 - 192));
}

#[test]
fn dte_reserved_bits_count_in_their_word_only() {
    let dte = Dte::from_words([u64::MAX; 4]);
    assert_eq!(
        dte.reserved_bits_set(),
        [
            0x8000_0000_0000_000c,
            0,
            0x0030_0000_0000_0000,
            0x003f_0000_0000_7fff
        ]
    );
}

#[test]
fn pde_reserves_bits_60_to_52_and_pte_bits_56_to_52() {
    assert_eq!(HostPte::PDE_RESERVED, 0x1ff0_0000_0000_0000);
    assert_eq!(HostPte::PTE_RESERVED, 0x01f0_0000_0000_0000);
    assert_eq!(HostPte::PTE_RESERVED_WITHOUT_PMC, 0x07f0_0000_0000_0000);
    let all = HostPte::from_bits(u64::MAX);
    assert!(all.is_leaf(), "NextLevel 7");
    assert_eq!(all.reserved_bits_set(), 0x01f0_0000_0000_0000);
    assert_eq!(
        all.with_next_level(1).reserved_bits_set(),
        0x1ff0_0000_0000_0000
    );
}

#[test]
fn status_bits_are_cleared_by_software_or_owned_by_hardware_or_reserved() {
    assert_eq!(Status::RW1C, 0x6_8e67);
    assert_eq!(Status::RO, 0x1_1198);
    assert_eq!(Status::RW1C & Status::RO, 0);
    assert_eq!(Status::RW1C | Status::RO, 0x7_9fff);
    assert_eq!(Status::RESERVED, !0x7_9fff);
}

#[test]
fn control_resets_to_coherent_only() {
    assert_eq!(Control::RESET.into_bits(), 0x400);
}

#[test]
fn ring_base_resets_to_length_8_and_has_the_literal_write_mask() {
    assert_eq!(RingBase::RESET.into_bits(), 0x0800_0000_0000_0000);
    assert_eq!(RingBase::MASK, 0x0f0f_ffff_ffff_f000);
    assert_eq!(RingBase::MASK, !RingBase::RESERVED);
    assert_eq!(RingPointer::MASK_16, 0x7_fff0);
    assert_eq!(RingPointer::MASK_8, 0x7_fff8);
}

#[test]
fn ring_length_encodes_256_to_32768_entries() {
    let table = [
        (8, 256, 4),
        (9, 512, 8),
        (10, 1024, 16),
        (11, 2048, 32),
        (12, 4096, 64),
        (13, 8192, 128),
        (14, 16384, 256),
        (15, 32768, 512),
    ];
    for (length, entries, kib) in table {
        let base = RingBase::new().with_length(length);
        assert_eq!(base.entries(), Some(entries), "length {length}");
        assert_eq!(base.bytes(), Some(kib * 1024), "length {length}");
        assert_eq!(base.ga_log_entries(), Some(2 * entries), "length {length}");
    }
    for length in 0..8 {
        let base = RingBase::new().with_length(length);
        assert_eq!(base.entries(), None, "length {length} is reserved");
        assert_eq!(base.bytes(), None, "length {length} is reserved");
        assert_eq!(base.ga_log_entries(), None, "length {length} is reserved");
    }
}

#[test]
fn device_table_size_counts_4_kib_pages_minus_one() {
    assert_eq!(DeviceTableBase::MASK, 0x000f_ffff_ffff_f1ff);
    assert_eq!(DeviceTableBase::SEGMENT_MASK, 0x000f_ffff_ffff_f0ff);
    assert_eq!(DeviceTableBase::from_bits(0).entries(), 128);
    let full = DeviceTableBase::from_bits(0x0000_0012_3456_71ff);
    assert_eq!(full.entries(), 65536);
    assert_eq!(full.address(), 0x12_3456_7000);
    assert_eq!(u64::from(full.entries()) * DTE_SIZE, 2 << 20);
}

#[test]
fn device_table_segment_is_the_top_bits_of_the_device_id() {
    let rows = [
        (0, 0xabcd, (0, 0xabcd)),
        (1, 0x7fff, (0, 0x7fff)),
        (1, 0x8001, (1, 0x0001)),
        (2, 0xc001, (3, 0x0001)),
        (3, 0xffff, (7, 0x1fff)),
        (3, 0x2000, (1, 0x0000)),
        // Reserved encodings count as eight segments.
        (7, 0xffff, (7, 0x1fff)),
    ];
    for (log2, device_id, want) in rows {
        let got = DeviceTableBase::segment_of(device_id, log2);
        assert_eq!(got, want, "2^{log2} segments, DeviceID {device_id:#x}");
    }
}

#[test]
fn largest_segment_sizes_are_the_literal_ones() {
    assert_eq!(
        DeviceTableBase::MAX_SIZE,
        [0x1ff, 0xff, 0x7f, 0x7f, 0x3f, 0x3f, 0x3f, 0x3f]
    );
}

#[test]
fn entry_sizes_are_the_literal_ones() {
    assert_eq!(DTE_SIZE, 32);
    assert_eq!(size_of::<Dte>(), 32);
    assert_eq!(command::COMMAND_SIZE, 16);
    assert_eq!(EVENT_SIZE, 16);
    assert_eq!(log::PPR_LOG_ENTRY_SIZE, 16);
    assert_eq!(log::GA_LOG_ENTRY_SIZE, 8);
    assert_eq!(irte::IRTE32_SIZE, 4);
    assert_eq!(irte::IRTE128_SIZE, 16);
}

#[test]
fn registers_stand_at_their_offsets() {
    let rows = [
        (offset::DEVICE_TABLE_BASE, 0x0000),
        (offset::COMMAND_BUFFER_BASE, 0x0008),
        (offset::EVENT_LOG_BASE, 0x0010),
        (offset::CONTROL, 0x0018),
        (offset::EXCLUSION_BASE, 0x0020),
        (offset::EXCLUSION_LIMIT, 0x0028),
        (offset::EXTENDED_FEATURE, 0x0030),
        (offset::PPR_LOG_BASE, 0x0038),
        (offset::HARDWARE_EVENT_UPPER, 0x0040),
        (offset::HARDWARE_EVENT_LOWER, 0x0048),
        (offset::HARDWARE_EVENT_STATUS, 0x0050),
        (offset::smi_filter(0), 0x0060),
        (offset::smi_filter(15), 0x00d8),
        (offset::GA_LOG_BASE, 0x00e0),
        (offset::GA_LOG_TAIL_ADDRESS, 0x00e8),
        (offset::PPR_LOG_B_BASE, 0x00f0),
        (offset::EVENT_LOG_B_BASE, 0x00f8),
        (offset::device_table_base(0), 0x0000),
        (offset::device_table_base(1), 0x0100),
        (offset::device_table_base(7), 0x0130),
        (offset::DSFX, 0x0138),
        (offset::DSCX, 0x0140),
        (offset::DSSX, 0x0148),
        (offset::MSI_VECTOR_0, 0x0150),
        (offset::MSI_VECTOR_1, 0x0154),
        (offset::MSI_CAPABILITY, 0x0158),
        (offset::MSI_ADDRESS_LOW, 0x015c),
        (offset::MSI_ADDRESS_HIGH, 0x0160),
        (offset::MSI_DATA, 0x0164),
        (offset::MSI_MAPPING, 0x0168),
        (offset::PERFORMANCE_OPTIMIZATION, 0x016c),
        (offset::XT_GENERAL_INTERRUPT, 0x0170),
        (offset::XT_PPR_INTERRUPT, 0x0178),
        (offset::XT_GA_INTERRUPT, 0x0180),
        (offset::VIOMMU_STATUS, 0x0190),
        (offset::EXTENDED_FEATURE_2, 0x01a0),
        (offset::marc_base(0), 0x0200),
        (offset::marc_relocation(0), 0x0208),
        (offset::marc_length(0), 0x0210),
        (offset::marc_base(3), 0x0248),
        (offset::marc_relocation(3), 0x0250),
        (offset::marc_length(3), 0x0258),
        (offset::RESERVED_1FF8, 0x1ff8),
        (offset::COMMAND_HEAD, 0x2000),
        (offset::COMMAND_TAIL, 0x2008),
        (offset::EVENT_HEAD, 0x2010),
        (offset::EVENT_TAIL, 0x2018),
        (offset::STATUS, 0x2020),
        (offset::PPR_HEAD, 0x2030),
        (offset::PPR_TAIL, 0x2038),
        (offset::GA_HEAD, 0x2040),
        (offset::GA_TAIL, 0x2048),
        (offset::PPR_B_HEAD, 0x2050),
        (offset::PPR_B_TAIL, 0x2058),
        (offset::EVENT_B_HEAD, 0x2070),
        (offset::EVENT_B_TAIL, 0x2078),
        (offset::PPR_AUTO_RESPONSE, 0x2080),
        (offset::PPR_OVERFLOW_EARLY, 0x2088),
        (offset::PPR_B_OVERFLOW_EARLY, 0x2090),
        (offset::COUNTER_CONFIG, 0x4000),
        (offset::COUNTER_PASID_LOCK, 0x4008),
        (offset::COUNTER_DOMAIN_LOCK, 0x4010),
        (offset::COUNTER_DEVICE_LOCK, 0x4018),
        (offset::COUNTER_BANKS, 0x4_0000),
        (offset::REGION_SIZE, 0x4000),
        (offset::REGION_SIZE_WITH_COUNTERS, 0x8_0000),
    ];
    for (n, (got, want)) in rows.into_iter().enumerate() {
        assert_eq!(got, want, "row {n}");
    }
}
