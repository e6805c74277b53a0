//! Accessed and dirty bits, rule by rule.

#[path = "../common/mod.rs"]
mod common;
mod races;

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Invalidation, View};
use amdvi_dma::{Access, AddressSpace, Iotlb, Mapper, Pasid, Permissions, Reason};
use amdvi_regs::dte::{Dte, DteQ0};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, PhysMemory};
use common::marks::*;
use common::*;

const DEVICE_TABLE: u64 = 0x1_0000;
const NIC: DeviceId = DeviceId(8);
const IOVA: u64 = 0x40_3000;
const PAGE: u64 = 0x8000_0000;
const PASID: u64 = 5;

struct World {
    builder: Builder,
    memory: MarkMemory,
    fabric: Arc<Fabric>,
    iotlb: Arc<Iotlb>,
    /// Where the guest's entries for [`IOVA`] are, system physical, from the top.
    guest: Vec<u64>,
    /// Where the host's leaf of the data is.
    host_leaf: u64,
}

impl World {
    /// A page of the guest at [`IOVA`], and the host's for it; without a PASID the host's table has
    /// [`IOVA`] itself.
    fn new(mode: u8, had: u8) -> Self {
        let mut builder = Builder::new(mode);
        let root = builder.guest_table();
        builder.set_gcr3(1, PASID, root);
        let guest = builder.guest_map(root, 4, IOVA, 1, PAGE | GUEST_RWU);
        let guest = guest.into_iter().map(|gpa| builder.spa(gpa)).collect();
        let mut host_leaf = 0;
        if mode != 0 {
            host_leaf = builder.host_map(PAGE, 1, pte(PAGE + DISTANCE));
            builder.host_map(IOVA, 1, pte(0x6000_0000));
        }
        let mut dte = Dte {
            q0: q0(mode)
                .with_host_pt_root(if mode == 0 { 0 } else { HOST_ROOT >> 12 })
                .with_had(had)
                .with_gv(true),
            q1: q1().with_i(true),
            ..Dte::default()
        };
        dte = dte.with_gcr3_address(builder.spa(GCR3));
        let at = DEVICE_TABLE + u64::from(NIC.0) * 32;
        builder.words.insert(at, dte.q0.into_bits());
        builder.words.insert(at + 8, dte.q1.into_bits());
        let efr = ExtendedFeature::new()
            .with_hats(2)
            .with_gt_sup(true)
            .with_gio_sup(true)
            .with_pas_max(15)
            .with_ha_sup(true)
            .with_hd_sup(true);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true).with_gt_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        Self {
            memory: MarkMemory::new(builder.words.clone()),
            builder,
            fabric: Arc::new(Fabric::new(view, Barrier::Portable)),
            iotlb: Arc::new(Iotlb::new(256)),
            guest,
            host_leaf,
        }
    }

    fn mapper(&self) -> Mapper {
        Mapper::new(self.fabric.clone(), self.iotlb.clone(), NIC, 64, 64)
    }

    /// What was marked: address and bits that are new.
    fn marks(&self) -> Vec<(u64, u64)> {
        let marks = self.memory.take_marks();
        marks
            .iter()
            .map(|(at, old, new)| (*at, old ^ new))
            .collect()
    }

    fn dma(
        &self,
        mapper: &mut Mapper,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Permissions {
        match mapper.translate_for(&self.memory, pasid, iova, 8, access) {
            Ok(mapped) => mapped.permissions,
            Err(failed) => panic!("{:?}", failed.cause),
        }
    }
}

fn pasid() -> Option<Pasid> {
    Pasid::new(PASID as u32)
}

#[test]
fn a_read_sets_accessed_in_every_guest_entry_and_dirty_in_none() {
    let world = World::new(0, 0);
    world.dma(&mut world.mapper(), pasid(), IOVA, Access::Read);
    let expected: Vec<_> = world.guest.iter().map(|at| (*at, ACCESSED)).collect();
    assert_eq!(world.marks(), expected);
}

#[test]
fn a_write_sets_both_in_the_leaf_at_once() {
    let world = World::new(0, 0);
    world.dma(&mut world.mapper(), pasid(), IOVA, Access::Write);
    let mut expected: Vec<_> = world.guest.iter().map(|at| (*at, ACCESSED)).collect();
    expected[3].1 |= DIRTY;
    assert_eq!(world.marks(), expected);
}

#[test]
fn had_says_which_bits_of_the_host_are_maintained() {
    for (had, read, write) in [
        (0, 0, 0),
        (1, ACCESSED, ACCESSED),
        (3, ACCESSED, ACCESSED | DIRTY),
    ] {
        for (access, bits) in [(Access::Read, read), (Access::Write, write)] {
            let world = World::new(3, had);
            world.dma(&mut world.mapper(), None, IOVA, access);
            let marks = world.marks();
            let leaf = marks.last().map_or(0, |(_, bits)| *bits);
            assert_eq!(leaf, bits, "HAD {had}, {access:?}");
            // PDEs have an accessed bit and no dirty bit.
            assert_eq!(marks.len(), if had == 0 { 0 } else { 3 });
            assert!(
                marks
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|(_, bits)| *bits == ACCESSED)
            );
        }
    }
}

