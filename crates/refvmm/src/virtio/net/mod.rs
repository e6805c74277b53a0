//! virtio-net, virtio 1.2 section 5.1: a tap interface of the host, or a peer inside of the VMM.

mod peer;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use amdvi_regs::DeviceId;
use virtio_bindings::virtio_net as bindings;

use super::chain::Chain;
use super::lane::{Handler, Lane, Source};
use super::{Identity, Model, QueueModel};

pub use peer::{ECHO_PORT, PEER_ADDRESS, PEER_MAC};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// struct virtio_net_hdr of virtio 1.0 and later.
const HEADER: usize = 12;
/// num_buffers in it.
const NUM_BUFFERS: usize = 10;
/// The longest frame: a jumbo frame of 64 KiB with its Ethernet header and a VLAN tag.
const MAX_FRAME: usize = 65_536 + 18;

/// The most frames that a saved machine brings: twice what the peer has at a time, since a guest that took
/// none between two saves has those of both. What is more is lost, as on any network.
const MOST_WAITING: usize = 1024;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What it is connected to.
    pub backend: NetBackend,
    /// Its MAC address. Without, one is made from its place on the bus.
    pub mac: Option<[u8; 6]>,
}

/// What a network card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A peer at [`PEER_ADDRESS`] that answers ARP and ICMP echo requests, and echoes what comes to
    /// UDP and TCP port [`ECHO_PORT`]. It verifies all checksums.
    Loopback,
    /// A tap interface of this name.
    Tap(String),
}

/// The way out.
trait Transmit: Send {
    /// Sends a frame, or loses it.
    fn send(&mut self, frame: &[u8]);
}

/// The way in.
trait Receive: Send {
    /// What can be read when a frame has arrived.
    fn descriptor(&self) -> RawFd;

    /// Puts the next frame, if there is one, behind what `buffer` has.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> bool;

    /// Frames that have arrived and are nowhere but in this process.
    fn held(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

struct Transmitter {
    to: Box<dyn Transmit>,
    frame: Vec<u8>,
}

impl Handler for Transmitter {
    fn turn(&mut self, lane: &Lane) -> bool {
        let Self { to, frame } = self;
        lane.serve(|session, mut chain: Chain| {
            // No offload is offered, so the header says nothing.
            let header = chain.readable.take(HEADER as u64);
            let len = chain.readable.len() as usize;
            if header.len() == HEADER as u64 && len <= MAX_FRAME {
                // A frame is copied once: what the guest still changes is not what was checked.
                frame.resize(len, 0);
                let read = session.memory(|memory| chain.readable.read(memory, frame));
                // A frame that the IOMMU refuses is lost; the event tells of it.
                if read.is_ok() {
                    to.send(frame);
                }
            }
            Ok(0)
        });
        false
    }
}

struct Receiver {
    from: Box<dyn Receive>,
    /// A header and a frame, or nothing.
    buffer: Vec<u8>,
    /// Frames that waited where the machine was saved.
    waiting: VecDeque<Vec<u8>>,
}

impl Handler for Receiver {
    fn source(&self) -> Option<RawFd> {
        Some(self.from.descriptor())
    }

    fn turn(&mut self, lane: &Lane) -> bool {
        lane.fill(self)
    }

    /// The frames that wait here and in the backend, each behind its length.
    fn held(&self) -> Vec<u8> {
        let here = self.buffer.get(HEADER..).map(<[u8]>::to_vec);
        let here = here.into_iter().chain(self.waiting.iter().cloned());
        let mut held = Vec::new();
        for frame in here.chain(self.from.held()).take(MOST_WAITING) {
            // At most MAX_FRAME.
            held.extend((frame.len() as u32).to_le_bytes());
            held.extend(frame);
        }
        held
    }

    fn hold(&mut self, mut held: &[u8]) -> bool {
        while let Some((len, rest)) = held.split_first_chunk() {
            let len = u32::from_le_bytes(*len) as usize;
            match rest.split_at_checked(len) {
                Some((frame, rest)) if len <= MAX_FRAME && self.waiting.len() < MOST_WAITING => {
                    self.waiting.push_back(frame.to_vec());
                    held = rest;
                }
                _ => return false,
            }
        }
        held.is_empty()
    }
}

impl Source for Receiver {
    const WHOLE: bool = true;

    fn piece(&mut self) -> Option<&[u8]> {
        if self.buffer.is_empty() {
            // How long a frame is, is known when it is here: it can't be read into a chain that may
            // be too short for it.
            self.buffer.resize(HEADER, 0);
            self.buffer[NUM_BUFFERS] = 1;
            if let Some(frame) = self.waiting.pop_front() {
                self.buffer.extend(frame);
            } else if !self.from.receive(&mut self.buffer) {
                self.buffer.clear();
            }
        }
        (!self.buffer.is_empty()).then_some(&self.buffer)
    }

    fn take(&mut self, _count: usize) {
        self.buffer.clear();
    }
}

/// A locally administered address that no other function of the machine has.
fn address_of(device_id: DeviceId) -> [u8; 6] {
    let [high, low] = device_id.0.to_be_bytes();
    [0x02, 0xa1, 0xd1, 0x01, high, low]
}

/// Connects the card.
pub(super) fn model(config: &NetConfig, device_id: DeviceId) -> io::Result<Model> {
    let (to, from): (Box<dyn Transmit>, Box<dyn Receive>) = match &config.backend {
        NetBackend::Loopback => {
            let (to, from) = peer::connect()?;
            (Box::new(to), Box::new(from))
        }
        NetBackend::Tap(name) => {
            let (to, from) = tap::open(name)?;
            (Box::new(to), Box::new(from))
        }
    };
    // struct virtio_net_config: mac, status (VIRTIO_NET_S_LINK_UP).
    let mut registers = config.mac.unwrap_or_else(|| address_of(device_id)).to_vec();
    registers.extend((bindings::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    let queue = |handler| QueueModel {
        max_size: QUEUE_SIZE,
        handler,
    };
    let buffer = Vec::with_capacity(HEADER + MAX_FRAME);
    Ok(Model {
        identity: Identity {
            name: "virtio-net",
            virtio_id: 1,
            class: [0x02, 0x00, 0x00],
        },
        features: 1 << bindings::VIRTIO_NET_F_MAC | 1 << bindings::VIRTIO_NET_F_STATUS,
        registers: Box::new(registers),
        queues: vec![
            queue(Box::new(Receiver {
                from,
                buffer,
                waiting: VecDeque::new(),
            })),
            queue(Box::new(Transmitter {
                to,
                frame: Vec::new(),
            })),
        ],
        backend: None,
    })
}
