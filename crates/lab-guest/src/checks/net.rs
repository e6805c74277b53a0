//! Virtio network interfaces whose peer sends back what it gets: datagrams by several threads, and
//! a stream.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use amdvi_lab_guest::data::{differs, fill};
use amdvi_lab_guest::plan::Net;
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::context::{interrupts, names, pin, put, text};

/// The datagram's number, before what follows from it.
const NUMBER: usize = 8;
/// Lengths of datagrams, up to the longest that is not cut in pieces.
const LENGTHS: [usize; 6] = [8, 1472, 9, 548, 1471, 86];
/// How far apart the contents of datagrams are.
const STRIDE: u64 = 4096;
/// How long something may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the stream that are on their way at a time.
const PIECE: usize = 16 << 10;

pub(super) fn check(want: &Net) -> Result<String> {
    let interfaces = interfaces()?;
    ensure!(
        interfaces.len() == want.interfaces,
        "there are {} virtio network interfaces {interfaces:?}, not {}",
        interfaces.len(),
        want.interfaces
    );
    let mut said = Vec::new();
    for (number, name) in interfaces.iter().enumerate() {
        let peer = u32::from(want.peer);
        let own = Ipv4Addr::from(peer.wrapping_add(1 + number as u32));
        let outcome = one(name, own, want);
        said.push(outcome.with_context(|| format!("interface {name}, {}", losses(name)))?);
    }
    Ok(said.join("; "))
}

/// The virtio network interfaces.
pub(super) fn interfaces() -> Result<Vec<String>> {
    let mut names = names("/sys/class/net")?;
    names.retain(|name| {
        let driver = format!("/sys/class/net/{name}/device/driver");
        std::fs::read_link(driver).is_ok_and(|driver| driver.ends_with("virtio_net"))
    });
    Ok(names)
}

/// Gives an interface an address in a /24 network and switches it on.
pub(super) fn up(name: &str, own: Ipv4Addr) -> Result<()> {
    // Debian's default discipline drops datagrams of a flow that waited for long, which is no loss of
    // the machine's. A kernel without this file has none to choose from.
    let _ = put("/proc/sys/net/core/default_qdisc", "pfifo_fast");
    amdvi_lab_init::net::set_address(name, own).context("set its address")?;
    amdvi_lab_init::net::set_up(name).context("switch it on")
}

