//! Performance counters: known numbers of translations, commands and interrupts, filters, and what
//! happens at 2^48.

use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    InvalidateDevtabEntry, InvalidateIommuAll, InvalidateIommuPages, InvalidationRange,
};
use amdvi_regs::dte::Dte;
use amdvi_regs::event::{EventCounterZero, IoPageFault};
use amdvi_regs::mmio::{
    CounterAddress, CounterConfig, CounterEvent, CounterFunction, CounterReport, CounterSource,
    CounterValue, DeviceIdMatch, DomainMatch, PasidMatch, offset,
};

use super::super::done;
use super::super::remap::ADDRESS;
use super::access::{Who, reads, refused, writes};
use super::space::{A, D, Gcr3, GuestSpace, HostSpace, invalidate_pasid, required};
use super::{DOMAIN, DONE, LENGTH, NOT_PRESENT, alloc, invalidate_domain, page_fault, passthrough};
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irte, LEN_512};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

const PASID: u32 = 0x155;
/// Counters that are used at once.
const COUNTERS: u8 = 8;
const IOVA: u64 = 0x12_3456_7000;
/// Not mapped, in the same table as `IOVA`.
const MISSING: u64 = IOVA + 0x8000;
/// What a counter reports when it has wrapped.
const NOTE: u64 = 0x9_abcd_1234_5678;

/// `counters`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    super::v1::levels(&m)?;
    let per_bank = geometry(&mut m)?;
    m.dev.pasid_enable(m.p, true)?;
    let rig = Rig::new(&mut m, per_bank)?;
    dma(&mut m, &rig)?;
    commands(&mut m, &rig).during("commands")?;
    interrupts(&mut m, &rig).during("interrupts")?;
    filters(&mut m, &rig).during("filters")?;
    wrap(&mut m, &rig).during("2^48")?;
    m.expect_no_event()?;
    let config = m.iommu.read(m.p, offset::COUNTER_CONFIG);
    let config = CounterConfig::from_bits(config);
    done(
        &m,
        report,
        format_args!(
            "{} banks of {}: DMA by what became of it, with hits, misses and table reads of host and \
             guest tables; commands, invalidations, remapped interrupts, accesses of 1FF8h; by DeviceID, \
             DomainID and PASID with masks: {COUNTERS} counters at a time, each exact; at 2^48 they go on \
             from 0, with one EVENT_COUNTER_ZERO if asked for",
            config.n_counter_banks(),
            config.n_counter()
        ),
    )
}

/// What there is: returns the counters of a bank.
fn geometry<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<u8> {
    ensure!(
        m.iommu.efr.pc_sup(),
        "EFR is {:#x}: counters are not offered (PCSup=0)",
        m.iommu.efr.into_bits()
    );
    let config = CounterConfig::from_bits(m.iommu.read(m.p, offset::COUNTER_CONFIG));
    let (banks, per_bank) = (config.n_counter_banks(), config.n_counter());
    ensure!(
        banks > 0 && u32::from(banks) * u32::from(per_bank) >= COUNTERS.into(),
        "COUNTER_CONFIG is {:#x}: {banks} banks of {per_bank} counters; {COUNTERS} are needed",
        config.into_bits()
    );
    // Behind the last one there is none.
    let beyond = [(banks, 0), (0, per_bank)];
    for (bank, counter) in beyond {
        if bank > 62 || counter > 14 {
            continue;
        }
        let at = CounterAddress {
            bank,
            counter,
            function: CounterFunction::Value,
        };
        m.iommu.write(m.p, at.offset(), 0x55);
        let seen = m.iommu.read(m.p, at.offset());
        ensure!(
            seen == 0,
            "counter {counter} of bank {bank}, which there is none of, reads {seen:#x}"
        );
    }
    Ok(per_bank)
}

/// Counters and what they count.
struct Rig {
    per_bank: u8,
    page: u64,
    /// Maps `IOVA`.
    host: HostSpace,
    gcr3: Gcr3,
    /// Maps this address for `PASID`.
    va: u64,
}

