//! TLBs of devices: INVALIDATE_IOTLB_PAGES, its answers, and what waits for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amdvi_device::testing::TestMemory;
use amdvi_device::{
    Access, DeviceAts, DeviceInvalidation, Endpoint, Host, InvalidationAnswer, InvalidationWait,
    Iommu, Permissions, Piece,
};
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, InvalidateIommuPages, InvalidateIotlbPages, InvalidationRange, PrefetchIommuPages,
};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::mmio::offset;

use crate::rig::*;

/// A device that keeps what it is told and answers at once or not at all.
struct Tlb {
    answer: InvalidationAnswer,
    heard: Mutex<Vec<DeviceInvalidation>>,
}

impl Tlb {
    fn new(answer: InvalidationAnswer) -> Arc<Self> {
        Arc::new(Self {
            answer,
            heard: Mutex::default(),
        })
    }

    fn take(&self) -> Vec<DeviceInvalidation> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl DeviceAts for Tlb {
    fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
        self.heard.lock().unwrap().push(*invalidation);
        self.answer
    }
}

/// A VMM that keeps time.
#[derive(Default)]
struct Timer {
    waits: Mutex<Vec<InvalidationWait>>,
    pending: AtomicBool,
}

impl Host for Timer {
    fn deliver(&self, _: &Delivery) {}
    fn doorbell(&self, _: u32) {}
    fn commands_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
    }
    fn await_invalidations(&self, wait: &InvalidationWait) -> bool {
        self.waits.lock().unwrap().push(*wait);
        true
    }
}

impl Timer {
    fn take(&self) -> Vec<InvalidationWait> {
        std::mem::take(&mut self.waits.lock().unwrap())
    }

    /// What a VMM does when it is told that commands are pending.
    fn run(&self, iommu: &Iommu) -> bool {
        let pending = self.pending.swap(false, Ordering::Relaxed);
        if pending {
            assert!(!iommu.run_commands());
        }
        pending
    }
}

/// A rig whose VMM keeps time.
fn timed() -> (Rig, Arc<Timer>) {
    let memory = Arc::new(TestMemory::new(RAM));
    let timer = Arc::new(Timer::default());
    let iommu = Iommu::new(&SVA.parse().unwrap(), memory.clone(), timer.clone());
    let rig = Rig {
        memory,
        host: Arc::default(),
        iommu,
    };
    rig.enable();
    (rig, timer)
}

fn device(rig: &Rig, id: DeviceId, answer: InvalidationAnswer) -> (Endpoint, Arc<Tlb>) {
    let endpoint = rig.iommu.endpoint(id);
    let tlb = Tlb::new(answer);
    endpoint.set_ats(tlb.clone());
    (endpoint, tlb)
}

fn invalidate(id: DeviceId, depth: u8) -> InvalidateIotlbPages {
    InvalidateIotlbPages::new()
        .with_device_id(id.0)
        .with_queue_id(id.0)
        .with_max_pend(depth)
        .with_range(InvalidationRange::All)
}

const OTHER: DeviceId = DeviceId(0x33);

#[test]
fn an_invalidation_reaches_the_device_with_every_field() {
    let rig = Rig::enabled(SVA);
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Done);
    let (_other, others) = device(&rig, OTHER, InvalidationAnswer::Done);
    let block = InvalidationRange::Block {
        start: 0x4000_0000,
        size_log2: 21,
    };
    rig.submit(&[
        invalidate(NIC, 4).with_queue_id(0x77).with_range(block),
        invalidate(NIC, 4).with_gn(true).with_pasid(0x9_8765),
    ]);
    let heard = tlb.take();
    assert_eq!(heard.len(), 2);
    assert_eq!(
        (heard[0].pasid, heard[0].range, heard[0].queue_id),
        (None, block, 0x77)
    );
    assert_eq!(
        (heard[1].pasid, heard[1].range, heard[1].queue_id),
        (Some(0x9_8765), InvalidationRange::All, NIC.0)
    );
    assert!(heard[0].ticket < heard[1].ticket);
    assert!(others.take().is_empty());
    rig.completion_wait();
    assert!(rig.take_events().is_empty());
}

