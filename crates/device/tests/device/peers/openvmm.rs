//! OpenVMM amd_iommu, as of August 2026.

use amdvi_device::{Changes, Observer};
use amdvi_dma::Access;
use amdvi_irt::FaultReason;
use amdvi_regs::command::{Command, CompletionWait, InvalidateIommuPages, PrefetchIommuPages};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::offset;
use amdvi_regs::msi::Msi;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{blocked, set_q2};
use crate::endpoint::map_page;
use crate::rig::*;

#[test]
fn openvmm_defect_01_event_fields_stand_where_the_specification_puts_them() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, false);
    rig.nic().translate(0x5008, 4, Access::Write).unwrap_err();
    let [low, high] = rig.take_event_words();
    // Code 2, PE 54, RW 53, PR 52, DomainID [47:32], DeviceID [15:0].
    assert_eq!(low, 0x2070_0077_0000_121c);
    assert_eq!(high, 0x5008);
}

#[test]
fn openvmm_defect_02_destinations_above_255_arrive_whole_with_xten_only() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_ga_en(true).with_xt_en(true));
    rig.remap_interrupts(NIC, 9);
    let low = Irte128Lo::new()
        .with_remap_en(true)
        .with_destination_lo(0x34_5678);
    rig.set_irte128(
        0,
        low,
        Irte128Hi::new().with_vector(0x61).with_destination_hi(0x12),
    );
    let mut nic = rig.nic();
    assert_eq!(delivered(nic.signal(msi(0))).dest, 0x1234_5678);
    rig.set_control(|c| c.with_xt_en(false));
    assert_eq!(delivered(nic.signal(msi(0))).dest, 0x78);
}

#[test]
fn openvmm_defect_03_the_device_interrupts_through_the_xt_registers() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_ga_en(true).with_xt_en(true).with_int_cap_xt_en(true));
    rig.write(
        offset::XT_GENERAL_INTERRUPT,
        0x01 << 56 | 0x71 << 32 | 0x2345 << 8,
    );
    rig.set_control(|c| c.with_event_int_en(true));
    rig.remap_interrupts(NIC, 9);
    blocked(rig.nic().signal(msi(0)));
    let [delivery] = rig.host.take_deliveries()[..] else {
        panic!()
    };
    assert_eq!((delivery.dest, delivery.vector), (0x0100_2345, 0x71));
}

#[test]
fn openvmm_defect_04_run_bits_lock_the_ring_bases_and_iommu_en_does_not() {
    let rig = Rig::enabled("amd-iommu");
    let bases = [offset::COMMAND_BUFFER_BASE, offset::EVENT_LOG_BASE];
    for base in bases {
        let before = rig.read(base);
        rig.write(base, 0x9_0000 | LEN_8);
        assert_eq!(rig.read(base), before);
    }
    rig.set_control(|c| c.with_cmd_buf_en(false).with_event_log_en(false));
    for base in bases.into_iter().chain([offset::DEVICE_TABLE_BASE]) {
        rig.write(base, 0x9_0000 | LEN_8);
        assert_eq!(rig.read(base) & 0x000f_ffff_ffff_f000, 0x9_0000);
    }
    assert!(rig.control().iommu_en());
}

#[test]
fn openvmm_defect_05_a_halted_command_buffer_ignores_tail_writes() {
    let rig = Rig::enabled("amd-iommu");
    rig.submit(&[Command::decode([0, 0])]);
    assert_eq!(rig.take_events().len(), 1);
    for _ in 0..5 {
        rig.submit(&[completion_wait_store(STORE, 1)]);
    }
    assert!(rig.take_events().is_empty());
    assert_eq!(
        (rig.memory.read(STORE), rig.read(offset::COMMAND_HEAD)),
        (0, 0)
    );
}

#[test]
fn openvmm_defect_06_unadvertised_commands_and_reserved_bits_are_illegal_and_a_lost_store_is_told()
{
    let bad: [(Command, u64); 4] = [
        (PrefetchIommuPages::new().into(), 5),
        (InvalidateIommuPages::new().with_gn(true).into(), 5),
        (Command::decode([2 << 60 | 1 << 16, 0]), 5),
        (completion_wait_store(NOWHERE, 1).into(), 6),
    ];
    for (command, code) in bad {
        let rig = Rig::enabled("amd-iommu");
        rig.submit(&[command]);
        let [low, high] = rig.take_event_words();
        assert_eq!((low >> 60, high), (code, COMMANDS), "{command:?}");
        assert!(!rig.status().com_wait_int());
    }
}

#[test]
fn openvmm_defect_07_event_log_int_without_event_int_en_and_bases_empty_their_ring() {
    let rig = Rig::enabled("amd-iommu");
    rig.enable_msi(0x51);
    rig.remap_interrupts(NIC, 9);
    blocked(rig.nic().signal(msi(0)));
    assert!(rig.status().event_log_int());
    assert!(rig.take_vectors().is_empty());
    rig.set_control(|c| c.with_event_log_en(false));
    rig.write(offset::EVENT_LOG_BASE, EVENTS | LEN_8);
    assert_eq!(
        (rig.read(offset::EVENT_HEAD), rig.read(offset::EVENT_TAIL)),
        (0, 0)
    );
}

