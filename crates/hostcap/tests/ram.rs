//! Where RAM goes, and that only early facts decide it.

use amdvi_hostcap::ram::{
    FOUR_GIB, HT_HOLE_BASE, HT_HOLE_END, Moves, Placement, RamError, RamLayout, RamRequest,
    RegionKind, plan,
};
use amdvi_hostcap::{Aspect, EarlyFacts, Fact, Feature, HostCapSpec, Scope, Situation, Subject};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn facts(spec: &str) -> EarlyFacts {
    let source = spec.parse::<HostCapSpec>().unwrap().build();
    EarlyFacts::collect([source.as_ref()])
}

fn place(size: u64, spec: &str) -> RamLayout {
    plan(&RamRequest::new(size), &facts(spec)).unwrap()
}

#[test]
fn without_proof_on_an_amd_host_ram_above_4_gib_moves_above_1_tib() {
    for host in ["mock:hthole=on", "mock:hthole=on,htrangeignore=off"] {
        let layout = place(10 * GIB, host);
        assert_eq!(
            layout.placement,
            Placement::AboveOneTib,
            "{}",
            layout.reason
        );
        let ram: Vec<_> = layout.ram().map(|r| (r.base, r.size)).collect();
        assert_eq!(ram, [(0, 3 * GIB), (HT_HOLE_END, 7 * GIB)]);
        let reserved = layout
            .regions
            .iter()
            .find(|r| r.kind == RegionKind::Reserved)
            .unwrap();
        assert_eq!((reserved.base, reserved.end()), (HT_HOLE_BASE, HT_HOLE_END));
        assert!(layout.reason.contains("hthole.hw=on"), "{}", layout.reason);
    }
}

#[test]
fn with_proof_or_without_the_hole_ram_stays_at_4_gib() {
    for host in ["mock:hthole=on,htrangeignore=on", "mock:hthole=off", "none"] {
        let layout = place(2048 * GIB, host);
        assert_eq!(
            layout.placement,
            Placement::AboveFourGib,
            "{}",
            layout.reason
        );
        let ram: Vec<_> = layout.ram().map(|r| (r.base, r.size)).collect();
        assert_eq!(ram, [(0, 3 * GIB), (FOUR_GIB, 2045 * GIB)]);
        assert_eq!(layout.regions.len(), 2);
    }
}

#[test]
fn a_host_of_which_nothing_is_known_counts_as_one_with_the_hole() {
    for host in ["mock:", "legacy-vfio"] {
        let layout = place(10 * GIB, host);
        assert_eq!(layout.placement, Placement::AboveOneTib);
        assert!(layout.reason.contains("nothing shows"), "{}", layout.reason);
    }
}

#[test]
fn that_the_hole_is_absent_is_believed_of_the_whole_host_only_and_never_against_a_yes() {
    let say = |facts: &mut EarlyFacts, on: bool, scope| {
        facts.insert(Fact::new(
            Subject::HtHole,
            on,
            Aspect::Hardware,
            scope,
            "test",
            "",
        ));
    };
    let mut facts = EarlyFacts::default();
    say(&mut facts, false, Scope::Iommu("ivhd0".to_owned()));
    let placed = |facts: &EarlyFacts| plan(&RamRequest::new(10 * GIB), facts).unwrap().placement;
    assert_eq!(placed(&facts), Placement::AboveOneTib);
    say(&mut facts, false, Scope::Host);
    assert_eq!(placed(&facts), Placement::AboveFourGib);
    say(&mut facts, true, Scope::Host);
    assert_eq!(placed(&facts), Placement::AboveOneTib);
}

#[test]
fn one_iommu_that_does_not_ignore_the_range_moves_ram() {
    let mut facts = facts("mock:hthole=on");
    let mut say = |iommu: &str, on: bool| {
        let scope = Scope::Iommu(iommu.to_owned());
        facts.insert(Fact::new(
            Feature::HtRangeIgnore,
            on,
            Aspect::Hardware,
            scope,
            "s",
            "",
        ));
        plan(&RamRequest::new(10 * GIB), &facts).unwrap().placement
    };
    assert_eq!(say("ivhd0", true), Placement::AboveFourGib);
    assert_eq!(say("ivhd1", false), Placement::AboveOneTib);
}

