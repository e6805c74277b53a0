//! The rules of guest (v2) page tables, one by one.

#[path = "../common/mod.rs"]
mod common;
mod host;
mod pages;

use amdvi_dma::{
    Access, Bypass, DmaEntry, DteDefect, Fault, GuestContext, Pasid, Permissions, Reason, Request,
    RequestKind, Span, Stage, Target, WalkContext, translate,
};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use common::flag::{PE, PR, RW, RZ};
use common::marks::*;
use common::*;

const GN: u64 = 1;
const FLAG_NX: u64 = 1 << 1;
const US: u64 = 1 << 2;
const IOVA: u64 = 0x7f12_3456_7000;
const PAGE: u64 = 0x8000_0000;
const PASID: u64 = 5;

/// One guest, its tables and the registers.
struct World {
    builder: Builder,
    context: WalkContext,
    entry: DmaEntry,
    root: u64,
    levels: u8,
}

impl World {
    /// A GCR3 table of three levels, a guest table of four for [`PASID`] and PASID 0, over a host table
    /// of `mode` levels, with all features.
    fn new(mode: u8) -> Self {
        let mut builder = Builder::new(mode);
        let root = builder.guest_table();
        builder.set_gcr3(3, PASID, root);
        builder.set_gcr3(3, 0, root);
        let guest = GuestContext {
            supported: true,
            enabled: true,
            giov: true,
            levels: 5,
            gcr3_levels: 3,
            max_pasid: Pasid::MAX,
            gcr3_root_is_gpa: true,
            no_execute: true,
            accessed: false,
            dirty: false,
        };
        let dte = Dte {
            q0: q0(mode)
                .with_host_pt_root(if mode == 0 { 0 } else { HOST_ROOT >> 12 })
                .with_gv(true)
                .with_glx(2),
            q1: q1().with_i(true),
            ..Dte::default()
        }
        .with_gcr3_address(GCR3);
        Self {
            builder,
            context: WalkContext {
                guest,
                host_accessed: true,
                host_dirty: true,
                ..context()
            },
            entry: DmaEntry::new(dte.q0, dte.q1),
            root,
            levels: 4,
        }
    }

    /// Maps a page of 4 KiB at [`IOVA`] to [`PAGE`].
    fn mapped(mode: u8, leaf: u64) -> (Self, Vec<u64>) {
        let mut world = Self::new(mode);
        let entries = world.map(IOVA, 1, leaf);
        world.builder.host_page(leaf & 0x000f_ffff_ffff_f000);
        (world, entries)
    }

    fn map(&mut self, iova: u64, level: u8, leaf: u64) -> Vec<u64> {
        self.builder
            .guest_map(self.root, self.levels, iova, level, leaf)
    }

    fn memory(&self) -> MarkMemory {
        MarkMemory::new(self.builder.words.clone())
    }

    fn ask(&self, request: Request) -> Result<Span, Fault> {
        translate(&self.context, &self.entry, &request, &self.memory())
    }

    fn read(&self, pasid: Option<Pasid>, iova: u64) -> Result<Span, Fault> {
        self.ask(of(pasid, Access::Read, iova))
    }

    fn write(&self, pasid: Option<Pasid>, iova: u64) -> Result<Span, Fault> {
        self.ask(of(pasid, Access::Write, iova))
    }

    fn with_q0(mut self, change: impl FnOnce(DteQ0) -> DteQ0) -> Self {
        self.entry.q0 = change(self.entry.q0);
        self
    }
}

fn pasid(value: u64) -> Option<Pasid> {
    Pasid::new(value as u32)
}

fn user() -> Option<Pasid> {
    pasid(PASID)
}

fn of(pasid: Option<Pasid>, access: Access, iova: u64) -> Request {
    Request {
        pasid,
        ..request(access, iova)
    }
}

/// IO_PAGE_FAULT with GN=1.
fn guest_fault(pasid: u64, flags: u64, address: u64) -> [u64; 2] {
    let [low, high] = raw_event(2, flags | GN, pasid & 0xffff, address);
    [low | (pasid >> 16) << 16, high]
}

#[test]
fn a_request_with_a_pasid_goes_through_its_guest_table() {
    // One and two levels do not reach the tables.
    for mode in [0, 3, 4, 5, 6] {
        let (world, _) = World::mapped(mode, PAGE | GUEST_RWU);
        let span = world.write(user(), IOVA | 0x123).unwrap();
        let distance = if mode == 0 { 0 } else { DISTANCE };
        assert_eq!(span.gpa, PAGE + distance + 0x123, "mode {mode}");
        assert_eq!(span.permissions, Permissions::all());
        let Target::Page(leaf) = span.target else {
            panic!("through a page");
        };
        assert_eq!((leaf.iova, leaf.shift), (IOVA, 12));
    }
}

#[test]
fn without_gv_a_pasid_faults_and_a_request_without_one_does_not() {
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_gv(false));
    let fault = world.write(user(), IOVA).unwrap_err();
    assert_eq!(fault.reason, Reason::PasidNotAllowed);
    assert_eq!(event(Err(fault)), guest_fault(PASID, US | RW, IOVA));
    assert_eq!(world.write(None, IOVA).unwrap().gpa, IOVA);
}

