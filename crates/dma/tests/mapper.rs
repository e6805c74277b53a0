//! The rules of a requester's handle and of the shared IOTLB, one test each.

mod common;

use amdvi_core::{Invalidation, Journal};
use amdvi_dma::{Access, Cause, MAX_LOADS, Mapper, Permissions, Reason};
use amdvi_regs::DeviceId;
use amdvi_regs::command::InvalidationRange;
use amdvi_regs::dte::DteQ0;
use amdvi_regs::mmio::{Control, DeviceTableBase};
use common::flag::{MASTER_ABORT, PE, PR, RW};
use common::rig::{Rig, dte};
use common::*;
use proptest::prelude::*;

const NIC: DeviceId = DeviceId(8);
const DISK: DeviceId = DeviceId(16);
/// Loads of a DTE that nobody is rewriting: two halves, and the first again.
const DTE_LOADS: usize = 3;
/// Loads of a DTE that changes all the time.
const MAX_DTE_LOADS: usize = 18;

/// Two functions in one domain; 0x1000 is mapped to 0x7000 through four levels.
fn rig() -> Rig {
    let mut rig = Rig::new(1024);
    map(&mut rig.memory, 4, 1, 0x1000, pte(0x7000));
    for device in [NIC, DISK] {
        rig.set_dte(device, q0(4).into_bits(), q1().into_bits());
    }
    rig
}

fn page(domain: u16, iova: u64) -> Invalidation {
    Invalidation {
        range: InvalidationRange::decode(iova, false),
        ..Invalidation::domain(domain)
    }
}

fn fault(device: DeviceId, flags: u64, address: u64) -> [u64; 2] {
    [
        2 << 60 | flags << 48 | u64::from(DOMAIN) << 32 | u64::from(device.0),
        address,
    ]
}

#[test]
fn a_hit_loads_nothing_and_a_miss_loads_the_dte_once_and_each_level_once() {
    let mut rig = rig();
    let entries = common::slot(ROOT + 0x3000, 1, 0x2000);
    rig.memory.set(entries, pte(0x9000));
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1004), Ok(0x7004));
    assert_eq!(rig.memory.take_loads().len(), DTE_LOADS + 4);
    assert_eq!(rig.one(&mut nic, Access::Write, 0x1fff), Ok(0x7fff));
    assert_eq!(rig.memory.take_loads(), []);
    assert_eq!(rig.one(&mut nic, Access::Write, 0x2000), Ok(0x9000));
    assert_eq!(rig.memory.take_loads().len(), 4);
}

#[test]
fn nothing_of_the_upper_levels_is_kept() {
    let mut rig = rig();
    rig.memory
        .set(slot(ROOT + 0x3000, 1, 0x2000), pte(0x20_0000));
    let mut nic = rig.mapper(NIC, 64);
    // The first walk goes the long way, which reads the DTE; the second one the short way.
    for (page, loads) in [(1u64, DTE_LOADS + 4), (2, 4)] {
        assert!(rig.one(&mut nic, Access::Read, page << 12).is_ok());
        assert_eq!(rig.memory.take_loads().len(), loads);
    }
    // A table that is not linked any more is not looked into, invalidated or not.
    rig.memory
        .set(slot(ROOT + 0x3000, 1, 0x3000), pte(0x30_0000));
    rig.memory.set(slot(ROOT + 0x1000, 3, 0x3000), 0);
    let refused = fault(NIC, 0, 0x3000);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x3000), Err(refused));
}

#[test]
fn another_function_of_the_domain_finds_the_translation_in_the_shared_iotlb() {
    let rig = rig();
    assert_eq!(
        rig.one(&mut rig.mapper(NIC, 64), Access::Read, 0x1000),
        Ok(0x7000)
    );
    rig.memory.take_loads();
    assert_eq!(
        rig.one(&mut rig.mapper(DISK, 64), Access::Read, 0x1000),
        Ok(0x7000)
    );
    assert_eq!(rig.memory.take_loads().len(), DTE_LOADS, "only its DTE");
}

#[test]
fn what_the_shared_iotlb_keeps_has_the_permissions_of_the_levels_and_not_of_a_dte() {
    let mut rig = rig();
    rig.set_dte(NIC, q0(4).with_iw(false).into_bits(), q1().into_bits());
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
    let mut disk = rig.mapper(DISK, 64);
    let mapped = disk
        .translate(&rig.memory, 0x1000, 1, Access::Write)
        .unwrap();
    assert_eq!(mapped.permissions, Permissions::all());
    drop(mapped);
    // And the other way round: what the disk may do does not help the NIC.
    assert_eq!(
        rig.one(&mut nic, Access::Write, 0x1000),
        Err(fault(NIC, PR | PE | RW, 0x1000))
    );
}

