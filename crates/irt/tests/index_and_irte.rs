//! 48882 §2.2.5.1 and §2.2.5.2: the index, and what the entry says.
#![allow(missing_docs)]

mod common;

use amdvi_irt::{Delivery, DestMode, Fault, FaultReason, Outcome, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::Dte;
use amdvi_regs::event::{Event, PageTabHardwareError};
use amdvi_regs::irte::{Irte32, Irte128Lo};
use amdvi_regs::mmio::DeviceTableBase;
use amdvi_regs::msi::DeliveryMode;
use common::*;

// ---- the index ----

#[test]
fn qemu_defect_19_int_tab_len_bounds_the_index() {
    let mut rig = legacy();
    for index in 0..512 {
        rig.set_irte32(index, irte32(0x40, index as u8).into_bits());
    }
    for len in 0..=9u8 {
        rig.set_q2(|q2| q2.with_int_tab_len(len));
        let last = (1u32 << len) - 1;
        assert_eq!(rig.remap(PHYSICAL, last), fixed(0x40, last & 0xff));
        if len < 9 {
            let expected = page_fault(FaultReason::IndexOutOfRange, PHYSICAL, false, false);
            assert_eq!(rig.remap(PHYSICAL, last + 1), expected, "IntTabLen {len}");
        }
    }
}

#[test]
fn without_2k_mode_512_entries_are_reachable_in_any_table_and_with_any_destination_mode() {
    // Linux without 2K (IntTabLen 9, DM as the APIC driver likes) and Xen (DM=0, data[10:0],
    // IntTabLen 8, 10 or 11).
    for len in [9, 10, 11] {
        let mut rig = Rig::new(NO_2K, ENABLED, len);
        for index in 0..2048 {
            rig.set_irte32(index, irte32((index >> 3) as u8, index as u8).into_bits());
        }
        for address in [PHYSICAL, LOGICAL] {
            for index in 0..512u32 {
                let expected = fixed((index >> 3) as u8, index & 0xff);
                assert_eq!(rig.remap(address, index), expected);
            }
        }
        // Beyond 512 data[10:8] is a message type, whatever the table's length: no pass bit, no
        // interrupt (SMI alone passes, untouched).
        for index in 512..2048u32 {
            match rig.remap(PHYSICAL, index) {
                Outcome::Deliver(delivery) => {
                    assert_eq!(delivery.delivery_mode, DeliveryMode::Smi);
                    assert_eq!(index >> 8, 2);
                }
                Outcome::Blocked(fault) => assert_eq!(fault.event(), None),
                other => panic!("{other:?}"),
            }
            assert_eq!(
                reason(rig.remap(LOGICAL, index)),
                if matches!(index >> 8, 3 | 6) {
                    FaultReason::DeliveryModeReserved
                } else {
                    FaultReason::LogicalDestination
                }
            );
        }
    }
}

#[test]
fn in_2k_mode_logical_messages_reach_2048_entries() {
    let mut rig = two_k();
    for index in 0..2048 {
        rig.set_irte128(index, irte128((index >> 4) as u8, 0x100 + index as u32));
    }
    for index in 0..2048u32 {
        assert_eq!(
            rig.remap(LOGICAL, index),
            fixed((index >> 4) as u8, 0x100 + index)
        );
        // and again, from the cache
        assert_eq!(
            rig.remap(LOGICAL, index),
            fixed((index >> 4) as u8, 0x100 + index)
        );
    }
}

#[test]
fn in_2k_mode_physical_messages_keep_the_512_rule() {
    let mut rig = two_k();
    for index in 0..2048 {
        rig.set_irte128(index, irte128(0x60, index as u32));
    }
    for index in 0..512u32 {
        assert_eq!(rig.remap(PHYSICAL, index), fixed(0x60, index));
    }
    let dte = rig.dte(11);
    rig.set_dte(Dte {
        q2: dte.q2.with_nmi_pass(true),
        ..dte
    });
    assert_eq!(
        rig.remap(PHYSICAL, 0x433),
        forwarded(PHYSICAL, 0x433),
        "NMI stays an NMI"
    );
    assert_eq!(reason(rig.remap(PHYSICAL, 0x533)), FaultReason::NotPassed);
}

#[test]
fn in_2k_mode_int_tab_len_still_bounds_the_index() {
    let mut rig = two_k();
    let dte = rig.dte(10);
    rig.set_dte(dte);
    rig.set_irte128(1023, irte128(0x60, 1));
    assert_eq!(rig.remap(LOGICAL, 1023), fixed(0x60, 1));
    let expected = page_fault(FaultReason::IndexOutOfRange, LOGICAL, false, false);
    assert_eq!(rig.remap(LOGICAL, 1024), expected);
}

#[test]
fn the_2k_rule_needs_both_the_offer_and_the_mode() {
    let on = ENABLED.with_ga_en(true).with_xt_en(true);
    for (efr2, mode) in [(NO_2K, 1), (EFR2_2K, 0), (EFR2_2K, 2), (EFR2_2K, 3)] {
        let mut rig = Rig::new(efr2, on.with_num_int_remap_mode(mode), 11);
        rig.set_irte128(0x400, irte128(0x60, 1));
        let outcome = rig.remap(LOGICAL, 0x400);
        assert_eq!(
            outcome,
            silent(FaultReason::LogicalDestination),
            "{efr2:?} {mode}"
        );
    }
}

// ---- the IRTE ----

#[test]
fn irte32_gives_vector_destination_mode_type_and_eoi_request() {
    let mut rig = legacy();
    let irte = irte32(0x99, 0xfe)
        .with_dm(true)
        .with_int_type(1)
        .with_rq_eoi(true);
    rig.set_irte32(511, irte.into_bits());
    let expected = Delivery {
        dest: 0xfe,
        dest_mode: DestMode::Logical,
        delivery_mode: DeliveryMode::LowestPriority,
        vector: 0x99,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: true,
    };
    assert_eq!(rig.remap(PHYSICAL, 511), Outcome::Deliver(expected));
}

#[test]
fn qemu_defect_20_the_trigger_mode_of_the_request_is_kept() {
    let mut rig = legacy();
    rig.set_irte32(3, irte32(0x99, 1).into_bits());
    for _cached in 0..2 {
        let Outcome::Deliver(level) = rig.remap(PHYSICAL, 0xc003) else {
            panic!()
        };
        assert_eq!((level.trigger, level.assert), (Trigger::Level, true));
        let Outcome::Deliver(edge) = rig.remap(PHYSICAL, 0x0003) else {
            panic!()
        };
        assert_eq!((edge.trigger, edge.assert), (Trigger::Edge, false));
    }
}

#[test]
fn openvmm_defect_02_destinations_have_32_bits_with_xt_en_and_8_without() {
    let mut rig = ga(true);
    rig.set_irte128(7, irte128(0x70, 0x8912_3456));
    assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 0x8912_3456));
    let mut rig = ga(false);
    rig.set_irte128(7, irte128(0x70, 0x8912_3456));
    assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 0x56));
}

