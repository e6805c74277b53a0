//! Devices that do what they like, beside a disk that works: nothing hangs, and nothing is corrupted.

use std::sync::atomic::{AtomicBool, Ordering};

use amdvi_guest::endpoint::dma::{CHANNELS, STRIDE, channel, op};
use amdvi_guest::endpoint::reg;
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{Status, offset};
use vm_memory::{Bytes, GuestAddress};

use super::Random;
use super::blk::{Frame, SECTOR, build, image};
use super::driver::*;
use super::rig::*;
use crate::board::Board;
use crate::layout;

const ENDPOINT: DeviceId = DeviceId::new(0, 5, 0);
/// Requests of the disk while others do what they like.
const REQUESTS: u64 = 150;
/// RAM that nobody uses.
const GUARD: std::ops::Range<u64> = 0x10_0000..0x18_0000;

impl Random {
    /// An address that is likely to be something: RAM, the edge of something, the interrupt window, or
    /// any number.
    fn address(&mut self) -> u64 {
        let any = self.next();
        match any % 6 {
            0 => any >> 32 & 0x3ff_ffff,
            1 => 0xfee0_0000 | any >> 32 & 0xf_ffff,
            2 => 0xfd_0000_0000 | any >> 32,
            3 => (any >> 8 & 0x3f) << 58 | 0xff8,
            4 => !(any >> 52),
            _ => any,
        }
    }
}

/// The endpoint, for any thread.
struct Endpoint<'b> {
    board: &'b Board,
    bar: u64,
}

impl<'b> Endpoint<'b> {
    fn new(board: &'b Board) -> Self {
        let space = layout::ECAM_BASE + (u64::from(ENDPOINT.0) << 12);
        // Memory Space Enable and Bus Master Enable.
        board.mmio_write(space + 4, &[6]);
        let mut bar = [0; 4];
        board.mmio_read(space + 0x10, &mut bar);
        Self {
            board,
            bar: u64::from(u32::from_le_bytes(bar) & !0xf),
        }
    }

    fn write(&self, register: u64, value: u64, len: usize) {
        let data = &value.to_le_bytes()[..len];
        self.board.mmio_write(self.bar + register, data);
    }

    fn read(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.board.mmio_read(self.bar + register, &mut data);
        u64::from_le_bytes(data)
    }

    /// One request of any kind, with anything in it.
    fn garbage(&self, random: &mut Random) {
        if random.next().is_multiple_of(3) {
            self.write(reg::RAW_ADDRESS, random.address(), 8);
            self.write(reg::RAW_DATA, random.next(), 4);
            return;
        }
        let at = reg::DMA_CHANNEL_0 + STRIDE * (random.next() % u64::from(CHANNELS));
        for register in [channel::SOURCE, channel::TARGET] {
            self.write(at + register, random.address(), 8);
        }
        for register in [channel::OPERAND, channel::EXPECTED] {
            self.write(at + register, random.next(), 8);
        }
        let length = random.next() >> (32 + random.next() % 32);
        self.write(at + channel::LENGTH, length, 4);
        for register in [channel::INTERRUPT, channel::PASID] {
            self.write(at + register, random.next(), 4);
        }
        let operation = (random.next() % 10) | (random.next() & u64::from(op::SYNC));
        self.write(at + channel::OPERATION, operation, 4);
    }
}

