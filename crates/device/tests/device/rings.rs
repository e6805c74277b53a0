//! Ring registers: bases, pointers and what locks them.

use amdvi_regs::mmio::offset;

use crate::rig::*;

#[test]
fn writing_a_base_zeroes_head_and_tail() {
    let rig = Rig::new(ALL_FEATURES);
    for (base, head, tail) in [
        (
            offset::COMMAND_BUFFER_BASE,
            offset::COMMAND_HEAD,
            offset::COMMAND_TAIL,
        ),
        (
            offset::EVENT_LOG_BASE,
            offset::EVENT_HEAD,
            offset::EVENT_TAIL,
        ),
        (offset::GA_LOG_BASE, offset::GA_HEAD, offset::GA_TAIL),
    ] {
        for half in [None, Some(0), Some(4)] {
            rig.write(head, 0x20);
            rig.write(tail, 0x40);
            assert_eq!((rig.read(head), rig.read(tail)), (0x20, 0x40));
            match half {
                None => rig.write(base, 0x1000 | LEN_8),
                Some(0) => rig.write32(base, 0x2000),
                Some(at) => rig.write32(base + at, 0x0900_0000),
            }
            assert_eq!(
                (rig.read(head), rig.read(tail)),
                (0, 0),
                "{base:#x} {half:?}"
            );
        }
    }
}

#[test]
fn a_reserved_length_is_refused_as_a_whole() {
    let rig = Rig::new(ALL_FEATURES);
    for at in [
        offset::COMMAND_BUFFER_BASE,
        offset::EVENT_LOG_BASE,
        offset::GA_LOG_BASE,
    ] {
        rig.write(at, 0x3000 | 9 << 56);
        for len in 0..8u64 {
            rig.write(at, 0x7000 | len << 56);
            assert_eq!(rig.read(at), 0x3000 | 9 << 56, "{at:#x} Len={len}");
        }
    }
}

#[test]
fn pointers_are_masked_and_out_of_range_is_ignored() {
    let rig = Rig::new(ALL_FEATURES);
    for (base, pointers) in [
        (
            offset::COMMAND_BUFFER_BASE,
            [offset::COMMAND_HEAD, offset::COMMAND_TAIL],
        ),
        (
            offset::EVENT_LOG_BASE,
            [offset::EVENT_HEAD, offset::EVENT_TAIL],
        ),
    ] {
        rig.write(base, 0x1_0000 | LEN_8);
        for at in pointers {
            rig.write(at, 0xffff_ffff_fff8_0ff7);
            assert_eq!(rig.read(at), 0xff0, "{at:#x}");
            rig.write(at, 0x1000);
            assert_eq!(rig.read(at), 0xff0, "{at:#x}");
        }
        rig.write(base, 0x8_0000 | 15 << 56);
        for at in pointers {
            rig.write(at, u64::MAX);
            assert_eq!(rig.read(at), 0x7_fff0);
        }
    }
}

#[test]
fn ga_log_pointers_have_8_byte_steps_and_its_head_may_lie_behind_the_end() {
    let rig = Rig::new(ALL_FEATURES);
    rig.write(offset::GA_HEAD, 0x17);
    assert_eq!(rig.read(offset::GA_HEAD), 0x10);
    rig.write(offset::GA_HEAD, 0x1008);
    assert_eq!(rig.read(offset::GA_HEAD), 0x1008);
    rig.write(offset::GA_TAIL, 0x1008);
    assert_eq!(rig.read(offset::GA_TAIL), 0);
}

#[test]
fn run_bits_follow_enables() {
    let rig = Rig::new(ALL_FEATURES);
    let run = || {
        let status = rig.status();
        (
            status.cmd_buf_run(),
            status.event_log_run(),
            status.ga_log_run(),
        )
    };
    rig.set_control(|c| {
        c.with_cmd_buf_en(true)
            .with_event_log_en(true)
            .with_ga_log_en(true)
    });
    assert_eq!(run(), (false, false, false));
    rig.set_control(|c| c.with_iommu_en(true));
    assert_eq!(run(), (true, true, true));
    rig.set_control(|c| c.with_event_log_en(false));
    assert_eq!(run(), (true, false, true));
    rig.set_control(|c| c.with_iommu_en(false));
    assert_eq!(run(), (false, false, false));
}

