//! What an ATS answer says, with a PASID and without.

mod common;

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, View};
use amdvi_dma::{Access, Answer, Cause, Iotlb, Mapper, Pasid, Permissions, Reason};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use common::marks::*;
use common::*;

const DEVICE_TABLE: u64 = 0x1_0000;
const NIC: DeviceId = DeviceId(8);
const PASID: u32 = 5;
const IOVA: u64 = 0x4060_3000;
const PAGE: u64 = 0x8000_0000;

struct World {
    memory: MarkMemory,
    mapper: Mapper,
}

impl World {
    /// A guest's leaf of `level` at [`IOVA`], over a host table of `mode` levels with pages of 2 MiB.
    fn new(
        mode: u8,
        level: u8,
        leaf: u64,
        change: impl FnOnce(DteQ0, DteQ1) -> (DteQ0, DteQ1),
    ) -> Self {
        let mut builder = Builder::new(mode);
        let root = builder.guest_table();
        builder.set_gcr3(1, PASID.into(), root);
        builder.guest_map(root, 4, IOVA, level, leaf);
        if mode != 0 {
            for n in 0..4 {
                let gpa = PAGE + (n << 21);
                builder.host_map(gpa, 2, pte(gpa + DISTANCE) | 1 << 59);
            }
        }
        let q0 = q0(mode)
            .with_host_pt_root(if mode == 0 { 0 } else { HOST_ROOT >> 12 })
            .with_gv(true);
        let (q0, q1) = change(q0, q1().with_i(true));
        let dte = Dte {
            q0,
            q1,
            ..Dte::default()
        }
        .with_gcr3_address(builder.spa(GCR3));
        for (n, word) in (0..).zip(dte.words()) {
            let at = DEVICE_TABLE + u64::from(NIC.0) * 32;
            builder.words.insert(at + 8 * n, word);
        }
        let efr = ExtendedFeature::new()
            .with_hats(2)
            .with_gt_sup(true)
            .with_nx_sup(true)
            .with_pas_max(8);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true).with_gt_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        Self {
            memory: MarkMemory::new(builder.words),
            mapper: Mapper::new(fabric, Arc::new(Iotlb::new(64)), NIC, 64, 64),
        }
    }

    fn ask(&mut self, pasid: Option<Pasid>, iova: u64, access: Access) -> Result<Answer, Cause> {
        let answer = self
            .mapper
            .translation_request(&self.memory, pasid, iova, access);
        answer.map(|answer| *answer).map_err(|failed| failed.cause)
    }
}

fn pasid() -> Pasid {
    Pasid::new(PASID).unwrap()
}

fn as_it_is(q0: DteQ0, q1: DteQ1) -> (DteQ0, DteQ1) {
    (q0, q1)
}

#[test]
fn an_answer_is_the_page_that_both_tables_have_in_common() {
    for (mode, level, shift) in [
        (0, 1, 12),
        (0, 2, 21),
        (0, 3, 30),
        (4, 1, 12),
        (4, 2, 21),
        (4, 3, 21),
    ] {
        let large = if level > 1 { LARGE } else { 0 };
        let mut world = World::new(mode, level, PAGE | GUEST_RWU | large, as_it_is);
        let answer = world
            .ask(Some(pasid()), IOVA | 0x123, Access::Write)
            .unwrap();
        let offset = IOVA & ((1 << (12 + 9 * (level - 1))) - 1) & !((1 << shift) - 1);
        let distance = if mode == 0 { 0 } else { DISTANCE };
        assert_eq!(
            answer,
            Answer {
                iova: IOVA & !((1 << shift) - 1),
                gpa: PAGE + offset + distance,
                shift,
                permissions: Permissions::all(),
                execute: false,
                privileged: false,
                // PTE.U of the host's leaf.
                untranslated_only: mode != 0,
            },
            "mode {mode}, level {level}"
        );
        // From the cache it is the same.
        world.memory.take_loads();
        assert_eq!(world.ask(Some(pasid()), IOVA, Access::Write), Ok(answer));
        assert_eq!(world.memory.take_loads(), []);
    }
}

#[test]
fn exe_is_granted_if_asked_for_and_no_entry_has_nx() {
    for (nx, asked) in [(false, false), (false, true), (true, false), (true, true)] {
        let leaf = PAGE | GUEST_RWU | if nx { NX } else { 0 };
        let mut world = World::new(0, 1, leaf, as_it_is);
        let who = pasid().with_execute(asked);
        for _ in 0..2 {
            let answer = world.ask(Some(who), IOVA, Access::Read).unwrap();
            assert_eq!(answer.execute, asked && !nx);
            assert_eq!(
                answer.permissions,
                Permissions::READ,
                "NX is no reason against R"
            );
        }
    }
}

