//! The rules of the Device Table Entry and of events (48882 §2.2.2.1, §2.5), a test each.

mod common;

use amdvi_dma::{
    Access, Bypass, DmaEntry, DteDefect, Permissions, Reason, RequestKind, Target, WalkContext,
};
use amdvi_dma::{Request, translate};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2};
use common::flag::{PE, PR, RW, RZ, TR};
use common::*;

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Atomic];

#[test]
fn iommu_en_0_passes_everything_whatever_the_dte_says() {
    let off = WalkContext {
        iommu_enabled: false,
        ..context()
    };
    let memory = TestMemory::new();
    for access in ACCESSES {
        let all = (DteQ0::from_bits(u64::MAX), DteQ1::from_bits(u64::MAX));
        let span = dma(&off, all.0, all.1, access, 0xfd_0000_0000, &memory).unwrap();
        assert_eq!(span.gpa, 0xfd_0000_0000);
        assert_eq!(span.permissions, Permissions::all());
        assert_eq!(span.target, Target::Identity(Bypass::IommuDisabled));
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn v_0_passes_everything_and_bits_127_1_mean_nothing() {
    let memory = TestMemory::new();
    let q0 = DteQ0::from_bits(!1);
    for access in ACCESSES {
        let span = dma(
            &context(),
            q0,
            DteQ1::from_bits(u64::MAX),
            access,
            0x1234,
            &memory,
        )
        .unwrap();
        assert_eq!(
            (span.gpa, span.target),
            (0x1234, Target::Identity(Bypass::DteInvalid))
        );
        assert_eq!(span.permissions, Permissions::all());
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn v_1_tv_0_blocks_with_an_io_page_fault_and_pr_0() {
    let memory = TestMemory::new();
    // Mode and root mean nothing without TV, an unsupported Mode included.
    for mode in 0..=7 {
        for (access, rw) in [(Access::Read, 0), (Access::Write, RW), (Access::Atomic, RW)] {
            let result = dma(
                &context(),
                q0(mode).with_tv(false),
                q1(),
                access,
                0x1000,
                &memory,
            );
            assert_eq!(
                result.as_ref().unwrap_err().reason,
                Reason::TranslationNotValid
            );
            assert_eq!(event(result), page_fault(rw, 0x1000));
        }
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn mode_0_is_identity_within_ir_and_iw() {
    let memory = TestMemory::new();
    for (ir, iw) in [(false, false), (true, false), (false, true), (true, true)] {
        let q0 = q0(0).with_ir(ir).with_iw(iw);
        for (access, allowed, rw) in [
            (Access::Read, ir, 0),
            (Access::Write, iw, RW),
            (Access::Atomic, ir && iw, RW),
        ] {
            let result = dma(&context(), q0, q1(), access, 0xdead_b000, &memory);
            if allowed {
                let span = result.unwrap();
                assert_eq!(span.gpa, 0xdead_b000);
                assert_eq!(span.target, Target::Identity(Bypass::ModeZero));
                assert_eq!(span.permissions.contains(Permissions::READ), ir);
                assert_eq!(span.permissions.contains(Permissions::WRITE), iw);
            } else {
                assert_eq!(
                    result.as_ref().unwrap_err().reason,
                    Reason::Permission { level: None }
                );
                assert_eq!(event(result), page_fault(PR | PE | rw, 0xdead_b000));
            }
        }
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn mode_7_or_above_hats_is_an_illegal_dte_with_rz_0() {
    let memory = TestMemory::new();
    for host_levels in [0, 4, 5, 6] {
        let context = WalkContext {
            host_levels,
            ..context()
        };
        for mode in 1..=7u8 {
            let q0 = q0(mode).with_host_pt_root(if host_levels == 0 { 0 } else { ROOT >> 12 });
            let result = dma(&context, q0, q1(), Access::Write, 0x1236, &memory);
            let reason = result.as_ref().unwrap_err().reason;
            if mode <= host_levels {
                assert!(matches!(reason, Reason::NotPresent { .. }), "{reason}");
            } else {
                let defect = DteDefect::Mode {
                    mode,
                    max: host_levels,
                };
                assert_eq!(reason, Reason::IllegalDte(defect));
                // Bits [63:2] of the address; no DomainID field.
                assert_eq!(event(result), raw_event(1, RW, 0, 0x1234));
            }
        }
    }
}

#[test]
fn with_host_translation_unavailable_identity_works_and_a_root_is_reserved() {
    let none = WalkContext {
        host_levels: 0,
        ..context()
    };
    let memory = TestMemory::new();
    assert_eq!(
        dma(&none, q0(0), q1(), Access::Read, 0x1000, &memory)
            .unwrap()
            .gpa,
        0x1000
    );
    let rooted = q0(0).with_host_pt_root(1);
    let result = dma(&none, rooted, q1(), Access::Read, 0x1000, &memory);
    assert_eq!(event(result), raw_event(1, RZ, 0, 0x1000));
}

#[test]
fn each_reserved_bit_of_the_dte_is_illegal_with_rz_1() {
    let memory = TestMemory::new();
    let q0_reserved: Vec<u32> = [2, 3, 4, 5, 6, 7, 8, 63]
        .into_iter()
        .chain(52..=60)
        .collect();
    let q1_reserved: Vec<u32> = [106 - 64]
        .into_iter()
        .chain(16..=31)
        .chain(43..=63)
        .collect();
    // With TV=0 too: V alone makes the bits count.
    for tv in [true, false] {
        for n in 0..64 {
            let base = q0(0).with_tv(tv);
            let word = DteQ0::from_bits(base.into_bits() | 1 << n);
            let result = dma(&context(), word, q1(), Access::Read, 0x1000, &memory);
            let illegal = matches!(&result, Err(fault) if matches!(fault.reason, Reason::IllegalDte(DteDefect::ReservedBits { .. })));
            assert_eq!(illegal, q0_reserved.contains(&n), "bit {n}, tv {tv}");
            let loads = memory.take_loads();
            if illegal {
                assert_eq!(event(result), raw_event(1, RZ, 0, 0x1000));
                assert_eq!(loads, []);
            }

            let word = DteQ1::from_bits(q1().into_bits() | 1 << n);
            let result = dma(&context(), base, word, Access::Read, 0x1000, &memory);
            let illegal =
                matches!(&result, Err(fault) if matches!(fault.reason, Reason::IllegalDte(_)));
            assert_eq!(illegal, q1_reserved.contains(&n), "bit {}, tv {tv}", n + 64);
            let loads = memory.take_loads();
            if illegal {
                assert_eq!(event(result), raw_event(1, RZ, 0, 0x1000));
                assert_eq!(loads, []);
            }
        }
    }
}

#[test]
fn ppr_and_gprp_are_reserved_without_ephsup_only() {
    let memory = TestMemory::new();
    let enhanced = WalkContext {
        eph_sup: true,
        ..context()
    };
    for q0 in [q0(0).with_ppr(true), q0(0).with_gprp(true)] {
        assert!(dma(&enhanced, q0, q1(), Access::Read, 0x1000, &memory).is_ok());
        let result = dma(&context(), q0, q1(), Access::Read, 0x1000, &memory);
        assert_eq!(event(result), raw_event(1, RZ, 0, 0x1000));
    }
}

#[test]
fn an_illegal_dte_is_logged_although_page_faults_are_suppressed() {
    let memory = TestMemory::new();
    let q1 = q1().with_sa(true).with_se(true);
    let result = dma(&context(), q0(7), q1, Access::Read, 0x1000, &memory);
    assert!(!result.as_ref().unwrap_err().suppress_after_first);
    assert_eq!(event(result), raw_event(1, 0, 0, 0x1000));
}

#[test]
fn sa_suppresses_every_io_page_fault() {
    let mut memory = TestMemory::new();
    map(&mut memory, 1, 1, 0x1000, pte(0x7000) | 1 << 52);
    map(&mut memory, 1, 1, 0x2000, 1);
    map(&mut memory, 1, 1, 0x3000, pde(3, 0));
    for (sa, se) in [(true, false), (true, true)] {
        let q1 = q1().with_sa(sa).with_se(se);
        for iova in [0, 0x1000, 0x2000, 0x3000, 1 << 40] {
            let fault = dma(&context(), q0(1), q1, Access::Write, iova, &memory).unwrap_err();
            assert_eq!(
                (fault.event, fault.suppress_after_first),
                (None, false),
                "{iova:#x}"
            );
        }
        for q0 in [q0(0).with_tv(false), q0(0).with_iw(false)] {
            let fault = dma(&context(), q0, q1, Access::Write, 0, &memory).unwrap_err();
            assert_eq!((fault.event, fault.suppress_after_first), (None, false));
        }
    }
}

#[test]
fn se_logs_the_first_io_page_fault_only() {
    let memory = TestMemory::new();
    let fault = dma(
        &context(),
        q0(1),
        q1().with_se(true),
        Access::Read,
        0x1000,
        &memory,
    )
    .unwrap_err();
    assert!(fault.suppress_after_first, "the device keeps the state");
    assert_eq!(fault.event.unwrap().words(), page_fault(0, 0x1000));
    let fault = dma(&context(), q0(1), q1(), Access::Read, 0x1000, &memory).unwrap_err();
    assert!(!fault.suppress_after_first);
}

#[test]
fn a_translation_request_logs_no_io_page_fault() {
    let mut memory = TestMemory::new();
    map(&mut memory, 1, 1, 0x1000, pte(0x7000) | 1 << 52);
    let ask = |q0, iova| {
        let kind = RequestKind::TranslationRequest;
        let request = Request {
            kind,
            ..request(Access::Write, iova)
        };
        translate(
            &context(),
            &DmaEntry::new(q0, q1().with_i(true)),
            &request,
            &memory,
        )
    };
    for (q0, iova) in [
        (q0(1), 0),
        (q0(1), 0x1000),
        (q0(1), 1 << 40),
        (q0(1).with_tv(false), 0),
    ] {
        assert_eq!(ask(q0, iova).unwrap_err().event, None);
    }
    // Other events are logged, with TR.
    assert_eq!(event(ask(q0(7), 0x1000)), raw_event(1, RW | TR, 0, 0x1000));
    let unbacked = q0(1).with_host_pt_root(UNBACKED >> 12);
    assert_eq!(
        event(ask(unbacked, 0)),
        raw_event(4, RW | TR | flag::MASTER_ABORT, u64::from(DOMAIN), UNBACKED)
    );
}

#[test]
fn a_translation_request_is_answered_with_what_is_allowed() {
    let mut memory = TestMemory::new();
    map(&mut memory, 2, 1, 0x1000, pte(0x7000) & !(1 << 62));
    map(&mut memory, 2, 1, 0x2000, 1 | 0x8000);
    let ask = |access, iova| {
        let kind = RequestKind::TranslationRequest;
        let request = Request {
            kind,
            ..request(access, iova)
        };
        translate(
            &context(),
            &DmaEntry::new(q0(2), q1().with_i(true)),
            &request,
            &memory,
        )
        .unwrap()
    };
    assert_eq!(ask(Access::Write, 0x1000).permissions, Permissions::READ);
    assert_eq!(ask(Access::Read, 0x2000).permissions, Permissions::empty());
    assert_eq!(ask(Access::Read, 0x2000).gpa, 0x8000);
}

#[test]
fn ats_requests_need_the_i_bit_of_a_valid_dte() {
    let memory = TestMemory::new();
    let ask = |kind, q0, q1| {
        let request = Request {
            kind,
            ..request(Access::Read, 0x1000)
        };
        translate(&context(), &DmaEntry::new(q0, q1), &request, &memory)
    };
    for (q0, q1) in [(q0(0), q1()), (DteQ0::new(), q1().with_i(true))] {
        assert_eq!(
            event(ask(RequestKind::TranslationRequest, q0, q1)),
            raw_event(8, TR | flag::kind(1), 0, 0x1000)
        );
        assert_eq!(
            event(ask(RequestKind::Translated, q0, q1)),
            raw_event(8, flag::kind(1), 0, 0x1000)
        );
    }
    // With it a translated request is not translated again.
    let span = ask(RequestKind::Translated, q0(4), q1().with_i(true)).unwrap();
    assert_eq!(
        (span.gpa, span.target),
        (0x1000, Target::Identity(Bypass::PreTranslated))
    );
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn a_translation_request_while_the_iommu_is_off_fails_silently() {
    let off = WalkContext {
        iommu_enabled: false,
        ..context()
    };
    let kind = RequestKind::TranslationRequest;
    let request = Request {
        kind,
        ..request(Access::Read, 0x1000)
    };
    let result = translate(
        &off,
        &DmaEntry::new(q0(0), q1().with_i(true)),
        &request,
        &TestMemory::new(),
    );
    assert_eq!(result.unwrap_err().event, None);
}

#[test]
fn the_context_follows_the_registers() {
    for (hats, levels) in [(0, 4), (1, 5), (2, 6), (3, 0)] {
        let context = WalkContext::new(
            Control::new().with_iommu_en(true),
            ExtendedFeature::new().with_hats(hats).with_eph_sup(true),
            ExtendedFeature2::new().with_ht_range_ignore(true),
            48,
        );
        let expected = WalkContext {
            iommu_enabled: true,
            host_levels: levels,
            va_bits: 48,
            eph_sup: true,
            ht_range_ignore: true,
            ..WalkContext::default()
        };
        assert_eq!(context, expected);
    }
    let off = WalkContext::new(
        Control::new(),
        ExtendedFeature::new(),
        ExtendedFeature2::new(),
        64,
    );
    assert!(!off.iommu_enabled && !off.eph_sup && !off.ht_range_ignore);
}

#[test]
fn a_level_count_that_no_hats_value_means_does_not_admit_mode_7() {
    let memory = TestMemory::new();
    for host_levels in [7, 255] {
        let absurd = WalkContext {
            host_levels,
            ..context()
        };
        let result = dma(&absurd, q0(7), q1(), Access::Read, 0, &memory);
        assert_eq!(event(result), raw_event(1, 0, 0, 0));
    }
}
