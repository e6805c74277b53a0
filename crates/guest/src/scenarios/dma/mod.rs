//! DMA: untranslated, by the DTE's permissions, blocked, and through host and guest page tables; and
//! what comes with it: ATS, page requests, dirty bits, counters.
//!
//! What the scenarios share stands here; each has its own file.

mod access;
pub(super) mod ats;
pub(super) mod ats_timeout;
pub(super) mod counters;
pub(super) mod dirty;
pub(super) mod exclusion;
pub(super) mod faults;
pub(super) mod freed;
pub(super) mod identity;
pub(super) mod invalidate;
pub(super) mod nested;
pub(super) mod pasid;
pub(super) mod pri;
mod rig;
pub(super) mod save_restore;
mod space;
mod stream;
mod table;
pub(super) mod v1;
pub(super) mod v2;

use amdvi_regs::command::{InvalidateIommuPages, InvalidationRange};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::{Event, IoPageFault};

use crate::endpoint::reg;
use crate::failure::{Result, bail, ensure};
use crate::machine::Machine;
use crate::platform::Platform;

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
    rz: bool,
}

const NOT_PERMITTED: Flags = Flags {
    pr: true,
    pe: true,
    rz: false,
};
const NOT_PRESENT: Flags = Flags {
    pr: false,
    pe: false,
    rz: false,
};
/// Reserved bits are set in an entry.
const RESERVED: Flags = Flags {
    pr: true,
    pe: false,
    rz: true,
};
/// The level or the size of an entry is none that may stand there.
const ENCODING: Flags = Flags {
    pr: true,
    pe: false,
    rz: false,
};

/// The IO_PAGE_FAULT of the endpoint's DMA.
fn page_fault<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    iova: u64,
    write: bool,
    flags: Flags,
) -> Event {
    IoPageFault::new()
        .with_device_id(m.dev.id.0)
        .with_pasid_domain_id(DOMAIN)
        .with_pr(flags.pr)
        .with_rw(write)
        .with_pe(flags.pe)
        .with_rz(flags.rz)
        .with_address(iova)
        .into()
}

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

/// A transfer that must be aborted, with one page fault or none, and change nothing.
fn aborted<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    iova: u64,
    write: bool,
    flags: Option<Flags>,
) -> Result<()> {
    let event = flags.map(|flags| page_fault(m, iova, write, flags));
    aborted_with(m, pages, iova, write, event)
}

/// A transfer that must be aborted, with this event or none, and change nothing.
fn aborted_with<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    pages: &Pages,
    iova: u64,
    write: bool,
    event: Option<Event>,
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
    if let Some(event) = event {
        m.expect_event(event)?;
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

/// Invalidates every page of the domain.
fn invalidate_domain<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let command = InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_pde(true)
        .with_range(InvalidationRange::All);
    m.iommu.command(m.p, command)
}

/// Puts the pattern, as 32-bit words, into the device's buffer.
fn load_buffer<P: Platform + ?Sized>(m: &mut Machine<'_, P>, length: u32) {
    for n in 0..u64::from(length) / 4 {
        m.dev.write(m.p, reg::DMA_BUFFER + 4 * n, pattern(n) as u32);
    }
}
