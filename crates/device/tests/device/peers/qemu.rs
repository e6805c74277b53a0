//! QEMU amd-iommu, as of 11.1.

use amdvi_device::{Abort, Signal};
use amdvi_dma::{Access, Reason};
use amdvi_irt::{FaultReason, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletionWait};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::mmio::offset;
use amdvi_regs::msi::{DeliveryMode, Msi};

use super::{blocked, set_q2};
use crate::endpoint::map_page;
use crate::rig::*;

#[test]
fn qemu_defect_01_event_log_base_never_written_does_not_crash() {
    let rig = Rig::new("amd-iommu");
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1ff);
    rig.set_control(|c| c.with_iommu_en(true).with_event_log_en(true));
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    for _ in 0..300 {
        blocked(nic.signal(msi(0)));
    }
    // The reset value is a ring of 256 entries at GPA 0, and it obeys the ring's rules.
    assert_eq!(rig.read(offset::EVENT_TAIL), 0xff0);
    assert!(rig.status().event_overflow());
}

#[test]
fn qemu_defect_02_command_base_never_written_does_not_loop() {
    let rig = Rig::new("amd-iommu");
    rig.write(offset::EVENT_LOG_BASE, EVENTS | LEN_8);
    rig.write32(offset::COMMAND_TAIL, 0x40);
    rig.set_control(|c| {
        c.with_iommu_en(true)
            .with_event_log_en(true)
            .with_cmd_buf_en(true)
    });
    // GPA 0 holds zeros, which are no command.
    assert!(
        matches!(rig.take_events()[..], [Event::IllegalCommandError(e)] if e.address_16() == 0)
    );
    assert!(!rig.status().cmd_buf_run());
    assert!(!rig.iommu.run_commands());
    assert!(rig.memory.accesses() < 10);
}

#[test]
fn qemu_defect_03_dma_remap_off_offers_no_translation_and_on_translates() {
    assert_eq!(Rig::new("amd-iommu,dma-remap=off").iommu.efr().hats(), 3);
    let rig = Rig::enabled("amd-iommu,dma-remap=off");
    map_page(&rig, true);
    assert!(
        rig.nic().translate(0x5000, 4, Access::Write).is_err(),
        "never untranslated"
    );
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    assert_eq!(
        rig.nic().translate(0x5000, 4, Access::Write).unwrap().gpa,
        0x3c000
    );
}

#[test]
fn qemu_defect_04_dma_is_translated_right_after_restore() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    let state = rig.iommu.save();
    rig.iommu.reset();
    let mut nic = rig.nic();
    assert_eq!(nic.translate(0x5000, 4, Access::Write).unwrap().gpa, 0x5000);
    rig.iommu.restore(&state).unwrap();
    assert_eq!(
        nic.translate(0x5000, 4, Access::Write).unwrap().gpa,
        0x3c000
    );
}

#[test]
fn qemu_defect_05_mode_0_obeys_ir_and_iw() {
    let rig = Rig::enabled("amd-iommu");
    let q0 = DteQ0::new().with_v(true).with_tv(true).with_ir(true);
    rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new());
    let mut nic = rig.nic();
    assert_eq!(nic.translate(0x5000, 4, Access::Read).unwrap().gpa, 0x5000);
    let abort = nic.translate(0x5000, 4, Access::Write).unwrap_err();
    assert_eq!(
        abort,
        Abort::Translation(Reason::Permission { level: None })
    );
}

#[test]
fn qemu_defect_07_a_device_id_past_the_device_table_is_not_translated() {
    let rig = Rig::enabled("amd-iommu");
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE);
    let mut inside = rig.iommu.endpoint(DeviceId(127));
    let mut outside = rig.iommu.endpoint(DeviceId(128));
    assert!(matches!(inside.signal(msi(0x31)), Signal::Delivered(_)));
    inside.translate(0x5000, 4, Access::Read).unwrap();
    assert_eq!(
        blocked(outside.signal(msi(0x31))),
        FaultReason::DeviceIdOutOfRange
    );
    let abort = outside.translate(0x5000, 4, Access::Write).unwrap_err();
    assert_eq!(abort, Abort::DeviceIdOutOfRange(DeviceId(128)));
    let words: Vec<_> = rig.take_events().iter().map(Event::words).collect();
    assert_eq!(
        words,
        [
            [2 << 60 | 1 << 51 | 128, 0xfee0_0000],
            [2 << 60 | 1 << 53 | 128, 0x5000]
        ]
    );
}

