//! A guest table over a host table: what is read where, and which of both is to blame.

use super::*;

#[test]
fn the_gcr3_root_is_a_gpa_or_an_spa_by_gcr3_trp_mode_and_the_rest_are_gpas() {
    for is_gpa in [true, false] {
        for right in [true, false] {
            let (mut world, _) = World::mapped(4, PAGE | GUEST_RWU);
            world.context.guest.gcr3_root_is_gpa = is_gpa;
            let address = if is_gpa == right {
                GCR3
            } else {
                GCR3 + DISTANCE
            };
            let dte = Dte {
                q0: world.entry.q0,
                q1: world.entry.q1,
                ..Dte::default()
            }
            .with_gcr3_address(address);
            world.entry = DmaEntry::new(dte.q0, dte.q1);
            let result = world.read(user(), IOVA);
            assert_eq!(result.is_ok(), right, "GCR3TRPMode={is_gpa}: {result:?}");
        }
    }
}

#[test]
fn a_host_fault_on_the_way_has_gn_0_and_the_gpa_of_the_table_entry() {
    let (world, entries) = World::mapped(4, PAGE | GUEST_RWU);
    for (n, at) in entries.into_iter().enumerate() {
        let mut world = World {
            builder: world.builder.clone(),
            ..world
        };
        // IR=0 for the page of the table; the device's access is a write, the IOMMU's a read.
        world
            .builder
            .host_map(at, 1, ((at & !0xfff) + DISTANCE) | 1 | 1 << 62);
        let fault = world.write(user(), IOVA).unwrap_err();
        assert_eq!(
            fault.stage,
            Stage::Host {
                gpa: at,
                write: false
            }
        );
        assert_eq!(event(Err(fault)), page_fault(PR | PE, at), "entry {n}");
        world.builder.host_map(at, 1, 0);
        assert_eq!(event(world.write(user(), IOVA)), page_fault(0, at));
    }
    // The GCR3 table likewise.
    let (mut world, _) = World::mapped(4, PAGE | GUEST_RWU);
    world.builder.host_map(GCR3, 1, 0);
    assert_eq!(event(world.write(user(), IOVA)), page_fault(0, GCR3));
}

#[test]
fn a_host_fault_behind_the_guest_table_has_gn_0_and_the_gpa_of_the_data() {
    let (mut world, _) = World::mapped(3, PAGE | GUEST_RWU);
    world.builder.host_map(PAGE, 1, 1 | 1 << 61 | PAGE);
    let fault = world.write(user(), IOVA | 0x18).unwrap_err();
    let gpa = PAGE | 0x18;
    assert_eq!(fault.stage, Stage::Host { gpa, write: true });
    assert_eq!(event(Err(fault)), page_fault(PR | PE | RW, gpa));
    // Beyond what the mode translates.
    let far = 1 << 39;
    world.map(IOVA, 1, far | GUEST_RWU);
    assert_eq!(event(world.write(user(), IOVA)), page_fault(RW, far));
}

#[test]
fn hardware_errors_belong_to_the_table_that_cannot_be_read() {
    let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
    world.builder.set_gcr3(3, PASID, UNBACKED);
    let at = UNBACKED + (IOVA >> 39 & 0x1ff) * 8;
    assert_eq!(
        event(world.read(user(), IOVA)),
        raw_event(4, GN | flag::MASTER_ABORT, PASID, at)
    );
    let (world, _) = World::mapped(4, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_host_pt_root(UNBACKED >> 12));
    let result = event(world.read(user(), IOVA));
    assert_eq!(
        result[0],
        raw_event(4, flag::MASTER_ABORT, u64::from(DOMAIN), 0)[0]
    );
}

#[test]
fn permissions_are_the_and_and_the_page_is_the_smaller_of_both() {
    for (guest_level, host_level) in [(1, 3), (2, 1), (3, 2), (2, 2), (3, 1)] {
        let mut world = World::new(4);
        let leaf = PAGE | GUEST_RWU | if guest_level > 1 { LARGE } else { 0 };
        world.map(IOVA, guest_level, leaf);
        let gpa = PAGE | IOVA & ((1 << shift(guest_level)) - 1);
        let base = (gpa & !((1 << shift(host_level)) - 1)) + (1 << 36);
        world
            .builder
            .host_map(gpa, host_level, pte(base) & !(1 << 62));
        let span = world.read(user(), IOVA).unwrap();
        assert_eq!(span.permissions, Permissions::READ);
        assert_eq!(span.gpa, gpa + (1 << 36));
        let Target::Page(leaf) = span.target else {
            panic!("through a page");
        };
        let smaller = guest_level.min(host_level);
        assert_eq!(u32::from(leaf.shift), shift(smaller));
        assert_eq!(leaf.iova, IOVA & !((1 << shift(smaller)) - 1));
        let guest = leaf.guest.unwrap();
        assert_eq!(u32::from(guest.shift), shift(guest_level));
        let result = world.write(user(), IOVA);
        assert_eq!(event(result), page_fault(PR | PE | RW, gpa));
    }
}