#[test]
fn all_handles_of_a_function_are_told_and_one_without_a_tlb_holds_nobody_up() {
    let rig = Rig::enabled(SVA);
    let (_a, first) = device(&rig, NIC, InvalidationAnswer::Done);
    let (_b, second) = device(&rig, NIC, InvalidationAnswer::Done);
    rig.submit(&[invalidate(NIC, 1), invalidate(OTHER, 1)]);
    assert_eq!((first.take().len(), second.take().len()), (1, 1));
    rig.completion_wait();
    assert!(rig.take_events().is_empty());
}

#[test]
fn completion_wait_waits_for_every_device_that_answers_later() {
    let (rig, timer) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let (_other, others) = device(&rig, OTHER, InvalidationAnswer::Later);
    rig.set_control(|c| c.with_inv_time_out(3));
    rig.submit(&[
        Command::from(invalidate(NIC, 32)),
        invalidate(OTHER, 32).into(),
        completion_wait_store(STORE, 5).into(),
    ]);
    assert_eq!(
        (rig.memory.read(STORE), rig.read(offset::COMMAND_HEAD)),
        (0, 32)
    );
    let [a, b] = [tlb.take()[0].ticket, others.take()[0].ticket];
    assert_eq!(
        timer.take(),
        [InvalidationWait {
            timeout: Some(Duration::from_millis(100)),
            latest: b
        }]
    );
    // The guest may write registers meanwhile; nothing runs, and nobody is asked again.
    rig.submit(&[completion_wait_store(STORE, 6)]);
    assert!(!rig.iommu.run_commands());
    assert_eq!((rig.memory.read(STORE), timer.take().len()), (0, 0));
    rig.iommu.invalidation_done(b);
    timer.run(&rig.iommu);
    assert_eq!(rig.memory.read(STORE), 0);
    rig.iommu.invalidation_done(b);
    rig.iommu.invalidation_done(a);
    assert!(timer.run(&rig.iommu));
    assert_eq!(rig.memory.read(STORE), 6);
    assert!(rig.take_events().is_empty());
}

#[test]
fn a_device_that_answers_during_the_call_holds_nobody_up() {
    struct Prompt(std::sync::OnceLock<std::sync::Weak<Iommu>>);
    impl DeviceAts for Prompt {
        fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
            let iommu = self.0.get().unwrap().upgrade().unwrap();
            iommu.invalidation_done(invalidation.ticket);
            InvalidationAnswer::Later
        }
    }
    let rig = Rig::enabled(SVA);
    let nic = rig.nic();
    let prompt = Prompt(std::sync::OnceLock::new());
    prompt.0.set(Arc::downgrade(&rig.iommu)).unwrap();
    nic.set_ats(Arc::new(prompt));
    rig.submit(&[invalidate(NIC, 1), invalidate(NIC, 1)]);
    rig.completion_wait();
    assert!(rig.take_events().is_empty());
}

#[test]
fn without_a_vmm_that_keeps_time_a_silent_device_has_failed_at_once() {
    let rig = Rig::enabled(SVA);
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    for timeout in [0, 4] {
        rig.set_control(|c| c.with_inv_time_out(timeout));
        let at = COMMANDS + rig.read(offset::COMMAND_TAIL);
        rig.submit(&[invalidate(NIC, 1)]);
        rig.completion_wait();
        // Code 7, the DeviceID, the command's address.
        assert_eq!(rig.take_event_words(), [7 << 60 | u64::from(NIC.0), at]);
    }
    assert_eq!(tlb.take().len(), 2);
}

#[test]
fn an_invalidation_times_out_and_those_sent_later_do_not() {
    let (rig, timer) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let (_other, others) = device(&rig, OTHER, InvalidationAnswer::Later);
    let wait = completion_wait_store(STORE, 1);
    rig.submit(&[Command::from(invalidate(NIC, 1)), wait.into()]);
    let first = timer.take()[0];
    assert_eq!(first.timeout, None);
    rig.iommu.expire_invalidations(&first);
    assert!(timer.run(&rig.iommu));
    assert_eq!(rig.memory.read(STORE), 1);
    assert!(matches!(
        rig.take_events()[..],
        [Event::IotlbInvTimeout(event)] if event.device_id() == NIC.0
    ));
    // The late answer is nobody's business any more, and neither is the old timer.
    rig.iommu.invalidation_done(tlb.take()[0].ticket);
    let second = completion_wait_store(STORE, 2);
    rig.submit(&[Command::from(invalidate(OTHER, 1)), second.into()]);
    rig.iommu.expire_invalidations(&first);
    assert!(!timer.run(&rig.iommu));
    assert_eq!(rig.memory.read(STORE), 1);
    rig.iommu.invalidation_done(others.take()[0].ticket);
    assert!(timer.run(&rig.iommu));
    assert_eq!(rig.memory.read(STORE), 2);
    assert!(rig.take_events().is_empty());
}

