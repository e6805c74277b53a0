//! Addresses that are not memory (48882 §2.1.2) and the exclusion range (§2.2.2.3).

mod common;

use amdvi_dma::{
    Access, AddressClass, Bypass, DmaEntry, Exclusion, HtRange, Reason, Request, RequestKind, Span,
    Target, WalkContext, classify, spans, translate,
};
use amdvi_regs::dte::DteQ0;
use common::flag::{RW, TR, kind};
use common::*;

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Atomic];

fn bypass(span: Span) -> Bypass {
    match span.target {
        Target::Identity(why) => why,
        Target::Page(_) => panic!("translated: {span:?}"),
    }
}

#[test]
fn a_write_to_the_msi_window_is_never_dma() {
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 3, 0xfee0_0000, pte(0)); // 1 GiB mapped over it
    let off = WalkContext {
        iommu_enabled: false,
        ..context()
    };
    for iova in [0xfee0_0000, 0xfee1_2340, 0xfeef_fffc] {
        for (context, q0) in [
            (off, q0(4)),
            (context(), DteQ0::new()),
            (context(), q0(0)),
            (context(), q0(4)),
        ] {
            let fault = dma(&context, q0, q1(), Access::Write, iova, &memory).unwrap_err();
            assert_eq!((fault.reason, fault.event), (Reason::InterruptWindow, None));
        }
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn a_read_or_an_atomic_in_the_msi_window_is_an_invalid_device_request() {
    let memory = TestMemory::new();
    for access in [Access::Read, Access::Atomic] {
        for q0 in [DteQ0::new(), q0(0), q0(4)] {
            let result = dma(
                &context(),
                q0,
                q1().with_sa(true),
                access,
                0xfee0_1000,
                &memory,
            );
            assert_eq!(event(result), raw_event(8, kind(0), 0, 0xfee0_1000));
        }
        let off = WalkContext {
            iommu_enabled: false,
            ..context()
        };
        let fault = dma(&off, q0(0), q1(), access, 0xfee0_1000, &memory).unwrap_err();
        assert_eq!(fault.event, None, "an IOMMU that is off logs nothing");
    }
    let ask = Request {
        kind: RequestKind::TranslationRequest,
        ..request(Access::Read, 0xfee0_1000)
    };
    let result = translate(
        &context(),
        &DmaEntry::new(q0(0), q1().with_i(true)),
        &ask,
        &memory,
    );
    assert_eq!(event(result), raw_event(8, TR | kind(0), 0, 0xfee0_1000));
}

#[test]
fn dma_on_both_sides_of_the_msi_window_stops_at_its_edges() {
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 3, 0xfee0_0000, pte(0)); // identity, 1 GiB
    map(&mut memory, 4, 3, 0, pte(0));
    let off = WalkContext {
        iommu_enabled: false,
        ..context()
    };
    for (context, q0) in [
        (off, q0(4)),
        (context(), DteQ0::new()),
        (context(), q0(0)),
        (context(), q0(4)),
    ] {
        let long = Request {
            len: 0x2000,
            ..request(Access::Write, 0xfedf_f000)
        };
        let found: Vec<_> = spans(&context, DmaEntry::new(q0, q1()), long, &memory).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].unwrap().len, 0x1000);
        assert_eq!(found[1].unwrap_err().reason, Reason::InterruptWindow);
        let above = dma(&context, q0, q1(), Access::Write, 0xfef0_0000, &memory).unwrap();
        assert_eq!((above.len, above.iova), (4, 0xfef0_0000));
    }
}

/// First and last address of each HyperTransport range.
const HT: [(u64, u64, HtRange); 10] = [
    (0xfd_0000_0000, 0xfd_f7ff_ffff, HtRange::ReservedInterrupt),
    (0xfd_f800_0000, 0xfd_f8ff_ffff, HtRange::InterruptEoi),
    (0xfd_f900_0000, 0xfd_f90f_ffff, HtRange::PicAcknowledge),
    (0xfd_f910_0000, 0xfd_f91f_ffff, HtRange::SystemManagement),
    (0xfd_f920_0000, 0xfd_faff_ffff, HtRange::ReservedPageTables),
    (0xfd_fb00_0000, 0xfd_fbff_ffff, HtRange::AddressTranslation),
    (0xfd_fc00_0000, 0xfd_fdff_ffff, HtRange::PortIo),
    (0xfd_fe00_0000, 0xfd_ffff_ffff, HtRange::Configuration),
    (
        0xfe_0000_0000,
        0xfe_1fff_ffff,
        HtRange::ExtendedConfiguration,
    ),
    (0xfe_2000_0000, 0xff_ffff_ffff, HtRange::Reserved),
];

