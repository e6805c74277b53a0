//! VIRTIO_F_EVENT_IDX against a driver that keeps to it: it notifies and looks only when it must.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::Random;
use super::driver::*;
use super::rig::*;
use crate::virtio::rng;

const EVENT_IDX: u64 = 1 << 29;
const SIZE: u16 = 16;
/// More than the first 16 bits of an index, so that all of them wrap.
const REQUESTS: u32 = 70_000;

/// Whether who asked for an event at `event` is to get one when the index goes from `old` to `new`.
fn is_due(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// As [`eventually`], for what comes at once as a rule.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::yield_now();
    }
}

/// A lost notification leaves a request that nobody serves, a lost interrupt a driver that sleeps.
fn no_request_is_forgotten(notify: impl Fn(&Rig, &Queue<'_>, u64)) {
    let rig = Rig::new([rng()]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, EVENT_IDX);
    let (queue, buffer) = (&queues[0], rig.buffer(PAGE, WRITE));
    for n in 0..SIZE {
        queue.descriptor(n, buffer.iova, 8, DEVICE_WRITES, 0);
    }
    let mut random = Random(0x5eed);
    let (mut made, mut notified, mut slept) = (0u32, 0u32, 0u32);
    while made < REQUESTS {
        let old = made as u16;
        for _ in 0..1 + random.next() % 4 {
            queue.publish(made as u16 % SIZE);
            made += 1;
        }
        let all = made as u16;
        fence(Ordering::SeqCst);
        if is_due(queue.used.word(4 + 8 * u64::from(SIZE)), old, all) {
            notified += 1;
            notify(&rig, queue, driver.notify.gpa);
        }
        // Sometimes the device is ahead.
        for _ in 0..random.next() % 200 {
            std::hint::spin_loop();
        }
        let mut seen = rig.cpus.count(FIRST_VECTOR);
        loop {
            // Wake me at the last one.
            queue.set_used_event(all.wrapping_sub(1));
            fence(Ordering::SeqCst);
            if queue.used_index() == all {
                break;
            }
            slept += 1;
            soon("an interrupt", || rig.cpus.count(FIRST_VECTOR) > seen);
            seen = rig.cpus.count(FIRST_VECTOR);
        }
    }
    // Both were tried, and both were spared.
    let interrupts = rig.cpus.count(FIRST_VECTOR);
    assert!(notified > 0 && slept > 0, "{notified} {slept}");
    assert!(
        notified < made && interrupts < made as usize,
        "{notified} notifications and {interrupts} interrupts for {made} requests"
    );
}

#[test]
fn no_request_is_forgotten_when_notifications_are_writes() {
    no_request_is_forgotten(|_, queue, _| queue.kick());
}

#[test]
fn no_request_is_forgotten_when_notifications_are_doorbells() {
    no_request_is_forgotten(|rig, _, gpa| rig.cpus.ring(gpa));
}
