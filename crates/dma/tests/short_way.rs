//! Requests that go the short way get what the rules of the long way say.

mod common;

use std::sync::Arc;

use amdvi_dma::{Access, DmaEntry, Exclusion, Iotlb, Mapper, Request, WalkContext, translate};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::DteQ0;
use amdvi_regs::event::Event;
use common::rig::{Rig, fabric};
use common::*;
use proptest::prelude::*;

const EIGHT: DeviceId = DeviceId(8);
/// What lets the handle know the Device Table Entry.
const FIRST: u64 = 0x1000;

/// Addresses around what is special, and others.
fn addresses() -> impl Strategy<Value = u64> {
    let near = prop_oneof![
        Just(0xfee0_0000u64),
        Just(0xfef0_0000),
        Just(0xfd_0000_0000),
        Just(0x100_0000_0000),
        Just(0x4000_0000),
        Just(1 << 38),
        Just(1 << 47),
        Just(u64::MAX - 0xfff),
    ];
    (near, -3i64..3, 12u32..31, 0u64..0x1000)
        .prop_map(|(near, steps, size, low)| near.wrapping_add_signed(steps << size) ^ low)
}

/// log2 of a page's size, the level of its entry, and what it has besides the address.
fn leaves() -> impl Strategy<Value = (u32, u8)> {
    prop_oneof![
        Just((12, 1)),
        Just((14, 1)),
        Just((21, 2)),
        Just((24, 2)),
        Just((30, 3)),
        Just((39, 4)),
    ]
}

fn rights() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(3u64), 1 => 0u64..4]
}

proptest! {
    #[test]
    fn whatever_is_there_both_ways_agree(
        iova in addresses(),
        len in prop_oneof![Just(1u64), Just(0), Just(64), 1u64..0x4000],
        (size, level) in leaves(),
        mode in 3u8..=6,
        access in prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Atomic)],
        dte_rights in rights(),
        leaf_rights in rights(),
        table_rights in rights(),
        present in prop::bool::weighted(0.9),
        exclusion in prop::option::of((addresses(), 0u64..0x10_0000, any::<bool>())),
        ex in any::<bool>(),
        sys_mgt in 0u8..4,
    ) {
        let mut rig = Rig::new(64);
        rig.fabric = fabric();
        rig.iotlb = Arc::new(Iotlb::new(64));
        let with = |word: u64, rights: u64| word & !(3 << 61) | rights << 61;
        let q0 = DteQ0::from_bits(with(q0(mode).into_bits(), dte_rights));
        let q1 = q1().with_ex(ex).with_sys_mgt(sys_mgt);
        rig.set_dte(EIGHT, q0.into_bits(), q1.into_bits());

        // The way to the page, and its repeated entries.
        let mut table = ROOT;
        for above in (level + 1..=mode.max(level + 1)).rev() {
            let next = table + 0x1000;
            rig.memory.set(slot(table, above, iova), with(pde(above - 1, next), table_rights));
            table = next;
        }
        let ones = if size == shift(level) { 0 } else { 7 << 9 | ((1u64 << (size - 1)) - 1) & !0xfff };
        let page = iova >> size << size;
        let gpa = 0x40_0000_0000 | page & 0xf_ffff_ffff;
        let entry = with(PRESENT_RW | gpa >> size << size | ones, leaf_rights) & !u64::from(!present);
        for n in 0..1u64 << (size - shift(level)) {
            rig.memory.set(slot(table, level, page | n << shift(level)), entry);
        }
        // And a neighbour in the same table, which may do everything.
        let neighbour = iova ^ 1 << (size + 1);
        rig.memory.set(slot(table, level, neighbour), pte(0x80_0000_0000) | ones);

        let mut context = WalkContext { eph_sup: false, ..context() };
        if let Some((first, bytes, all)) = exclusion {
            let first = first & 0x000f_ffff_ffff_f000;
            let base = first | u64::from(all) << 1 | 1;
            let limit = (first + bytes) & 0x000f_ffff_ffff_f000;
            rig.fabric.view.set_exclusion([base, limit]);
            context = context.with_exclusion(Exclusion::from_registers(base, limit));
        }
        let mut mapper = Mapper::new(rig.fabric.clone(), rig.iotlb.clone(), EIGHT, 64, 64);
        let _ = rig.one(&mut mapper, Access::Read, FIRST);
        // From the tables, another page's, from the cache.
        for iova in [iova, neighbour, iova] {
            let request = Request { device_id: EIGHT, len, ..request(access, iova) };
            let long = translate(&context, &DmaEntry::new(q0, q1), &request, &rig.memory);
            match (mapper.translate(&rig.memory, iova, len, access), long) {
                (Ok(short), Ok(long)) => {
                    prop_assert_eq!(short.gpa, long.gpa);
                    prop_assert_eq!(short.permissions, long.permissions);
                    prop_assert!(short.len <= long.len && (short.len > 0 || len == 0));
                }
                (Err(short), Err(long)) => {
                    let words = |event: Option<Event>| event.map(|event| event.words());
                    prop_assert_eq!(words(short.event), words(long.event));
                }
                (short, long) => prop_assert!(false, "{:?} and {:?}", short.is_ok(), long),
            }
        }
    }
}
