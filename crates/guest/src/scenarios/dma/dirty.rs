//! Accessed and dirty bits in host page tables (DTE.HAD): what a guest needs to find out which pages a
//! device has written.

use amdvi_regs::dte::Dte;

use super::super::done;
use super::access::{Who, next_seed, operation, passes, put, reads, refused, succeeded, writes};
use super::rig::{BOTH, in_case};
use super::space::{A, D, HostSpace};
use super::table::{ALL, READ, leaf, level_shift};
use super::{NOT_PERMITTED, alloc, invalidate_block, invalidate_domain, page_fault, passthrough};
use crate::endpoint::dma::pattern;
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// HAD: accessed bits only; accessed and dirty bits.
const ACCESSED: u8 = 1;
const DIRTY: u8 = 3;
/// Pages: level and log2 of the size; those with an encoded size have several entries each.
const PAGES: [(u8, u32); 6] = [(1, 12), (1, 13), (1, 16), (2, 21), (2, 22), (3, 30)];
/// Pages of the range that is scanned as a migration does.
const SCANNED: u64 = 16;

/// `dirty`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    super::v1::levels(&m)?;
    let efr = m.iommu.efr;
    ensure!(
        efr.ha_sup() && efr.hd_sup(),
        "EFR is {:#x}: accessed and dirty bits are not offered (HASup, HDSup)",
        efr.into_bits()
    );
    let page = alloc(&mut m, 4096)?;
    let mut space = HostSpace::new(&mut m, 4)?;
    for (level, shift) in PAGES {
        let result = one_size(&mut m, &space, page, level, shift);
        result.map_err(|failure| {
            Failure::new(format_args!(
                "page of 2^{shift} bytes at level {level}: {failure}"
            ))
        })?;
        // Another page around the same memory: its way must not go through this one.
        space = HostSpace::new(&mut m, 4)?;
    }
    not_maintained(&mut m, page)?;
    refusals(&mut m, page)?;
    let rounds = scanned(&mut m)?;
    let device_tlb = by_device_tlb(&mut m, page)?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "pages of {} sizes, with one entry and with up to 16: reads set A, the first write sets D \
             in one entry that maps the page, later ones nothing; cleared and invalidated, both are set \
             again; none with HAD=0, no D with HAD=1; {blocked} refused accesses left D 0, {events} \
             events; {rounds} scans of {SCANNED} pages found exactly those that were written; \
             {device_tlb}",
            PAGES.len()
        ),
    )
}

fn dte(space: &HostSpace, had: u8) -> Dte {
    let mut dte = space.under(passthrough());
    dte.q0 = dte.q0.with_had(had);
    dte
}

fn use_it<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, space: &HostSpace, had: u8) -> Result<()> {
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte(space, had))?;
    invalidate_domain(m)
}

/// An IOVA for `gpa` in a page of 2^`shift` bytes.
fn iova_of(gpa: u64, shift: u32) -> u64 {
    0x12_8000_0000 | 1 << 46 | gpa & ((1 << shift) - 1)
}

/// A and D of the page: what its entries have together. But for those two bits every entry must be
/// what the driver has written.
fn marks<Q: Platform + ?Sized>(
    m: &Machine<'_, Q>,
    slots: impl Iterator<Item = u64>,
    written: u64,
) -> Result<(u64, u32, u32)> {
    let (mut all, mut accessed, mut dirty) = (0, 0, 0);
    for slot in slots {
        let seen = m.p.read_u64(slot);
        ensure!(
            seen & !(A | D) == written,
            "the entry at {slot:#x} is {seen:#x}; the driver wrote {written:#x}"
        );
        all |= seen & (A | D);
        accessed += u32::from(seen & A != 0);
        dirty += u32::from(seen & D != 0);
    }
    Ok((all, accessed, dirty))
}