#[test]
fn a_queue_has_no_more_invalidations_under_way_than_max_pend() {
    let (rig, timer) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let (_other, others) = device(&rig, OTHER, InvalidationAnswer::Later);
    rig.submit(&[
        invalidate(NIC, 2),
        invalidate(OTHER, 0),
        invalidate(NIC, 2),
        invalidate(NIC, 2),
        invalidate(OTHER, 0),
    ]);
    let heard = tlb.take();
    assert_eq!((heard.len(), others.take().len()), (2, 1));
    assert_eq!(rig.read(offset::COMMAND_HEAD), 48);
    assert_eq!(timer.take().len(), 1);
    rig.iommu.invalidation_done(heard[0].ticket);
    assert!(timer.run(&rig.iommu));
    assert_eq!(tlb.take().len(), 1);
    assert_eq!(
        rig.read(offset::COMMAND_HEAD),
        64,
        "a depth of 0 counts as 1"
    );
}

#[test]
fn the_number_of_unanswered_invalidations_is_bounded() {
    let (rig, _timer) = timed();
    let devices: Vec<_> = (0..200)
        .map(|n| device(&rig, DeviceId(n), InvalidationAnswer::Later))
        .collect();
    let commands: Vec<_> = (0..200).map(|n| invalidate(DeviceId(n), 255)).collect();
    rig.submit(&commands);
    let told: usize = devices.iter().map(|(_, tlb)| tlb.take().len()).sum();
    assert_eq!(told, 64);
    assert_eq!(rig.read(offset::COMMAND_HEAD), 64 * 16);
}

#[test]
fn a_restart_of_the_ring_does_not_forget_what_devices_owe() {
    let (rig, timer) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let wait = completion_wait_store(STORE, 1);
    rig.submit(&[Command::from(invalidate(NIC, 1)), wait.into()]);
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write32(offset::COMMAND_HEAD, 0);
    rig.write32(offset::COMMAND_TAIL, 0);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    rig.submit(&[wait]);
    assert_eq!(rig.memory.read(STORE), 0);
    rig.iommu.invalidation_done(tlb.take()[0].ticket);
    assert!(timer.run(&rig.iommu));
    assert_eq!(rig.memory.read(STORE), 1);
}

#[test]
fn a_reset_forgets_what_devices_owe() {
    let (rig, _timer) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let wait = completion_wait_store(STORE, 1);
    rig.submit(&[Command::from(invalidate(NIC, 1)), wait.into()]);
    rig.iommu.reset();
    rig.enable();
    rig.completion_wait();
    rig.iommu.invalidation_done(tlb.take()[0].ticket);
}

#[test]
fn an_unanswered_invalidation_is_sent_again_where_the_state_is_restored() {
    let (rig, _) = timed();
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Later);
    let wait = completion_wait_store(STORE, 1);
    rig.submit(&[Command::from(invalidate(NIC, 1)), wait.into()]);
    assert_eq!(tlb.take().len(), 1);
    let state = rig.iommu.save();
    let there = Rig {
        memory: rig.memory.clone(),
        host: Arc::default(),
        iommu: Iommu::new(
            &SVA.parse().unwrap(),
            rig.memory.clone(),
            Arc::new(Timer::default()),
        ),
    };
    let (_nic, tlb) = device(&there, NIC, InvalidationAnswer::Done);
    there.iommu.restore(&state).unwrap();
    assert_eq!(there.iommu.save(), state);
    assert!(!there.iommu.run_commands());
    assert_eq!(tlb.take().len(), 1);
    assert_eq!(rig.memory.read(STORE), 1);
}

#[test]
fn invalidations_before_an_illegal_command_reach_their_devices() {
    let rig = Rig::enabled(SVA);
    let (_nic, tlb) = device(&rig, NIC, InvalidationAnswer::Done);
    rig.submit(&[
        Command::from(invalidate(NIC, 4)),
        invalidate(NIC, 4).into(),
        Command::decode([0, 0]),
    ]);
    assert!(!rig.status().cmd_buf_run());
    assert_eq!(tlb.take().len(), 2);
    assert_eq!(rig.take_event_words(), [5 << 60, COMMANDS + 32]);
}