#[test]
fn addresses_are_classified_to_the_byte() {
    let plain = context();
    let memory = AddressClass::Memory;
    let expected = [
        (0, memory, 0xfedf_ffff),
        (0xfedf_ffff, memory, 0xfedf_ffff),
        (0xfee0_0000, AddressClass::MsiWindow, 0xfeef_ffff),
        (0xfeef_ffff, AddressClass::MsiWindow, 0xfeef_ffff),
        (0xfef0_0000, memory, 0xfc_ffff_ffff),
        (0xfc_ffff_ffff, memory, 0xfc_ffff_ffff),
        (0x100_0000_0000, memory, u64::MAX),
        (u64::MAX, memory, u64::MAX),
    ];
    for (address, class, last) in expected {
        assert_eq!(
            classify(&plain, false, address),
            (class, last),
            "{address:#x}"
        );
    }
    for (first, last, range) in HT {
        for address in [first, first + 1, last] {
            assert_eq!(
                classify(&plain, true, address),
                (AddressClass::HyperTransport(range), last),
                "{address:#x}"
            );
        }
    }
    let ignoring = WalkContext {
        ht_range_ignore: true,
        ..context()
    };
    assert_eq!(
        classify(&ignoring, false, 0xfd_0000_0000),
        (memory, u64::MAX)
    );
    assert_eq!(
        classify(&ignoring, false, 0xfee0_0000).0,
        AddressClass::MsiWindow
    );
}

#[test]
fn the_ht_ranges_are_not_memory_for_a_translated_device() {
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 4, 0xfd_0000_0000, pte(0)); // 512 GiB mapped over all of them
    for q0 in [q0(0), q0(4)] {
        for (first, last, range) in HT {
            for iova in [first, last - 3] {
                for access in ACCESSES {
                    let rw = if access == Access::Read { 0 } else { RW };
                    let posted = access == Access::Write;
                    let expected = match range {
                        HtRange::ReservedInterrupt => raw_event(8, kind(5), 0, iova),
                        HtRange::InterruptEoi if posted => raw_event(8, kind(4), 0, iova),
                        HtRange::InterruptEoi => raw_event(8, kind(0), 0, iova),
                        HtRange::SystemManagement if posted => raw_event(8, kind(3), 0, iova),
                        HtRange::SystemManagement => raw_event(8, kind(6), 0, iova),
                        HtRange::PortIo => raw_event(8, kind(2), 0, iova),
                        _ => page_fault(rw, iova),
                    };
                    let result = dma(&context(), q0, q1(), access, iova, &memory);
                    assert_eq!(event(result), expected, "{iova:#x} {access:?}");
                }
            }
        }
    }
    assert_eq!(memory.take_loads(), []);
}

#[test]
fn ht_range_ignore_makes_the_ht_ranges_ordinary() {
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 4, 0xfd_0000_0000, pte(0));
    let ignoring = WalkContext {
        ht_range_ignore: true,
        ..context()
    };
    for (first, _, _) in HT {
        for access in ACCESSES {
            let span = dma(&ignoring, q0(4), q1(), access, first, &memory).unwrap();
            assert_eq!(span.gpa, first % (1 << 39));
            assert_eq!(
                dma(&ignoring, q0(0), q1(), access, first, &memory)
                    .unwrap()
                    .gpa,
                first
            );
        }
    }
}

#[test]
fn the_ht_ranges_pass_for_a_device_that_is_not_translated() {
    let memory = TestMemory::new();
    for (first, _, _) in HT {
        let span = dma(
            &context(),
            DteQ0::new(),
            q1(),
            Access::Write,
            first,
            &memory,
        )
        .unwrap();
        assert_eq!((span.gpa, bypass(span)), (first, Bypass::DteInvalid));
    }
}