impl Rig {
    fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, per_bank: u8) -> Result<Self> {
        let page = alloc(m, 4096)?;
        let host = HostSpace::new(m, 4)?;
        host.map(m, IOVA, page, 1, 12)?;
        let space = GuestSpace::new(m, 4, 0)?;
        let gcr3 = Gcr3::new(m, 1, 0)?;
        gcr3.set(m, PASID, &space)?;
        let va = space.address(1, page, false);
        space.map(m, va, page, 1)?;
        // Dirty already: a write needs no second walk.
        let slot = space.slot(m, va, 1);
        let leaf = m.p.read_u64(slot);
        m.p.write_u64(slot, leaf | A | D);
        Ok(Self {
            per_bank,
            page,
            host,
            gcr3,
            va,
        })
    }

    fn register(&self, n: u8, function: CounterFunction) -> u64 {
        CounterAddress {
            bank: n / self.per_bank,
            counter: n % self.per_bank,
            function,
        }
        .offset()
    }

    fn set<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        n: u8,
        function: CounterFunction,
        value: u64,
    ) -> Result<()> {
        let register = self.register(n, function);
        m.iommu.write(m.p, register, value);
        let seen = m.iommu.read(m.p, register);
        ensure!(
            seen == value,
            "{function} of counter {n} reads {seen:#x} after {value:#x}"
        );
        Ok(())
    }

    /// Counter `n` counts `event` from 0 on, of everybody.
    fn start<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        n: u8,
        event: CounterEvent,
    ) -> Result<()> {
        for function in [
            CounterFunction::Source,
            CounterFunction::PasidMatch,
            CounterFunction::DomainMatch,
            CounterFunction::DeviceIdMatch,
            CounterFunction::Report,
            CounterFunction::Value,
        ] {
            self.set(m, n, function, 0)?;
        }
        let source = CounterSource::new().with_c_source(event.bits());
        self.set(m, n, CounterFunction::Source, source.into_bits())
    }

    /// Starts a counter for each event.
    fn start_all<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        events: &[(CounterEvent, u64)],
    ) -> Result<()> {
        for (n, (event, _)) in (0..).zip(events) {
            self.start(m, n, *event)?;
        }
        Ok(())
    }

    fn value<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>, n: u8) -> u64 {
        m.iommu.read(m.p, self.register(n, CounterFunction::Value))
    }

    /// Every counter has counted what was expected; they are off then, and stay as they are.
    fn expect_all<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        events: &[(CounterEvent, u64)],
    ) -> Result<()> {
        for (n, (event, expected)) in (0..).zip(events) {
            let seen = self.value(m, n);
            ensure!(
                seen == *expected,
                "{} was counted {seen} times, not {expected}",
                event.name()
            );
        }
        for n in 0..events.len() as u8 {
            self.set(m, n, CounterFunction::Source, 0)?;
        }
        Ok(())
    }
}

fn use_dte<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, dte: &Dte) -> Result<()> {
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, dte)?;
    invalidate_domain(m)?;
    invalidate_pasid(m, PASID)
}

/// DMA through host tables, through guest tables, untranslated, aborted.
fn dma<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    use CounterEvent::{
        MemIommuTlbPteHit, MemIommuTlbPteMis, MemPassUntrans, MemTargetAbort, MemTransTotal,
        PageTblReadGst, PageTblReadNst, PageTblReadTot,
    };
    let page = rig.page;
    use_dte(m, &rig.host.under(passthrough()))?;
    let events = [
        (MemTransTotal, 8),
        (MemIommuTlbPteHit, 7),
        // The first access, and two that find no page.
        (MemIommuTlbPteMis, 3),
        (MemTargetAbort, 2),
        (MemPassUntrans, 0),
        // Four levels each.
        (PageTblReadTot, 12),
        (PageTblReadNst, 12),
        (PageTblReadGst, 0),
    ];
    rig.start_all(m, &events)?;
    for _ in 0..4 {
        reads(m, Who::PLAIN, IOVA, page)?;
        writes(m, Who::PLAIN, IOVA, page)?;
    }
    for write in [false, true] {
        let event = page_fault(m, MISSING, write, NOT_PRESENT);
        refused(m, Who::PLAIN, MISSING, write, page, Some(event))?;
    }
    rig.expect_all(m, &events).during("host tables")?;
    reads(m, Who::PLAIN, IOVA, page)?;
    ensure!(
        rig.value(m, 0) == 8,
        "a counter that is off counts: {}",
        rig.value(m, 0)
    );

    use_dte(m, &rig.gcr3.dte(rig.gcr3.root, 4))?;
    let events = [
        (MemTransTotal, 6),
        (MemIommuTlbPteHit, 5),
        (MemIommuTlbPteMis, 1),
        (MemTargetAbort, 0),
        (MemPassUntrans, 3),
        // The GCR3 entry and four levels.
        (PageTblReadTot, 5),
        (PageTblReadNst, 0),
        (PageTblReadGst, 5),
    ];
    rig.start_all(m, &events)?;
    for _ in 0..3 {
        reads(m, Who::pasid(PASID), rig.va, page)?;
        writes(m, Who::pasid(PASID), rig.va, page)?;
        // Without a PASID, and with Mode 0.
        reads(m, Who::PLAIN, page, page)?;
    }
    rig.expect_all(m, &events).during("guest tables")?;

    // Invalidated, it is a miss again; and the DTE has to be read again.
    use_dte(m, &rig.host.under(passthrough()))?;
    let events = [
        (MemTransTotal, 6),
        (MemIommuTlbPteHit, 3),
        (MemIommuTlbPteMis, 3),
    ];
    rig.start_all(m, &events)?;
    for _ in 0..3 {
        invalidate_domain(m)?;
        reads(m, Who::PLAIN, IOVA, page)?;
        writes(m, Who::PLAIN, IOVA, page)?;
    }
    rig.expect_all(m, &events).during("invalidated")
}

