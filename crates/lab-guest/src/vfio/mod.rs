//! A PCI function under vfio-pci, and its IOMMU: through the IOMMU group and a container, or
//! through the function's own device file and iommufd.

mod dirty;
mod ioctl;
mod irqs;

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use amdvi_lab_guest::plan::Backend;
use anyhow::{Context, Result, bail, ensure};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_TYPE1v2_IOMMU,
};

use crate::memory::Memory;

pub(crate) use dirty::Tracked;
pub(crate) use irqs::{Received, Refused};

const CONTAINER: &str = "/dev/vfio/vfio";
const IOMMUFD: &str = "/dev/iommu";
/// `VFIO_GROUP_FLAGS_VIABLE`.
const VIABLE: u32 = 1;
/// `VFIO_IOMMU_INFO_CAPS`, and the capability with the IOVA ranges.
const HAS_CAPS: u32 = 1 << 1;
const CAP_IOVA_RANGE: u16 = 1;
/// Command register: memory space, bus master.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

/// A kind of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Irq {
    Intx,
    Msi,
    Msix,
}

impl Irq {
    const fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
        }
    }
}

enum Iommu {
    /// The group must stay open as long as the container is used.
    Container { container: File, _group: File },
    Ioas {
        iommufd: File,
        ioas: u32,
        /// The function's ID in iommufd.
        device: u32,
    },
}

/// A function that is owned. It is given back when this is dropped.
pub(crate) struct Device {
    function: String,
    file: File,
    iommu: Iommu,
    /// Offsets of the regions in `file`, and their sizes.
    regions: Vec<(u64, u64)>,
}

fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let file = File::options().read(true).write(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

impl Device {
    /// Takes a function, which is bound to vfio-pci already, and enables its memory and its bus
    /// mastering.
    pub(crate) fn open(function: &str, backend: Option<Backend>) -> Result<Self> {
        let backend = match backend {
            Some(backend) => backend,
            None if Path::new(IOMMUFD).exists() && cdev(function).is_ok() => Backend::Cdev,
            None => Backend::Group,
        };
        let (file, iommu) = match backend {
            Backend::Group => by_group(function)?,
            Backend::Cdev => by_cdev(function)?,
        };
        let mut regions = Vec::new();
        for index in 0..=VFIO_PCI_CONFIG_REGION_INDEX {
            // There may be no such region.
            let info = ioctl::region_info(&file, index).unwrap_or_default();
            regions.push((info.offset, info.size));
        }
        let device = Self {
            function: function.to_owned(),
            file,
            iommu,
            regions,
        };
        let config = VFIO_PCI_CONFIG_REGION_INDEX;
        let mut command = [0; 2];
        device.read(config, COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        device.write(config, COMMAND, &command.to_le_bytes())?;
        Ok(device)
    }

    /// Its address.
    pub(crate) fn function(&self) -> &str {
        &self.function
    }

    /// In which way it is owned.
    pub(crate) const fn backend(&self) -> Backend {
        match self.iommu {
            Iommu::Container { .. } => Backend::Group,
            Iommu::Ioas { .. } => Backend::Cdev,
        }
    }

    /// Bytes of a BAR.
    pub(crate) fn region_size(&self, region: u32) -> u64 {
        self.regions
            .get(region as usize)
            .map_or(0, |(_, size)| *size)
    }

    fn place(&self, region: u32, offset: u64, length: usize) -> Result<u64> {
        let (start, size) = *self
            .regions
            .get(region as usize)
            .context("no such region")?;
        ensure!(
            offset
                .checked_add(length as u64)
                .is_some_and(|end| end <= size),
            "{length} bytes at {offset:#x} are not in region {region}, which has {size}"
        );
        Ok(start + offset)
    }

    pub(crate) fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let at = self.place(region, offset, data.len())?;
        self.file
            .read_exact_at(data, at)
            .with_context(|| format!("read region {region} at {offset:#x}"))
    }

    pub(crate) fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let at = self.place(region, offset, data.len())?;
        self.file
            .write_all_at(data, at)
            .with_context(|| format!("write region {region} at {offset:#x}"))
    }

    /// Lets the function read and write `size` bytes at `offset` of the memory.
    pub(crate) fn map(&self, iova: u64, memory: &Memory, offset: u64, size: u64) -> Result<()> {
        let region = memory.region();
        match &self.iommu {
            Iommu::Container { container, .. } => {
                ioctl::map(container, iova, region, offset, size).context("VFIO_IOMMU_MAP_DMA")
            }
            Iommu::Ioas { iommufd, ioas, .. } => {
                ioctl::ioas_map(iommufd, *ioas, iova, region, offset, size)
                    .context("IOMMU_IOAS_MAP")
            }
        }
        .with_context(|| format!("map {size:#x} bytes at IOVA {iova:#x}"))
    }

    /// Takes a mapping away, all of it.
    pub(crate) fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        let unmapped = match &self.iommu {
            Iommu::Container { container, .. } => {
                ioctl::unmap(container, iova, size).context("VFIO_IOMMU_UNMAP_DMA")
            }
            Iommu::Ioas { iommufd, ioas, .. } => {
                ioctl::ioas_unmap(iommufd, *ioas, iova, size).context("IOMMU_IOAS_UNMAP")
            }
        }
        .with_context(|| format!("unmap {size:#x} bytes at IOVA {iova:#x}"))?;
        ensure!(
            unmapped == size,
            "the kernel unmapped {unmapped:#x} bytes at IOVA {iova:#x} where {size:#x} were mapped"
        );
        Ok(())
    }

    /// What can be mapped: first and last IOVA of each range.
    pub(crate) fn apertures(&self) -> Result<Vec<(u64, u64)>> {
        match &self.iommu {
            Iommu::Container { container, .. } => {
                let info = ioctl::container_info(container).context("VFIO_IOMMU_GET_INFO")?;
                ranges_in(&info[..]).context("VFIO_IOMMU_GET_INFO has no IOVA ranges")
            }
            Iommu::Ioas { iommufd, ioas, .. } => {
                ioctl::ioas_ranges(iommufd, *ioas).context("IOMMU_IOAS_IOVA_RANGES")
            }
        }
    }

    /// How many interrupts of a kind there are.
    pub(crate) fn irq_count(&self, irq: Irq) -> Result<u32> {
        let info = ioctl::irq_info(&self.file, irq.index());
        Ok(info.context("VFIO_DEVICE_GET_IRQ_INFO")?.count)
    }
}

/// Opens the function's group, puts it into a container and asks for the function.
fn by_group(function: &str) -> Result<(File, Iommu)> {
    let link = format!("/sys/bus/pci/devices/{function}/iommu_group");
    let target = fs::read_link(&link).with_context(|| format!("read {link}"))?;
    let number = target.file_name().unwrap_or_default().to_string_lossy();
    let container = open(CONTAINER)?;
    ensure!(
        ioctl::check_extension(&container, VFIO_TYPE1v2_IOMMU).context("VFIO_CHECK_EXTENSION")?,
        "{CONTAINER} has no type 1 IOMMU of version 2: is vfio_iommu_type1 loaded?"
    );
    // A device that was closed a moment ago may still hold its group.
    let group = retry_busy(|| open(format!("/dev/vfio/{number}")))?;
    let flags = ioctl::group_status(&group).context("VFIO_GROUP_GET_STATUS")?;
    ensure!(
        flags & VIABLE != 0,
        "IOMMU group {number} is not viable: another function of it has a driver"
    );
    ioctl::set_container(&group, &container).context("VFIO_GROUP_SET_CONTAINER")?;
    ioctl::set_iommu(&container, VFIO_TYPE1v2_IOMMU).context("VFIO_SET_IOMMU")?;
    let device = ioctl::device(&group, &CString::new(function)?)
        .with_context(|| format!("VFIO_GROUP_GET_DEVICE_FD {function}"))?;
    let iommu = Iommu::Container {
        container,
        _group: group,
    };
    Ok((device, iommu))
}