fn one_size<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    space: &HostSpace,
    page: u64,
    level: u8,
    shift: u32,
) -> Result<()> {
    let iova = iova_of(page, shift);
    space.map(m, iova, page, level, shift)?;
    use_it(m, space, DIRTY)?;
    let written = leaf(page, level, shift, ALL);
    let entries = 1u32 << (shift - level_shift(level));
    let expect = |m: &Machine<'_, Q>, expected: u64| {
        let (all, accessed, dirty) = marks(m, space.replicas(m, iova, level, shift), written)?;
        ensure!(
            all == expected,
            "A and D are {all:#x} in {entries} entries together, not {expected:#x}"
        );
        // The entry that the walk reads is the one that gets them.
        ensure!(
            accessed <= 1 && dirty <= 1,
            "A is set in {accessed} entries, D in {dirty}, by accesses at one address"
        );
        Ok(())
    };
    expect(m, 0).during("before any access")?;
    reads(m, Who::PLAIN, iova, page)?;
    expect(m, A).during("after a read")?;
    // The tables on the way get A, and never D.
    for above in level + 1..=space.mode {
        let seen = space.entry(m, iova, above) & (A | D);
        ensure!(
            seen == A,
            "A and D of the PDE at level {above} are {seen:#x}, not {A:#x}"
        );
    }
    writes(m, Who::PLAIN, iova, page)?;
    expect(m, A | D).during("after a write")?;
    for _ in 0..2 {
        passes(m, Who::PLAIN, iova, page).during("again")?;
        expect(m, A | D).during("after all")?;
    }

    // Cleared, as by a migration that has copied the page.
    let clear = |m: &mut Machine<'_, Q>, bits: u64| {
        for slot in space.replicas(m, iova, level, shift) {
            let entry = m.p.read_u64(slot);
            m.p.write_u64(slot, entry & !bits);
        }
        invalidate_block(m, iova & !((1 << shift) - 1), shift as u8)
    };
    for round in 0..3 {
        clear(m, D)?;
        reads(m, Who::PLAIN, iova, page)?;
        let result = expect(m, A).during("D cleared, then a read");
        in_case("round", round, result)?;
        writes(m, Who::PLAIN, iova, page)?;
        let result = expect(m, A | D).during("D cleared, then a write");
        in_case("round", round, result)?;
    }
    clear(m, A | D)?;
    writes(m, Who::PLAIN, iova, page)?;
    expect(m, A | D).during("A and D cleared, then a write")
}

/// HAD=0 and HAD=1.
fn not_maintained<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, page: u64) -> Result<()> {
    for (had, expected) in [(0, 0), (ACCESSED, A)] {
        let space = HostSpace::new(m, 4)?;
        let iova = iova_of(page, 12);
        space.map(m, iova, page, 1, 12)?;
        use_it(m, &space, had)?;
        passes(m, Who::PLAIN, iova, page)?;
        passes(m, Who::PLAIN, iova, page)?;
        for level in 1..=4 {
            let seen = space.entry(m, iova, level) & (A | D);
            ensure!(
                seen == expected,
                "HAD={had}: A and D of the entry at level {level} are {seen:#x}, not {expected:#x}"
            );
        }
    }
    Ok(())
}

/// What is refused leaves no trace; HAD=2 is no encoding.
fn refusals<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, page: u64) -> Result<()> {
    let space = HostSpace::new(m, 4)?;
    let iova = iova_of(page, 12);
    space.map(m, iova, page, 1, 12)?;
    let slot = space.slot(m, iova, 1);
    m.p.write_u64(slot, leaf(page, 1, 12, READ));
    use_it(m, &space, DIRTY)?;
    let event = page_fault(m, iova, true, NOT_PERMITTED);
    refused(m, Who::PLAIN, iova, true, page, Some(event)).during("a page without IW")?;
    let seen = m.p.read_u64(slot);
    ensure!(
        seen & D == 0,
        "a write that was refused leaves the entry {seen:#x}"
    );
    reads(m, Who::PLAIN, iova, page)?;
    let seen = m.p.read_u64(slot);
    ensure!(
        seen == leaf(page, 1, 12, READ) | A,
        "a read of a page without IW leaves the entry {seen:#x}"
    );
    // Permitted by the page, refused by the DTE.
    m.p.write_u64(slot, leaf(page, 1, 12, ALL));
    let mut dte = dte(&space, DIRTY);
    dte.q0 = dte.q0.with_iw(false);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    invalidate_domain(m)?;
    let event = page_fault(m, iova, true, NOT_PERMITTED);
    refused(m, Who::PLAIN, iova, true, page, Some(event)).during("a DTE without IW")?;
    let seen = m.p.read_u64(slot);
    ensure!(
        seen & D == 0,
        "a write that the DTE refuses leaves the entry {seen:#x}"
    );
    // Reserved.
    dte.q0 = dte.q0.with_iw(true).with_had(2);
    m.iommu.set_dte(m.p, id, &dte)?;
    for write in BOTH {
        let event = Who::PLAIN.illegal(m, iova, write, false);
        refused(m, Who::PLAIN, iova, write, page, Some(event)).during("HAD=2")?;
    }
    Ok(())
}

