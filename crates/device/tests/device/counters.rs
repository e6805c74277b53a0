//! Performance counters: registers, what is counted, filters, wraps.

use std::sync::Arc;

use amdvi_device::testing::TestObserver;
use amdvi_device::{Access, Changes, Endpoint, Pasid, Signal};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletionWait, InvalidateIommuPages};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::mmio::{CounterAddress, CounterEvent, CounterFunction, offset};

use crate::rig::*;

const COUNTED: &str = "amd-iommu,vapic=on,perf-counters=2x4";

pub(crate) fn register(bank: u8, counter: u8, function: CounterFunction) -> u64 {
    CounterAddress {
        bank,
        counter,
        function,
    }
    .offset()
}

/// Lets counter `n` of bank 1 count `event` from 0.
pub(crate) fn count(rig: &Rig, n: u8, event: CounterEvent) {
    rig.write(register(1, n, CounterFunction::Value), 0);
    rig.write(register(1, n, CounterFunction::Source), event.bits().into());
}

pub(crate) fn counted(rig: &Rig, n: u8) -> u64 {
    rig.read(register(1, n, CounterFunction::Value))
}

#[test]
fn the_configuration_register_says_how_many_there_are() {
    let rig = Rig::new(COUNTED);
    assert_eq!(rig.read(offset::COUNTER_CONFIG), 4 << 7 | 2 << 12);
    rig.write(offset::COUNTER_CONFIG, 0);
    assert_eq!(rig.read(offset::COUNTER_CONFIG), 4 << 7 | 2 << 12);
    assert_eq!(rig.iommu.mmio_size(), 0x8_0000);
    // Without the feature there is nothing there.
    let none = Rig::new("amd-iommu");
    none.write(0x4_0000, 5);
    assert_eq!((none.read(0x4_0000), none.read(0x4000)), (0, 0));
}

#[test]
fn registers_take_halves_as_linux_writes_them_and_only_defined_bits() {
    let rig = Rig::new(COUNTED);
    for (function, mask) in [
        (CounterFunction::Value, 0x0000_ffff_ffff_ffff),
        (CounterFunction::Source, 0x0000_0000_c000_00ff),
        (CounterFunction::PasidMatch, 0x000f_ffff_800f_ffff),
        (CounterFunction::DomainMatch, 0x0000_ffff_8000_ffff),
        (CounterFunction::DeviceIdMatch, 0x0000_ffff_8000_ffff),
        (CounterFunction::Report, 0x800f_ffff_ffff_ffff),
    ] {
        let at = register(1, 3, function);
        rig.write32(at, u32::MAX);
        rig.write32(at + 4, u32::MAX);
        assert_eq!(rig.read(at), mask, "{function}");
        assert_eq!(rig.read32(at + 4), (mask >> 32) as u32);
        rig.write32(at, 0);
        assert_eq!(rig.read(at), mask >> 32 << 32, "{function}");
    }
    for at in [register(0, 4, CounterFunction::Value), 0x4_2000, 0x7_ff00] {
        rig.write(at, u64::MAX);
        assert_eq!(rig.read(at), 0, "{at:#x}");
    }
}

#[test]
fn commands_are_counted_as_perf_reads_them() {
    let rig = Rig::enabled(COUNTED);
    count(&rig, 0, CounterEvent::CmdProcessed);
    count(&rig, 1, CounterEvent::CmdProcessedInv);
    count(&rig, 2, CounterEvent::TlbInv);
    rig.submit(&[
        Command::from(invalidate_dte(NIC)),
        invalidate_irt(NIC).into(),
        InvalidateIommuPages::new().with_domain_id(3).into(),
        invalidate_all().into(),
        CompletionWait::new().with_i(true).into(),
        // Illegal commands are not carried out.
        Command::decode([0, 0]),
    ]);
    assert_eq!([0, 1, 2].map(|n| counted(&rig, n)), [5, 4, 2]);
    // perf stops a counter by its source and starts from what it likes.
    rig.write(register(1, 0, CounterFunction::Source), 0);
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write32(offset::COMMAND_HEAD, 0);
    rig.write32(offset::COMMAND_TAIL, 0);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    rig.completion_wait();
    assert_eq!(counted(&rig, 0), 5);
}

