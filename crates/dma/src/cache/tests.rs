use super::*;

fn cache() -> Cache {
    Cache::new(64)
}

const PLAIN: Meant = Meant {
    plain: true,
    pasids: Pasids::All,
};

fn page(address: u64) -> InvalidationRange {
    range(address, 12)
}

fn range(address: u64, size_log2: u8) -> InvalidationRange {
    InvalidationRange::Block {
        start: address >> size_log2 << size_log2,
        size_log2,
    }
}

fn kind(pasid: u32) -> Kind {
    Kind::of(Pasid::new(pasid), Access::Read)
}

fn of_pasid(pasid: u32) -> Meant {
    Meant {
        plain: false,
        pasids: Pasids::One(pasid),
    }
}

#[test]
fn kinds_of_requests_do_not_see_each_other() {
    let pasid = Pasid::new(5).unwrap();
    let kinds = [
        Kind::PLAIN,
        kind(0),
        kind(4),
        kind(5),
        Kind::of(Some(pasid.with_privileged(true)), Access::Read),
        Kind::of(Some(pasid.with_execute(true)), Access::Read),
    ];
    let mut cache = Cache::new(1024);
    for (n, kind) in kinds.into_iter().enumerate() {
        assert_eq!(cache.get(kind, 0x1000, Permissions::READ), None);
        cache.put(kind, 0x1000 + ((n as u64) << 20), 12, 0, Permissions::READ);
    }
    for (n, kind) in kinds.into_iter().enumerate() {
        for (m, other) in kinds.into_iter().enumerate() {
            let iova = 0x1000 + ((m as u64) << 20);
            let found = cache.get(kind, iova, Permissions::READ).is_some();
            assert_eq!(found, n == m, "{kind:?} finds what {other:?} has put");
        }
    }
    // Writes don't execute.
    assert_eq!(
        Kind::of(Some(pasid.with_execute(true)), Access::Write),
        kind(5)
    );
}

#[test]
fn an_invalidation_by_pasid_leaves_others_and_one_of_the_host_leaves_none() {
    for range in [page(0x1000), InvalidationRange::All] {
        let mut cache = Cache::new(1024);
        let privileged = Pasid::new(5).unwrap().with_privileged(true);
        let privileged = Kind::of(Some(privileged), Access::Read);
        let kinds = [Kind::PLAIN, kind(5), privileged, kind(6), kind(5 + 64)];
        // The last shares its place with another, which it throws out.
        for kind in kinds.into_iter().rev() {
            cache.put(kind, 0x1000, 12, 0, Permissions::READ);
            cache.put(kind, 0x2_2000, 12, 0, Permissions::READ);
        }
        cache.invalidate(range, of_pasid(5));
        let mut has = |kind, iova| cache.get(kind, iova, Permissions::READ).is_some();
        assert!(!has(kind(5), 0x1000) && !has(privileged, 0x1000));
        let all = range == InvalidationRange::All;
        assert!(has(kind(6), 0x2_2000));
        assert_eq!(has(privileged, 0x2_2000), !all);
        assert!(has(Kind::PLAIN, 0x2_2000));
        cache.invalidate(page(0x7_7000), PLAIN);
        let mut has = |kind, iova| cache.get(kind, iova, Permissions::READ).is_some();
        assert!(!has(kind(6), 0x1000) && !has(privileged, 0x2_2000));
        assert!(has(Kind::PLAIN, 0x2_2000));
    }
}

#[test]
fn more_pasids_than_are_kept_apart_cost_misses_and_nothing_else() {
    let mut cache = cache();
    for n in 0..3 * LAST_NUMBER as u32 {
        let kind = kind(n % 1000);
        assert!(
            cache
                .get(kind, 0x1000, Permissions::READ)
                .is_none_or(|hit| hit.gpa(0x1000) == u64::from(n % 1000) << 12)
        );
        cache.put(
            kind,
            0x1000,
            12,
            u64::from(n % 1000) << 12,
            Permissions::READ,
        );
        let hit = cache.get_hot(kind, 0x1000).unwrap();
        assert_eq!(hit.gpa(0x1000), u64::from(n % 1000) << 12);
    }
}

