//! virtio-rng and virtio-console.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::driver::*;
use super::rig::*;
use crate::virtio::{ConsoleConfig, console, rng};

#[test]
fn entropy_fills_buffers_at_iovas_and_no_more_than_one_page_at_once() {
    let rig = Rig::new([rng()]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.config(2, 2), 0x1044);
    let queues = driver.start(1, 0);
    let data = rig.buffer(3 * PAGE, READ | WRITE);
    assert_eq!(queues[0].request(&[into(data.iova + 4000, 64)]), 64);
    let first = data.read(4000, 64);
    assert_ne!(first, [0; 64]);
    assert_eq!(data.read(3990, 10), [0; 10]);
    assert_eq!(data.read(4064, 10), [0; 10]);
    assert_eq!(queues[0].request(&[into(data.iova, 3 * PAGE)]), 4096);
    assert_ne!(data.read(4000, 64), first);
    assert_eq!(
        data.read(PAGE, 2 * PAGE - 1),
        [&first[..0], &vec![0; 8191]].concat()
    );
    assert_eq!(rig.events(), []);
}

#[test]
fn a_buffer_for_entropy_that_is_not_mapped_stays_empty_and_is_one_event() {
    let rig = Rig::new([rng()]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 0);
    let data = rig.buffer(PAGE, READ);
    assert_eq!(queues[0].request(&[into(data.iova, 64)]), 0);
    assert_eq!(rig.events(), [(2, driver.id.0, data.iova)]);
    // Nothing at all to fill.
    assert_eq!(queues[0].request(&[out(data.iova, 64)]), 0);
    assert_eq!((rig.events().len(), driver.status()), (1, LIVE));
}

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn connected() -> (ConsoleConfig, Arc<Mutex<Vec<u8>>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = Arc::default();
    let config = ConsoleConfig::Buffer {
        output: Arc::clone(&output),
        input: Arc::new(OwnedFd::from(theirs)),
    };
    (config, output, ours)
}

#[test]
fn a_console_carries_bytes_both_ways() {
    let (config, output, mut keyboard) = connected();
    let rig = Rig::new([console(config)]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.config(2, 2), 0x1043);
    let queues = driver.start(2, 0);
    let data = rig.buffer(3 * PAGE, READ | WRITE);
    let text: Vec<u8> = (0..9000u32).map(|n| b'a' + (n % 26) as u8).collect();
    data.write(100, &text);
    queues[TRANSMIT].request(&[out(data.iova + 100, 8000), out(data.iova + 8100, 1000)]);
    assert_eq!(*output.lock().unwrap(), text);

    // What was typed before there was a buffer waits for one, and is split as buffers are.
    keyboard.write_all(b"hello, guest").unwrap();
    let first = queues[RECEIVE].add(&[into(data.iova, 5)]);
    queues[RECEIVE].kick();
    assert_eq!(queues[RECEIVE].wait(first), 5);
    assert_eq!(data.read(0, 5), *b"hello");
    let second = queues[RECEIVE].add(&[into(data.iova, 3), into(data.iova + 3, 97)]);
    queues[RECEIVE].kick();
    assert_eq!(queues[RECEIVE].wait(second), 7);
    assert_eq!(data.read(0, 7), *b", guest");
    // And a buffer waits for what is typed.
    let third = queues[RECEIVE].add(&[into(data.iova, 100)]);
    queues[RECEIVE].kick();
    keyboard.write_all(b"!").unwrap();
    assert_eq!(queues[RECEIVE].wait(third), 1);
    // The end of the input is no end of the console.
    drop(keyboard);
    queues[RECEIVE].add(&[into(data.iova, 100)]);
    queues[RECEIVE].kick();
    queues[TRANSMIT].request(&[out(data.iova + 100, 1)]);
    assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
}

#[test]
fn what_the_iommu_refuses_of_a_console_is_lost_with_one_event_each() {
    let (config, output, mut keyboard) = connected();
    let rig = Rig::new([console(config)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, 0);
    let data = rig.buffer(PAGE, READ);
    let hole = data.iova + PAGE;
    data.write(0, b"ok");
    queues[TRANSMIT].request(&[out(hole, 8)]);
    assert_eq!(rig.events(), [(2, driver.id.0, hole)]);
    queues[TRANSMIT].request(&[out(data.iova, 2)]);
    assert_eq!(*output.lock().unwrap(), b"ok");
    keyboard.write_all(b"x").unwrap();
    queues[RECEIVE].request(&[into(data.iova, 8)]);
    assert_eq!(rig.events()[1..], [(2, driver.id.0, data.iova)]);
    assert_eq!(driver.status(), LIVE);
}

#[test]
fn a_console_in_a_file_has_what_was_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rig = Rig::new([console(ConsoleConfig::File(file.path().into()))]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, 0);
    let data = rig.buffer(PAGE, READ);
    data.write(0, b"a line\n");
    queues[TRANSMIT].request(&[out(data.iova, 7)]);
    let mut text = String::new();
    file.reopen().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "a line\n");
}
