//! The PCI transport, with a disk behind it.

use std::sync::atomic::{AtomicBool, Ordering};

use amdvi_guest::endpoint::{reg, vmm};

use super::blk::{Frame, SECTOR, build, image};
use super::driver::*;
use super::rig::*;
use crate::layout;
use crate::virtio::{REQUIRED_FEATURES, feature};

const FLUSH: u64 = 1 << 9;
const FLUSH_REQUEST: u32 = 4;

/// Gives a thread time to do what it must not do.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(5));
}

#[test]
fn the_capabilities_lead_to_every_structure() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.config(0, 4), 0x1042_1af4);
    assert_eq!(driver.config(8, 1), 1, "not transitional");
    assert!(driver.config(0x2e, 2) >= 0x40);
    assert_eq!(driver.config(0x3d, 1), 0, "no INTx");
    // A BAR that firmware placed, and each structure inside of it.
    driver.set_config(0x10, 4, 0xffff_ffff);
    let size = (driver.config(0x10, 4) as u32).wrapping_neg();
    assert_eq!(size, 0x8000);
    for structure in [driver.common, driver.notify, driver.isr, driver.device] {
        assert!(structure.gpa >= layout::PCI_MEMORY && structure.len > 0);
        let base = driver.common.gpa;
        assert!(structure.gpa + structure.len <= base + u64::from(size));
    }
    assert!(driver.common.len >= 0x40);
    assert_eq!(driver.multiplier, 4);
    assert_ne!(driver.window, 0);
    // An integrated endpoint with Function Level Reset.
    assert_eq!(driver.config(driver.express + 2, 2) >> 4 & 0xf, 9);
    assert_eq!(driver.config(driver.express + 4, 4) >> 28 & 1, 1);
    // A vector for the queue and one for the configuration.
    assert_eq!(driver.config(driver.msix + 2, 2), 1);
    assert_eq!(driver.config(0x100, 4), 0, "no extended capabilities");
}

#[test]
fn a_driver_that_does_not_take_iovas_is_refused() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let offered = driver.offered();
    assert_eq!(offered & REQUIRED_FEATURES, REQUIRED_FEATURES);
    for absent in [feature::ACCESS_PLATFORM, feature::VERSION_1] {
        assert!(!driver.negotiate(offered & !absent));
    }
    assert!(!driver.negotiate(offered | 1 << 50));
    assert!(driver.negotiate(offered));
    driver.set(common::STATUS, 1, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn every_structure_can_be_reached_through_configuration_space() {
    let (file, _) = image(123);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let aim = |gpa: u64, len: u64| {
        driver.set_config(driver.window + 4, 1, 0);
        driver.set_config(driver.window + 8, 4, gpa - driver.common.gpa);
        driver.set_config(driver.window + 12, 4, len);
    };
    aim(driver.device.gpa, 4);
    assert_eq!(driver.config(driver.window + 16, 4), 123, "capacity");
    aim(driver.common.gpa + common::STATUS, 1);
    driver.set_config(driver.window + 16, 1, 3);
    assert_eq!(driver.config(driver.window + 16, 1), 3);
    assert_eq!(driver.status(), 3);
    driver.set_config(driver.window + 16, 4, 0);
    assert_eq!(driver.status(), 0, "the first byte of the dword counts");
    // Another BAR, a length that is none, what is not aligned or outside.
    driver.set_config(driver.window + 16, 1, 3);
    for (bar, offset, len) in [
        (1, 0x14, 1),
        (0, 0x14, 3),
        (0, 0x14, 0),
        (0, 0x15, 4),
        (0, 0x8000, 4),
    ] {
        driver.set_config(driver.window + 4, 1, bar);
        driver.set_config(driver.window + 8, 4, offset);
        driver.set_config(driver.window + 12, 4, len);
        driver.set_config(driver.window + 16, 4, 0);
        assert_eq!(driver.config(driver.window + 16, 4), 0);
        assert_eq!(driver.status(), 3);
    }
}

#[test]
fn a_masked_vector_pends_and_is_sent_when_it_is_unmasked() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    driver.program(0, 7, true);
    for _ in 0..2 {
        assert_eq!(frame.request(&queues[0], FLUSH_REQUEST, 0, &[]), (0, 1));
    }
    eventually("the pending bit", || driver.is_pending(0));
    assert_eq!(rig.cpus.count(FIRST_VECTOR + 7), 0);
    driver.program(0, 7, false);
    assert_eq!(rig.cpus.count(FIRST_VECTOR + 7), 1, "once for both");
    assert!(!driver.is_pending(0));
    // The whole function.
    driver.set_config(driver.msix + 2, 2, 0xc000);
    frame.request(&queues[0], FLUSH_REQUEST, 0, &[]);
    eventually("the pending bit", || driver.is_pending(0));
    driver.enable_msix();
    assert_eq!(rig.cpus.count(FIRST_VECTOR + 7), 2);
}

