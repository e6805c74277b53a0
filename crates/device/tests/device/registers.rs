//! The register file: widths, masks, gates.

use amdvi_regs::DeviceId;
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::mmio::{Control, DeviceTableBase, offset};

use crate::rig::*;

const FULL_BASE: u64 = 0x0008_7654_3210_f000;

#[test]
fn reset_values() {
    let rig = Rig::new(ALL_FEATURES);
    for at in (0..0x4000).step_by(8) {
        let expected = match at {
            offset::CONTROL => 1 << 10,
            offset::COMMAND_BUFFER_BASE | offset::EVENT_LOG_BASE | offset::GA_LOG_BASE => LEN_8,
            offset::EXTENDED_FEATURE => rig.iommu.efr().into_bits(),
            offset::EXTENDED_FEATURE_2 => 1 << 8,
            offset::MSI_VECTOR_0 => 2 << 5 | 52 << 8 | 64 << 15,
            offset::MSI_CAPABILITY => 0x0080_7405,
            offset::MSI_MAPPING => 0xa803_0008,
            _ => 0,
        };
        assert_eq!(rig.read(at), expected, "{at:#x}");
    }
}

#[test]
fn any_size_and_alignment_reads_the_same_bytes() {
    let rig = Rig::new(ALL_FEATURES);
    rig.write(offset::DEVICE_TABLE_BASE, FULL_BASE | 0x155);
    rig.write(offset::COMMAND_BUFFER_BASE, FULL_BASE | 0x0a << 56);
    let mut whole = [0; 24];
    rig.iommu.mmio_read(0, &mut whole);
    assert_eq!(
        u64::from_le_bytes(whole[..8].try_into().unwrap()),
        FULL_BASE | 0x155
    );
    for size in 1..=8 {
        for at in 0..16 {
            let mut part = vec![0xaa; size];
            rig.iommu.mmio_read(at, &mut part);
            assert_eq!(part, whole[at as usize..][..size], "{size} bytes at {at}");
        }
    }
}

#[test]
fn a_write_of_any_size_changes_the_bytes_it_covers() {
    for size in 1..=8usize {
        for at in 0..8usize {
            let rig = Rig::new(ALL_FEATURES);
            let old = 0x0001_2345_6789_a0c1u64;
            rig.write(offset::DEVICE_TABLE_BASE, old);
            let new = [0x0c, 0xb0, 0x9a, 0x78, 0x56, 0x34, 0x02, 0x00];
            let covered = &new[at..8.min(at + size)];
            rig.iommu.mmio_write(at as u64, covered);
            let mut expected = old.to_le_bytes();
            expected[at..at + covered.len()].copy_from_slice(covered);
            let expected = u64::from_le_bytes(expected) & 0x000f_ffff_ffff_f1ff;
            assert_eq!(
                rig.read(offset::DEVICE_TABLE_BASE),
                expected,
                "{size} at {at}"
            );
        }
    }
}

#[test]
fn two_halves_in_either_order_make_a_register() {
    let value = FULL_BASE | 0x1ff;
    for high_first in [false, true] {
        for (at, value) in [
            (offset::DEVICE_TABLE_BASE, value),
            (offset::COMMAND_BUFFER_BASE, FULL_BASE | 0x0f << 56),
            (offset::EVENT_LOG_BASE, FULL_BASE | 0x09 << 56),
            (offset::GA_LOG_BASE, FULL_BASE | 0x08 << 56),
            (offset::GA_LOG_TAIL_ADDRESS, 0x0008_7654_3210_f0f8),
            (offset::EXCLUSION_BASE, FULL_BASE | 3),
            (offset::EXCLUSION_LIMIT, FULL_BASE),
            (offset::XT_GENERAL_INTERRUPT, 0xab00_0131_cdef_0104),
            (
                offset::CONTROL,
                Control::RESET.with_xt_en(true).with_ga_en(true).into_bits(),
            ),
        ] {
            let rig = Rig::new(ALL_FEATURES);
            if at == offset::CONTROL && high_first {
                // XTEn does not stick before GAEn.
                continue;
            }
            if high_first {
                rig.write32(at + 4, (value >> 32) as u32);
                rig.write32(at, value as u32);
            } else {
                rig.write32(at, value as u32);
                rig.write32(at + 4, (value >> 32) as u32);
            }
            assert_eq!(rig.read(at), value, "{at:#x}");
            assert_eq!(rig.read32(at), value as u32);
            assert_eq!(rig.read32(at + 4), (value >> 32) as u32);
        }
    }
}

