//! Virtio disks: what is written is read again, past the cache and through it, by several threads
//! through several queues.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use amdvi_lab_guest::data::{Checksum, differs, fill};
use amdvi_lab_guest::plan::Disk;
use anyhow::{Context, Result, anyhow, bail, ensure};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::context::{interrupts, list, names, online_cpus, pin_to, put, text};

const MIB: u64 = 1 << 20;
/// What threads share out: each writes some pieces, and reads what others have written.
const PIECE: u64 = 128 << 10;
/// Sizes of single requests.
const REQUESTS: [usize; 4] = [4 << 10, 64 << 10, 128 << 10, 16 << 10];

/// Memory as direct access to a disk needs it.
#[derive(Clone, FromBytes, IntoBytes)]
#[repr(C, align(4096))]
pub(super) struct Page([u8; 4096]);

const PAGE: usize = size_of::<Page>();

/// Room for so many bytes.
pub(super) fn buffer(bytes: usize) -> Vec<Page> {
    vec![Page::new_zeroed(); bytes.div_ceil(PAGE)]
}

pub(super) fn check(want: &Disk) -> Result<String> {
    let disks = disks()?;
    ensure!(
        disks.len() == want.disks,
        "there are {} disks {disks:?}, not {}",
        disks.len(),
        want.disks
    );
    let mut said = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let seed = want.seed.wrapping_add(1000 * number as u64);
        said.push(one(disk, seed, want).with_context(|| format!("disk {disk}"))?);
    }
    Ok(said.join("; "))
}

/// The virtio disks.
pub(super) fn disks() -> Result<Vec<String>> {
    let mut names = names("/sys/block")?;
    names.retain(|name| name.starts_with("vd"));
    Ok(names)
}

fn one(disk: &str, seed: u64, want: &Disk) -> Result<String> {
    let folder = format!("/sys/block/{disk}");
    let bytes = 512 * text(format!("{folder}/size"))?.parse::<u64>()?;
    let length = want.mib * MIB;
    ensure!(bytes >= length, "it has {bytes} bytes, fewer than {length}");
    let queues = names(format!("{folder}/mq"))?;
    let job = Job {
        path: format!("/dev/{disk}"),
        length,
        threads: want.threads.max(1),
        queues: queue_cpus(&folder, &queues)?,
    };
    let queues = queues.len();
    ensure!(
        queues >= want.queues,
        "it has {queues} queues, not {}",
        want.queues
    );
    if text(format!("{folder}/ro"))? == "1" {
        return job.read_only(seed);
    }
    let before = queue_counts(disk)?;
    // Past the cache.
    job.all(|job, thread| job.write(thread, seed, libc::O_DIRECT))?;
    job.all(|job, thread| job.read(thread + 1, seed, libc::O_DIRECT))?;
    // Through the cache, which is emptied in between.
    job.all(|job, thread| job.write(thread, seed + 1, 0))?;
    put("/proc/sys/vm/drop_caches", "3")?;
    job.all(|job, thread| job.read(thread + 1, seed + 1, 0))?;
    job.all(|job, thread| job.read(thread + 2, seed + 1, libc::O_DIRECT))?;
    let after = queue_counts(disk)?;
    let counts: Vec<_> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    let used = counts.iter().filter(|count| **count > 0).count();
    let expected = want.queues.min(online_cpus()?.len()).min(job.threads);
    ensure!(
        used >= expected,
        "{used} of its queues had interrupts, not {expected}: {counts:?}"
    );
    Ok(format!(
        "{disk}: {} MiB, {queues} queues with {counts:?} interrupts, checksum {:#018x}",
        want.mib,
        sum(seed + 1, length)
    ))
}

/// The checksum of all that is on the disk in the end, as [`amdvi_lab_guest::data`] has it.
fn sum(seed: u64, length: u64) -> u64 {
    let mut page = [0; PAGE];
    let mut sum = Checksum::default();
    for at in (0..length).step_by(PAGE) {
        fill(seed, at, &mut page);
        sum.add(&page);
    }
    sum.value()
}

/// Interrupts of each request queue.
pub(super) fn queue_counts(disk: &str) -> Result<Vec<u64>> {
    let device = fs::canonicalize(format!("/sys/block/{disk}/device"))?;
    let device = device.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{device}-req.");
    let rows = interrupts()?;
    let rows = rows.iter().filter(|row| row.actions().starts_with(&name));
    Ok(rows.map(|row| row.count).collect())
}

/// The processors of each queue of a disk that has any.
fn queue_cpus(folder: &str, queues: &[String]) -> Result<Vec<Vec<u32>>> {
    let mut all = Vec::new();
    for queue in queues {
        let cpus = text(format!("{folder}/mq/{queue}/cpu_list"))?;
        if !cpus.is_empty() {
            all.push(list(&cpus)?);
        }
    }
    Ok(all)
}

struct Job {
    path: String,
    length: u64,
    threads: usize,
    /// The processors of each queue; no queue is without.
    queues: Vec<Vec<u32>>,
}

impl Job {
    /// The processor of a thread: neighbours use different queues, and then different processors.
    fn cpu(&self, thread: usize) -> Option<u32> {
        let queue = self.queues.get(thread % self.queues.len().max(1))?;
        let turn = thread / self.queues.len();
        queue.get(turn % queue.len()).copied()
    }

