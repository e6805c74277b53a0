//! The engine against the literal model, over random tables; and over memory that is pure malice.

mod common;

use amdvi_dma::{
    Access, AddressClass, DmaEntry, Exclusion, Fault, HOST_LOADS, Permissions, Reason, Request,
    RequestKind, Span, Target, WalkContext, check_dte, classify, spans, translate,
};
use amdvi_regs::dte::{DteQ0, DteQ1};
use common::model::{Input, Output, byte};
use common::*;
use proptest::prelude::*;

/// One entry on the way down.
#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    skip: u8,
    ones: u8,
    ir: bool,
    iw: bool,
    odd_bit: Option<u32>,
    page: u64,
}

/// A translation to be entered into the tables: indices from level 1 up, and its entries from the
/// top down.
#[derive(Clone, Debug)]
struct Path {
    indices: [u64; 6],
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Case {
    context: WalkContext,
    q0: u64,
    q1: u64,
    paths: Vec<Path>,
    iova: u64,
    len: u64,
    access: Access,
    kind: RequestKind,
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![4 => Just(Access::Read), 4 => Just(Access::Write), 1 => Just(Access::Atomic)]
}

fn kind() -> impl Strategy<Value = RequestKind> {
    prop_oneof![
        8 => Just(RequestKind::Untranslated),
        1 => Just(RequestKind::TranslationRequest),
        1 => Just(RequestKind::Translated),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (
        0u8..36,
        prop_oneof![9 => Just(0u8), 1 => 1u8..5],
        0u8..41,
        proptest::bool::weighted(0.93),
        proptest::bool::weighted(0.88),
        proptest::option::weighted(0.05, 0u32..64),
        0u64..1 << 28,
    )
        .prop_map(|(kind, skip, ones, ir, iw, odd_bit, page)| Step {
            kind,
            skip,
            ones,
            ir,
            iw,
            odd_bit,
            page: page << 12,
        })
}

fn path() -> impl Strategy<Value = Path> {
    let index = prop_oneof![3 => Just(0u64), 1 => Just(1), 1 => Just(511), 2 => 0u64..512];
    (
        proptest::array::uniform6(index),
        proptest::collection::vec(step(), 6),
    )
        .prop_map(|(indices, steps)| Path { indices, steps })
}

impl Path {
    fn iova(&self) -> u64 {
        // The sixth index loses its two upper bits, as there are only seven.
        (0..6).fold(0, |iova, n| iova | self.indices[n] << (12 + 9 * n))
    }

    fn enter(&self, memory: &mut TestMemory, mode: u8, next_table: &mut u64) {
        let iova = self.iova();
        let (mut level, mut table) = (mode, ROOT);
        for step in &self.steps {
            let at = slot(table, level, iova);
            let permissions = u64::from(step.ir) << 61 | u64::from(step.iw) << 62;
            let odd = step.odd_bit.map_or(0, |n| 1u64 << n);
            let default = u64::from(shift(level)) - 12;
            let word = match step.kind {
                0 => 0,
                1 => pde(level, ROOT),
                2 => pde(level.saturating_sub(1), UNBACKED + step.page),
                // A size that may be one of any level, then one that suits this.
                3 => {
                    1 | 7 << 9
                        | step.page & !((2 << (u64::from(step.ones) + 12)) - 1)
                        | ((1 << step.ones) - 1) << 12
                }
                4..=6 => {
                    let ones = (default + u64::from(step.ones) % 8).min(39);
                    1 | 7 << 9
                        | (step.page << 8) & !((2 << (ones + 12)) - 1)
                        | ((1 << ones) - 1) << 12
                }
                7..=9 => 1 | step.page,
                _ if level > 1 => {
                    let next = (level - 1).saturating_sub(step.skip).max(1);
                    let existing = memory.peek(at).unwrap_or(0);
                    if existing & 1 == 1 && existing >> 9 & 7 == u64::from(next) {
                        // Another path came this way: share its table.
                        table = existing & 0x000f_ffff_ffff_f000;
                    } else {
                        *next_table += 0x1000;
                        table = *next_table;
                        let word = 1 | permissions | u64::from(next) << 9 | table;
                        memory.set(at, word ^ odd);
                    }
                    level = next;
                    continue;
                }
                _ => 1 | step.page,
            };
            memory.set(at, (word & 0x000f_ffff_ffff_ffff | permissions) ^ odd);
            return;
        }
    }
}

prop_compose! {
    fn case()(
        host_levels in prop_oneof![1 => Just(0u8), 1 => Just(4), 1 => Just(5), 12 => Just(6)],
        va_bits in prop_oneof![3 => Just(0u8), 1 => 12u8..70],
        switches in proptest::array::uniform4(proptest::bool::weighted(0.1)),
        exclusion in proptest::option::weighted(0.3, (0u64..64, 0u64..64, any::<bool>())),
        mode in prop_oneof![1 => 0u8..8, 6 => 1u8..7],
        valid in proptest::array::uniform4(proptest::bool::weighted(0.95)),
        q0_odd in proptest::option::weighted(0.03, 0u32..64),
        q1_odd in proptest::option::weighted(0.1, 0u32..64),
        q1 in (any::<u16>(), any::<bool>(), 0u8..4, 0u8..4, any::<bool>()),
        paths in proptest::collection::vec(path(), 1..5),
        pick in any::<prop::sample::Index>(),
        offset in 0u64..0x2000,
        special in proptest::option::weighted(0.1, prop_oneof![
            0xfedf_f000u64..0xfef0_1000,
            0xfc_ffff_f000u64..0xfd_0000_1000,
            prop::sample::select(vec![
                0xfd_f800_0000u64, 0xfd_f900_0000, 0xfd_f910_0000, 0xfd_f920_0000, 0xfd_fb00_0000,
                0xfd_fc00_0000, 0xfd_fe00_0000, 0xfe_0000_0000, 0xfe_2000_0000, 0x100_0000_0000,
            ]).prop_flat_map(|edge| edge - 0x1000..edge + 0x1000),
        ]),
        far in proptest::option::weighted(0.03, any::<u64>()),
        len in prop_oneof![3 => 0u64..64, 2 => 0u64..0x5000, 1 => any::<u64>()],
        access in access(),
        kind in kind(),
    ) -> Case {
        let context = WalkContext {
            iommu_enabled: !switches[0],
            host_levels,
            va_bits,
            eph_sup: switches[1],
            ht_range_ignore: switches[2],
            exclusion: exclusion.map(|(first, last, allow_all)| Exclusion {
                first: first << 12,
                last: last << 12 | 0xfff,
                allow_all,
            }),
            ..WalkContext::default()
        };
        let q0 = q0(mode).with_v(valid[0]).with_tv(valid[1]).with_ir(valid[2]).with_iw(valid[3]);
        let (domain, i, sys_mgt, io_ctl, ex) = q1;
        let q1 = DteQ1::new()
            .with_domain_id(domain)
            .with_i(i)
            .with_sys_mgt(sys_mgt)
            .with_io_ctl(io_ctl)
            .with_ex(ex);
        // Mostly inside the width of the mode, so that the walk gets somewhere.
        let width = [0, 21, 30, 39, 48, 57, 64, 64][usize::from(mode)];
        let mapped = paths[pick.index(paths.len())].iova() & ((1u128 << width) - 1) as u64;
        let iova = far.or(special).unwrap_or(mapped.wrapping_add(offset));
        Case {
            context,
            q0: q0.into_bits() ^ q0_odd.map_or(0, |n| 1 << n),
            q1: q1.into_bits() ^ q1_odd.map_or(0, |n| 1 << n),
            paths,
            iova,
            len,
            access,
            kind,
        }
    }
}

impl Case {
    fn memory(&self) -> TestMemory {
        let mut memory = TestMemory::new();
        let mode = DteQ0::from_bits(self.q0).mode();
        let mut next_table = ROOT;
        if (1..=6).contains(&mode) {
            for path in &self.paths {
                path.enter(&mut memory, mode, &mut next_table);
            }
        }
        memory
    }

    fn request(&self) -> Request {
        Request {
            device_id: DEVICE,
            iova: self.iova,
            len: self.len,
            access: self.access,
            kind: self.kind,
            pasid: None,
        }
    }

    fn input(&self, iova: u64) -> Input {
        Input {
            iommu_en: self.context.iommu_enabled,
            levels: u64::from(self.context.host_levels),
            va_size: match self.context.va_bits {
                0 | 64.. => 0,
                bits => u64::from(bits),
            },
            eph_sup: self.context.eph_sup,
            ht_range_ignore: self.context.ht_range_ignore,
            exclusion: self
                .context
                .exclusion
                .map(|e| (e.first, e.last, e.allow_all)),
            q0: self.q0,
            q1: self.q1,
            device: u64::from(DEVICE.0),
            iova,
            read: self.access != Access::Write,
            write: self.access != Access::Read,
            at: match self.kind {
                RequestKind::Untranslated => 0,
                RequestKind::TranslationRequest => 1,
                RequestKind::Translated => 2,
            },
        }
    }

    fn translate<M: amdvi_regs::PhysMemory>(&self, memory: &M) -> Result<Span, Fault> {
        translate(
            &self.context,
            &DmaEntry::new(DteQ0::from_bits(self.q0), DteQ1::from_bits(self.q1)),
            &self.request(),
            memory,
        )
    }
}

/// The engine's answer for the byte at `offset` of its span, in the model's terms.
fn as_output(result: &Result<Span, Fault>, offset: u64) -> Output {
    match result {
        Ok(span) => Output::At {
            gpa: u128::from(span.gpa) + u128::from(offset),
            readable: span.permissions.contains(Permissions::READ),
            writable: span.permissions.contains(Permissions::WRITE),
            page: match span.target {
                Target::Identity(_) => None,
                Target::Page(leaf) => Some(1 << leaf.shift),
            },
        },
        Err(fault) => Output::Aborted {
            event: fault.event.map(|event| event.bits()),
            only_first: fault.suppress_after_first,
        },
    }
}

/// More cases than usual, and as many as PROPTEST_CASES says for a long run.
fn config() -> ProptestConfig {
    // A failure prints its minimal case; files beside the sources would be one person's history.
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig {
            cases: 2048,
            ..config
        },
    }
}

proptest! {
    #![proptest_config(config())]

    /// The first byte, the last and one in the middle of every span are where the model has them,
    /// with its permissions and page size; a fault has its event, bit for bit.
    #[test]
    fn the_engine_agrees_with_the_literal_model(case in case()) {
        let memory = case.memory();
        let result = case.translate(&memory);
        let loads = memory.take_loads();
        prop_assert!(loads.len() <= HOST_LOADS);

        if case.len > 1 && case.iova.checked_add(case.len - 1).is_none() {
            // A whole-request rule, outside the model of a byte.
            prop_assert_eq!(result.unwrap_err().reason, Reason::AddressOverflow);
            prop_assert_eq!(loads.len(), 0);
            return Ok(());
        }
        let mut entries = Vec::new();
        let expected = byte(&case.input(case.iova), &mut |gpa| {
            entries.push(gpa);
            memory.peek(gpa)
        });
        prop_assert_eq!(as_output(&result, 0), expected);
        prop_assert_eq!(&loads, &entries, "the entries of the walk, each once, and no others");
        if let Ok(span) = &result {
            prop_assert_eq!(span.iova, case.iova);
            prop_assert!(span.len <= case.len && (span.len > 0 || case.len == 0));
            if span.len > 0 {
                for offset in [span.len / 2, span.len - 1] {
                    // The same entries map the whole page: a guest that does not replicate a
                    // NextLevel=7 entry gets what the slot of the first byte says.
                    let mut entries = loads.iter().map(|gpa| memory.peek(*gpa).unwrap());
                    let expected =
                        byte(&case.input(case.iova + offset), &mut |_| entries.next());
                    prop_assert_eq!(as_output(&result, offset), expected);
                }
            }
            if let Target::Page(leaf) = span.target {
                prop_assert!(leaf.iova <= case.iova);
                prop_assert!(case.iova + span.len.saturating_sub(1) <= leaf.last());
                prop_assert_eq!(leaf.gpa + (case.iova - leaf.iova), span.gpa);
            }
            if span.len < case.len {
                // It did not end without a reason: the page ends, or the meaning of addresses.
                let next = case.iova + span.len;
                let ex = DteQ1::from_bits(case.q1).ex();
                let edge = classify(&case.context, ex, case.iova).1.wrapping_add(1);
                let window = [0xfee0_0000, 0xfef0_0000].contains(&next);
                let page_end = matches!(span.target, Target::Page(leaf) if leaf.last() == next - 1);
                let width = case.context.va_bits;
                let too_wide = (1..64).contains(&width) && next == 1 << width;
                prop_assert!(page_end || edge == next || window || too_wide);
            }
        }
    }

    /// The spans of a request are its bytes, in order, each as the model has it.
    #[test]
    fn spans_cover_the_request_up_to_the_first_fault(case in case()) {
        let memory = case.memory();
        let request = Request { len: case.len % 0x9000, ..case.request() };
        prop_assume!(request.iova.checked_add(request.len).is_some());
        let (q0, q1) = (DteQ0::from_bits(case.q0), DteQ1::from_bits(case.q1));
        let mut at = request.iova;
        let mut faulted = false;
        for result in spans(&case.context, DmaEntry::new(q0, q1), request, &memory) {
            prop_assert!(!faulted, "went on after a fault");
            let expected = byte(&case.input(at), &mut |gpa| memory.peek(gpa));
            prop_assert_eq!(as_output(&result, 0), expected);
            match result {
                Ok(span) => {
                    prop_assert_eq!(span.iova, at);
                    at += span.len;
                }
                Err(_) => faulted = true,
            }
        }
        prop_assert!(faulted || at == request.iova + request.len);
    }

    /// Every load may return something else, wherever it goes. The model sees the same sequence, so
    /// an entry that was loaded twice, or used in another form than it was checked, would show.
    #[test]
    fn tables_that_change_at_every_load_are_each_word_used_once(
        case in case(),
        words in proptest::collection::vec((any::<u64>(), 0u8..8), 0..8),
    ) {
        let words: Vec<u64> = words
            .into_iter()
            .map(|(word, shape)| match shape {
                // Raw words rarely pass the checks: make most of them plausible.
                0 => word,
                1 => word & !(0x7f << 52) | 1,
                _ => word & !(0x1ff << 52) & !(7 << 9) | PRESENT_RW | (word >> 3) & 0x600,
            })
            .collect();
        let memory = ShiftingMemory::new(words.clone());
        let result = case.translate(&memory);
        prop_assert!(memory.loads() <= HOST_LOADS);
        if case.len <= 1 || case.iova.checked_add(case.len - 1).is_some() {
            let mut used = 0;
            let expected = byte(&case.input(case.iova), &mut |_| {
                used += 1;
                words.get(used - 1).copied()
            });
            prop_assert_eq!(as_output(&result, 0), expected);
            prop_assert_eq!(memory.loads(), used);
        }
    }

    /// Nothing that a guest or a device chooses makes the engine panic.
    #[test]
    fn arbitrary_input_neither_panics_nor_loads_more_than_the_bound(
        q0 in any::<u64>(),
        q1 in any::<u64>(),
        mask in any::<bool>(),
        iova in any::<u64>(),
        len in any::<u64>(),
        levels in any::<u8>(),
        va_bits in any::<u8>(),
        exclusion in proptest::option::of((any::<u64>(), any::<u64>(), any::<bool>())),
        access in access(),
        kind in kind(),
        words in proptest::collection::vec(any::<u64>(), 8),
    ) {
        let context = WalkContext {
            iommu_enabled: true,
            host_levels: levels,
            va_bits,
            eph_sup: true,
            exclusion: exclusion.map(|(first, last, allow_all)| Exclusion { first, last, allow_all }),
            ..WalkContext::default()
        };
        let q0 = DteQ0::from_bits(if mask { q0 & 0x600f_ffff_ffff_fe00 | 3 } else { q0 });
        let q1 = DteQ1::from_bits(if mask { q1 & 0x0000_03ff_0000_ffff } else { q1 });
        let memory = ShiftingMemory::new(words.iter().map(|word| word | 1).collect());
        let request = Request { device_id: DEVICE, iova, len, access, kind, pasid: None };
        let result = translate(&context, &DmaEntry::new(q0, q1), &request, &memory);
        prop_assert!(memory.loads() <= HOST_LOADS);
        if let Ok(span) = result {
            prop_assert!(span.len <= len);
            prop_assert!(
                kind == RequestKind::TranslationRequest
                    || span.permissions.contains(access.needs())
            );
        }
        if q0.v() && check_dte(&context, &DmaEntry::new(q0, q1)).is_err() {
            prop_assert!(result.is_err());
        }
        let (class, last) = classify(&context, q1.ex(), iova);
        prop_assert!(last >= iova);
        prop_assert_eq!(classify(&context, q1.ex(), last).0, class);
        if class == AddressClass::MsiWindow {
            prop_assert!(result.is_err());
        }
    }
}

/// The generator is worth nothing if its cases all fail early: each outcome must be common.
#[test]
fn the_random_cases_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    let mut levels = [0u32; 7];
    for _ in 0..20_000 {
        let case = case().new_tree(&mut runner).unwrap().current();
        let memory = case.memory();
        let result = case.translate(&memory);
        levels[memory.take_loads().len()] += 1;
        let outcome = match result {
            Ok(Span {
                target: Target::Page(leaf),
                ..
            }) => format!("page {}", leaf.shift),
            Ok(Span {
                target: Target::Identity(why),
                ..
            }) => format!("{why:?}"),
            Err(fault) => {
                let name = format!("{:?}", fault.reason);
                name.split([' ', '(']).next().unwrap().to_owned()
            }
        };
        *seen.entry(outcome).or_default() += 1;
    }
    println!("{seen:#?}\nloads: {levels:?}");
    for outcome in [
        "page 12",
        "page 13",
        "page 21",
        "page 22",
        "page 30",
        "page 39",
        "page 48",
        "page 57",
        "IommuDisabled",
        "DteInvalid",
        "Excluded",
        "ModeZero",
        "PreTranslated",
        "AddressOverflow",
        "InterruptWindow",
        "InvalidRequest",
        "SpecialAddress",
        "IllegalDte",
        "TranslationNotValid",
        "AddressTooWide",
        "NotPresent",
        "ReservedEntryBits",
        "NextLevel",
        "SkippedBits",
        "PageSize",
        "Permission",
        "TableUnreadable",
    ] {
        assert!(
            seen.get(outcome).is_some_and(|count| *count >= 3),
            "{outcome}: {seen:#?}"
        );
    }
    assert!(
        levels.iter().all(|count| *count >= 20),
        "walks of every length: {levels:?}"
    );
}
