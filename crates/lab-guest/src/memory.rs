//! Memory for DMA, in pieces that are as large as the machine has them.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Kinds of pages, the largest first: how large, its folder in sysfs, and how to ask for it.
const HUGE: [(u64, &str, MFdFlags); 2] = [
    (1 << 30, "hugepages-1048576kB", MFdFlags::MFD_HUGE_1GB),
    (2 << 20, "hugepages-2048kB", MFdFlags::MFD_HUGE_2MB),
];
const SMALL: u64 = 4096;

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
        let file = memfd_create("dma", MFdFlags::empty()).context("memfd_create")?;
        Self::of(File::from(file), bytes.next_multiple_of(SMALL), SMALL)
    }

    fn huge(page: u64, folder: &str, flag: MFdFlags, count: u64) -> Result<Self> {
        let pool = format!("/sys/kernel/mm/hugepages/{folder}");
        let number = |name: &str| -> Result<u64> {
            Ok(fs::read_to_string(format!("{pool}/{name}"))?
                .trim()
                .parse()?)
        };
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
        Self::of(File::from(file), count * page, page)
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
}
