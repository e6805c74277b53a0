//! ATS: the endpoint asks for translations, keeps them in a TLB of its own and sends translated
//! requests; INVALIDATE_IOTLB_PAGES takes them away.

use amdvi_regs::DeviceId;
use amdvi_regs::command::{InvalidateIommuPages, InvalidateIotlbPages, InvalidationRange};
use amdvi_regs::dte::{Dte, DteQ0};
use amdvi_regs::event::{InvalidRequestType, PageTabHardwareError};

use super::super::done;
use super::access::{Who, denied, passes, reads, refused, writes};
use super::rig::{BOTH, NOWHERE};
use super::space::{Gcr3, GuestSpace, HostSpace, NX, P, RW, US, invalidate_page, required};
use super::stream::{PAGES, Stream, sentinel};
use super::table::{ALL, READ, entry, index, leaf};
use super::{DOMAIN, PAGE, alloc, invalidate_block, invalidate_domain, passthrough};
use crate::endpoint::dma::reason;
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// Rounds of pages that move under a stream.
const ROUNDS: usize = 8;
/// Writes of the stream before a change, and after it.
const WARM: u64 = 16;
const AFTER: u64 = 64;
/// PTE.U: untranslated requests only.
const UNTRANSLATED: u64 = 1 << 59;

/// `ats`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let (mut m, rig) = start(p, true)?;
    not_allowed(&mut m, &rig)?;
    kept(&mut m, &rig)?;
    permissions(&mut m, &rig)?;
    large_page(&mut m, &rig)?;
    let dropped = ranges(&mut m, &rig)?;
    processes(&mut m, &rig)?;
    m.dev.ats_enable(m.p, false)?;
    ensure!(
        tlb(&mut m) == 0,
        "a TLB that is switched off keeps something"
    );
    m.dev.ats_enable(m.p, true)?;
    let stream = Stream::start(&mut m, true)?;
    let result = moving(&mut m, stream);
    Stream::stop(&mut m);
    let rounds = result?;
    m.expect_no_event()?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "translations asked for, kept and used, with old ones used until INVALIDATE_IOTLB_PAGES and \
             never after its COMPLETION_WAIT, alone and {rounds} times under a stream of writes; \
             {dropped} ranges drop exactly what they name, by PASID; R, W, NX and U of the answers; \
             {blocked} accesses aborted, {events} events compared: DTE.I=0 refuses translation requests \
             and translated ones, unreadable tables, none for a missing page"
        ),
    )
}

/// A machine whose endpoint has ATS switched on, and if wanted PASIDs.
pub(super) fn start<Q: Platform + ?Sized>(
    p: &mut Q,
    pasids: bool,
) -> Result<(Machine<'_, Q>, Rig)> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    super::v1::levels(&m)?;
    ensure!(
        m.has_ats(),
        "the IOMMU's capability block has IotlbSup=0: no ATS"
    );
    if pasids {
        m.dev.pasid_enable(m.p, true)?;
    }
    m.dev.ats_enable(m.p, true)?;
    let rig = Rig::new(&mut m)?;
    Ok((m, rig))
}

/// Translations in the endpoint's TLB.
fn tlb<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> u64 {
    m.dev.read64(m.p, reg::TLB_ENTRIES)
}

pub(super) fn expect_tlb<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    expected: u64,
) -> Result<()> {
    let seen = tlb(m);
    ensure!(
        seen == expected,
        "{seen} translations are in the device's TLB, not {expected}"
    );
    Ok(())
}

/// INVALIDATE_IOTLB_PAGES.
pub(super) fn device_pages(
    id: DeviceId,
    pasid: Option<u32>,
    range: InvalidationRange,
) -> InvalidateIotlbPages {
    let command = InvalidateIotlbPages::new()
        .with_device_id(id.0)
        .with_max_pend(32)
        .with_queue_id(id.0)
        .with_range(range);
    match pasid {
        Some(pasid) => command.with_gn(true).with_pasid(pasid),
        None => command,
    }
}

