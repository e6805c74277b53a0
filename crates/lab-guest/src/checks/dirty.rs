//! Dirty tracking: the pages that the test endpoint has written, and no other.

use amdvi_lab_guest::data::{differs, fill};
use amdvi_lab_guest::plan::{Backend, Dirty, Target};
use anyhow::{Context, Result, ensure};

use super::debugfs;
use crate::endpoint::{Dma, Endpoint};
use crate::memory::Memory;
use crate::vfio::Tracked;

const BYTES: usize = 64;
/// Bytes of a page of the bitmap.
const PAGE: u64 = 4096;
/// HAD: accessed and dirty bits.
const ACCESSED_AND_DIRTY: u8 = 3;

pub(super) fn check(want: &Dirty) -> Result<String> {
    let endpoint = Endpoint::open(Target {
        backend: Some(Backend::Cdev),
        ..want.target
    })?;
    let device = endpoint.device();
    let length = want.granule * want.count;
    let memory = Memory::new(length)?;
    ensure!(
        memory.page() >= want.granule,
        "memory comes in pages of {:#x}: a mapping of {:#x} bytes has several of them",
        memory.page(),
        want.granule
    );
    let tracked = Tracked::new(device)?;
    // Each mapping by itself: what is mapped at once gets larger pages where memory has them.
    for n in 0..want.count {
        let at = n * want.granule;
        device.map(want.iova + at, &memory, at, want.granule)?;
    }
    let job = Job {
        want,
        endpoint: &endpoint,
        memory: &memory,
        tracked: &tracked,
    };
    // What is written while nobody tracks is not looked at.
    job.write(0, 1)?;
    tracked.track(true)?;
    let had = debugfs::dte_if_shown(endpoint.function())?.map(|entry| entry.had());
    ensure!(
        had.is_none_or(|had| had == ACCESSED_AND_DIRTY),
        "the device table entry has HAD {had:?}, not {ACCESSED_AND_DIRTY}"
    );
    job.clean("after the start")?;
    for n in 0..want.count {
        job.read(n)?;
    }
    job.clean("after reads")?;
    for (seed, n) in (2..).zip(&want.written) {
        job.write(*n, seed)?;
        job.read(*n)?;
    }
    // Kept once, so that it is seen twice.
    let kept = job.dirty(true)?;
    ensure!(
        kept == job.pages(&want.written),
        "dirty pages are {kept:?}, not those of the mappings {:?}",
        want.written
    );
    let seen = job.dirty(false)?;
    ensure!(
        seen == kept,
        "dirty pages were {kept:?}, and are {seen:?} in the second look"
    );
    job.clean("once they were read")?;
    for (seed, n) in (100..).zip(&want.written_later) {
        job.write(*n, seed)?;
    }
    let later = job.dirty(false)?;
    ensure!(
        later == job.pages(&want.written_later),
        "dirty pages are {later:?}, not those of the mappings {:?}",
        want.written_later
    );
    tracked.track(false)?;
    let off = debugfs::dte_if_shown(endpoint.function())?.map(|entry| entry.had());
    ensure!(
        off.is_none_or(|had| had == 0),
        "the device table entry has HAD {off:?} when nobody tracks"
    );
    for n in 0..want.count {
        device.unmap(want.iova + n * want.granule, want.granule)?;
    }
    Ok(format!(
        "{} of {} mappings of {:#x} bytes were written: {} dirty pages, each seen until it was \
         read; then {}; HAD {had:?}",
        want.written.len(),
        want.count,
        want.granule,
        seen.len(),
        later.len()
    ))
}

struct Job<'a> {
    want: &'a Dirty,
    endpoint: &'a Endpoint,
    memory: &'a Memory,
    tracked: &'a Tracked<'a>,
}

impl Job<'_> {
    /// Where a mapping is written and read: in its last page.
    fn place(&self, n: u64) -> u64 {
        (n + 1) * self.want.granule - PAGE + 256
    }

    fn write(&self, n: u64, seed: u64) -> Result<()> {
        let at = self.place(n);
        let (mut data, mut seen) = ([0; BYTES], [0; BYTES]);
        fill(seed, at, &mut data);
        let ended = self.endpoint.dma_write(self.want.iova + at, &data)?;
        ensure!(ended == Dma::Done, "the write to mapping {n} {ended}");
        self.memory.read(at, &mut seen)?;
        ensure!(
            differs(seed, at, &seen).is_none(),
            "mapping {n} has not what the endpoint wrote"
        );
        Ok(())
    }

    fn read(&self, n: u64) -> Result<()> {
        let at = self.place(n);
        let (mut seen, mut memory) = ([0; BYTES], [0; BYTES]);
        let ended = self.endpoint.dma_read(self.want.iova + at, &mut seen)?;
        ensure!(ended == Dma::Done, "the read of mapping {n} {ended}");
        self.memory.read(at, &mut memory)?;
        ensure!(
            seen == memory,
            "the endpoint read something else from mapping {n}"
        );
        Ok(())
    }

    fn dirty(&self, keep: bool) -> Result<Vec<u64>> {
        let length = self.want.granule * self.want.count;
        self.tracked.dirty(self.want.iova, length, PAGE, keep)
    }

    fn clean(&self, when: &str) -> Result<()> {
        let dirty = self.dirty(false).with_context(|| when.to_owned())?;
        ensure!(dirty.is_empty(), "pages {dirty:?} are dirty {when}");
        Ok(())
    }

    /// The pages of these mappings, in order.
    fn pages(&self, mappings: &[u64]) -> Vec<u64> {
        let each = self.want.granule / PAGE;
        let mut pages: Vec<_> = mappings
            .iter()
            .flat_map(|n| n * each..(n + 1) * each)
            .collect();
        pages.sort_unstable();
        pages
    }
}
