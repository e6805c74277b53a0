//! The rules of the host page table walk (48882 §2.2.3), a test each.

mod common;

use amdvi_dma::{Access, MAX_LOADS, Permissions, Reason, Target, WalkContext};
use common::flag::{MASTER_ABORT, PE, PR, RW, RZ};
use common::*;

/// An IOVA with a different index in each level, and an offset.
const IOVA: u64 =
    0x0a << 57 | 0x055 << 48 | 0x144 << 39 | 0x033 << 30 | 0x122 << 21 | 0x011 << 12 | 0x678;
const WIDTH: [u32; 7] = [0, 21, 30, 39, 48, 57, 64];

/// [`IOVA`] cut to what `mode` levels translate.
fn iova(mode: u8) -> u64 {
    IOVA & (u64::MAX >> (64 - WIDTH[mode as usize]))
}

#[test]
fn next_level_0_is_a_leaf_of_the_default_size_at_every_level_of_every_mode() {
    for mode in 1..=6 {
        for level in 1..=mode {
            let mut memory = TestMemory::new();
            let size = 1u64 << shift(level);
            // Beyond bit 51 a page has no address bits of its own.
            let page = if level <= 4 { 5 * size } else { 0 };
            let slots = map(&mut memory, mode, level, iova(mode), pte(page));
            let span = dma(
                &context(),
                q0(mode),
                q1(),
                Access::Read,
                iova(mode),
                &memory,
            )
            .unwrap();
            assert_eq!(
                span.gpa,
                page + iova(mode) % size,
                "mode {mode} level {level}"
            );
            let Target::Page(leaf) = span.target else {
                panic!("{span:?}")
            };
            assert_eq!(u32::from(leaf.shift), shift(level));
            assert_eq!(
                (leaf.iova, leaf.gpa),
                (iova(mode) - iova(mode) % size, page)
            );
            assert_eq!(
                memory.take_loads(),
                slots,
                "one load per level, from the top"
            );
        }
    }
}

#[test]
fn address_bits_below_the_page_size_of_a_next_level_0_leaf_are_ignored() {
    let mut memory = TestMemory::new();
    map(&mut memory, 3, 2, 0x1234_5678, pte(0x4000_0000 | 0x1f_f000));
    let span = dma(&context(), q0(3), q1(), Access::Read, 0x1234_5678, &memory).unwrap();
    assert_eq!(span.gpa, 0x4000_0000 | (0x1234_5678 & 0x1f_ffff));
}

#[test]
fn mode_6_uses_the_seven_top_bits() {
    let mut memory = TestMemory::new();
    let top = u64::MAX - 0xfff;
    let slots = map(&mut memory, 6, 1, top, pte(0x7000));
    assert_eq!(
        slots[0],
        ROOT + 127 * 8,
        "the highest index of the sixth level"
    );
    let span = dma(&context(), q0(6), q1(), Access::Write, top + 0xffc, &memory).unwrap();
    assert_eq!((span.gpa, span.len), (0x7ffc, 4));
}

#[test]
fn an_iova_beyond_the_width_of_the_mode_faults_without_a_load() {
    for mode in 1..=5u8 {
        let mut memory = TestMemory::new();
        map(&mut memory, mode, 1, 0, pte(0x7000));
        for position in WIDTH[mode as usize]..64 {
            let iova = 1u64 << position;
            let result = dma(&context(), q0(mode), q1(), Access::Read, iova, &memory);
            let fault = result.unwrap_err();
            assert_eq!(
                fault.reason,
                Reason::AddressTooWide {
                    bits: WIDTH[mode as usize] as u8
                }
            );
            assert_eq!(
                event(result),
                page_fault(0, iova),
                "mode {mode} bit {position}"
            );
        }
        assert_eq!(memory.take_loads(), []);
    }
}

#[test]
fn an_iova_beyond_the_stated_va_size_faults() {
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 1, 1 << 40, pte(0x7000));
    let narrow = WalkContext {
        va_bits: 40,
        ..context()
    };
    let result = dma(&narrow, q0(4), q1(), Access::Write, 1 << 40, &memory);
    assert_eq!(event(result), page_fault(RW, 1 << 40));
    for va_bits in [0, 41, 64, 255] {
        let wide = WalkContext {
            va_bits,
            ..context()
        };
        assert!(
            dma(&wide, q0(4), q1(), Access::Write, 1 << 40, &memory).is_ok(),
            "{va_bits}"
        );
    }
}

