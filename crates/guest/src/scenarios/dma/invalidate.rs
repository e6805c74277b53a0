//! Pages that are taken away or moved while a device writes to them.
//!
//! After the store of a COMPLETION_WAIT that follows an invalidation is visible, no write lands
//! where the old tables said. Frames are filled with a sentinel at that moment and looked at once
//! the stream has gone on for a while.

use amdvi_regs::command::{
    Command, InvalidateDevtabEntry, InvalidateIommuAll, InvalidateIommuPages, InvalidationRange,
};
use amdvi_regs::dte::Dte;

use super::super::done;
use super::stream::{PAGES, Stream, sentinel, touched};
use super::table::Tables;
use super::{DOMAIN, PAGE};
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// Times that each way of invalidating is used.
const ROUNDS: usize = 24;
/// Writes of the stream before a change: every page is in the caches.
const WARM: u64 = 16;
/// Writes of the stream after a change.
const AFTER: u64 = 96;

/// What invalidates.
#[derive(Clone, Copy)]
enum By {
    /// INVALIDATE_IOMMU_PAGES for a block of 2^n bytes around the first of the changed pages.
    Block(u8),
    /// INVALIDATE_IOMMU_PAGES for the whole address space.
    Domain,
    /// INVALIDATE_IOMMU_ALL.
    All,
}

impl By {
    const fn name(self) -> &'static str {
        match self {
            Self::Block(PAGE) => "one page",
            Self::Block(13) => "two pages",
            Self::Block(_) => "a block",
            Self::Domain => "the domain",
            Self::All => "INVALIDATE_IOMMU_ALL",
        }
    }

    /// The pages that it covers, from `first` on.
    const fn pages(self) -> usize {
        match self {
            Self::Block(PAGE) => 1,
            Self::Block(13) => 2,
            _ => PAGES,
        }
    }

    fn command(self, stream: &Stream, first: usize) -> Command {
        let pages = |range| {
            InvalidateIommuPages::new()
                .with_domain_id(DOMAIN)
                .with_range(range)
                .into()
        };
        match self {
            Self::Block(size_log2) => pages(InvalidationRange::Block {
                start: stream.page(first),
                size_log2,
            }),
            Self::Domain => pages(InvalidationRange::All),
            Self::All => InvalidateIommuAll::new().into(),
        }
    }
}

/// `dma-invalidate`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let mut stream = Stream::start(&mut m, false)?;
    let result = all(&mut m, &mut stream);
    // Whatever was found: the device must not write while the next scenario runs.
    Stream::stop(&mut m);
    let rounds = result?;
    m.expect_no_event()?;
    done(
        &m,
        report,
        format_args!(
            "{rounds} changes under a stream of DMA writes: by page, block, domain, \
             INVALIDATE_IOMMU_ALL and INVALIDATE_DEVTAB_ENTRY; after each COMPLETION_WAIT nothing \
             reached an old page, new pages were reached, unmapped ones aborted, and neighbours went on"
        ),
    )
}

fn all<P: Platform + ?Sized>(m: &mut Machine<'_, P>, stream: &mut Stream) -> Result<usize> {
    let mut rounds = 0;
    let ways = [
        By::Block(PAGE),
        By::Block(13),
        By::Block(14),
        By::Block(30),
        By::Domain,
        By::All,
    ];
    for by in ways {
        if matches!(by, By::All) && !m.iommu.efr.ia_sup() {
            continue;
        }
        for round in 0..ROUNDS {
            let first = round % PAGES / by.pages() * by.pages();
            let unmap = round / PAGES % 2 == 1;
            change(m, stream, by, first, unmap).map_err(|failure| {
                let what = if unmap { "unmap" } else { "remap" };
                let by = by.name();
                Failure::new(format_args!("{what} by {by}, round {round}: {failure}"))
            })?;
            rounds += 1;
        }
    }
    for round in 0..ROUNDS {
        neighbour(m, stream, round % PAGES).during("a neighbour changed without invalidation")?;
        rounds += 1;
    }
    for _ in 0..ROUNDS / 2 {
        device_table_entry(m, stream).during("INVALIDATE_DEVTAB_ENTRY")?;
        rounds += 2;
    }
    Ok(rounds)
}

/// Takes pages away, or moves them to their spare frames, and invalidates exactly those.
fn change<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &mut Stream,
    by: By,
    first: usize,
    unmap: bool,
) -> Result<()> {
    let changed = first..first + by.pages();
    for n in changed.clone() {
        sentinel(m, stream.spare[n]);
    }
    Stream::flow(m, WARM)?;
    for n in changed.clone() {
        let frame = (!unmap).then_some(stream.spare[n]);
        stream.set(m, n, frame);
    }
    let command = by.command(stream, first);
    m.iommu.command(m.p, command)?;
    for n in 0..PAGES {
        sentinel(m, stream.mapped[n]);
    }
    let aborted = Stream::flow(m, AFTER)?;
    for n in 0..PAGES {
        if !changed.contains(&n) {
            Stream::lands(m, n, stream.mapped[n]).during("neighbour")?;
            continue;
        }
        Stream::untouched(m, n, stream.mapped[n])?;
        if unmap {
            Stream::untouched(m, n, stream.spare[n]).during("unmapped page")?;
        } else {
            Stream::lands(m, n, stream.spare[n]).during("new page")?;
        }
    }
    // The stream visits the pages in turn.
    let expected = AFTER / PAGES as u64 * by.pages() as u64;
    if unmap {
        ensure!(
            aborted >= expected,
            "{aborted} writes were aborted; of {AFTER}, {expected} must be"
        );
    } else {
        ensure!(
            aborted == 0,
            "{aborted} writes were aborted, though all pages are mapped"
        );
    }
    m.blocked += aborted;
    if unmap {
        for n in changed.clone() {
            stream.set(m, n, Some(stream.spare[n]));
        }
        m.iommu.command(m.p, command)?;
        Stream::flow(m, AFTER)?;
        for n in changed.clone() {
            Stream::lands(m, n, stream.spare[n]).during("mapped again")?;
        }
    }
    for n in changed {
        stream.swap(n);
    }
    stream.nothing_bypassed(m)
}

