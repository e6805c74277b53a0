//! The caches against the literal model of guest tables, while a guest edits tables of both kinds and
//! invalidates by PASID, by domain and by range: an answer may be stale only as long as it may.
//!
//! The host's tables are changed with their invalidation, so what is found there must be new at once.

#[path = "../common/mod.rs"]
mod common;
mod kept;

use std::collections::BTreeMap;
use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Invalidation, View};
use amdvi_dma::{Access, Iotlb, Mapper, Pasid};
use amdvi_regs::DeviceId;
use amdvi_regs::command::InvalidationRange;
use amdvi_regs::dte::Dte;
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use common::guest_model::{Input, Output, Words, byte};
use common::marks::*;
use common::*;
use proptest::prelude::*;

const DEVICE_TABLE: u64 = 0x1_0000;
const DEVICES: [DeviceId; 3] = [DeviceId(8), DeviceId(8), DeviceId(9)];
/// Guest physical roots of two guest tables.
const ROOTS: [u64; 2] = [0x60_0000, 0x80_0000];
const DATA: u64 = 0x8000_0000;

/// Memory as it was.
struct Snapshot<'a>(&'a BTreeMap<u64, u64>);

impl Words for Snapshot<'_> {
    fn load(&mut self, address: u64) -> Option<u64> {
        (address < UNBACKED).then(|| self.0.get(&address).copied().unwrap_or(0))
    }
    fn store(&mut self, address: u64, _: u64) {
        panic!("nothing is to be marked, least of all {address:#x}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Of which table, level, indices of the levels from 1 up; the entry.
    Guest(usize, u8, [u64; 3], Entry),
    /// The GCR3 entry of a PASID: which table, or none.
    Gcr3(u64, Option<usize>),
    /// A page of the host's table, and what it becomes; with the range of its invalidation.
    Host(u64, HostLeaf, bool),
    Dte(usize, u16, bool, bool),
    DteChanged(usize),
    Pages(Option<u16>, Option<u64>, InvalidationRange),
    All,
    Flood,
    Dma(usize, Option<Pasid>, u64, u64, Access),
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    NotPresent,
    Next,
    Leaf { page: u64, bits: u64 },
}

#[derive(Clone, Copy, Debug)]
enum HostLeaf {
    NotPresent,
    Elsewhere(u64),
    ReadOnly,
    Normal,
}

fn indices() -> impl Strategy<Value = [u64; 3]> {
    // Few pages, so that they are met again.
    (
        prop_oneof![2 => Just(0u64), 1 => 0u64..3],
        prop_oneof![4 => Just(0u64), 1 => 0u64..3],
        prop_oneof![8 => Just(0u64), 1 => 0u64..3],
    )
        .prop_map(|(one, two, three)| [one, two, three])
}

fn iova() -> impl Strategy<Value = u64> {
    (indices(), 0u64..0x1000).prop_map(|(i, offset)| i[0] << 12 | i[1] << 21 | i[2] << 30 | offset)
}

fn range() -> impl Strategy<Value = InvalidationRange> {
    prop_oneof![
        4 => (iova(), 12u32..34).prop_map(|(iova, size)| {
            InvalidationRange::covering(iova, iova ^ 1 << (size - 1))
        }),
        1 => Just(InvalidationRange::All),
    ]
}

fn pasid() -> impl Strategy<Value = Option<Pasid>> {
    proptest::option::weighted(
        0.75,
        (
            0u32..3,
            proptest::bool::weighted(0.2),
            proptest::bool::weighted(0.2),
        )
            .prop_map(|(value, execute, privileged)| {
                let pasid = Pasid::new(value).unwrap();
                pasid.with_execute(execute).with_privileged(privileged)
            }),
    )
}

fn op() -> impl Strategy<Value = Op> {
    let entry = prop_oneof![
        1 => Just(Entry::NotPresent),
        4 => Just(Entry::Next),
        5 => (0u64..64, 0u64..8, proptest::bool::weighted(0.2)).prop_map(|(page, bits, nx)| {
            // Present, most of the others set.
            let bits = 1 | if bits < 4 { 6 } else { bits & 6 } | u64::from(nx) << 63;
            Entry::Leaf { page: page << 12, bits }
        }),
    ];
    let host = prop_oneof![
        1 => Just(HostLeaf::NotPresent),
        3 => (1u64..8).prop_map(HostLeaf::Elsewhere),
        1 => Just(HostLeaf::ReadOnly),
        2 => Just(HostLeaf::Normal),
    ];
    prop_oneof![
        6 => (0usize..2, 1u8..4, indices(), entry).prop_map(|(t, l, i, e)| Op::Guest(t, l, i, e)),
        2 => (0u64..3, proptest::option::weighted(0.9, 0usize..2)).prop_map(|(p, t)| Op::Gcr3(p, t)),
        3 => (0u64..12, host, any::<bool>()).prop_map(|(page, leaf, all)| Op::Host(page, leaf, all)),
        1 => (0usize..3, 1u16..3, any::<bool>(), any::<bool>())
            .prop_map(|(d, domain, giov, iw)| Op::Dte(d, domain, giov, iw)),
        1 => (0usize..3).prop_map(Op::DteChanged),
        4 => (proptest::option::weighted(0.95, 1u16..3), proptest::option::weighted(0.7, 0u64..3), range())
            .prop_map(|(d, p, r)| Op::Pages(d, p, r)),
        1 => Just(Op::All),
        1 => Just(Op::Flood),
        24 => (0usize..3, pasid(), iova(), prop_oneof![3 => Just(1u64), 1 => 1u64..0x3000], prop_oneof![
            6 => Just(Access::Read), 4 => Just(Access::Write), 1 => Just(Access::Atomic)
        ]).prop_map(|(d, p, iova, len, access)| Op::Dma(d, p, iova, len, access)),
    ]
}

/// Where each level's guest tables are.
fn table(root: u64, level: u8, indices: [u64; 3]) -> u64 {
    match level {
        4 => root,
        3 => root + 0x1000,
        2 => root + 0x2000 + 0x1000 * (indices[2] % 4),
        _ => root + 0x1_0000 + 0x1000 * (8 * (indices[2] % 4) + indices[1] % 8),
    }
}

fn place(root: u64, level: u8, i: [u64; 3]) -> u64 {
    let iova = i[0] << 12 | i[1] << 21 | i[2] << 30;
    table(root, level, i) + (iova >> shift(level) & 0x1ff) * 8
}

struct World {
    memory: MarkMemory,
    builder: Builder,
    fabric: Arc<Fabric>,
    mappers: Vec<Mapper>,
    moments: Vec<BTreeMap<u64, u64>>,
    pages: Vec<(usize, Invalidation)>,
    dte_from: BTreeMap<u16, usize>,
    all_from: usize,
}

impl World {
    fn new(mode: u8, iotlb: usize, own: usize) -> Self {
        let mut builder = Builder::new(mode);
        builder.host_page(GCR3);
        for (n, root) in ROOTS.into_iter().enumerate() {
            let (n, mut i) = (n as u64, [0; 3]);
            builder.host_page(root);
            builder.host_page(table(root, 3, i));
            builder.set_guest(place(root, 4, i), table(root, 3, i) | GUEST_RWU);
            for i2 in 0..3 {
                i[2] = i2;
                builder.host_page(table(root, 2, i));
                builder.set_guest(place(root, 3, i), table(root, 2, i) | GUEST_RWU);
                for i1 in 0..3 {
                    i[1] = i1;
                    builder.host_page(table(root, 1, i));
                    builder.set_guest(place(root, 2, i), table(root, 1, i) | GUEST_RWU);
                    for i0 in 0..3 {
                        i[0] = i0;
                        let page = DATA + (n << 20 | i2 << 16 | i1 << 14 | i0 << 12);
                        builder.set_guest(place(root, 1, i), page | GUEST_RWU);
                    }
                }
            }
        }
        for pasid in 0..3 {
            builder.set_guest(GCR3 + pasid * 8, ROOTS[pasid as usize % 2] | 1);
        }
        if mode != 0 {
            // Data in pages of 2 MiB, enough for the guest's largest.
            for n in 0..0x600 {
                let gpa = DATA + (n << 21);
                builder.host_map(gpa, 2, pte(gpa + DISTANCE));
            }
            for n in 0..3 {
                builder.host_map(n << 21, 1, pte(0x6000_0000));
            }
        }
        let efr = ExtendedFeature::new()
            .with_hats(2)
            .with_gt_sup(true)
            .with_nx_sup(true)
            .with_gio_sup(true)
            .with_pas_max(15)
            .with_ga_update_dis_sup(true)
            .with_v2_hd_dis_sup(true);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(
            Control::RESET
                .with_iommu_en(true)
                .with_gt_en(true)
                .with_ga_update_dis(true)
                .with_gd_update_dis(true),
        );
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        let iotlb = Arc::new(Iotlb::new(iotlb));
        let mappers = DEVICES
            .iter()
            .map(|device| Mapper::new(fabric.clone(), iotlb.clone(), *device, own, 64))
            .collect();
        let mut world = Self {
            memory: MarkMemory::new(builder.words.clone()),
            builder,
            fabric,
            mappers,
            moments: Vec::new(),
            pages: Vec::new(),
            dte_from: BTreeMap::new(),
            all_from: 0,
        };
        for (n, domain) in [(0, 1), (2, 2)] {
            world.set_dte(n, domain, n == 2, true);
        }
        world.moments.push(world.memory.words());
        world
    }

    fn set_dte(&self, n: usize, domain: u16, giov: bool, iw: bool) {
        let mode = self.builder.mode;
        let dte = Dte {
            q0: q0(mode)
                .with_host_pt_root(if mode == 0 { 0 } else { HOST_ROOT >> 12 })
                .with_iw(iw)
                .with_gv(true)
                .with_giov(giov),
            q1: q1().with_domain_id(domain),
            ..Dte::default()
        }
        .with_gcr3_address(self.builder.spa(GCR3));
        let at = DEVICE_TABLE + u64::from(DEVICES[n].0) * 32;
        self.memory.set(at, dte.q0.into_bits());
        self.memory.set(at + 8, dte.q1.into_bits());
    }

    fn now(&self) -> usize {
        self.moments.len() - 1
    }

    fn invalidate(&mut self, invalidation: Invalidation) {
        self.fabric.journal.append(invalidation);
        self.pages.push((self.now(), invalidation));
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Guest(which, level, i, entry) => {
                let root = ROOTS[which];
                let word = match entry {
                    Entry::NotPresent => 0,
                    Entry::Next if level > 1 => table(root, level - 1, i) | GUEST_RWU,
                    Entry::Next => DATA | GUEST_RWU,
                    Entry::Leaf { page, bits } => {
                        let page = page << shift(level) >> 12;
                        let large = if level > 1 { LARGE } else { 0 };
                        (DATA + (page & 0x7fff_ffff)) | bits | large
                    }
                };
                let at = self.builder.spa(place(root, level, i));
                self.memory.set(at, word);
                self.moments.push(self.memory.words());
            }
            Op::Gcr3(pasid, root) => {
                let at = self.builder.spa(GCR3 + pasid * 8);
                self.memory.set(at, root.map_or(0, |n| ROOTS[n] | 1));
                self.moments.push(self.memory.words());
            }
            Op::Host(n, leaf, all) if self.builder.mode != 0 => {
                // Tables, the first pages of data, and addresses without a PASID.
                let (gpa, level) = match n {
                    0..4 => (table(ROOTS[0], 4 - n as u8, [0; 3]), 1),
                    4..6 => (table(ROOTS[1], n as u8 - 3, [1; 3]), 1),
                    6..9 => (DATA + ((n - 6) << 21), 2),
                    _ => ((n - 9) << 21, 1),
                };
                let normal = pte(gpa + DISTANCE);
                let word = match leaf {
                    HostLeaf::NotPresent => 0,
                    HostLeaf::Elsewhere(n) => normal + (n << 31),
                    HostLeaf::ReadOnly => normal & !(1 << 62),
                    HostLeaf::Normal => normal,
                };
                let at = self.builder.host_map(gpa, level, word);
                self.memory.set(at, word);
                self.moments.push(self.memory.words());
                let range = if all {
                    InvalidationRange::All
                } else {
                    InvalidationRange::covering(gpa, gpa | ((1 << shift(level)) - 1))
                };
                for domain in [1, 2] {
                    self.invalidate(Invalidation {
                        range,
                        ..Invalidation::domain(domain)
                    });
                }
            }
            Op::Host(..) => {}
            Op::Dte(n, domain, giov, iw) => {
                self.set_dte(n, domain, giov, iw);
                self.moments.push(self.memory.words());
            }
            Op::DteChanged(n) => {
                for mapper in &self.mappers {
                    if mapper.slot().device_id() == DEVICES[n] {
                        mapper.slot().invalidate();
                    }
                }
                self.dte_from.insert(DEVICES[n].0, self.now());
            }
            Op::Pages(domain, pasid, range) => self.invalidate(Invalidation {
                domain,
                pasid: pasid.map(|pasid| pasid as u32),
                range,
            }),
            Op::All => {
                self.fabric.invalidate_all();
                self.all_from = self.now();
            }
            Op::Flood => {
                for _ in 0..300 {
                    self.fabric.journal.append(Invalidation::domain(77));
                }
            }
            Op::Dma(n, pasid, iova, len, access) => self.dma(n, pasid, iova, len, access)?,
        }
        Ok(())
    }

    /// Every answer that one byte may get.
    fn allowed(&self, n: usize, pasid: Option<Pasid>, access: Access, iova: u64) -> Vec<Output> {
        let device = DEVICES[n].0;
        let now = self.now();
        let dte_from = self
            .dte_from
            .get(&device)
            .copied()
            .unwrap_or(0)
            .max(self.all_from);
        let mut allowed = Vec::new();
        let mut seen_dtes = Vec::new();
        for at_dte in dte_from..=now {
            let at = DEVICE_TABLE + u64::from(device) * 32;
            let (q0, q1) = (self.moments[at_dte][&at], self.moments[at_dte][&(at + 8)]);
            if seen_dtes.contains(&(q0, q1)) {
                continue;
            }
            seen_dtes.push((q0, q1));
            let input = Input {
                host_levels: 6,
                gt_sup: true,
                gt_en: true,
                gio_sup: true,
                guest_levels: 4,
                gcr3_levels: 1,
                max_pasid: 0xffff,
                nx_sup: true,
                q0,
                q1,
                device: device.into(),
                iova,
                read: access != Access::Write,
                write: access != Access::Read,
                pasid: pasid.map(|pasid| pasid.value().into()),
                execute: pasid.is_some_and(Pasid::execute),
                privileged: pasid.is_some_and(Pasid::privileged),
                ..Input::default()
            };
            let giov = q0 >> 54 & 1 == 1;
            let whose = input.pasid.or(giov.then_some(0));
            for at_tables in self.all_from..=now {
                let output = byte(&input, &mut Snapshot(&self.moments[at_tables]));
                let gone = match output {
                    Output::At { page: 0, .. } => false,
                    Output::At {
                        page, guest_page, ..
                    } => {
                        let size = page.max(guest_page);
                        let first = (u128::from(iova) / size * size) as u64;
                        let last = first + (size - 1) as u64;
                        self.pages.iter().any(|(when, invalidation)| {
                            let overlaps = invalidation.range.first() <= last
                                && first <= invalidation.range.last();
                            *when > at_tables
                                && invalidation
                                    .domain
                                    .is_none_or(|d| u64::from(d) == q1 & 0xffff)
                                && match (invalidation.pasid, whose) {
                                    (None, None) => overlaps,
                                    (None, Some(_)) => true,
                                    (Some(mine), Some(its)) => u64::from(mine) == its && overlaps,
                                    (Some(_), None) => false,
                                }
                        })
                    }
                    Output::Aborted(_) => at_tables != now,
                };
                if !gone && !allowed.contains(&output) {
                    allowed.push(output);
                }
            }
        }
        allowed
    }

    fn dma(
        &mut self,
        n: usize,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<(), TestCaseError> {
        let mut done = 0;
        let mut pieces = Vec::new();
        let mapper = &mut self.mappers[n];
        let result = mapper.pieces_for(&self.memory, pasid, iova, len, access, |piece| {
            pieces.push((iova + done, *piece));
            done += piece.len;
        });
        let failed = result
            .err()
            .map(|failed| failed.event.map(|event| event.bits()));
        for (iova, piece) in &pieces {
            for offset in [0, piece.len - 1] {
                let allowed = self.allowed(n, pasid, access, iova + offset);
                let right = allowed.iter().any(|output| match *output {
                    Output::At {
                        gpa,
                        readable,
                        writable,
                        ..
                    } => {
                        gpa == piece.gpa + offset
                            && piece.permissions.bits()
                                == u8::from(readable) | u8::from(writable) << 1
                    }
                    Output::Aborted(_) => false,
                });
                prop_assert!(
                    right,
                    "{:#x} of {pasid:?} -> {piece:x?}, allowed {allowed:x?}",
                    iova + offset
                );
            }
        }
        match failed {
            None => prop_assert_eq!(done, len),
            Some(found) => {
                prop_assert!(done < len);
                let allowed = self.allowed(n, pasid, access, iova + done);
                let right = allowed.contains(&Output::Aborted(found));
                prop_assert!(right, "{:x?}, allowed {:x?}", found, allowed);
            }
        }
        prop_assert_eq!(self.memory.take_marks(), vec![]);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_answer_is_stale_only_until_its_invalidation(
        mode in prop_oneof![Just(0u8), Just(4)],
        iotlb in prop_oneof![Just(1usize), Just(64), Just(4096)],
        own in prop_oneof![Just(16usize), Just(1024)],
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut world = World::new(mode, iotlb, own);
        for op in &ops {
            world.apply(op)?;
        }
    }
}
