//! The endpoint's background stream of DMA writes, and where it may land.
//!
//! The IOVAs of the stream are the addresses of RAM that it must never reach, so that a write which
//! passes untranslated is seen. Each page of the range has a frame where it lands and a spare one.

use amdvi_regs::dte::Dte;

use super::table::{ALL, Path, Tables, leaf};
use super::{alloc, passthrough};
use crate::endpoint::{STORM_WORDS, reg, storm_offset};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::wait;

/// Pages of the stream's range.
pub(super) const PAGES: usize = 4;
const BYTES: u64 = PAGES as u64 * PAGE_BYTES;
const PAGE_BYTES: u64 = 4096;
/// What no write of the stream stores.
const SENTINEL: u64 = 0xfee1_dead_0bad_cafe;
/// Levels of the stream's table: enough for RAM above 1 TiB.
const MODE: u8 = 4;

/// The stream, its table and its frames.
pub(super) struct Stream {
    /// First IOVA of the range, and first GPA of what must stay untouched.
    pub(super) iova: u64,
    /// The table in use.
    pub(super) tables: Tables,
    /// Where each page lands.
    pub(super) mapped: [u64; PAGES],
    /// Where each page may land next.
    pub(super) spare: [u64; PAGES],
    /// The device may use translations of its own.
    ats: bool,
}

impl Stream {
    /// Maps every page to its frame and starts to write. Page faults are not logged: there are many.
    pub(super) fn start<P: Platform + ?Sized>(m: &mut Machine<'_, P>, ats: bool) -> Result<Self> {
        let iova = alloc(m, BYTES)?;
        let tables = Tables::new(m)?;
        let (mapped, spare) = (alloc(m, BYTES)?, alloc(m, BYTES)?);
        let each = |base: u64| core::array::from_fn(|n| base + n as u64 * PAGE_BYTES);
        let stream = Self {
            iova,
            tables,
            mapped: each(mapped),
            spare: each(spare),
            ats,
        };
        stream.map_all(m, &tables, stream.mapped);
        for page in 0..PAGES {
            sentinel(m, iova + page as u64 * PAGE_BYTES);
        }
        let (id, dte) = (m.dev.id, stream.dte());
        m.iommu.set_dte(m.p, id, &dte)?;
        m.dev.write64(m.p, reg::DMA_IOVA, iova);
        m.dev.write(m.p, reg::DMA_STORM_BYTES, BYTES as u32);
        m.dev.write(m.p, reg::DMA_STORM, 1);
        let running = m.dev.read(m.p, reg::DMA_STORM);
        ensure!(
            running == 1,
            "DMA_STORM reads {running} after 1 was written"
        );
        Ok(stream)
    }

    /// Ends the stream; nothing is in flight afterwards.
    pub(super) fn stop<P: Platform + ?Sized>(m: &mut Machine<'_, P>) {
        m.dev.write(m.p, reg::DMA_STORM, 0);
    }

    /// The DTE that uses the table, with SA.
    pub(super) fn dte(&self) -> Dte {
        let mut dte = passthrough();
        let root = self.tables.table(MODE);
        dte.q0 = dte.q0.with_mode(MODE).with_host_pt_root(root >> 12);
        dte.q1 = dte.q1.with_sa(true).with_i(self.ats);
        dte
    }

    /// The IOVA of a page.
    pub(super) fn page(&self, n: usize) -> u64 {
        self.iova + n as u64 * PAGE_BYTES
    }

    /// Maps every page of the range in `tables`.
    pub(super) fn map_all<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        tables: &Tables,
        frames: [u64; PAGES],
    ) {
        let path = Path::down(MODE, 1, 12);
        for (n, frame) in frames.into_iter().enumerate() {
            tables.map(m, &path, self.page(n), frame);
        }
    }

    /// Changes the PTE of a page: to a frame, or to nothing. Nothing is invalidated.
    pub(super) fn set<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        n: usize,
        frame: Option<u64>,
    ) {
        let pte = frame.map_or(0, |frame| leaf(frame, 1, 12, ALL));
        m.p.write_u64(self.tables.slot(self.page(n), 1), pte);
    }

    /// From now on the page lands in what was its spare frame.
    pub(super) fn swap(&mut self, n: usize) {
        core::mem::swap(&mut self.mapped[n], &mut self.spare[n]);
    }

    /// Nothing has passed untranslated.
    pub(super) fn nothing_bypassed<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
    ) -> Result<()> {
        for n in 0..PAGES {
            let touched = touched(m, self.page(n), n)?;
            ensure!(!touched, "a write of page {n} passed untranslated");
        }
        Ok(())
    }

    /// The frame holds nothing of the stream.
    pub(super) fn untouched<P: Platform + ?Sized>(
        m: &mut Machine<'_, P>,
        n: usize,
        frame: u64,
    ) -> Result<()> {
        let touched = touched(m, frame, n)?;
        ensure!(
            !touched,
            "page {n} was written at {frame:#x} after COMPLETION_WAIT"
        );
        Ok(())
    }

    /// The frame holds writes of page `n`, and nothing else.
    pub(super) fn lands<P: Platform + ?Sized>(
        m: &mut Machine<'_, P>,
        n: usize,
        frame: u64,
    ) -> Result<()> {
        let touched = touched(m, frame, n)?;
        ensure!(touched, "no write of page {n} reached {frame:#x}");
        Ok(())
    }

    /// Waits until the stream has tried `count` more writes; returns how many were aborted of those
    /// that began after the call.
    pub(super) fn flow<P: Platform + ?Sized>(m: &mut Machine<'_, P>, count: u64) -> Result<u64> {
        // A write that has landed may still have to be counted.
        let sent = m.dev.read64(m.p, reg::DMA_STORM_SENT);
        Self::reach(m, sent + 1)?;
        let aborted = m.dev.read64(m.p, reg::DMA_STORM_ABORTED);
        let sent = m.dev.read64(m.p, reg::DMA_STORM_SENT);
        // An abort is counted before its write is: the first one may have been counted already.
        Self::reach(m, sent + 1 + count)?;
        Ok(m.dev.read64(m.p, reg::DMA_STORM_ABORTED) - aborted)
    }

    fn reach<P: Platform + ?Sized>(m: &mut Machine<'_, P>, count: u64) -> Result<()> {
        let dev = m.dev;
        let flows = wait::until(m.p, |p| dev.read64(p, reg::DMA_STORM_SENT) >= count);
        ensure!(flows, "the DMA stream does not reach write {count}");
        Ok(())
    }
}

/// Fills what the stream may write of a frame with what it never writes.
pub(super) fn sentinel<P: Platform + ?Sized>(m: &mut Machine<'_, P>, frame: u64) {
    for word in 0..STORM_WORDS {
        m.p.write_u64(frame + 8 * word, SENTINEL);
    }
}

/// Whether the stream has written to the frame since it was filled. What stands there must be
/// writes of page `n` in their place.
pub(super) fn touched<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    frame: u64,
    n: usize,
) -> Result<bool> {
    let mut touched = false;
    for word in 0..STORM_WORDS {
        let at = frame + 8 * word;
        let seen = m.p.read_u64(at);
        if seen == SENTINEL {
            continue;
        }
        touched = true;
        let place = n as u64 * PAGE_BYTES + 8 * word;
        ensure!(
            storm_offset(seen, PAGES as u64) == place,
            "{seen:#x} stands at {at:#x}, where page {n} of the stream has offset {place:#x}"
        );
    }
    Ok(touched)
}
