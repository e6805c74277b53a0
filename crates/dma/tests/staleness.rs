//! The caches against the literal model, while a guest edits tables and invalidates as it pleases: an
//! answer may be stale only as long as the specification allows it.

mod common;

use amdvi_core::Invalidation;
use amdvi_dma::{Access, Mapper};
use amdvi_regs::DeviceId;
use amdvi_regs::command::InvalidationRange;
use amdvi_regs::event::Event;
use amdvi_regs::mmio::{Control, ExtendedFeature};
use amdvi_regs::pte::HostPte;
use common::model::Output;
use common::rig::{Oracle, Rig, fabric_of};
use common::*;
use proptest::prelude::*;

const DEVICES: [DeviceId; 3] = [DeviceId(8), DeviceId(8), DeviceId(9)];
const TABLES: [u64; 2] = [0x10_0000, 0x20_0000];

#[derive(Clone, Debug)]
enum Op {
    /// Writes an entry of one of the tables: which table, level, three indices, word.
    Entry(usize, u8, [u64; 3], Word),
    Dte(usize, Dte),
    Pages(Option<u16>, InvalidationRange),
    DteChanged(usize),
    All,
    /// More invalidations of an unrelated domain than the journal remembers.
    Flood,
    Registers(bool, Option<(u64, u64, bool)>),
    Dma(usize, u64, u64, Access),
}

#[derive(Clone, Copy, Debug)]
enum Word {
    NotPresent,
    Next,
    Leaf {
        page: u64,
        ones: u32,
        ir: bool,
        iw: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Dte {
    Invalid,
    Blocked,
    Identity {
        domain: u16,
        iw: bool,
    },
    Table {
        domain: u16,
        table: usize,
        mode: u8,
        ir: bool,
        iw: bool,
        ex: bool,
    },
}

/// Where each level's tables are: the third level's at the root, then one for each entry above.
fn table(root: u64, level: u8, indices: [u64; 3]) -> u64 {
    match level {
        3 => root,
        2 => root + 0x1000 * (1 + indices[2] % 4),
        _ => root + 0x1000 * (8 + 8 * (indices[2] % 4) + indices[1] % 8),
    }
}

fn indices() -> impl Strategy<Value = [u64; 3]> {
    (0u64..3, 0u64..3, 0u64..3).prop_map(|(one, two, three)| [one, two, three])
}

fn iova() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (indices(), 0u64..0x1000).prop_map(|(i, offset)| {
            i[0] << 12 | i[1] << 21 | i[2] << 30 | offset
        }),
        1 => 0xfedf_e000u64..0xfef0_2000,
        1 => 0u64..1 << 34,
    ]
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        1 => Just(Word::NotPresent),
        4 => Just(Word::Next),
        4 => (0u64..1 << 20, prop_oneof![2 => Just(0u32), 1 => 1u32..9], any::<bool>(),
              proptest::bool::weighted(0.8))
            .prop_map(|(page, ones, ir, iw)| Word::Leaf { page: page << 12, ones, ir, iw }),
    ]
}

