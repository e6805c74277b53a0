//! virtio-net with the peer inside of the VMM. What the driver sends is made by hand, so that the
//! checksums that the peer verifies and makes are compared with another implementation of them.

use super::driver::*;
use super::rig::*;
use crate::board::FunctionBuilder;
use crate::virtio::{ECHO_PORT, NetBackend, NetConfig, PEER_ADDRESS, PEER_MAC, net};

const HEADER: u64 = 12;
const FRAME: u64 = HEADER + 1514;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const OURS: [u8; 4] = [192, 0, 2, 2];
const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const UDP: u8 = 17;
const TCP: u8 = 6;

fn build() -> FunctionBuilder {
    net(NetConfig {
        backend: NetBackend::Loopback,
        mac: Some(MAC),
    })
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !sum as u16
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&PEER_MAC[..], &MAC, &kind.to_be_bytes(), payload].concat()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    header.extend(OURS);
    header.extend(PEER_ADDRESS.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(0x0800, &[&header[..], payload].concat())
}

/// What UDP and TCP put in front of their checksums.
fn pseudo(from: [u8; 4], to: [u8; 4], protocol: u8, len: usize) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    [&from[..], &to, &[0, protocol], &len].concat()
}

/// Puts the checksum of a UDP or TCP packet from us to the peer at `at`.
fn summed(protocol: u8, mut packet: Vec<u8>, at: usize) -> Vec<u8> {
    let pseudo = pseudo(OURS, PEER_ADDRESS.octets(), protocol, packet.len());
    let sum = checksum(&[&pseudo, &packet]);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn arp() -> Vec<u8> {
    let request = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &MAC,
        &OURS,
        &[0; 6],
        &PEER_ADDRESS.octets(),
    ];
    let mut frame = ethernet(0x0806, &request.concat());
    frame[..6].fill(0xff);
    frame
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut packet = [5000u16, ECHO_PORT, 8 + payload.len() as u16, 0]
        .map(u16::to_be_bytes)
        .concat();
    packet.extend(payload);
    summed(UDP, packet, 6)
}

fn ping(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
    packet.extend(payload);
    let sum = checksum(&[&packet]);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The payload of an IP packet to us, whose checksums are right.
fn received(frame: &[u8], protocol: u8) -> &[u8] {
    assert_eq!(frame[..6], MAC);
    assert_eq!(frame[6..12], PEER_MAC);
    assert_eq!(frame[12..14], [8, 0]);
    let (header, rest) = frame[14..].split_at(20);
    assert_eq!(checksum(&[header]), 0);
    assert_eq!(header[9], protocol);
    assert_eq!(
        (&header[12..16], &header[16..]),
        (&PEER_ADDRESS.octets()[..], &OURS[..])
    );
    let len = usize::from(u16::from_be_bytes([header[2], header[3]])) - 20;
    let packet = &rest[..len];
    let pseudo = match protocol {
        1 => Vec::new(),
        _ => pseudo(PEER_ADDRESS.octets(), OURS, protocol, len),
    };
    assert_eq!(checksum(&[&pseudo, packet]), 0);
    packet
}

/// A driver of the card with its buffers.
struct Card<'d> {
    queues: Vec<Queue<'d>>,
    out: Buffer<'d>,
    into: Vec<Buffer<'d>>,
    heads: std::cell::RefCell<std::collections::VecDeque<(u16, usize)>>,
}

impl<'d> Card<'d> {
    fn new(driver: &'d Driver<'d>) -> Self {
        let card = Self {
            queues: driver.start(2, 1 << 5 | 1 << 16),
            out: driver.rig.buffer(FRAME, READ),
            into: (0..8).map(|_| driver.rig.buffer(FRAME, WRITE)).collect(),
            heads: Default::default(),
        };
        for n in 0..card.into.len() {
            card.post(n);
        }
        card
    }

    fn post(&self, n: usize) {
        let head = self.queues[RECEIVE].add(&[into(self.into[n].iova, FRAME)]);
        self.heads.borrow_mut().push_back((head, n));
        self.queues[RECEIVE].kick();
    }

    fn send(&self, frame: &[u8]) {
        self.out.write(0, &[0; HEADER as usize]);
        self.out.write(HEADER, frame);
        let len = HEADER + frame.len() as u64;
        self.queues[TRANSMIT].request(&[out(self.out.iova, len)]);
    }