#[test]
fn a_request_ends_with_the_leaf_and_not_at_4_kib() {
    let mut rig = rig();
    let large = 0x8000_0000;
    rig.memory.set(slot(ROOT, 4, large), pde(3, 0x50_0000));
    rig.memory
        .set(slot(0x50_0000, 3, large), pte(0x40_0000_0000));
    let mut nic = rig.mapper(NIC, 64);
    for _ in 0..2 {
        let mapped = nic
            .translate(&rig.memory, large + 5, 1 << 40, Access::Read)
            .unwrap();
        assert_eq!((mapped.gpa, mapped.len), (0x40_0000_0005, (1 << 30) - 5));
    }
}

#[test]
fn the_msi_window_inside_a_large_page_is_never_dma() {
    let mut rig = rig();
    let base = 0xc000_0000;
    rig.memory.set(slot(ROOT, 4, base), pde(3, 0x50_0000));
    rig.memory
        .set(slot(0x50_0000, 3, base), pte(0x40_c000_0000));
    let mut nic = rig.mapper(NIC, 64);
    // The page is cached by accesses on both sides of the window.
    for iova in [base, 0xfedf_ffff, 0xfef0_0000, 0xffff_ffff] {
        for _ in 0..2 {
            assert_eq!(
                rig.one(&mut nic, Access::Write, iova),
                Ok(0x40_0000_0000 + iova)
            );
        }
    }
    for iova in [0xfee0_0000, 0xfeef_ffff] {
        let failed = nic
            .translate(&rig.memory, iova, 1, Access::Write)
            .unwrap_err();
        assert_eq!(failed.cause, Cause::Translation(Reason::InterruptWindow));
    }
    // A request that runs into it is done up to there.
    let mut done = 0;
    let failed = nic
        .pieces(&rig.memory, 0xfedf_f000, 0x3000, Access::Write, |piece| {
            done += piece.len
        })
        .unwrap_err();
    assert_eq!(failed.cause, Cause::Translation(Reason::InterruptWindow));
    assert_eq!(done, 0x1000);
}

#[test]
fn an_invalidation_in_another_part_of_a_page_around_the_window_ends_all_of_it() {
    let mut rig = rig();
    let base = 0xc000_0000;
    rig.memory.set(slot(ROOT, 4, base), pde(3, 0x50_0000));
    rig.memory
        .set(slot(0x50_0000, 3, base), pte(0x40_c000_0000));
    let mut nic = rig.mapper(NIC, 64);
    assert!(rig.one(&mut nic, Access::Read, base).is_ok());
    rig.memory.set(slot(0x50_0000, 3, base), 0);
    rig.fabric.journal.append(page(DOMAIN, 0xffff_f000));
    assert!(rig.one(&mut nic, Access::Read, base).is_err());
}

#[test]
fn an_address_beyond_the_stated_width_is_refused_though_its_page_is_cached() {
    let mut rig = rig();
    rig.memory.set(slot(ROOT, 4, 0), pte(0x80_0000_0000));
    let (fabric, iotlb) = (rig.fabric.clone(), rig.iotlb.clone());
    let mut nic = Mapper::new(fabric, iotlb, NIC, 64, 30);
    assert_eq!(
        rig.one(&mut nic, Access::Read, 0x3fff_ffff),
        Ok(0x80_3fff_ffff)
    );
    let failed = nic
        .translate(&rig.memory, 0x4000_0000, 1, Access::Read)
        .unwrap_err();
    assert_eq!(
        failed.cause,
        Cause::Translation(Reason::AddressTooWide { bits: 30 })
    );
}

#[test]
fn a_request_that_overflows_fails_before_anything_happens_even_on_a_cached_page() {
    let mut rig = rig();
    rig.set_dte(NIC, q0(0).into_bits(), q1().into_bits());
    let mut nic = rig.mapper(NIC, 64);
    let top = u64::MAX - 0xfff;
    assert_eq!(rig.one(&mut nic, Access::Read, top), Ok(top));
    assert_eq!(rig.one(&mut nic, Access::Read, u64::MAX), Ok(u64::MAX));
    let failed = nic
        .pieces(&rig.memory, top, 0x1001, Access::Read, |_| {
            panic!("nothing may happen")
        })
        .unwrap_err();
    assert_eq!(failed.cause, Cause::Translation(Reason::AddressOverflow));
    drop(failed);
    let mapped = nic
        .translate(&rig.memory, top, 0x1000, Access::Read)
        .unwrap();
    assert_eq!(mapped.len, 0x1000);
}