fn range() -> impl Strategy<Value = InvalidationRange> {
    prop_oneof![
        4 => (iova(), 12u32..34).prop_map(|(iova, size)| {
            InvalidationRange::covering(iova, iova ^ 1 << (size - 1))
        }),
        1 => Just(InvalidationRange::All),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..DEVICES.len();
    let domain = 1u16..3;
    prop_oneof![
        6 => (0usize..2, 1u8..4, indices(), word()).prop_map(|(t, l, i, w)| Op::Entry(t, l, i, w)),
        2 => (device.clone(), prop_oneof![
            1 => Just(Dte::Invalid),
            1 => Just(Dte::Blocked),
            1 => (domain.clone(), any::<bool>()).prop_map(|(domain, iw)| Dte::Identity { domain, iw }),
            6 => (domain.clone(), 0usize..2, prop_oneof![4 => Just(3u8), 1 => Just(2u8)],
                  proptest::bool::weighted(0.9), proptest::bool::weighted(0.8), any::<bool>())
                .prop_map(|(domain, table, mode, ir, iw, ex)| {
                    Dte::Table { domain, table, mode, ir, iw, ex }
                }),
        ]).prop_map(|(d, dte)| Op::Dte(d, dte)),
        4 => (proptest::option::weighted(0.95, domain), range()).prop_map(|(d, r)| Op::Pages(d, r)),
        2 => device.clone().prop_map(Op::DteChanged),
        1 => Just(Op::All),
        1 => Just(Op::Flood),
        1 => (proptest::bool::weighted(0.9), proptest::option::of((0u64..8, 0u64..8, any::<bool>())))
            .prop_map(|(on, exclusion)| Op::Registers(on, exclusion)),
        16 => (device, iova(), prop_oneof![Just(1u64), 1u64..0x4000], prop_oneof![
            4 => Just(Access::Read), 4 => Just(Access::Write), 1 => Just(Access::Atomic)
        ]).prop_map(|(d, iova, len, access)| Op::Dma(d, iova, len, access)),
    ]
}

fn entry_word(root: u64, level: u8, indices: [u64; 3], word: Word) -> u64 {
    match word {
        Word::NotPresent => 0,
        Word::Next if level > 1 => pde(level - 1, table(root, level - 1, indices)),
        Word::Next => pte(0x7000_0000),
        Word::Leaf { page, ones, ir, iw } => {
            let permissions = 1 | u64::from(ir) << 61 | u64::from(iw) << 62;
            if ones == 0 {
                return permissions | page;
            }
            // Between this level's size and the next's.
            let ones = u64::from(shift(level)) - 12 + u64::from(ones) - 1;
            permissions | 7 << 9 | page & !((2 << (ones + 12)) - 1) | ((1 << ones) - 1) << 12
        }
    }
}

/// How many entries of its table say the same as `entry`.
fn repeats(entry: u64, level: u8) -> u64 {
    if entry >> 9 & 7 == 7 {
        1 << ((entry >> 12).trailing_ones() + 13 - shift(level))
    } else {
        1
    }
}

fn dte_words(dte: Dte) -> (u64, u64) {
    match dte {
        Dte::Invalid => (0, 0),
        Dte::Blocked => (1, 1),
        Dte::Identity { domain, iw } => (3 | 1 << 61 | u64::from(iw) << 62, domain.into()),
        Dte::Table {
            domain,
            table,
            mode,
            ir,
            iw,
            ex,
        } => (
            3 | u64::from(mode) << 9 | TABLES[table] | u64::from(ir) << 61 | u64::from(iw) << 62,
            u64::from(domain) | u64::from(ex) << 39,
        ),
    }
}

fn raw(event: Event) -> u128 {
    let [low, high] = event.words();
    u128::from(low) | u128::from(high) << 64
}

struct World {
    rig: Rig,
    oracle: Oracle,
    mappers: Vec<Mapper>,
}

impl World {
    fn new(iotlb: usize, own: usize, va_bits: u8) -> Self {
        let mut rig = Rig::new(iotlb);
        for root in TABLES {
            for i2 in 0..4 {
                for i1 in 0..8 {
                    let at = [0, i1, i2];
                    rig.memory
                        .set(slot(root, 3, i2 << 30), pde(2, table(root, 2, at)));
                    rig.memory.set(
                        slot(table(root, 2, at), 2, i1 << 21),
                        pde(1, table(root, 1, at)),
                    );
                    for i0 in 0..3 {
                        let page = root << 8 | i2 << 20 | i1 << 16 | i0 << 12;
                        rig.memory
                            .set(slot(table(root, 1, at), 1, i0 << 12), pte(page));
                    }
                }
            }
        }
        for (n, device) in [DEVICES[0], DEVICES[2]].into_iter().enumerate() {
            let (q0, q1) = dte_words(Dte::Table {
                domain: 1 + n as u16,
                table: n,
                mode: 3,
                ir: true,
                iw: true,
                ex: false,
            });
            rig.set_dte(device, q0, q1);
        }
        let mappers = DEVICES
            .iter()
            .map(|device| Mapper::new(rig.fabric.clone(), rig.iotlb.clone(), *device, own, va_bits))
            .collect();
        let oracle = Oracle::new(&rig.memory, va_bits.into());
        Self {
            rig,
            oracle,
            mappers,
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let rig = &mut self.rig;
        match *op {
            Op::Entry(which, level, indices, word) => {
                let root = TABLES[which];
                let iova = indices[0] << 12 | indices[1] << 21 | indices[2] << 30;
                let at = slot(table(root, level, indices), level, iova);
                // A page of several entries comes and goes as a whole: a guest that has only some
                // of them does not say what it maps.
                let new = entry_word(root, level, indices, word);
                for (entry, word) in [(rig.memory.peek(at).unwrap(), 0), (new, new)] {
                    let bytes = repeats(entry, level) * 8;
                    for n in 0..bytes / 8 {
                        rig.memory.set(at / bytes * bytes + n * 8, word);
                    }
                }
                self.oracle.memory_changed(&rig.memory);
            }
            Op::Dte(n, dte) => {
                let (q0, q1) = dte_words(dte);
                rig.set_dte(DEVICES[n], q0, q1);
                self.oracle.memory_changed(&rig.memory);
            }
            Op::Pages(domain, range) => {
                let invalidation = Invalidation {
                    domain,
                    pasid: None,
                    range,
                };
                rig.fabric.journal.append(invalidation);
                self.oracle.invalidated_pages(invalidation);
            }
            Op::DteChanged(n) => {
                for mapper in &self.mappers {
                    if mapper.slot().device_id() == DEVICES[n] {
                        mapper.slot().invalidate();
                    }
                }
                self.oracle.invalidated_dte(DEVICES[n]);
            }
            Op::All => {
                rig.fabric.invalidate_all();
                self.oracle.invalidated_all();
            }
            Op::Flood => {
                for _ in 0..300 {
                    rig.fabric.journal.append(Invalidation::domain(77));
                }
            }
            Op::Registers(on, exclusion) => {
                let view = &rig.fabric.view;
                view.set_control(Control::RESET.with_iommu_en(on));
                let words = exclusion.map_or([0; 2], |(first, last, allow)| {
                    [first << 12 | 1 | u64::from(allow) << 1, last << 12]
                });
                view.set_exclusion(words);
                rig.fabric.invalidate_all();
                self.oracle.registers_changed(
                    on,
                    exclusion.map(|(first, last, allow)| (first << 12, last << 12 | 0xfff, allow)),
                );
            }
            Op::Dma(n, iova, len, access) => self.dma(n, iova, len, access)?,
        }
        Ok(())
    }

    fn dma(&mut self, n: usize, iova: u64, len: u64, access: Access) -> Result<(), TestCaseError> {
        let (oracle, device) = (&self.oracle, DEVICES[n]);
        let mut done = 0;
        let mut pieces = Vec::new();
        let result = self.mappers[n].pieces(&self.rig.memory, iova, len, access, |piece| {
            pieces.push((iova + done, *piece));
            done += piece.len;
        });
        let failed = result.err().map(|failed| failed.event.map(raw));
        for (iova, piece) in &pieces {
            for offset in [0, piece.len - 1] {
                let allowed = oracle.allowed(device, access, iova + offset);
                let right = allowed.iter().any(|output| match *output {
                    Output::At {
                        gpa,
                        readable,
                        writable,
                        ..
                    } => {
                        gpa == u128::from(piece.gpa + offset)
                            && piece.permissions.bits()
                                == u8::from(readable) | u8::from(writable) << 1
                    }
                    Output::Aborted { .. } => false,
                });
                prop_assert!(
                    right,
                    "{:#x} -> {piece:x?}, allowed {allowed:x?}",
                    iova + offset
                );
            }
        }
        match failed {
            None => prop_assert_eq!(done, len),
            Some(found) => {
                prop_assert!(done < len);
                let allowed = oracle.allowed(device, access, iova + done);
                let right = allowed.iter().any(|output| match *output {
                    Output::Aborted { event, .. } => event == found,
                    Output::At { .. } => false,
                });
                prop_assert!(
                    right,
                    "{:#x} fails: {found:x?}, allowed {allowed:x?}",
                    iova + done
                );
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn an_answer_is_stale_only_as_long_as_the_specification_allows(
        iotlb in prop_oneof![Just(4usize), Just(16), Just(1024)],
        own in prop_oneof![Just(16usize), Just(64)],
        va_bits in prop_oneof![3 => Just(0u8), 1 => Just(32), 1 => Just(33)],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(iotlb, own, va_bits);
        for op in &ops {
            world.apply(op)?;
        }
    }
}

/// Pages of six sizes, which is as many as the shared IOTLB looks for.
fn pages() -> impl Strategy<Value = Vec<(u64, u32)>> {
    proptest::collection::vec(
        (
            0u64..256,
            prop::sample::select(vec![12u32, 13, 16, 20, 21, 25]),
        ),
        1..24,
    )
    .prop_map(|list| {
        let mut pages: Vec<(u64, u32)> = Vec::new();
        for (n, size) in list {
            let iova = n << 22 >> size << size;
            let free = |(other, other_size): &(u64, u32)| {
                iova >> size.max(*other_size) != other >> size.max(*other_size)
            };
            if pages.iter().all(free) {
                pages.push((iova, size));
            }
        }
        pages
    })
}

proptest! {
    /// "An entry overlapping the range goes, others stay", seen by the loads that follow.
    #[test]
    fn an_invalidation_drops_what_overlaps_its_range_and_nothing_else(
        pages in pages(),
        (shared, plain) in prop_oneof![Just((true, false)), Just((false, false)), Just((false, true))],
        ranges in proptest::collection::vec((0u64..256, 12u32..34, any::<bool>()), 1..6),
        pick in any::<prop::sample::Index>(),
        domain in prop_oneof![9 => Just(DOMAIN), 1 => Just(DOMAIN + 1)],
    ) {
        let mut rig = Rig::new(1 << 16);
        // Of host tables alone, it is those with accessed bits that the shared IOTLB is for: these are set.
        let accessed = if plain { 0 } else { HostPte::new().with_a(true).into_bits() };
        let had = u8::from(!plain);
        let features = ExtendedFeature::new().with_hats(2).with_ha_sup(!plain);
        rig.fabric = fabric_of(features);
        rig.set_dte(DeviceId(8), q0(3).with_had(had).into_bits(), q1().into_bits());
        let mut next = ROOT + 0x1000;
        for &(iova, size) in &pages {
            let level = if size >= 21 { 2 } else { 1 };
            let mut at = ROOT;
            for above in (level + 1..=3).rev() {
                let place = slot(at, above, iova);
                if rig.memory.peek(place) == Some(0) {
                    rig.memory.set(place, pde(above - 1, next) | accessed);
                    next += 0x1000;
                }
                at = rig.memory.peek(place).unwrap() & 0x000f_ffff_ffff_f000;
            }
            let ones = ((1u64 << (size - 1)) - 1) & !0xfff;
            let entry = 0x40_0000_0000 | iova | if size == shift(level) { 0 } else { 7 << 9 | ones };
            // A page that is larger than its level's default repeats its entry.
            for n in 0..1 << (size - shift(level)) {
                rig.memory.set(slot(at, level, iova | n << shift(level)), PRESENT_RW | accessed | entry);
            }
        }
        let mut mapper = rig.mapper(DeviceId(8), 1 << 16);
        for &(iova, _) in &pages {
            prop_assert_eq!(rig.one(&mut mapper, Access::Read, iova), Ok(0x40_0000_0000 | iova));
        }
        if shared {
            // What is seen is the shared IOTLB.
            mapper = rig.mapper(DeviceId(8), 1 << 16);
            let (first, _) = pages[pick.index(pages.len())];
            prop_assert!(rig.one(&mut mapper, Access::Read, first).is_ok());
        }
        // Several large ones are more than the handle looks through at once: it drops everything then.
        let most = if plain { 1 } else { ranges.len() };
        let ranges: Vec<_> = ranges.into_iter().take(most).map(|(n, size, near)| {
            let iova = if near { pages[pick.index(pages.len())].0 ^ n << 12 } else { n << 22 };
            InvalidationRange::covering(iova, iova ^ 1 << (size - 1))
        }).collect();
        let walks = |rig: &Rig, mapper: &mut Mapper, iova: u64, size: u32| {
            rig.memory.take_loads();
            for address in [iova | ((1 << size) - 1), iova] {
                assert!(rig.one(mapper, Access::Read, address).is_ok());
            }
            !rig.memory.take_loads().is_empty()
        };
        // Two pages may want one place of the handle's cache. Only where it is the only one are they walked for.
        let thrown_out: Vec<_> = pages.iter().map(|&(iova, size)| plain && walks(&rig, &mut mapper, iova, size)).collect();
        for &range in &ranges {
            rig.fabric.journal.append(Invalidation { domain: Some(domain), pasid: None, range });
        }
        for (&(iova, size), thrown_out) in pages.iter().zip(thrown_out) {
            let last = iova | ((1 << size) - 1);
            let overlaps = domain == DOMAIN && ranges.iter().any(|r| r.overlaps(iova, last));
            let walked = walks(&rig, &mut mapper, iova, size);
            let right = walked == overlaps || walked && thrown_out;
            prop_assert!(right, "{:#x}+2^{}: walked {} after {:?}", iova, size, walked, ranges);
        }
    }
}