#[test]
fn dma_below_the_ht_ranges_stops_at_their_edge() {
    let memory = TestMemory::new();
    let context = context();
    let long = Request {
        len: 0x2000,
        ..request(Access::Read, 0xfc_ffff_f000)
    };
    let found: Vec<_> = spans(&context, DmaEntry::new(q0(0), q1()), long, &memory).collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].unwrap().len, 0x1000);
    assert!(found[1].is_err());
}

#[test]
fn sys_mgt_decides_over_the_system_management_range() {
    let mut memory = TestMemory::new();
    let iova = 0xfd_f910_0000;
    map(&mut memory, 4, 1, iova, pte(0x7000));
    let ask = |sys_mgt, access| {
        dma(
            &context(),
            q0(4),
            q1().with_sys_mgt(sys_mgt),
            access,
            iova,
            &memory,
        )
    };
    // 00b aborts; 10b forwards only INTx messages, which DMA is not.
    for sys_mgt in [0, 2] {
        assert_eq!(
            event(ask(sys_mgt, Access::Write)),
            raw_event(8, kind(3), 0, iova)
        );
        assert_eq!(
            event(ask(sys_mgt, Access::Read)),
            raw_event(8, kind(6), 0, iova)
        );
        assert_eq!(
            event(ask(sys_mgt, Access::Atomic)),
            raw_event(8, kind(6), 0, iova)
        );
    }
    // 01b forwards messages, which are posted writes.
    let span = ask(1, Access::Write).unwrap();
    assert_eq!((span.gpa, bypass(span)), (iova, Bypass::Forwarded));
    assert_eq!(event(ask(1, Access::Read)), raw_event(8, kind(6), 0, iova));
    assert_eq!(memory.take_loads(), []);
    // 11b translates.
    for access in ACCESSES {
        assert_eq!(ask(3, access).unwrap().gpa, 0x7000);
    }
}

#[test]
fn io_ctl_decides_over_the_port_io_range() {
    let mut memory = TestMemory::new();
    let iova = 0xfd_fc00_0000;
    map(&mut memory, 4, 1, iova, pte(0x7000));
    for access in ACCESSES {
        let rw = if access == Access::Read { 0 } else { RW };
        let ask = |io_ctl| {
            dma(
                &context(),
                q0(4),
                q1().with_io_ctl(io_ctl),
                access,
                iova,
                &memory,
            )
        };
        assert_eq!(event(ask(0)), raw_event(8, kind(2), 0, iova));
        assert_eq!(bypass(ask(1).unwrap()), Bypass::Forwarded);
        assert_eq!(ask(2).unwrap().gpa, 0x7000);
        assert_eq!(
            event(ask(3)),
            raw_event(1, rw, 0, iova),
            "reserved, but no reserved bit"
        );
        // The field matters nowhere else.
        let elsewhere = dma(
            &context(),
            q0(0),
            q1().with_io_ctl(3),
            access,
            0x1000,
            &memory,
        );
        assert_eq!(elsewhere.unwrap().gpa, 0x1000);
    }
}

fn excluding(first: u64, last: u64, allow_all: bool) -> WalkContext {
    context().with_exclusion(Some(Exclusion {
        first,
        last,
        allow_all,
    }))
}

#[test]
fn the_exclusion_range_passes_untranslated_and_unchecked_for_ex_or_allow() {
    let memory = TestMemory::new();
    for (allow, ex, passes) in [
        (false, false, false),
        (false, true, true),
        (true, false, true),
        (true, true, true),
    ] {
        let context = excluding(0x8000, 0x9fff, allow);
        // Neither TV nor IR/IW count: blocked, unclaimed and translated devices.
        for q0 in [
            q0(4),
            q0(4).with_tv(false),
            q0(0).with_ir(false).with_iw(false),
        ] {
            for access in ACCESSES {
                for iova in [0x8000, 0x9ffc] {
                    let result = dma(&context, q0, q1().with_ex(ex), access, iova, &memory);
                    if passes {
                        let span = result.unwrap();
                        assert_eq!((span.gpa, bypass(span)), (iova, Bypass::Excluded));
                    } else {
                        assert!(result.is_err());
                    }
                }
                for iova in [0x7ffc, 0xa000] {
                    assert!(dma(&context, q0, q1().with_ex(ex), access, iova, &memory).is_err());
                }
            }
        }
    }
}

