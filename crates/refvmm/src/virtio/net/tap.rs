//! A tap interface.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{MAX_FRAME, Receive, Transmit};

const DEVICE: &str = "/dev/net/tun";

/// Attaches to the interface, or makes it.
pub(super) fn open(name: &str) -> io::Result<(Sender, Receiver)> {
    let error = |what: &str, error: io::Error| {
        let text = format!("--net tap={name}: {what}: {error}");
        io::Error::new(error.kind(), text)
    };
    let mut request = interface(name).map_err(|e| error("is no name of an interface", e))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|e| error("can't open /dev/net/tun; the kernel's module is tun", e))?;
    attach(&file, &mut request).map_err(|e| {
        error(
            "can't attach; it takes CAP_NET_ADMIN, or an interface made for this user with `ip tuntap add`",
            e,
        )
    })?;
    let from = file.try_clone()?;
    Ok((Sender(file), Receiver(from, vec![0; MAX_FRAME])))
}

/// What names the interface to the kernel: a tap, whose frames have nothing in front of them.
fn interface(name: &str) -> io::Result<libc::ifreq> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    if name.is_empty() || name.len() >= ifr_name.len() || name.contains(['/', '\0']) {
        let text = "1 to 15 bytes without '/' are";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
        },
    })
}

fn attach(file: &File, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` is, and the descriptor is
    // open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// To the interface.
pub(super) struct Sender(File);

impl Transmit for Sender {
    fn send(&mut self, frame: &[u8]) {
        // A frame that the interface does not take is lost, as on any network.
        let _ = self.0.write(frame);
    }
}

/// From the interface.
pub(super) struct Receiver(File, Vec<u8>);

impl Receive for Receiver {
    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> bool {
        match self.0.read(&mut self.1) {
            Ok(len) if len > 0 => {
                buffer.extend_from_slice(&self.1[..len]);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a\0b"] {
            let Err(error) = open(name) else {
                panic!("{name:?} was accepted");
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("--net tap="), "{error}");
        }
        let request = interface("fifteen-bytes-x").unwrap();
        assert_eq!(request.ifr_name[15], 0);
    }
}