#[test]
fn a_block_of_any_size_is_one_entry_and_answers_for_each_of_its_bytes() {
    for shift in 12..=63 {
        let mut cache = cache();
        let size = 1u64 << shift;
        let iova = 0x1234_5678_9abc_d000 & !(size - 1);
        cache.put(
            Kind::PLAIN,
            iova | 0x777 & (size - 1),
            shift,
            0,
            Permissions::READ,
        );
        for offset in [0, 1, size / 2, size - 1] {
            let hit = cache
                .get(Kind::PLAIN, iova + offset, Permissions::READ)
                .unwrap();
            assert_eq!(hit.gpa(iova + offset), offset);
            assert_eq!(hit.reach(iova + offset), size - offset);
            assert_eq!(hit.permissions(), Permissions::READ);
            assert!(!hit.allows(Permissions::WRITE));
        }
        assert_eq!(cache.get(Kind::PLAIN, iova ^ size, Permissions::READ), None);
        assert_eq!(cache.get(Kind::PLAIN, iova, Permissions::all()), None);
    }
}

#[test]
fn neighbouring_pages_do_not_throw_each_other_out() {
    let mut cache = cache();
    for n in 0..64 {
        cache.put(
            Kind::PLAIN,
            n << 12,
            12,
            n << 12 | 1 << 40,
            Permissions::all(),
        );
    }
    for n in 0..64 {
        let hit = cache.get(Kind::PLAIN, n << 12, Permissions::READ).unwrap();
        assert_eq!(hit.gpa(n << 12 | 5), n << 12 | 1 << 40 | 5);
    }
}

#[test]
fn everything_is_dropped_even_when_the_numbers_are_used_up() {
    let mut cache = cache();
    cache.put(Kind::PLAIN, 0x1000, 12, 0x5000, Permissions::READ);
    for _ in 0..LAST_NUMBER + 3 {
        cache.clear();
        assert_eq!(cache.get(Kind::PLAIN, 0x1000, Permissions::READ), None);
        assert_eq!(cache.get_hot(Kind::PLAIN, 0x1000), None);
    }
    cache.put(Kind::PLAIN, 0x1000, 12, 0x5000, Permissions::READ);
    assert!(cache.get_hot(Kind::PLAIN, 0x1000).is_some());
}

#[test]
fn a_range_drops_the_larger_block_around_it_and_the_smaller_ones_in_it() {
    let mut cache = cache();
    cache.put(Kind::PLAIN, 0x40_0000, 21, 0x40_0000, Permissions::READ);
    cache.put(Kind::PLAIN, 0x60_0000, 12, 0x60_0000, Permissions::READ);
    cache.put(Kind::PLAIN, 0x60_1000, 12, 0x60_1000, Permissions::READ);
    cache.put(Kind::PLAIN, 0x60_2000, 12, 0x60_2000, Permissions::READ);
    cache.invalidate(page(0x41_2000), PLAIN);
    assert_eq!(cache.get(Kind::PLAIN, 0x40_0000, Permissions::READ), None);
    cache.invalidate(range(0x60_0000, 13), PLAIN);
    assert_eq!(cache.get(Kind::PLAIN, 0x60_0000, Permissions::READ), None);
    assert_eq!(cache.get(Kind::PLAIN, 0x60_1000, Permissions::READ), None);
    assert!(
        cache
            .get(Kind::PLAIN, 0x60_2000, Permissions::READ)
            .is_some()
    );
}

#[test]
fn a_large_range_costs_what_the_cache_has_entries() {
    let mut cache = cache();
    for n in 0..64 {
        cache.put(Kind::PLAIN, n << 12, 12, n << 12, Permissions::READ);
    }
    cache.put(Kind::PLAIN, 1 << 40, 21, 0, Permissions::READ);
    let steps = cache.invalidate(range(0, 17), PLAIN);
    assert!(steps <= 2 * 64, "{steps}");
    for n in 0..64u64 {
        assert_eq!(
            cache.get(Kind::PLAIN, n << 12, Permissions::READ).is_some(),
            n >= 32
        );
    }
    assert!(cache.get(Kind::PLAIN, 1 << 40, Permissions::READ).is_some());
    assert!(cache.invalidate(range(0, 63), PLAIN) <= 2 * 64);
    assert_eq!(cache.get(Kind::PLAIN, 1 << 40, Permissions::READ), None);
}

#[test]
fn a_page_of_which_parts_are_kept_goes_as_a_whole() {
    let mut cache = cache();
    cache.put(Kind::PLAIN, 0, 31, 0, Permissions::READ);
    cache.is_part_of(0, 0xffff_ffff);
    cache.put(Kind::PLAIN, 1 << 40 | 0x3000, 12, 0, Permissions::READ);
    cache.invalidate(page(1 << 41), PLAIN);
    assert!(cache.get(Kind::PLAIN, 5, Permissions::READ).is_some());
    // In the same page, in another part.
    cache.invalidate(page(0xf000_0000), PLAIN);
    assert_eq!(cache.get(Kind::PLAIN, 5, Permissions::READ), None);
}
