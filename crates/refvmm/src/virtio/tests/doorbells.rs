//! Notifications that the machine takes to a queue without the board.

use super::blk::{Frame, SECTOR, build, config, image};
use super::driver::*;
use super::rig::*;
use crate::virtio::{DiskConfig, REQUIRED_FEATURES, disk, rng};

const OK: u8 = 0;
const IN: u32 = 0;
/// PCI Command: Memory Space Enable, Bus Master Enable.
const MEMORY: u64 = 2;
const MASTER: u64 = 4;
const COMMAND: u64 = 4;
const BAR0: u64 = 0x10;
const MOVED: u64 = 0x9_0000;

#[test]
fn a_live_device_has_one_for_each_queue_and_a_ring_is_a_notification() {
    let (file, content) = image(64);
    let with_queues = DiskConfig {
        queues: 3,
        ..config(&file)
    };
    let rig = Rig::new([disk(with_queues)]);
    let driver = Driver::new(&rig, 0);
    assert!(driver.negotiate(REQUIRED_FEATURES));
    assert!(rig.cpus.doorbells().is_empty(), "not before DRIVER_OK");
    let queues = driver.start(3, 0);
    let places = [0, 4, 8].map(|offset| driver.notify.gpa + offset);
    assert_eq!(rig.cpus.doorbells(), places);

    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, WRITE);
    for (n, queue) in queues.iter().enumerate() {
        let sector = 3 * n as u64;
        frame.prepare(IN, sector);
        let head = queue.add(&frame.parts(&[into(data.iova, SECTOR)]));
        rig.cpus.ring(places[n]);
        assert_eq!((queue.wait(head), frame.status.read(0, 1)), (513, vec![OK]));
        let at = (sector * SECTOR) as usize;
        assert_eq!(data.read(0, SECTOR), content[at..at + 512], "queue {n}");
    }
    driver.set(common::STATUS, 1, 0);
    assert!(rig.cpus.doorbells().is_empty(), "after a reset");
}

#[test]
fn they_follow_the_bar_and_end_with_what_lets_the_device_run() {
    let rig = Rig::new([rng(), rng()]);
    let driver = Driver::new(&rig, 0);
    let other = Driver::new(&rig, 1);
    driver.start(1, 0);
    let first = driver.notify.gpa;
    assert_eq!(rig.cpus.doorbells(), [first]);

    // A BAR is moved while it decodes, as no driver should, and while it does not.
    let bar = driver.config(BAR0, 4);
    driver.set_config(BAR0, 4, bar + MOVED);
    assert_eq!(rig.cpus.doorbells(), [first + MOVED]);
    driver.set_config(COMMAND, 2, MASTER);
    assert!(rig.cpus.doorbells().is_empty());
    driver.set_config(BAR0, 4, bar);
    assert!(rig.cpus.doorbells().is_empty());
    driver.set_config(COMMAND, 2, MEMORY | MASTER);
    assert_eq!(rig.cpus.doorbells(), [first]);
    // Sizing a BAR that decodes.
    driver.set_config(BAR0, 4, 0xffff_ffff);
    driver.set_config(BAR0, 4, bar);
    assert_eq!(rig.cpus.doorbells(), [first]);

    other.start(1, 0);
    assert_eq!(rig.cpus.doorbells(), [first, other.notify.gpa]);
    // Without the bus the device has to be started again.
    driver.set_config(COMMAND, 2, MEMORY);
    driver.set_config(COMMAND, 2, MEMORY | MASTER);
    assert_eq!(rig.cpus.doorbells(), [other.notify.gpa]);
    // Function Level Reset.
    other.set_config(other.express + 8, 2, 0x8000);
    assert!(rig.cpus.doorbells().is_empty());
}

#[test]
fn a_restored_device_has_them_again() {
    let (file, content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 0);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, WRITE);
    frame.prepare(IN, 5);
    queues[0].add(&frame.parts(&[into(data.iova, SECTOR)]));
    let saved = rig.save();
    let there = Rig::restored([build(&file)], &saved).unwrap();
    assert_eq!(there.cpus.doorbells(), [driver.notify.gpa]);
    // The request that was there goes on by itself, and has been served when its interrupt comes.
    eventually("the end of a request", || {
        there.cpus.count(FIRST_VECTOR) > 0
    });
    let byte = |at: usize| there.byte(data.pages[0] + at as u64);
    for at in [0, 511] {
        assert_eq!(byte(at), content[5 * 512 + at]);
    }
}