#[test]
fn gv_counts_only_while_control_gten_is_1() {
    let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
    world.context.guest.enabled = false;
    let fault = world.read(user(), IOVA).unwrap_err();
    assert_eq!(fault.reason, Reason::PasidNotAllowed);
    assert_eq!(world.read(None, IOVA).unwrap().gpa, IOVA);
    // What it points to is nobody's business then.
    world.entry = world.entry.with_guest_paging_mode(3);
    assert!(world.read(None, IOVA).is_ok());
}

#[test]
fn with_giov_0_a_request_without_a_pasid_sees_the_host_only() {
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let span = world.write(None, IOVA).unwrap();
    assert_eq!(span.target, Target::Identity(Bypass::ModeZero));
    let (mut world, _) = World::mapped(4, PAGE | GUEST_RWU);
    world.builder.host_map(0x3000, 1, pte(0x9000));
    assert_eq!(world.write(None, 0x3000).unwrap().gpa, 0x9000);
    assert_eq!(event(world.write(None, IOVA)), page_fault(RW, IOVA));
}

#[test]
fn with_giov_1_a_request_without_a_pasid_is_one_of_pasid_0() {
    for mode in [0, 3] {
        let (world, _) = World::mapped(mode, PAGE | GUEST_RWU);
        let world = world.with_q0(|q0| q0.with_giov(true));
        let gpa = world.builder.spa(PAGE);
        assert_eq!(world.write(None, IOVA).unwrap().gpa, gpa);
        // Its faults are those of PASID 0, with user privilege.
        let result = world.write(None, IOVA + 0x1000);
        assert_eq!(event(result), guest_fault(0, US | RW, IOVA + 0x1000));
    }
}

#[test]
fn v_0_lets_pasids_pass_and_tv_0_does_not() {
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_v(false));
    assert_eq!(world.write(user(), IOVA).unwrap().gpa, IOVA);
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_tv(false));
    let result = world.write(user(), IOVA);
    assert_eq!(event(result), guest_fault(PASID, US | RW, IOVA));
}

#[test]
fn an_address_in_a_process_is_memory_wherever_it_is() {
    for iova in [0xfee0_0000, 0xfd_f800_0000, 0xfd_f910_0000] {
        let mut world = World::new(0);
        world.map(iova, 1, PAGE | GUEST_RWU);
        assert_eq!(world.write(user(), iova).unwrap().gpa, PAGE);
        // Without a PASID it is an address of the bus, GIoV or not.
        let world = world.with_q0(|q0| q0.with_giov(true));
        assert!(world.write(None, iova).is_err(), "{iova:#x}");
    }
}

#[test]
fn the_pasid_must_fit_the_gcr3_table_and_pasmax() {
    for (glx, beyond) in [(0, 1 << 9), (1, 1 << 18)] {
        let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
        let world = world.with_q0(|q0| q0.with_glx(glx));
        let fault = world.read(pasid(beyond), IOVA).unwrap_err();
        let max = beyond as u32 - 1;
        assert_eq!(fault.reason, Reason::PasidTooLarge { max });
        assert_eq!(event(Err(fault)), guest_fault(beyond, US, IOVA));
    }
    let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
    world.context.guest.max_pasid = 4;
    let fault = world.read(user(), IOVA).unwrap_err();
    assert_eq!(fault.reason, Reason::PasidTooLarge { max: 4 });
}

#[test]
fn each_level_of_the_gcr3_table_takes_its_bits_of_the_pasid() {
    for levels in 1..=3u8 {
        let value = [0x1f5, 0x3_47f5, 0xd_47f5][usize::from(levels) - 1];
        let mut world = World::new(0);
        world.builder = Builder::new(0);
        world.root = world.builder.guest_table();
        world.builder.set_gcr3(levels, value, world.root);
        world.map(IOVA, 1, PAGE | GUEST_RWU);
        let world = world.with_q0(|q0| q0.with_glx(levels - 1));
        assert_eq!(world.read(pasid(value), IOVA).unwrap().gpa, PAGE);
        let fault = world.read(pasid(value ^ 1), IOVA).unwrap_err();
        assert_eq!(fault.reason, Reason::Gcr3NotValid { level: 1 });
        assert_eq!(event(Err(fault)), guest_fault(value ^ 1, US, IOVA));
    }
}

#[test]
fn reserved_bits_of_a_gcr3_entry_fault_with_rz() {
    for bit in (1..12).chain(52..64) {
        let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
        let root = world.root;
        let at = world.builder.set_gcr3(3, PASID, root);
        world.builder.set_guest(at, root | 1 | 1 << bit);
        let result = world.read(user(), IOVA);
        assert_eq!(event(result), guest_fault(PASID, US | PR | RZ, IOVA));
    }
}