#[test]
fn remap_en_0_faults_with_pr_0() {
    let mut rig = legacy();
    rig.set_irte32(3, irte32(0x99, 1).with_remap_en(false).into_bits());
    let expected = page_fault(FaultReason::RemapDisabled, PHYSICAL, false, false);
    assert_eq!(rig.remap(PHYSICAL, 3), expected);
    let mut rig = ga(true);
    assert_eq!(rig.remap(PHYSICAL, 3), expected);
}

#[test]
fn reserved_int_types_fault_with_pr_and_rz() {
    for int_type in 2..8u8 {
        let expected = page_fault(FaultReason::IrteReserved, PHYSICAL, true, true);
        let mut rig = legacy();
        rig.set_irte32(3, irte32(0x99, 1).with_int_type(int_type).into_bits());
        assert_eq!(rig.remap(PHYSICAL, 3), expected);
        let mut rig = ga(true);
        let [low, high] = irte128(0x99, 1);
        let low = Irte128Lo::from_bits(low)
            .with_int_type(int_type)
            .into_bits();
        rig.set_irte128(3, [low, high]);
        assert_eq!(rig.remap(PHYSICAL, 3), expected);
    }
}

#[test]
fn guest_mode_is_reserved_in_a_32_bit_entry_and_without_gam_en() {
    let expected = page_fault(FaultReason::IrteReserved, PHYSICAL, true, true);
    let mut rig = legacy();
    rig.set_irte32(3, irte32(0x99, 1).with_guest_mode(true).into_bits());
    assert_eq!(rig.remap(PHYSICAL, 3), expected);
    let mut rig = ga(true);
    let [low, high] = irte128(0x99, 1);
    rig.set_irte128(3, [low | 1 << 7, high]);
    assert_eq!(rig.remap(PHYSICAL, 3), expected);
}

