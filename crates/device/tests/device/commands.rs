//! The command processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use amdvi_device::{Changes, Iommu, Observer, Signal};
use amdvi_dma::Access;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, CompletePprRequest, CompletionWait, InsertGuestEvent, InvalidateIommuPages,
    InvalidateIotlbPages, PrefetchIommuPages, ResetVmmio,
};
use amdvi_regs::mmio::offset;

use crate::rig::*;

const ILLEGAL: u64 = 5 << 60;
const HARDWARE: u64 = 6 << 60 | 1 << 57;

/// An observer that runs a function.
struct Call<F>(F);

impl<F: Fn(&Changes) + Send + Sync> Observer for Call<F> {
    fn changed(&self, changes: &Changes) {
        (self.0)(changes);
    }
}

fn observe(rig: &Rig, call: impl Fn(&Changes) + Send + Sync + 'static) {
    rig.iommu.add_observer(Arc::new(Call(call)));
}

fn head(rig: &Rig) -> u64 {
    rig.read(offset::COMMAND_HEAD)
}

#[test]
fn commands_run_when_the_tail_is_written_and_the_ring_wraps() {
    let rig = Rig::enabled("amd-iommu");
    for n in 0..1000u64 {
        rig.submit(&[completion_wait_store(STORE, n)]);
        assert_eq!(rig.memory.read(STORE), n);
        assert_eq!(head(&rig), (n + 1) % 256 * 16);
    }
    assert!(rig.take_events().is_empty());
}

#[test]
fn commands_queued_before_the_enables_run_when_both_are_set() {
    let rig = Rig::new("amd-iommu");
    rig.write(offset::COMMAND_BUFFER_BASE, COMMANDS | LEN_8);
    rig.submit(&[completion_wait_store(STORE, 7)]);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    assert_eq!((rig.memory.read(STORE), head(&rig)), (0, 0));
    rig.set_control(|c| c.with_iommu_en(true));
    assert_eq!((rig.memory.read(STORE), head(&rig)), (7, 16));
}

#[test]
fn a_stopped_and_restarted_command_buffer_continues_at_its_head() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.submit(&[completion_wait_store(STORE, 9)]);
    assert_eq!(head(&rig), 16);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    assert_eq!((rig.memory.read(STORE), head(&rig)), (9, 32));
}

#[test]
fn one_call_runs_a_bounded_number_of_commands_and_says_that_more_remain() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write(offset::COMMAND_BUFFER_BASE, 0x8_0000 | 15 << 56);
    let wait = [completion_wait_store(STORE, 1)];
    for n in 0..3000u64 {
        rig.memory
            .write_all(0x8_0000 + 16 * n, &Command::from(wait[0]).words());
    }
    rig.set_control(|c| c.with_cmd_buf_en(true));
    let before = rig.memory.accesses();
    rig.write32(offset::COMMAND_TAIL, 3000 * 16);
    let per_call = u64::from(Iommu::COMMANDS_PER_CALL);
    assert_eq!(head(&rig), per_call * 16);
    assert_eq!(
        rig.memory.accesses() - before,
        3 * per_call,
        "two loads and a store each"
    );
    assert_eq!(rig.host.pending_calls(), 1);
    assert!(rig.iommu.run_commands());
    assert_eq!(head(&rig), 2 * per_call * 16);
    assert!(!rig.iommu.run_commands());
    assert_eq!(head(&rig), 3000 * 16);
    assert!(!rig.iommu.run_commands());
    assert_eq!(
        rig.host.pending_calls(),
        1,
        "run_commands tells its caller instead"
    );
}

#[test]
fn every_reserved_bit_makes_a_command_illegal() {
    let commands: [Command; 5] = [
        completion_wait_store(STORE, 1).into(),
        invalidate_dte(NIC).into(),
        InvalidateIommuPages::new()
            .with_domain_id(3)
            .with_s(true)
            .into(),
        invalidate_irt(NIC).into(),
        invalidate_all().into(),
    ];
    let rig = Rig::new("amd-iommu");
    for command in commands {
        for bit in (0..128).filter(|bit| !(60..64).contains(bit)) {
            rig.iommu.reset();
            rig.enable();
            let mut words = command.words();
            words[bit / 64] ^= 1 << (bit % 64);
            let changed = Command::decode(words);
            let gn = matches!(changed, Command::InvalidateIommuPages(c) if c.gn());
            let store =
                matches!(changed, Command::CompletionWait(c) if c.store_address_8() << 3 >= RAM);
            rig.submit(&[changed]);
            if changed.reserved_bits_set() != 0 || gn {
                assert_eq!(
                    rig.take_event_words(),
                    [ILLEGAL, COMMANDS],
                    "{changed:?} bit {bit}"
                );
                assert!(!rig.status().cmd_buf_run());
                assert_eq!(head(&rig), 0);
            } else if store {
                assert_eq!(
                    rig.take_event_words(),
                    [HARDWARE, COMMANDS],
                    "{changed:?} bit {bit}"
                );
            } else {
                assert!(rig.take_events().is_empty(), "{changed:?} bit {bit}");
                assert_eq!(head(&rig), 16);
            }
        }
    }
}