#[test]
fn a_counter_limited_to_a_function_or_a_domain_counts_only_its_commands() {
    let rig = Rig::enabled(COUNTED);
    for n in 0..3 {
        count(&rig, n, CounterEvent::CmdProcessed);
    }
    let device = u64::from(NIC.0) | 1 << 31 | 0xffff << 32;
    rig.write(register(1, 0, CounterFunction::DeviceIdMatch), device);
    let domain = 3 | 1 << 31 | 0xffff << 32;
    rig.write(register(1, 1, CounterFunction::DomainMatch), domain);
    // A mask of one bit: odd domains.
    let odd = 1 | 1 << 31 | 1 << 32;
    rig.write(register(1, 2, CounterFunction::DomainMatch), odd);
    rig.submit(&[
        Command::from(invalidate_dte(NIC)),
        invalidate_irt(DeviceId(1)).into(),
        InvalidateIommuPages::new().with_domain_id(3).into(),
        InvalidateIommuPages::new().with_domain_id(5).into(),
        InvalidateIommuPages::new().with_domain_id(6).into(),
        invalidate_all().into(),
    ]);
    assert_eq!([0, 1, 2].map(|n| counted(&rig, n)), [1, 1, 2]);
}

#[test]
fn accesses_to_1ff8_are_counted_and_do_nothing() {
    let rig = Rig::new(COUNTED);
    count(&rig, 0, CounterEvent::IgnRdWrMmio1ff8h);
    rig.write(offset::RESERVED_1FF8, u64::MAX);
    assert_eq!(rig.read(offset::RESERVED_1FF8), 0);
    rig.write32(offset::RESERVED_1FF8, 1);
    assert_eq!(counted(&rig, 0), 3);
}

#[test]
fn interrupts_hit_and_miss_as_they_do_uncounted() {
    let rig = Rig::enabled(COUNTED);
    rig.remap_interrupts(NIC, 9);
    for index in 0..4 {
        rig.set_irte32(index, fixed(0x40 + index as u8, 0));
    }
    let mut nic = rig.nic();
    let mut send = |n: u32| {
        let Signal::Delivered(delivery) = nic.signal(msi(n)) else {
            panic!()
        };
        assert_eq!(u32::from(delivery.vector), 0x40 + n);
    };
    // Before and after counting they go the short way.
    send(0);
    send(0);
    count(&rig, 0, CounterEvent::IntDteHit);
    count(&rig, 1, CounterEvent::IntDteMis);
    for _ in 0..10 {
        send(0);
        send(1);
    }
    assert_eq!([0, 1].map(|n| counted(&rig, n)), [18, 2]);
    rig.submit(&[invalidate_irt(NIC)]);
    send(1);
    send(1);
    assert_eq!([0, 1].map(|n| counted(&rig, n)), [19, 3]);
    for n in 0..2 {
        rig.write(register(1, n, CounterFunction::Source), 0);
    }
    send(1);
    send(2);
    assert_eq!([0, 1].map(|n| counted(&rig, n)), [19, 3]);
    // An interrupt of an IOMMU that is off concerns nobody.
    count(&rig, 1, CounterEvent::IntDteMis);
    rig.set_control(|c| c.with_iommu_en(false));
    nic.signal(msi(0x31));
    assert_eq!(counted(&rig, 1), 0);
}