#[test]
fn a_request_without_bytes_is_checked_like_one() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    for _ in 0..2 {
        assert_eq!(
            nic.translate(&rig.memory, 0x1000, 0, Access::Read)
                .unwrap()
                .len,
            0
        );
        assert!(nic.translate(&rig.memory, 0x5000, 0, Access::Read).is_err());
        let mut pieces = 0;
        assert!(
            nic.pieces(&rig.memory, 0x1000, 0, Access::Read, |_| pieces += 1)
                .is_ok()
        );
        assert_eq!(pieces, 1);
    }
}

#[test]
fn a_transaction_over_several_pages_is_handed_out_in_order_and_has_one_event() {
    let mut rig = rig();
    let table = ROOT + 0x3000;
    rig.memory.set(slot(table, 1, 0x2000), pte(0x3_0000));
    let mut nic = rig.mapper(NIC, 64);
    for _ in 0..2 {
        let mut pieces = Vec::new();
        let failed = nic
            .pieces(&rig.memory, 0x1ff0, 0x4000, Access::Write, |piece| {
                pieces.push((piece.gpa, piece.len));
            })
            .unwrap_err();
        assert_eq!(pieces, [(0x7ff0, 0x10), (0x3_0000, 0x1000)]);
        let event = failed.event.expect("one event");
        assert_eq!(event.words(), fault(NIC, RW, 0x3000));
    }
}

#[test]
fn a_device_table_that_ends_before_the_device_or_is_not_there_is_an_event() {
    let rig = rig();
    let mut far = rig.mapper(DeviceId(128), 64);
    let failed = far
        .translate(&rig.memory, 0x1000, 1, Access::Write)
        .unwrap_err();
    assert_eq!(failed.cause, Cause::DeviceIdOutOfRange(DeviceId(128)));
    assert_eq!(
        failed.event.unwrap().words(),
        [2 << 60 | RW << 48 | 128, 0x1000]
    );
    drop(failed);
    let base = DeviceTableBase::new().with_base_page(UNBACKED >> 12);
    rig.fabric.view.set_device_table(0, base);
    rig.fabric.invalidate_all();
    let gpa = UNBACKED + 32 * 8;
    let mut nic = rig.mapper(NIC, 64);
    let failed = nic
        .translate(&rig.memory, 0x1000, 1, Access::Write)
        .unwrap_err();
    assert_eq!(failed.cause, Cause::DteUnreadable(gpa));
    assert_eq!(
        failed.event.unwrap().words(),
        [3 << 60 | (RW | MASTER_ABORT) << 48 | 8, gpa]
    );
}

#[test]
fn a_fault_is_not_kept_so_a_new_mapping_needs_no_invalidation() {
    let mut rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(
        rig.one(&mut nic, Access::Read, 0x4000),
        Err(fault(NIC, 0, 0x4000))
    );
    rig.memory
        .set(slot(ROOT + 0x3000, 1, 0x4000), pte(0x2_0000));
    assert_eq!(rig.one(&mut nic, Access::Read, 0x4000), Ok(0x2_0000));
}

#[test]
fn a_page_that_was_cached_read_only_is_looked_up_again_for_a_write() {
    let mut rig = rig();
    let entry = slot(ROOT + 0x3000, 1, 0x1000);
    rig.memory.set(entry, pte(0x7000) & !(1 << 62));
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
    rig.memory.set(entry, pte(0x7000));
    assert_eq!(rig.one(&mut nic, Access::Write, 0x1000), Ok(0x7000));
}

#[test]
fn the_dte_is_read_again_only_after_its_invalidation() {
    let mut rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
    rig.set_dte(NIC, q0(0).into_bits(), q1().into_bits());
    assert_eq!(
        rig.one(&mut nic, Access::Read, 0x1000),
        Ok(0x7000),
        "may be stale"
    );
    rig.fabric.journal.append(Invalidation::domain(DOMAIN));
    assert_eq!(
        rig.one(&mut nic, Access::Read, 0x1000),
        Ok(0x7000),
        "the tables only"
    );
    nic.slot().invalidate();
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x1000));
}

#[test]
fn invalidating_another_domain_costs_no_load() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
    rig.memory.take_loads();
    for _ in 0..3 {
        rig.fabric.journal.append(Invalidation::domain(DOMAIN + 1));
        assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
        assert!(
            rig.one(&mut rig.mapper(DISK, 64), Access::Read, 0x1000)
                .is_ok()
        );
    }
    assert_eq!(rig.memory.take_loads().len(), 3 * DTE_LOADS);
}