/// Invalidates the block of 2^`size_log2` bytes around `iova` in the endpoint's TLB.
pub(super) fn invalidate_device<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    pasid: Option<u32>,
    iova: u64,
    size_log2: u8,
) -> Result<()> {
    let range = InvalidationRange::Block {
        start: iova,
        size_log2,
    };
    let command = device_pages(m.dev.id, pasid, range);
    m.iommu.command(m.p, command)
}

/// Empties the endpoint's TLB of requests without PASID.
fn empty<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<()> {
    let command = device_pages(m.dev.id, None, InvalidationRange::All);
    m.iommu.command(m.p, command)?;
    expect_tlb(m, 0)
}

/// A host table with ATS allowed, and pages.
pub(super) struct Rig {
    pub(super) space: HostSpace,
    pub(super) pages: [u64; 4],
    /// IOVAs of the pages.
    pub(super) at: [u64; 4],
    dte: Dte,
}

impl Rig {
    pub(super) fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<Self> {
        let block = alloc(m, 0x4000)?;
        let pages = core::array::from_fn(|n| block + 0x1000 * n as u64);
        let space = HostSpace::new(m, 4)?;
        let at = core::array::from_fn(|n| 0x34_5670_0000 + 0x1000 * n as u64);
        for (iova, page) in at.into_iter().zip(pages) {
            space.map(m, iova, page, 1, 12)?;
        }
        let mut dte = space.under(passthrough());
        dte.q1 = dte.q1.with_i(true);
        let rig = Self {
            space,
            pages,
            at,
            dte,
        };
        rig.restore(m)?;
        Ok(rig)
    }

    fn restore<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &self.dte)
    }

    /// Sets the entry of a page, and takes the old one from IOMMU and device.
    fn set<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        n: usize,
        entry: u64,
    ) -> Result<()> {
        let slot = self.space.slot(m, self.at[n], 1);
        m.p.write_u64(slot, entry);
        invalidate_block(m, self.at[n], PAGE)?;
        invalidate_device(m, None, self.at[n], PAGE)
    }
}

/// DTE.I=0: no translation requests, and no translated ones.
fn not_allowed<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let id = m.dev.id;
    let (iova, page) = (rig.at[0], rig.pages[0]);
    let mut refusing = rig.dte;
    refusing.q1 = refusing.q1.with_i(false);
    let mut invalid = refusing;
    invalid.q0 = DteQ0::new();
    for (what, dte) in [("DTE.I=0", refusing), ("DTE.V=0", invalid)] {
        m.iommu.set_dte(m.p, id, &dte)?;
        for write in BOTH {
            let kind = InvalidRequestType::TranslationDisabled;
            let event = Who::PLAIN.invalid(m, iova, kind);
            refused(m, Who::PLAIN, iova, write, page, Some(event)).during(what)?;
        }
        expect_tlb(m, 0).during(what)?;
    }
    rig.restore(m)?;
    passes(m, Who::PLAIN, iova, page)?;
    // One translation does for both directions: the first answer permits all that the page does.
    expect_tlb(m, 1)?;
    for (what, dte) in [("DTE.I 1 → 0", refusing), ("DTE.V 1 → 0", invalid)] {
        m.iommu.set_dte(m.p, id, &dte)?;
        for write in BOTH {
            // By the translation that it still has: the address is that of memory.
            let kind = InvalidRequestType::PretranslatedNotAllowed;
            let event = Who::PLAIN.invalid(m, page, kind);
            refused(m, Who::PLAIN, iova, write, page, Some(event)).during(what)?;
        }
    }
    rig.restore(m)?;
    passes(m, Who::PLAIN, iova, page).during("DTE.I 0 → 1")?;
    empty(m)
}

