//! Pages that a function has written, by the dirty bits of its page table (iommufd).

use std::fs::File;

use anyhow::{Context, Result, bail};

use super::{Device, Iommu, ioctl};

/// A function behind a page table that can keep dirty bits.
pub(crate) struct Tracked<'a> {
    iommufd: &'a File,
    hwpt: u32,
}

impl<'a> Tracked<'a> {
    /// Gives the function a page table that can keep dirty bits; it does not yet. Mappings are made
    /// and unmade as before.
    pub(crate) fn new(device: &'a Device) -> Result<Self> {
        let Iommu::Ioas {
            iommufd,
            ioas,
            device: id,
        } = &device.iommu
        else {
            bail!("dirty pages are a matter of iommufd: the function must be owned through it");
        };
        let hwpt = ioctl::hwpt_alloc_dirty(iommufd, *id, *ioas).context(
            "IOMMU_HWPT_ALLOC with IOMMU_HWPT_ALLOC_DIRTY_TRACKING: the driver refuses it where \
             EFR.HDSup is 0",
        )?;
        ioctl::attach(&device.file, hwpt).context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
        Ok(Self { iommufd, hwpt })
    }

    /// Lets the IOMMU set dirty bits, or not any more.
    pub(crate) fn track(&self, on: bool) -> Result<()> {
        ioctl::set_dirty_tracking(self.iommufd, self.hwpt, on)
            .with_context(|| format!("IOMMU_HWPT_SET_DIRTY_TRACKING, {on}"))
    }

    /// The numbers of the dirty pages of `page` bytes in a range that is mapped. Unless they are to
    /// be kept, none is dirty after this.
    pub(crate) fn dirty(&self, iova: u64, length: u64, page: u64, keep: bool) -> Result<Vec<u64>> {
        let bitmap = ioctl::dirty_bitmap(self.iommufd, self.hwpt, (iova, length), page, keep)
            .with_context(|| {
                format!("IOMMU_HWPT_GET_DIRTY_BITMAP of {length:#x} bytes at IOVA {iova:#x}")
            })?;
        Ok((0..length / page)
            .filter(|n| bitmap[(n / 64) as usize] >> (n % 64) & 1 == 1)
            .collect())
    }
}