/// DMA is identity and ATS allowed.
fn allow(rig: &Rig) {
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_ir(true)
        .with_iw(true);
    let q1 = DteQ1::new().with_i(true).with_domain_id(7);
    rig.set_dte(NIC, q0, q1, DteQ2::new());
}

#[test]
fn a_device_hears_of_an_invalidation_after_every_answer_that_was_on_its_way() {
    let rig = Rig::enabled(SVA);
    allow(&rig);
    let (mut nic, tlb) = device(&rig, NIC, InvalidationAnswer::Done);
    let tail = rig.queue(&[invalidate(NIC, 1)]);
    let answer = nic
        .translation_request(None, 0x5000, Access::Write)
        .unwrap();
    assert!(answer.permissions.contains(Permissions::WRITE));
    std::thread::scope(|scope| {
        let iommu = &rig.iommu;
        let vcpu = scope.spawn(move || {
            iommu.mmio_write(offset::COMMAND_TAIL, &(tail as u32).to_le_bytes());
        });
        while rig.read(offset::COMMAND_HEAD) != 16 {
            std::thread::yield_now();
        }
        for _ in 0..1000 {
            std::thread::yield_now();
            assert!(tlb.take().is_empty());
        }
        assert!(!vcpu.is_finished());
        drop(answer);
        vcpu.join().unwrap();
    });
    assert_eq!(tlb.take().len(), 1);
}

#[test]
fn ats_requests_need_the_option_and_dte_i() {
    let rig = Rig::enabled(SVA);
    allow(&rig);
    let mut nic = rig.nic();
    let (mut seen, len) = (Vec::new(), 0x2000);
    nic.access_translated(None, 0x1_0000, len, Access::Write, |piece| {
        seen.push((piece.gpa, piece.len));
    })
    .unwrap();
    assert_eq!(seen, [(0x1_0000, len)]);
    assert_eq!(*nic.translated(None, 0x40, 4, Access::Read).unwrap(), {
        Piece {
            gpa: 0x40,
            len: 4,
            permissions: Permissions::all(),
        }
    });
    let q0 = DteQ0::new().with_v(true).with_tv(true).with_ir(true);
    rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new());
    let without_i = refusals(&rig);
    let rig = Rig::enabled("amd-iommu,gtsup=on");
    allow(&rig);
    assert_eq!(refusals(&rig), without_i);
    // TR and type 1; type 1 without TR.
    assert_eq!(without_i[0][0] >> 56, 0x83);
    assert_eq!(without_i[1][0] >> 56, 0x82);
    assert_eq!(without_i[0][1], 0x5008);
    rig.set_control(|c| c.with_iommu_en(false));
    let mut nic = rig.nic();
    assert!(nic.translation_request(None, 0, Access::Read).is_err());
    assert!(rig.take_events().is_empty());
}

/// The events of a translation request and of a translated request, by a handle and by its
/// operations.
fn refusals(rig: &Rig) -> Vec<[u64; 2]> {
    let mut nic = rig.nic();
    assert!(nic.translation_request(None, 0x5008, Access::Read).is_err());
    assert!(nic.translated(None, 0x5008, 8, Access::Read).is_err());
    let first = rig.take_events();
    let mut operation = nic.begin();
    assert!(
        operation
            .translation_request(None, 0x5008, Access::Read)
            .is_err()
    );
    assert!(operation.translated(None, 0x5008, 8, Access::Read).is_err());
    drop(operation);
    assert_eq!(rig.take_events(), first);
    first.iter().map(Event::words).collect()
}

#[test]
fn iotlb_sup_stands_in_the_capability_if_devices_may_have_tlbs() {
    assert_eq!(Rig::new(SVA).config(0x40) >> 24 & 1, 1);
    assert_eq!(Rig::new("amd-iommu").config(0x40) >> 24 & 1, 0);
}