fn one(name: &str, own: Ipv4Addr, want: &Net) -> Result<String> {
    let folder = format!("/sys/class/net/{name}");
    up(name, own)?;
    let before = counts(&folder)?;
    let threads = want.threads.max(1);
    let peer = SocketAddr::from((want.peer, want.port));
    thread::scope(|scope| {
        let spawn = |number: usize| {
            scope.spawn(move || {
                pin(number)?;
                let socket = UdpSocket::bind((own, 0)).context("bind a UDP socket")?;
                // With several interfaces the route alone does not tell them apart.
                setsockopt(&socket, sockopt::BindToDevice, &OsString::from(name))?;
                socket.connect(peer)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                let seed = want.seed.wrapping_add(number as u64);
                datagrams(&socket, seed, want.datagrams / threads, want.window)
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
    // Of several interfaces only the first has the route to the peer.
    let streamed = if own == Ipv4Addr::from(u32::from(want.peer).wrapping_add(1)) {
        stream(peer, want.seed, want.stream_kib << 10).context("TCP")?;
        want.stream_kib
    } else {
        0
    };
    let after = counts(&folder)?;
    let queues: Vec<_> = after
        .iter()
        .zip(&before)
        .map(|((queue, after), (_, before))| format!("{queue} {}", after - before))
        .collect();
    Ok(format!(
        "{name}: {} datagrams and a stream of {streamed} KiB went and came back; interrupts \
         {queues:?}",
        want.datagrams / threads * threads
    ))
}

/// Where the kernel says that something got lost: the interface's counters that are not 0, and
/// those of IP and UDP.
fn losses(name: &str) -> String {
    let folder = format!("/sys/class/net/{name}/statistics");
    let counters = names(&folder).unwrap_or_default();
    let counters: Vec<_> = counters
        .iter()
        .filter_map(|counter| {
            let count = text(format!("{folder}/{counter}")).ok()?;
            (count != "0").then(|| format!("{counter} {count}"))
        })
        .collect();
    let snmp = text("/proc/net/snmp").unwrap_or_default();
    let udp: Vec<_> = snmp
        .lines()
        .filter(|line| line.starts_with("Udp:"))
        .collect();
    format!("{}; {}", counters.join(", "), udp.join(" "))
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

/// Sends datagrams, some of them on their way at a time, and takes each back exactly once.
fn datagrams(socket: &UdpSocket, seed: u64, count: usize, window: usize) -> Result<()> {
    let mut back = vec![false; count];
    let (mut sent, mut received) = (0, 0);
    let mut seen = [0; 2048];
    while received < count {
        while sent < count && sent - received < window.max(1) {
            let bytes = socket.send(&datagram(seed, sent as u64));
            bytes.with_context(|| format!("send datagram {sent}"))?;
            sent += 1;
        }
        let length = match socket.recv(&mut seen) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let lost: Vec<_> = (0..sent).filter(|n| !back[*n]).take(10).collect();
                bail!("{received} of {sent} datagrams came back; not these: {lost:?}");
            }
            Err(error) => return Err(error).context("receive"),
        };
        let number = judge(seed, &seen[..length])?;
        let slot = usize::try_from(number).ok().and_then(|n| back.get_mut(n));
        let slot = slot.with_context(|| format!("datagram {number} was never sent"))?;
        ensure!(!*slot, "datagram {number} came back twice");
        *slot = true;
        received += 1;
    }
    // None comes twice at the end either.
    socket.set_nonblocking(true)?;
    match socket.recv(&mut seen) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Ok(length) => bail!("a datagram of {length} bytes came after the last"),
        Err(error) => Err(error).context("receive"),
    }
}

fn datagram(seed: u64, number: u64) -> Vec<u8> {
    let mut data = vec![0; LENGTHS[number as usize % LENGTHS.len()]];
    let (head, rest) = data.split_at_mut(NUMBER);
    head.copy_from_slice(&number.to_be_bytes());
    fill(seed, number * STRIDE, rest);
    data
}

/// The number of a datagram that came back as it was sent.
fn judge(seed: u64, data: &[u8]) -> Result<u64> {
    let (number, rest) = data
        .split_first_chunk::<NUMBER>()
        .with_context(|| format!("a datagram of {} bytes came", data.len()))?;
    let number = u64::from_be_bytes(*number);
    let length = LENGTHS[(number % LENGTHS.len() as u64) as usize];
    ensure!(
        data.len() == length,
        "datagram {number} came with {} bytes, not {length}",
        data.len()
    );
    if let Some(at) = differs(seed, number.wrapping_mul(STRIDE), rest) {
        bail!(
            "datagram {number} differs from what was sent at byte {}",
            NUMBER + at
        );
    }
    Ok(number)
}

/// Sends so many bytes over a connection, and takes them back.
fn stream(peer: SocketAddr, seed: u64, bytes: u64) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&peer, PATIENCE).context("connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut data = [0; PIECE];
    for at in (0..bytes).step_by(PIECE) {
        let data = &mut data[..PIECE.min((bytes - at) as usize)];
        fill(seed, at, data);
        connection.write_all(data).context("send")?;
        data.fill(0);
        connection
            .read_exact(data)
            .with_context(|| format!("receive what was sent from byte {at} on"))?;
        if let Some(byte) = differs(seed, at, data) {
            bail!("byte {} came back as another", at + byte as u64);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_was_changed_or_cut_is_not_the_one_that_was_sent() {
        for number in 0..12 {
            let mut data = datagram(3, number);
            assert_eq!(judge(3, &data).unwrap(), number);
            let last = data.len() - 1;
            data[last] ^= 1;
            assert!(judge(3, &data).is_err());
            data[last] ^= 1;
            assert!(judge(3, &data[..last]).is_err());
        }
    }

    #[test]
    fn what_an_echo_sends_back_is_taken_and_what_it_loses_is_missed() {
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(echo.local_addr().unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let peer = thread::spawn(move || {
            let mut data = [0; 2048];
            for _ in 0..50 {
                let (length, from) = echo.recv_from(&mut data).unwrap();
                echo.send_to(&data[..length], from).unwrap();
            }
            // From here on each comes twice.
            let (length, from) = echo.recv_from(&mut data).unwrap();
            for _ in 0..2 {
                echo.send_to(&data[..length], from).unwrap();
            }
            // A socket that is gone would refuse the next one.
            echo
        });
        datagrams(&socket, 5, 50, 4).unwrap();
        socket.set_nonblocking(false).unwrap();
        let twice = datagrams(&socket, 5, 2, 1).unwrap_err().to_string();
        assert_eq!(twice, "datagram 0 came back twice");
        peer.join().unwrap();
    }
}
