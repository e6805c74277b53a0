//! What other emulations got wrong, each with the behaviour that the specification asks for.

mod common;

use amdvi_dma::{Access, Reason, WalkContext};
use amdvi_regs::dte::DteQ0;
use common::flag::{PE, PR, RW, RZ};
use common::*;

/// QEMU 5: permissions are not ANDed across levels, and Mode 0 ignores IR and IW.
#[test]
fn qemu_5_a_write_needs_iw_in_the_dte_and_in_every_level() {
    let mut memory = TestMemory::new();
    let slots = map(&mut memory, 4, 1, 0x1000, pte(0x7000));
    // IW=0 in one place above the leaf at a time.
    for slot in &slots[..3] {
        let word = memory.peek(*slot).unwrap();
        memory.set(*slot, word & !(1 << 62));
        let result = dma(&context(), q0(4), q1(), Access::Write, 0x1000, &memory);
        assert_eq!(event(result), page_fault(PR | PE | RW, 0x1000));
        assert!(dma(&context(), q0(4), q1(), Access::Read, 0x1000, &memory).is_ok());
        memory.set(*slot, word);
    }
    for mode in [0, 4] {
        let read_only = q0(mode).with_iw(false);
        let result = dma(&context(), read_only, q1(), Access::Write, 0x1000, &memory);
        assert_eq!(
            event(result),
            page_fault(PR | PE | RW, 0x1000),
            "mode {mode}"
        );
        let write_only = q0(mode).with_ir(false);
        let result = dma(&context(), write_only, q1(), Access::Read, 0x1000, &memory);
        assert_eq!(event(result), page_fault(PR | PE, 0x1000), "mode {mode}");
    }
}

/// QEMU 14: these abort without any event.
#[test]
fn qemu_14_read_only_pages_mode_7_and_tv_0_are_logged() {
    let mut memory = TestMemory::new();
    map(&mut memory, 3, 1, 0x1000, pte(0x7000) & !(1 << 62));
    // A page that was just read, then written: the event is the same each time.
    for _ in 0..2 {
        assert!(dma(&context(), q0(3), q1(), Access::Read, 0x1000, &memory).is_ok());
        let result = dma(&context(), q0(3), q1(), Access::Write, 0x1000, &memory);
        assert_eq!(event(result), page_fault(PR | PE | RW, 0x1000));
    }
    let result = dma(&context(), q0(7), q1(), Access::Write, 0x1000, &memory);
    assert_eq!(event(result), raw_event(1, RW, 0, 0x1000));
    let blocked = DteQ0::new().with_v(true);
    let result = dma(&context(), blocked, q1(), Access::Write, 0x1000, &memory);
    assert_eq!(event(result), page_fault(RW, 0x1000));
}

/// QEMU 15, the half that concerns one request: SA is ignored.
#[test]
fn qemu_15_sa_suppresses_the_event_and_not_the_abort() {
    let memory = TestMemory::new();
    let fault = dma(
        &context(),
        q0(3),
        q1().with_sa(true),
        Access::Write,
        0x1000,
        &memory,
    )
    .unwrap_err();
    assert_eq!(fault.reason, Reason::NotPresent { level: 3 });
    assert_eq!(fault.event, None);
}

/// OpenVMM 8: Mode 5 accepted with HATS=0; skipped IOVA bits, DTE reserved bits and the range of
/// NextLevel=7 sizes unchecked; Mode 0 ignores IR and IW.
#[test]
fn openvmm_8_modes_skipped_bits_reserved_bits_and_page_sizes_are_checked() {
    let mut memory = TestMemory::new();
    let four = WalkContext {
        host_levels: 4,
        ..context()
    };
    map(&mut memory, 5, 1, 0x1000, pte(0x7000));
    let result = dma(&four, q0(5), q1(), Access::Read, 0x1000, &memory);
    assert_eq!(event(result), raw_event(1, 0, 0, 0x1000));
    assert_eq!(
        memory.take_loads(),
        [],
        "the table of a mode that is not offered is not walked"
    );

    let mut memory = TestMemory::new();
    memory.set(ROOT, pde(1, 0x20_0000));
    memory.set(0x20_0000, pte(0x7000));
    assert_eq!(
        dma(&four, q0(4), q1(), Access::Read, 0, &memory)
            .unwrap()
            .gpa,
        0x7000
    );
    for skipped in [1 << 21, 1 << 29, 1 << 30, 1 << 38] {
        let result = dma(&four, q0(4), q1(), Access::Read, skipped, &memory);
        assert_eq!(event(result), page_fault(PR, skipped));
    }

    for reserved in [2, 3, 63] {
        let word = DteQ0::from_bits(q0(4).into_bits() | 1 << reserved);
        let result = dma(&four, word, q1(), Access::Read, 0, &memory);
        assert_eq!(event(result), raw_event(1, RZ, 0, 0));
    }

    // At level 1 the default is 4 KiB and the next level's 2 MiB: 2 MiB itself is too large.
    let mut memory = TestMemory::new();
    memory.set(ROOT, PRESENT_RW | 7 << 9 | 0x4000_0000 | 0xf_f000);
    assert_eq!(
        event(dma(&four, q0(1), q1(), Access::Read, 0, &memory)),
        page_fault(PR, 0)
    );
    // At level 2 an 8 KiB page is too small.
    memory.set(ROOT, PRESENT_RW | 7 << 9 | 0x4000_0000);
    assert_eq!(
        event(dma(&four, q0(2), q1(), Access::Read, 0, &memory)),
        page_fault(PR, 0)
    );

    let none = q0(0).with_ir(false).with_iw(false);
    let result = dma(&four, none, q1(), Access::Read, 0x1000, &memory);
    assert_eq!(event(result), page_fault(PR | PE, 0x1000));
}