#[test]
fn commands_that_are_not_offered_are_illegal() {
    let unoffered: [Command; 5] = [
        InvalidateIotlbPages::new().with_device_id(NIC.0).into(),
        PrefetchIommuPages::new().with_device_id(NIC.0).into(),
        CompletePprRequest::new().with_device_id(NIC.0).into(),
        InsertGuestEvent::new().into(),
        ResetVmmio::new().into(),
    ];
    let unknown = [0, 0xb, 0xc, 0xd, 0xe, 0xf].map(|op: u64| Command::decode([op << 60, 0]));
    for command in unoffered.into_iter().chain(unknown) {
        let rig = Rig::enabled(ALL_FEATURES);
        rig.submit(&[command]);
        assert_eq!(rig.take_event_words(), [ILLEGAL, COMMANDS], "{command:?}");
        assert!(!rig.status().cmd_buf_run());
    }
    let rig = Rig::enabled("amd-iommu,ia=off");
    rig.submit(&[invalidate_all()]);
    assert_eq!(rig.take_event_words(), [ILLEGAL, COMMANDS]);
}

#[test]
fn an_illegal_command_halts_until_cmd_buf_en_goes_from_0_to_1() {
    let rig = Rig::enabled("amd-iommu");
    rig.submit(&[
        Command::from(completion_wait_store(STORE, 1)),
        Command::decode([0, 0]),
        Command::from(completion_wait_store(STORE, 2)),
    ]);
    assert_eq!((rig.memory.read(STORE), head(&rig)), (1, 16));
    assert_eq!(
        rig.take_event_words(),
        [ILLEGAL, COMMANDS + 16],
        "its guest physical address"
    );
    // Nothing but the enable bit starts it again, and the base is writable meanwhile.
    rig.submit(&[completion_wait_store(STORE, 3)]);
    rig.set_control(|c| c);
    rig.set_control(|c| c.with_iommu_en(false));
    rig.set_control(|c| c.with_iommu_en(true));
    assert!(!rig.iommu.run_commands());
    assert_eq!((rig.memory.read(STORE), head(&rig)), (1, 16));
    assert!(!rig.status().cmd_buf_run() && rig.take_events().is_empty());
    // Linux empties the ring and starts over.
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write32(offset::COMMAND_HEAD, 0);
    rig.write32(offset::COMMAND_TAIL, 0);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    rig.completion_wait();
}

#[test]
fn an_unreadable_command_buffer_is_a_hardware_error_and_halts() {
    let rig = Rig::enabled("amd-iommu");
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write(offset::COMMAND_BUFFER_BASE, NOWHERE | LEN_8);
    rig.set_control(|c| c.with_cmd_buf_en(true));
    rig.write32(offset::COMMAND_TAIL, 0x40);
    assert_eq!(rig.take_event_words(), [HARDWARE, NOWHERE]);
    assert!(!rig.status().cmd_buf_run());
    assert_eq!(head(&rig), 0);
}

#[test]
fn com_wait_int_is_set_whatever_its_enable_says() {
    let rig = Rig::enabled("amd-iommu");
    rig.submit(&[CompletionWait::new()
        .with_s(false)
        .with_i(true)
        .with_f(true)]);
    assert!(rig.status().com_wait_int());
    assert_eq!(rig.memory.read(0), 0, "no store without s");
}