#[test]
fn a_page_that_reaches_beyond_the_stated_va_size_ends_there() {
    let mut memory = TestMemory::new();
    map(&mut memory, 2, 2, 0, pte(0x20_0000)); // 2 MiB
    let narrow = WalkContext {
        va_bits: 14,
        ..context()
    };
    let long = amdvi_dma::Request {
        len: 0x2000,
        ..request(Access::Read, 0x3000)
    };
    let found: Vec<_> = amdvi_dma::spans(
        &narrow,
        amdvi_dma::DmaEntry::new(q0(2), q1()),
        long,
        &memory,
    )
    .collect();
    assert_eq!(found.len(), 2);
    assert_eq!(
        (found[0].unwrap().gpa, found[0].unwrap().len),
        (0x20_3000, 0x1000)
    );
    assert_eq!(
        found[1].unwrap_err().reason,
        Reason::AddressTooWide { bits: 14 }
    );
}

#[test]
fn a_pde_may_skip_levels_whose_iova_bits_are_zero() {
    for from in 3..=6u8 {
        for to in 1..from - 1 {
            let mut memory = TestMemory::new();
            // Index 1 at both tables, 0 in between.
            let iova = (1u64 << shift(from)) | (1 << shift(to)) | 0x123;
            memory.set(slot(ROOT, from, iova), pde(to, 0x20_0000));
            memory.set(slot(0x20_0000, to, iova), pte(0));
            let span = dma(&context(), q0(from), q1(), Access::Read, iova, &memory).unwrap();
            assert_eq!(span.gpa, 0x123, "{from} to {to}");
            assert_eq!(memory.take_loads().len(), 2);

            // Any one bit in between is an invalid level encoding, found before the next load.
            for position in shift(to + 1)..shift(from) {
                let bad = iova | 1 << position;
                let result = dma(&context(), q0(from), q1(), Access::Read, bad, &memory);
                assert_eq!(
                    result.as_ref().unwrap_err().reason,
                    Reason::SkippedBits {
                        level: from,
                        next: to
                    }
                );
                assert_eq!(event(result), page_fault(PR, bad));
                assert_eq!(memory.take_loads().len(), 1);
            }
        }
    }
}

#[test]
fn next_level_must_be_lower_than_the_level() {
    for level in 1..=6u8 {
        for next in 1..=6u8 {
            let mut memory = TestMemory::new();
            memory.set(ROOT, pde(next, 0x20_0000));
            memory.set(0x20_0000, pte(0x7000));
            let result = dma(&context(), q0(level), q1(), Access::Write, 0, &memory);
            if next < level {
                assert!(result.is_ok(), "{level} to {next}");
            } else {
                assert_eq!(
                    result.as_ref().unwrap_err().reason,
                    Reason::NextLevel { level, next }
                );
                assert_eq!(event(result), page_fault(PR | RW, 0));
                assert_eq!(
                    memory.take_loads().pop(),
                    Some(ROOT),
                    "the bad table is not touched"
                );
            }
        }
    }
}

#[test]
fn next_level_7_sizes_lie_strictly_between_the_defaults_of_the_level_and_the_next() {
    // Default sizes of levels 1-6, log2; above the sixth there is none.
    let default = [0, 12, 21, 30, 39, 48, 57, 66];
    let mut valid = 0;
    for level in 1..=6u8 {
        for ones in 0..=40u32 {
            let size = 13 + ones;
            let address = ((1u128 << ones) - 1) << 12;
            // A page number above the size bits, where there is room for one.
            let page = if size < 52 { 1u64 << size } else { 0 };
            let entry = PRESENT_RW | 7 << 9 | address as u64 | page;
            let mut memory = TestMemory::new();
            memory.set(ROOT, entry);
            let result = dma(&context(), q0(level), q1(), Access::Read, 0x234, &memory);
            let between = size > default[level as usize] && size < default[level as usize + 1];
            if between && ones < 40 {
                valid += 1;
                let span = result.unwrap();
                let Target::Page(leaf) = span.target else {
                    panic!("{span:?}")
                };
                assert_eq!(u32::from(leaf.shift), size, "level {level}");
                assert_eq!((leaf.iova, leaf.gpa, span.gpa), (0, page, page + 0x234));
            } else {
                assert_eq!(
                    result.as_ref().unwrap_err().reason,
                    Reason::PageSize { level }
                );
                assert_eq!(event(result), page_fault(PR, 0x234));
            }
        }
    }
    // 13-20, 22-29, 31-38, 40-47, 49-52.
    assert_eq!(valid, 8 + 8 + 8 + 8 + 4);
}

