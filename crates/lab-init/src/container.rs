//! The legacy VFIO container, asked for all that it can be asked about its IOMMU.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use amdvi_lab_init::Container;

/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: i32 = 3;
/// Room for `struct vfio_iommu_type1_info` and its capability chain.
const INFO: usize = 4096;
/// Offsets in `struct vfio_iommu_type1_info`: `argsz`, `flags`, and `cap_offset` after the 64-bit
/// `iova_pgsizes`.
const FLAGS: usize = 4;
const CAP_OFFSET: usize = 16;
/// `VFIO_IOMMU_INFO_CAPS`.
const HAS_CAPS: u32 = 1 << 1;

mod ioctl {
    // VFIO's numbers are _IO(';', 100 + n): they carry no size.
    nix::ioctl_none_bad!(api_version, nix::request_code_none!(b';', 100));
    nix::ioctl_write_int_bad!(check_extension, nix::request_code_none!(b';', 101));
    nix::ioctl_write_int_bad!(set_iommu, nix::request_code_none!(b';', 102));
    nix::ioctl_write_ptr_bad!(set_container, nix::request_code_none!(b';', 104), i32);
    nix::ioctl_readwrite_bad!(
        get_info,
        nix::request_code_none!(b';', 112),
        [u8; super::INFO]
    );
}

/// Puts the function's group into a container and asks.
pub(crate) fn ask(function: &str) -> Container {
    let mut said = Container::default();
    if let Err(error) = fill(function, &mut said) {
        said.error = Some(error.to_string());
    }
    said
}

fn fill(function: &str, said: &mut Container) -> io::Result<()> {
    let at = |step: &str, error: io::Error| io::Error::other(format!("{step}: {error}"));
    let open = |path: &str| {
        let file = File::options().read(true).write(true).open(path);
        file.map_err(|error| at(path, error))
    };
    let container = open("/dev/vfio/vfio")?;
    let fd = container.as_raw_fd();
    // SAFETY: the descriptor is open while `container` lives, and the call takes no argument.
    let version = unsafe { ioctl::api_version(fd) };
    said.api_version = Some(version.map_err(|error| at("VFIO_GET_API_VERSION", error.into()))?);
    // SAFETY: as above; the argument is a number.
    let type1v2 = unsafe { ioctl::check_extension(fd, TYPE1V2) };
    said.type1v2 = Some(type1v2.map_err(|error| at("VFIO_CHECK_EXTENSION", error.into()))?);

    let link = format!("/sys/bus/pci/devices/{function}/iommu_group");
    let group = fs::read_link(&link).map_err(|error| at(&link, error))?;
    let number = group.file_name().unwrap_or_default().to_string_lossy();
    let group = open(&format!("/dev/vfio/{number}"))?;
    // SAFETY: both descriptors are open, and the pointer is to a live integer that is only read.
    unsafe { ioctl::set_container(group.as_raw_fd(), &fd) }
        .map_err(|error| at("VFIO_GROUP_SET_CONTAINER", error.into()))?;
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { ioctl::set_iommu(fd, TYPE1V2) }.map_err(|error| at("VFIO_SET_IOMMU", error.into()))?;
    said.ready = true;

    let mut info = [0u8; INFO];
    info[..4].copy_from_slice(&(INFO as u32).to_ne_bytes());
    // SAFETY: the buffer is as large as its first field tells the kernel.
    unsafe { ioctl::get_info(fd, &mut info) }
        .map_err(|error| at("VFIO_IOMMU_GET_INFO", error.into()))?;
    said.capabilities = capabilities(&info);
    Ok(())
}

/// The IDs in the capability chain, each `{id: u16, version: u16, next: u32}`.
fn capabilities(info: &[u8; INFO]) -> Vec<u16> {
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let mut ids = Vec::new();
    if word(FLAGS).is_none_or(|flags| flags & HAS_CAPS == 0) {
        return ids;
    }
    let mut at = word(CAP_OFFSET).unwrap_or(0) as usize;
    // The chain goes forward; one that does not would have no end.
    while at != 0 {
        let (Some(head), Some(next)) = (word(at), word(at + 4)) else {
            break;
        };
        ids.push(head as u16);
        at = if next as usize > at { next as usize } else { 0 };
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(info: &mut [u8; INFO], at: usize, word: u32) {
        info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    #[test]
    fn the_chain_is_followed_to_its_end_and_not_in_circles() {
        let mut info = [0; INFO];
        assert_eq!(capabilities(&info), [0u16; 0]);
        put(&mut info, FLAGS, HAS_CAPS);
        put(&mut info, CAP_OFFSET, 24);
        put(&mut info, 24, 1 | 1 << 16);
        put(&mut info, 28, 64);
        put(&mut info, 64, 3);
        assert_eq!(capabilities(&info), [1, 3]);
        put(&mut info, 68, 24);
        assert_eq!(capabilities(&info), [1, 3]);
        put(&mut info, 68, 4094);
        assert_eq!(capabilities(&info), [1, 3]);
    }
}