#[test]
fn openvmm_defect_09_iv_alone_decides_about_interrupts() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_irte32(0x31, fixed(0x99, 0));
    let mut nic = rig.nic();
    for v in [false, true] {
        for iv in [false, true] {
            let q0 = DteQ0::new().with_v(v).with_tv(v);
            rig.set_dte(NIC, q0, DteQ1::new(), remapping(9).with_iv(iv));
            rig.submit(&[invalidate_dte(NIC)]);
            let vector = delivered(nic.signal(msi(0x31))).vector;
            assert_eq!(vector, if iv { 0x99 } else { 0x31 }, "V={v} IV={iv}");
        }
    }
}

#[test]
fn openvmm_defect_10_addresses_types_pass_bits_and_suppression_are_checked() {
    let rig = Rig::enabled("amd-iommu");
    let mut nic = rig.nic();
    set_q2(&rig, remapping(9));
    let outside = Msi {
        address: 0xfed0_0000,
        data: 0,
    };
    assert_eq!(blocked(nic.signal(outside)), FaultReason::NotAnInterrupt);
    rig.set_irte32(0, fixed(0x40, 0).with_int_type(3));
    assert_eq!(blocked(nic.signal(msi(0))), FaultReason::IrteReserved);
    assert_eq!(rig.take_events().len(), 1);
    rig.set_irte32(0, fixed(0x40, 0).with_int_type(3).with_sup_iopf(true));
    blocked(nic.signal(msi(0)));
    set_q2(&rig, remapping(9).with_ig(true));
    blocked(nic.signal(msi(1)));
    assert!(rig.take_events().is_empty(), "SupIOPF, then IG");
    for (mode, pass) in [
        (4, remapping(9).with_nmi_pass(true)),
        (5, remapping(9).with_init_pass(true)),
        (7, remapping(9).with_eint_pass(true)),
    ] {
        set_q2(&rig, remapping(9));
        assert_eq!(blocked(nic.signal(msi(mode << 8))), FaultReason::NotPassed);
        set_q2(&rig, pass);
        let delivery = delivered(nic.signal(msi(mode << 8)));
        assert_eq!(u32::from(delivery.delivery_mode.bits()), mode);
    }
    for mode in [3, 6] {
        assert_eq!(
            blocked(nic.signal(msi(mode << 8))),
            FaultReason::DeliveryModeReserved
        );
    }
}

#[test]
fn openvmm_defect_11_routes_are_refreshed_before_completion_wait_is_visible() {
    struct Route {
        endpoint: std::sync::Mutex<amdvi_device::Endpoint>,
        vector: AtomicU64,
        memory: Arc<amdvi_device::testing::TestMemory>,
    }
    impl Observer for Route {
        fn changed(&self, changes: &Changes) {
            assert!(changes.touches(NIC));
            assert_eq!(self.memory.read(STORE), 0, "the store is not visible yet");
            let delivery = self.endpoint.lock().unwrap().resolve(msi(0)).unwrap();
            self.vector.store(delivery.vector.into(), Ordering::SeqCst);
        }
    }
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(0, fixed(0x41, 0));
    let route = Arc::new(Route {
        endpoint: rig.nic().into(),
        vector: AtomicU64::new(0x41),
        memory: rig.memory.clone(),
    });
    rig.iommu.add_observer(route.clone());
    rig.set_irte32(0, fixed(0x42, 0));
    rig.submit(&[
        Command::from(invalidate_irt(NIC)),
        completion_wait_store(STORE, 1).into(),
    ]);
    assert_eq!(rig.memory.read(STORE), 1);
    assert_eq!(route.vector.load(Ordering::SeqCst), 0x42);
}

#[test]
fn openvmm_defect_12_masks_halves_and_reset() {
    let rig = Rig::enabled(ALL_FEATURES);
    rig.enable_msi(0x51);
    rig.submit(&[CompletionWait::new().with_i(true)]);
    rig.write32(offset::STATUS + 4, u32::MAX);
    assert!(
        rig.status().com_wait_int(),
        "a write to 2024h clears nothing at 2020h"
    );
    rig.write(offset::DEVICE_TABLE_BASE, u64::MAX);
    assert_eq!(rig.read(offset::DEVICE_TABLE_BASE), 0x000f_ffff_ffff_f1ff);
    rig.write(offset::CONTROL, u64::MAX);
    assert_eq!(
        rig.read(offset::CONTROL) & (1 << 1 | 0xe << 60 | 1 << 49 | 1 << 57),
        0
    );
    rig.iommu.reset();
    assert_eq!(
        (
            rig.config(0x64) >> 16 & 1,
            rig.config(0x68),
            rig.config(0x70)
        ),
        (0, 0, 0)
    );
    assert_eq!(rig.read(offset::DEVICE_TABLE_BASE), 0);
}