/// What the command processor does.
fn commands<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    use CounterEvent::{CmdProcessed, CmdProcessedInv, IgnRdWrMmio1ff8h, TlbInv};
    let all = u64::from(m.iommu.efr.ia_sup());
    let events = [
        // Each has a COMPLETION_WAIT behind it.
        (CmdProcessed, 2 * (3 + 2 + all) + 4),
        (CmdProcessedInv, 3 + 2 + all),
        (TlbInv, 3 + all),
        (IgnRdWrMmio1ff8h, 7),
    ];
    rig.start_all(m, &events)?;
    for _ in 0..3 {
        let command = InvalidateIommuPages::new()
            .with_domain_id(DOMAIN)
            .with_range(InvalidationRange::All);
        m.iommu.command(m.p, command)?;
    }
    for _ in 0..2 {
        let command = InvalidateDevtabEntry::new().with_device_id(m.dev.id.0);
        m.iommu.command(m.p, command)?;
    }
    if all == 1 {
        m.iommu.command(m.p, InvalidateIommuAll::new())?;
    }
    for _ in 0..4 {
        m.iommu.wait(m.p)?;
    }
    for _ in 0..5 {
        m.iommu.read(m.p, offset::RESERVED_1FF8);
    }
    for _ in 0..2 {
        m.iommu.write(m.p, offset::RESERVED_1FF8, 0);
    }
    rig.expect_all(m, &events)
}

/// Interrupts through 128-bit entries.
fn interrupts<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    use CounterEvent::{IntDteHit, IntDteMis, VapicIntGuest, VapicIntNonGuest};
    const SENT: u64 = 6;
    const VECTOR: u8 = 0x61;
    let irt = m.new_table(LEN_512)?;
    let cpu = m.low_cpu()?;
    let irte = Irte::fixed(m.apic(cpu), VECTOR);
    irt.write(m.p, 3, irte);
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    let wide = u64::from(m.iommu.config.ga);
    let events = [
        (VapicIntNonGuest, SENT * wide),
        (VapicIntGuest, 0),
        (IntDteHit, SENT - 1),
        // The first, and two without an entry.
        (IntDteMis, 3),
    ];
    rig.start_all(m, &events)?;
    for _ in 0..SENT {
        m.delivered(ADDRESS, 3, cpu, VECTOR)?;
    }
    for _ in 0..2 {
        m.blocked(ADDRESS, 4)?;
        let event = IoPageFault::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_domain_id(m.iommu.read_dte(m.p, m.dev.id).q1.domain_id())
            .with_i(true)
            .with_address(ADDRESS);
        m.expect_event(event)?;
    }
    rig.expect_all(m, &events)
}