#[test]
fn next_level_7_replicas_map_their_page_from_every_slot() {
    // 64 KiB from sixteen identical PTEs.
    let mut memory = TestMemory::new();
    for index in 0..16 {
        memory.set(
            ROOT + (32 + index) * 8,
            PRESENT_RW | 7 << 9 | 0xab_0000 | 0x7000,
        );
    }
    for offset in [0, 0xfff, 0x1000, 0x8123, 0xfffc] {
        let iova = 32 * 0x1000 + offset;
        let span = dma(&context(), q0(1), q1(), Access::Write, iova, &memory).unwrap();
        assert_eq!(span.gpa, 0xab_0000 + offset);
        assert_eq!(
            span.len,
            (0x1_0000 - offset).min(4),
            "a span ends with the page, not the slot"
        );
    }
}

#[test]
fn permissions_are_anded_from_the_dte_through_every_entry() {
    // Three levels and the DTE: each of the four has any of the four combinations.
    for combination in 0..256u64 {
        let of = |n: u64| combination >> (2 * n) & 3;
        let mut memory = TestMemory::new();
        let slots = map(&mut memory, 3, 1, 0x1000, pte(0x7000));
        for (n, slot) in slots.iter().enumerate() {
            let word = memory.peek(*slot).unwrap() & !(3 << 61) | of(n as u64) << 61;
            memory.set(*slot, word);
        }
        let q0 = q0(3).with_ir(of(3) & 1 != 0).with_iw(of(3) & 2 != 0);
        let allowed = of(0) & of(1) & of(2) & of(3);
        for (access, needs, rw) in [
            (Access::Read, 1, 0),
            (Access::Write, 2, RW),
            (Access::Atomic, 3, RW),
        ] {
            let result = dma(&context(), q0, q1(), access, 0x1008, &memory);
            if allowed & needs == needs {
                let span = result.unwrap();
                assert_eq!(u64::from(span.permissions.bits()), allowed);
                assert_eq!(span.gpa, 0x7008);
            } else {
                assert_eq!(
                    event(result),
                    page_fault(PR | PE | rw, 0x1008),
                    "{combination:#x}"
                );
            }
        }
    }
}

#[test]
fn the_first_entry_that_denies_ends_the_walk() {
    let mut memory = TestMemory::new();
    let slots = map(&mut memory, 4, 1, 0x1000, pte(0x7000));
    memory.set(slots[1], memory.peek(slots[1]).unwrap() & !(1 << 62));
    let fault = dma(&context(), q0(4), q1(), Access::Write, 0x1000, &memory).unwrap_err();
    assert_eq!(fault.reason, Reason::Permission { level: Some(3) });
    assert_eq!(memory.take_loads(), slots[..2]);
}

#[test]
fn an_entry_that_is_not_present_faults_with_pr_0_at_every_level() {
    for level in 1..=6u8 {
        let mut memory = TestMemory::new();
        // All other bits set: with PR=0 they mean nothing.
        map(&mut memory, 6, level, IOVA, !1);
        let result = dma(&context(), q0(6), q1(), Access::Write, IOVA, &memory);
        assert_eq!(
            result.as_ref().unwrap_err().reason,
            Reason::NotPresent { level }
        );
        assert_eq!(event(result), page_fault(RW, IOVA));
    }
}

#[test]
fn each_reserved_bit_of_a_pde_faults_with_pr_and_rz() {
    for level in 2..=6u8 {
        for position in 52..=60 {
            let mut memory = TestMemory::new();
            let slots = map(&mut memory, 6, 1, IOVA, pte(0x7000));
            let slot = slots[usize::from(6 - level)];
            memory.set(slot, memory.peek(slot).unwrap() | 1 << position);
            let result = dma(&context(), q0(6), q1(), Access::Read, IOVA, &memory);
            assert_eq!(
                result.as_ref().unwrap_err().reason,
                Reason::ReservedEntryBits {
                    level,
                    bits: 1 << position
                }
            );
            assert_eq!(event(result), page_fault(PR | RZ, IOVA));
        }
    }
}