#[test]
fn all_ones_store_only_defined_bits() {
    let rig = Rig::new(ALL_FEATURES);
    for (at, mask) in [
        (offset::DEVICE_TABLE_BASE, 0x000f_ffff_ffff_f1ff),
        (offset::COMMAND_BUFFER_BASE, 0x0f0f_ffff_ffff_f000),
        (offset::EVENT_LOG_BASE, 0x0f0f_ffff_ffff_f000),
        (offset::GA_LOG_BASE, 0x0f0f_ffff_ffff_f000),
        (offset::GA_LOG_TAIL_ADDRESS, 0x000f_ffff_ffff_fff8),
        (offset::EXCLUSION_BASE, 0x000f_ffff_ffff_f003),
        (offset::EXCLUSION_LIMIT, 0x000f_ffff_ffff_f000),
        (offset::XT_GENERAL_INTERRUPT, 0xff00_01ff_ffff_ff04),
        (offset::XT_PPR_INTERRUPT, 0xff00_01ff_ffff_ff04),
        (offset::XT_GA_INTERRUPT, 0xff00_01ff_ffff_ff04),
    ] {
        rig.write(at, u64::MAX);
        assert_eq!(rig.read(at), mask, "{at:#x}");
    }
}

#[test]
fn registers_of_features_that_are_not_offered_read_0_and_ignore_writes() {
    let rig = Rig::new("amd-iommu,ga=off,msi-cap-mmio=off");
    for at in [
        0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0xd8, 0xe0, 0xe8, 0xf0, 0xf8, 0x100, 0x130, 0x138,
        0x140, 0x148, 0x150, 0x158, 0x160, 0x168, 0x170, 0x178, 0x180, 0x190, 0x200, 0x208, 0x210,
        0x258, 0x1ff8, 0x2028, 0x2030, 0x2038, 0x2040, 0x2048, 0x2050, 0x2058, 0x2060, 0x2068,
        0x2070, 0x2078, 0x2080, 0x2088, 0x2090, 0x3000, 0x3ff8,
    ] {
        rig.write(at, u64::MAX);
        assert_eq!(rig.read(at), 0, "{at:#x}");
    }
}

#[test]
fn beyond_the_register_file_reads_are_0_and_writes_do_nothing() {
    let rig = Rig::new(ALL_FEATURES);
    let before = rig.iommu.save();
    for at in [0x3ffc, 0x4000, 0x4_0000, u64::MAX - 3, u64::MAX] {
        rig.iommu.mmio_write(at, &[0xff; 8]);
        let mut data = [0xaa; 8];
        rig.iommu.mmio_read(at, &mut data);
        assert_eq!(data, [0; 8], "{at:#x}");
    }
    assert_eq!(rig.iommu.save(), before);
    rig.iommu.mmio_write(0, &[]);
    rig.iommu.mmio_read(0, &mut []);
    assert_eq!(rig.iommu.save(), before);
}

#[test]
fn read_only_registers_ignore_writes() {
    let rig = Rig::new(ALL_FEATURES);
    for at in [
        offset::EXTENDED_FEATURE,
        offset::EXTENDED_FEATURE_2,
        offset::MSI_VECTOR_0,
        offset::MSI_MAPPING,
    ] {
        let before = rig.read(at);
        rig.write(at, !before);
        assert_eq!(rig.read(at), before, "{at:#x}");
    }
}

#[test]
fn control_bits_stick_only_where_their_feature_is_offered() {
    let always = Control::new()
        .with_iommu_en(true)
        .with_event_log_en(true)
        .with_event_int_en(true)
        .with_com_wait_int_en(true)
        .with_inv_time_out(7)
        .with_pass_pw(true)
        .with_res_pass_pw(true)
        .with_coherent(true)
        .with_isoc(true)
        .with_cmd_buf_en(true)
        .with_irt_cache_dis(true);
    let ga = always
        .with_ga_en(true)
        .with_ga_log_en(true)
        .with_ga_int_en(true);
    for (options, sticks) in [
        ("amd-iommu,intremap=off", always),
        ("amd-iommu,ga=off", always),
        ("amd-iommu,xtsup=off", ga),
        ("amd-iommu", ga.with_xt_en(true).with_int_cap_xt_en(true)),
    ] {
        let rig = Rig::new(options);
        rig.write(offset::CONTROL, u64::MAX);
        assert_eq!(rig.control(), sticks, "{options}");
    }
}