    /// The next frame that arrives; its buffer is posted again.
    fn receive(&self) -> Vec<u8> {
        let (head, n) = self.heads.borrow_mut().pop_front().unwrap();
        let len = u64::from(self.queues[RECEIVE].wait(head));
        let header = self.into[n].read(0, HEADER);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let frame = self.into[n].read(HEADER, len - HEADER);
        self.post(n);
        frame
    }
}

#[test]
fn the_card_says_its_address_and_that_the_link_is_up() {
    let rig = Rig::new([
        build(),
        net(NetConfig {
            backend: NetBackend::Loopback,
            mac: None,
        }),
    ]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.config(2, 2), 0x1041);
    let mac: Vec<_> = (0..6).map(|n| driver.device_config(n, 1) as u8).collect();
    assert_eq!((mac, driver.device_config(6, 2)), (MAC.to_vec(), 1));
    // Made from the place, when none is given: 09.0.
    let other = Driver::new(&rig, 1);
    let mac: Vec<_> = (0..6).map(|n| other.device_config(n, 1) as u8).collect();
    assert_eq!(mac, [2, 0xa1, 0xd1, 1, 0, 9 << 3]);
}

#[test]
fn the_peer_answers_arp_pings_and_datagrams_with_right_checksums() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let card = Card::new(&driver);
    card.send(&arp());
    let reply = card.receive();
    assert_eq!(reply[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(reply[22..28], PEER_MAC);
    assert_eq!(reply[28..32], PEER_ADDRESS.octets());

    let payload: Vec<u8> = (0..1400u32).map(|n| (n % 255) as u8).collect();
    card.send(&ipv4(1, &ping(&payload)));
    let frame = card.receive();
    let pong = received(&frame, 1);
    assert_eq!(
        (pong[0], &pong[4..8], &pong[8..]),
        (0, &[0x12, 0x34, 0, 7][..], &payload[..])
    );

    for len in [1, 2, 999, 1400] {
        card.send(&ipv4(UDP, &udp(&payload[..len])));
        let frame = card.receive();
        let packet = received(&frame, UDP);
        assert_eq!(packet[..4], [0, ECHO_PORT as u8, 0x13, 0x88]);
        assert_eq!(packet[8..], payload[..len]);
    }
    assert_eq!(rig.events(), []);
    eventually("interrupts", || rig.cpus.count(FIRST_VECTOR) == 6);
}

#[test]
fn a_datagram_with_a_wrong_checksum_is_not_echoed() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let card = Card::new(&driver);
    card.send(&arp());
    card.receive();
    let mut bad = udp(b"damaged");
    bad[10] ^= 1;
    card.send(&ipv4(UDP, &bad));
    let mut bad = ipv4(UDP, &udp(b"damaged"));
    bad[14 + 8] ^= 1;
    card.send(&bad);
    card.send(&ipv4(UDP, &udp(b"intact")));
    assert_eq!(received(&card.receive(), UDP)[8..], *b"intact");
}

