//! DMA: untranslated, by the DTE's permissions, blocked, and through a host page table.

use amdvi_regs::command::{InvalidateIommuPages, InvalidationRange};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::IoPageFault;

use super::done;
use crate::endpoint::reg;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

const DOMAIN: u16 = 0x77;
const DONE: u32 = 1;
const ABORTED: u32 = 2;
/// Bytes of a transfer.
const LENGTH: u32 = 64;

/// What an IO_PAGE_FAULT of DMA says.
#[derive(Clone, Copy)]
struct Flags {
    pr: bool,
    pe: bool,
}

const NOT_PERMITTED: Flags = Flags { pr: true, pe: true };
const NOT_PRESENT: Flags = Flags {
    pr: false,
    pe: false,
};

/// Pages that the scenario reads and writes, and the device's way to them.
struct Pages {
    source: u64,
    target: u64,
}

fn alloc<P: Platform + ?Sized>(m: &mut Machine<'_, P>, bytes: u64) -> Result<u64> {
    match m.p.alloc(bytes, bytes) {
        Some(gpa) => Ok(gpa),
        None => bail!("no RAM left for {bytes:#x} bytes"),
    }
}

fn pattern(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills the source with a pattern and the target with zeros.
fn fill<P: Platform + ?Sized>(m: &mut Machine<'_, P>, pages: &Pages) {
    for n in 0..u64::from(LENGTH) / 8 {
        m.p.write_u64(pages.source + 8 * n, pattern(n));
        m.p.write_u64(pages.target + 8 * n, 0);
    }
}

/// Reads at `from` and writes at `to`; both must pass, and the data must arrive.
fn copies<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    from: u64,
    to: u64,
) -> Result<()> {
    fill(m, pages);
    let status = m.dev.dma(m.p, from, LENGTH, false);
    ensure!(
        status == DONE,
        "a DMA read at {from:#x} had status {status}"
    );
    let status = m.dev.dma(m.p, to, LENGTH, true);
    ensure!(status == DONE, "a DMA write at {to:#x} had status {status}");
    for n in 0..u64::from(LENGTH) / 8 {
        let seen = m.p.read_u64(pages.target + 8 * n);
        ensure!(
            seen == pattern(n),
            "word {n} of the DMA target is {seen:#x}, not {:#x}",
            pattern(n)
        );
    }
    m.expect_no_event()
}

/// A transfer that must be aborted, with one event or none, and change nothing.
fn aborted<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    iova: u64,
    write: bool,
    flags: Option<Flags>,
) -> Result<()> {
    fill(m, pages);
    let status = m.dev.dma(m.p, iova, LENGTH, write);
    ensure!(
        status == ABORTED,
        "DMA at {iova:#x} had status {status}, not {ABORTED} (aborted)"
    );
    for n in 0..u64::from(LENGTH) / 8 {
        let seen = m.p.read_u64(pages.target + 8 * n);
        ensure!(seen == 0, "aborted DMA wrote {seen:#x}");
    }
    if let Some(flags) = flags {
        m.expect_event(
            IoPageFault::new()
                .with_device_id(m.dev.id.0)
                .with_pasid_domain_id(DOMAIN)
                .with_pr(flags.pr)
                .with_rw(write)
                .with_pe(flags.pe)
                .with_address(iova),
        )?;
    }
    m.blocked += 1;
    // One transfer is one event, however long it is.
    m.expect_no_event()
}

/// A DTE without a page table.
const fn passthrough() -> Dte {
    Dte {
        q0: DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_ir(true)
            .with_iw(true),
        q1: DteQ1::new().with_domain_id(DOMAIN),
        q2: DteQ2::new().with_iv(true),
        q3: amdvi_regs::dte::DteQ3::new(),
    }
}