#[test]
fn each_reserved_bit_of_a_pte_faults_with_pr_and_rz() {
    for entry in [pte(0), pte(0) | 7 << 9] {
        for position in 52..=58 {
            let mut memory = TestMemory::new();
            map(&mut memory, 3, 1, 0x1000, entry | 1 << position);
            let result = dma(&context(), q0(3), q1(), Access::Write, 0x1000, &memory);
            assert_eq!(
                event(result),
                page_fault(PR | RZ | RW, 0x1000),
                "bit {position}"
            );
        }
    }
}

#[test]
fn a_reserved_bit_is_reported_rather_than_a_missing_permission() {
    let mut memory = TestMemory::new();
    map(&mut memory, 1, 1, 0, 1 | 1 << 52);
    let result = dma(&context(), q0(1), q1(), Access::Write, 0, &memory);
    assert_eq!(event(result), page_fault(PR | RZ | RW, 0));
}

#[test]
fn ignored_bits_of_entries_change_nothing() {
    for position in [1, 2, 3, 4, 5, 6, 7, 8, 63] {
        let mut memory = TestMemory::new();
        for slot in map(&mut memory, 3, 1, 0x1000, pte(0x7000)) {
            memory.set(slot, memory.peek(slot).unwrap() | 1 << position);
        }
        let span = dma(&context(), q0(3), q1(), Access::Write, 0x1000, &memory).unwrap();
        assert_eq!(span.gpa, 0x7000, "bit {position}");
    }
}

#[test]
fn fc_and_u_of_a_pte_are_reported_and_change_no_dma() {
    for (bit, u, fc) in [(59, true, false), (60, false, true)] {
        let mut memory = TestMemory::new();
        map(&mut memory, 3, 1, 0x1000, pte(0x7000) | 1 << bit);
        let span = dma(&context(), q0(3), q1(), Access::Write, 0x1000, &memory).unwrap();
        let Target::Page(leaf) = span.target else {
            panic!("{span:?}")
        };
        assert_eq!(
            (span.gpa, leaf.untranslated_only, leaf.force_coherent),
            (0x7000, u, fc)
        );
    }
}

#[test]
fn an_unreadable_entry_is_a_page_tab_hardware_error_with_its_address() {
    for level in 1..=5u8 {
        let mut memory = TestMemory::new();
        // The entry above the one at `level` points out of memory.
        map(&mut memory, 6, level + 1, IOVA, pde(level, UNBACKED));
        let result = dma(&context(), q0(6), q1(), Access::Write, IOVA, &memory);
        let address = slot(UNBACKED, level, IOVA);
        assert_eq!(
            result.as_ref().unwrap_err().reason,
            Reason::TableUnreadable { gpa: address }
        );
        assert_eq!(
            event(result),
            raw_event(4, RW | MASTER_ABORT, u64::from(DOMAIN), address),
            "bits [63:3] of the entry's address, not of the IOVA"
        );
    }
}

#[test]
fn a_hardware_error_is_logged_although_page_faults_are_suppressed() {
    let memory = TestMemory::new();
    let q0 = q0(1).with_host_pt_root(UNBACKED >> 12);
    let result = dma(
        &context(),
        q0,
        q1().with_sa(true),
        Access::Read,
        0x1000,
        &memory,
    );
    assert!(!result.as_ref().unwrap_err().suppress_after_first);
    assert_eq!(
        event(result),
        raw_event(4, MASTER_ABORT, u64::from(DOMAIN), UNBACKED + 8)
    );
}

#[test]
fn a_translation_loads_each_entry_once_and_six_at_the_most() {
    for mode in 1..=6u8 {
        let mut memory = TestMemory::new();
        let slots = map(&mut memory, mode, 1, iova(mode), pte(0x7000));
        dma(
            &context(),
            q0(mode),
            q1(),
            Access::Read,
            iova(mode),
            &memory,
        )
        .unwrap();
        let loads = memory.take_loads();
        assert_eq!(loads, slots);
        assert_eq!(loads.len(), usize::from(mode));
        assert!(loads.len() <= MAX_LOADS);
    }
}

