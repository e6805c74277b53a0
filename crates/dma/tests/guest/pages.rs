//! Addresses, sizes of pages, and what the levels of a guest table permit.

use super::*;

#[test]
fn addresses_are_sign_extended_and_for_pasid_0_zero_extended_too() {
    let high = 0xffff_8012_3456_7000;
    let zero = high & 0xffff_ffff_ffff;
    let mut world = World::new(0);
    world.map(zero, 1, PAGE | GUEST_RWU);
    assert_eq!(world.read(user(), high).unwrap().gpa, PAGE);
    let fault = world.read(user(), zero).unwrap_err();
    assert_eq!(fault.reason, Reason::NotCanonical { bits: 48 });
    assert_eq!(event(Err(fault)), guest_fault(PASID, US, zero));
    for iova in [high, zero] {
        assert_eq!(world.read(pasid(0), iova).unwrap().gpa, PAGE);
    }
    for iova in [1 << 48, 0xfffe_8012_3456_7000] {
        assert!(world.read(pasid(0), iova).is_err(), "{iova:#x}");
    }
}

#[test]
fn large_pages_of_the_guest_are_2_mib_and_1_gib() {
    for (level, size) in [(2, 21), (3, 30)] {
        let mut world = World::new(0);
        world.map(IOVA, level, PAGE | GUEST_RWU | LARGE | 1 << 12);
        let offset = IOVA & ((1 << size) - 1) | 0x45;
        let span = world.write(user(), IOVA | 0x45).unwrap();
        assert_eq!(span.gpa, PAGE | offset, "PAT at bit 12 is no address");
        assert!(matches!(span.target, Target::Page(leaf) if leaf.shift == size));
        // Address bits below the size.
        for bit in 13..size {
            world.map(IOVA, level, PAGE | GUEST_RWU | LARGE | 1 << bit);
            let result = world.write(user(), IOVA);
            assert_eq!(event(result), guest_fault(PASID, US | PR | RZ | RW, IOVA));
        }
    }
    // There are none at the levels above.
    for level in [4, 5] {
        let mut world = World::new(0);
        world.levels = 5;
        world.entry = world.entry.with_guest_paging_mode(1);
        world.map(IOVA, level, PAGE | GUEST_RWU | LARGE);
        let fault = world.read(user(), IOVA).unwrap_err();
        assert_eq!(
            fault.reason,
            Reason::ReservedEntryBits { level, bits: LARGE }
        );
    }
}

#[test]
fn an_entry_that_is_not_present_faults_at_any_level() {
    for level in 1..=4 {
        let (mut world, entries) = World::mapped(0, PAGE | GUEST_RWU);
        let at = entries[4 - usize::from(level)];
        let word = world.builder.guest(at);
        world.builder.set_guest(at, word & !1);
        let fault = world.read(user(), IOVA).unwrap_err();
        assert_eq!(fault.reason, Reason::NotPresent { level });
        assert_eq!(event(Err(fault)), guest_fault(PASID, US, IOVA));
    }
}

#[test]
fn a_write_needs_rw_in_every_level_whatever_the_privilege() {
    for level in 1..=4 {
        let (mut world, entries) = World::mapped(0, PAGE | GUEST_RWU);
        let at = entries[4 - level];
        let word = world.builder.guest(at);
        world.builder.set_guest(at, word & !2);
        assert_eq!(
            world.read(user(), IOVA).unwrap().permissions,
            Permissions::READ
        );
        let result = world.write(user(), IOVA);
        assert_eq!(event(result), guest_fault(PASID, US | PR | PE | RW, IOVA));
        // As with CR0.WP=1.
        let privileged = user().map(|pasid| pasid.with_privileged(true));
        let result = world.write(privileged, IOVA);
        assert_eq!(event(result), guest_fault(PASID, PR | PE | RW, IOVA));
    }
}

#[test]
fn user_requests_need_us_in_every_level_and_privileged_ones_do_not() {
    for level in 1..=4 {
        let (mut world, entries) = World::mapped(0, PAGE | GUEST_RWU);
        let at = entries[4 - level];
        let word = world.builder.guest(at);
        world.builder.set_guest(at, word & !4);
        let result = world.read(user(), IOVA);
        assert_eq!(event(result), guest_fault(PASID, US | PR | PE, IOVA));
        let privileged = user().map(|pasid| pasid.with_privileged(true));
        assert!(world.write(privileged, IOVA).is_ok());
    }
}

#[test]
fn what_is_to_be_executed_must_not_have_nx_in_any_level() {
    let executing = user().map(|pasid| pasid.with_execute(true));
    for level in 1..=4 {
        let (mut world, entries) = World::mapped(0, PAGE | GUEST_RWU);
        assert!(world.read(executing, IOVA).is_ok());
        let at = entries[4 - level];
        let word = world.builder.guest(at);
        world.builder.set_guest(at, word | NX);
        let result = world.read(executing, IOVA);
        assert_eq!(
            event(result),
            guest_fault(PASID, FLAG_NX | US | PR | PE, IOVA)
        );
        assert!(world.read(user(), IOVA).is_ok());
        // The bit means nothing in a write.
        assert!(world.write(executing, IOVA).is_ok());
        // Nor without NXSup.
        world.context.guest.no_execute = false;
        assert!(world.read(executing, IOVA).is_ok());
    }
}
