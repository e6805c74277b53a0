//! The system calls that no crate wraps: the only unsafe code.
//!
//! Each function's arguments are owned or borrowed for the whole call, so that none can be called
//! wrongly; what the kernel writes goes into memory that this module owns.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

#[cfg(feature = "iommufd")]
use crate::hw_info::{HwCapabilities, RawHwInfo};

#[cfg(feature = "iommufd")]
mod vfio {
    // _IO(';', 118): VFIO_DEVICE_BIND_IOMMUFD. VFIO's numbers carry no size.
    nix::ioctl_readwrite_bad!(
        bind_iommufd,
        nix::request_code_none!(b';', 100 + 18),
        vfio_bindings::bindings::vfio::vfio_device_bind_iommufd
    );
}

#[cfg(feature = "kvm")]
mod kvm {
    // _IO(0xAE, 0x03): KVM_CHECK_EXTENSION, whose argument is the number itself.
    nix::ioctl_write_int_bad!(check_extension, nix::request_code_none!(0xae, 0x03));
}

/// Binds a VFIO device to an iommufd, without attaching it to any address space, and returns its
/// ID there. The binding lasts until the device is closed.
#[cfg(feature = "iommufd")]
pub(crate) fn vfio_bind_iommufd(
    device: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
) -> io::Result<u32> {
    let mut bind = vfio_bindings::bindings::vfio::vfio_device_bind_iommufd {
        argsz: size_of::<vfio_bindings::bindings::vfio::vfio_device_bind_iommufd>() as u32,
        flags: 0,
        iommufd: iommufd.as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: 0,
    };
    // SAFETY: `bind` is a live, initialized structure of the type that the call reads and writes,
    // its `argsz` is its size, and both descriptors are open while they are borrowed.
    unsafe { vfio::bind_iommufd(device.as_raw_fd(), &mut bind) }?;
    Ok(bind.out_devid)
}

/// `IOMMU_GET_HW_INFO` of a bound device.
#[cfg(feature = "iommufd")]
pub(crate) fn hw_info(iommufd: std::fs::File, dev_id: u32) -> io::Result<RawHwInfo> {
    use iommufd_bindings::iommufd::{iommu_hw_info, iommu_hw_info__bindgen_ty_1 as DataType};
    use iommufd_ioctls::{IommuFd, IommufdError};

    // Far more than any maker's structure has; the kernel zeroes what it does not fill.
    let mut data = vec![0u8; 256];
    let mut info = iommu_hw_info {
        size: size_of::<iommu_hw_info>() as u32,
        flags: 0,
        dev_id,
        data_len: data.len() as u32,
        data_uptr: data.as_mut_ptr().expose_provenance() as u64,
        __bindgen_anon_1: DataType { in_data_type: 0 },
        out_max_pasid_log2: 0,
        __reserved: [0; 3],
        out_capabilities: 0,
    };
    IommuFd::new_from_fd(iommufd)
        .get_hw_info(&mut info)
        .map_err(|error| match error {
            IommufdError::IommuGetHwInfo(error) => io::Error::from_raw_os_error(error.errno()),
            other => io::Error::other(other.to_string()),
        })?;
    // SAFETY: both members of the union are the same u32, written above and by the kernel.
    let data_type = unsafe { info.__bindgen_anon_1.out_data_type };
    Ok(RawHwInfo {
        data_type,
        data_len: info.data_len,
        data,
        capabilities: HwCapabilities(info.out_capabilities),
        max_pasid_log2: info.out_max_pasid_log2,
    })
}

/// `KVM_CHECK_EXTENSION` for any number: 0 when KVM does not know it.
#[cfg(feature = "kvm")]
pub(crate) fn kvm_check_extension(kvm: BorrowedFd<'_>, number: u32) -> io::Result<i32> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the call takes an integer and no pointer; the descriptor is open while borrowed.
    Ok(unsafe { kvm::check_extension(kvm.as_raw_fd(), number) }?)
}

#[cfg(all(test, feature = "iommufd", feature = "kvm"))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// On a file that is no such device the kernel refuses each number, and the error comes back.
    #[test]
    fn a_file_that_is_no_device_is_an_error_of_the_system() {
        let null = File::open("/dev/null").unwrap();
        let enotty = |error: io::Error| error.raw_os_error() == Some(25);
        assert!(vfio_bind_iommufd(null.as_fd(), null.as_fd()).is_err_and(enotty));
        assert!(hw_info(null.try_clone().unwrap(), 1).is_err_and(enotty));
        assert!(kvm_check_extension(null.as_fd(), 1000).is_err_and(enotty));
        assert!(kvm_check_extension(null.as_fd(), u32::MAX).is_err());
    }
}
