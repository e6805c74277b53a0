//! Guest tables, nesting, and accessed and dirty bits against their literal model.

mod common;

use std::collections::BTreeMap;

use amdvi_dma::{
    Access, DmaEntry, Fault, GuestContext, MAX_EXCHANGES, MAX_LOADS, Pasid, Permissions, Request,
    RequestKind, Span, Target, WalkContext, translate,
};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use common::guest_model::{Input, Output, Words, byte};
use common::marks::*;
use common::*;
use proptest::prelude::*;

/// Choices from bytes; 0 when they are used up.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u64 {
        self.0.next().copied().unwrap_or(0).into()
    }

    fn below(&mut self, n: u64) -> u64 {
        self.byte() % n
    }

    /// True in `n` of 256 cases.
    fn rarely(&mut self, n: u64) -> bool {
        self.byte() > 255 - n
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | self.byte())
    }
}

#[derive(Debug)]
struct Case {
    context: WalkContext,
    entry: DmaEntry,
    request: Request,
    words: BTreeMap<u64, u64>,
}

const PASIDS: [u64; 8] = [0, 1, 5, 511, 512, 0x2_0003, 0x4_0000, 0xf_ffff];
const PAGES: [u64; 6] = [
    0,
    0x1000,
    0x20_0000,
    0x4000_0000,
    0x7f_ffff_f000,
    0x12_3456_7000,
];

