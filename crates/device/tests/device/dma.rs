//! DMA through the device: what commands do to translations, and what threads see of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use amdvi_device::{Abort, Changes, Endpoint, Invalidated, Iommu, Observer};
use amdvi_dma::{Access, Reason};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, InvalidateIommuPages, InvalidationRange};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::mmio::offset;

use crate::rig::*;

const DISK: DeviceId = DeviceId::new(0x13, 0, 0);
const LEVEL_1: u64 = PAGE_TABLE + 0x1000;
/// PR, IR and IW.
const PRESENT: u64 = 1 | 3 << 61;

/// The IOVA of page `n`.
const fn iova(n: u64) -> u64 {
    n << 12
}

fn set_page(rig: &Rig, n: u64, entry: u64) {
    rig.memory.write(LEVEL_1 + n * 8, entry);
}

/// The device in `domain`, with the table at [`PAGE_TABLE`].
fn translate(rig: &Rig, device: DeviceId, domain: u16) {
    rig.memory.write(PAGE_TABLE, PRESENT | 1 << 9 | LEVEL_1);
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_mode(2)
        .with_host_pt_root(PAGE_TABLE >> 12)
        .with_ir(true)
        .with_iw(true);
    let q1 = DteQ1::new().with_domain_id(domain);
    rig.set_dte(device, q0, q1, DteQ2::new());
}

fn rig() -> Rig {
    let rig = Rig::enabled("amd-iommu");
    for device in [NIC, DISK] {
        translate(&rig, device, 7);
    }
    for n in 0..64 {
        set_page(&rig, n, PRESENT | (0x100_0000 + (n << 12)));
    }
    rig
}

fn pages(domain: u16, range: InvalidationRange) -> Command {
    InvalidateIommuPages::new()
        .with_domain_id(domain)
        .with_range(range)
        .into()
}

fn gpa(endpoint: &mut Endpoint, iova: u64) -> Result<u64, Abort> {
    endpoint
        .translate(iova, 1, Access::Write)
        .map(|mapped| mapped.gpa)
}

#[test]
fn a_translation_is_kept_until_its_page_is_invalidated() {
    let rig = rig();
    let (mut nic, mut disk) = (rig.nic(), rig.iommu.endpoint(DISK));
    for endpoint in [&mut nic, &mut disk] {
        assert_eq!(gpa(endpoint, iova(5)), Ok(0x100_5000));
        assert_eq!(gpa(endpoint, iova(6)), Ok(0x100_6000));
    }
    set_page(&rig, 5, PRESENT | 0x200_0000);
    let before = rig.memory.accesses();
    assert_eq!(gpa(&mut nic, iova(5)), Ok(0x100_5000));
    assert_eq!(rig.memory.accesses(), before, "nothing is read");
    rig.submit(&[pages(7, InvalidationRange::decode(iova(5), false))]);
    rig.completion_wait();
    for endpoint in [&mut nic, &mut disk] {
        assert_eq!(gpa(endpoint, iova(5)), Ok(0x200_0000));
        let before = rig.memory.accesses();
        assert_eq!(gpa(endpoint, iova(6)), Ok(0x100_6000));
        assert_eq!(rig.memory.accesses(), before, "its neighbour stays");
    }
}

#[test]
fn every_encoding_of_a_range_drops_exactly_the_pages_in_it() {
    let rig = rig();
    let mut nic = rig.nic();
    let ranges = (12..19).map(|size_log2| InvalidationRange::Block {
        start: iova(32) >> size_log2 << size_log2,
        size_log2,
    });
    for range in ranges.chain([InvalidationRange::All]) {
        for pde in [false, true] {
            for n in 0..64 {
                assert!(gpa(&mut nic, iova(n)).is_ok());
            }
            let command = InvalidateIommuPages::new()
                .with_domain_id(7)
                .with_range(range);
            rig.submit(&[command.with_pde(pde)]);
            rig.completion_wait();
            for n in 0..64 {
                let before = rig.memory.accesses();
                assert!(gpa(&mut nic, iova(n)).is_ok());
                let walked = rig.memory.accesses() != before;
                assert_eq!(walked, range.contains(iova(n)), "page {n} after {range}");
            }
        }
    }
}

