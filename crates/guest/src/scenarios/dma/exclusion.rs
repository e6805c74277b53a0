//! The exclusion range: DMA that passes untranslated, for all devices or for those with DTE.EX.

use amdvi_regs::mmio::offset;

use super::super::done;
use super::table::{Path, Tables};
use super::{
    ABORTED, DONE, LENGTH, NOT_PERMITTED, NOT_PRESENT, alloc, load_buffer, page_fault, passthrough,
    pattern,
};
use crate::endpoint::reg;
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

const PAGES: usize = 4;
const PAGE_BYTES: u64 = 4096;
/// Levels of the table: enough for RAM above 1 TiB.
const MODE: u8 = 4;
/// Exclusion base: ExEn.
const ENABLED: u64 = 1;
/// Exclusion base: Allow.
const ALLOW: u64 = 2;

/// A range whose IOVAs are GPAs of RAM, mapped to other RAM.
struct Range {
    /// IOVAs, and GPAs when they pass untranslated.
    direct: u64,
    /// GPAs when they are translated.
    frames: u64,
}

/// What must become of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Translated,
}

use Way::{Direct, Translated};

impl Range {
    fn gpa(&self, at: u64, way: Way) -> u64 {
        at + if way == Direct {
            self.direct
        } else {
            self.frames
        }
    }

    /// Writes and reads at an offset in the range: they must go that way and touch nothing else.
    fn goes<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, at: u64, way: Way) -> Result<()> {
        let other = if way == Direct { Translated } else { Direct };
        let words = u64::from(LENGTH) / 4;
        for n in 0..words {
            m.p.write_u32(self.gpa(at, Direct) + 4 * n, 0);
            m.p.write_u32(self.gpa(at, Translated) + 4 * n, 0);
        }
        load_buffer(m, LENGTH);
        let status = m.dev.dma(m.p, self.direct + at, LENGTH, true);
        ensure!(status == DONE, "a DMA write had status {status}");
        for n in 0..words {
            let seen = m.p.read_u32(self.gpa(at, way) + 4 * n);
            ensure!(
                seen == pattern(n) as u32,
                "word {n} of a DMA write is {seen:#x}, not {:#x}",
                pattern(n) as u32
            );
            let seen = m.p.read_u32(self.gpa(at, other) + 4 * n);
            ensure!(seen == 0, "a DMA write went the wrong way: {seen:#x}");
        }
        let mark = 0x5ee5_0000 + at as u32;
        m.p.write_u32(self.gpa(at, way), mark);
        let status = m.dev.dma(m.p, self.direct + at, LENGTH, false);
        ensure!(status == DONE, "a DMA read had status {status}");
        let seen = m.dev.read(m.p, reg::DMA_BUFFER);
        ensure!(seen == mark, "a DMA read brought {seen:#x}, not {mark:#x}");
        m.expect_no_event()
    }

    /// The first and last bytes of each page go this way.
    fn all<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        what: &str,
        ways: [Way; PAGES],
    ) -> Result<()> {
        for (n, way) in ways.into_iter().enumerate() {
            let page = n as u64 * PAGE_BYTES;
            for at in [page, page + PAGE_BYTES - u64::from(LENGTH)] {
                self.goes(m, at, way)
                    .map_err(|failure| Failure::new(format_args!("{what}, page {n}: {failure}")))?;
            }
        }
        Ok(())
    }

    /// Sets the registers: pages `first..=last`, and these bits in the base.
    fn exclude<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        first: u64,
        last: u64,
        bits: u64,
    ) -> Result<()> {
        let base = (self.direct + first * PAGE_BYTES) | bits;
        let limit = self.direct + last * PAGE_BYTES;
        for (register, value) in [
            (offset::EXCLUSION_LIMIT, limit),
            (offset::EXCLUSION_BASE, base),
        ] {
            m.iommu.write(m.p, register, value);
            let seen = m.iommu.read(m.p, register);
            ensure!(
                seen == value,
                "register {register:#x} reads {seen:#x} after {value:#x} was written"
            );
        }
        m.iommu.flush_everything(m.p)
    }
}