#[test]
fn observers_hear_when_interrupts_begin_and_end_to_be_counted_and_routes_are_refused_meanwhile() {
    let rig = Rig::enabled(COUNTED);
    rig.set_irte32(0, fixed(0x40, 0));
    let observer = Arc::new(TestObserver::default());
    rig.iommu.add_observer(observer.clone());
    let mut nic = rig.nic();
    let resolved = nic.resolve(msi(0));
    assert!(resolved.is_some());
    let routes = |nic: &mut Endpoint| {
        let mut routes = Vec::new();
        nic.routes(&[msi(0), msi(1)], |route| routes.push(route));
        routes
    };
    assert_eq!(nic.route(msi(0)), resolved);
    let one_by_one = vec![nic.route(msi(0)), nic.route(msi(1))];
    assert_eq!(routes(&mut nic), one_by_one);
    // Of DMA, and once more of interrupts.
    count(&rig, 0, CounterEvent::MemPassUntrans);
    assert_eq!(observer.take(), []);
    count(&rig, 1, CounterEvent::IntDteHit);
    assert_eq!(observer.take(), [Changes::All]);
    count(&rig, 2, CounterEvent::IntDteMis);
    assert_eq!(observer.take(), []);
    assert_eq!((nic.route(msi(0)), nic.resolve(msi(0))), (None, resolved));
    assert_eq!(routes(&mut nic), [None, None]);
    for n in [1, 2] {
        rig.write(register(1, n, CounterFunction::Source), 0);
    }
    assert_eq!(observer.take(), [Changes::All]);
    assert_eq!(nic.route(msi(0)), resolved);
}

#[test]
fn guest_mode_interrupts_are_told_from_others() {
    use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
    let rig = Rig::enabled(COUNTED);
    rig.set_control(|c| c.with_ga_en(true).with_gam_en(1));
    rig.remap_interrupts(NIC, 9);
    let remapped = Irte128Lo::new().with_remap_en(true);
    let posted = Irte128Lo::from_bits(1 | 1 << 7 | 1 << 6);
    let high = Irte128Hi::new().with_vector(0x45);
    rig.set_irte128(0, remapped, high);
    rig.set_irte128(1, posted, high.with_ga_root(BACKING >> 12));
    count(&rig, 0, CounterEvent::VapicIntNonGuest);
    count(&rig, 1, CounterEvent::VapicIntGuest);
    count(&rig, 2, CounterEvent::SmiRecv);
    let mut nic = rig.nic();
    for _ in 0..3 {
        nic.signal(msi(0));
        assert_eq!(nic.signal(msi(1)), Signal::Posted);
    }
    nic.signal(msi(2 << 8));
    nic.signal(msi(7));
    assert_eq!([0, 1, 2].map(|n| counted(&rig, n)), [3, 3, 1]);
}

#[test]
fn a_wrap_is_an_event_with_the_counter_s_note_if_it_asks_for_it() {
    let rig = Rig::enabled(COUNTED);
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    rig.set_control(|c| c.with_event_int_en(true));
    rig.enable_msi(0x51);
    for (event, report) in [
        // By the device and by an interrupt on its way; and one that wants no event.
        (CounterEvent::CmdProcessed, 1 << 63 | 0x1_2345_6789_abcd),
        (CounterEvent::IntDteMis, 1 << 63 | 0x1_2345_6789_abcd),
        (CounterEvent::CmdProcessed, 0x1_2345_6789_abcd),
    ] {
        rig.write(register(1, 0, CounterFunction::Report), report);
        count(&rig, 0, event);
        let start = (1 << 48) - 1;
        rig.write(register(1, 0, CounterFunction::Value), start);
        let mut events = Vec::new();
        if event == CounterEvent::CmdProcessed {
            rig.submit(&[CompletionWait::new()]);
        } else {
            nic.signal(msi(0));
            // The interrupt itself faults.
            events.push(2);
        }
        assert_eq!(counted(&rig, 0), 0);
        if report >> 63 == 1 {
            events.push(0xa);
            assert_eq!(rig.take_vectors().last(), Some(&0x51));
        }
        let logged = rig.take_events();
        let mut codes: Vec<_> = logged.iter().map(|e| e.words()[0] >> 60).collect();
        codes.sort_unstable();
        assert_eq!(codes, events);
        for words in logged.iter().map(|event| event.words()) {
            if words[0] >> 60 == 0xa {
                // CounterNote[51:32] in [83:64], [31:0] in [127:96].
                assert_eq!(words, [0xa << 60, 0x6789_abcd_0001_2345]);
            }
        }
        rig.write32(offset::STATUS, 3);
    }
}