#[test]
fn requests_that_make_no_sense_name_what_is_accepted() {
    let facts = facts("mock:hthole=on");
    for size in [0, 1, 4095, u64::MAX] {
        let error = plan(&RamRequest::new(size), &facts).unwrap_err();
        assert_eq!(error, RamError::Size { size });
    }
    for low_end in [0, 1, FOUR_GIB + 4096] {
        let request = RamRequest {
            low_end,
            ..RamRequest::new(GIB)
        };
        assert_eq!(
            plan(&request, &facts).unwrap_err(),
            RamError::LowEnd { low_end }
        );
    }
    let request = RamRequest {
        phys_bits: 40,
        ..RamRequest::new(10 * GIB)
    };
    let error = plan(&request, &facts).unwrap_err().to_string();
    assert!(
        error.contains("would end at 0x101c0000000") && error.contains("40 bits"),
        "{error}"
    );
    assert!(error.contains("moves above 1 TiB"), "{error}");
    let reached = RamRequest {
        moves: Moves::WhenReached,
        ..request
    };
    let layout = plan(&reached, &facts).unwrap();
    assert_eq!(layout.placement, Placement::AboveFourGib);
}

fn sizes() -> impl Strategy<Value = u64> {
    let edges = [
        3 * GIB,
        FOUR_GIB,
        HT_HOLE_BASE,
        HT_HOLE_BASE - GIB,
        HT_HOLE_END,
        1 << 47,
        1 << 62,
    ];
    let near = (prop::sample::select(edges.to_vec()), -3i64..=3)
        .prop_map(|(edge, pages)| edge.saturating_add_signed(pages * 4096));
    prop_oneof![near, (1..1u64 << 51).prop_map(|pages| pages << 12)]
}

fn hosts() -> impl Strategy<Value = (EarlyFacts, bool)> {
    // Whether the hole counts, as a reader of the documentation would say.
    prop::sample::select(vec![
        ("none", false),
        ("mock:", true),
        ("mock:hthole=on", true),
        ("mock:hthole=on,htrangeignore=off", true),
        ("mock:hthole=on,htrangeignore=on", false),
        ("mock:htrangeignore=on", false),
        ("mock:hthole=off", false),
        ("mock:hthole=off,htrangeignore=off", false),
        ("legacy-vfio", true),
    ])
    .prop_map(|(spec, counts)| (facts(spec), counts))
}

proptest! {
    #[test]
    fn all_ram_is_placed_and_none_where_it_must_not_be(
        size in sizes(),
        (facts, counts) in hosts(),
        phys_bits in 32u8..=64,
        low_pages in 1..=1u64 << 20,
        when_reached in any::<bool>(),
    ) {
        let request = RamRequest {
            size,
            low_end: low_pages << 12,
            phys_bits,
            moves: if when_reached { Moves::WhenReached } else { Moves::Always },
        };
        match plan(&request, &facts) {
            Ok(layout) => {
                prop_assert_eq!(layout.ram().map(|r| r.size).sum::<u64>(), size);
                for pair in layout.regions.windows(2) {
                    prop_assert!(pair[0].end() <= pair[1].base, "{:?}", layout.regions);
                }
                let high = layout.ram().find(|r| r.base != 0);
                prop_assert_eq!(high.is_some(), size > request.low_end);
                for region in layout.ram() {
                    prop_assert!(u128::from(region.end()) <= 1u128 << phys_bits);
                    let in_hole = region.base < HT_HOLE_END && region.end() > HT_HOLE_BASE;
                    prop_assert!(!(counts && in_hole), "{:?}", layout.regions);
                }
                if let Some(high) = high {
                    let fits = FOUR_GIB + high.size <= HT_HOLE_BASE;
                    let stays = !counts || (when_reached && fits);
                    prop_assert_eq!(high.base, if stays { FOUR_GIB } else { HT_HOLE_END });
                }
                prop_assert!(layout.reason.ends_with('.') && !layout.reason.contains('\n'));
            }
            Err(RamError::Bits { end, .. }) => prop_assert!(end > 1u128 << phys_bits.min(63)),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn a_known_situation_without_passthrough_never_moves_ram(size in sizes(), (facts, _) in hosts()) {
        let facts = facts.with_situation(Situation::Emulated);
        let request = RamRequest { phys_bits: 63, ..RamRequest::new(size) };
        if let Ok(layout) = plan(&request, &facts) {
            prop_assert_ne!(layout.placement, Placement::AboveOneTib);
        }
    }
}