#[test]
fn priv_says_for_whom_the_permissions_are() {
    // A supervisor's page.
    let mut world = World::new(0, 1, PAGE | 3, as_it_is);
    let privileged = world.ask(Some(pasid().with_privileged(true)), IOVA, Access::Read);
    assert!(
        privileged.is_ok_and(|answer| answer.privileged && answer.permissions == Permissions::READ)
    );
    let user = world.ask(Some(pasid()), IOVA, Access::Read).unwrap();
    assert!(!user.privileged);
    assert_eq!((user.permissions, user.gpa), (Permissions::empty(), 0));
}

#[test]
fn what_is_not_mapped_is_an_answer_without_permissions_and_without_an_event() {
    let mut world = World::new(4, 1, PAGE | GUEST_RWU, as_it_is);
    let nothing = |iova| Answer {
        iova,
        gpa: 0,
        shift: 12,
        permissions: Permissions::empty(),
        execute: false,
        privileged: false,
        untranslated_only: false,
    };
    // In the guest's table, in the GCR3 table, beyond its PASIDs, and in the host's.
    let far = IOVA + 0x1000;
    assert_eq!(
        world.ask(Some(pasid()), far | 5, Access::Read),
        Ok(nothing(far))
    );
    for other in [6, 0xf_ffff] {
        assert_eq!(
            world.ask(Pasid::new(other), IOVA, Access::Read),
            Ok(nothing(IOVA))
        );
    }
    assert_eq!(world.ask(None, IOVA, Access::Read), Ok(nothing(IOVA)));
}

#[test]
fn a_device_that_may_not_use_ats_is_refused() {
    let mut world = World::new(0, 1, PAGE | GUEST_RWU, |q0, q1| (q0, q1.with_i(false)));
    let refused = world.ask(Some(pasid()), IOVA, Access::Read);
    assert!(matches!(
        refused,
        Err(Cause::Translation(Reason::InvalidRequest(_)))
    ));
    let failed = world
        .mapper
        .translation_request(&world.memory, Some(pasid()), IOVA, Access::Read)
        .unwrap_err();
    // INVALID_DEVICE_REQUEST with TR, GN and US; type 1.
    let flags = 1 | 1 << 2 | flag::TR | flag::kind(1);
    let low = 8 << 60 | flags << 48 | u64::from(PASID) << 32 | u64::from(NIC.0);
    assert_eq!(failed.event.unwrap().words(), [low, IOVA]);
}

#[test]
fn a_device_id_behind_its_table_has_the_event_of_its_kind_of_request() {
    let world = World::new(0, 1, PAGE | GUEST_RWU, as_it_is);
    world.mapper.slot().set_device_id(DeviceId(0x4000));
    let mut mapper = world.mapper;
    let who = Some(pasid());
    let gn_us = 1 | 1 << 2;
    let words = |code: u64, flags: u64| {
        [
            code << 60 | flags << 48 | u64::from(PASID) << 32 | 0x4000,
            IOVA,
        ]
    };
    let failed = mapper
        .translation_request(&world.memory, who, IOVA, Access::Read)
        .unwrap_err();
    let expected = words(8, gn_us | flag::TR | flag::kind(2));
    assert_eq!(failed.event.unwrap().words(), expected);
    drop(failed);
    let failed = mapper
        .translate_for(&world.memory, who, IOVA, 1, Access::Write)
        .unwrap_err();
    assert_eq!(failed.event.unwrap().words(), words(2, gn_us | flag::RW));
}

#[test]
fn identity_is_answered_by_the_largest_block_of_ordinary_addresses() {
    let mut world = World::new(0, 1, PAGE | GUEST_RWU, as_it_is);
    let answer = world.ask(None, 0x1_2345_6789, Access::Write).unwrap();
    assert_eq!(
        (answer.iova, answer.gpa, answer.shift),
        (1 << 32, 1 << 32, 32)
    );
    // Below the interrupt window.
    let answer = world.ask(None, 0xfed0_0000, Access::Write).unwrap();
    assert_eq!((answer.iova, answer.shift), (0xfec0_0000, 21));
    assert!(world.ask(None, 0xfee0_0000, Access::Write).is_err());
}

#[test]
fn a_translated_request_is_not_looked_up() {
    let mut world = World::new(4, 1, PAGE | GUEST_RWU, as_it_is);
    let mapped = world
        .mapper
        .translated(
            &world.memory,
            Some(pasid()),
            0x1234,
            0x10_0000,
            Access::Write,
        )
        .unwrap();
    assert_eq!((mapped.gpa, mapped.len), (0x1234, 0x10_0000));
    drop(mapped);
    // The DTE, and no table: three words and one that is read again.
    assert!(world.memory.take_loads().len() <= 4);
}