#[test]
fn sup_iopf_and_ig_suppress_the_event_but_not_the_block() {
    let mut rig = legacy();
    rig.set_irte32(3, Irte32::new().with_sup_iopf(true).into_bits());
    assert_eq!(rig.remap(PHYSICAL, 3), silent(FaultReason::RemapDisabled));
    rig.set_irte32(
        4,
        irte32(1, 1)
            .with_int_type(3)
            .with_sup_iopf(true)
            .into_bits(),
    );
    assert_eq!(rig.remap(PHYSICAL, 4), silent(FaultReason::IrteReserved));
    assert!(matches!(rig.remap(PHYSICAL, 5), Outcome::Blocked(fault) if fault.event().is_some()));
    rig.set_q2(|q2| q2.with_ig(true).with_int_tab_len(4));
    assert_eq!(rig.remap(PHYSICAL, 5), silent(FaultReason::RemapDisabled));
    assert_eq!(
        rig.remap(PHYSICAL, 16),
        silent(FaultReason::IndexOutOfRange)
    );
}

#[test]
fn an_unreadable_irte_is_a_page_table_hardware_error_that_ig_does_not_hide() {
    let mut rig = legacy();
    rig.set_q2(|q2| q2.with_int_tab_address(HOLE).with_ig(true));
    let event = PageTabHardwareError::new()
        .with_device_id(DEVICE.0)
        .with_pasid_domain_id(DOMAIN)
        .with_i(true)
        .with_kind(1)
        .with_address_8((HOLE + 4 * 6) >> 3);
    let expected = Fault::new(FaultReason::IrteUnreadable, event.into());
    assert_eq!(rig.remap(PHYSICAL, 6), Outcome::Blocked(expected));
}

#[test]
fn se_and_sa_do_not_concern_interrupts() {
    let mut rig = legacy();
    let mut dte = rig.dte(9);
    dte.q0 = dte.q0.with_v(true);
    dte.q1 = dte.q1.with_sa(true).with_se(true);
    rig.set_dte(dte);
    for _ in 0..2 {
        let expected = page_fault(FaultReason::RemapDisabled, PHYSICAL, false, false);
        assert_eq!(rig.remap(PHYSICAL, 3), expected);
    }
}

#[test]
fn qemu_defects_11_to_13_events_have_address_flags_domain_and_the_device_with_its_bus() {
    let mut rig = legacy();
    let device_id = DeviceId::new(3, 0x1f, 5);
    let table = DeviceTableBase::new()
        .with_base_page(DEVICE_TABLE >> 12)
        .with_size(0x1ff);
    rig.fabric.view.set_device_table(0, table);
    rig.device.slot().set_device_id(device_id);
    // The DTE of 03:1f.5 lies at +7fa0h of the table's page range.
    for (i, word) in (0..).zip(rig.dte(9).words()) {
        rig.memory
            .store_u64(DEVICE_TABLE + u64::from(device_id.0) * 32 + 8 * i, word)
            .unwrap();
    }
    let Outcome::Blocked(fault) = rig.remap(0xfee1_2344, 9) else {
        panic!()
    };
    let event = fault.event().unwrap();
    assert_eq!(event.words(), [0x2008_1234_0000_03fd, 0xfee1_2344]);
    assert!(matches!(event, Event::IoPageFault(_)));
}