/// `dma-identity-blocked`.
pub(super) fn identity<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let id = m.dev.id;
    let pages = Pages {
        source: alloc(&mut m, 4096)?,
        target: alloc(&mut m, 4096)?,
    };
    let (from, to) = (pages.source, pages.target);

    // Nobody has claimed the device: V=0.
    copies(&mut m, &pages, from, to).during("V=0")?;
    let mut dte = passthrough();
    m.iommu.set_dte(m.p, id, &dte)?;
    copies(&mut m, &pages, from, to).during("Mode 0, IR=IW=1")?;

    dte.q0 = dte.q0.with_iw(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, to, true, Some(NOT_PERMITTED)).during("IW=0")?;
    let status = m.dev.dma(m.p, from, LENGTH, false);
    ensure!(status == DONE, "IW=0: a DMA read had status {status}");
    let word = u64::from(m.dev.read(m.p, reg::DMA_BUFFER));
    ensure!(
        word == pattern(0) & 0xffff_ffff,
        "IW=0: a DMA read brought {word:#x}, not {:#x}",
        pattern(0) & 0xffff_ffff
    );

    dte.q0 = dte.q0.with_iw(true).with_ir(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, from, false, Some(NOT_PERMITTED)).during("IR=0")?;
    dte.q0 = dte.q0.with_iw(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    for (iova, write) in [(from, false), (to, true)] {
        aborted(&mut m, &pages, iova, write, Some(NOT_PERMITTED)).during("IR=IW=0")?;
    }
    dte.q1 = dte.q1.with_sa(true);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, to, true, None).during("IR=IW=0, SA=1")?;

    dte = passthrough();
    dte.q0 = dte.q0.with_tv(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    for (iova, write) in [(from, false), (to, true)] {
        aborted(&mut m, &pages, iova, write, Some(NOT_PRESENT)).during("TV=0")?;
    }

    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_iommu_en(false));
    copies(&mut m, &pages, from, to).during("IommuEn=0")?;
    m.iommu.set_control(m.p, control);
    aborted(&mut m, &pages, to, true, Some(NOT_PRESENT)).during("IommuEn 0 → 1")?;
    m.iommu.set_dte(m.p, id, &passthrough())?;
    copies(&mut m, &pages, from, to).during("passthrough again")?;
    done(
        &m,
        report,
        format_args!(
            "DMA passes with V=0, with Mode 0 as IR and IW say, and with IommuEn=0; it is aborted \
             by IR=0, IW=0 and TV=0 with one event per transfer, or none with SA=1; aborted \
             transfers change no memory"
        ),
    )
}

const PRESENT: u64 = 1;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

/// A PDE or PTE: present, with NextLevel, address and permissions.
const fn entry(gpa: u64, next_level: u64, permissions: u64) -> u64 {
    PRESENT | next_level << 9 | gpa | permissions
}

/// A three-level host page table.
struct Table {
    root: u64,
    level2: u64,
    level1: u64,
}

impl Table {
    /// A table whose lowest level covers the 2 MiB at `iova`.
    fn new<P: Platform + ?Sized>(m: &mut Machine<'_, P>, iova: u64) -> Result<Self> {
        let table = Self {
            root: alloc(m, 4096)?,
            level2: alloc(m, 4096)?,
            level1: alloc(m, 4096)?,
        };
        let all = READ | WRITE;
        m.p.write_u64(table.root + index(iova, 3), entry(table.level2, 2, all));
        m.p.write_u64(table.level2 + index(iova, 2), entry(table.level1, 1, all));
        Ok(table)
    }

    /// The address of the lowest entry for `iova`.
    fn leaf(&self, iova: u64) -> u64 {
        self.level1 + index(iova, 1)
    }
}

/// Byte offset of the entry for `iova` in a table of this level.
const fn index(iova: u64, level: u32) -> u64 {
    (iova >> (3 + 9 * level) & 0x1ff) * 8
}