#[test]
fn qemu_defect_08_a_dte_enabled_with_invalidate_iommu_all_takes_effect() {
    let rig = Rig::enabled("amd-iommu");
    let mut nic = rig.nic();
    assert!(matches!(nic.signal(msi(0)), Signal::Delivered(_)));
    assert_eq!(nic.translate(0x5000, 4, Access::Read).unwrap().gpa, 0x5000);
    let q0 = DteQ0::new().with_v(true).with_tv(true);
    rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new().with_iv(true));
    rig.submit(&[invalidate_all()]);
    rig.completion_wait();
    assert_eq!(blocked(nic.signal(msi(0))), FaultReason::IntCtlAbort);
    assert!(nic.translate(0x5000, 4, Access::Read).is_err());
}

#[test]
fn qemu_defect_09_a_dma_write_to_the_msi_window_is_an_interrupt_of_its_own_device() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    let abort = nic.translate(0xfee0_0000, 4, Access::Write).unwrap_err();
    assert_eq!(abort, Abort::Translation(Reason::InterruptWindow));
    assert!(
        rig.take_events().is_empty(),
        "the interrupt path logs, and once"
    );
    blocked(nic.signal(msi(7)));
    let [low, _] = rig.take_event_words();
    assert_eq!(low & 0xffff, u64::from(NIC.0));
}

#[test]
fn qemu_defect_11_events_carry_the_address() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, false);
    let mut nic = rig.nic();
    nic.translate(0x1_2345_6789, 4, Access::Read).unwrap_err();
    assert_eq!(rig.take_event_words()[1], 0x1_2345_6789);
    rig.remap_interrupts(NIC, 9);
    rig.submit(&[invalidate_dte(NIC)]);
    blocked(nic.signal(Msi {
        address: 0xfee1_2340,
        data: 3,
    }));
    assert_eq!(rig.take_event_words()[1], 0xfee1_2340);
}

#[test]
fn qemu_defect_12_event_flags_say_what_happened() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, false);
    let mut nic = rig.nic();
    let mut dma = |iova, access| {
        nic.translate(iova, 4, access).unwrap_err();
        let Some(&Event::IoPageFault(e)) = rig.take_events().first() else {
            panic!()
        };
        (e.i(), e.pr(), e.rw(), e.pe(), e.pasid_domain_id())
    };
    assert_eq!(
        dma(0x6000, Access::Read),
        (false, false, false, false, 0x77)
    );
    assert_eq!(
        dma(0x6000, Access::Write),
        (false, false, true, false, 0x77)
    );
    assert_eq!(dma(0x5000, Access::Write), (false, true, true, true, 0x77));
    rig.set_dte(
        NIC,
        DteQ0::new(),
        DteQ1::new().with_domain_id(0x66),
        remapping(9),
    );
    rig.submit(&[invalidate_dte(NIC)]);
    blocked(rig.nic().signal(msi(0)));
    let Some(&Event::IoPageFault(e)) = rig.take_events().first() else {
        panic!()
    };
    assert!(e.i() && !e.pr() && !e.rw());
    assert_eq!(e.pasid_domain_id(), 0x66);
}

#[test]
fn qemu_defect_13_the_device_id_of_an_event_has_its_bus() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    rig.nic().translate(0x6000, 4, Access::Read).unwrap_err();
    assert_eq!(rig.take_event_words()[0] as u16, 0x121c);
}

