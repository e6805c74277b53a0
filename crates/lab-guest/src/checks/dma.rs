//! DMA of the test endpoint, through mappings that this program makes.

use std::sync::atomic::{AtomicBool, Ordering};

use amdvi_guest::endpoint::dma::LIMIT;
use amdvi_lab_guest::data::{differs, fill};
use amdvi_lab_guest::events::{BY_GUEST_TABLES, PageFault, READ_NOT_PRESENT, WRITE_NOT_PRESENT};
use amdvi_lab_guest::plan::{Target, UnmapFault, VfioDma};
use anyhow::{Context as _, Result, bail, ensure};

use super::debugfs;
use crate::context::{Context, Mark};
use crate::endpoint::{Dma, Endpoint};
use crate::memory::Memory;

const PAGE: u64 = 4096;
/// Bytes of most transfers.
const SHORT: usize = 64;
/// Bytes of a transfer across the border of two pages.
const LONG: usize = 256;
/// Pages of a large mapping that are looked at.
const SAMPLES: u64 = 64;
/// What a storm of mappings maps, and where; neither number is a multiple of the other, so each size
/// comes to each place.
const STORM_SIZES: [u64; 3] = [PAGE, 16 * PAGE, 512 * PAGE];
const STORM_IOVAS: [u64; 4] = [0x20_0000, 0x40_0000, 1 << 32, 1 << 38];
/// What memory has where no DMA goes.
const UNTOUCHED: u8 = 0xa5;

pub(super) fn check(want: &VfioDma) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let device = endpoint.device();
    let memory = Memory::new(want.mib << 20)?;
    let apertures = device.apertures()?;
    let mut left_out = Vec::new();
    let mut job = Job {
        endpoint: &endpoint,
        memory: &memory,
        seed: 0,
        transfers: 0,
    };
    let mut mappings = 0;
    for &iova in &want.iovas {
        for &size in &want.sizes {
            if size > memory.len() {
                left_out.push(format!("{size:#x}"));
                continue;
            }
            for at in places(iova, size) {
                ensure!(
                    covered(&apertures, at, size),
                    "{size:#x} bytes at IOVA {at:#x} are not in what the kernel can map: \
                     {apertures:x?}"
                );
                device.map(at, &memory, 0, size)?;
                job.probe(at, 0, size)
                    .and_then(|()| job.whole(at, size))
                    .with_context(|| format!("{size:#x} bytes mapped at IOVA {at:#x}"))?;
                device.unmap(at, size)?;
                mappings += 1;
            }
        }
    }
    let mode = job.side_by_side(&want.iovas)?;
    if let Some(want) = want.mode {
        let mode = mode.context("the kernel has no debugfs files to see the mode in")?;
        ensure!(
            mode == want,
            "the device table entry has mode {mode}, not {want}"
        );
    }
    left_out.sort_unstable();
    left_out.dedup();
    ensure!(
        left_out.is_empty() || !want.require_sizes,
        "there is no memory for mappings of {left_out:?}"
    );
    Ok(format!(
        "{} of {:?}: {mappings} mappings, {} transfers, pages of {:#x} in memory, mode {mode:?}, \
         left out {left_out:?}",
        endpoint.function(),
        device.backend(),
        job.transfers,
        memory.page(),
    ))
}

/// Where to map: aligned to the size, so that the largest pages can be used, and one page off.
fn places(iova: u64, size: u64) -> Vec<u64> {
    let aligned = iova.next_multiple_of(size.next_power_of_two());
    if size > PAGE {
        vec![aligned, aligned + PAGE]
    } else {
        vec![aligned]
    }
}

/// Whether a range is in one of the apertures.
fn covered(apertures: &[(u64, u64)], iova: u64, size: u64) -> bool {
    let last = iova + (size - 1);
    apertures
        .iter()
        .any(|(first, end)| *first <= iova && last <= *end)
}

struct Job<'a> {
    endpoint: &'a Endpoint,
    memory: &'a Memory,
    /// What the next transfer moves follows from it: no two are alike.
    seed: u64,
    transfers: u64,
}