#[test]
fn glx_3_or_above_glxsup_is_an_illegal_dte_with_rz_0() {
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_glx(3));
    let fault = world.read(user(), IOVA).unwrap_err();
    assert_eq!(
        fault.reason,
        Reason::IllegalDte(DteDefect::Glx { glx: 3, max: 3 })
    );
    // Also for a request that needs no guest table; the PASID is in the event if there is one.
    let [low, high] = raw_event(1, GN, PASID, IOVA);
    assert_eq!(event(Err(fault)), [low, high]);
    assert_eq!(event(world.read(None, IOVA)), raw_event(1, 0, 0, IOVA));
    let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
    world.context.guest.gcr3_levels = 2;
    assert!(matches!(
        world.read(user(), IOVA).unwrap_err().reason,
        Reason::IllegalDte(DteDefect::Glx { glx: 2, max: 2 })
    ));
}

#[test]
fn guest_paging_mode_chooses_five_levels_where_gats_offers_them() {
    let far = 0x00ab_7f12_3456_7000;
    let mut world = World::new(0);
    world.levels = 5;
    world.entry = world.entry.with_guest_paging_mode(1);
    world.map(far, 1, PAGE | GUEST_RWU);
    assert_eq!(world.read(user(), far).unwrap().gpa, PAGE);
    for (mode, levels) in [(1, 4), (2, 5), (3, 5)] {
        world.entry = world.entry.with_guest_paging_mode(mode);
        world.context.guest.levels = levels;
        let fault = world.read(user(), far).unwrap_err();
        let defect = DteDefect::GuestPagingMode { mode, max: levels };
        assert_eq!(fault.reason, Reason::IllegalDte(defect));
        assert_eq!(event(Err(fault)), raw_event(1, GN, PASID, far));
    }
}

#[test]
fn without_its_feature_each_guest_field_is_a_reserved_bit() {
    let world = World::new(0);
    let bits0 = (54..=60).map(|n| (1u64 << n, 0));
    let bits1 = (16..32).chain(43..64).map(|n| (0, 1u64 << n));
    for (bit0, bit1) in bits0.chain(bits1) {
        let mut context = world.context;
        context.guest = GuestContext::default();
        let entry = DmaEntry::new(
            DteQ0::from_bits(q0(0).into_bits() | bit0),
            DteQ1::from_bits(q1().into_bits() | bit1),
        );
        let request = of(None, Access::Read, 0x1000);
        let fault = translate(&context, &entry, &request, &world.memory()).unwrap_err();
        let defect = DteDefect::ReservedBits { q0: bit0, q1: bit1 };
        assert_eq!(fault.reason, Reason::IllegalDte(defect));
    }
    let mut world = World::new(0).with_q0(|q0| q0.with_giov(true));
    world.context.guest.giov = false;
    let result = world.read(None, 0x1000);
    assert_eq!(event(result), raw_event(1, RZ, 0, 0x1000));
}

#[test]
fn the_dte_permits_guest_translations_too() {
    let (world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let world = world.with_q0(|q0| q0.with_iw(false));
    assert_eq!(
        world.read(user(), IOVA).unwrap().permissions,
        Permissions::READ
    );
    let result = world.write(user(), IOVA);
    assert_eq!(event(result), guest_fault(PASID, US | PR | PE | RW, IOVA));
}

#[test]
fn sa_suppresses_guest_faults_and_se_all_but_the_first() {
    let world = World::new(0);
    let mut silent = world;
    silent.entry.q1 = silent.entry.q1.with_sa(true);
    assert_eq!(silent.read(user(), IOVA).unwrap_err().event, None);
    silent.entry.q1 = silent.entry.q1.with_sa(false).with_se(true);
    assert!(silent.read(user(), IOVA).unwrap_err().suppress_after_first);
}

#[test]
fn a_translation_request_reports_and_logs_no_page_fault() {
    let (world, _) = World::mapped(0, PAGE | 5 | NX);
    let ask = |pasid, iova| {
        world.ask(Request {
            kind: RequestKind::TranslationRequest,
            ..of(pasid, Access::Write, iova)
        })
    };
    let executing = user().map(|pasid| pasid.with_execute(true));
    let span = ask(executing, IOVA).unwrap();
    assert_eq!(span.permissions, Permissions::READ);
    assert!(matches!(span.target, Target::Page(leaf) if !leaf.guest.unwrap().execute));
    assert_eq!(ask(user(), IOVA + 0x1000).unwrap_err().event, None);
    assert_eq!(ask(pasid(6), IOVA).unwrap_err().event, None);
}

#[test]
fn a_translated_request_stays_as_it_is_with_a_pasid_too() {
    let (mut world, _) = World::mapped(0, PAGE | GUEST_RWU);
    let ask = |world: &World| {
        world.ask(Request {
            kind: RequestKind::Translated,
            ..of(pasid(7), Access::Write, 0x9000)
        })
    };
    assert_eq!(ask(&world).unwrap().gpa, 0x9000);
    world.entry.q1 = world.entry.q1.with_i(false);
    let [low, high] = raw_event(8, GN | US | flag::kind(1), 7, 0x9000);
    assert_eq!(event(ask(&world)), [low, high]);
}