#[test]
fn an_interrupt_that_the_iommu_blocks_is_its_event() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    // Behind the interrupt table's end.
    driver.program(0, 32, false);
    let frame = Frame::new(&rig);
    frame.request(&queues[0], FLUSH_REQUEST, 0, &[]);
    eventually("the event", || rig.events().len() == 1);
    assert_eq!((rig.events()[0].0, rig.events()[0].1), (2, driver.id.0));
}

#[test]
fn event_idx_keeps_interrupts_back_until_the_driver_wants_one() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH | feature::EVENT_IDX);
    let frame = Frame::new(&rig);
    queues[0].set_used_event(2);
    for _ in 0..4 {
        frame.request(&queues[0], FLUSH_REQUEST, 0, &[]);
    }
    // The thread has done all that it does for them.
    driver.set(common::STATUS, 1, 0);
    assert_eq!(rig.cpus.count(FIRST_VECTOR), 1, "for the third");
}

#[test]
fn without_bus_master_nothing_moves_and_with_it_only_once_the_driver_says_so() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    frame.request(&queues[0], FLUSH_REQUEST, 0, &[]);
    driver.set_config(4, 2, 2);
    assert_eq!(driver.status(), LIVE & !4, "no longer DRIVER_OK");
    frame.prepare(FLUSH_REQUEST, 0);
    // Neither the rings nor the buffers are accessed: that would be an event.
    let buffers = [&queues[0].available, &queues[0].table, &frame.header];
    for buffer in buffers {
        rig.map(buffer.iova, 0, 0);
    }
    let head = queues[0].add(&frame.parts(&[]));
    queues[0].kick();
    settle();
    assert_eq!((queues[0].used_index(), rig.events()), (1, vec![]));
    // As the kernel does that a guest boots with kexec, before it resets the device.
    driver.set_config(4, 2, 6);
    queues[0].kick();
    settle();
    assert_eq!((queues[0].used_index(), rig.events()), (1, vec![]));
    for buffer in buffers {
        rig.map(buffer.iova, buffer.pages[0], READ);
    }
    driver.set(common::STATUS, 1, u64::from(LIVE));
    assert_eq!(queues[0].wait(head), 1);
}

#[test]
fn a_driver_that_is_live_before_it_gives_the_bus_is_served_when_it_does() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    driver.set_config(4, 2, 2);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    frame.prepare(FLUSH_REQUEST, 0);
    let head = queues[0].add(&frame.parts(&[]));
    queues[0].kick();
    settle();
    assert_eq!(queues[0].used_index(), 0);
    driver.set_config(4, 2, 6);
    assert_eq!(queues[0].wait(head), 1);
}

#[test]
fn a_ring_that_is_not_mapped_is_one_event_and_the_device_needs_a_reset() {
    let (file, _) = image(8);
    for ring in 0..3 {
        let rig = Rig::new([build(&file)]);
        let driver = Driver::new(&rig, 0);
        let queues = driver.start(1, FLUSH);
        let queue = &queues[0];
        // It has found the queue empty, and waits for a notification.
        let frame = Frame::new(&rig);
        frame.request(queue, FLUSH_REQUEST, 0, &[]);
        let buffer = [&queue.table, &queue.available, &queue.used][ring];
        rig.map(buffer.iova, 0, 0);
        queue.add(&frame.parts(&[]));
        for _ in 0..3 {
            queue.kick();
        }
        eventually("DEVICE_NEEDS_RESET", || driver.status() & NEEDS_RESET != 0);
        eventually("the driver's being told", || {
            rig.cpus.count(Driver::config_vector(1)) == 1
        });
        // It does not try again.
        queue.kick();
        settle();
        let events = rig.events();
        assert_eq!(events.len(), 1, "{events:x?}");
        assert_eq!((events[0].0, events[0].1), (2, driver.id.0));
        assert_eq!(events[0].2 & !0xfff, buffer.iova);
    }
}