/// Opens the function's device file and binds it to an I/O address space of iommufd.
fn by_cdev(function: &str) -> Result<(File, Iommu)> {
    let path = cdev(function)?;
    let iommufd = open(IOMMUFD)?;
    let device = retry_busy(|| open(&path))?;
    let id = ioctl::bind_iommufd(&device, &iommufd).context("VFIO_DEVICE_BIND_IOMMUFD")?;
    let ioas = ioctl::ioas_alloc(&iommufd).context("IOMMU_IOAS_ALLOC")?;
    ioctl::attach(&device, ioas).context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
    let iommu = Iommu::Ioas {
        iommufd,
        ioas,
        device: id,
    };
    Ok((device, iommu))
}

/// The function's device file.
fn cdev(function: &str) -> Result<String> {
    let folder = format!("/sys/bus/pci/devices/{function}/vfio-dev");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("read {folder}: the kernel may lack CONFIG_VFIO_DEVICE_CDEV"))?;
    let Some(entry) = entries.flatten().next() else {
        bail!("{folder} is empty");
    };
    let name = entry.file_name();
    Ok(format!("/dev/vfio/devices/{}", name.to_string_lossy()))
}

fn retry_busy(mut open: impl FnMut() -> Result<File>) -> Result<File> {
    let busy = |error: &anyhow::Error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    };
    for _ in 0..40 {
        match open() {
            Err(error) if busy(&error) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            other => return other,
        }
    }
    open()
}

/// The IOVA ranges in `struct vfio_iommu_type1_info` and the capabilities after it, each of which
/// begins with `{id: u16, version: u16, next: u32}`.
fn ranges_in(info: &[u8]) -> Option<Vec<(u64, u64)>> {
    let word = |at: usize| {
        let bytes = info.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let long = |at: usize| {
        let bytes = info.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    if word(4)? & HAS_CAPS == 0 {
        return None;
    }
    let mut at = word(16)? as usize;
    while at != 0 {
        let next = word(at + 4)? as usize;
        if word(at)? as u16 == CAP_IOVA_RANGE {
            let count = word(at + 8)? as usize;
            // After the count comes a reserved word.
            return (0..count)
                .map(|n| Some((long(at + 16 + 16 * n)?, long(at + 24 + 16 * n)?)))
                .collect();
        }
        // The chain goes forward; one that does not would have no end.
        at = if next > at { next } else { 0 };
    }
    None
}

/// Shares a device between threads.
pub(crate) type Shared = Arc<Device>;

#[cfg(test)]
mod tests {
    use super::*;

    fn put(info: &mut [u8], at: usize, word: u32) {
        info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    #[test]
    fn iova_ranges_are_found_behind_other_capabilities() {
        let mut info = [0; 256];
        assert_eq!(ranges_in(&info), None);
        put(&mut info, 4, HAS_CAPS);
        put(&mut info, 16, 24);
        put(&mut info, 24, 3);
        put(&mut info, 28, 40);
        put(&mut info, 40, u32::from(CAP_IOVA_RANGE) | 1 << 16);
        put(&mut info, 48, 2);
        put(&mut info, 60, 0);
        put(&mut info, 64, 0xfedf_ffff);
        put(&mut info, 72, 0xfef0_0000);
        put(&mut info, 80, 0xffff_ffff);
        put(&mut info, 84, 0xff);
        let expected = vec![(0, 0xfedf_ffff), (0xfef0_0000, 0xff_ffff_ffff)];
        assert_eq!(ranges_in(&info), Some(expected));
        assert_eq!(ranges_in(&info[..80]), None);
        put(&mut info, 40, 3);
        put(&mut info, 44, 24);
        assert_eq!(ranges_in(&info), None, "a chain that goes back");
    }
}
