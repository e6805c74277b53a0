//! What an address space maps, range by range.

mod common;

use amdvi_core::{Barrier, Fabric, View};
use amdvi_dma::{Access, AddressSpace, Mapping, Permissions};
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::pte::level_shift;
use common::rig::Rig;
use common::*;
use proptest::prelude::*;

const ALL: u64 = u64::MAX;
const MSI_FIRST: u64 = 0xfee0_0000;
const MSI_LAST: u64 = 0xfeef_ffff;
/// In the one page of device table that the rig has.
const FUNCTION: DeviceId = DeviceId(0x18);
const PLENTY: u64 = 1 << 20;

fn space(rig: &Rig) -> AddressSpace {
    AddressSpace::read(&rig.fabric.view, &rig.memory, FUNCTION, 64)
}

fn rig(mode: u8) -> Rig {
    let mut rig = Rig::new(64);
    rig.set_dte(FUNCTION, q0(mode).into_bits(), q1().into_bits());
    rig
}

fn rw(iova: u64, gpa: u64, len: u64) -> Mapping {
    Mapping {
        iova,
        gpa,
        len,
        permissions: Permissions::all(),
    }
}

fn all(rig: &Rig) -> Vec<Mapping> {
    let mut mappings = space(rig).mappings(&rig.memory, 0..=ALL, PLENTY).merged();
    let list = mappings.by_ref().collect();
    assert_eq!(mappings.rest(), None);
    list
}

#[test]
fn without_translation_all_but_the_interrupt_window_is_mapped_to_itself() {
    let below = rw(0, 0, MSI_FIRST);
    let above = rw(MSI_LAST + 1, MSI_LAST + 1, ALL - MSI_LAST);
    let mut rig = rig(4);
    rig.set_dte(FUNCTION, 0, 0);
    assert_eq!(all(&rig), [below, above]);
    assert_eq!(space(&rig).domain(), None);

    let off = View::new(ExtendedFeature::new(), ExtendedFeature2::new());
    let off = Fabric::new(off, Barrier::Portable);
    let space = AddressSpace::read(&off.view, &rig.memory, FUNCTION, 64);
    let list: Vec<_> = space.mappings(&rig.memory, 0..=ALL, 9).collect();
    assert_eq!(list, [below, above]);
}

#[test]
fn mode_0_maps_identity_with_the_permissions_of_the_dte_and_without_the_ht_ranges() {
    let mut rig = rig(0);
    rig.set_dte(
        FUNCTION,
        q0(0).with_iw(false).into_bits(),
        q1().with_io_ctl(1).into_bits(),
    );
    let read = |first: u64, end: u64| Mapping {
        permissions: Permissions::READ,
        ..rw(first, first, end - first)
    };
    let end = 0x100_0000_0000;
    assert_eq!(
        all(&rig),
        [
            read(0, MSI_FIRST),
            read(MSI_LAST + 1, 0xfd_0000_0000),
            Mapping {
                len: ALL - end + 1,
                ..read(end, end + 1)
            },
        ]
    );
}

#[test]
fn what_is_blocked_as_a_whole_has_no_mappings() {
    let mut rig = rig(4);
    map(&mut rig.memory, 4, 1, 0x5000, PRESENT_RW | 0x9000);
    for (q0, q1) in [
        (q0(4).with_tv(false), q1()),
        (q0(4).with_ir(false).with_iw(false), q1()),
        (q0(7), q1()),
        (q0(0).with_ir(false).with_iw(false), q1()),
    ] {
        rig.set_dte(FUNCTION, q0.into_bits(), q1.into_bits());
        rig.memory.take_loads();
        assert_eq!(all(&rig), []);
        // The DTE, and nothing of a table.
        assert!(rig.memory.take_loads().len() <= 3, "{q0:?}");
    }
    // No DTE at all.
    let outside = DeviceId(0xffff);
    let space = AddressSpace::read(&rig.fabric.view, &rig.memory, outside, 64);
    assert_eq!(space.mappings(&rig.memory, 0..=ALL, PLENTY).count(), 0);
    assert_eq!(space.domain(), None);
}