    /// Lets every thread do something, each on a processor of its own as far as there are so many.
    fn all(&self, work: impl Fn(&Self, usize) -> Result<()> + Sync) -> Result<()> {
        let work = &work;
        thread::scope(|scope| {
            let spawn = |number| {
                scope.spawn(move || {
                    pin_to(self.cpu(number).context("no queue has a processor")?)?;
                    work(self, number)
                })
            };
            let threads: Vec<_> = (0..self.threads).map(spawn).collect();
            for thread in threads {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))?;
            }
            Ok(())
        })
    }

    fn open(&self, write: bool, flags: i32) -> Result<File> {
        let file = File::options()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(&self.path);
        file.with_context(|| format!("open {}", self.path))
    }

    /// The requests of a thread: where, and how many bytes.
    fn requests(&self, thread: usize) -> impl Iterator<Item = (u64, usize)> {
        let pieces = self.length.div_ceil(PIECE);
        let (threads, length) = (self.threads as u64, self.length);
        let mine = (0..pieces)
            .skip(thread % self.threads)
            .step_by(self.threads);
        mine.flat_map(move |piece| {
            let request = REQUESTS[(piece / threads) as usize % REQUESTS.len()];
            let end = ((piece + 1) * PIECE).min(length);
            (piece * PIECE..end)
                .step_by(request)
                .map(move |at| (at, request.min((end - at) as usize)))
        })
    }

    fn write(&self, thread: usize, seed: u64, flags: i32) -> Result<()> {
        let file = self.open(true, flags)?;
        let mut pages = buffer(PIECE as usize);
        for (at, bytes) in self.requests(thread) {
            let data = &mut pages.as_mut_slice().as_mut_bytes()[..bytes];
            fill(seed, at, data);
            file.write_all_at(data, at)
                .with_context(|| format!("write {bytes} bytes at {at:#x}"))?;
        }
        file.sync_all().context("fsync")
    }

    fn read(&self, thread: usize, seed: u64, flags: i32) -> Result<()> {
        let file = self.open(false, flags)?;
        let mut pages = buffer(PIECE as usize);
        for (at, bytes) in self.requests(thread) {
            let data = &mut pages.as_mut_slice().as_mut_bytes()[..bytes];
            file.read_exact_at(data, at)
                .with_context(|| format!("read {bytes} bytes at {at:#x}"))?;
            if let Some(byte) = differs(seed, at, data) {
                bail!(
                    "what was read differs from what was written at {:#x}",
                    at + byte as u64
                );
            }
        }
        Ok(())
    }

    /// A disk that can't be written to has had its contents from the beginning.
    fn read_only(&self, seed: u64) -> Result<String> {
        self.all(|job, thread| job.read(thread, seed, libc::O_DIRECT))?;
        ensure!(
            self.write(0, seed, libc::O_DIRECT).is_err(),
            "it is read-only and can be written to"
        );
        Ok(format!(
            "{}: read-only, {} MiB as expected",
            self.path,
            self.length / MIB
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_requests_cover_the_disk_once() {
        let job = Job {
            path: String::new(),
            length: 9 * PIECE + 8192,
            threads: 3,
            queues: Vec::new(),
        };
        let mut all: Vec<_> = (0..3).flat_map(|thread| job.requests(thread)).collect();
        all.sort_unstable();
        let mut end = 0;
        for (at, bytes) in all {
            assert_eq!(at, end);
            assert!(bytes > 0 && bytes.is_multiple_of(PAGE));
            end = at + bytes as u64;
        }
        assert_eq!(end, job.length);
        assert!(job.requests(1).eq(job.requests(4)));
    }

    #[test]
    fn the_threads_use_each_queue_and_different_processors() {
        let mut job = Job {
            path: String::new(),
            length: 0,
            threads: 4,
            queues: vec![(0..7).collect(), (7..14).collect()],
        };
        let cpus = |job: &Job| (0..4).map(|n| job.cpu(n)).collect::<Vec<_>>();
        assert_eq!(cpus(&job), [Some(0), Some(7), Some(1), Some(8)]);
        job.queues = vec![vec![0, 1], vec![2], vec![3], vec![4]];
        assert_eq!(cpus(&job), [Some(0), Some(2), Some(3), Some(4)]);
        job.queues = vec![vec![0]];
        assert_eq!(cpus(&job), [Some(0); 4]);
        job.queues.clear();
        assert_eq!(cpus(&job), [None; 4]);
    }

    #[test]
    fn what_a_job_writes_another_thread_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let job = Job {
            path: path.to_str().unwrap().to_owned(),
            length: 5 * PIECE,
            threads: 2,
            queues: Vec::new(),
        };
        File::create(&path).unwrap().set_len(job.length).unwrap();
        for thread in 0..2 {
            job.write(thread, 1, 0).unwrap();
        }
        for thread in 0..2 {
            job.read(thread + 1, 1, 0).unwrap();
        }
        let all = fs::read(&path).unwrap();
        assert_eq!(Checksum::of(&all), sum(1, job.length));
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[!all[70_000]], 70_000).unwrap();
        let error = job.read(0, 1, 0).unwrap_err().to_string();
        assert!(error.ends_with("at 0x11170"), "{error}");
    }
}