#[test]
fn qemu_defect_14_every_aborted_access_has_its_event() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, false);
    let mut nic = rig.nic();
    nic.translate(0x5000, 4, Access::Read).unwrap();
    nic.translate(0x5000, 4, Access::Write).unwrap_err();
    assert!(
        matches!(rig.take_events()[..], [Event::IoPageFault(_)]),
        "read-only, used before"
    );
    let mut with_dte = |q0: DteQ0| {
        rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new());
        rig.submit(&[invalidate_dte(NIC)]);
        nic.translate(0x5000, 4, Access::Read).unwrap_err();
        rig.take_events()
    };
    let v = DteQ0::new().with_v(true).with_ir(true);
    assert!(matches!(with_dte(v)[..], [Event::IoPageFault(_)]), "TV=0");
    let mode_7 = with_dte(v.with_tv(true).with_mode(7));
    assert!(matches!(mode_7[..], [Event::IllegalDevTableEntry(_)]));
}

#[test]
fn qemu_defect_15_sa_suppresses_page_faults_and_one_access_logs_one_event() {
    let rig = Rig::enabled("amd-iommu");
    let q0 = DteQ0::new().with_v(true).with_tv(true);
    rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new());
    let mut nic = rig.nic();
    nic.translate(0x5000, 64, Access::Write).unwrap_err();
    assert_eq!(rig.take_events().len(), 1);
    rig.set_dte(NIC, q0, DteQ1::new().with_sa(true), DteQ2::new());
    rig.submit(&[invalidate_dte(NIC)]);
    nic.translate(0x5000, 64, Access::Write).unwrap_err();
    assert!(rig.take_events().is_empty());
}

#[test]
fn qemu_defect_16_overflow_sets_status_and_stops_the_log_whatever_event_int_en_says() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    for _ in 0..256 {
        blocked(nic.signal(msi(0)));
    }
    let status = rig.status();
    assert!(status.event_overflow() && !status.event_log_run() && status.event_log_int());
    // And EventLogInt=1 locks nothing.
    rig.write(offset::EVENT_LOG_BASE, 0x9_0000 | LEN_8);
    assert_eq!(rig.read(offset::EVENT_LOG_BASE), 0x9_0000 | LEN_8);
}

#[test]
fn qemu_defect_17_illegal_and_faulting_commands_halt_the_command_buffer() {
    for (command, code) in [
        (Command::decode([0xf << 60, 0]), 5),
        (completion_wait_store(NOWHERE, 1).into(), 6),
    ] {
        let rig = Rig::enabled("amd-iommu");
        rig.submit(&[command, completion_wait_store(STORE, 1).into()]);
        assert!(!rig.status().cmd_buf_run());
        assert_eq!(rig.memory.read(STORE), 0);
        assert_eq!(rig.read(offset::COMMAND_HEAD), 0);
        assert_eq!(rig.take_event_words()[0] >> 60, code);
    }
}

#[test]
fn qemu_defect_18_int_ctl_1_forwards_the_message_unmapped() {
    let rig = Rig::enabled("amd-iommu");
    set_q2(&rig, remapping(9).with_int_ctl(1));
    rig.set_irte32(0x61, fixed(0x99, 7));
    let delivery = delivered(rig.nic().signal(Msi {
        address: 0xfee0_5000,
        data: 0x61,
    }));
    assert_eq!((delivery.vector, delivery.dest), (0x61, 5));
}

#[test]
fn qemu_defect_19_int_tab_len_and_iommu_en_are_obeyed() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 3);
    for index in 0..16 {
        rig.set_irte32(index, fixed(0x40 + index as u8, 0));
    }
    let mut nic = rig.nic();
    assert_eq!(delivered(nic.signal(msi(7))).vector, 0x47);
    assert_eq!(blocked(nic.signal(msi(8))), FaultReason::IndexOutOfRange);
    rig.set_control(|c| c.with_iommu_en(false));
    assert_eq!(
        delivered(nic.signal(msi(7))).vector,
        7,
        "not remapped while disabled"
    );
}