#[test]
fn a_connection_is_made_echoes_and_is_closed_and_others_follow() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let card = Card::new(&driver);
    card.send(&arp());
    card.receive();
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const ACK: u8 = 0x10;
    // More than the peer has at the same time.
    for port in 6000..6020u16 {
        let mut sequence = 100u32;
        let mut expected = 0u32;
        let segment = |flags, sequence: u32, acknowledge: u32, payload: &[u8]| {
            let mut packet = [port, ECHO_PORT].map(u16::to_be_bytes).concat();
            packet.extend(sequence.to_be_bytes());
            packet.extend(acknowledge.to_be_bytes());
            packet.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            packet.extend(payload);
            card.send(&ipv4(TCP, &summed(TCP, packet, 16)));
        };
        let flags_and_sequence = |frame: &[u8]| {
            let packet = received(frame, TCP);
            let header = usize::from(packet[12] >> 4) * 4;
            let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
            (packet[13], number(4), number(8), packet[header..].to_vec())
        };
        segment(SYN, sequence, 0, &[]);
        let (flags, theirs, acknowledged, _) = flags_and_sequence(&card.receive());
        sequence += 1;
        expected = expected.wrapping_add(theirs).wrapping_add(1);
        assert_eq!((flags, acknowledged), (SYN | ACK, sequence));
        segment(ACK, sequence, expected, &[]);
        let text = format!("hello from port {port}").into_bytes();
        segment(ACK, sequence, expected, &text);
        sequence += text.len() as u32;
        let mut echoed = Vec::new();
        while echoed.len() < text.len() {
            let (_, at, acknowledged, data) = flags_and_sequence(&card.receive());
            assert_eq!((at, acknowledged), (expected, sequence));
            expected = expected.wrapping_add(data.len() as u32);
            echoed.extend(data);
        }
        assert_eq!(echoed, text);
        segment(ACK | FIN, sequence, expected, &[]);
        sequence += 1;
        loop {
            let (flags, _, acknowledged, _) = flags_and_sequence(&card.receive());
            assert_eq!(acknowledged, sequence);
            if flags & FIN != 0 {
                break;
            }
        }
        segment(ACK, sequence, expected.wrapping_add(1), &[]);
    }
    assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_its_buffer_is_not() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, 0);
    let transmit = rig.buffer(FRAME, READ);
    let receive = rig.buffer(FRAME, WRITE);
    let send = |frame: &[u8]| {
        transmit.write(HEADER, frame);
        let len = HEADER + frame.len() as u64;
        queues[TRANSMIT].request(&[out(transmit.iova, len)]);
    };
    // Room for an ARP reply of 42 bytes, in pieces.
    let head = queues[RECEIVE].add(&[
        into(receive.iova, 5),
        into(receive.iova + 5, 9),
        into(receive.iova + 14, 40),
    ]);
    queues[RECEIVE].kick();
    send(&arp());
    assert_eq!(queues[RECEIVE].wait(head), 54);
    let head = queues[RECEIVE].add(&[into(receive.iova, 64)]);
    queues[RECEIVE].kick();
    send(&ipv4(1, &ping(&[7; 100])));
    // Its answer has 142 bytes. This one has 51.
    send(&ipv4(1, &ping(&[9; 9])));
    assert_eq!(queues[RECEIVE].wait(head), 63);
    let frame = receive.read(HEADER, 51);
    assert_eq!(received(&frame, 1)[8..], [9; 9]);
}

#[test]
fn what_the_iommu_refuses_of_a_network_is_lost_with_one_event_each() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, 0);
    let transmit = rig.buffer(FRAME, READ);
    let receive = rig.buffer(FRAME, READ);
    let hole = transmit.iova + PAGE;
    queues[TRANSMIT].request(&[out(hole, 100)]);
    // Nothing reads the header.
    assert_eq!(rig.events(), [(2, driver.id.0, hole + HEADER)]);
    transmit.write(HEADER, &arp());
    queues[TRANSMIT].request(&[out(transmit.iova, HEADER + 42)]);
    assert_eq!(queues[RECEIVE].request(&[into(receive.iova, FRAME)]), 0);
    assert_eq!(rig.events()[1..], [(2, driver.id.0, receive.iova)]);
    assert_eq!(driver.status(), LIVE);
}

#[test]
fn frames_of_any_kind_harm_nothing() {
    let rig = Rig::new([build()]);
    let driver = Driver::new(&rig, 0);
    let card = Card::new(&driver);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let models = [
        arp(),
        ipv4(1, &ping(&[1; 30])),
        ipv4(UDP, &udp(&[2; 30])),
        ipv4(TCP, &summed(TCP, vec![3; 40], 16)),
    ];
    for _ in 0..3000 {
        let mut frame = models[(next() % 4) as usize].clone();
        for _ in 0..next() % 4 {
            let at = (next() % frame.len() as u64) as usize;
            frame[at] = next() as u8;
        }
        frame.truncate((next() % (2 * frame.len() as u64)) as usize);
        card.out.write(HEADER, &frame);
        let len = HEADER + frame.len() as u64;
        card.queues[TRANSMIT].request(&[out(card.out.iova, len)]);
    }
    // A header alone, part of one, nothing, and more than any frame.
    for len in [12, 5, 0, 1 << 20] {
        card.queues[TRANSMIT].request(&[out(card.out.iova, len)]);
    }
    assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
}
