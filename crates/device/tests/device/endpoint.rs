//! Devices behind the IOMMU.

use amdvi_device::{Abort, Signal};
use amdvi_dma::{Access, Reason};
use amdvi_irt::{FaultReason, LintPin};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};

use crate::rig::*;

#[test]
fn signal_remaps_and_delivers() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(511, fixed(0x77, 9));
    let delivery = delivered(rig.nic().signal(msi(511)));
    assert_eq!((delivery.vector, delivery.dest), (0x77, 9));
    assert_eq!(rig.host.take_deliveries(), [delivery]);
}

#[test]
fn in_2k_mode_2048_interrupts_reach_their_own_vectors_and_without_it_512() {
    let rig = Rig::enabled("amd-iommu,numint2k=on");
    rig.set_control(|c| {
        c.with_ga_en(true)
            .with_xt_en(true)
            .with_num_int_remap_mode(1)
    });
    // 2048 × 16 bytes.
    let table = 0x38_0000;
    rig.set_dte(
        NIC,
        DteQ0::new(),
        DteQ1::new(),
        remapping(11).with_int_tab_address(table),
    );
    for index in 0..2048u64 {
        let low = Irte128Lo::new()
            .with_remap_en(true)
            .with_destination_lo(index as u32 + 1);
        let high = Irte128Hi::new().with_vector(32 + (index % 200) as u8);
        rig.memory
            .write_all(table + 16 * index, &[low.into_bits(), high.into_bits()]);
    }
    let mut nic = rig.nic();
    let message = |index| amdvi_regs::msi::Msi {
        address: 0xfee0_0004,
        data: index,
    };
    for index in 0..2048u32 {
        let delivery = delivered(nic.signal(message(index)));
        assert_eq!(
            (delivery.dest, delivery.vector),
            (index + 1, 32 + (index % 200) as u8)
        );
    }
    rig.set_control(|c| c.with_num_int_remap_mode(0));
    assert!(matches!(nic.signal(message(0x600)), Signal::Blocked(_)));
}

#[test]
fn resolve_has_no_effect() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(1, fixed(0x77, 9));
    let mut nic = rig.nic();
    assert_eq!(nic.resolve(msi(0)), None);
    assert_eq!(
        nic.resolve(msi(1)).map(|delivery| delivery.vector),
        Some(0x77)
    );
    assert!(rig.take_events().is_empty());
    assert!(rig.host.take_deliveries().is_empty());
}

#[test]
fn a_cached_entry_is_used_until_its_function_is_invalidated() {
    let rig = Rig::enabled("amd-iommu");
    let other = DeviceId(0x0300);
    for id in [NIC, other] {
        rig.remap_interrupts(id, 9);
    }
    rig.set_irte32(0, fixed(0x31, 0));
    let mut nic = rig.nic();
    let mut nic_queue = nic.clone();
    let mut disk = rig.iommu.endpoint(other);
    let mut vectors =
        || [&mut nic, &mut nic_queue, &mut disk].map(|e| delivered(e.signal(msi(0))).vector);
    assert_eq!(vectors(), [0x31; 3]);
    rig.set_irte32(0, fixed(0x32, 0));
    assert_eq!(vectors(), [0x31; 3]);
    rig.submit(&[invalidate_irt(NIC)]);
    assert_eq!(vectors(), [0x32, 0x32, 0x31]);
    rig.set_irte32(0, fixed(0x33, 0));
    rig.submit(&[invalidate_dte(other)]);
    assert_eq!(vectors(), [0x32, 0x32, 0x33]);
    rig.set_irte32(0, fixed(0x34, 0));
    rig.submit(&[invalidate_all()]);
    assert_eq!(vectors(), [0x34; 3]);
}

#[test]
fn irt_cache_dis_needs_no_invalidation() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_irt_cache_dis(true));
    assert!(rig.control().irt_cache_dis(), "probed by read-back");
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    for vector in [0x31, 0x32] {
        rig.set_irte32(0, fixed(vector, 0));
        assert_eq!(delivered(nic.signal(msi(0))).vector, vector);
    }
}

#[test]
fn a_renumbered_bus_changes_whose_entry_is_used() {
    let rig = Rig::enabled("amd-iommu");
    let mut device = rig.iommu.endpoint(DeviceId(0x0100));
    rig.remap_interrupts(DeviceId(0x0200), 9);
    rig.set_irte32(0x31, fixed(0x99, 0));
    assert_eq!(
        delivered(device.signal(msi(0x31))).vector,
        0x31,
        "IV=0 at its first identity"
    );
    device.set_device_id(DeviceId(0x0200));
    assert_eq!(device.device_id(), DeviceId(0x0200));
    assert_eq!(delivered(device.signal(msi(0x31))).vector, 0x99);
}

#[test]
fn dropped_endpoints_are_forgotten() {
    let rig = Rig::enabled("amd-iommu");
    for _ in 0..100 {
        let nic = rig.nic();
        drop(nic.clone());
    }
    rig.completion_wait();
    let mut nic = rig.nic();
    assert!(matches!(nic.signal(msi(0x31)), Signal::Delivered(_)));
}

#[test]
fn lint_follows_the_pass_bits() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_dte(
        NIC,
        DteQ0::new(),
        DteQ1::new(),
        DteQ2::new().with_iv(true).with_lint1_pass(true),
    );
    let mut nic = rig.nic();
    assert_eq!(
        nic.lint(LintPin::Lint0),
        Signal::Blocked(FaultReason::NotPassed)
    );
    assert!(matches!(nic.lint(LintPin::Lint1), Signal::Delivered(_)));
}