/// Translations are kept until they are invalidated, and used.
fn kept<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (iova, old, new) = (rig.at[0], rig.pages[0], rig.pages[1]);
    let slot = rig.space.slot(m, iova, 1);
    let (mut here, mut there) = (old, new);
    for _ in 0..4 {
        let hits = m.dev.read64(m.p, reg::TLB_HITS);
        reads(m, Who::PLAIN, iova, here)?;
        expect_tlb(m, 1)?;
        for _ in 0..2 {
            passes(m, Who::PLAIN, iova, here)?;
        }
        let seen = m.dev.read64(m.p, reg::TLB_HITS) - hits;
        ensure!(
            seen == 4,
            "{seen} of 5 accesses found their translation, not 4"
        );
        // The IOMMU has nothing to do with what the device knows.
        m.p.write_u64(slot, leaf(there, 1, 12, ALL));
        invalidate_block(m, iova, PAGE)?;
        passes(m, Who::PLAIN, iova, here).during("before INVALIDATE_IOTLB_PAGES")?;
        let invalidations = m.dev.read64(m.p, reg::TLB_INVALIDATIONS);
        invalidate_device(m, None, iova, PAGE)?;
        // COMPLETION_WAIT has said so: the answer has come.
        expect_tlb(m, 0).during("after COMPLETION_WAIT")?;
        let seen = m.dev.read64(m.p, reg::TLB_INVALIDATIONS) - invalidations;
        ensure!(
            seen == 1,
            "the device was asked {seen} times to invalidate, not once"
        );
        passes(m, Who::PLAIN, iova, there).during("after INVALIDATE_IOTLB_PAGES")?;
        core::mem::swap(&mut here, &mut there);
        empty(m)?;
    }
    // For somebody else: nobody is there, and nothing is waited for.
    passes(m, Who::PLAIN, iova, here)?;
    let other = DeviceId(m.dev.id.0 ^ 0x20);
    let command = device_pages(other, None, InvalidationRange::All);
    m.iommu.command(m.p, command)?;
    expect_tlb(m, 1).during("invalidation for another DeviceID")?;
    rig.set(m, 0, leaf(old, 1, 12, ALL))?;
    expect_tlb(m, 0)
}

/// What answers permit, and pages that there are none of.
fn permissions<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (iova, page) = (rig.at[0], rig.pages[0]);
    let none = |m: &mut Machine<'_, Q>, write: bool| {
        denied(m, Who::PLAIN, iova, write, page, reason::NO_PAGE)?;
        // A translation request has no page fault.
        m.expect_no_event()
    };
    rig.set(m, 0, leaf(page, 1, 12, READ))?;
    reads(m, Who::PLAIN, iova, page).during("IW=0")?;
    none(m, true).during("IW=0")?;
    reads(m, Who::PLAIN, iova, page).during("IW=0, after a write")?;
    rig.set(m, 0, 0)?;
    none(m, false).during("no page")?;
    none(m, true).during("no page")?;
    expect_tlb(m, 0).during("no page")?;
    // What is made present later needs no invalidation.
    let slot = rig.space.slot(m, iova, 1);
    m.p.write_u64(slot, leaf(page, 1, 12, ALL));
    passes(m, Who::PLAIN, iova, page).during("a page that was made")?;
    // U: the device has to go the untranslated way, and keeps nothing.
    rig.set(m, 0, leaf(page, 1, 12, ALL) | UNTRANSLATED)?;
    passes(m, Who::PLAIN, iova, page).during("PTE.U=1")?;
    expect_tlb(m, 0).during("PTE.U=1")?;
    rig.set(m, 0, leaf(page, 1, 12, ALL))?;

    let table = rig.space.slot(m, iova, 3);
    let good = m.p.read_u64(table);
    m.p.write_u64(table, entry(NOWHERE, 2, ALL));
    invalidate_domain(m)?;
    for write in BOTH {
        let event = PageTabHardwareError::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_domain_id(DOMAIN)
            .with_rw(write)
            .with_tr(true)
            .with_kind(1)
            .with_address_8((NOWHERE + index(iova, 2)) >> 3);
        refused(m, Who::PLAIN, iova, write, page, Some(event.into()))
            .during("table outside of RAM")?;
    }
    m.p.write_u64(table, good);
    invalidate_domain(m)?;
    passes(m, Who::PLAIN, iova, page)?;
    empty(m)
}

