//! DMA through host page tables: every level, every size, skipped levels, and what a driver does
//! with a table in use.

use super::super::done;
use super::table::{ALL, Path, READ, Tables, entry, leaf, level_shift};
use super::{
    DONE, LARGE_PAGE, LENGTH, NOT_PERMITTED, NOT_PRESENT, Pages, aborted, alloc, copies,
    invalidate, invalidate_block, load_buffer, passthrough, pattern,
};
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// How many levels the IOMMU translates.
pub(super) fn levels<P: Platform + ?Sized>(m: &Machine<'_, P>) -> Result<u8> {
    ensure!(
        m.iommu.efr.hats() != 3,
        "EFR is {:#x}: host translation is not offered (HATS=3)",
        m.iommu.efr.into_bits()
    );
    Ok(4 + m.iommu.efr.hats())
}

/// `dma-v1`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let levels = levels(&m)?;
    in_use(&mut m)?;
    let paths = every_path(&mut m, levels)?;
    done(
        &m,
        report,
        format_args!(
            "{paths} ways through Modes 1 to {levels}: a page at each level, each NextLevel 7 size, \
             skipped levels; reads and writes reach their pages, unmapping ends that; read-only, \
             missing and too wide addresses and a PDE without IW abort with the event's flags \
             compared; a transfer across pages is split"
        ),
    )
}

/// A table of three levels, and what a driver changes in it.
fn in_use<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    const READ_AT: u64 = 0x12_3456_6000;
    const WRITE_AT: u64 = READ_AT + 0x1000;
    let id = m.dev.id;
    let pages = Pages {
        source: alloc(m, 4096)?,
        target: alloc(m, 4096)?,
    };
    let path = Path::down(3, 1, 12);
    let table = Tables::new(m)?;
    table.map(m, &path, READ_AT, pages.source);
    table.map(m, &path, WRITE_AT, pages.target);
    let read_leaf = table.slot(READ_AT, 1);
    let write_leaf = table.slot(WRITE_AT, 1);
    m.p.write_u64(read_leaf, leaf(pages.source, 1, 12, READ));
    let mut dte = passthrough();
    dte.q0 = dte.q0.with_mode(3).with_host_pt_root(table.table(3) >> 12);
    m.iommu.set_dte(m.p, id, &dte)?;
    copies(m, &pages, READ_AT, WRITE_AT)?;
    copies(m, &pages, READ_AT, WRITE_AT).during("again, from caches")?;

    aborted(m, &pages, READ_AT, true, Some(NOT_PERMITTED)).during("read-only page")?;
    let beside = WRITE_AT + 0x1000;
    aborted(m, &pages, beside, false, Some(NOT_PRESENT)).during("no page")?;
    aborted(m, &pages, 1 << 39, true, Some(NOT_PRESENT)).during("above Mode 3")?;

    // Permissions are those of all levels together: all that the PDE covers is invalidated, since
    // a translation may be cached with what its levels allow.
    let upper = table.slot(READ_AT, 2);
    m.p.write_u64(upper, entry(table.table(1), 1, READ));
    invalidate_block(m, READ_AT, LARGE_PAGE)?;
    aborted(m, &pages, WRITE_AT, true, Some(NOT_PERMITTED)).during("PDE without IW")?;
    m.p.write_u64(upper, entry(table.table(1), 1, ALL));
    invalidate_block(m, READ_AT, LARGE_PAGE)?;
    copies(m, &pages, READ_AT, WRITE_AT).during("PDE mended")?;

    // Unmap: after the completion nothing reaches the page.
    m.p.write_u64(write_leaf, 0);
    invalidate(m, WRITE_AT)?;
    aborted(m, &pages, WRITE_AT, true, Some(NOT_PRESENT)).during("unmapped")?;

    // A transfer that crosses pages takes each page's own way.
    let other = alloc(m, 4096)?;
    m.p.write_u64(read_leaf, leaf(pages.target, 1, 12, ALL));
    m.p.write_u64(write_leaf, leaf(other, 1, 12, ALL));
    invalidate(m, READ_AT)?;
    invalidate(m, WRITE_AT)?;
    crosses(m, &pages, other, WRITE_AT)
}

fn crosses<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    other: u64,
    border: u64,
) -> Result<()> {
    let half = u64::from(LENGTH) / 2;
    load_buffer(m, LENGTH);
    let status = m.dev.dma(m.p, border - half, LENGTH, true);
    ensure!(status == DONE, "DMA across pages had status {status}");
    for n in 0..u64::from(LENGTH) / 4 {
        let at = if n < half / 4 {
            pages.target + 4096 - half + 4 * n
        } else {
            other + 4 * n - half
        };
        let seen = u64::from(m.p.read_u32(at));
        ensure!(
            seen == pattern(n) & 0xffff_ffff,
            "word {n} of a DMA across pages is {seen:#x} at {at:#x}"
        );
    }
    m.expect_no_event()
}

/// Every way to a page that tables of up to `levels` levels have. Returns how many there are.
fn every_path<P: Platform + ?Sized>(m: &mut Machine<'_, P>, levels: u8) -> Result<u32> {
    let tables = Tables::new(m)?;
    // Two pages of one 8 KiB block: all larger pages contain both.
    let block = alloc(m, 0x2000)?;
    let pages = Pages {
        source: block,
        target: block + 0x1800,
    };
    let mut paths = 0;
    let mut case = |path: Path| {
        paths += 1;
        one_path(m, &tables, &pages, &path).map_err(|failure| {
            Failure::new(format_args!(
                "levels {:?}, page of 2^{}: {failure}",
                path.levels(),
                path.shift
            ))
        })
    };
    for mode in 1..=levels {
        for leaf in 1..=mode {
            case(Path::down(mode, leaf, level_shift(leaf)))?;
        }
    }
    for leaf in 1..=levels.min(5) {
        // An address has no bit for a larger size than 2^52.
        let default = level_shift(leaf);
        for shift in default + 1..=(default + 8).min(52) {
            case(Path::down(leaf, leaf, shift))?;
            if leaf != levels {
                case(Path::down(levels, leaf, shift))?;
            }
        }
    }
    for mode in 3..=levels {
        for next in 1..mode - 1 {
            case(Path::skipping(mode, next, 1, 1, 12))?;
            case(Path::skipping(mode, next, next, 1, level_shift(next)))?;
            case(Path::skipping(mode, next, next, 1, level_shift(next) + 1))?;
        }
        // More than one skip.
        case(Path::skipping(mode, mode, 1, 2, level_shift(2 - mode % 2)))?;
    }
    Ok(paths)
}

/// Maps by one path, transfers, unmaps.
fn one_path<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    tables: &Tables,
    pages: &Pages,
    path: &Path,
) -> Result<()> {
    let (from, to) = (path.iova(pages.source), path.iova(pages.target));
    tables.map(m, path, from, pages.source);
    tables.map(m, path, to, pages.target);
    let mut dte = passthrough();
    dte.q0 = dte
        .q0
        .with_mode(path.mode())
        .with_host_pt_root(tables.table(path.mode()) >> 12);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    copies(m, pages, from, to)?;
    copies(m, pages, from, to).during("again, from caches")?;
    tables.unmap(m, path, from);
    tables.unmap(m, path, to);
    // An aligned block of the page's size is all that was mapped; two small pages are 8 KiB.
    invalidate_block(m, from, path.shift.max(13) as u8)?;
    aborted(m, pages, from, false, Some(NOT_PRESENT)).during("unmapped")?;
    aborted(m, pages, to, true, Some(NOT_PRESENT)).during("unmapped")
}