#[test]
fn observers_hear_once_per_completion_wait_and_before_its_store() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    rig.memory.write(STORE, 0);
    let stores = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (memory, seen) = (rig.memory.clone(), stores.clone());
    observe(&rig, move |_| seen.lock().unwrap().push(memory.read(STORE)));
    let observer = rig.observer();
    let other = DeviceId(0x10);
    let tail = rig.queue::<Command>(&[
        invalidate_irt(NIC).into(),
        invalidate_dte(other).into(),
        invalidate_irt(NIC).into(),
        completion_wait_store(STORE, 1).into(),
        completion_wait_store(STORE, 2).into(),
        invalidate_irt(other).into(),
        completion_wait_store(STORE, 3).into(),
        invalidate_all().into(),
        invalidate_irt(NIC).into(),
        completion_wait_store(STORE, 4).into(),
    ]);
    rig.write32(offset::COMMAND_TAIL, tail as u32);
    assert_eq!(
        observer.take(),
        [
            Changes::Devices(vec![other, NIC]),
            Changes::Devices(vec![other]),
            Changes::All
        ]
    );
    assert_eq!(*stores.lock().unwrap(), [0, 2, 3]);
    assert_eq!(rig.memory.read(STORE), 4);
}

#[test]
fn a_long_list_of_changes_becomes_all() {
    for (devices, all) in [
        (Changes::MAX_DEVICES, false),
        (Changes::MAX_DEVICES + 1, true),
    ] {
        let rig = Rig::enabled("amd-iommu");
        rig.completion_wait();
        let observer = rig.observer();
        let list: Vec<_> = (0..devices as u16)
            .rev()
            .map(|n| invalidate_irt(DeviceId(n)))
            .collect();
        rig.submit(&list);
        assert!(observer.take().is_empty(), "not before COMPLETION_WAIT");
        rig.completion_wait();
        let changes = observer.take();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0] == Changes::All, all);
        assert!(changes[0].touches(DeviceId(5)));
    }
}

#[test]
fn register_writes_that_change_all_tables_are_announced_at_once() {
    let rig = Rig::enabled("amd-iommu");
    let observer = rig.observer();
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0xff);
    assert_eq!(observer.take(), [Changes::All]);
    rig.set_control(|c| c.with_ga_en(true));
    assert_eq!(observer.take(), [Changes::All]);
    rig.set_control(|c| c.with_event_int_en(true).with_cmd_buf_en(false));
    rig.write32(offset::STATUS, 0xff);
    assert!(observer.take().is_empty());
    rig.iommu.reset();
    assert_eq!(observer.take(), [Changes::All]);
}

#[test]
fn a_completion_wait_that_overtakes_such_an_announcement_makes_it_too() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    rig.submit(&[invalidate_irt(NIC)]);
    let observer = rig.observer();
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0xff);
    assert_eq!(observer.take(), [Changes::All]);
    rig.completion_wait();
    assert_eq!(observer.take(), [Changes::All]);
    rig.completion_wait();
    assert!(observer.take().is_empty());
}

#[test]
fn a_tail_written_while_commands_run_only_moves_the_tail() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    let depth = Arc::new(AtomicU64::new(0));
    let calls = Arc::new(AtomicU64::new(0));
    let iommu = Arc::downgrade(&rig.iommu);
    let (memory, count) = (rig.memory.clone(), calls.clone());
    observe(&rig, move |changes| {
        if *changes == Changes::All {
            return;
        }
        assert_eq!(depth.fetch_add(1, Ordering::SeqCst), 0, "never recursive");
        let iommu = iommu.upgrade().unwrap();
        let mut tail = [0; 4];
        iommu.mmio_read(offset::COMMAND_TAIL, &mut tail);
        let mut tail = u64::from(u32::from_le_bytes(tail));
        if count.fetch_add(1, Ordering::SeqCst) < 20 {
            for command in [
                Command::from(invalidate_irt(NIC)),
                completion_wait_store(STORE, 1).into(),
            ] {
                memory.write_all(COMMANDS + tail, &command.words());
                tail += 16;
            }
            iommu.mmio_write(offset::COMMAND_TAIL, &(tail as u32).to_le_bytes());
            assert!(!iommu.run_commands(), "somebody runs them already");
        }
        depth.fetch_sub(1, Ordering::SeqCst);
    });
    rig.submit(&[
        Command::from(invalidate_irt(NIC)),
        completion_wait_store(STORE, 1).into(),
    ]);
    assert_eq!(calls.load(Ordering::SeqCst), 21);
    assert_eq!(head(&rig), 16 + 21 * 32);
}