/// One translation of a large page serves all of it.
fn large_page<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let iova = 0x44_0000_0000 | rig.pages[0] & 0x1f_ffff;
    rig.space.map(m, iova, rig.pages[0], 2, 21)?;
    let hits = m.dev.read64(m.p, reg::TLB_HITS);
    for (n, page) in rig.pages.into_iter().enumerate() {
        // They are one aligned block of memory.
        reads(m, Who::PLAIN, iova + 0x1000 * n as u64, page)?;
    }
    expect_tlb(m, 1).during("a page of 2 MiB")?;
    let seen = m.dev.read64(m.p, reg::TLB_HITS) - hits;
    ensure!(seen == 3, "a page of 2 MiB was found {seen} times, not 3");
    // A page of 4 KiB in it is enough to drop it.
    invalidate_device(m, None, (iova & !0x1f_ffff) + 0x10_0000, PAGE)?;
    expect_tlb(m, 0).during("a part of a page of 2 MiB invalidated")
}

/// Each range drops what it names.
fn ranges<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<u32> {
    // log2 of the size, the first page and the pages that go.
    let cases = [(12, 0, 1), (12, 3, 1), (13, 2, 2), (14, 0, 4), (30, 0, 4)];
    for (size_log2, first, count) in cases {
        for (iova, page) in rig.at.into_iter().zip(rig.pages) {
            reads(m, Who::PLAIN, iova, page)?;
        }
        expect_tlb(m, 4)?;
        let start = rig.at[first] & !((1 << size_log2) - 1);
        invalidate_device(m, None, start, size_log2)?;
        expect_tlb(m, 4 - count)?;
        // Those that stayed are the others.
        for n in (0..4).filter(|n| !(first..first + count as usize).contains(n)) {
            let hits = m.dev.read64(m.p, reg::TLB_HITS);
            reads(m, Who::PLAIN, rig.at[n], rig.pages[n])?;
            let seen = m.dev.read64(m.p, reg::TLB_HITS) - hits;
            ensure!(
                seen == 1,
                "page {n} is gone after 2^{size_log2} bytes of page {first}"
            );
        }
        empty(m)?;
    }
    Ok(cases.len() as u32)
}