#[test]
fn one_transaction_over_many_bad_pages_logs_one_event() {
    let rig = rig();
    set_page(&rig, 2, 0);
    set_page(&rig, 3, 0);
    let mut nic = rig.nic();
    let mut done = Vec::new();
    let abort = nic
        .access(iova(1) + 0xff0, 0x3000, Access::Write, |piece| {
            done.push((piece.gpa, piece.len));
        })
        .unwrap_err();
    assert_eq!(abort, Abort::Translation(Reason::NotPresent { level: 1 }));
    assert_eq!(done, [(0x100_1ff0, 0x10)]);
    let events = rig.take_events();
    assert!(
        matches!(events[..], [Event::IoPageFault(e)] if e.address() == iova(2)),
        "{events:?}"
    );
}

/// QEMU 6: its TLB has no domain tag.
#[test]
fn qemu_defect_06_a_device_in_another_domain_does_not_hit_the_old_mapping() {
    let rig = rig();
    let mut nic = rig.nic();
    assert_eq!(gpa(&mut nic, iova(5)), Ok(0x100_5000));
    let (root, leaf) = (PAGE_TABLE + 0x2000, PAGE_TABLE + 0x3000);
    rig.memory.write(root, PRESENT | 1 << 9 | leaf);
    rig.memory.write(leaf + 5 * 8, PRESENT | 0x300_0000);
    let dte = DEVICE_TABLE + 32 * u64::from(NIC.0);
    rig.memory.write(dte, 3 | 2 << 9 | root | 3 << 61);
    rig.memory.write(dte + 8, 8);
    rig.submit(&[invalidate_dte(NIC)]);
    rig.completion_wait();
    assert_eq!(gpa(&mut nic, iova(5)), Ok(0x300_0000));
    assert_eq!(gpa(&mut rig.iommu.endpoint(DISK), iova(5)), Ok(0x100_5000));
}

/// An observer that wants to drop mappings and nothing else.
#[derive(Default)]
struct Unmaps(Mutex<Vec<Invalidated>>);

impl Observer for Unmaps {
    fn changed(&self, _: &Changes) {}
    fn invalidated(&self, ranges: &Invalidated) {
        self.0.lock().unwrap().push(ranges.clone());
    }
}

impl Unmaps {
    fn take(&self) -> Vec<Invalidated> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// QEMU 10: listeners that only want unmaps get nothing.
#[test]
fn qemu_defect_10_a_listener_that_only_wants_unmaps_hears_every_invalidation() {
    let rig = rig();
    rig.completion_wait();
    let unmaps = Arc::new(Unmaps::default());
    rig.iommu.add_observer(unmaps.clone());
    let page = |n| InvalidationRange::decode(iova(n), false);
    rig.submit(&[pages(7, page(1)), pages(9, InvalidationRange::All)]);
    assert_eq!(unmaps.take(), [], "batched until COMPLETION_WAIT");
    rig.completion_wait();
    assert_eq!(
        unmaps.take(),
        [Invalidated::Ranges(vec![
            (7, page(1)),
            (9, InvalidationRange::All)
        ])]
    );
    rig.completion_wait();
    assert_eq!(unmaps.take(), [], "nothing twice");
    rig.submit(&[Command::from(invalidate_all())]);
    rig.completion_wait();
    assert_eq!(unmaps.take(), [Invalidated::All]);
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0xff);
    assert_eq!(unmaps.take(), [Invalidated::All]);
    let many: Vec<_> = (0..100).map(|n| pages(7, page(2 * n))).collect();
    rig.submit(&many);
    rig.completion_wait();
    let told = unmaps.take();
    assert_eq!(told.len(), 1);
    assert!((0..100).all(|n| told[0].covers(7, iova(2 * n), iova(2 * n))));
    assert!(!told[0].covers(8, 0, u64::MAX));
}