#[test]
fn more_invalidations_than_are_remembered_count_as_all_of_them() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
    rig.memory.take_loads();
    for _ in 0..Journal::RECORDS {
        rig.fabric.journal.append(Invalidation::domain(DOMAIN + 1));
    }
    assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
    assert_eq!(rig.memory.take_loads().len(), 4);
}

#[test]
fn a_smaller_iotlb_than_the_working_set_is_right_and_only_slower() {
    let mut rig = Rig::new(1);
    map(&mut rig.memory, 4, 1, 0, pte(0));
    for n in 0..512 {
        rig.memory.set(ROOT + 0x3000 + n * 8, pte(n << 20));
    }
    rig.set_dte(NIC, q0(4).into_bits(), q1().into_bits());
    let mut nic = rig.mapper(NIC, 1);
    for _ in 0..3 {
        for n in 0..512 {
            assert_eq!(
                rig.one(&mut nic, Access::Write, n << 12 | 5),
                Ok(n << 20 | 5)
            );
        }
    }
}

#[test]
fn a_handle_of_its_own_sees_the_same_and_has_its_own_slot() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
    let mut other = nic.clone();
    assert_eq!(rig.one(&mut other, Access::Read, 0x1000), Ok(0x7000));
    nic.slot().set_device_id(DISK);
    assert_eq!(other.slot().device_id(), NIC);
    assert_eq!(nic.slot().device_id(), DISK);
}

#[test]
fn a_renumbered_function_uses_the_dte_of_its_new_number() {
    let mut rig = rig();
    rig.set_dte(DISK, q0(0).into_bits(), q1().into_bits());
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
    nic.slot().set_device_id(DISK);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x1000));
}

/// QEMU 6: its TLB has no domain tag, so a device that moved hits the old domain's mapping.
#[test]
fn qemu_6_a_device_that_moves_to_another_domain_leaves_its_translations_behind() {
    let mut rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
    let root = 0x80_0000;
    rig.memory.set(root, pde(3, root + 0x1000));
    rig.memory.set(root + 0x1000, pde(2, root + 0x2000));
    rig.memory.set(root + 0x2000, pde(1, root + 0x3000));
    rig.memory.set(root + 0x3008, pte(0x9_0000));
    rig.set_dte(
        NIC,
        q0(4).with_host_pt_root(root >> 12).into_bits(),
        u64::from(DOMAIN) + 1,
    );
    nic.slot().invalidate();
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x9_0000));
    // The other function stays where it is, and both are in the IOTLB.
    assert_eq!(
        rig.one(&mut rig.mapper(DISK, 64), Access::Read, 0x1000),
        Ok(0x7000)
    );
    rig.memory.take_loads();
    assert_eq!(
        rig.one(&mut rig.mapper(NIC, 64), Access::Read, 0x1000),
        Ok(0x9_0000)
    );
    assert_eq!(rig.memory.take_loads().len(), DTE_LOADS);
}

/// QEMU 8: a DTE that is enabled with INVALIDATE_IOMMU_ALL alone stays in bypass.
#[test]
fn qemu_8_invalidating_everything_includes_the_dte() {
    let mut rig = rig();
    rig.set_dte(NIC, 0, 0);
    let mut nic = rig.mapper(NIC, 64);
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x1000));
    rig.set_dte(NIC, q0(4).into_bits(), q1().into_bits());
    rig.fabric.invalidate_all();
    assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
}

/// QEMU 14, the cached half: a write to a cached read-only page aborts without an event.
#[test]
fn qemu_14_a_write_to_a_cached_read_only_page_is_logged() {
    let mut rig = rig();
    let entry = slot(ROOT + 0x3000, 1, 0x1000);
    rig.memory.set(entry, pte(0x7000) & !(1 << 62));
    let mut nic = rig.mapper(NIC, 64);
    for _ in 0..2 {
        assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(0x7000));
        assert_eq!(
            rig.one(&mut nic, Access::Write, 0x1000),
            Err(fault(NIC, PR | PE | RW, 0x1000))
        );
    }
}

