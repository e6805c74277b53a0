//! The device's own interrupts.

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::command::{Command, CompletionWait};
use amdvi_regs::mmio::offset;
use amdvi_regs::msi::DeliveryMode;

use crate::rig::*;

const WAIT: CompletionWait = CompletionWait::new().with_i(true);

fn raise_event(rig: &Rig) {
    rig.remap_interrupts(NIC, 9);
    rig.nic().signal(msi(0));
}

#[test]
fn msi_goes_where_the_capability_says_without_remapping() {
    let rig = Rig::enabled("amd-iommu");
    // Even the IOMMU's own DTE does not matter.
    rig.set_dte(
        rig.iommu.device_id(),
        Default::default(),
        Default::default(),
        amdvi_regs::dte::DteQ2::new().with_iv(true),
    );
    rig.enable_msi(0);
    rig.set_config(0x68, 0xfee0_3000 | 1 << 2);
    rig.set_config(0x70, 0x0142);
    rig.set_control(|c| c.with_com_wait_int_en(true));
    rig.submit(&[WAIT]);
    assert_eq!(
        rig.host.take_deliveries(),
        [Delivery {
            dest: 3,
            dest_mode: DestMode::Logical,
            delivery_mode: DeliveryMode::LowestPriority,
            vector: 0x42,
            trigger: Trigger::Edge,
            assert: false,
            redirection_hint: false,
            rq_eoi: false,
        }]
    );
    assert!(rig.take_events().is_empty());
}

#[test]
fn a_disabled_msi_capability_sends_nothing() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_com_wait_int_en(true).with_event_int_en(true));
    rig.submit(&[WAIT]);
    raise_event(&rig);
    assert!(rig.status().com_wait_int() && rig.status().event_log_int());
    assert!(rig.take_vectors().is_empty());
}

#[test]
fn an_msi_address_outside_the_msi_window_delivers_nothing() {
    for (low, high) in [(0, 0), (0xfed0_0000, 0), (0xfee0_0000, 1), (0xfef0_0000, 0)] {
        let rig = Rig::enabled("amd-iommu");
        rig.enable_msi(0x51);
        rig.set_config(0x68, low);
        rig.set_config(0x6c, high);
        rig.set_control(|c| c.with_com_wait_int_en(true));
        rig.submit(&[WAIT]);
        assert!(rig.status().com_wait_int() && rig.take_vectors().is_empty());
    }
}

#[test]
fn the_xt_registers_replace_msi_and_zero_masks() {
    let rig = Rig::enabled("amd-iommu");
    rig.enable_msi(0x51);
    rig.set_control(|c| c.with_ga_en(true).with_xt_en(true).with_int_cap_xt_en(true));
    rig.set_control(|c| c.with_com_wait_int_en(true));
    rig.submit(&[WAIT]);
    assert!(rig.take_vectors().is_empty(), "0 masks");
    rig.write32(offset::STATUS, 1 << 2);
    // Logical, destination abcdef01h, vector 61h.
    rig.write(
        offset::XT_GENERAL_INTERRUPT,
        0xab << 56 | 0x61 << 32 | 0xcd_ef01 << 8 | 1 << 2,
    );
    rig.submit(&[WAIT]);
    let [delivery] = rig.host.take_deliveries()[..] else {
        panic!()
    };
    assert_eq!((delivery.dest, delivery.vector), (0xabcd_ef01, 0x61));
    assert_eq!(delivery.dest_mode, DestMode::Logical);
    assert_eq!(delivery.delivery_mode, DeliveryMode::Fixed);
    assert!(!delivery.rq_eoi && delivery.trigger == Trigger::Edge);
}

#[test]
fn an_interrupt_is_sent_once_per_transition_to_pending_and_enabled() {
    let rig = Rig::enabled("amd-iommu");
    rig.enable_msi(0x51);
    rig.set_control(|c| c.with_com_wait_int_en(true).with_event_int_en(true));
    rig.submit(&[WAIT, WAIT]);
    assert_eq!(
        rig.take_vectors(),
        [0x51],
        "the second finds ComWaitInt set"
    );
    rig.submit(&[WAIT]);
    assert!(rig.take_vectors().is_empty());
    raise_event(&rig);
    assert_eq!(
        rig.take_vectors(),
        [0x51],
        "another bit is another transition"
    );
    rig.write32(offset::STATUS, 1 << 2);
    assert!(rig.take_vectors().is_empty());
    rig.submit(&[WAIT]);
    assert_eq!(rig.take_vectors(), [0x51]);
}

#[test]
fn enabling_the_interrupt_of_a_pending_bit_sends_it() {
    let rig = Rig::enabled("amd-iommu");
    rig.enable_msi(0x51);
    rig.submit(&[WAIT]);
    raise_event(&rig);
    assert!(rig.take_vectors().is_empty());
    rig.set_control(|c| c.with_event_int_en(true));
    assert_eq!(rig.take_vectors(), [0x51]);
    rig.set_control(|c| c.with_inv_time_out(4));
    assert!(rig.take_vectors().is_empty(), "nothing new");
}

#[test]
fn overflow_interrupts_only_with_event_int_en() {
    for enabled in [false, true] {
        let rig = Rig::enabled("amd-iommu");
        rig.enable_msi(0x51);
        raise_event(&rig);
        rig.set_control(|c| c.with_event_int_en(enabled));
        rig.take_vectors();
        let mut nic = rig.nic();
        for _ in 0..255 {
            nic.signal(msi(0));
        }
        assert!(rig.status().event_overflow());
        assert_eq!(rig.take_vectors().len(), usize::from(enabled));
    }
}

#[test]
fn an_illegal_command_is_announced_by_an_event_interrupt() {
    let rig = Rig::enabled("amd-iommu");
    rig.enable_msi(0x51);
    rig.set_control(|c| c.with_event_int_en(true));
    rig.submit(&[Command::decode([0, 0])]);
    assert_eq!(rig.take_vectors(), [0x51]);
}