#[test]
fn num_int_remap_mode_sticks_only_with_efr2_and_only_as_00_or_01() {
    let off = Rig::new("amd-iommu");
    off.set_control(|c| c.with_num_int_remap_mode(1));
    assert_eq!(off.control().num_int_remap_mode(), 0);

    let on = Rig::new("amd-iommu,numint2k=on");
    for (value, expected) in [(0, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (0, 0)] {
        on.set_control(|c| c.with_num_int_remap_mode(value));
        assert_eq!(on.control().num_int_remap_mode(), expected, "{value}");
        assert_eq!(on.iommu.control().num_int_remap_mode(), expected);
    }
}

#[test]
fn gamen_takes_0_and_1_with_gamsup() {
    let rig = Rig::new("amd-iommu,vapic=on");
    for (value, expected) in [(2, 0), (7, 0), (1, 1), (3, 1), (0, 0)] {
        rig.set_control(|c| c.with_gam_en(value));
        assert_eq!(rig.control().gam_en(), expected, "{value}");
    }
    let without = Rig::new("amd-iommu");
    without.set_control(|c| c.with_gam_en(1));
    assert_eq!(without.control().gam_en(), 0);
}

#[test]
fn xten_needs_gaen() {
    let rig = Rig::new("amd-iommu");
    rig.set_control(|c| c.with_xt_en(true));
    assert!(!rig.control().xt_en());
    rig.set_control(|c| c.with_xt_en(true).with_ga_en(true));
    assert!(rig.control().xt_en() && rig.control().ga_en());
    rig.set_control(|c| c.with_ga_en(false));
    assert!(!rig.control().xt_en());
}

#[test]
fn device_table_segments_are_limited_to_what_is_offered() {
    for (options, max) in [
        ("amd-iommu", 0),
        ("amd-iommu,segments=2", 1),
        ("amd-iommu,segments=8", 3),
    ] {
        let rig = Rig::new(options);
        for value in 0..8 {
            rig.set_control(|c| c.with_dev_tbl_seg_en(0));
            rig.set_control(|c| c.with_dev_tbl_seg_en(value));
            let expected = if value <= max { value } else { 0 };
            assert_eq!(
                rig.control().dev_tbl_seg_en(),
                expected,
                "{options} {value}"
            );
        }
        for n in 1..8u64 {
            let at = offset::DEVICE_TABLE_SEGMENT_1 + 8 * (n - 1);
            rig.write(at, 0x1000);
            let expected = if n < 1 << max { 0x1000 } else { 0 };
            assert_eq!(rig.read(at), expected, "{options} segment {n}");
        }
    }
}

#[test]
fn a_segment_register_refuses_a_size_beyond_its_maximum() {
    let rig = Rig::new("amd-iommu,segments=8");
    for (n, max) in [(1, 0xff), (2, 0x7f), (3, 0x7f), (4, 0x3f), (7, 0x3f)] {
        let at = offset::DEVICE_TABLE_SEGMENT_1 + 8 * (n - 1);
        rig.write(at, 0x2000 | max);
        assert_eq!(rig.read(at), 0x2000 | max);
        if max < 0xff {
            rig.write(at, 0x5000 | (max + 1));
            assert_eq!(rig.read(at), 0x2000 | max, "segment {n}");
        }
    }
}

#[test]
fn the_engines_see_what_the_registers_say() {
    let rig = Rig::enabled("amd-iommu,segments=2");
    rig.write(offset::DEVICE_TABLE_SEGMENT_1, 0x1000);
    rig.set_control(|c| c.with_dev_tbl_seg_en(1));
    // DeviceID 8001h is now entry 1 of segment 1, in which IV=1 and IntCtl=00b.
    rig.memory.write(0x1000 + 32 + 16, 1);
    let mut device = rig.iommu.endpoint(amdvi_regs::DeviceId(0x8001));
    assert!(matches!(
        device.signal(msi(0)),
        amdvi_device::Signal::Blocked(_)
    ));
    assert_eq!(rig.read(offset::DEVICE_TABLE_BASE), DEVICE_TABLE | 0x1ff);
    assert_eq!(
        DeviceTableBase::from_bits(DEVICE_TABLE | 0x1ff).entries(),
        0x1_0000
    );
}

#[test]
fn status_bits_clear_by_writing_1_to_them_alone() {
    let rig = Rig::enabled("amd-iommu");
    rig.submit(&[amdvi_regs::command::CompletionWait::new().with_i(true)]);
    rig.submit(&[[0u64, 0]].map(amdvi_regs::command::Command::decode));
    let status = rig.status();
    assert!(status.com_wait_int() && status.event_log_int() && status.event_log_run());
    rig.write32(offset::STATUS, 0);
    assert_eq!(rig.status(), status);
    // Run bits are read-only, and the upper half has nothing to do with the lower.
    rig.write32(offset::STATUS, 0x198);
    rig.write32(offset::STATUS + 4, u32::MAX);
    assert_eq!(rig.status(), status);
    rig.write32(offset::STATUS, 1 << 2);
    assert_eq!(rig.status(), status.with_com_wait_int(false));
    rig.iommu.mmio_write(offset::STATUS, &[1 << 1]);
    assert!(!rig.status().event_log_int());
}

#[test]
fn a_device_table_entry_is_shown_as_it_is_in_memory_while_the_iommu_is_enabled() {
    let rig = Rig::enabled(ALL_FEATURES);
    let q0 = DteQ0::new().with_v(true).with_gv(true).with_giov(true);
    let (q1, q2) = (DteQ1::new().with_domain_id(9), DteQ2::new().with_iv(true));
    rig.set_dte(NIC, q0, q1, q2);
    let entry = rig.iommu.device_table_entry(NIC).unwrap();
    assert_eq!(
        entry.words(),
        [q0.into_bits(), q1.into_bits(), q2.into_bits(), 0]
    );
    // Behind the table's end, and outside of memory.
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE);
    assert_eq!(rig.iommu.device_table_entry(NIC), None);
    rig.write(offset::DEVICE_TABLE_BASE, NOWHERE | 0x1ff);
    assert_eq!(rig.iommu.device_table_entry(DeviceId(0)), None);
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1ff);
    rig.set_control(|control| control.with_iommu_en(false));
    assert_eq!(rig.iommu.device_table_entry(NIC), None);
}
