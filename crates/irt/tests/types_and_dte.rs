//! 48882 §2.2.5 and table 19: what the DTE and the message type decide.
#![allow(missing_docs)]

mod common;

use amdvi_irt::{Fault, FaultReason, LintPin, Outcome};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::{Dte, DteQ2};
use amdvi_regs::event::{DevTabHardwareError, IoPageFault};
use amdvi_regs::mmio::{Control, DeviceTableBase};
use amdvi_regs::msi::DeliveryMode;
use common::*;

// ---- before the DTE ----

#[test]
fn with_iommu_en_0_messages_pass_untouched() {
    let mut rig = Rig::new(NO_2K, Control::RESET, 9);
    assert_eq!(
        rig.remap(0xfee0_500c, 0x4131),
        forwarded(0xfee0_500c, 0x4131)
    );
}

#[test]
fn an_address_outside_the_msi_window_is_no_interrupt() {
    let mut rig = legacy();
    rig.set_irte32(0, irte32(0x40, 1).into_bits());
    for address in [0, 0xfedf_fffc, 0xfef0_0000, 0x1_fee0_0000] {
        assert_eq!(rig.remap(address, 0), silent(FaultReason::NotAnInterrupt));
    }
    assert_eq!(rig.remap(0xfeef_f000, 0), fixed(0x40, 1));
}

#[test]
fn a_device_id_past_the_device_table_faults_without_domain() {
    let mut rig = legacy();
    rig.device.slot().set_device_id(DeviceId(0x80));
    let event = IoPageFault::new()
        .with_device_id(0x80)
        .with_i(true)
        .with_address(PHYSICAL);
    assert_eq!(
        rig.remap(PHYSICAL, 0),
        Outcome::Blocked(Fault::new(FaultReason::DeviceIdOutOfRange, event.into()))
    );
}

#[test]
fn an_unreadable_dte_is_a_device_table_hardware_error() {
    let mut rig = legacy();
    rig.fabric
        .view
        .set_device_table(0, DeviceTableBase::new().with_base_page(HOLE >> 12));
    let event = DevTabHardwareError::new()
        .with_device_id(DEVICE.0)
        .with_i(true)
        .with_kind(1)
        .with_address_16((HOLE + 0x28 * 32) >> 4);
    assert_eq!(
        rig.remap(PHYSICAL, 0),
        Outcome::Blocked(Fault::new(FaultReason::DteUnreadable, event.into()))
    );
}

// ---- the DTE ----

#[test]
fn openvmm_defect_09_iv_alone_decides_whether_interrupts_are_mapped() {
    let mut rig = legacy();
    rig.set_irte32(5, irte32(0x41, 2).into_bits());
    for v in [false, true] {
        let mut dte = rig.dte(9);
        dte.q0 = dte.q0.with_v(v);
        rig.set_dte(dte);
        assert_eq!(rig.remap(PHYSICAL, 5), fixed(0x41, 2), "IV=1, V={v}");
        dte.q2 = dte.q2.with_iv(false);
        rig.set_dte(dte);
        assert_eq!(
            rig.remap(0xfee0_7000, 5),
            forwarded(0xfee0_7000, 5),
            "IV=0, V={v}"
        );
    }
}

#[test]
fn int_ctl_0_aborts_without_an_event() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_ctl(0));
    assert_eq!(rig.remap(PHYSICAL, 5), silent(FaultReason::IntCtlAbort));
}

#[test]
fn qemu_defect_18_int_ctl_1_forwards_the_message_with_its_own_vector() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_ctl(1));
    assert_eq!(rig.remap(0xfee0_3000, 0x57), forwarded(0xfee0_3000, 0x57));
}

#[test]
fn int_ctl_3_is_an_illegal_dte() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_ctl(3));
    assert_eq!(
        rig.remap(PHYSICAL, 5),
        illegal_dte(FaultReason::IntCtlReserved, PHYSICAL, true)
    );
}

#[test]
fn int_tab_len_12_to_15_is_an_illegal_dte() {
    let mut rig = legacy();
    for len in 12..=15 {
        rig.set_q2(|q2| q2.with_int_tab_len(len));
        let expected = illegal_dte(FaultReason::IntTabLenReserved, PHYSICAL, false);
        assert_eq!(rig.remap(PHYSICAL, 5), expected);
    }
}

