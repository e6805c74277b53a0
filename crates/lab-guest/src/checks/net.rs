//! Virtio network interfaces whose other end gives back what it gets.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use amdvi_lab_guest::data::{differs, fill};
use amdvi_lab_guest::plan::Net;
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::context::{interrupts, names, pin, put, text};
use crate::sys;

/// Two addresses, and the type.
const HEADER: usize = 14;
/// EtherType of the first thread, for local experiments; the others have those behind it.
const ETHERTYPE: u16 = 0x88b5;
/// Lengths of frames, from the shortest to the longest that Ethernet has.
const LENGTHS: [usize; 6] = [60, 1514, 61, 590, 1513, 128];
/// How long a frame may be on its way.
const PATIENCE: i64 = 5;
/// `IFF_UP`.
const UP: u32 = 1;

pub(super) fn check(want: &Net) -> Result<String> {
    let interfaces: Vec<_> = names("/sys/class/net")?
        .into_iter()
        .filter(|name| {
            let driver = format!("/sys/class/net/{name}/device/driver");
            std::fs::read_link(driver).is_ok_and(|driver| driver.ends_with("virtio_net"))
        })
        .collect();
    ensure!(
        interfaces.len() == want.interfaces,
        "there are {} virtio network interfaces {interfaces:?}, not {}",
        interfaces.len(),
        want.interfaces
    );
    let mut said = Vec::new();
    for name in &interfaces {
        said.push(one(name, want).with_context(|| format!("interface {name}"))?);
    }
    Ok(said.join("; "))
}

fn one(name: &str, want: &Net) -> Result<String> {
    let folder = format!("/sys/class/net/{name}");
    let flags = text(format!("{folder}/flags"))?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16)? | UP;
    put(format!("{folder}/flags"), &format!("{flags:#x}"))?;
    let index = text(format!("{folder}/ifindex"))?.parse()?;
    let address = address(&text(format!("{folder}/address"))?)?;
    let before = counts(&folder)?;
    let threads = want.threads.max(1);
    thread::scope(|scope| {
        let spawn = |number: usize| {
            scope.spawn(move || {
                pin(number)?;
                let ethertype = ETHERTYPE + number as u16;
                let lane = Lane {
                    socket: open(index, ethertype)?,
                    address,
                    ethertype,
                    seed: want.seed.wrapping_add(number as u64),
                };
                lane.run(want.frames / threads, want.window)
                    .with_context(|| format!("thread {number}"))
            })
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))?;
        }
        anyhow::Ok(())
    })?;
    let after = counts(&folder)?;
    let queues: Vec<_> = after
        .iter()
        .zip(&before)
        .map(|((queue, after), (_, before))| format!("{queue} {}", after - before))
        .collect();
    Ok(format!(
        "{name}: {} frames went and came back; interrupts {queues:?}",
        want.frames / threads * threads
    ))
}

/// Interrupts of each queue.
fn counts(folder: &str) -> Result<Vec<(String, u64)>> {
    let device = std::fs::canonicalize(Path::new(folder).join("device"))?;
    let device = device.file_name().unwrap_or_default().to_string_lossy();
    let mut queues = Vec::new();
    for row in interrupts()? {
        if let Some(queue) = row.actions().strip_prefix(&format!("{device}-")) {
            queues.push((queue.to_owned(), row.count));
        }
    }
    Ok(queues)
}

fn address(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes
        .try_into()
        .map_err(|_| anyhow!("`{text}` is no Ethernet address"))
}

fn open(interface: u32, ethertype: u16) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    // Without a protocol nothing is received before it is bound to one.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).context(
        "packet socket: the kernel needs CONFIG_PACKET, in Debian's the module af_packet",
    )?;
    sys::bind_packet(&socket, interface, ethertype).context("bind the packet socket")?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(PATIENCE),
    )?;
    Ok(socket)
}

/// A thread's frames.
struct Lane {
    socket: OwnedFd,
    address: [u8; 6],
    ethertype: u16,
    seed: u64,
}

impl Lane {
    /// Sends frames, some of them on their way at a time, and takes each back exactly once.
    fn run(&self, frames: usize, window: usize) -> Result<()> {
        let mut back = vec![false; frames];
        let (mut sent, mut received) = (0, 0);
        let mut seen = [0; 2048];
        while received < frames {
            while sent < frames && sent - received < window.max(1) {
                let frame = self.frame(sent as u64);
                send(self.socket.as_raw_fd(), &frame, MsgFlags::empty())
                    .with_context(|| format!("send frame {sent}"))?;
                sent += 1;
            }
            let length = match recv(self.socket.as_raw_fd(), &mut seen, MsgFlags::empty()) {
                Ok(length) => length,
                Err(nix::Error::EAGAIN) => {
                    let lost: Vec<_> = (0..sent).filter(|n| !back[*n]).take(10).collect();
                    bail!("{received} of {sent} frames came back, not {lost:?} …");
                }
                Err(error) => return Err(error).context("receive"),
            };
            let number = self.judge(&seen[..length])?;
            let slot = usize::try_from(number).ok().and_then(|n| back.get_mut(n));
            let slot = slot.with_context(|| format!("frame {number} was never sent"))?;
            ensure!(!*slot, "frame {number} came back twice");
            *slot = true;
            received += 1;
        }
        // None comes twice at the end either.
        match recv(self.socket.as_raw_fd(), &mut seen, MsgFlags::MSG_DONTWAIT) {
            Err(nix::Error::EAGAIN) => Ok(()),
            Ok(length) => bail!("a frame of {length} bytes came after the last"),
            Err(error) => Err(error).context("receive"),
        }
    }

    /// A frame from this interface to itself: it does not matter whether the other end turns the
    /// addresses around.
    fn frame(&self, number: u64) -> Vec<u8> {
        let mut frame = vec![0; LENGTHS[number as usize % LENGTHS.len()]];
        frame[..6].copy_from_slice(&self.address);
        frame[6..12].copy_from_slice(&self.address);
        frame[12..14].copy_from_slice(&self.ethertype.to_be_bytes());
        frame[HEADER..HEADER + 8].copy_from_slice(&number.to_be_bytes());
        fill(self.seed, number, &mut frame[HEADER + 8..]);
        frame
    }

    /// The number of a frame that came back as it was sent.
    fn judge(&self, frame: &[u8]) -> Result<u64> {
        let number = frame
            .get(HEADER..HEADER + 8)
            .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))
            .with_context(|| format!("a frame of {} bytes came", frame.len()))?;
        let length = LENGTHS[number as usize % LENGTHS.len()];
        ensure!(
            frame.len() == length,
            "frame {number} came with {} bytes, not {length}",
            frame.len()
        );
        if let Some(at) = differs(self.seed, number, &frame[HEADER + 8..]) {
            bail!(
                "frame {number} differs from what was sent at byte {}",
                HEADER + 8 + at
            );
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_was_changed_or_cut_is_not_the_one_that_was_sent() {
        let lane = Lane {
            socket: socket(
                AddressFamily::Unix,
                SockType::Datagram,
                SockFlag::empty(),
                None,
            )
            .unwrap(),
            address: address("02:00:00:00:00:01").unwrap(),
            ethertype: ETHERTYPE,
            seed: 3,
        };
        for number in 0..12 {
            let mut frame = lane.frame(number);
            assert_eq!(lane.judge(&frame).unwrap(), number);
            let last = frame.len() - 1;
            frame[last] ^= 1;
            assert!(lane.judge(&frame).is_err());
            frame[last] ^= 1;
            assert!(lane.judge(&frame[..last]).is_err());
        }
        assert!(address("02:00").is_err());
    }
}