/// `exclusion`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let bytes = PAGES as u64 * PAGE_BYTES;
    let range = Range {
        direct: alloc(&mut m, bytes)?,
        frames: alloc(&mut m, bytes)?,
    };
    let tables = Tables::new(&mut m)?;
    let path = Path::down(MODE, 1, 12);
    for n in 0..PAGES as u64 {
        let at = n * PAGE_BYTES;
        tables.map(&mut m, &path, range.direct + at, range.frames + at);
    }
    let id = m.dev.id;
    let mut dte = passthrough();
    dte.q0 = dte
        .q0
        .with_mode(MODE)
        .with_host_pt_root(tables.table(MODE) >> 12);
    m.iommu.set_dte(m.p, id, &dte)?;
    let none = [Translated; PAGES];
    let middle = [Translated, Direct, Direct, Translated];
    range.all(&mut m, "no range", none)?;

    // For every device.
    range.exclude(&mut m, 1, 2, ENABLED | ALLOW)?;
    range.all(&mut m, "Allow=1", middle)?;
    crosses(&mut m, &range).during("Allow=1")?;
    range.exclude(&mut m, 2, 2, ENABLED | ALLOW)?;
    let one = [Translated, Translated, Direct, Translated];
    range.all(&mut m, "a range of one page", one)?;
    range.exclude(&mut m, 2, 1, ENABLED | ALLOW)?;
    range.all(&mut m, "limit below base", none)?;

    // For devices with EX.
    range.exclude(&mut m, 1, 2, ENABLED)?;
    range.all(&mut m, "Allow=0, EX=0", none)?;
    dte.q1 = dte.q1.with_ex(true);
    m.iommu.set_dte(m.p, id, &dte)?;
    range.all(&mut m, "Allow=0, EX=1", middle)?;

    // The DTE's own permissions and the table have no say in the range.
    let mut closed = dte;
    closed.q0 = closed.q0.with_ir(false).with_iw(false);
    m.iommu.set_dte(m.p, id, &closed)?;
    outside_aborts(&mut m, &range, NOT_PERMITTED).during("IR=IW=0")?;
    closed.q0 = dte.q0.with_tv(false);
    m.iommu.set_dte(m.p, id, &closed)?;
    outside_aborts(&mut m, &range, NOT_PRESENT).during("TV=0")?;
    m.iommu.set_dte(m.p, id, &dte)?;
    for n in 0..PAGES as u64 {
        let slot = tables.slot(range.direct + n * PAGE_BYTES, 1);
        m.p.write_u64(slot, 0);
    }
    m.iommu.flush_everything(m.p)?;
    outside_aborts(&mut m, &range, NOT_PRESENT).during("no page mapped")?;
    for n in 0..PAGES as u64 {
        let at = n * PAGE_BYTES;
        tables.map(&mut m, &path, range.direct + at, range.frames + at);
    }

    range.exclude(&mut m, 1, 2, ALLOW)?;
    range.all(&mut m, "ExEn=0", none)?;
    done(
        &m,
        report,
        format_args!(
            "with Allow or with DTE.EX the pages of the range pass untranslated to the byte, \
             whatever table and permissions say; pages beside it, a device without EX, an empty range \
             and ExEn=0 are translated"
        ),
    )
}

/// Inside passes, outside aborts.
fn outside_aborts<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    range: &Range,
    flags: super::Flags,
) -> Result<()> {
    for page in [1, 2] {
        range
            .goes(m, page * PAGE_BYTES, Direct)
            .during("inside the range")?;
    }
    for page in [0, 3] {
        let iova = range.direct + page * PAGE_BYTES;
        for write in [false, true] {
            let status = m.dev.dma(m.p, iova, LENGTH, write);
            ensure!(
                status == ABORTED,
                "outside the range a transfer had status {status}"
            );
            let event = page_fault(m, iova, write, flags);
            m.expect_event(event)?;
            m.expect_no_event()?;
            m.blocked += 1;
        }
    }
    Ok(())
}

/// Transfers across both ends of the range take both ways.
fn crosses<P: Platform + ?Sized>(m: &mut Machine<'_, P>, range: &Range) -> Result<()> {
    let half = u64::from(LENGTH) / 2;
    for (border, ways) in [
        (PAGE_BYTES, [Translated, Direct]),
        (3 * PAGE_BYTES, [Direct, Translated]),
    ] {
        for n in 0..u64::from(LENGTH) / 4 {
            for way in [Direct, Translated] {
                m.p.write_u32(range.gpa(border - half + 4 * n, way), 0);
            }
        }
        load_buffer(m, LENGTH);
        let status = m.dev.dma(m.p, range.direct + border - half, LENGTH, true);
        ensure!(status == DONE, "DMA across a border had status {status}");
        for n in 0..u64::from(LENGTH) / 4 {
            let at = border - half + 4 * n;
            let way = ways[usize::from(4 * n >= half)];
            let other = if way == Direct { Translated } else { Direct };
            let seen = [way, other].map(|way| m.p.read_u32(range.gpa(at, way)));
            ensure!(
                seen == [pattern(n) as u32, 0],
                "word {n} across the border at {border:#x}: {seen:x?}"
            );
        }
        m.expect_no_event()?;
    }
    Ok(())
}