#[test]
fn counters_move_with_the_state_and_count_on() {
    let rig = Rig::enabled(COUNTED);
    count(&rig, 2, CounterEvent::CmdProcessed);
    rig.write(offset::COUNTER_DOMAIN_LOCK, 2);
    rig.completion_wait();
    let other = Rig {
        memory: rig.memory.clone(),
        ..Rig::new(COUNTED)
    };
    let other = Rig {
        iommu: amdvi_device::Iommu::new(
            &COUNTED.parse().unwrap(),
            rig.memory.clone(),
            other.host.clone(),
        ),
        ..other
    };
    other.iommu.restore(&rig.iommu.save()).unwrap();
    assert_eq!(counted(&other, 2), 1);
    assert_eq!(other.read(offset::COUNTER_DOMAIN_LOCK), 2);
    other.completion_wait();
    assert_eq!(counted(&other, 2), 2);
    other.iommu.reset();
    assert_eq!(other.iommu.save(), Rig::new(COUNTED).iommu.save());
}

/// A host table of four levels that maps IOVA 40_0000h–5f_ffffh as a 2 MiB page, and guest tables that
/// map the 2 MiB page at 0 of PASID 5 there; all of it within [`PAGE_TABLE`].
fn map(rig: &Rig, guest: bool) {
    let table = |n: u64| PAGE_TABLE + 0x1000 * n;
    let pde = |next: u64, at: u64| 3 << 61 | at | next << 9 | 1;
    rig.memory.write(table(0), pde(3, table(1)));
    rig.memory.write(table(1), pde(2, table(2)));
    rig.memory.write(table(2) + 2 * 8, pde(0, 0x20_0000));
    // Where the guest's own tables are: identity.
    rig.memory.write(table(2), pde(0, 0));
    let x86 = |at: u64| at | 0x27;
    rig.memory.write(table(8) + 5 * 8, table(9) | 1);
    rig.memory.write(table(9), x86(table(10)));
    rig.memory.write(table(10), x86(table(11)));
    rig.memory.write(table(11), x86(0x40_0000 | 0x80));
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_mode(4)
        .with_host_pt_root(PAGE_TABLE >> 12)
        .with_ir(true)
        .with_iw(true)
        .with_gv(guest);
    let q1 = DteQ1::new().with_i(true).with_domain_id(7);
    let gcr3 = Dte::from_words([q0.into_bits(), q1.into_bits(), 0, 0]).with_gcr3_address(table(8));
    let (q0, q1) = if guest { (gcr3.q0, gcr3.q1) } else { (q0, q1) };
    rig.set_dte(NIC, q0, q1, DteQ2::new());
}

/// Counts all of `events`, four at a time, over fresh machines; returns what `run` makes of them.
fn tally(events: &[CounterEvent], options: &str, run: impl Fn(&Rig)) -> Vec<u64> {
    let mut counts = Vec::new();
    for some in events.chunks(4) {
        let rig = Rig::enabled(options);
        for (n, &event) in (0..).zip(some) {
            count(&rig, n, event);
        }
        run(&rig);
        counts.extend((0..some.len() as u8).map(|n| counted(&rig, n)));
    }
    counts
}

#[test]
fn dma_is_counted_by_what_became_of_it() {
    use CounterEvent::*;
    let events = [
        MemPassUntrans,
        MemPassPretrans,
        MemPassExcl,
        MemTargetAbort,
        MemTransTotal,
        MemIommuTlbPteHit,
        MemIommuTlbPteMis,
        MemDteHit,
        MemDteMis,
        PageTblReadTot,
        PageTblReadNst,
        PageTblReadGst,
    ];
    let options = format!("{COUNTED},device-iotlb=on");
    let counts = tally(&events, &options, |rig| {
        map(rig, false);
        rig.write(offset::EXCLUSION_LIMIT, 0x7000_0000);
        rig.write(offset::EXCLUSION_BASE, 0x7000_0000 | 3);
        let mut nic = rig.nic();
        // Once by the tables, nine times from the cache.
        for n in 0..10 {
            let mapped = nic.translate(0x40_0000 + 8 * n, 8, Access::Read).unwrap();
            assert_eq!(mapped.gpa, 0x20_0000 + 8 * n);
        }
        // Not mapped, and not DMA at all.
        assert!(nic.translate(0x60_0000, 8, Access::Read).is_err());
        assert!(nic.translate(0xfee0_0000, 4, Access::Write).is_err());
        for _ in 0..3 {
            assert!(nic.translate(0x7000_0000, 8, Access::Write).is_ok());
        }
        assert!(nic.translated(None, 0x123, 8, Access::Write).is_ok());
        // A function without a DTE.
        for _ in 0..2 {
            let mut other = rig.iommu.endpoint(DeviceId(1));
            assert!(other.translate(0x5000, 8, Access::Write).is_ok());
            assert!(other.translate(0x6000, 8, Access::Write).is_ok());
        }
    });
    // Requests: 10 + 2 + 3 + 1 + 4.
    assert_eq!(counts, [4, 1, 3, 1, 10, 9, 2, 20 - 3, 3, 3 + 3, 3 + 3, 0]);
}