#[test]
fn bases_and_hardware_owned_pointers_are_locked_while_the_ring_runs() {
    let rig = Rig::new(ALL_FEATURES);
    let registers = [
        (offset::COMMAND_BUFFER_BASE, 0x9000 | LEN_8),
        (offset::EVENT_LOG_BASE, 0xa000 | LEN_8),
        (offset::GA_LOG_BASE, 0xb000 | LEN_8),
        (offset::COMMAND_HEAD, 0x10),
        (offset::EVENT_TAIL, 0x20),
        (offset::GA_TAIL, 0x28),
    ];
    let on = |on| {
        rig.set_control(|c| {
            c.with_iommu_en(true)
                .with_cmd_buf_en(on)
                .with_event_log_en(on)
                .with_ga_log_en(on)
        });
    };
    on(true);
    for (at, value) in registers {
        let before = rig.read(at);
        rig.write(at, value);
        assert_eq!(rig.read(at), before, "{at:#x} while running");
    }
    on(false);
    for (at, value) in registers {
        rig.write(at, value);
        assert_eq!(rig.read(at), value, "{at:#x} while stopped, IommuEn=1");
    }
}

#[test]
fn software_owned_pointers_are_writable_while_the_ring_runs() {
    let rig = Rig::enabled(ALL_FEATURES);
    rig.set_control(|c| c.with_ga_log_en(true));
    for at in [offset::EVENT_HEAD, offset::GA_HEAD] {
        rig.write(at, 0x30);
        assert_eq!(rig.read(at), 0x30);
    }
}

#[test]
fn kdump_rewrites_all_bases_with_iommu_en_set() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    // The crash kernel: rings off, new bases in 32-bit halves, rings on; never IommuEn=0.
    rig.set_control(|c| c.with_cmd_buf_en(false).with_event_log_en(false));
    let half_write = |at: u64, value: u64| {
        rig.write32(at, value as u32);
        rig.write32(at + 4, (value >> 32) as u32);
    };
    half_write(offset::COMMAND_BUFFER_BASE, 0x9_0000 | 9 << 56);
    half_write(offset::EVENT_LOG_BASE, 0xa_0000 | 9 << 56);
    half_write(offset::DEVICE_TABLE_BASE, 0x30_0000 | 0xff);
    rig.write32(offset::COMMAND_HEAD, 0);
    rig.write32(offset::COMMAND_TAIL, 0);
    rig.set_control(|c| c.with_cmd_buf_en(true).with_event_log_en(true));
    assert!(rig.control().iommu_en());
    rig.completion_wait();
    // The new device table is in force: DeviceID 0005h has IV=1, IntCtl=00b there.
    rig.memory.write(0x30_0000 + 5 * 32 + 16, 1);
    let mut device = rig.iommu.endpoint(amdvi_regs::DeviceId(5));
    assert!(matches!(
        device.signal(msi(0)),
        amdvi_device::Signal::Blocked(_)
    ));
    // And it ends where the new size says: an event in the new log.
    assert!(matches!(
        rig.nic().signal(msi(0)),
        amdvi_device::Signal::Delivered(_)
    ));
    let mut outside = rig.iommu.endpoint(amdvi_regs::DeviceId(0x8000));
    assert!(matches!(
        outside.signal(msi(0)),
        amdvi_device::Signal::Blocked(_)
    ));
    assert_eq!(rig.read(offset::EVENT_TAIL), 16);
    assert_eq!(rig.memory.read(0xa_0000) & 0xffff, 0x8000);
}
