//! Network interfaces. The system calls that no safe crate wraps.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// `IFF_UP`.
const UP: u32 = 1;

/// Makes a tap interface that stays when nothing is attached to it.
///
/// # Errors
/// There is no `/dev/net/tun`, or the kernel refuses the name.
pub fn make_tap(name: &str) -> io::Result<()> {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut asked = named(name);
    asked.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request reads and writes a `struct ifreq`, which `asked` is.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut asked) };
    result(made)?;
    // SAFETY: the request takes a number.
    result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
}

/// Gives an interface, by its name, an address in a /24 network.
///
/// # Errors
/// There is no such interface, or the kernel refuses the address.
pub fn set_address(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mask = Ipv4Addr::new(255, 255, 255, 0);
    for (request, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        // A port of no meaning comes first.
        let mut sa_data = [0; 14];
        for (to, from) in sa_data[2..].iter_mut().zip(address.octets()) {
            *to = from.cast_signed();
        }
        let mut asked = named(interface);
        asked.ifr_ifru.ifru_addr = libc::sockaddr {
            sa_family: libc::AF_INET as u16,
            sa_data,
        };
        // SAFETY: both requests read a `struct ifreq` with an address in it.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const asked) };
        result(done)?;
    }
    Ok(())
}

/// Switches an interface on.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn set_up(interface: &str) -> io::Result<()> {
    let path = format!("/sys/class/net/{interface}/flags");
    let flags = fs::read_to_string(&path)?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    fs::write(path, format!("{:#x}", flags | UP))
}

/// What names an interface to the kernel.
fn named(interface: &str) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    for (to, from) in ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(interface.bytes())
    {
        *to = from.cast_signed();
    }
    libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    }
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