#[test]
fn an_observer_hears_before_the_store_and_sees_the_new_mapping() {
    struct Replay(Mutex<Endpoint>, Mutex<Vec<u64>>);
    impl Observer for Replay {
        fn changed(&self, _: &Changes) {}
        fn invalidated(&self, _: &Invalidated) {
            let found = gpa(&mut self.0.lock().unwrap(), iova(5)).unwrap();
            self.1.lock().unwrap().push(found);
        }
    }
    let rig = rig();
    rig.completion_wait();
    let replay = Arc::new(Replay(Mutex::new(rig.nic()), Mutex::default()));
    assert!(gpa(&mut replay.0.lock().unwrap(), iova(5)).is_ok());
    rig.iommu.add_observer(replay.clone());
    set_page(&rig, 5, PRESENT | 0x200_0000);
    rig.submit(&[pages(7, InvalidationRange::All)]);
    rig.completion_wait();
    assert_eq!(*replay.1.lock().unwrap(), [0x200_0000]);
}

const PAGES: u64 = 16;

/// Guest pages whose GPA tells which of their mappings it belongs to, and what has been promised.
struct Promises {
    /// For each page: no mapping older than this one may be in use.
    floor: [AtomicU64; PAGES as usize],
    stop: AtomicBool,
    uses: AtomicU64,
}

/// `AMDVI_STRESS_ROUNDS` makes a longer hunt.
fn rounds() -> u64 {
    let set = std::env::var("AMDVI_STRESS_ROUNDS").ok();
    set.and_then(|rounds| rounds.parse().ok()).unwrap_or(300)
}

impl Promises {
    fn new() -> Self {
        Self {
            floor: [const { AtomicU64::new(0) }; PAGES as usize],
            stop: AtomicBool::new(false),
            uses: AtomicU64::new(0),
        }
    }

    fn entry(page: u64, version: u64) -> u64 {
        PRESENT | ((version << 4 | page) << 12)
    }