#[test]
fn had_2_is_illegal_and_had_without_its_feature_is_reserved() {
    let world = World::new(3, 2);
    let mut mapper = world.mapper();
    let failed = mapper
        .translate(&world.memory, IOVA, 1, Access::Read)
        .unwrap_err();
    assert_eq!(
        failed.event.unwrap().words()[0] >> 52 & 0xf08,
        0x100,
        "RZ=0"
    );
    drop(failed);
    for (had, sup) in [(1, false), (3, true)] {
        let world = World::new(3, had);
        let efr = ExtendedFeature::new()
            .with_hats(2)
            .with_gt_sup(true)
            .with_ha_sup(sup);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        let mut mapper = Mapper::new(fabric, world.iotlb.clone(), NIC, 64, 64);
        let failed = mapper
            .translate(&world.memory, IOVA, 1, Access::Read)
            .unwrap_err();
        assert_eq!(
            failed.event.unwrap().words()[0] >> 52 & 0xf08,
            0x108,
            "RZ=1"
        );
    }
}

#[test]
fn the_first_write_sets_dirty_exactly_once_whoever_has_cached_the_page() {
    for (mode, had, who) in [(0, 0, pasid()), (3, 3, None), (3, 3, pasid())] {
        let world = World::new(mode, had);
        let (mut one, mut two) = (world.mapper(), world.mapper());
        // Reads, from tables, the shared IOTLB and the own cache: they grant no write.
        for mapper in [&mut one, &mut two] {
            for _ in 0..3 {
                let granted = world.dma(mapper, who, IOVA, Access::Read);
                assert_eq!(granted, Permissions::READ);
            }
        }
        let dirty = |marks: Vec<(u64, u64)>| {
            let dirty = marks.into_iter().filter(|(_, bits)| bits & DIRTY != 0);
            dirty.map(|(at, _)| at).collect::<Vec<_>>()
        };
        // But for the pages of the guest's tables, in which entries were marked.
        let early = dirty(world.marks());
        assert!(!early.contains(&world.guest[3]) && !early.contains(&world.host_leaf));
        assert!(who.is_some() || early.is_empty());
        for mapper in [&mut one, &mut two] {
            for _ in 0..3 {
                let granted = world.dma(mapper, who, IOVA | 0x80, Access::Write);
                assert_eq!(granted, Permissions::all());
            }
        }
        let mut marked = dirty(world.marks());
        marked.sort_unstable();
        let before = marked.len();
        marked.dedup();
        assert_eq!(marked.len(), before, "each once");
        if who.is_some() {
            assert!(marked.contains(&world.guest[3]));
        }
        if mode != 0 && who.is_some() {
            assert!(marked.contains(&world.host_leaf));
        }
        assert!(!marked.is_empty());
        // What is dirty costs nothing any more.
        world.memory.take_loads();
        world.dma(&mut one, who, IOVA, Access::Write);
        world.dma(&mut one, who, IOVA, Access::Read);
        assert_eq!(world.memory.take_loads(), []);
    }
}

#[test]
fn after_software_has_cleared_dirty_and_invalidated_the_next_write_sets_it_again() {
    let world = World::new(3, 3);
    let mut nic = world.mapper();
    for _ in 0..3 {
        world.dma(&mut nic, None, IOVA, Access::Write);
        let marked = world.marks();
        let (leaf, bits) = *marked.last().unwrap();
        assert_ne!(bits & DIRTY, 0);
        world.memory.set(leaf, world.memory.get(leaf) & !DIRTY);
        // Until the invalidation the cached translation may be used.
        world.dma(&mut nic, None, IOVA, Access::Write);
        assert_eq!(world.marks(), []);
        world.fabric.journal.append(Invalidation::domain(DOMAIN));
    }
}

#[test]
fn of_a_page_with_several_entries_one_gets_dirty_for_all() {
    let mut world = World::new(3, 3);
    // 16 KiB: four entries.
    for n in 0..4 {
        let leaf = PRESENT_RW | 7 << 9 | 0x6000_0000 | 0x1000;
        world.builder.host_map(0x40_4000 + n * 0x1000, 1, leaf);
    }
    world
        .builder
        .words
        .iter()
        .for_each(|(at, word)| world.memory.set(*at, *word));
    let mut nic = world.mapper();
    world.dma(&mut nic, None, 0x40_6000, Access::Write);
    let marks = world.marks();
    let (at, bits) = *marks.last().unwrap();
    assert_eq!(bits, ACCESSED | DIRTY);
    assert_eq!(at & 0xfff, 0x6 * 8, "the entry that was used");
    for n in 0..4 {
        world.dma(&mut nic, None, 0x40_4000 + n * 0x1000, Access::Write);
    }
    assert_eq!(world.marks(), [], "the page is dirty");
}