impl Case {
    fn new(bytes: &[u8]) -> Self {
        let mut c = Choices(bytes.iter());
        let guest = GuestContext {
            supported: !c.rarely(8),
            enabled: !c.rarely(8),
            giov: !c.rarely(20),
            levels: if c.rarely(100) { 4 } else { 5 },
            gcr3_levels: if c.rarely(60) {
                1 + c.below(3) as u8
            } else {
                3
            },
            max_pasid: if c.rarely(40) { 0xff } else { 0xf_ffff },
            gcr3_root_is_gpa: c.below(2) == 1,
            no_execute: !c.rarely(40),
            accessed: !c.rarely(60),
            dirty: !c.rarely(60),
        };
        let mut context = WalkContext {
            host_accessed: !c.rarely(30),
            guest,
            ht_range_ignore: true,
            ..context()
        };
        context.host_dirty = context.host_accessed && !c.rarely(30);
        if c.rarely(8) {
            context.host_levels = 4 + c.below(3) as u8;
        }
        let mode = match c.below(8) {
            0..3 => 0,
            n => (n as u8 - 1).min(6),
        };
        let had = match c.below(8) {
            0..3 => 0,
            3 | 4 => 1,
            5 if c.rarely(60) => 2,
            _ => 3,
        };
        let glx = if c.rarely(16) { 3 } else { c.below(3) as u8 };
        let paging_mode = match c.byte() {
            0..240 => (c.below(2) as u8).min(guest.levels - 4),
            _ => c.below(3) as u8,
        };
        let glx = if c.rarely(16) {
            glx
        } else {
            glx.min(guest.gcr3_levels - 1)
        };
        let mut pasid = PASIDS[c.below(8) as usize];
        if !c.rarely(30) {
            pasid &= [0x1ff, 0x3_ffff, 0xf_ffff, 0xf_ffff][usize::from(glx)]
                & u64::from(guest.max_pasid);
        }

        let mut builder = Builder::new(mode);
        let levels = 4 + paging_mode.min(1);
        let iova = PAGES[c.below(6) as usize]
            | if c.rarely(30) {
                0xffff_8000_0000_0000
            } else {
                0
            };
        let root = builder.guest_table();
        builder.set_gcr3(glx.min(2) + 1, pasid, root);
        for n in 0..2 {
            let level = [1, 1, 2, 3][c.below(4) as usize];
            let mut leaf = 0x8000_0000 + (c.below(16) << 30 | c.below(4) << 21 | c.below(8) << 12);
            leaf &= !((1 << shift(level)) - 1);
            // The host's page for it, at a level of its own.
            let gpa = leaf | iova & ((1 << shift(level)) - 1) & !0xfff;
            if mode != 0 {
                let host = (1 + c.below(3) as u8).min(mode);
                let mut word = pte((gpa + DISTANCE) & !((1u64 << shift(host)) - 1));
                if c.rarely(40) {
                    // A page of several entries, or of a size that the level has not.
                    let ones = shift(host) - 12 + c.below(9) as u32;
                    word = word & !(((2u64 << (ones + 12)) - 1) & !0xfff)
                        | 7 << 9
                        | ((1 << ones) - 1) << 12;
                }
                if c.rarely(30) {
                    word &= !(1 << (61 + c.below(2)));
                }
                if c.rarely(20) {
                    word |= DIRTY;
                }
                builder.host_map(gpa, host, word);
            }
            leaf |= 1 | c.below(256).min(7) & 6 | if level > 1 { LARGE } else { 0 };
            if c.below(4) != 0 {
                leaf |= 6;
            }
            if c.rarely(60) {
                leaf |= NX;
            }
            if c.rarely(60) {
                leaf |= DIRTY;
            }
            let at = if n == 0 { iova } else { iova ^ 0x1000 };
            builder.guest_map(root, levels, at, level, leaf);
        }
        if mode != 0 && c.rarely(100) {
            // What a request without a PASID finds.
            let level = (1 + c.below(2) as u8).min(mode);
            builder.host_map(iova, level, pte(0x6000_0000));
        }
        // Something odd somewhere.
        let places: Vec<u64> = builder.words.keys().copied().collect();
        for _ in 0..c.below(3) {
            let at = places[c.word() as usize % places.len()];
            let word = builder.words[&at];
            let odd = match c.below(8) {
                0 => 1 << c.below(64),
                1 => 1,
                2 => 3 << 61,
                3 => 6,
                4 => LARGE,
                5 => NX,
                6 => UNBACKED,
                _ => 1 << (61 + c.below(2)),
            };
            builder.words.insert(at, word ^ odd);
        }

        let mut dte = Dte {
            q0: DteQ0::new()
                .with_v(true)
                .with_tv(!c.rarely(6))
                .with_ir(!c.rarely(10))
                .with_iw(!c.rarely(20))
                .with_had(had)
                .with_mode(mode)
                .with_gv(!c.rarely(16))
                .with_giov(c.below(2) == 1)
                .with_glx(glx),
            q1: DteQ1::new()
                .with_domain_id(DOMAIN)
                .with_i(true)
                .with_sa(c.rarely(10))
                .with_se(c.rarely(20)),
            ..Dte::default()
        };
        if mode != 0 {
            dte.q0 = dte.q0.with_host_pt_root(HOST_ROOT >> 12);
        }
        let gcr3 = if guest.gcr3_root_is_gpa {
            GCR3
        } else {
            builder.spa(GCR3)
        };
        dte = dte.with_gcr3_address(gcr3);
        let (mut q0, mut q1) = (dte.q0.into_bits(), dte.q1.into_bits());
        if c.rarely(10) {
            q0 ^= 1 << (1 + c.below(63));
        }
        if c.rarely(6) {
            // Not the bit that allows ATS: the other model has it.
            q1 ^= 1 << c.below(64) & !(1 << 32);
        }
        // Without features a driver leaves their fields alone, mostly.
        if !guest.supported && c.below(4) != 0 {
            q0 &= !(0x7f << 54);
            q1 &= 0x0000_07ff_0000_ffff;
        }
        if !guest.giov && c.below(4) != 0 {
            q0 &= !(1 << 54);
        }
        if !context.host_dirty && c.below(4) != 0 {
            q0 &= !(1 << 8);
        }
        if !context.host_accessed && c.below(4) != 0 {
            q0 &= !(3 << 7);
        }
        let with_pasid = c.below(4) != 0;
        let pasid = if c.rarely(12) {
            PASIDS[c.below(8) as usize]
        } else {
            pasid
        };
        let pasid = Pasid::new(pasid as u32)
            .unwrap()
            .with_execute(c.rarely(70))
            .with_privileged(c.rarely(70));
        let far = c.rarely(10).then(|| c.word());
        let offset = c.below(16) << 8 | c.byte();
        let mut iova = far.unwrap_or(iova | offset);
        if !with_pasid && (0xfee0_0000..=0xfeef_ffff).contains(&iova) {
            iova = 0;
        }
        Self {
            context,
            entry: DmaEntry::new(DteQ0::from_bits(q0), DteQ1::from_bits(q1))
                .with_guest_paging_mode(paging_mode),
            request: Request {
                device_id: DEVICE,
                iova,
                len: 1,
                access: [
                    Access::Read,
                    Access::Write,
                    Access::Read,
                    Access::Write,
                    Access::Atomic,
                ][c.below(5) as usize],
                kind: if c.rarely(50) {
                    RequestKind::TranslationRequest
                } else {
                    RequestKind::Untranslated
                },
                pasid: with_pasid.then_some(pasid),
            },
            words: builder.words,
        }
    }

