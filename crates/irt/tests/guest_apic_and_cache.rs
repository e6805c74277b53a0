//! 48882 §2.2.5.3 and §2.4.5: guest virtual APIC entries, and what may be cached.
#![allow(missing_docs)]

mod common;

use amdvi_irt::{FaultReason, Outcome, Posted};
use amdvi_regs::irte::{Irte128GuestLo, Irte128Hi};
use amdvi_regs::log::GaLogEntry;
use amdvi_regs::msi::Msi;
use common::*;

// ---- guest virtual APIC ----

fn guest_rig() -> Rig {
    Rig::new(
        NO_2K,
        ENABLED.with_ga_en(true).with_xt_en(true).with_gam_en(1),
        9,
    )
}

fn guest_irte(vector: u8, lo: Irte128GuestLo) -> [u64; 2] {
    let high = Irte128Hi::new()
        .with_vector(vector)
        .with_ga_root(BACKING_PAGE >> 12);
    [
        lo.with_remap_en(true)
            .with_guest_mode(true)
            .with_destination_lo(0x12_3456)
            .with_ga_tag(0xcafe_f00d)
            .into_bits(),
        high.with_destination_hi(0x89).into_bits(),
    ]
}

#[test]
fn guest_mode_sets_the_irr_bit_in_the_backing_page() {
    let mut rig = guest_rig();
    for vector in [0u8, 31, 32, 0x61, 255] {
        rig.set_irte128(1, guest_irte(vector, Irte128GuestLo::new()));
        let outcome = rig.remap(PHYSICAL, 1);
        assert_eq!(
            outcome,
            Outcome::Posted(Posted {
                ga_log: None,
                doorbell: None
            })
        );
        let gpa = BACKING_PAGE + 0x200 + u64::from(vector / 32) * 16;
        let irr = rig.memory.load_u32(gpa).unwrap();
        assert_eq!(
            irr & 1 << (vector % 32),
            1 << (vector % 32),
            "vector {vector}"
        );
    }
}

#[test]
fn guest_mode_logs_when_not_running_and_rings_the_doorbell_when_running() {
    let mut rig = guest_rig();
    rig.set_irte128(
        1,
        guest_irte(0x61, Irte128GuestLo::new().with_ga_log_intr(true)),
    );
    let entry = GaLogEntry::new()
        .with_ga_tag(0xcafe_f00d)
        .with_device_id(DEVICE.0)
        .with_code(1);
    let logged = Outcome::Posted(Posted {
        ga_log: Some(entry),
        doorbell: None,
    });
    assert_eq!(rig.remap(PHYSICAL, 1), logged);
    // Software flips IsRun without an invalidation: the next interrupt must see it.
    let running = Irte128GuestLo::new()
        .with_ga_log_intr(true)
        .with_is_run(true);
    rig.set_irte128(1, guest_irte(0x61, running));
    let rung = Outcome::Posted(Posted {
        ga_log: None,
        doorbell: Some(0x8912_3456),
    });
    assert_eq!(rig.remap(PHYSICAL, 1), rung);
}

#[test]
fn guest_mode_with_an_unwritable_backing_page_is_a_hardware_error() {
    let mut rig = guest_rig();
    let [low, high] = guest_irte(0x61, Irte128GuestLo::new());
    let high = Irte128Hi::from_bits(high)
        .with_ga_root(HOLE >> 12)
        .into_bits();
    rig.set_irte128(1, [low, high]);
    assert_eq!(
        reason(rig.remap(PHYSICAL, 1)),
        FaultReason::BackingPageUnwritable
    );
}

#[test]
fn resolving_a_guest_mode_entry_posts_nothing() {
    let mut rig = guest_rig();
    rig.set_irte128(1, guest_irte(0x61, Irte128GuestLo::new()));
    let msi = Msi {
        address: PHYSICAL,
        data: 1,
    };
    assert!(matches!(
        rig.device.resolve(&rig.memory, msi),
        Outcome::Posted(_)
    ));
    assert_eq!(rig.memory.load_u32(BACKING_PAGE + 0x230), Ok(0));
}

// ---- the cache ----

#[test]
fn a_hit_loads_nothing_and_obeys_each_kind_of_invalidation() {
    type Invalidate = fn(&Rig);
    let kinds: [Invalidate; 3] = [
        |rig| rig.device.slot().invalidate(),
        |rig| rig.fabric.invalidate_all(),
        |rig| rig.device.slot().set_device_id(DEVICE),
    ];
    for invalidate in kinds {
        let mut rig = ga(true);
        rig.set_irte128(7, irte128(0x70, 1));
        assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 1));
        rig.set_irte128(7, irte128(0x71, 2));
        rig.memory.reset_counts();
        assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 1), "cached");
        assert_eq!(rig.memory.loads(), 0);
        invalidate(&rig);
        assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x71, 2), "invalidated");
    }
}

#[test]
fn with_irt_cache_dis_every_request_reads_the_table() {
    let mut rig = Rig::new(NO_2K, ENABLED.with_irt_cache_dis(true), 9);
    rig.set_irte32(7, irte32(0x70, 1).into_bits());
    assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 1));
    rig.set_irte32(7, irte32(0x71, 2).into_bits());
    assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x71, 2));
}

#[test]
fn faults_and_forwarded_messages_are_never_cached() {
    let mut rig = legacy();
    assert_eq!(reason(rig.remap(PHYSICAL, 7)), FaultReason::RemapDisabled);
    rig.set_irte32(7, irte32(0x70, 1).into_bits());
    assert_eq!(rig.remap(PHYSICAL, 7), fixed(0x70, 1));
}

#[test]
fn a_clone_has_its_own_slot_for_the_same_function() {
    let rig = legacy();
    rig.set_irte32(7, irte32(0x70, 1).into_bits());
    let mut clone = rig.device.clone();
    let outcome = clone
        .remap(
            &rig.memory,
            Msi {
                address: PHYSICAL,
                data: 7,
            },
        )
        .outcome;
    assert_eq!(outcome, fixed(0x70, 1));
    assert!(!std::sync::Arc::ptr_eq(clone.slot(), rig.device.slot()));
    assert_eq!(clone.slot().device_id(), rig.device.slot().device_id());
}

#[test]
fn a_request_costs_at_most_six_loads_and_one_store() {
    let mut rig = two_k();
    for word in [0u64, 1, 3, 0x81, 0xffff_ffff_ffff_ffff] {
        rig.set_irte128(9, [word, word]);
        for data in [9, 0x409, 0x7ff] {
            rig.memory.reset_counts();
            rig.device.slot().invalidate();
            let _ = rig.remap(LOGICAL, data);
            assert!(rig.memory.loads() <= 6, "{} loads", rig.memory.loads());
            assert!(rig.memory.stores() <= 1);
        }
    }
}
