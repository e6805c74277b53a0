//! What the caches keep across invalidations of something else, and what they do not.

use super::*;

/// The caches keep what was not meant: otherwise the test above would be content with none.
#[test]
fn what_no_invalidation_meant_is_served_without_a_load() {
    for (mode, iova) in [(0, 0x1000), (4, 0x20_1000)] {
        let mut world = World::new(mode, 4096, 1024);
        let process = |n| Pasid::new(n);
        let loads = |world: &mut World, n: usize, pasid, iova| {
            world.memory.take_loads();
            let mapper = &mut world.mappers[n];
            let result = mapper.translate_for(&world.memory, pasid, iova, 8, Access::Read);
            assert!(result.is_ok());
            drop(result);
            world.memory.take_loads().len()
        };
        for n in [0, 1] {
            for pasid in [1, 2] {
                loads(&mut world, n, process(pasid), iova);
            }
        }
        // Another PASID, another page, another domain.
        for (domain, pasid, page) in [(1, 1, iova), (1, 2, iova + 0x1000), (2, 2, iova)] {
            world.invalidate(Invalidation {
                domain: Some(domain),
                pasid: Some(pasid),
                range: InvalidationRange::decode(page, false),
            });
        }
        assert_eq!(loads(&mut world, 0, process(2), iova), 0);
        assert_ne!(loads(&mut world, 0, process(1), iova), 0);
        // The other handle of that function finds in the shared IOTLB what the first has brought.
        assert_eq!(loads(&mut world, 1, process(1), iova), 0);
        // A page of the host's table, whichever.
        world.invalidate(Invalidation {
            range: InvalidationRange::decode(0x7777_7000, false),
            ..Invalidation::domain(1)
        });
        assert_ne!(loads(&mut world, 0, process(2), iova), 0);
        assert_ne!(loads(&mut world, 1, process(1), iova), 0);
        // All of a PASID.
        world.invalidate(Invalidation {
            pasid: Some(1),
            ..Invalidation::domain(1)
        });
        assert_eq!(loads(&mut world, 0, process(2), iova), 0);
        assert_ne!(loads(&mut world, 0, process(1), iova), 0);
    }
}

#[test]
fn a_range_in_the_guests_page_drops_all_parts_that_the_host_has_made_of_it() {
    let mut world = World::new(4, 4096, 1024);
    // A page of 1 GiB of the guest on pages of 2 MiB of the host.
    world
        .apply(&Op::Guest(
            1,
            3,
            [0, 0, 0],
            Entry::Leaf { page: 0, bits: 7 },
        ))
        .unwrap();
    let pasid = Pasid::new(1);
    for n in [0, 1] {
        for iova in [0, 0x40_0000, 0x3fff_f000] {
            let mapped =
                world.mappers[n].translate_for(&world.memory, pasid, iova, 1, Access::Read);
            assert_eq!(
                mapped.map(|mapped| mapped.gpa).ok(),
                Some(DATA + DISTANCE + iova)
            );
        }
    }
    world
        .apply(&Op::Guest(1, 3, [0, 0, 0], Entry::NotPresent))
        .unwrap();
    world.invalidate(Invalidation {
        pasid: Some(1),
        range: InvalidationRange::decode(0x1234_5000, false),
        ..Invalidation::domain(1)
    });
    for n in [0, 1] {
        for iova in [0, 0x40_0000, 0x3fff_f000] {
            let result =
                world.mappers[n].translate_for(&world.memory, pasid, iova, 1, Access::Read);
            assert!(result.is_err(), "handle {n}, {iova:#x}");
        }
    }
}

#[test]
fn what_one_request_has_found_serves_no_request_with_less_privilege() {
    let mut world = World::new(4, 4096, 1024);
    let pasid = Pasid::new(1);
    let privileged = pasid.map(|pasid| pasid.with_privileged(true));
    let executing = pasid.map(|pasid| pasid.with_execute(true));
    // P and RW only; then all, and NX.
    for (bits, first, second) in [(3, privileged, pasid), (7 | NX, pasid, executing)] {
        let leaf = Entry::Leaf { page: 0, bits };
        world.apply(&Op::Guest(1, 1, [0; 3], leaf)).unwrap();
        world.apply(&Op::All).unwrap();
        for n in [0, 1] {
            let mut ask = |pasid| {
                let mapper = &mut world.mappers[n];
                let result = mapper.translate_for(&world.memory, pasid, 0, 1, Access::Read);
                result.is_ok()
            };
            assert!(ask(first));
            assert!(!ask(second), "handle {n}, bits {bits:#x}");
            assert!(ask(first));
        }
    }
}