    fn input(&self) -> Input {
        let WalkContext { guest, .. } = self.context;
        let Request { access, pasid, .. } = self.request;
        Input {
            host_levels: self.context.host_levels.into(),
            gt_sup: guest.supported,
            gt_en: guest.enabled,
            gio_sup: guest.giov,
            guest_levels: guest.levels.into(),
            gcr3_levels: guest.gcr3_levels.into(),
            max_pasid: guest.max_pasid.into(),
            gcr3_trp_mode: guest.gcr3_root_is_gpa,
            nx_sup: guest.no_execute,
            ga_update: guest.accessed,
            gd_update: guest.dirty,
            ha_sup: self.context.host_accessed,
            hd_sup: self.context.host_dirty,
            q0: self.entry.q0.into_bits(),
            q1: self.entry.q1.into_bits(),
            guest_paging_mode: self.entry.guest_paging_mode.into(),
            device: DEVICE.0.into(),
            iova: self.request.iova,
            read: access != Access::Write,
            write: access != Access::Read,
            pasid: pasid.map(|pasid| pasid.value().into()),
            execute: pasid.is_some_and(Pasid::execute),
            privileged: pasid.is_some_and(Pasid::privileged),
            at: u64::from(self.request.kind == RequestKind::TranslationRequest),
        }
    }

    fn translate<M: amdvi_regs::PhysMemory>(&self, memory: &M) -> Result<Span, Fault> {
        translate(&self.context, &self.entry, &self.request, memory)
    }
}

fn as_output(result: &Result<Span, Fault>) -> Output {
    match result {
        Ok(span) => {
            let (page, guest) = match span.target {
                Target::Identity(_) => (0, None),
                Target::Page(leaf) => (1u128 << leaf.shift, leaf.guest),
            };
            Output::At {
                gpa: span.gpa,
                readable: span.permissions.contains(Permissions::READ),
                writable: span.permissions.contains(Permissions::WRITE),
                executable: guest.is_some_and(|guest| guest.execute),
                page,
                guest_page: guest.map_or(0, |guest| 1 << guest.shift),
            }
        }
        Err(fault) => Output::Aborted(fault.event.map(|event| event.bits())),
    }
}

fn config() -> ProptestConfig {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig {
            cases: 4096,
            ..config
        },
    }
}

/// Words in the order of the loads, wherever they go, for engine and model alike.
struct Sequence<'a> {
    words: &'a [u64],
    used: usize,
}

impl Words for Sequence<'_> {
    fn load(&mut self, _: u64) -> Option<u64> {
        self.used += 1;
        self.words.get(self.used - 1).copied()
    }
    fn store(&mut self, address: u64, _: u64) {
        panic!("nothing is to be marked, least of all {address:#x}");
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 160)
}