#[test]
fn dma_stops_at_the_edges_of_the_exclusion_range() {
    let mut memory = TestMemory::new();
    map(&mut memory, 2, 2, 0, pte(0x4000_0000)); // 2 MiB
    let context = excluding(0x8000, 0x8fff, false);
    let long = Request {
        len: 0x3000,
        ..request(Access::Read, 0x7000)
    };
    let found: Vec<_> = spans(
        &context,
        DmaEntry::new(q0(2), q1().with_ex(true)),
        long,
        &memory,
    )
    .map(|span| span.map(|span| (span.gpa, span.len)))
    .collect::<Result<_, _>>()
    .unwrap();
    assert_eq!(
        found,
        [
            (0x4000_7000, 0x1000),
            (0x8000, 0x1000),
            (0x4000_9000, 0x1000)
        ]
    );
    // Without EX it is one page.
    let whole: Vec<_> = spans(&context, DmaEntry::new(q0(2), q1()), long, &memory).collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].unwrap().len, 0x3000);
}

#[test]
fn an_illegal_dte_does_not_reach_the_exclusion_range() {
    let memory = TestMemory::new();
    let context = excluding(0x8000, 0x9fff, true);
    assert!(dma(&context, q0(7), q1(), Access::Read, 0x8000, &memory).is_err());
}

#[test]
fn an_exclusion_range_that_ends_before_it_begins_is_empty() {
    let memory = TestMemory::new();
    let context = excluding(0x9000, 0x8fff, true);
    for iova in [0, 0x8ffc, 0x9000, 0xa000] {
        assert!(dma(&context, q0(4), q1(), Access::Read, iova, &memory).is_err());
    }
    assert_eq!(
        classify(&context, true, 0x1000),
        (AddressClass::Memory, 0xfedf_ffff)
    );
}

#[test]
fn the_exclusion_range_hides_neither_the_msi_window_nor_the_ht_ranges() {
    let memory = TestMemory::new();
    let context = excluding(0, u64::MAX, true);
    let fault = dma(&context, q0(4), q1(), Access::Write, 0xfee0_0000, &memory).unwrap_err();
    assert_eq!(fault.reason, Reason::InterruptWindow);
    assert!(
        dma(
            &context,
            q0(4),
            q1(),
            Access::Write,
            0xfd_0000_0000,
            &memory
        )
        .is_err()
    );
    assert_eq!(
        classify(&context, false, 0x1000),
        (AddressClass::Excluded, 0xfedf_ffff)
    );
}

#[test]
fn the_exclusion_registers_decode_with_an_inclusive_limit() {
    assert_eq!(Exclusion::from_registers(0x8000, 0x9000), None, "ExEn=0");
    for (base, allow_all) in [(0x8001, false), (0x8003, true)] {
        for limit in [0x9000, 0x9fff, 0xfff0_0000_0000_9123] {
            let range = Exclusion::from_registers(base, limit).unwrap();
            assert_eq!(
                range,
                Exclusion {
                    first: 0x8000,
                    last: 0x9fff,
                    allow_all
                }
            );
        }
    }
}

#[test]
fn a_span_of_a_page_over_special_addresses_covers_only_memory() {
    // A cache keeps the whole leaf, so the engine must say what of it was resolved.
    let mut memory = TestMemory::new();
    map(&mut memory, 4, 3, 0xc000_0000, pte(0x4000_0000));
    let long = Request {
        len: 1 << 30,
        ..request(Access::Read, 0xc000_0000)
    };
    let span = translate(&context(), &DmaEntry::new(q0(4), q1()), &long, &memory).unwrap();
    assert_eq!(span.len, 0xfee0_0000 - 0xc000_0000);
    let Target::Page(leaf) = span.target else {
        panic!("{span:?}")
    };
    assert_eq!(
        (leaf.iova, leaf.last(), leaf.shift),
        (0xc000_0000, 0xffff_ffff, 30)
    );
}