#[test]
fn a_table_that_points_to_itself_ends_at_the_last_level() {
    // Every entry of the root refers to the root: each level is entered once.
    let mut memory = TestMemory::new();
    memory.set(ROOT, pde(5, ROOT));
    let fault = dma(&context(), q0(6), q1(), Access::Read, 0, &memory).unwrap_err();
    assert_eq!(fault.reason, Reason::NextLevel { level: 5, next: 5 });
    assert_eq!(memory.take_loads().len(), 2);
}

#[test]
fn a_span_ends_with_its_leaf() {
    let mut memory = TestMemory::new();
    // Two adjacent pages whose frames are adjacent too: still two leaves.
    map(&mut memory, 2, 1, 0x1000, pte(0x7000));
    map(&mut memory, 2, 1, 0x2000, pte(0x8000));
    let long = amdvi_dma::Request {
        len: 0x2000,
        ..request(Access::Read, 0x1800)
    };
    let context = context();
    let spans: Vec<_> = amdvi_dma::spans(
        &context,
        amdvi_dma::DmaEntry::new(q0(2), q1()),
        long,
        &memory,
    )
    .collect();
    let flat: Vec<_> = spans
        .iter()
        .map(|span| {
            span.as_ref()
                .map(|span| (span.iova, span.gpa, span.len))
                .map_err(|f| f.reason)
        })
        .collect();
    assert_eq!(
        flat,
        [
            Ok((0x1800, 0x7800, 0x800)),
            Ok((0x2000, 0x8000, 0x1000)),
            Err(Reason::NotPresent { level: 1 }),
        ]
    );
    let faulted = spans[2].unwrap_err();
    assert_eq!(
        faulted.event.unwrap().words(),
        page_fault(0, 0x3000),
        "the address of the page that is missing, once"
    );
}

#[test]
fn an_empty_request_is_checked_like_a_byte() {
    let mut memory = TestMemory::new();
    map(&mut memory, 2, 1, 0x1000, pte(0x7000) & !(1 << 62));
    let empty = |access| amdvi_dma::Request {
        len: 0,
        ..request(access, 0x1ffe)
    };
    let context = context();
    let read: Vec<_> = amdvi_dma::spans(
        &context,
        amdvi_dma::DmaEntry::new(q0(2), q1()),
        empty(Access::Read),
        &memory,
    )
    .collect();
    assert_eq!(read.len(), 1);
    let span = read[0].unwrap();
    assert_eq!(
        (span.gpa, span.len, span.permissions),
        (0x7ffe, 0, Permissions::READ)
    );
    let write: Vec<_> = amdvi_dma::spans(
        &context,
        amdvi_dma::DmaEntry::new(q0(2), q1()),
        empty(Access::Write),
        &memory,
    )
    .collect();
    assert_eq!(write.len(), 1);
    assert!(write[0].is_err());
}

#[test]
fn a_request_beyond_the_end_of_the_address_space_faults_before_any_of_it_is_translated() {
    let mut memory = TestMemory::new();
    let last_page = u64::MAX - 0xfff;
    map(&mut memory, 6, 1, last_page, pte(0x7000));
    let ending = amdvi_dma::Request {
        len: 0x10,
        ..request(Access::Write, u64::MAX - 0xf)
    };
    let span = amdvi_dma::translate(
        &context(),
        &amdvi_dma::DmaEntry::new(q0(6), q1()),
        &ending,
        &memory,
    )
    .unwrap();
    assert_eq!((span.gpa, span.len), (0x7ff0, 0x10));
    memory.take_loads();
    let beyond = amdvi_dma::Request {
        len: 0x11,
        ..ending
    };
    let result = amdvi_dma::translate(
        &context(),
        &amdvi_dma::DmaEntry::new(q0(6), q1()),
        &beyond,
        &memory,
    );
    assert_eq!(result.as_ref().unwrap_err().reason, Reason::AddressOverflow);
    assert_eq!(event(result), page_fault(RW, u64::MAX - 0xf));
    assert_eq!(memory.take_loads(), []);
}