#[test]
fn a_leaf_is_one_mapping_and_neighbours_are_merged_on_demand() {
    let mut rig = rig(2);
    for (iova, gpa) in [(0x5000, 0x1_5000), (0x6000, 0x1_6000), (0x7000, 0x3000)] {
        map(&mut rig.memory, 2, 1, iova, PRESENT_RW | gpa);
    }
    map(&mut rig.memory, 2, 2, 0x60_0000, PRESENT_RW | 0x80_0000);
    let space = space(&rig);
    assert_eq!(space.domain(), Some(q1().domain_id()));
    let leaves: Vec<_> = space.mappings(&rig.memory, 0..=ALL, PLENTY).collect();
    let large = rw(0x60_0000, 0x80_0000, 0x20_0000);
    assert_eq!(
        leaves,
        [
            rw(0x5000, 0x1_5000, 0x1000),
            rw(0x6000, 0x1_6000, 0x1000),
            rw(0x7000, 0x3000, 0x1000),
            large
        ]
    );
    assert_eq!(
        all(&rig),
        [
            rw(0x5000, 0x1_5000, 0x2000),
            rw(0x7000, 0x3000, 0x1000),
            large
        ]
    );
    // A part of them.
    let part: Vec<_> = space
        .mappings(&rig.memory, 0x6800..=0x60_0fff, PLENTY)
        .collect();
    assert_eq!(
        part,
        [
            rw(0x6800, 0x1_6800, 0x800),
            rw(0x7000, 0x3000, 0x1000),
            rw(0x60_0000, 0x80_0000, 0x1000)
        ]
    );
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    let nothing = space.mappings(&rig.memory, 0x6000..=0x5fff, PLENTY).count();
    assert_eq!(nothing, 0);
}

#[test]
fn permissions_are_those_of_all_levels_and_a_page_without_any_is_not_mapped() {
    let mut rig = rig(2);
    let write_only = 1 | 1 << 62;
    map(&mut rig.memory, 2, 1, 0, write_only | 0x9000);
    map(&mut rig.memory, 2, 1, 0x1000, PRESENT_RW | 0xa000);
    map(&mut rig.memory, 2, 1, 0x2000, 1 | 0xb000);
    assert_eq!(
        all(&rig),
        [
            Mapping {
                permissions: Permissions::WRITE,
                ..rw(0, 0x9000, 0x1000)
            },
            rw(0x1000, 0xa000, 0x1000)
        ]
    );
    // The PDE forbids writes: the page of the first is gone, the second reads only.
    let pde = rig.memory.peek(ROOT).unwrap();
    rig.memory.set(ROOT, pde & !(1 << 62));
    assert_eq!(
        all(&rig),
        [Mapping {
            permissions: Permissions::READ,
            ..rw(0x1000, 0xa000, 0x1000)
        }]
    );
}

#[test]
fn a_page_around_the_interrupt_window_is_mapped_on_both_sides_of_it() {
    let mut rig = rig(4);
    map(&mut rig.memory, 4, 3, 0xc000_0000, PRESENT_RW | 0x4000_0000);
    assert_eq!(
        all(&rig),
        [
            rw(0xc000_0000, 0x4000_0000, 0x3ee0_0000),
            rw(0xfef0_0000, 0x7ef0_0000, 0x110_0000)
        ]
    );
}

#[test]
fn each_table_word_is_loaded_once() {
    let mut rig = rig(4);
    for page in 0..512 {
        map(
            &mut rig.memory,
            4,
            1,
            page << 12,
            PRESENT_RW | (page ^ 1) << 12,
        );
    }
    let space = space(&rig);
    rig.memory.take_loads();
    let mut mappings = space.mappings(&rig.memory, 0..=0xffff_ffff, PLENTY);
    assert_eq!(mappings.by_ref().count(), 512);
    let mut loads = rig.memory.take_loads();
    assert_eq!(loads.len() as u64, mappings.loads());
    loads.sort_unstable();
    let total = loads.len();
    loads.dedup();
    assert_eq!(loads.len(), total);
    // Leaves, entries of levels 2 and 3 that cover the range, and the root's.
    assert_eq!(total, 512 + 512 + 4 + 1);
}

#[test]
fn the_work_is_bounded_whatever_the_tables_say_and_goes_on_where_it_stopped() {
    // Each entry of the root points to a table all of whose entries point to the next: 2^52 pages.
    let mut rig = rig(6);
    for level in 1..=6u8 {
        let table = ROOT + u64::from(6 - level) * 0x1000;
        for n in 0..512 {
            let word = match level {
                1 => PRESENT_RW,
                _ => PRESENT_RW | u64::from(level - 1) << 9 | (table + 0x1000),
            };
            rig.memory.set(table + n * 8, word);
        }
    }
    let space = space(&rig);
    let (mut range, mut found) = (0..=ALL, Vec::new());
    for _ in 0..8 {
        rig.memory.take_loads();
        let mut mappings = space.mappings(&rig.memory, range, 1000);
        found.extend(mappings.by_ref());
        // The last step may begin with the last of the budget and goes down all levels.
        assert!(rig.memory.take_loads().len() < 1000 + amdvi_dma::MAX_LOADS);
        range = mappings.rest().unwrap();
    }
    assert!(found.len() > 7000);
    for (n, mapping) in found.iter().enumerate() {
        assert_eq!(*mapping, rw((n as u64) << 12, 0, 0x1000));
    }
    // And the other way to waste time: nothing is readable.
    let mut rig = self::rig(6);
    for n in 0..512 {
        rig.memory.set(ROOT + n * 8, PRESENT_RW | 5 << 9 | UNBACKED);
    }
    let mut mappings = self::space(&rig).mappings(&rig.memory, 0..=ALL, PLENTY);
    assert_eq!(mappings.by_ref().count(), 0);
    assert_eq!(mappings.rest(), None);
    // 128 entries of level 6 in use, each with 512 of level 5 of which none is readable. Those
    // around the special ranges are asked for again.
    let expected = 128 + 128 * 512;
    assert!((expected..expected + 16).contains(&mappings.loads()));
}

