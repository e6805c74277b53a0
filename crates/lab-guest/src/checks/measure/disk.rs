//! A disk, past the cache.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Instant;

use amdvi_lab_guest::plan::{MeasureDisk, Repeats};
use anyhow::{Context as _, Result, ensure};
use vm_memory::{ReadVolatile, VolatileMemory, WriteVolatile};
use zerocopy::IntoBytes;

use super::{note, phase, rates};
use crate::checks::disk::{buffer, disks, queue_counts};
use crate::context::{Context, online_cpus, text};
use crate::memory::Memory;

const MIB: u64 = 1 << 20;
/// A request of those that go in order.
const LONG: usize = 128 << 10;
/// A request of those that go anywhere.
const SHORT: usize = 4 << 10;
/// A large page.
const LARGE: u64 = 2 << 20;
/// The smallest request that there is.
const SECTOR: usize = 512;
/// Threads of each processor that read anywhere.
const DEPTH: usize = 4;

pub(in crate::checks) fn check(want: &MeasureDisk, context: &Arc<Context>) -> Result<String> {
    let disks = disks()?;
    let disk = disks.first().context("there is no disk")?;
    let bytes = SECTOR as u64 * text(format!("/sys/block/{disk}/size"))?.parse::<u64>()?;
    let length = want.mib * MIB;
    ensure!(bytes >= length, "it has {bytes} bytes, fewer than {length}");
    let path = &format!("/dev/{disk}");
    let cpus = online_cpus()?.len();
    let mut said = Vec::new();

    // Writing first: there is something to read then. From pages that are anywhere, as a program's memory
    // is, and from memory in one piece, as large pages are and a kernel's caches with large folios.
    for (name, write, whole) in [
        ("disk-write", true, false),
        ("disk-read", false, false),
        ("disk-write-whole", true, true),
        ("disk-read-whole", false, true),
    ] {
        phase(name);
        let rates = rates(want.repeats, 1, |thread| {
            // Each processor has a part of its own.
            let part = length / cpus as u64 / LONG as u64 * LONG as u64;
            let first = part * thread as u64;
            let mut transfer = transfer(open(path, write)?, write, whole)?;
            let mut at = 0;
            Ok(move || {
                transfer(first + at)?;
                at = (at + LONG as u64) % part;
                Ok(LONG as u64)
            })
        })?;
        let rates = rates.into_iter().map(|rate| rate / MIB as f64).collect();
        said.push(note(context, name, "MiB/s", rates));
    }

    phase("disk-iops");
    let rates = rates(want.repeats, DEPTH, |thread| {
        anywhere(path, SHORT, length, thread)
    })?;
    said.push(note(context, "disk-iops", "1/s", rates));
    phase("disk-interrupts");
    said.push(interrupts(want.repeats, disk, length, context)?);
    Ok(said.join("; "))
}

/// What reads, or writes, [`LONG`] bytes at an offset, with pages that are anywhere or with memory in one
/// piece.
fn transfer(mut file: File, write: bool, whole: bool) -> Result<Box<dyn FnMut(u64) -> Result<()>>> {
    if !whole {
        let mut pages = buffer(LONG);
        return Ok(Box::new(move |offset| {
            let data = pages.as_mut_slice().as_mut_bytes();
            if write {
                file.write_all_at(data, offset).context("write")
            } else {
                file.read_exact_at(data, offset).context("read")
            }
        }));
    }
    let memory = Memory::new(LARGE)?;
    ensure!(
        memory.page() >= LONG as u64,
        "there is no memory with {LONG:#x} bytes in one piece"
    );
    Ok(Box::new(move |offset| {
        let mut data = memory.region().get_slice(0, LONG)?;
        file.seek(SeekFrom::Start(offset)).context("seek")?;
        if write {
            file.write_all_volatile(&data).context("write")
        } else {
            file.read_exact_volatile(&mut data).context("read")
        }
    }))
}

/// Counts the interrupts of reads of which each processor has one on its way at a time: no two of
/// them can be told of by one interrupt.
fn interrupts(repeats: Repeats, disk: &str, length: u64, context: &Arc<Context>) -> Result<String> {
    let path = &format!("/dev/{disk}");
    let once = Repeats {
        count: 1,
        ..repeats
    };
    let mut all = Vec::new();
    for _ in 0..repeats.count {
        let before: u64 = queue_counts(disk)?.iter().sum();
        let start = Instant::now();
        // What does not count for others does here: interrupts are counted all the time.
        rates(once, 1, |thread| anywhere(path, SECTOR, length, thread))?;
        let seconds = start.elapsed().as_secs_f64();
        let after: u64 = queue_counts(disk)?.iter().sum();
        all.push((after - before) as f64 / seconds);
    }
    ensure!(all.iter().all(|rate| *rate > 0.0), "no interrupt came");
    Ok(note(context, "disk-interrupts", "1/s", all))
}

/// Reads here and there.
fn anywhere(
    path: &str,
    bytes: usize,
    length: u64,
    thread: usize,
) -> Result<impl FnMut() -> Result<u64>> {
    let file = open(path, false)?;
    let mut pages = buffer(bytes);
    let places = length / bytes as u64;
    let mut number = thread as u64;
    Ok(move || {
        // A step that has no factor in common with a power of two comes to every place.
        number = number.wrapping_add(0x9e37_79b1);
        let data = &mut pages.as_mut_slice().as_mut_bytes()[..bytes];
        file.read_exact_at(data, number % places * bytes as u64)
            .context("read")?;
        Ok(1)
    })
}

fn open(path: &str, write: bool) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    file.with_context(|| format!("open {path}"))
}