/// `dma-v1`.
pub(super) fn v1<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    const READ_AT: u64 = 0x12_3456_7000;
    const WRITE_AT: u64 = READ_AT + 0x1000;
    let mut m = Machine::start(p, Config::offered)?;
    ensure!(
        m.iommu.efr.hats() != 3,
        "EFR is {:#x}: host translation is not offered (HATS=3)",
        m.iommu.efr.into_bits()
    );
    let id = m.dev.id;
    let pages = Pages {
        source: alloc(&mut m, 4096)?,
        target: alloc(&mut m, 4096)?,
    };
    let table = Table::new(&mut m, READ_AT)?;
    let all = READ | WRITE;
    m.p.write_u64(table.leaf(READ_AT), entry(pages.source, 0, READ));
    m.p.write_u64(table.leaf(WRITE_AT), entry(pages.target, 0, all));
    let mut dte = passthrough();
    dte.q0 = dte.q0.with_mode(3).with_host_pt_root(table.root >> 12);
    m.iommu.set_dte(m.p, id, &dte)?;
    copies(&mut m, &pages, READ_AT, WRITE_AT)?;
    copies(&mut m, &pages, READ_AT, WRITE_AT).during("again, from caches")?;

    aborted(&mut m, &pages, READ_AT, true, Some(NOT_PERMITTED)).during("read-only page")?;
    let beside = WRITE_AT + 0x1000;
    aborted(&mut m, &pages, beside, false, Some(NOT_PRESENT)).during("no page")?;
    aborted(&mut m, &pages, 1 << 39, true, Some(NOT_PRESENT)).during("above Mode 3")?;

    // Permissions are those of all levels together: all that the PDE covers is invalidated, since
    // a translation may be cached with what its levels allow.
    let upper = table.level2 + index(READ_AT, 2);
    m.p.write_u64(upper, entry(table.level1, 1, READ));
    invalidate_block(&mut m, READ_AT, LARGE_PAGE)?;
    aborted(&mut m, &pages, WRITE_AT, true, Some(NOT_PERMITTED)).during("PDE without IW")?;
    m.p.write_u64(upper, entry(table.level1, 1, all));
    invalidate_block(&mut m, READ_AT, LARGE_PAGE)?;
    copies(&mut m, &pages, READ_AT, WRITE_AT).during("PDE mended")?;

    // Unmap: after the completion nothing reaches the page.
    m.p.write_u64(table.leaf(WRITE_AT), 0);
    invalidate(&mut m, WRITE_AT)?;
    aborted(&mut m, &pages, WRITE_AT, true, Some(NOT_PRESENT)).during("unmapped")?;

    // A transfer that crosses pages takes each page's own way.
    let other = alloc(&mut m, 4096)?;
    m.p.write_u64(table.leaf(READ_AT), entry(pages.target, 0, all));
    m.p.write_u64(table.leaf(WRITE_AT), entry(other, 0, all));
    invalidate(&mut m, READ_AT)?;
    invalidate(&mut m, WRITE_AT)?;
    crosses(&mut m, &pages, other, WRITE_AT)?;
    done(
        &m,
        report,
        format_args!(
            "reads and writes through three levels reach their pages; read-only, missing and too \
             wide addresses, a PDE without IW and an unmapped page abort with the event's flags \
             compared; a transfer across pages is split"
        ),
    )
}

/// log2 of the 4 KiB of a page, and of the 2 MiB that an entry of level 2 covers.
const PAGE: u8 = 12;
const LARGE_PAGE: u8 = 21;

fn invalidate<P: Platform + ?Sized>(m: &mut Machine<'_, P>, iova: u64) -> Result<()> {
    invalidate_block(m, iova, PAGE)
}

/// Invalidates the block of 2^`size_log2` bytes around `iova`.
fn invalidate_block<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    iova: u64,
    size_log2: u8,
) -> Result<()> {
    let range = InvalidationRange::Block {
        start: iova,
        size_log2,
    };
    let command = InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_pde(true)
        .with_range(range);
    m.iommu.command(m.p, command)
}

fn crosses<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    other: u64,
    border: u64,
) -> Result<()> {
    let half = u64::from(LENGTH) / 2;
    for n in 0..u64::from(LENGTH) / 4 {
        m.dev.write(m.p, reg::DMA_BUFFER + 4 * n, pattern(n) as u32);
    }
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