#[test]
fn chains_that_make_no_sense_end_in_a_reset_and_nowhere_else() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let data = rig.buffer(PAGE, READ | WRITE);
    let huge = rig.buffer(PAGE, READ);
    // Every descriptor of the indirect table leads to the next.
    for n in 0..256u64 {
        huge.write(16 * n, &data.iova.to_le_bytes());
        huge.write(16 * n + 8, &1u32.to_le_bytes());
        huge.write(16 * n + 12, &NEXT.to_le_bytes());
        huge.write(16 * n + 14, &(n as u16 + 1).to_le_bytes());
    }
    type Break<'a> = &'a dyn Fn(&Queue<'_>);
    let cases: [(&str, Break<'_>); 10] = [
        ("loop", &|q| {
            q.descriptor(0, data.iova, 16, NEXT, 1);
            q.descriptor(1, data.iova, 16, NEXT, 0);
            q.publish(0);
        }),
        ("itself", &|q| {
            q.descriptor(0, data.iova, 16, NEXT | DEVICE_WRITES, 0);
            q.publish(0);
        }),
        ("head behind the table", &|q| q.publish(16)),
        ("next behind the table", &|q| {
            q.descriptor(0, data.iova, 16, NEXT, 0x7fff);
            q.publish(0);
        }),
        ("read after write", &|q| {
            q.descriptor(0, data.iova, 16, NEXT | DEVICE_WRITES, 1);
            q.descriptor(1, data.iova, 16, 0, 0);
            q.publish(0);
        }),
        ("no room for the status", &|q| {
            q.descriptor(0, data.iova, 16, 0, 0);
            q.publish(0);
        }),
        ("an indirect table as long as it gets", &|q| {
            q.descriptor(0, huge.iova, 0xffff * 16, INDIRECT, 0);
            q.publish(0);
        }),
        ("an indirect table of odd length", &|q| {
            q.descriptor(0, huge.iova, 24, INDIRECT, 0);
            q.publish(0);
        }),
        ("an indirect table of nothing", &|q| {
            q.descriptor(0, huge.iova, 0, INDIRECT, 0);
            q.publish(0);
        }),
        ("more available than there is room", &|q| {
            q.available.write(2, &17u16.to_le_bytes());
        }),
    ];
    for (what, break_it) in cases {
        let queues = driver.start(1, FLUSH);
        break_it(&queues[0]);
        queues[0].kick();
        eventually(what, || driver.status() & NEEDS_RESET != 0);
        assert_eq!(
            (rig.events(), queues[0].used_index()),
            (vec![], 0),
            "{what}"
        );
    }
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    assert_eq!(frame.request(&queues[0], FLUSH_REQUEST, 0, &[]), (0, 1));
}

#[test]
fn a_ring_that_is_not_aligned_is_refused_when_it_is_enabled() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    for register in [
        common::QUEUE_DESC,
        common::QUEUE_DRIVER,
        common::QUEUE_DEVICE,
    ] {
        assert!(driver.negotiate(REQUIRED_FEATURES));
        driver.set(register, 4, 0x1_0001);
        driver.set(common::QUEUE_ENABLE, 2, 1);
        assert_ne!(driver.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn a_reset_ends_requests_in_flight_and_touches_no_memory_after_it() {
    let (file, _) = image(4096);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let frame = Frame::new(&rig);
    let data = rig.buffer(256 * PAGE, WRITE);
    for turn in 0..20 {
        let queues = driver.start(1, FLUSH);
        frame.prepare(0, 0);
        for _ in 0..5 {
            queues[0].add(&frame.parts(&[into(data.iova, 256 * PAGE)]));
        }
        queues[0].kick();
        if turn % 2 == 0 {
            std::thread::yield_now();
        }
        driver.set(common::STATUS, 1, 0);
        assert_eq!(driver.status(), 0);
        // Whoever were still at it would now fault.
        for buffer in [&queues[0].used, &frame.status] {
            rig.map(buffer.iova, 0, 0);
        }
        let used = queues[0].used_index();
        queues[0].kick();
        settle();
        assert_eq!((queues[0].used_index(), rig.events()), (used, vec![]));
        // A driver that enables no queue has none.
        assert!(driver.negotiate(REQUIRED_FEATURES));
        driver.set(common::STATUS, 1, u64::from(LIVE));
        queues[0].kick();
        settle();
        assert_eq!((queues[0].used_index(), rig.events()), (used, vec![]));
        rig.map(frame.status.iova, frame.status.pages[0], WRITE);
    }
}

#[test]
fn one_queue_can_be_reset_while_the_others_go_on() {
    let (file, _) = image(64);
    let config = crate::virtio::DiskConfig {
        queues: 2,
        ..super::blk::config(&file)
    };
    let rig = Rig::new([crate::virtio::disk(config)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, FLUSH | feature::RING_RESET);
    let frame = Frame::new(&rig);
    for queue in &queues {
        assert_eq!(frame.request(queue, FLUSH_REQUEST, 0, &[]), (0, 1));
    }
    driver.set(common::QUEUE_SELECT, 2, 1);
    driver.set(common::QUEUE_RESET, 2, 1);
    assert_eq!(driver.get(common::QUEUE_RESET, 2), 0);
    assert_eq!(driver.get(common::QUEUE_ENABLE, 2), 0);
    let used = queues[1].used_index();
    queues[1].add(&frame.parts(&[]));
    queues[1].kick();
    settle();
    assert_eq!(queues[1].used_index(), used);
    assert_eq!(frame.request(&queues[0], FLUSH_REQUEST, 0, &[]), (0, 1));
    let again = Queue::new(&driver, 1);
    assert_eq!(frame.request(&again, FLUSH_REQUEST, 0, &[]), (0, 1));
    assert_eq!(driver.status(), LIVE);
}

#[test]
fn a_function_level_reset_leaves_the_function_as_after_power_on() {
    let (file, content) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let bar = driver.config(0x10, 4);
    queues[0].add(&[]);
    driver.set_config(driver.express + 8, 2, 0x8000);
    assert_eq!(driver.config(driver.express + 8, 2), 0, "reads as zero");
    assert_eq!(driver.config(0x10, 4), 0);
    assert_eq!(driver.config(4, 2), 0, "memory and bus mastering are off");
    assert_eq!(driver.config(driver.msix + 2, 2), 1, "MSI-X is disabled");
    driver.set_config(0x10, 4, bar);
    driver.set_config(4, 2, 6);
    assert_eq!(driver.status(), 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, WRITE);
    let parts = [into(data.iova, SECTOR)];
    assert_eq!(frame.request(&queues[0], 0, 1, &parts).0, 0);
    assert_eq!(data.read(0, SECTOR), content[512..1024]);
}

#[test]
fn without_msix_the_isr_says_what_happened_once() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    driver.set_config(driver.msix + 2, 2, 0);
    let frame = Frame::new(&rig);
    frame.request(&queues[0], FLUSH_REQUEST, 0, &[]);
    let isr = || {
        let mut byte = [0];
        rig.board.mmio_read(driver.isr.gpa, &mut byte);
        byte[0]
    };
    eventually("the ISR bit", || isr() == 1);
    assert_eq!(isr(), 0);
    queues[0].publish(99);
    queues[0].kick();
    eventually("the ISR bit", || isr() == 2);
    assert_eq!(rig.cpus.count(FIRST_VECTOR), 0);
}

#[test]
fn registers_and_rings_of_a_guest_that_pokes_everywhere_harm_nothing() {
    let (file, _) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for turn in 0..40 {
        let queues = driver.start(1, driver.offered());
        let queue = &queues[0];
        for _ in 0..300 {
            let len = 1 + (next() % 8) as usize;
            let mut data = next().to_le_bytes();
            match next() % 8 {
                0..=2 => {
                    let at = driver.common.gpa + next() % 0x6010;
                    rig.board.mmio_write(at, &data[..len]);
                }
                3 => {
                    let at = driver.common.gpa + next() % 0x6010;
                    rig.board.mmio_read(at, &mut data[..len]);
                }
                4 => {
                    // All of configuration space but the command register and BARs.
                    let at = 0x40 + next() % 0xd0;
                    driver.set_config(at, len.min(4), u64::from_le_bytes(data));
                }
                5 => {
                    let iova = [queue.table.iova, queue.used.iova, next()][(next() % 3) as usize];
                    let n = (next() % 16) as u16;
                    queue.descriptor(
                        n,
                        iova,
                        next() as u32 % 8192,
                        next() as u16,
                        next() as u16 % 18,
                    );
                }
                6 => queue.publish((next() % 17) as u16),
                _ => queue.kick(),
            }
        }
        // Whatever it was, a reset leads out of it.
        driver.set_config(driver.express + 8, 2, 0x8000);
        driver.set_config(0x10, 4, driver.common.gpa);
        driver.set_config(4, 2, 6);
        assert_eq!(driver.status(), 0, "turn {turn}");
    }
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    assert_eq!(frame.request(&queues[0], FLUSH_REQUEST, 0, &[]), (0, 1));
}

#[test]
fn the_iommu_can_be_replaced_under_a_working_disk() {
    let (file, content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(8 * PAGE, WRITE);
    let done = AtomicBool::new(false);
    // The first BAR of the test endpoint.
    let endpoint = layout::PCI_MEMORY;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let command = vmm::SAVE_RESTORE.to_le_bytes();
                rig.board.mmio_write(endpoint + reg::VMM_COMMAND, &command);
            }
        });
        // Not here: a failed check would leave the thread running.
        let all = (0..100).all(|_| {
            let parts = [into(data.iova, 64 * SECTOR)];
            frame.request(&queues[0], 0, 0, &parts).0 == 0 && data.read(0, 64 * SECTOR) == content
        });
        done.store(true, Ordering::Release);
        assert!(all);
    });
    assert_eq!(rig.events(), []);
}
