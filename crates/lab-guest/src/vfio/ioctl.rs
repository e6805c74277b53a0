//! The calls of VFIO and iommufd, each made safe: what a call reads or writes besides its own
//! structure is stated here and nowhere else.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use iommufd_bindings::iommufd::{
    iommu_hwpt_alloc, iommu_hwpt_get_dirty_bitmap, iommu_hwpt_set_dirty_tracking, iommu_ioas_alloc,
    iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_unmap, iommu_iova_range,
};
use nix::Result;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_irq_info, vfio_region_info,
};
use vm_memory::MmapRegion;

/// Room for `struct vfio_iommu_type1_info` and its capability chain.
pub(super) const INFO: usize = 4096;

/// `struct vfio_iommu_type1_dma_unmap` without the bitmap that may follow it.
#[repr(C)]
#[derive(Default)]
pub(super) struct Unmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
}

mod raw {
    use super::*;

    /// VFIO's numbers are `_IO(';', 100 + n)`, those of iommufd `_IO(';', 128 + n)`: they carry
    /// no size.
    const fn number(n: u8) -> nix::sys::ioctl::ioctl_num_type {
        nix::request_code_none!(b';', n)
    }

    nix::ioctl_write_int_bad!(check_extension, number(101));
    nix::ioctl_write_int_bad!(set_iommu, number(102));
    nix::ioctl_readwrite_bad!(group_status, number(103), vfio_group_status);
    nix::ioctl_write_ptr_bad!(set_container, number(104), i32);
    nix::ioctl_write_ptr_bad!(device_fd, number(106), libc::c_char);
    nix::ioctl_readwrite_bad!(region_info, number(108), vfio_region_info);
    nix::ioctl_readwrite_bad!(irq_info, number(109), vfio_irq_info);
    nix::ioctl_write_ptr_bad!(set_irqs, number(110), u32);
    nix::ioctl_readwrite_bad!(info, number(112), [u8; INFO]);
    nix::ioctl_write_ptr_bad!(map, number(113), vfio_iommu_type1_dma_map);
    nix::ioctl_readwrite_bad!(unmap, number(114), Unmap);
    nix::ioctl_readwrite_bad!(bind_iommufd, number(118), vfio_device_bind_iommufd);
    nix::ioctl_readwrite_bad!(attach, number(119), vfio_device_attach_iommufd_pt);
    nix::ioctl_readwrite_bad!(ioas_alloc, number(129), iommu_ioas_alloc);
    nix::ioctl_readwrite_bad!(ioas_ranges, number(132), iommu_ioas_iova_ranges);
    nix::ioctl_readwrite_bad!(ioas_map, number(133), iommu_ioas_map);
    nix::ioctl_readwrite_bad!(ioas_unmap, number(134), iommu_ioas_unmap);
    nix::ioctl_readwrite_bad!(hwpt_alloc, number(137), iommu_hwpt_alloc);
    nix::ioctl_write_ptr_bad!(dirty_tracking, number(139), iommu_hwpt_set_dirty_tracking);
    nix::ioctl_readwrite_bad!(dirty_bitmap, number(140), iommu_hwpt_get_dirty_bitmap);
}

/// The size of a structure, as most of them begin with.
const fn size_of<T>() -> u32 {
    std::mem::size_of::<T>() as u32
}

pub(super) fn check_extension(container: &File, extension: u32) -> Result<bool> {
    // SAFETY: the descriptor is open; the argument is a number.
    let has = unsafe { raw::check_extension(container.as_raw_fd(), extension as i32) }?;
    Ok(has > 0)
}

pub(super) fn set_iommu(container: &File, kind: u32) -> Result<()> {
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { raw::set_iommu(container.as_raw_fd(), kind as i32) }.map(drop)
}

