//! Entries that change while they are marked, and threads that mark the same ones.

use super::*;

#[test]
fn an_entry_that_changed_meanwhile_is_checked_anew() {
    // P, RW and US fall, once, just before the leaf or a table is marked.
    for (flip, reason) in [
        (1, Reason::NotPresent { level: 4 }),
        (2, Reason::Permission { level: Some(4) }),
        (4, Reason::Permission { level: Some(4) }),
        (
            LARGE,
            Reason::ReservedEntryBits {
                level: 4,
                bits: LARGE,
            },
        ),
    ] {
        let world = World::new(0, 0);
        world.memory.race(flip, 1);
        let mut nic = world.mapper();
        let failed = nic
            .translate_for(&world.memory, pasid(), IOVA, 1, Access::Write)
            .unwrap_err();
        assert_eq!(failed.cause, amdvi_dma::Cause::Translation(reason));
        assert_eq!(world.marks(), []);
    }
    // A change that does not matter is kept.
    let world = World::new(0, 0);
    world.memory.race(1 << 9, 4);
    world.dma(&mut world.mapper(), pasid(), IOVA, Access::Write);
    assert_eq!(world.memory.get(world.guest[0]) >> 5 & 0x11, 1);
}

#[test]
fn an_entry_that_never_stands_still_ends_the_request() {
    for (mode, had, who) in [(0, 0, pasid()), (3, 1, None), (3, 3, pasid())] {
        let world = World::new(mode, had);
        world.memory.race(1 << 10, usize::MAX);
        // Bit 10 is NextLevel in the host's entries: take one that is ignored there.
        if mode != 0 {
            world.memory.race(1 << 8, usize::MAX);
        }
        let mut nic = world.mapper();
        let failed = nic
            .translate_for(&world.memory, who, IOVA, 1, Access::Write)
            .unwrap_err();
        let cause = failed.cause;
        assert!(
            matches!(
                cause,
                amdvi_dma::Cause::Translation(Reason::EntryInMotion { .. })
            ),
            "{cause:?}"
        );
        assert!(failed.event.is_some());
        assert!(world.memory.take_attempts() <= 9);
    }
}

#[test]
fn threads_that_write_first_at_the_same_time_set_each_dirty_bit_once() {
    for (mode, had) in [(0, 0), (3, 3)] {
        let mut world = World::new(mode, had);
        let root = GUEST_TABLES;
        for n in 0..64 {
            let (iova, page) = (0x60_0000 + (n << 12), PAGE + (n << 12));
            world.builder.guest_map(root, 4, iova, 1, page | GUEST_RWU);
            if mode != 0 {
                world.builder.host_map(page, 1, pte(page + DISTANCE));
            }
        }
        for (at, word) in &world.builder.words {
            world.memory.set(*at, *word);
        }
        let world = &world;
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let mut nic = world.mapper();
                scope.spawn(move || {
                    for n in 0..64 {
                        let n = n ^ (seed & 1);
                        for access in [Access::Read, Access::Write, Access::Write] {
                            world.dma(&mut nic, pasid(), 0x60_0000 + (n << 12), access);
                        }
                    }
                });
            }
        });
        let mut dirty: Vec<_> = world
            .marks()
            .into_iter()
            .filter(|(_, bits)| bits & DIRTY != 0)
            .map(|(at, _)| at)
            .collect();
        let all = dirty.len();
        dirty.sort_unstable();
        dirty.dedup();
        assert_eq!(dirty.len(), all, "each once");
        // The guest's leaves; and the host's, with those of the tables that hold marked entries.
        assert!(all >= if mode == 0 { 64 } else { 128 }, "{all}");
    }
}
