//! The other end of a network of two: a small host, by the smoltcp crate.
//!
//! Its clock only matters when the guest sends something or takes something, so it needs no thread.
//!
//! Of a machine that is saved the peer is not part, but for the frames that it has answered with. So it
//! answers at once: it takes the guest's hardware address from what the guest sends, since a datagram
//! that waits until the peer has asked for it would be lost with the peer.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Duration;
use smoltcp::wire::{EthernetAddress, IpCidr};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Receive, Transmit};
use crate::virtio::lock;

/// The peer's address; the guest takes another one of 192.0.2.0/24.
pub const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The peer's MAC address.
pub const PEER_MAC: [u8; 6] = [0x02, 0xa1, 0xd1, 0x00, 0x00, 0x01];
/// The UDP and TCP port whose service is echo (RFC 862).
pub const ECHO_PORT: u16 = 7;

const PREFIX: u8 = 24;
/// An Ethernet frame with 1500 bytes in it.
const MTU: usize = 1514;
/// Frames on their way to the guest. The peer waits with what comes then.
const MAX_FRAMES: usize = 512;
/// TCP connections at the same time.
const CONNECTIONS: usize = 8;
/// Bytes of each buffer of a connection.
const BUFFER: usize = 64 << 10;
/// Datagrams that wait to be echoed. There is room for as many of any length: a guest that has to
/// find out where the peer is sends all that it has waiting at once.
const DATAGRAMS: usize = 256;
/// Turns of one call: bounds what one frame can bring about.
const TURNS: usize = 64;
/// The peer forgets a neighbour that it did not hear of for a minute.
const INTRODUCTION: std::time::Duration = std::time::Duration::from_secs(30);
/// A connection that nothing comes from for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The cable.
#[derive(Default)]
struct Wire {
    to_peer: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Wire {
    fn has_room(&self) -> bool {
        self.to_guest.len() < MAX_FRAMES
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if !self.has_room() {
            return None;
        }
        let frame = self.to_peer.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.to_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        self.has_room().then_some(Outgoing(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Checksums are verified and made unless something else is said.
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// The host at the other end.
struct Peer {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    udp: SocketHandle,
    tcp: Vec<SocketHandle>,
    since: Instant,
    scratch: Vec<u8>,
    /// The neighbour that was introduced last, and when.
    introduced: Option<([u8; 10], Instant)>,
}

/// The hardware and IP address of who sends an IP packet to the peer.
fn neighbour(frame: &[u8]) -> Option<[u8; 10]> {
    let (header, packet) = frame.split_at_checked(14)?;
    let is_ours = header[..6] == PEER_MAC
        && header[12..] == [0x08, 0x00]
        && packet.get(16..20)? == PEER_ADDRESS.octets();
    let mut addresses = [0; 10];
    addresses[..6].copy_from_slice(&header[6..12]);
    addresses[6..].copy_from_slice(packet.get(12..16)?);
    is_ours.then_some(addresses)
}

/// The ARP reply by which a neighbour would have told the peer its addresses.
fn introduction(addresses: &[u8; 10]) -> Vec<u8> {
    let (hardware, ip) = addresses.split_at(6);
    let kind = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2];
    let peer = (PEER_MAC, PEER_ADDRESS.octets());
    [&peer.0[..], hardware, &kind, hardware, ip, &peer.0, &peer.1].concat()
}

impl Peer {
    fn new() -> Self {
        let mut wire = Wire::default();
        let config = Config::new(EthernetAddress(PEER_MAC).into());
        let mut interface =
            Interface::new(config, &mut wire, smoltcp::time::Instant::from_millis(0));
        interface.update_ip_addrs(|addresses| {
            // There is room for one at least.
            let _ = addresses.push(IpCidr::new(PEER_ADDRESS.into(), PREFIX));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let datagrams = || {
            let metadata = vec![udp::PacketMetadata::EMPTY; DATAGRAMS];
            udp::PacketBuffer::new(metadata, vec![0; DATAGRAMS * MTU])
        };
        let mut echo = udp::Socket::new(datagrams(), datagrams());
        // The port is not 0 and the socket not open: it can't fail.
        let _ = echo.bind(ECHO_PORT);
        let udp = sockets.add(echo);
        let stream = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let tcp = (0..CONNECTIONS)
            .map(|_| {
                let mut socket = tcp::Socket::new(stream(), stream());
                socket.set_ack_delay(None);
                socket.set_nagle_enabled(false);
                socket.set_timeout(Some(TIMEOUT));
                sockets.add(socket)
            })
            .collect();
        Self {
            wire,
            interface,
            sockets,
            udp,
            tcp,
            since: Instant::now(),
            scratch: vec![0; BUFFER],
            introduced: None,
        }
    }

    /// Takes a frame from the guest.
    fn take(&mut self, frame: &[u8]) {
        if let Some(addresses) = neighbour(frame) {
            let known = |(other, when): &([u8; 10], Instant)| {
                *other == addresses && when.elapsed() < INTRODUCTION
            };
            if !self.introduced.as_ref().is_some_and(known) {
                self.wire.to_peer.push_back(introduction(&addresses));
                self.introduced = Some((addresses, Instant::now()));
            }
        }
        self.wire.to_peer.push_back(frame.to_vec());
    }

    /// Handles what has arrived and what has become due.
    fn run(&mut self) {
        for _ in 0..TURNS {
            let millis = i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX);
            let now = smoltcp::time::Instant::from_millis(millis);
            self.serve_connections();
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            if !self.echo() {
                return;
            }
        }
    }

    /// Listens where no connection is.
    fn serve_connections(&mut self) {
        for &handle in &self.tcp {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.state() == tcp::State::TimeWait {
                // Nobody else uses these addresses: nothing late can come.
                socket.abort();
            }
            if !socket.is_open() {
                // As for UDP.
                let _ = socket.listen(ECHO_PORT);
            }
        }
    }

    /// Sends back what was received. Whether there was something to send.
    fn echo(&mut self) -> bool {
        let mut some = false;
        let udp = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
        while udp.can_send() && udp.can_recv() {
            let Ok((len, from)) = udp.recv_slice(&mut self.scratch) else {
                break;
            };
            // Without room it is lost.
            some |= udp.send_slice(&self.scratch[..len], from.endpoint).is_ok();
        }
        for &handle in &self.tcp {
            let tcp = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let room = tcp.send_capacity() - tcp.send_queue();
            if tcp.can_recv() && tcp.can_send() {
                let len = room.min(self.scratch.len());
                if let Ok(len) = tcp.recv_slice(&mut self.scratch[..len])
                    && len > 0
                {
                    // There is room for it.
                    let _ = tcp.send_slice(&self.scratch[..len]);
                    some = true;
                }
            }
            if tcp.state() == tcp::State::CloseWait && !tcp.can_recv() {
                tcp.close();
                some = true;
            }
        }
        some
    }
}

/// The peer and what says that it sent something.
struct Shared {
    peer: Mutex<Peer>,
    sent: EventFd,
}

/// To the peer.
pub(super) struct Sender(Arc<Shared>);

impl Transmit for Sender {
    fn send(&mut self, frame: &[u8]) {
        let mut peer = lock(&self.0.peer);
        peer.take(frame);
        peer.run();
        // What the peer has no room to answer is lost.
        peer.wire.to_peer.clear();
        if !peer.wire.to_guest.is_empty() {
            // Fails only when it was said often enough.
            let _ = self.0.sent.write(1);
        }
    }
}

/// From the peer.
pub(super) struct Receiver(Arc<Shared>);

impl Receive for Receiver {
    fn descriptor(&self) -> RawFd {
        self.0.sent.as_raw_fd()
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> bool {
        let mut peer = lock(&self.0.peer);
        if peer.wire.to_guest.is_empty() {
            // Under the lock, so that nothing is sent between.
            let _ = self.0.sent.read();
            // What waited for room, or for its time.
            peer.run();
        }
        match peer.wire.to_guest.pop_front() {
            Some(frame) => {
                buffer.extend_from_slice(&frame);
                true
            }
            None => false,
        }
    }

    fn held(&self) -> Vec<Vec<u8>> {
        lock(&self.0.peer).wire.to_guest.iter().cloned().collect()
    }
}

/// A new peer, and the cable to it.
pub(super) fn connect() -> io::Result<(Sender, Receiver)> {
    let shared = Arc::new(Shared {
        peer: Mutex::new(Peer::new()),
        sent: EventFd::new(EFD_NONBLOCK)?,
    });
    Ok((Sender(Arc::clone(&shared)), Receiver(shared)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
    };

    const GUEST: ([u8; 6], Ipv4Addr) = ([2, 1, 2, 3, 4, 5], Ipv4Addr::new(192, 0, 2, 9));

    /// A datagram with this number in it.
    fn datagram(number: u32) -> Vec<u8> {
        let payload = number.to_be_bytes();
        let udp = UdpRepr {
            src_port: 5000,
            dst_port: ECHO_PORT,
        };
        let ip = Ipv4Repr {
            src_addr: GUEST.1,
            dst_addr: PEER_ADDRESS,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + payload.len(),
            hop_limit: 64,
        };
        let sums = ChecksumCapabilities::default();
        let mut frame = vec![0; 14 + ip.buffer_len() + ip.payload_len];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.set_dst_addr(EthernetAddress(PEER_MAC));
        ethernet.set_src_addr(EthernetAddress(GUEST.0));
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.emit(&mut packet, &sums);
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &GUEST.1.into(),
            &PEER_ADDRESS.into(),
            payload.len(),
            |to| to.copy_from_slice(&payload),
            &sums,
        );
        frame
    }

    fn number(frame: &[u8]) -> u32 {
        assert_eq!(frame[..6], GUEST.0);
        u32::from_be_bytes(frame[frame.len() - 4..].try_into().unwrap())
    }

    #[test]
    fn a_guest_that_the_peer_never_heard_of_is_answered_at_once() {
        let (mut to, mut from) = connect().unwrap();
        to.send(&datagram(7));
        let mut frame = Vec::new();
        assert!(from.receive(&mut frame));
        assert_eq!((frame[12], frame[13], number(&frame)), (8, 0, 7));
    }
}