proptest! {
    #![proptest_config(config())]

    /// Address, permissions, sizes, the event bit for bit, and every accessed and dirty bit.
    #[test]
    fn the_engine_agrees_with_the_literal_model(bytes in bytes()) {
        let case = Case::new(&bytes);
        let memory = MarkMemory::new(case.words.clone());
        let result = case.translate(&memory);
        let mut words = case.words.clone();
        let expected = byte(&case.input(), &mut words);
        prop_assert_eq!(as_output(&result), expected, "{:x?}", result);
        prop_assert_eq!(memory.words(), words);
        prop_assert!(memory.take_loads().len() <= MAX_LOADS);
        prop_assert!(memory.take_attempts() <= MAX_EXCHANGES);
        if let Ok(span) = result && case.request.kind == RequestKind::Untranslated {
            prop_assert!(span.permissions.contains(case.request.access.needs()));
        }
        // A second time nothing is left to be marked.
        memory.take_marks();
        let again = case.translate(&memory);
        if result.is_ok() {
            prop_assert_eq!(as_output(&again), expected);
            prop_assert_eq!(memory.take_marks(), vec![]);
        }
    }

    /// Every load may return something else. The model sees the same sequence, so an entry that was
    /// loaded twice, or used in another form than it was checked, would show.
    #[test]
    fn tables_that_change_at_every_load_are_each_word_used_once(
        bytes in bytes(),
        seeds in proptest::collection::vec((any::<u64>(), 0u8..16), MAX_LOADS + 4),
    ) {
        let mut case = Case::new(&bytes);
        case.context.guest.accessed = false;
        case.context.guest.dirty = false;
        case.entry.q0 = case.entry.q0.with_had(0);
        // Plausible as a GCR3 entry, a guest's entry and a host's, by turns as they are needed.
        let words: Vec<u64> = seeds.iter().map(|(word, shape)| {
            let address = word & 0x000f_ffff_ffff_f000;
            match shape {
                0 => *word,
                1..=6 => address | 1,
                7..=11 => address | 7 | 3 << 61,
                _ => address | PRESENT_RW | (word & 7) << 9,
            }
        }).collect();
        let memory = ShiftingMemory::new(words.clone());
        let result = case.translate(&memory);
        let mut sequence = Sequence { words: &words, used: 0 };
        let expected = byte(&case.input(), &mut sequence);
        prop_assert_eq!(as_output(&result), expected);
        prop_assert_eq!(memory.loads(), sequence.used);
        prop_assert!(memory.loads() <= MAX_LOADS);
    }

    /// A guest that changes entries while they are marked gets a result of one of its words, within the
    /// bound.
    #[test]
    fn entries_that_change_while_they_are_marked_end_within_the_bound(
        bytes in bytes(),
        bit in 0u32..64,
        times in 0usize..200,
    ) {
        let case = Case::new(&bytes);
        let memory = MarkMemory::new(case.words.clone());
        memory.race(1 << bit, times);
        let result = case.translate(&memory);
        prop_assert!(memory.take_loads().len() <= MAX_LOADS);
        prop_assert!(memory.take_attempts() <= MAX_EXCHANGES);
        for (at, before, after) in memory.take_marks() {
            prop_assert_eq!(after & !(ACCESSED | DIRTY), before & !(ACCESSED | DIRTY), "{:#x}", at);
        }
        if let Ok(span) = result && case.request.kind == RequestKind::Untranslated {
            prop_assert!(span.permissions.contains(case.request.access.needs()));
        }
    }
}

/// The generator is worth nothing if its cases all fail early: each outcome must be common.
#[test]
fn the_random_cases_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::<String, u32>::new();
    let mut most = 0;
    for _ in 0..20_000 {
        let case = Case::new(&bytes().new_tree(&mut runner).unwrap().current());
        let memory = MarkMemory::new(case.words.clone());
        let result = case.translate(&memory);
        most = most.max(memory.take_loads().len());
        let outcome = match result {
            Ok(Span {
                target: Target::Page(leaf),
                ..
            }) => {
                let guest = leaf.guest.map(|guest| guest.shift);
                format!("page {} {guest:?}", leaf.shift)
            }
            Ok(_) => "identity".to_owned(),
            Err(fault) => {
                let name = format!("{:?}", fault.reason);
                let name = name.split([' ', '(']).next().unwrap();
                let stage = format!("{:?}", fault.stage);
                format!("{} {name}", stage.split([' ', '{']).next().unwrap())
            }
        };
        *seen.entry(outcome).or_default() += 1;
    }
    println!("{seen:#?}\nmost loads: {most}");
    for outcome in [
        "identity",
        "page 12 None",
        "page 12 Some(12)",
        "page 12 Some(21)",
        "page 12 Some(30)",
        "page 21 Some(21)",
        "page 21 Some(30)",
        "page 30 Some(30)",
        "Request IllegalDte",
        "Request TranslationNotValid",
        "Request PasidNotAllowed",
        "Request Permission",
        "Guest PasidTooLarge",
        "Guest NotCanonical",
        "Guest Gcr3NotValid",
        "Guest Gcr3ReservedBits",
        "Guest NotPresent",
        "Guest ReservedEntryBits",
        "Guest Permission",
        "Guest TableUnreadable",
        "Host NotPresent",
        "Host Permission",
        "Host ReservedEntryBits",
        "Host AddressTooWide",
        "Host TableUnreadable",
        "Host NextLevel",
    ] {
        assert!(
            seen.get(outcome).is_some_and(|count| *count >= 3),
            "{outcome}: {seen:#?}"
        );
    }
    assert!(most >= 50, "deep nested walks: {most}");
}
