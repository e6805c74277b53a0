//! System calls that no safe crate wraps.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Binds a packet socket to an interface and to an EtherType.
pub(crate) fn bind_packet(socket: impl AsFd, interface: u32, ethertype: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a structure of the size that is given, which is only read.
    let bound = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    result(bound.into())
}

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

fn result(returned: i64) -> io::Result<()> {
    if returned == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