impl Job<'_> {
    /// Moves data at the ends of a mapping, in its middle and across borders of pages, both ways.
    fn probe(&mut self, iova: u64, offset: u64, size: u64) -> Result<()> {
        let mut places = vec![(0, SHORT), (size - SHORT as u64, SHORT), (PAGE / 2 + 1, 1)];
        if size > PAGE {
            places.push((PAGE - 128, LONG));
            places.push((size / 2 - 128, LONG));
        }
        if size > 512 * PAGE {
            places.push((512 * PAGE - 128, LONG));
        }
        for (at, bytes) in places {
            self.both_ways(iova + at, offset + at, bytes)
                .with_context(|| format!("{bytes} bytes at IOVA {:#x}", iova + at))?;
        }
        Ok(())
    }

    /// The endpoint writes and the processor reads, and the other way.
    fn both_ways(&mut self, iova: u64, offset: u64, bytes: usize) -> Result<()> {
        let mut data = vec![0; bytes];
        let mut seen = vec![0; bytes];
        self.seed += 1;
        fill(self.seed, offset, &mut data);
        // What is beside the transfer stays as it is; at the memory's ends there is nothing.
        let beside = [offset.checked_sub(1), Some(offset + bytes as u64)];
        let beside: Vec<_> = beside
            .into_iter()
            .flatten()
            .filter(|at| *at < self.memory.len())
            .collect();
        for &at in &beside {
            self.memory.write(at, &[UNTOUCHED])?;
        }
        let ended = self.endpoint.dma_write(iova, &data)?;
        ensure!(ended == Dma::Done, "the write {ended}");
        self.memory.read(offset, &mut seen)?;
        if let Some(at) = differs(self.seed, offset, &seen) {
            bail!("memory has not what the endpoint wrote, from byte {at} on");
        }
        for at in beside {
            let mut byte = [0];
            self.memory.read(at, &mut byte)?;
            ensure!(
                byte == [UNTOUCHED],
                "the endpoint wrote to offset {at:#x} too"
            );
        }
        self.seed += 1;
        fill(self.seed, offset, &mut data);
        self.memory.write(offset, &data)?;
        let ended = self.endpoint.dma_read(iova, &mut seen)?;
        ensure!(ended == Dma::Done, "the read {ended}");
        if let Some(at) = differs(self.seed, offset, &seen) {
            bail!("the endpoint has not what memory had, from byte {at} on");
        }
        self.transfers += 2;
        Ok(())
    }

    /// All of a mapping of the memory's start, written by the endpoint at once. The processor looks
    /// at some of the pages, whole.
    fn whole(&mut self, iova: u64, size: u64) -> Result<()> {
        if size > u64::from(LIMIT) {
            return Ok(());
        }
        self.seed += 1;
        let filled = self.endpoint.dma_fill(iova, size, self.seed)?;
        ensure!(
            filled == (size, None),
            "a fill of all of it came to {:#x} bytes, aborted {:x?}",
            filled.0,
            filled.1
        );
        let mut page = [0; PAGE as usize];
        let pages = size / PAGE;
        for n in (0..pages)
            .step_by((pages / SAMPLES).max(1) as usize)
            .chain([pages - 1])
        {
            self.memory.read(n * PAGE, &mut page)?;
            if let Some(at) = differs(self.seed, n * PAGE, &page) {
                bail!(
                    "memory has not what the endpoint filled, at {:#x}",
                    n * PAGE + at as u64
                );
            }
        }
        self.transfers += 1;
        Ok(())
    }

    /// A page at each IOVA, all of them at a time: none is another. Returns the paging mode while
    /// all are mapped, if the kernel shows it.
    fn side_by_side(&mut self, iovas: &[u64]) -> Result<Option<u8>> {
        let device = self.endpoint.device();
        let pages: Vec<_> = (0..).step_by(PAGE as usize).zip(iovas).collect();
        for (offset, iova) in &pages {
            device.map(**iova, self.memory, *offset, PAGE)?;
        }
        let mut data = [0; SHORT];
        for (offset, iova) in &pages {
            fill(!0, *offset, &mut data);
            let ended = self.endpoint.dma_write(**iova, &data)?;
            ensure!(ended == Dma::Done, "the write to IOVA {iova:#x} {ended}");
        }
        for (offset, iova) in &pages {
            let mut seen = [0; SHORT];
            self.memory.read(*offset, &mut seen)?;
            ensure!(
                differs(!0, *offset, &seen).is_none(),
                "what was written to IOVA {iova:#x} is elsewhere"
            );
            self.transfers += 1;
        }
        let mode = debugfs::dte_if_shown(self.endpoint.function())?.map(|entry| entry.mode());
        for (_, iova) in &pages {
            device.unmap(**iova, PAGE)?;
        }
        Ok(mode)
    }
}

/// Maps, does DMA in both directions through the mapping, and unmaps, over and over; sizes and places
/// change. Returns the number of mappings.
pub(super) fn storm(target: Target, stop: &AtomicBool) -> Result<u64> {
    let endpoint = Endpoint::open(target)?;
    let device = endpoint.device();
    let memory = Memory::new(STORM_SIZES[STORM_SIZES.len() - 1])?;
    let mut job = Job {
        endpoint: &endpoint,
        memory: &memory,
        seed: 0,
        transfers: 0,
    };
    let mut mappings = 0;
    while !stop.load(Ordering::Relaxed) {
        let size = STORM_SIZES[mappings as usize % STORM_SIZES.len()];
        let iova = STORM_IOVAS[mappings as usize % STORM_IOVAS.len()];
        device.map(iova, &memory, 0, size)?;
        job.both_ways(iova, 0, SHORT)
            .and_then(|()| job.both_ways(iova + size - LONG as u64, size - LONG as u64, LONG))
            .with_context(|| format!("{size:#x} bytes mapped at IOVA {iova:#x}"))?;
        device.unmap(iova, size)?;
        mappings += 1;
    }
    Ok(mappings)
}