/// The group's flags.
pub(super) fn group_status(group: &File) -> Result<u32> {
    let mut status = vfio_group_status {
        argsz: size_of::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: the structure has the size that it says.
    unsafe { raw::group_status(group.as_raw_fd(), &mut status) }?;
    Ok(status.flags)
}

pub(super) fn set_container(group: &File, container: &File) -> Result<()> {
    let container = container.as_raw_fd();
    // SAFETY: both descriptors are open; the integer is only read.
    unsafe { raw::set_container(group.as_raw_fd(), &container) }.map(drop)
}

pub(super) fn device(group: &File, function: &CStr) -> Result<File> {
    // SAFETY: the descriptor is open; the string ends with a zero and is only read.
    let fd = unsafe { raw::device_fd(group.as_raw_fd(), function.as_ptr()) }?;
    // SAFETY: the call has made this descriptor, and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

pub(super) fn region_info(device: &File, index: u32) -> Result<vfio_region_info> {
    let mut info = vfio_region_info {
        argsz: size_of::<vfio_region_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says; capabilities do not fit and are left out.
    unsafe { raw::region_info(device.as_raw_fd(), &mut info) }?;
    Ok(info)
}

pub(super) fn irq_info(device: &File, index: u32) -> Result<vfio_irq_info> {
    let mut info = vfio_irq_info {
        argsz: size_of::<vfio_irq_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says.
    unsafe { raw::irq_info(device.as_raw_fd(), &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_SET_IRQS`: flags, index, first, how many, and a descriptor (or −1) for each where
/// the flags say so. What the call returned; above 0 it is the number of interrupts that there
/// could have been.
pub(super) fn set_irqs(
    device: &File,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fds: &[i32],
) -> Result<i32> {
    use vfio_bindings::bindings::vfio::VFIO_IRQ_SET_DATA_EVENTFD;
    // The kernel reads `count` descriptors where it is told to, and none beyond `argsz`.
    let described = flags & VFIO_IRQ_SET_DATA_EVENTFD != 0;
    if described && fds.len() != count as usize || !described && !fds.is_empty() {
        return Err(nix::Error::EINVAL);
    }
    let mut words = vec![0, flags, index, start, count];
    words.extend(fds.iter().map(|fd| *fd as u32));
    words[0] = (4 * words.len()) as u32;
    // SAFETY: the words are a `struct vfio_irq_set` of the size that it says, and only read.
    unsafe { raw::set_irqs(device.as_raw_fd(), words.as_ptr()) }
}

/// `struct vfio_iommu_type1_info` and the capabilities after it.
pub(super) fn container_info(container: &File) -> Result<Box<[u8; INFO]>> {
    let mut info = Box::new([0; INFO]);
    info[..4].copy_from_slice(&(INFO as u32).to_ne_bytes());
    // SAFETY: the buffer is as large as its first field says.
    unsafe { raw::info(container.as_raw_fd(), &mut *info) }?;
    Ok(info)
}

/// Where `length` bytes at `offset` of `memory` are; no other place can be mapped.
fn address(memory: &MmapRegion, offset: u64, length: u64) -> Result<u64> {
    let end = offset.checked_add(length).ok_or(nix::Error::EINVAL)?;
    if length == 0 || end > memory.size() as u64 {
        return Err(nix::Error::EINVAL);
    }
    Ok(memory.as_ptr() as u64 + offset)
}

/// Maps memory for the device to read and write.
pub(super) fn map(
    container: &File,
    iova: u64,
    memory: &MmapRegion,
    offset: u64,
    size: u64,
) -> Result<()> {
    use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>(),
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: address(memory, offset, size)?,
        iova,
        size,
    };
    // SAFETY: the structure is only read. The device may write to the memory from now on: it is a
    // region of its own, in which this program looks at nothing but by volatile access, and the
    // kernel keeps its pages until they are unmapped.
    unsafe { raw::map(container.as_raw_fd(), &map) }.map(drop)
}

/// Unmaps what lies in a range; how many bytes that was.
pub(super) fn unmap(container: &File, iova: u64, size: u64) -> Result<u64> {
    let mut unmap = Unmap {
        argsz: size_of::<Unmap>(),
        flags: 0,
        iova,
        size,
    };
    // SAFETY: the structure has the size that it says, and without flags nothing follows it.
    unsafe { raw::unmap(container.as_raw_fd(), &mut unmap) }?;
    Ok(unmap.size)
}

/// Binds a device to iommufd; its ID there.
pub(super) fn bind_iommufd(device: &File, iommufd: &File) -> Result<u32> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: size_of::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says; without flags its pointer is not used.
    unsafe { raw::bind_iommufd(device.as_raw_fd(), &mut bind) }?;
    Ok(bind.out_devid)
}

/// Attaches a device to an I/O address space, or to a page table of one.
pub(super) fn attach(device: &File, pt_id: u32) -> Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: size_of::<vfio_device_attach_iommufd_pt>(),
        pt_id,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says.
    unsafe { raw::attach(device.as_raw_fd(), &mut attach) }.map(drop)
}

pub(super) fn ioas_alloc(iommufd: &File) -> Result<u32> {
    let mut alloc = iommu_ioas_alloc {
        size: size_of::<iommu_ioas_alloc>(),
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says.
    unsafe { raw::ioas_alloc(iommufd.as_raw_fd(), &mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// What can be mapped: first and last IOVA of each range.
pub(super) fn ioas_ranges(iommufd: &File, ioas: u32) -> Result<Vec<(u64, u64)>> {
    let mut ranges = [iommu_iova_range::default(); 64];
    let mut query = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>(),
        ioas_id: ioas,
        num_iovas: ranges.len() as u32,
        allowed_iovas: ranges.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says, and points to an array of as many ranges
    // as it says, which lives until after the call.
    unsafe { raw::ioas_ranges(iommufd.as_raw_fd(), &mut query) }?;
    let known = ranges.iter().take(query.num_iovas as usize);
    Ok(known.map(|range| (range.start, range.last)).collect())
}

/// As [`map`].
pub(super) fn ioas_map(
    iommufd: &File,
    ioas: u32,
    iova: u64,
    memory: &MmapRegion,
    offset: u64,
    length: u64,
) -> Result<()> {
    use iommufd_bindings::iommufd as flags;
    let mut map = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>(),
        flags: flags::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
            | flags::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
            | flags::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id: ioas,
        user_va: address(memory, offset, length)?,
        length,
        iova,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says; of the memory see `map`.
    unsafe { raw::ioas_map(iommufd.as_raw_fd(), &mut map) }.map(drop)
}

/// As [`unmap`].
pub(super) fn ioas_unmap(iommufd: &File, ioas: u32, iova: u64, length: u64) -> Result<u64> {
    let mut unmap = iommu_ioas_unmap {
        size: size_of::<iommu_ioas_unmap>(),
        ioas_id: ioas,
        iova,
        length,
    };
    // SAFETY: the structure has the size that it says.
    unsafe { raw::ioas_unmap(iommufd.as_raw_fd(), &mut unmap) }?;
    Ok(unmap.length)
}

/// Makes a page table for a device, which follows the mappings of an I/O address space and keeps
/// dirty bits; its ID.
pub(super) fn hwpt_alloc_dirty(iommufd: &File, device: u32, ioas: u32) -> Result<u32> {
    use iommufd_bindings::iommufd as flags;
    let mut alloc = iommu_hwpt_alloc {
        size: size_of::<iommu_hwpt_alloc>(),
        flags: flags::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        dev_id: device,
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the structure has the size that it says; with a data length of 0 its pointer is not
    // used.
    unsafe { raw::hwpt_alloc(iommufd.as_raw_fd(), &mut alloc) }?;
    Ok(alloc.out_hwpt_id)
}

pub(super) fn set_dirty_tracking(iommufd: &File, hwpt: u32, on: bool) -> Result<()> {
    use iommufd_bindings::iommufd::iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE as ENABLE;
    let set = iommu_hwpt_set_dirty_tracking {
        size: size_of::<iommu_hwpt_set_dirty_tracking>(),
        flags: if on { ENABLE } else { 0 },
        hwpt_id: hwpt,
        __reserved: 0,
    };
    // SAFETY: the structure has the size that it says, and is only read.
    unsafe { raw::dirty_tracking(iommufd.as_raw_fd(), &set) }.map(drop)
}

/// The dirty pages of a range: bit n is that of page n, 64 in a word. Unless they are to be kept,
/// none is dirty after this.
pub(super) fn dirty_bitmap(
    iommufd: &File,
    hwpt: u32,
    (iova, length): (u64, u64),
    page_size: u64,
    keep: bool,
) -> Result<Vec<u64>> {
    use iommufd_bindings::iommufd::iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR as NO_CLEAR;
    // The kernel sets a bit for each page of the range that it is asked for.
    let pages = length.checked_div(page_size).ok_or(nix::Error::EINVAL)?;
    let words = usize::try_from(pages.div_ceil(64)).map_err(|_| nix::Error::EINVAL)?;
    let mut bitmap = vec![0u64; words];
    let mut get = iommu_hwpt_get_dirty_bitmap {
        size: size_of::<iommu_hwpt_get_dirty_bitmap>(),
        hwpt_id: hwpt,
        flags: if keep { NO_CLEAR } else { 0 },
        iova,
        length,
        page_size,
        data: bitmap.as_mut_ptr() as u64,
        __reserved: 0,
    };
    // SAFETY: the structure has the size that it says, and points to an array with a bit for each
    // page of the range, which lives until after the call.
    unsafe { raw::dirty_bitmap(iommufd.as_raw_fd(), &mut get) }?;
    Ok(bitmap)
}