/// A table of `mode` levels with a few entries, good and bad, near each other.
fn entries() -> impl Strategy<Value = Vec<(u8, u64, u64)>> {
    let bits = prop_oneof![
        8 => Just(PRESENT_RW),
        1 => Just(1 | 1 << 61),
        1 => Just(1 | 1 << 62),
        1 => Just(1u64),
        1 => Just(0u64),
        1 => Just(PRESENT_RW | 1 << 53),
        1 => Just(PRESENT_RW | 7 << 9),
        1 => Just(PRESENT_RW | 7 << 9 | 1 << 12),
    ];
    let place = prop_oneof![
        0u64..8,
        508u64..516,
        0x7_f6f0u64..0x7_f700,
        0xfe_e00u64..0xfe_f01
    ];
    proptest::collection::vec(
        (1u8..4, place, bits, 0u64..8).prop_map(|(level, page, bits, gpa)| {
            (level, page << 12, bits | gpa << 20 | 0x4_0000_0000)
        }),
        1..24,
    )
}

proptest! {
    /// Every page in some stretch of addresses is mapped exactly if a translation of it succeeds, to
    /// where that says.
    #[test]
    fn the_ranges_are_what_translations_of_each_page_say(
        mode in 0u8..=4,
        entries in entries(),
        pdes in proptest::collection::vec((0u64..4, 0u64..3), 0..3),
        dte_permissions in 1u64..4,
        exclusion in proptest::option::of((0u64..600, 0u64..600)),
        first in 0u64..0x400,
        pages in 1u64..1200,
        high in any::<bool>(),
        budget in 1u64..4000,
    ) {
        let mut rig = rig(mode);
        rig.set_dte(
            FUNCTION,
            q0(mode).into_bits() & !(3 << 61) | dte_permissions << 61,
            q1().with_ex(true).into_bits(),
        );
        for (level, iova, word) in entries {
            if mode > 0 && level <= mode && iova >> level_shift(mode).unwrap() < 512 {
                map(&mut rig.memory, mode, level, iova, word);
            }
        }
        for (n, bits) in pdes {
            if let Some(word) = rig.memory.peek(ROOT + n * 8).filter(|&word| word != 0) {
                rig.memory.set(ROOT + n * 8, word & !(3 << 61) | bits << 61);
            }
        }
        if let Some((from, to)) = exclusion {
            rig.fabric.view.set_exclusion([from << 12 | 1, to << 12]);
            rig.fabric.view.set_control(Control::RESET.with_iommu_en(true));
        }
        let base = if high { 0xfe_d00 } else { 0 } + first;
        let (from, to) = (base << 12, (base + pages) << 12);
        let space = space(&rig);

        let (mut list, mut range) = (Vec::<Mapping>::new(), from..=to - 1);
        loop {
            let mut mappings = space.mappings(&rig.memory, range, budget);
            list.extend(mappings.by_ref());
            let Some(rest) = mappings.rest() else { break };
            range = rest;
        }
        prop_assert!(list.windows(2).all(|pair| pair[0].last() < pair[1].iova));
        prop_assert!(list.iter().all(|m| m.iova >= from && m.last() < to));

        let mut mapper = rig.mapper(FUNCTION, 16);
        for page in base..base + pages {
            for byte in [page << 12, page << 12 | 0xfff] {
                let found = list.iter().find(|m| m.iova <= byte && byte <= m.last());
                for (access, needed) in [
                    (Access::Read, Permissions::READ),
                    (Access::Write, Permissions::WRITE),
                ] {
                    let expected = rig.one(&mut mapper, access, byte).ok();
                    let listed = found
                        .filter(|m| m.permissions.contains(needed))
                        .map(|m| m.gpa + (byte - m.iova));
                    prop_assert_eq!(listed, expected, "{:?} {:#x}", access, byte);
                }
            }
        }
        // Merging changes nothing but the number of ranges.
        let merged: Vec<_> = space.mappings(&rig.memory, from..=to - 1, PLENTY).merged().collect();
        let bytes = |list: &[Mapping]| list.iter().map(|m| m.len).sum::<u64>();
        prop_assert_eq!(bytes(&merged), bytes(&list));
        for part in &list {
            prop_assert!(merged.iter().any(|m| m.iova <= part.iova
                && part.last() <= m.last()
                && m.gpa + (part.iova - m.iova) == part.gpa
                && m.permissions == part.permissions));
        }
    }
}