#[test]
fn the_page_of_a_guest_table_gets_dirty_when_an_entry_in_it_is_marked() {
    let world = World::new(3, 3);
    world.dma(&mut world.mapper(), pasid(), IOVA, Access::Read);
    let marks = world.marks();
    for at in &world.guest {
        let gpa = at - DISTANCE;
        let leaf = world.builder.clone().host_map(gpa, 1, 0);
        let dirty = marks
            .iter()
            .any(|(place, bits)| *place == leaf && bits & DIRTY != 0);
        assert!(dirty, "the host's entry for the table at GPA {gpa:#x}");
    }
    // The data is only read, and so is the GCR3 table.
    let data = marks
        .iter()
        .any(|(at, bits)| *at == world.host_leaf && bits & DIRTY != 0);
    let gcr3 = world.builder.clone().host_map(GCR3, 1, 0);
    assert!(
        !data
            && !marks
                .iter()
                .any(|(at, bits)| *at == gcr3 && bits & DIRTY != 0)
    );
}

#[test]
fn a_guest_entry_in_a_read_only_page_of_the_host_cannot_be_marked() {
    let mut world = World::new(3, 0);
    let gpa = world.guest[3] - DISTANCE;
    let leaf = world
        .builder
        .host_map(gpa, 1, pte((gpa & !0xfff) + DISTANCE) & !(1 << 62));
    world.memory.set(leaf, world.builder.words[&leaf]);
    let mut nic = world.mapper();
    let failed = nic
        .translate_for(&world.memory, pasid(), IOVA, 1, Access::Read)
        .unwrap_err();
    let flags = flag::PR | flag::PE | flag::RW;
    assert_eq!(
        failed.event.unwrap().words(),
        [
            2 << 60 | flags << 48 | u64::from(DOMAIN) << 32 | u64::from(NIC.0),
            gpa,
        ]
    );
    drop(failed);
    // Once software has marked it, nobody needs to write.
    let at = world.guest[3];
    world.memory.set(at, world.memory.get(at) | ACCESSED);
    world.dma(&mut nic, pasid(), IOVA, Access::Read);
}

#[test]
fn control_can_turn_off_both_kinds_of_guest_marks() {
    let world = World::new(0, 0);
    let efr = world
        .fabric
        .view
        .efr()
        .with_ga_update_dis_sup(true)
        .with_v2_hd_dis_sup(true);
    for (no_a, no_d) in [(false, true), (true, false), (true, true)] {
        let world = World::new(0, 0);
        let view = View::new(efr, ExtendedFeature2::new());
        let control = Control::RESET.with_iommu_en(true).with_gt_en(true);
        view.set_control(control.with_ga_update_dis(no_a).with_gd_update_dis(no_d));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        let mut nic = Mapper::new(fabric, world.iotlb.clone(), NIC, 64, 64);
        let granted = world.dma(&mut nic, pasid(), IOVA, Access::Read);
        assert_eq!(granted.contains(Permissions::WRITE), no_d);
        world.dma(&mut nic, pasid(), IOVA, Access::Write);
        let bits = world
            .marks()
            .into_iter()
            .fold(0, |all, (_, bits)| all | bits);
        let expected = if no_a { 0 } else { ACCESSED } | if no_d { 0 } else { DIRTY };
        assert_eq!(bits, expected);
    }
}

#[test]
fn a_translation_request_sets_dirty_if_it_asks_to_write_and_grants_w_only_then() {
    for (mode, had, who) in [(0, 0, pasid()), (3, 3, None), (3, 3, pasid())] {
        let world = World::new(mode, had);
        let mut nic = world.mapper();
        let ask = |nic: &mut Mapper, access| {
            let answer = nic.translation_request(&world.memory, who, IOVA, access);
            answer
                .unwrap_or_else(|failed| panic!("{:?}", failed.cause))
                .permissions
        };
        assert_eq!(ask(&mut nic, Access::Read), Permissions::READ);
        let data = if mode == 0 {
            world.guest[3]
        } else {
            world.host_leaf
        };
        if who.is_some() {
            assert_eq!(world.memory.get(data) & DIRTY, 0);
        }
        assert_eq!(ask(&mut nic, Access::Write), Permissions::all());
        if who.is_some() {
            assert_ne!(world.memory.get(data) & DIRTY, 0);
        }
        assert_eq!(ask(&mut nic, Access::Read), Permissions::all());
    }
}

