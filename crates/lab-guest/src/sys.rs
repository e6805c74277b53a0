//! System calls that no safe crate wraps.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Loads a kernel for `reboot(RB_KEXEC)`: its image, its initramfs and its command line.
pub(crate) fn kexec_file_load(
    kernel: impl AsFd,
    initrd: impl AsFd,
    cmdline: &CStr,
) -> io::Result<()> {
    let length = cmdline.to_bytes_with_nul().len();
    let no_flags: libc::c_ulong = 0;
    // SAFETY: the command line has the length that is given, with its final zero, and is only
    // read; the descriptors are open.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_fd().as_raw_fd(),
            initrd.as_fd().as_raw_fd(),
            length,
            cmdline.as_ptr(),
            no_flags,
        )
    };
    result(loaded)
}

/// Opens a counter of a performance monitoring unit, of all processes on a processor, which does not
/// count yet.
pub(crate) fn perf_event_open(kind: u32, config: [u64; 2], cpu: i32) -> io::Result<File> {
    /// `PERF_ATTR_SIZE_VER0`: the structure as it was first, which every kernel takes.
    const SIZE: u64 = 64;
    const DISABLED: u64 = 1;
    /// `PERF_FLAG_FD_CLOEXEC`.
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    let attributes: [u64; (SIZE / 8) as usize] = [
        u64::from(kind) | SIZE << 32,
        config[0],
        // Neither samples nor a format of their own.
        0,
        0,
        0,
        DISABLED,
        0,
        config[1],
    ];
    let (every_process, no_group): (libc::pid_t, RawFd) = (-1, -1);
    // SAFETY: the words are a `struct perf_event_attr` of the size that its second field says, and
    // are only read.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            every_process,
            cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    let fd = RawFd::try_from(opened).map_err(io::Error::other)?;
    result(opened.min(0))?;
    // SAFETY: the call has made this descriptor, and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Lets a counter count, or not any more.
pub(crate) fn perf_event_enable(counter: &File, on: bool) -> io::Result<()> {
    mod raw {
        nix::ioctl_none!(enable, b'$', 0);
        nix::ioctl_none!(disable, b'$', 1);
    }
    let fd = counter.as_raw_fd();
    let done = if on {
        // SAFETY: the descriptor is open; the call has no argument.
        unsafe { raw::enable(fd) }
    } else {
        // SAFETY: as above.
        unsafe { raw::disable(fd) }
    };
    Ok(done.map(drop)?)
}

fn result(returned: i64) -> io::Result<()> {
    if returned == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