/// VirtualBox: its IOTLB keeps the leaf's permissions, so a read primes a forbidden write.
#[test]
fn virtualbox_a_read_does_not_prime_a_write_that_a_level_above_forbids() {
    let mut rig = rig();
    let slots = map(&mut rig.memory, 4, 1, 0x1000, pte(0x7000));
    for slot in &slots[..3] {
        let word = rig.memory.peek(*slot).unwrap();
        rig.memory.set(*slot, word & !(1 << 62));
        rig.fabric.journal.append(Invalidation::domain(DOMAIN));
        for device in [NIC, DISK] {
            let mut mapper = rig.mapper(device, 64);
            assert_eq!(rig.one(&mut mapper, Access::Read, 0x1000), Ok(0x7000));
            assert_eq!(
                rig.one(&mut mapper, Access::Write, 0x1000),
                Err(fault(device, PR | PE | RW, 0x1000))
            );
        }
        rig.memory.set(*slot, word);
    }
}

/// VirtualBox: when only the beginning of an access hits, the rest goes to the wrong place.
#[test]
fn virtualbox_an_access_that_hits_in_part_goes_where_each_page_is() {
    let mut rig = rig();
    let table = ROOT + 0x3000;
    for (n, gpa) in [(2, 0x9_0000), (3, 0x2_0000)] {
        rig.memory.set(table + n * 8, pte(gpa));
    }
    for primed in [[0x1000].as_slice(), &[0x2000], &[0x3000], &[0x1000, 0x3000]] {
        let mut nic = rig.mapper(NIC, 64);
        for iova in primed {
            assert!(rig.one(&mut nic, Access::Read, *iova).is_ok());
        }
        let mut pieces = Vec::new();
        nic.pieces(&rig.memory, 0x1800, 0x2000, Access::Read, |piece| {
            pieces.push((piece.gpa, piece.len));
        })
        .unwrap();
        assert_eq!(
            pieces,
            [(0x7800, 0x800), (0x9_0000, 0x1000), (0x2_0000, 0x800)]
        );
    }
}

/// VirtualBox: after INVALIDATE_DEVTAB_ENTRY a device is never cached again.
#[test]
fn virtualbox_a_device_is_cached_again_after_its_dte_was_invalidated() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    for _ in 0..3 {
        nic.slot().invalidate();
        assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
        rig.memory.take_loads();
        assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
        assert_eq!(rig.memory.take_loads(), []);
    }
}

#[test]
fn switching_the_iommu_on_and_off_takes_effect_at_once() {
    let rig = rig();
    let mut nic = rig.mapper(NIC, 64);
    for on in [true, false, true] {
        rig.fabric
            .view
            .set_control(Control::RESET.with_iommu_en(on));
        rig.fabric.invalidate_all();
        let expected = if on { 0x7000 } else { 0x1000 };
        assert_eq!(rig.one(&mut nic, Access::Read, 0x1000), Ok(expected));
    }
}

#[test]
fn the_address_of_the_dte_is_the_device_ids() {
    let mut rig = rig();
    rig.memory.take_loads();
    rig.memory.set(dte(NIC), DteQ0::new().into_bits());
    let mut nic = rig.mapper(NIC, 64);
    assert!(rig.one(&mut nic, Access::Read, 0x1000).is_ok());
    let at = dte(NIC);
    assert_eq!(rig.memory.take_loads(), [at, at + 8, at]);
}

proptest! {
    /// A guest that rewrites every word between any two loads: no panic, and the loads are bounded.
    #[test]
    fn memory_that_changes_under_a_handle_costs_it_a_bounded_number_of_loads(
        words in proptest::collection::vec(prop_oneof![
            any::<u64>(),
            (1u8..8, any::<u32>()).prop_map(|(next, page)| pde(next, u64::from(page) << 12)),
            Just(q0(4).into_bits()),
            Just(q0(6).into_bits()),
            Just(q1().into_bits()),
        ], 0..200),
        requests in proptest::collection::vec((any::<u64>(), 0u64..0x2000, 0u8..3, any::<bool>()), 1..8),
    ) {
        let rig = Rig::new(64);
        let memory = ShiftingMemory::new(words);
        let mut nic = rig.mapper(NIC, 16);
        for (iova, len, access, invalidate) in requests {
            let access = [Access::Read, Access::Write, Access::Atomic][usize::from(access)];
            let before = memory.loads();
            let iova = iova >> (iova & 63);
            if let Ok(mapped) = nic.translate(&memory, iova, len, access) {
                prop_assert!(mapped.permissions.contains(access.needs()));
                prop_assert!(mapped.len <= len);
            }
            prop_assert!(memory.loads() - before <= MAX_DTE_LOADS + MAX_LOADS);
            if invalidate {
                rig.fabric.invalidate_all();
            }
        }
    }
}