#[test]
fn a_reset_during_completion_wait_drops_the_command() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    rig.memory.write(STORE, 0);
    let iommu = Arc::downgrade(&rig.iommu);
    observe(&rig, move |changes| {
        if *changes != Changes::All {
            iommu.upgrade().unwrap().reset();
        }
    });
    rig.submit(&[
        Command::from(invalidate_irt(NIC)),
        completion_wait_store(STORE, 1).with_i(true).into(),
    ]);
    assert_eq!(rig.memory.read(STORE), 0);
    assert_eq!((head(&rig), rig.read(offset::COMMAND_TAIL)), (0, 0));
    assert!(!rig.status().com_wait_int());
    // The device works afterwards.
    let again = Rig {
        iommu: rig.iommu.clone(),
        memory: rig.memory.clone(),
        host: rig.host.clone(),
    };
    again.write(offset::COMMAND_BUFFER_BASE, COMMANDS | LEN_8);
    again.set_control(|c| c.with_iommu_en(true).with_cmd_buf_en(true));
    again.completion_wait();
}

#[test]
fn a_ring_restarted_during_completion_wait_is_not_advanced_by_the_old_command() {
    let rig = Rig::enabled("amd-iommu");
    rig.completion_wait();
    rig.memory.write(STORE, 0);
    let iommu = Arc::downgrade(&rig.iommu);
    observe(&rig, move |changes| {
        if *changes == Changes::All {
            return;
        }
        let iommu = iommu.upgrade().unwrap();
        let control = iommu.control();
        let write = |control: amdvi_regs::mmio::Control| {
            iommu.mmio_write(offset::CONTROL, &control.into_bits().to_le_bytes());
        };
        write(control.with_cmd_buf_en(false));
        iommu.mmio_write(
            offset::COMMAND_BUFFER_BASE,
            &(0x9_0000u64 | LEN_8).to_le_bytes(),
        );
        write(control.with_cmd_buf_en(true));
    });
    rig.submit(&[
        Command::from(invalidate_irt(NIC)),
        completion_wait_store(STORE, 1).into(),
    ]);
    assert_eq!((head(&rig), rig.read(offset::COMMAND_TAIL)), (0, 0));
    assert_eq!(rig.memory.read(STORE), 0);
}

#[test]
fn completion_wait_waits_for_dma_in_flight() {
    let rig = Rig::enabled("amd-iommu");
    let mut nic = rig.nic();
    let tail = rig.queue::<Command>(&[
        InvalidateIommuPages::new()
            .with_domain_id(3)
            .with_s(true)
            .into(),
        completion_wait_store(STORE, 1).into(),
    ]);
    let mapped = nic.translate(0x5000, 4, Access::Write).unwrap();
    std::thread::scope(|scope| {
        let iommu = &rig.iommu;
        let vcpu = scope.spawn(move || {
            iommu.mmio_write(offset::COMMAND_TAIL, &(tail as u32).to_le_bytes());
        });
        // The first command has run; the second can't complete.
        while rig.read(offset::COMMAND_HEAD) != 16 {
            std::thread::yield_now();
        }
        for _ in 0..1000 {
            std::thread::yield_now();
            assert_eq!(rig.memory.read(STORE), 0);
        }
        assert!(!vcpu.is_finished());
        drop(mapped);
        vcpu.join().unwrap();
    });
    assert_eq!(rig.memory.read(STORE), 1);
}

#[test]
fn faults_are_logged_while_completion_wait_drains() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut nic = rig.nic();
        let stop = &stop;
        scope.spawn(move || {
            while stop.load(Ordering::Relaxed) == 0 {
                assert!(matches!(nic.signal(msi(0)), Signal::Blocked(_)));
            }
        });
        for n in 0..500 {
            rig.submit(&[
                Command::from(invalidate_irt(NIC)),
                completion_wait_store(STORE, n).into(),
            ]);
            while rig.memory.read(STORE) != n {
                std::thread::yield_now();
            }
        }
        stop.store(1, Ordering::Relaxed);
    });
}

#[test]
fn several_threads_that_run_commands_run_each_once_and_in_order() {
    let rig = Rig::enabled("amd-iommu");
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (iommu, stop) = (&rig.iommu, &stop);
            scope.spawn(move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    iommu.run_commands();
                    std::thread::yield_now();
                }
            });
        }
        for round in 1..=200u64 {
            // Illegal if anything is run twice: the slot behind the head is wiped.
            for n in 0..4 {
                rig.submit(&[
                    Command::from(invalidate_irt(NIC)),
                    completion_wait_store(STORE + 8 * n, round).into(),
                ]);
            }
            let tail = rig.read(offset::COMMAND_TAIL);
            while head(&rig) != tail {
                assert!(rig.status().cmd_buf_run());
                std::thread::yield_now();
            }
            for n in 0..4 {
                assert_eq!(rig.memory.read(STORE + 8 * n), round);
            }
            for n in 0..256 {
                rig.memory.write(COMMANDS + 16 * n, 0);
            }
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert!(rig.take_events().is_empty());
}