/// DMA works, is unmapped, faults in both directions, is mapped again and works again; and the
/// kernel's log has those faults and no other.
pub(super) fn check_fault(want: &UnmapFault, context: &Context) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let device = endpoint.device();
    let memory = Memory::new(2 * PAGE)?;
    let by_tables = if want.guest { BY_GUEST_TABLES } else { 0 };
    let (write, read) = (WRITE_NOT_PRESENT | by_tables, READ_NOT_PRESENT | by_tables);
    let who = want.alias.clone().unwrap_or_else(|| endpoint.in_log());
    let mut domains = Vec::new();
    for &iova in &want.iovas {
        let mut job = Job {
            endpoint: &endpoint,
            memory: &memory,
            seed: iova,
            transfers: 0,
        };
        device.map(iova, &memory, 0, PAGE)?;
        job.both_ways(iova, 0, SHORT)?;
        let domain = debugfs::dte_if_shown(endpoint.function())?.map(|entry| entry.domain());
        device.unmap(iova, PAGE)?;
        memory.write(0, &[UNTOUCHED; SHORT])?;
        let mark = Mark::now()?;
        let mut seen = [0; SHORT];
        let ended = [
            endpoint.dma_write(iova, &[0; SHORT])?,
            endpoint.dma_read(iova, &mut seen)?,
        ];
        ensure!(
            ended == [Dma::Aborted; 2],
            "after the unmap of IOVA {iova:#x} a write {} and a read {}",
            ended[0],
            ended[1]
        );
        memory.read(0, &mut seen)?;
        ensure!(
            seen == [UNTOUCHED; SHORT],
            "the write that was aborted changed memory"
        );
        let expected = [(iova, write), (iova, read)];
        let faults = faults(&mark, &who, &expected, context)?;
        if let Some(domain) = domain.filter(|_| !want.guest) {
            ensure!(
                faults == domain,
                "the faults name domain {faults:#x}, the device table has {domain:#x}"
            );
        }
        domains.push(faults);
        // Mapped again: what is longer than the mapping comes to its end and no further.
        device.map(iova, &memory, 0, 2 * PAGE)?;
        job.both_ways(iova, 0, SHORT)?;
        let mark = Mark::now()?;
        let end = iova + 2 * PAGE;
        let filled = endpoint.dma_fill(iova, 3 * PAGE, iova)?;
        ensure!(
            filled == (2 * PAGE, Some(end)),
            "a fill of three pages where two are mapped came to {:#x} bytes, aborted at {:x?}",
            filled.0,
            filled.1
        );
        domains.push(self::faults(&mark, &who, &[(end, write)], context)?);
        device.unmap(iova, 2 * PAGE)?;
    }
    // With guest tables it is PASID 0 that they name.
    ensure!(
        domains
            .iter()
            .all(|&domain| domain == domains[0] && (domain == 0) == want.guest),
        "the faults name the domains {domains:x?}"
    );
    Ok(format!(
        "writes, reads and writes beyond the end of a mapping faulted at {:x?} in domain {:#x}, \
         each in the log once",
        want.iovas,
        domains.first().copied().unwrap_or_default()
    ))
}

/// Waits for the lines about these faults, each an IOVA and its flags, and allows them. Returns
/// their domain.
pub(super) fn faults(
    mark: &Mark,
    who: &str,
    expected: &[(u64, u16)],
    context: &Context,
) -> Result<u16> {
    let parse = |line: &String| PageFault::parse(line).map(|fault| (line.clone(), fault));
    let find = |lines: &[String]| -> Vec<_> { lines.iter().filter_map(parse).collect() };
    let lines = mark.until(|lines| find(lines).len() >= expected.len())?;
    let found = find(&lines);
    let seen: Vec<_> = found
        .iter()
        .map(|(_, fault)| (fault.address, fault.flags))
        .collect();
    let domains: Vec<_> = found.iter().map(|(_, fault)| fault.domain).collect();
    ensure!(
        seen == expected
            && found.iter().all(|(_, fault)| fault.who == who)
            && domains.windows(2).all(|pair| pair[0] == pair[1]),
        "the log must have faults of {who} with addresses and flags {expected:x?}, all in one \
         domain; it has {lines:?}"
    );
    let lines = found.into_iter().map(|(line, _)| line);
    context.found().once.extend(lines);
    Ok(domains[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_aligned_to_their_size_and_once_more_off_it() {
        assert_eq!(places(0x10_0000, PAGE), [0x10_0000]);
        assert_eq!(places(0x10_0000, 0x20_0000), [0x20_0000, 0x20_1000]);
        assert_eq!(places(1 << 56, 1 << 30), [1 << 56, (1 << 56) + PAGE]);
    }

    #[test]
    fn a_range_that_reaches_into_a_hole_is_not_covered() {
        let apertures = [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
        assert!(covered(&apertures, 0xfedf_f000, 0x1000));
        assert!(!covered(&apertures, 0xfedf_f000, 0x2000));
        assert!(covered(&apertures, u64::MAX - 0xfff, 0x1000));
        assert!(!covered(&apertures, 0xfee0_0000, 0x1000));
    }
}