fn pattern(gpa: u64) -> u64 {
    gpa.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Lets the disk work while `others` do something on a thread of their own until they are told to stop.
fn disk_beside(others: impl Fn(&Board, &AtomicBool) + Sync) {
    let (file, mut content) = image(256);
    let rig = Rig::new([build(&file)]);
    rig.cage(ENDPOINT);
    for gpa in GUARD.step_by(8) {
        rig.store(gpa, pattern(gpa));
    }
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 1 << 9);
    let frame = Frame::new(&rig);
    let data = rig.buffer(2 * PAGE, READ | WRITE);
    let len = 2 * PAGE;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let board = &rig.board;
        scope.spawn(|| others(board, &stop));
        // Whatever fails here, the other thread is to end.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..REQUESTS {
                let sector = n * 37 % 240;
                let at = (sector * SECTOR) as usize;
                let place = at..at + len as usize;
                data.write(0, &vec![0; len as usize]);
                let read = [into(data.iova, len)];
                let (status, _) = frame.request(&queues[0], 0, sector, &read);
                assert_eq!(status, 0);
                assert!(data.read(0, len) == content[place.clone()], "request {n}");
                let new: Vec<_> = content[place.clone()].iter().map(|b| b ^ n as u8).collect();
                data.write(0, &new);
                let write = [out(data.iova, len)];
                assert_eq!(frame.request(&queues[0], 1, sector, &write).0, 0);
                content[place].copy_from_slice(&new);
                // Invalidates, and waits for that to complete.
                rig.map(data.iova + 4 * PAGE, 0, 0);
            }
        }));
        stop.store(true, Ordering::Release);
        work.unwrap();
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
    for gpa in GUARD.step_by(8) {
        let seen: u64 = rig.memory.read_obj(GuestAddress(gpa)).unwrap();
        assert_eq!(seen, pattern(gpa), "RAM that nobody uses, at {gpa:#x}");
    }
    assert_eq!(driver.status(), LIVE);

    // The log has taken what it could, none of it about the disk, and starts again when it is told to.
    let status = Status::from_bits(rig.iommu_register(offset::STATUS));
    assert!(
        status.event_overflow() && !status.event_log_run(),
        "{status:?}"
    );
    let events = rig.events();
    assert_eq!(events.len(), 255, "all but one of 256 entries");
    assert!(events.iter().all(|(_, id, _)| *id == ENDPOINT.0));
    rig.restart_events();
    let endpoint = Endpoint::new(&rig.board);
    endpoint.write(reg::RAW_ADDRESS, 0xfee0_0000, 8);
    endpoint.write(reg::RAW_DATA, 5, 4);
    assert_eq!(rig.events(), [(2, ENDPOINT.0, 0xfee0_0000)]);
    let status = Status::from_bits(rig.iommu_register(offset::STATUS));
    assert!(status.event_log_run() && !status.event_overflow());
}

#[test]
fn a_device_that_issues_garbage_reaches_nothing_and_holds_nobody_up() {
    disk_beside(|board, stop| {
        let endpoint = Endpoint::new(board);
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut least = 3_000;
        while !stop.load(Ordering::Acquire) || least > 0 {
            endpoint.garbage(&mut random);
            least -= least.min(1);
        }
        // What runs in the background ends.
        for n in 0..CHANNELS {
            let at = reg::DMA_CHANNEL_0 + STRIDE * u64::from(n);
            endpoint.write(at + channel::OPERATION, op::CANCEL.into(), 4);
        }
    });
}

#[test]
fn a_guest_that_floods_the_event_log_from_everywhere_loses_events_and_nothing_else() {
    disk_beside(|board, stop| {
        let endpoint = Endpoint::new(board);
        // DMA and interrupts at once, as fast as they go, each of which is a fault.
        endpoint.write(reg::DMA_IOVA, 0x10_0000, 8);
        endpoint.write(reg::DMA_STORM_BYTES, 16 * PAGE, 4);
        endpoint.write(reg::DMA_STORM, 1, 4);
        let mut least = 3_000;
        while !stop.load(Ordering::Acquire) || least > 0 {
            endpoint.write(reg::RAW_ADDRESS, 0xfee0_0000, 8);
            endpoint.write(reg::RAW_DATA, 7, 4);
            least -= least.min(1);
        }
        endpoint.write(reg::DMA_STORM, 0, 4);
        let [sent, aborted] =
            [reg::DMA_STORM_SENT, reg::DMA_STORM_ABORTED].map(|r| endpoint.read(r));
        assert!(sent > 256 && aborted == sent, "{aborted} of {sent}");
        assert_eq!(endpoint.read(reg::DELIVERED), 0);
    });
}
