//! The other end of a network of two: a small host, by the smoltcp crate.
//!
//! Its clock only matters when the guest sends something or takes something, so it needs no thread.

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
        }
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
        peer.wire.to_peer.push_back(frame.to_vec());
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