/// Two pages move, one is invalidated: that one is used at once, the other's old frame may be used
/// until its own invalidation, and no write is lost.
fn neighbour<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &mut Stream,
    first: usize,
) -> Result<()> {
    let second = (first + 1) % PAGES;
    for n in [first, second] {
        sentinel(m, stream.spare[n]);
    }
    Stream::flow(m, WARM)?;
    for n in [first, second] {
        stream.set(m, n, Some(stream.spare[n]));
    }
    let command = By::Block(PAGE).command(stream, first);
    m.iommu.command(m.p, command)?;
    for n in [first, second] {
        sentinel(m, stream.mapped[n]);
    }
    let aborted = Stream::flow(m, AFTER)?;
    ensure!(
        aborted == 0,
        "{aborted} writes to mapped pages were aborted"
    );
    Stream::untouched(m, first, stream.mapped[first])?;
    Stream::lands(m, first, stream.spare[first])?;
    let old = touched(m, stream.mapped[second], second)?;
    let new = touched(m, stream.spare[second], second)?;
    ensure!(old || new, "page {second} was reached in neither frame");
    let command = By::Block(PAGE).command(stream, second);
    m.iommu.command(m.p, command)?;
    sentinel(m, stream.mapped[second]);
    Stream::flow(m, AFTER)?;
    Stream::untouched(m, second, stream.mapped[second])?;
    Stream::lands(m, second, stream.spare[second])?;
    stream.swap(first);
    stream.swap(second);
    stream.nothing_bypassed(m)
}

/// The device is blocked by its DTE, and given another domain with another table.
fn device_table_entry<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &mut Stream,
) -> Result<()> {
    Stream::flow(m, WARM)?;
    let mut blocked = stream.dte();
    blocked.q0 = blocked.q0.with_tv(false);
    devtab(m, &blocked)?;
    for n in 0..PAGES {
        sentinel(m, stream.mapped[n]);
        sentinel(m, stream.spare[n]);
    }
    let aborted = Stream::flow(m, AFTER)?;
    ensure!(
        aborted >= AFTER,
        "TV=0: {aborted} of {AFTER} writes were aborted"
    );
    m.blocked += aborted;
    for n in 0..PAGES {
        Stream::untouched(m, n, stream.mapped[n]).during("TV=0")?;
    }

    // Another domain: nothing that was cached for the old one counts.
    let old = stream.tables;
    let other = Tables::new(m)?;
    stream.map_all(m, &other, stream.spare);
    stream.tables = other;
    let mut moved = stream.dte();
    moved.q1 = moved.q1.with_domain_id(DOMAIN + 1);
    let mut closed = moved;
    closed.q0 = closed.q0.with_tv(false);
    // A new DomainID and a new root do not fit one store: the entry is closed in between.
    devtab(m, &closed)?;
    devtab(m, &moved)?;
    let aborted = Stream::flow(m, AFTER)?;
    ensure!(
        aborted == 0,
        "another domain: {aborted} writes were aborted"
    );
    for n in 0..PAGES {
        Stream::untouched(m, n, stream.mapped[n]).during("another domain")?;
        Stream::lands(m, n, stream.spare[n]).during("another domain")?;
    }

    // And back, where the old domain's pages are as they were.
    stream.tables = old;
    for n in 0..PAGES {
        sentinel(m, stream.mapped[n]);
    }
    let mut closed = stream.dte();
    closed.q0 = closed.q0.with_tv(false);
    devtab(m, &closed)?;
    let dte = stream.dte();
    devtab(m, &dte)?;
    for n in 0..PAGES {
        sentinel(m, stream.spare[n]);
    }
    Stream::flow(m, AFTER)?;
    for n in 0..PAGES {
        Stream::untouched(m, n, stream.spare[n]).during("back in the old domain")?;
        Stream::lands(m, n, stream.mapped[n]).during("back in the old domain")?;
    }
    // The other domain's number is used again with another table.
    m.iommu.command(
        m.p,
        InvalidateIommuPages::new()
            .with_domain_id(DOMAIN + 1)
            .with_range(InvalidationRange::All),
    )?;
    stream.nothing_bypassed(m)
}

/// Writes the lower half of the DTE, DomainID before root and TV, and invalidates only the DTE.
fn devtab<P: Platform + ?Sized>(m: &mut Machine<'_, P>, dte: &Dte) -> Result<()> {
    let id = m.dev.id;
    let gpa = m.iommu.dte(id);
    let words = dte.words();
    m.p.write_u64(gpa + 8, words[1]);
    m.p.write_u64(gpa, words[0]);
    m.iommu
        .command(m.p, InvalidateDevtabEntry::new().with_device_id(id.0))
}