#[test]
fn qemu_defect_20_level_trigger_is_kept_and_rq_eoi_is_its_own_thing() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(1, fixed(0x41, 0).with_rq_eoi(true));
    rig.set_irte32(2, fixed(0x42, 0));
    let mut nic = rig.nic();
    let level = delivered(nic.signal(msi(1 | 1 << 15 | 1 << 14)));
    assert_eq!(
        (level.trigger, level.assert, level.rq_eoi),
        (Trigger::Level, true, true)
    );
    assert_eq!(level.delivery_mode, DeliveryMode::Fixed);
    let edge = delivered(nic.signal(msi(2)));
    assert_eq!((edge.trigger, edge.rq_eoi), (Trigger::Edge, false));
}

#[test]
fn qemu_defect_21_completion_wait_interrupts_only_with_com_wait_int_en() {
    for enabled in [false, true] {
        let rig = Rig::enabled("amd-iommu");
        rig.enable_msi(0x51);
        rig.set_control(|c| c.with_com_wait_int_en(enabled));
        rig.submit(&[CompletionWait::new().with_i(true)]);
        assert!(rig.status().com_wait_int());
        assert_eq!(rig.take_vectors().len(), usize::from(enabled));
    }
}

#[test]
fn qemu_defect_22_an_ioapic_has_the_device_id_that_it_is_given() {
    for id in [0x00a0, 0x00fa, 0xf0a8].map(DeviceId) {
        let rig = Rig::enabled("amd-iommu");
        rig.remap_interrupts(id, 9);
        rig.set_irte32(4, fixed(0x44, 0));
        let mut ioapic = rig.iommu.endpoint(id);
        assert_eq!(delivered(ioapic.signal(msi(4))).vector, 0x44);
        blocked(ioapic.signal(msi(5)));
        assert_eq!(rig.take_event_words()[0] as u16, id.0);
    }
}

#[test]
fn qemu_defect_23_bytes_read_right_and_a_base_written_high_half_first_is_kept() {
    let rig = Rig::new("amd-iommu");
    rig.write32(offset::DEVICE_TABLE_BASE + 4, 0x0002_3456);
    rig.write32(offset::DEVICE_TABLE_BASE, 0x789a_b1ff);
    assert_eq!(rig.read(offset::DEVICE_TABLE_BASE), 0x0002_3456_789a_b1ff);
    let bytes: Vec<u8> = (0..8)
        .map(|at| {
            let mut byte = [0xaa];
            rig.iommu.mmio_read(at, &mut byte);
            byte[0]
        })
        .collect();
    assert_eq!(bytes, 0x0002_3456_789a_b1ffu64.to_le_bytes());
}

#[test]
fn qemu_defect_24_the_enable_bit_reads_1_and_the_one_msi_capability_is_used() {
    let rig = Rig::enabled("amd-iommu");
    assert_eq!(rig.config(0x44) & 1, 1);
    let mut at = rig.config(0x34) as u16;
    let mut found = Vec::new();
    while at != 0 {
        if rig.config(at) as u8 == 5 {
            found.push(at);
        }
        at = rig.config(at) as u16 >> 8;
    }
    let [at] = found[..] else { panic!("{found:?}") };
    rig.set_config(at + 4, 0xfee0_0000);
    rig.set_config(at + 12, 0x5a);
    rig.set_config(at, 1 << 16);
    rig.set_control(|c| c.with_com_wait_int_en(true));
    rig.submit(&[CompletionWait::new().with_i(true)]);
    assert_eq!(rig.take_vectors(), [0x5a]);
}

#[test]
fn qemu_defect_25_hats_and_gats_fit_their_two_bits() {
    for (options, hats) in [
        ("hats=4", 0),
        ("hats=5", 1),
        ("hats=6", 2),
        ("dma-remap=off", 3),
    ] {
        let efr = Rig::new(&format!("amd-iommu,{options}")).iommu.efr();
        assert_eq!((efr.into_bits() >> 10 & 3, efr.gats()), (hats, 0));
    }
}