/// A range, some of whose pages are written between two scans.
fn scanned<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<u64> {
    let block = alloc(m, 4096 * SCANNED)?;
    let space = HostSpace::new(m, 4)?;
    let first = iova_of(0, 21);
    for n in 0..SCANNED {
        space.map(m, first + 4096 * n, block + 4096 * n, 1, 12)?;
    }
    use_it(m, &space, DIRTY)?;
    // First page and pages: one transfer over several pages, single ones, all, none.
    let rounds: [(u64, u64); 6] = [
        (3, 4),
        (0, 1),
        (SCANNED - 1, 1),
        (0, SCANNED),
        (7, 0),
        (5, 2),
    ];
    for (from, count) in rounds {
        if count > 0 {
            let iova = first + 4096 * from;
            let seed = next_seed(m);
            let length = 4096 * count as u32;
            let ended = m
                .dev
                .operate(m.p, &operation(Who::PLAIN, iova, true, length, seed));
            succeeded(&ended, "write", iova)?;
            // Its last word.
            let at = block + 4096 * (from + count) - 8;
            let seen = m.p.read_u64(at);
            ensure!(
                seen == pattern(seed, 512 * count - 1),
                "the last word of {count} pages is {seen:#x}"
            );
        }
        // Pages that are only read don't count.
        let beside = (from + count) % SCANNED;
        let seed = next_seed(m);
        put(m, block + 4096 * beside, seed);
        let read = operation(Who::PLAIN, first + 4096 * beside, false, 64, seed);
        succeeded(&m.dev.operate(m.p, &read), "read", read.iova)?;
        for n in 0..SCANNED {
            let slot = space.slot(m, first + 4096 * n, 1);
            let entry = m.p.read_u64(slot);
            let expected = (from..from + count).contains(&n);
            ensure!(
                (entry & D != 0) == expected,
                "page {n}: the entry is {entry:#x} after pages {from} to {} were written",
                from + count
            );
            m.p.write_u64(slot, entry & !D);
        }
        invalidate_block(m, first, 16)?;
    }
    m.expect_no_event()?;
    Ok(rounds.len() as u64)
}

/// A function's own TLB may write only by translations that made the page dirty.
fn by_device_tlb<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, page: u64) -> Result<&'static str> {
    if !m.has_ats() {
        return Ok("no ATS");
    }
    let space = HostSpace::new(m, 4)?;
    let iova = iova_of(page, 12);
    space.map(m, iova, page, 1, 12)?;
    let slot = space.slot(m, iova, 1);
    let mut dte = dte(&space, DIRTY);
    dte.q1 = dte.q1.with_i(true);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    invalidate_domain(m)?;
    m.dev.ats_enable(m.p, true)?;
    for _ in 0..2 {
        for _ in 0..2 {
            reads(m, Who::PLAIN, iova, page).during("by the device's TLB")?;
            let seen = m.p.read_u64(slot);
            ensure!(
                seen == leaf(page, 1, 12, ALL) | A,
                "by the device's TLB, a read leaves the entry {seen:#x}"
            );
        }
        writes(m, Who::PLAIN, iova, page).during("by the device's TLB")?;
        let seen = m.p.read_u64(slot);
        ensure!(
            seen == leaf(page, 1, 12, ALL) | A | D,
            "by the device's TLB, a write leaves the entry {seen:#x}"
        );
        m.p.write_u64(slot, leaf(page, 1, 12, ALL));
        invalidate_block(m, iova & !0xfff, 12)?;
        super::ats::invalidate_device(m, None, iova & !0xfff, 12)?;
    }
    m.dev.ats_enable(m.p, false)?;
    Ok("a device's own TLB writes only what it made dirty")
}