#[test]
fn guest_tables_are_told_from_host_tables_and_pasids_from_each_other() {
    use CounterEvent::*;
    let events = [
        PageTblReadTot,
        PageTblReadNst,
        PageTblReadGst,
        MemTransTotal,
        MemIommuTlbPteHit,
        MemIommuTlbPteMis,
        MemIommuTlbPdeHit,
        MemIommuTlbPdeMis,
    ];
    let options = format!("{COUNTED},gtsup=on");
    let run = |rig: &Rig| {
        rig.set_control(|c| c.with_gt_en(true));
        map(rig, true);
        let mut nic = rig.nic();
        let pasid = Pasid::new(5);
        for _ in 0..2 {
            let mapped = nic.translate_for(pasid, 0x1234, 8, Access::Read).unwrap();
            assert_eq!(mapped.gpa, 0x20_1234);
        }
        // Another handle finds it in the shared IOTLB.
        assert!(
            rig.nic()
                .translate_for(pasid, 0x1234, 8, Access::Read)
                .is_ok()
        );
    };
    // One GCR3 entry and three guest entries; two host pages, walked once each with three entries: the
    // one with the guest's tables (a GCR3 root is a system physical address) and the one of the page.
    assert_eq!(tally(&events, &options, run), [10, 6, 4, 3, 2, 1, 2, 2]);
    let rig = Rig::enabled(&options);
    for (n, pasid) in [5u64, 6].into_iter().enumerate() {
        let n = n as u8;
        count(&rig, n, MemTransTotal);
        let filter = pasid | 1 << 31 | 0xf_ffff << 32;
        rig.write(register(1, n, CounterFunction::PasidMatch), filter);
    }
    run(&rig);
    assert_eq!([counted(&rig, 0), counted(&rig, 1)], [3, 0]);
}

#[test]
fn when_counting_ends_requests_take_the_short_way_again() {
    let rig = Rig::enabled(COUNTED);
    map(&rig, false);
    let mut nic = rig.nic();
    let mut hit = || assert!(nic.translate(0x40_0000, 8, Access::Read).is_ok());
    hit();
    count(&rig, 0, CounterEvent::MemTransTotal);
    (0..5).for_each(|_| hit());
    assert_eq!(counted(&rig, 0), 5);
    rig.write(register(1, 0, CounterFunction::Source), 0);
    (0..5).for_each(|_| hit());
    assert_eq!(counted(&rig, 0), 5);
    let before = rig.memory.accesses();
    (0..5).for_each(|_| hit());
    assert_eq!(rig.memory.accesses(), before);
}

#[test]
fn a_counter_that_wraps_in_a_dma_request_is_reported_at_once() {
    let rig = Rig::enabled(COUNTED);
    map(&rig, false);
    count(&rig, 0, CounterEvent::MemTransTotal);
    rig.write(register(1, 0, CounterFunction::Report), 1 << 63 | 7);
    let start = (1 << 48) - 2;
    rig.write(register(1, 0, CounterFunction::Value), start);
    let mut nic = rig.nic();
    for n in 0..4 {
        assert!(nic.translate(0x40_0000, 8, Access::Read).is_ok());
        // In memory: a register access would take the report with it.
        assert_eq!(rig.memory.read(EVENTS) != 0, n > 0);
    }
    assert_eq!(rig.take_event_words(), [0xa << 60, 7 << 32]);
}