    /// What a device does: while it holds a translation, nothing newer may have been promised.
    fn use_pages(&self, endpoint: &mut Endpoint, mut seed: u64) {
        while !self.stop.load(Ordering::Relaxed) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = seed >> 33 & (PAGES - 1);
            let Ok(mapped) = endpoint.translate(iova(page), 8, Access::Write) else {
                continue;
            };
            assert_eq!(
                mapped.gpa >> 12 & (PAGES - 1),
                page,
                "another page's mapping"
            );
            let version = mapped.gpa >> 16;
            for _ in 0..seed >> 60 {
                std::hint::spin_loop();
            }
            let floor = self.floor[page as usize].load(Ordering::Acquire);
            assert!(
                version >= floor,
                "page {page}: {version} after {floor} was complete"
            );
            drop(mapped);
            self.uses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs `rounds` while two functions, one of them with two threads, do DMA.
    fn keep(&self, iommu: &Arc<Iommu>, mut round: impl FnMut(u64)) {
        /// Also when a round panics, or the threads would run for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            let _stop = Stop(&self.stop);
            for (n, device) in [NIC, NIC, DISK].into_iter().enumerate() {
                let mut endpoint = iommu.endpoint(device);
                scope.spawn(move || self.use_pages(&mut endpoint, n as u64));
            }
            for n in 1..=rounds() {
                round(n);
                if n % 16 == 0 {
                    // Where there are fewer CPUs than threads, let the others run.
                    std::thread::yield_now();
                }
            }
            while self.uses.load(Ordering::Relaxed) < 1000 {
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn after_completion_wait_no_thread_uses_an_older_translation() {
    let rig = rig();
    let promises = Promises::new();
    for page in 0..PAGES {
        set_page(&rig, page, Promises::entry(page, 0));
    }
    promises.keep(&rig.iommu, |n| {
        let page = n * 7 % PAGES;
        // Every third mapping is none at all.
        let entry = if n % 3 == 0 {
            0
        } else {
            Promises::entry(page, n)
        };
        set_page(&rig, page, entry);
        let one = InvalidationRange::decode(iova(page), false);
        let invalidation = match n % 8 {
            0 => pages(7, InvalidationRange::All),
            1 => invalidate_all().into(),
            2 => pages(7, InvalidationRange::covering(iova(page), iova(page ^ 1))),
            _ => pages(7, one),
        };
        let mut commands = vec![invalidation];
        if n % 32 == 5 {
            commands.push(invalidate_dte(NIC).into());
        }
        if n % 64 == 9 {
            // More than the journal remembers.
            rig.submit(&vec![pages(99, one); 200]);
            rig.submit(&vec![pages(99, one); 200]);
        }
        commands.push(completion_wait_store(STORE, n).into());
        rig.submit(&commands);
        assert_eq!(
            rig.memory.read(STORE),
            n,
            "the command processor has stopped"
        );
        promises.floor[page as usize].store(n, Ordering::Release);
    });
}

#[test]
fn restoring_with_requests_running_leaves_no_older_translation_in_use() {
    let rig = rig();
    let promises = Promises::new();
    for page in 0..PAGES {
        set_page(&rig, page, Promises::entry(page, 0));
    }
    promises.keep(&rig.iommu, |n| {
        let page = n * 7 % PAGES;
        let state = rig.iommu.save();
        set_page(&rig, page, Promises::entry(page, n));
        rig.iommu.restore(&state).unwrap();
        promises.floor[page as usize].store(n, Ordering::Release);
    });
    // And in another device over the same memory, in which nobody has invalidated anything.
    let moved = Rig::new("amd-iommu");
    let host = moved.host.clone();
    let options = "amd-iommu".parse().unwrap();
    let iommu = Iommu::new(&options, rig.memory.clone(), host);
    let mut early = iommu.endpoint(NIC);
    assert_eq!(gpa(&mut early, iova(1)), Ok(iova(1)), "not enabled yet");
    iommu.restore(&rig.iommu.save()).unwrap();
    for endpoint in [&mut early, &mut iommu.endpoint(DISK)] {
        for page in 0..PAGES {
            let floor = promises.floor[page as usize].load(Ordering::Acquire);
            let found = gpa(endpoint, iova(page)).unwrap();
            assert_eq!(found, Promises::entry(page, floor) & 0x000f_ffff_ffff_f000);
        }
    }
}

#[test]
fn quiesce_waits_for_what_is_in_flight() {
    let rig = rig();
    let mut nic = rig.nic();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mapped = nic.translate(iova(1), 8, Access::Write).unwrap();
        scope.spawn(|| {
            rig.iommu.quiesce();
            done.store(true, Ordering::Release);
        });
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(!done.load(Ordering::Acquire));
        }
        drop(mapped);
    });
    assert!(done.load(Ordering::Acquire));
}

#[test]
fn completion_wait_waits_for_an_operation_of_several_transactions() {
    let rig = rig();
    let mut nic = rig.nic();
    let tail = rig.queue(&[
        pages(7, InvalidationRange::All),
        completion_wait_store(STORE, 1).into(),
    ]);
    std::thread::scope(|scope| {
        let mut operation = nic.begin();
        for n in [1, 2, 1] {
            let piece = operation.translate(iova(n), 8, Access::Write).unwrap();
            assert_eq!(piece.gpa, 0x100_0000 + iova(n));
        }
        let waiter = scope.spawn(|| rig.write32(offset::COMMAND_TAIL, tail as u32));
        for _ in 0..100 {
            std::thread::yield_now();
            assert_eq!(rig.memory.read(STORE), 0);
        }
        assert!(!waiter.is_finished());
        // What is asked for now is not what was invalidated.
        assert!(operation.translate(iova(64), 8, Access::Write).is_err());
        assert_eq!(operation.probe(iova(64), 8, Access::Write), None);
        drop(operation);
    });
    assert_eq!(rig.memory.read(STORE), 1);
    assert_eq!(rig.take_events().len(), 1, "a question logs nothing");
}