#[test]
fn without_permission_to_write_nothing_gets_dirty() {
    let mut world = World::new(3, 3);
    // The DTE says no.
    let at = DEVICE_TABLE + u64::from(NIC.0) * 32;
    let q0 = DteQ0::from_bits(world.memory.get(at)).with_iw(false);
    world.memory.set(at, q0.into_bits());
    let mut nic = world.mapper();
    assert!(
        nic.translate(&world.memory, IOVA, 1, Access::Write)
            .is_err()
    );
    let answer = nic.translation_request(&world.memory, None, IOVA, Access::Write);
    assert_eq!(
        answer.map(|answer| answer.permissions).ok(),
        Some(Permissions::READ)
    );
    assert!(world.marks().iter().all(|(_, bits)| bits & DIRTY == 0));
    // The leaf says no.
    world.memory.set(at, q0.with_iw(true).into_bits());
    nic.slot().invalidate();
    let leaf = world.builder.host_map(IOVA, 1, 0);
    world.memory.set(leaf, pte(0x6000_0000) & !(1 << 62));
    world.fabric.journal.append(Invalidation::ALL);
    assert!(
        nic.translate(&world.memory, IOVA, 1, Access::Write)
            .is_err()
    );
    assert!(world.marks().iter().all(|(_, bits)| bits & DIRTY == 0));
}

#[test]
fn memory_that_cannot_be_written_is_a_hardware_error() {
    let world = World::new(0, 0);
    struct ReadOnly<'a>(&'a MarkMemory);
    impl PhysMemory for ReadOnly<'_> {
        fn load_u32(&self, gpa: u64) -> Result<u32, amdvi_regs::MemoryError> {
            self.0.load_u32(gpa)
        }
        fn load_u64(&self, gpa: u64) -> Result<u64, amdvi_regs::MemoryError> {
            self.0.load_u64(gpa)
        }
        fn store_u32(&self, gpa: u64, _: u32) -> Result<(), amdvi_regs::MemoryError> {
            Err(amdvi_regs::MemoryError { gpa })
        }
        fn store_u64(&self, gpa: u64, _: u64) -> Result<(), amdvi_regs::MemoryError> {
            Err(amdvi_regs::MemoryError { gpa })
        }
        fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, amdvi_regs::MemoryError> {
            Err(amdvi_regs::MemoryError { gpa })
        }
        fn compare_exchange_u64(
            &self,
            gpa: u64,
            _: u64,
            _: u64,
        ) -> Result<Result<u64, u64>, amdvi_regs::MemoryError> {
            Err(amdvi_regs::MemoryError { gpa })
        }
    }
    let mut nic = world.mapper();
    let failed = nic
        .translate_for(&ReadOnly(&world.memory), pasid(), IOVA, 1, Access::Read)
        .unwrap_err();
    assert_eq!(
        failed.event.unwrap().words(),
        [
            4 << 60 | (1 | flag::MASTER_ABORT) << 48 | PASID << 32 | u64::from(NIC.0),
            world.guest[0],
        ]
    );
}

#[test]
fn to_list_what_a_guest_table_maps_marks_nothing() {
    for mode in [0, 3] {
        let mut world = World::new(mode, if mode == 0 { 0 } else { 3 });
        let high = 0xffff_8000_0040_0000;
        let root = world.builder.guest_table();
        world.builder.set_gcr3(1, 0, root);
        for (iova, page) in [(IOVA, PAGE), (high, PAGE + 0x1000)] {
            world
                .builder
                .guest_map(root, 4, iova & 0xffff_ffff_ffff, 1, page | GUEST_RWU);
            if mode != 0 {
                world.builder.host_map(page, 1, pte(page + DISTANCE));
            }
        }
        for (at, word) in &world.builder.words {
            world.memory.set(*at, *word);
        }
        let at = DEVICE_TABLE + u64::from(NIC.0) * 32;
        let q0 = DteQ0::from_bits(world.memory.get(at)).with_giov(true);
        world.memory.set(at, q0.into_bits());
        let space = AddressSpace::read(&world.fabric.view, &world.memory, NIC, 64);
        assert!(space.uses_guest_tables());
        assert_eq!(space.domain(), Some(DOMAIN));
        let list: Vec<_> = space
            .mappings(&world.memory, 0..=u64::MAX, 1 << 16)
            .map(|mapping| (mapping.iova, mapping.gpa, mapping.len, mapping.permissions))
            .collect();
        let rw = Permissions::all();
        let spa = world.builder.spa(PAGE);
        assert_eq!(
            list,
            [
                (IOVA, spa, 0x1000, rw),
                // The same table, by the two forms of its upper half.
                (high & 0xffff_ffff_ffff, spa + 0x1000, 0x1000, rw),
                (high, spa + 0x1000, 0x1000, rw),
            ],
            "mode {mode}"
        );
        assert_eq!(world.marks(), []);
    }
}