/// Translations of processes: by PASID, with R, W, NX and privilege of the guest's table.
fn processes<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    const FIRST: u32 = 0x21;
    const SECOND: u32 = 0x1_2345 & 0x1ff;
    let gcr3 = Gcr3::new(m, 1, 0)?;
    let spaces = [GuestSpace::new(m, 4, 0)?, GuestSpace::new(m, 4, 0)?];
    let va = spaces[0].address(1, 0, true);
    let pasids = [FIRST, SECOND];
    for (n, space) in spaces.iter().enumerate() {
        space.map(m, va, rig.pages[n], 1)?;
        space.map(m, va + 0x1000, rig.pages[n + 2], 1)?;
        gcr3.set(m, pasids[n], space)?;
    }
    let mut dte = gcr3.dte(gcr3.root, 4);
    dte.q1 = dte.q1.with_i(true);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    let fill = |m: &mut Machine<'_, Q>| {
        for (n, pasid) in pasids.into_iter().enumerate() {
            // A write first: a page that is clean would be asked for twice.
            writes(m, Who::pasid(pasid), va, rig.pages[n])?;
            writes(m, Who::pasid(pasid), va + 0x1000, rig.pages[n + 2])?;
            passes(m, Who::pasid(pasid), va, rig.pages[n])?;
        }
        expect_tlb(m, 4)
    };
    fill(m)?;
    invalidate_device(m, Some(FIRST), va, PAGE)?;
    expect_tlb(m, 3).during("a page of one PASID")?;
    invalidate_device(m, None, va, PAGE)?;
    expect_tlb(m, 3).during("GN=0")?;
    fill(m)?;
    let all = device_pages(id, Some(SECOND), InvalidationRange::All);
    m.iommu.command(m.p, all)?;
    expect_tlb(m, 2).during("all of one PASID")?;
    let hits = m.dev.read64(m.p, reg::TLB_HITS);
    reads(m, Who::pasid(FIRST), va, rig.pages[0])?;
    let seen = m.dev.read64(m.p, reg::TLB_HITS) - hits;
    ensure!(seen == 1, "the other PASID's translation is gone");
    let all = device_pages(id, Some(FIRST), InvalidationRange::All);
    m.iommu.command(m.p, all)?;
    expect_tlb(m, 0).during("all of both PASIDs")?;

    // Entry, who is refused then, whether it is a write, and who is not.
    let user = Who::pasid(FIRST);
    let slot = spaces[0].slot(m, va, 1);
    let good = m.p.read_u64(slot);
    let page = rig.pages[0];
    let cases = [
        ("P=0", good & !P, user, false, None),
        ("R/W=0", good & !RW, user, true, Some(user)),
        ("U/S=0", good & !US, user, false, Some(user.privileged())),
        ("NX=1", good | NX, user.execute(), false, Some(user)),
    ];
    for (what, entry, loser, write, winner) in cases {
        if entry & NX != 0 && !m.iommu.efr.nx_sup() {
            continue;
        }
        m.p.write_u64(slot, entry);
        invalidate_page(m, FIRST, va, PAGE)?;
        let all = device_pages(id, Some(FIRST), InvalidationRange::All);
        m.iommu.command(m.p, all)?;
        for _ in 0..2 {
            if let Some(winner) = winner {
                reads(m, winner, va, page).during(what)?;
            }
            denied(m, loser, va, write, page, reason::NO_PAGE).during(what)?;
        }
        m.expect_no_event().during(what)?;
    }
    m.p.write_u64(slot, good);
    invalidate_page(m, FIRST, va, PAGE)?;
    let all = device_pages(id, Some(FIRST), InvalidationRange::All);
    m.iommu.command(m.p, all)?;
    if m.iommu.efr.nx_sup() {
        reads(m, user.execute(), va, page).during("execute")?;
    }
    // DTE.I=0 with a PASID.
    let mut refusing = dte;
    refusing.q1 = refusing.q1.with_i(false);
    m.iommu.set_dte(m.p, id, &refusing)?;
    let who = Who::pasid(SECOND).privileged();
    let event = who.invalid(m, va, InvalidRequestType::TranslationDisabled);
    refused(m, who, va, false, rig.pages[1], Some(event)).during("DTE.I=0, PASID")
}

/// Pages move under a stream of writes that the device translates itself.
fn moving<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, mut stream: Stream) -> Result<usize> {
    for round in 0..ROUNDS {
        let n = round % PAGES;
        sentinel(m, stream.spare[n]);
        Stream::flow(m, WARM)?;
        stream.set(m, n, Some(stream.spare[n]));
        let range = if round < PAGES {
            InvalidationRange::Block {
                start: stream.page(n),
                size_log2: PAGE,
            }
        } else {
            InvalidationRange::All
        };
        let pages = InvalidateIommuPages::new()
            .with_domain_id(DOMAIN)
            .with_range(range);
        m.iommu.submit(m.p, pages.into())?;
        let command = device_pages(m.dev.id, None, range);
        m.iommu.command(m.p, command)?;
        for page in 0..PAGES {
            sentinel(m, stream.mapped[page]);
        }
        let aborted = Stream::flow(m, AFTER)?;
        ensure!(
            aborted == 0,
            "{aborted} writes were aborted, though all pages are mapped"
        );
        Stream::untouched(m, n, stream.mapped[n])?;
        Stream::lands(m, n, stream.spare[n])?;
        for page in (0..PAGES).filter(|page| *page != n) {
            Stream::lands(m, page, stream.mapped[page]).during("neighbour")?;
        }
        stream.swap(n);
    }
    stream.nothing_bypassed(m)?;
    Ok(ROUNDS)
}