#[test]
fn each_reserved_bit_of_the_upper_half_is_an_illegal_dte_when_iv_is_1() {
    let mut rig = legacy();
    rig.set_irte32(5, irte32(0x41, 2).into_bits());
    // DTE bits [183:180], 187 and [245:192], with the features of this rig.
    let q2_bits = [52, 53, 54, 55, 59].map(|bit| (2, bit));
    let q3_bits = (0..54).map(|bit| (3, bit));
    for (word, bit) in q2_bits.into_iter().chain(q3_bits) {
        let mut words = rig.dte(9).words();
        words[word] |= 1 << bit;
        rig.set_dte(Dte::from_words(words));
        let expected = illegal_dte(FaultReason::DteReservedBits, PHYSICAL, true);
        assert_eq!(rig.remap(PHYSICAL, 5), expected, "word {word} bit {bit}");
        words[2] &= !1;
        rig.set_dte(Dte::from_words(words));
        assert_eq!(
            rig.remap(PHYSICAL, 5),
            forwarded(PHYSICAL, 5),
            "IV=0 checks nothing"
        );
    }
    let mut words = rig.dte(9).words();
    words[3] |= 0xffc0_0000_0000_0000; // AttrV, Mode0FC, SnoopAttribute are defined
    rig.set_dte(Dte::from_words(words));
    assert_eq!(rig.remap(PHYSICAL, 5), fixed(0x41, 2));
}

// ---- message types ----

#[test]
fn openvmm_defect_10_nmi_init_and_extint_go_by_their_pass_bits() {
    type SetPass = fn(DteQ2, bool) -> DteQ2;
    let cases: [(u32, SetPass); 3] = [
        (4, DteQ2::with_nmi_pass),
        (5, DteQ2::with_init_pass),
        (7, DteQ2::with_eint_pass),
    ];
    let mut rig = legacy();
    for (mode, set) in cases {
        for int_ctl in 0..4 {
            let data = mode << 8 | 0x33;
            rig.set_q2(|q2| set(q2, true).with_int_ctl(int_ctl));
            assert_eq!(rig.remap(0xfee0_2000, data), forwarded(0xfee0_2000, data));
            let others = DteQ2::new()
                .with_nmi_pass(true)
                .with_init_pass(true)
                .with_eint_pass(true);
            rig.set_q2(|q2| {
                let all = DteQ2::from_bits(q2.into_bits() | others.into_bits());
                set(all, false).with_int_ctl(int_ctl)
            });
            assert_eq!(rig.remap(0xfee0_2000, data), silent(FaultReason::NotPassed));
        }
    }
}

#[test]
fn smi_passes_without_a_filter() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_ctl(0));
    assert_eq!(rig.remap(0xfee0_2000, 0x233), forwarded(0xfee0_2000, 0x233));
}

#[test]
fn reserved_delivery_modes_are_aborted() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_ctl(1).with_nmi_pass(true).with_init_pass(true));
    for mode in [3, 6] {
        assert_eq!(
            rig.remap(PHYSICAL, mode << 8),
            silent(FaultReason::DeliveryModeReserved)
        );
    }
}

#[test]
fn types_other_than_fixed_and_arbitrated_need_physical_destination_mode() {
    let mut rig = legacy();
    rig.set_q2(|q2| {
        q2.with_nmi_pass(true)
            .with_init_pass(true)
            .with_eint_pass(true)
    });
    for mode in [2, 4, 5, 7] {
        assert_eq!(
            rig.remap(LOGICAL, mode << 8),
            silent(FaultReason::LogicalDestination)
        );
    }
}

#[test]
fn lint_messages_go_by_their_own_pass_bits() {
    let mut rig = legacy();
    let lint = |rig: &mut Rig, pin| rig.device.lint(&rig.memory, pin).outcome;
    for (pin, mode) in [
        (LintPin::Lint0, DeliveryMode::ExtInt),
        (LintPin::Lint1, DeliveryMode::Nmi),
    ] {
        rig.set_q2(|q2| q2);
        assert_eq!(lint(&mut rig, pin), silent(FaultReason::NotPassed));
        rig.set_q2(|q2| match pin {
            LintPin::Lint0 => q2.with_lint0_pass(true),
            LintPin::Lint1 => q2.with_lint1_pass(true),
        });
        let Outcome::Deliver(delivery) = lint(&mut rig, pin) else {
            panic!()
        };
        assert_eq!(delivery.delivery_mode, mode);
        rig.set_q2(|q2| q2.with_iv(false));
        assert!(matches!(lint(&mut rig, pin), Outcome::Deliver(_)));
    }
}

#[test]
fn a_message_that_passes_keeps_its_redirection_hint_and_a_remapped_one_has_none() {
    let mut rig = legacy();
    rig.set_irte32(5, irte32(0x41, 2).into_bits());
    let hint = |outcome| match outcome {
        Outcome::Deliver(delivery) => delivery.redirection_hint,
        other => panic!("{other:?}"),
    };
    for _cached in 0..2 {
        assert!(!hint(rig.remap(PHYSICAL | 8, 5)));
    }
    rig.set_q2(|q2| q2.with_int_ctl(1));
    assert!(hint(rig.remap(PHYSICAL | 8, 5)));
    rig.set_q2(|q2| q2.with_iv(false));
    assert!(hint(rig.remap(PHYSICAL | 8, 5)));
    assert!(!hint(rig.remap(PHYSICAL, 5)));
}
