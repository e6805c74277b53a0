//! Memory for DMA, in pieces that are as large as the machine has them.

use std::fs::{self, File};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Kinds of pages, the largest first: how large, its folder in sysfs, and how to ask for it.
const HUGE: [(u64, &str, MFdFlags); 2] = [
    (1 << 30, "hugepages-1048576kB", MFdFlags::MFD_HUGE_1GB),
    (2 << 20, "hugepages-2048kB", MFdFlags::MFD_HUGE_2MB),
];
const SMALL: u64 = 4096;
/// Where kernels without such pools are told to take pages of 2 MiB for memory of this kind.
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const TRANSPARENT_PAGE: u64 = 2 << 20;

static POOL: Mutex<()> = Mutex::new(());

/// Memory of this process that is mapped nowhere else.
pub(crate) struct Memory {
    region: MmapRegion,
    page: u64,
}

impl Memory {
    /// `bytes` of memory or more, in the largest pages that there are enough of. Pages of 1 GiB
    /// are tried if they are not much more than what is asked for.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        for (page, folder, flag) in HUGE {
            if bytes < page / 2 {
                continue;
            }
            let count = bytes.div_ceil(page);
            if let Ok(memory) = Self::huge(page, folder, flag, count) {
                return Ok(memory);
            }
        }
        if bytes >= TRANSPARENT_PAGE / 2
            && let Ok(memory) = Self::transparent(bytes.next_multiple_of(TRANSPARENT_PAGE))
        {
            return Ok(memory);
        }
        let file = memfd_create("dma", MFdFlags::empty()).context("memfd_create")?;
        Self::of(File::from(file), bytes.next_multiple_of(SMALL), SMALL)
    }

    /// Memory of which the kernel says that every page is a large one.
    fn transparent(bytes: u64) -> Result<Self> {
        let before = fs::read_to_string(TRANSPARENT)?;
        let chosen = before
            .split_whitespace()
            .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
            .with_context(|| format!("{TRANSPARENT} has no choice"))?;
        fs::write(TRANSPARENT, "force")?;
        let memory = memfd_create("dma", MFdFlags::empty())
            .map_err(Into::into)
            .and_then(|file| Self::of(File::from(file), bytes, TRANSPARENT_PAGE))
            .and_then(|memory| {
                for offset in (0..bytes).step_by(TRANSPARENT_PAGE as usize) {
                    memory.write(offset, &[0])?;
                }
                Ok(memory)
            });
        fs::write(TRANSPARENT, chosen)?;
        let memory = memory?;
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let large = large_kib(&smaps, memory.region.as_ptr() as u64);
        ensure!(
            large == Some(bytes >> 10),
            "of {bytes:#x} bytes {large:?} KiB are in large pages"
        );
        Ok(memory)
    }

    fn huge(page: u64, folder: &str, flag: MFdFlags, count: u64) -> Result<Self> {
        let pool = format!("/sys/kernel/mm/hugepages/{folder}");
        let number = |name: &str| -> Result<u64> {
            Ok(fs::read_to_string(format!("{pool}/{name}"))?
                .trim()
                .parse()?)
        };
        // Nothing is reserved, so that the pages have to be taken before the next one counts the free ones.
        let _one_at_a_time = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, free) = (number("nr_hugepages")?, number("free_hugepages")?);
        if free < count {
            fs::write(
                format!("{pool}/nr_hugepages"),
                (all + count - free).to_string(),
            )?;
            ensure!(
                number("free_hugepages")? >= count,
                "not enough pages in {pool}"
            );
        }
        let file = memfd_create("dma", MFdFlags::MFD_HUGETLB | flag)?;
        let memory = Self::of(File::from(file), count * page, page)?;
        for number in 0..count {
            memory.write(number * page, &[0])?;
        }
        Ok(memory)
    }

    fn of(file: File, bytes: u64, page: u64) -> Result<Self> {
        file.set_len(bytes).context("size of a memfd")?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), usize::try_from(bytes)?)
            .context("mmap of a memfd")?;
        Ok(Self { region, page })
    }

    pub(crate) const fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// Bytes that are physically in one piece, at least.
    pub(crate) const fn page(&self) -> u64 {
        self.page
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let slice = self
            .region
            .get_slice(usize::try_from(offset)?, data.len())?;
        slice.copy_to(data);
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let slice = self
            .region
            .get_slice(usize::try_from(offset)?, data.len())?;
        slice.copy_from(data);
        Ok(())
    }
}

/// KiB of the mapping at this address that are in large pages, by `/proc/self/smaps`.
fn large_kib(smaps: &str, address: u64) -> Option<u64> {
    let begin = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
    lines.next()?;
    let value = lines
        // Up to the next mapping, whose line begins with its address.
        .take_while(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
        .find_map(|line| line.strip_prefix("ShmemPmdMapped:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_it_was_written_and_not_beyond_its_end() {
        let memory = Memory::new(3 * SMALL - 1).unwrap();
        assert_eq!(memory.len(), 3 * SMALL);
        memory.write(2 * SMALL, &[1, 2, 3]).unwrap();
        let mut seen = [0; 4];
        memory.read(2 * SMALL, &mut seen).unwrap();
        assert_eq!(seen, [1, 2, 3, 0]);
        assert!(memory.read(3 * SMALL - 3, &mut seen).is_err());
        assert!(memory.write(u64::MAX, &seen).is_err());
    }
    #[test]
    fn large_pages_are_those_of_the_mapping_at_the_address() {
        let smaps = "7f0000000000-7f0000200000 rw-s 00000000 00:01 7 /memfd:dma (deleted)\n\
                     Size:               2048 kB\nShmemPmdMapped:      2048 kB\n\
                     VmFlags: rd wr sh\n7f1000000000-7f1000001000 rw-p 00000000 00:00 0\n\
                     Size:                  4 kB\n";
        assert_eq!(large_kib(smaps, 0x7f00_0000_0000), Some(2048));
        assert_eq!(large_kib(smaps, 0x7f10_0000_0000), None);
        assert_eq!(large_kib(smaps, 0x7f20_0000_0000), None);
    }
}