/// Counters of one event that listen to some requests only.
fn filters<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let id = m.dev.id;
    let other = DeviceId(id.0 ^ 0x40);
    let mut dte = rig.host.under(passthrough());
    use_dte(m, &dte)?;
    dte.q1 = dte.q1.with_domain_id(DOMAIN + 1);
    m.iommu.set_dte(m.p, other, &dte)?;

    let device = |value: u16, mask: u16| {
        let bits = DeviceIdMatch::new().with_enable(true);
        bits.with_value(value).with_mask(mask).into_bits()
    };
    let domain = |value: u16, mask: u16| {
        let bits = DomainMatch::new().with_enable(true);
        bits.with_value(value).with_mask(mask).into_bits()
    };
    let pasid = |value: u32, mask: u32| {
        let bits = PasidMatch::new().with_enable(true);
        bits.with_value(value).with_mask(mask).into_bits()
    };
    // 3 requests of the endpoint, 2 under the other DeviceID, 4 with the PASID.
    let cases = [
        (CounterFunction::DeviceIdMatch, device(id.0, 0xffff), 7),
        (CounterFunction::DeviceIdMatch, device(other.0, 0xffff), 2),
        // Which of the two bits they differ in is not asked.
        (CounterFunction::DeviceIdMatch, device(id.0, !0x40), 9),
        (CounterFunction::DomainMatch, domain(DOMAIN, 0xffff), 7),
        (CounterFunction::DomainMatch, domain(DOMAIN + 1, 0xffff), 2),
        (CounterFunction::PasidMatch, pasid(PASID, 0xf_ffff), 4),
        (CounterFunction::PasidMatch, pasid(PASID + 1, 0xf_ffff), 0),
        (CounterFunction::PasidMatch, pasid(PASID ^ 0x1000, 0xfff), 4),
    ];
    for (n, (function, filter, _)) in (0..).zip(cases) {
        rig.start(m, n, CounterEvent::MemTransTotal)?;
        rig.set(m, n, function, filter)?;
    }
    for _ in 0..3 {
        reads(m, Who::PLAIN, IOVA, rig.page)?;
    }
    m.dev.write(m.p, reg::DMA_REQUESTER, other.0.into());
    for _ in 0..2 {
        let status = m.dev.dma(m.p, IOVA, LENGTH, false);
        ensure!(status == DONE, "DMA of {other} had status {status}");
    }
    m.dev.write(m.p, reg::DMA_REQUESTER, id.0.into());
    use_dte(m, &rig.gcr3.dte(rig.gcr3.root, 4))?;
    for _ in 0..4 {
        reads(m, Who::pasid(PASID), rig.va, rig.page)?;
    }
    for (n, (function, filter, expected)) in (0..).zip(cases) {
        let seen = rig.value(m, n);
        ensure!(
            seen == expected,
            "with {function} {filter:#x} {seen} requests were counted, not {expected}"
        );
        rig.set(m, n, CounterFunction::Source, 0)?;
    }
    Ok(())
}

/// The value has 48 bits.
fn wrap<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    use_dte(m, &rig.host.under(passthrough()))?;
    let last = !CounterValue::RESERVED;
    let report = CounterReport::new().with_counter_note(NOTE);
    // One that reports, one that does not, one that is not there yet.
    let cases = [
        (last - 2, true, 3),
        (last - 2, false, 3),
        (last - 9, true, last - 3),
    ];
    for (n, (start, reports, _)) in (0..).zip(cases) {
        rig.start(m, n, CounterEvent::MemTransTotal)?;
        rig.set(m, n, CounterFunction::Value, start)?;
        let report = report.with_cere(reports);
        rig.set(m, n, CounterFunction::Report, report.into_bits())?;
    }
    for _ in 0..2 {
        reads(m, Who::PLAIN, IOVA, rig.page)?;
    }
    ensure!(
        rig.value(m, 0) == last,
        "a counter is {:#x}, not {last:#x}",
        rig.value(m, 0)
    );
    // The one that wraps: its event is there when the request has ended.
    let status = m.dev.dma(m.p, IOVA, LENGTH, false);
    ensure!(status == DONE, "a DMA read had status {status}");
    let event = EventCounterZero::new()
        .with_note_51_32((NOTE >> 32) as u32)
        .with_note_31_0(NOTE as u32);
    m.expect_event(event)?;
    for _ in 0..3 {
        reads(m, Who::PLAIN, IOVA, rig.page)?;
    }
    for (n, (start, reports, expected)) in (0..).zip(cases) {
        let seen = rig.value(m, n);
        ensure!(
            seen == expected,
            "from {start:#x} on, CERE={reports}, six requests lead to {seen:#x}, not {expected:#x}"
        );
        rig.set(m, n, CounterFunction::Source, 0)?;
        rig.set(m, n, CounterFunction::Report, 0)?;
    }
    // By a command, too.
    rig.start(m, 0, CounterEvent::CmdProcessed)?;
    rig.set(m, 0, CounterFunction::Value, last)?;
    rig.set(
        m,
        0,
        CounterFunction::Report,
        report.with_cere(true).into_bits(),
    )?;
    m.iommu.wait(m.p)?;
    m.expect_event(event)?;
    ensure!(rig.value(m, 0) == 0, "the counter is {}", rig.value(m, 0));
    rig.set(m, 0, CounterFunction::Source, 0)
}