#[test]
fn every_reserved_bit_of_the_commands_for_devices_and_pasids_is_illegal() {
    let commands: [Command; 4] = [
        invalidate(NIC, 1).into(),
        InvalidateIommuPages::new().with_domain_id(3).into(),
        PrefetchIommuPages::new().with_device_id(NIC.0).into(),
        amdvi_regs::command::CompletePprRequest::new()
            .with_device_id(NIC.0)
            .into(),
    ];
    let rig = Rig::new(SVA);
    for command in commands {
        for bit in (0..128).filter(|bit| !(60..64).contains(bit)) {
            rig.iommu.reset();
            rig.enable();
            let mut words = command.words();
            words[bit / 64] ^= 1 << (bit % 64);
            let changed = Command::decode(words);
            // Type is reserved without InvIotlbTypeSup.
            let kind = matches!(changed, Command::InvalidateIotlbPages(c) if c.kind() != 0);
            rig.submit(&[changed]);
            let illegal = changed.reserved_bits_set() != 0 || kind;
            assert_eq!(
                !rig.take_events().is_empty(),
                illegal,
                "{changed:?} bit {bit}"
            );
            assert_eq!(rig.status().cmd_buf_run(), !illegal);
        }
    }
}

#[test]
fn without_guest_translation_no_command_takes_a_pasid() {
    let rig = Rig::new("amd-iommu,device-iotlb=on,pprsup=on,prefsup=on");
    let commands: [Command; 4] = [
        invalidate(NIC, 1).with_gn(true).into(),
        InvalidateIommuPages::new().with_gn(true).into(),
        PrefetchIommuPages::new().with_gn(true).into(),
        amdvi_regs::command::CompletePprRequest::new()
            .with_gn(true)
            .into(),
    ];
    for command in commands {
        rig.iommu.reset();
        rig.enable();
        rig.submit(&[command]);
        assert!(!rig.status().cmd_buf_run(), "{command:?}");
    }
}

#[test]
fn a_prefetch_reads_nothing() {
    let rig = Rig::enabled(SVA);
    let prefetch = PrefetchIommuPages::new()
        .with_device_id(NIC.0)
        .with_pf_count(255);
    let tail = rig.queue(&[prefetch; 8]);
    let before = rig.memory.accesses();
    rig.write32(offset::COMMAND_TAIL, tail as u32);
    assert_eq!(rig.memory.accesses() - before, 16, "the commands alone");
    assert!(rig.take_events().is_empty());
}

/// A VMM with a thread for commands, and a device with one for its TLB.
struct Busy {
    wake: Mutex<std::sync::mpsc::Sender<()>>,
}

impl Host for Busy {
    fn deliver(&self, _: &Delivery) {}
    fn doorbell(&self, _: u32) {}
    fn commands_pending(&self) {
        let _ = self.wake.lock().unwrap().send(());
    }
    fn await_invalidations(&self, _: &InvalidationWait) -> bool {
        true
    }
}

#[test]
fn no_answer_is_lost_whenever_it_comes() {
    use std::sync::mpsc::{Sender, channel};
    struct Slow(Mutex<Sender<amdvi_device::InvalidationTicket>>);
    impl DeviceAts for Slow {
        fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
            let sent = self.0.lock().unwrap().send(invalidation.ticket);
            sent.map_or(InvalidationAnswer::Done, |()| InvalidationAnswer::Later)
        }
    }
    const ROUNDS: u64 = 500;
    let memory = Arc::new(TestMemory::new(RAM));
    let (wake, woken) = channel();
    let busy = Arc::new(Busy { wake: wake.into() });
    let rig = Rig {
        iommu: Iommu::new(&SVA.parse().unwrap(), memory.clone(), busy.clone()),
        memory,
        host: Arc::default(),
    };
    rig.enable();
    let (owe, owed) = channel();
    let nic = rig.nic();
    nic.set_ats(Arc::new(Slow(owe.into())));
    std::thread::scope(|scope| {
        let iommu = &rig.iommu;
        scope.spawn(move || {
            while woken.recv().is_ok() {
                while iommu.run_commands() {}
            }
        });
        scope.spawn(move || {
            for (n, ticket) in owed.iter().enumerate() {
                (0..n % 7).for_each(|_| std::thread::yield_now());
                iommu.invalidation_done(ticket);
            }
        });
        for n in 1..=ROUNDS {
            let depth = (n % 3) as u8;
            rig.submit(&[
                Command::from(invalidate(NIC, depth)),
                invalidate(NIC, depth).into(),
                completion_wait_store(STORE, n).into(),
            ]);
            while rig.memory.read(STORE) != n {
                std::thread::yield_now();
            }
        }
        // Both channels end, and with them the threads.
        drop(nic);
        *busy.wake.lock().unwrap() = channel().0;
    });
    assert!(rig.take_events().is_empty());
}