#[test]
fn dma_is_translated_by_the_host_table() {
    let rig = Rig::enabled("amd-iommu");
    let mut nic = rig.nic();
    assert_eq!(
        nic.translate(0x5123, 8, Access::Read).unwrap().gpa,
        0x5123,
        "V=0"
    );
    map_page(&rig, true);
    let mapped = nic.translate(0x5123, 0x2000, Access::Write).unwrap();
    assert_eq!((mapped.gpa, mapped.len), (0x3c123, 0xedd));
    drop(mapped);
    let abort = nic.translate(0x6000, 8, Access::Write).unwrap_err();
    assert_eq!(abort, Abort::Translation(Reason::NotPresent { level: 1 }));
    let [low, high] = rig.take_event_words();
    assert_eq!(low, 2 << 60 | 1 << 53 | 0x77 << 32 | u64::from(NIC.0));
    assert_eq!(high, 0x6000);
}

/// A one-level table that maps 5000h to 3C000h, read-only or not, in domain 77h.
pub(crate) fn map_page(rig: &Rig, writable: bool) {
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_mode(1)
        .with_host_pt_root(PAGE_TABLE >> 12)
        .with_ir(true)
        .with_iw(true);
    rig.set_dte(NIC, q0, DteQ1::new().with_domain_id(0x77), DteQ2::new());
    let pte = 1 | 0x3c000 | 1 << 61 | u64::from(writable) << 62;
    rig.memory.write(PAGE_TABLE + 5 * 8, pte);
    rig.submit(&[invalidate_dte(NIC)]);
}

#[test]
fn without_dma_remapping_no_host_table_is_accepted() {
    let rig = Rig::enabled("amd-iommu,dma-remap=off");
    map_page(&rig, true);
    let abort = rig.nic().translate(0x5000, 8, Access::Read).unwrap_err();
    assert!(
        matches!(abort, Abort::Translation(Reason::IllegalDte(_))),
        "{abort}"
    );
    assert!(matches!(
        rig.take_events()[..],
        [Event::IllegalDevTableEntry(_)]
    ));
}

#[test]
fn a_dte_without_memory_is_a_hardware_error() {
    let rig = Rig::enabled("amd-iommu");
    rig.write(0, NOWHERE | 0x1ff);
    let gpa = NOWHERE + 32 * u64::from(NIC.0);
    let mut nic = rig.nic();
    assert_eq!(
        nic.translate(0, 4, Access::Write).unwrap_err(),
        Abort::DteUnreadable(gpa)
    );
    let [low, high] = rig.take_event_words();
    assert_eq!(
        (low, high),
        (3 << 60 | 1 << 57 | 1 << 53 | u64::from(NIC.0), gpa)
    );
}

#[test]
fn se_logs_the_first_page_fault_until_the_dte_is_invalidated() {
    let rig = Rig::enabled("amd-iommu");
    let q0 = DteQ0::new().with_v(true).with_tv(true);
    rig.set_dte(NIC, q0, DteQ1::new().with_se(true), DteQ2::new());
    let mut nic = rig.nic();
    let mut faults = |n: usize| {
        for _ in 0..n {
            nic.translate(0x1000, 4, Access::Read).unwrap_err();
        }
        rig.take_events().len()
    };
    assert_eq!(faults(5), 1);
    assert_eq!(faults(5), 0);
    rig.submit(&[invalidate_dte(NIC)]);
    assert_eq!(faults(5), 1);
    rig.submit(&[invalidate_all()]);
    assert_eq!(faults(5), 1);
}

#[test]
fn the_exclusion_range_bypasses_translation() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    let mut nic = rig.nic();
    assert!(nic.translate(0x9000, 4, Access::Read).is_err());
    // Four 32-bit halves, as Xen writes them; Allow and ExEn.
    rig.write32(0x24, 0);
    rig.write32(0x20, 0x9003);
    rig.write32(0x2c, 0);
    rig.write32(0x28, 0x9000);
    assert_eq!(nic.translate(0x9ffc, 4, Access::Read).unwrap().gpa, 0x9ffc);
    assert!(nic.translate(0xa000, 4, Access::Read).is_err());
}

#[test]
fn intremap_off_withdraws_the_offer_and_still_honours_dte_iv() {
    // A guest that remaps all the same must not find its blocked interrupts delivered.
    let rig = Rig::enabled("amd-iommu,intremap=off");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(3, fixed(0x55, 2));
    assert_eq!(delivered(rig.nic().signal(msi(3))).vector, 0x55);
    let blocked = rig.nic().signal(msi(4));
    assert_eq!(blocked, Signal::Blocked(FaultReason::RemapDisabled));
}

#[test]
fn signal_with_delivers_in_the_source_s_own_way_and_only_what_is_not_blocked() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(3, fixed(0x55, 2));
    let mut sent = Vec::new();
    let signal = rig
        .nic()
        .signal_with(msi(3), |delivery| sent.push(*delivery));
    assert_eq!(sent, [delivered(signal)]);
    let blocked = rig.nic().signal_with(msi(4), |_| panic!("blocked"));
    assert_eq!(blocked, Signal::Blocked(FaultReason::RemapDisabled));
    assert!(rig.host.take_deliveries().is_empty());
}
