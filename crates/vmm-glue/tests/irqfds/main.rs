//! Irqfds under a guest that rewrites its tables: no interrupt by an old route, none lost, and few tables.

mod model;
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use amdvi_vmm_glue::endpoint::RemappedSource;
use amdvi_vmm_glue::kvm::{FunctionIrqfds, KvmMessage};
use amdvi_vmm_glue::remap::RemapSource;
use rig::{HOT, Kvm, Machine, Outcome, message, target};

#[test]
fn a_vector_has_a_route_once_it_is_used_and_all_that_were_used_get_theirs_at_once() {
    let m = Machine::new(2048);
    for vector in 0..2047 {
        assert_eq!(m.fire(vector), Outcome::Delivered(target(vector)));
    }
    assert_eq!((m.kvm.tables(), m.routed()), (0, 0));
    for _ in 1..HOT {
        assert_eq!(m.fire(7), Outcome::Delivered(target(7)));
    }
    assert_eq!((m.kvm.tables(), m.routed()), (1, 2047));
    assert_eq!(m.function.route(2047), None, "it was never used");
    let by_irqfd = m.irqfds.counters().by_irqfd;
    assert_eq!(m.fire(5), Outcome::Delivered(target(5)));
    assert_eq!(m.irqfds.counters().by_irqfd, by_irqfd + 1);
    assert_eq!(m.irqfds.take_errors().count, 0);
}

#[test]
fn retargeting_all_2048_with_one_wait_is_one_table() {
    let m = Machine::hot(2048);
    for vector in 0..2048 {
        m.write(vector, Some(vector + 1));
    }
    m.invalidate();
    m.wait();
    assert_eq!((m.kvm.tables(), m.routed()), (2, 2048));
    for vector in 0..2048 {
        assert_eq!(m.fire(vector), Outcome::Delivered(target(vector + 1)));
    }
    let counters = m.irqfds.counters();
    assert_eq!((counters.commits, counters.promotions), (2, 1));
    assert_eq!((counters.rederived, counters.unchanged), (2048, 0));
}

#[test]
fn retargeting_all_2048_with_a_wait_for_each_is_hardly_a_table() {
    let m = Machine::hot(2048);
    for vector in 0..2048 {
        m.write(vector, Some(vector + 1));
        m.invalidate();
        m.wait();
        assert_eq!(m.fire(vector), Outcome::Delivered(target(vector + 1)));
    }
    assert_eq!(m.kvm.tables(), 1, "each goes through the VMM for now");
    for _ in 1..HOT {
        m.fire(0);
    }
    assert_eq!((m.kvm.tables(), m.routed()), (2, 2048));
    let counters = m.irqfds.counters();
    assert_eq!(counters.taken_back, 2048);
    assert!(counters.commits <= counters.notifications);
}

#[test]
fn an_invalidation_that_changes_no_target_costs_kvm_nothing() {
    let m = Machine::hot(300);
    let before = m.irqfds.counters();
    for round in 0..10 {
        // The same entries again, and entries that no vector uses.
        for vector in 0..300 {
            m.write(vector, Some(vector));
        }
        m.write(1000, Some(round));
        m.invalidate();
        m.wait();
        m.wait();
    }
    m.invalidate_other();
    m.wait();
    let counters = m.irqfds.counters();
    assert_eq!((m.kvm.tables(), m.routed()), (1, 300));
    assert_eq!(counters.commits, before.commits);
    assert_eq!(counters.notifications - before.notifications, 10);
    assert_eq!(counters.commits_avoided - before.commits_avoided, 10);
    assert_eq!(counters.unchanged, 3000);
}

#[test]
fn what_becomes_blocked_is_logged_and_not_delivered_by_the_old_route() {
    let m = Machine::hot(100);
    m.write(3, None);
    m.invalidate();
    m.wait();
    let events = m.events();
    for n in 1..=2 * u64::from(HOT) {
        assert_eq!(m.fire(3), Outcome::Blocked);
        assert_eq!(m.events(), events + n, "each is logged");
    }
    assert_eq!((m.kvm.tables(), m.function.route(3)), (1, None));
    // And the way back.
    m.write(3, Some(9));
    m.invalidate();
    m.wait();
    for _ in 0..2 * HOT {
        assert_eq!(m.fire(3), Outcome::Delivered(target(9)));
    }
    assert_eq!((m.kvm.tables(), m.function.route(3)), (2, Some(target(9))));
}

#[test]
fn a_disabled_iommu_sends_what_the_message_says() {
    let m = Machine::hot(100);
    m.enable(false);
    let raw = amdvi_irt::Delivery::from_msi(message(65));
    assert_eq!(m.fire(65), Outcome::Delivered(raw));
    m.enable(true);
    assert_eq!(m.fire(65), Outcome::Delivered(target(65)));
}

#[test]
fn while_a_counter_counts_interrupts_none_goes_past_the_iommu() {
    let m = Machine::hot(100);
    m.count_interrupts(true);
    assert_eq!(m.routed(), 0);
    for _ in 0..2 * HOT {
        m.fire(1);
    }
    assert_eq!(m.counted(), 2 * u64::from(HOT));
    m.count_interrupts(false);
    for _ in 0..2 * HOT {
        m.fire(1);
    }
    assert!(m.function.route(1).is_some());
    assert_eq!(m.counted(), 2 * u64::from(HOT));
}

#[test]
fn a_new_message_of_a_vector_does_not_go_by_the_route_of_the_old_one() {
    let m = Machine::hot(100);
    m.program(4, 50);
    assert_eq!(m.fire(4), Outcome::Delivered(target(50)));
    assert_eq!((m.kvm.tables(), m.function.route(4)), (1, None));
}

#[test]
fn a_function_that_goes_gives_everything_back() {
    let mut m = Machine::hot(100);
    let other = m.another_function(0);
    assert_eq!(m.kvm.assigned(), 100);
    m.drop_function();
    assert_eq!(m.kvm.assigned(), 0);
    assert!(m.table.lock().unwrap().entries().is_empty());
    assert_eq!(m.table.lock().unwrap().allocate(), Some(24));
    drop(other);
}

#[test]
fn when_kvm_refuses_the_table_interrupts_go_through_the_vmm() {
    let m = Machine::hot(100);
    m.kvm.refuse_tables(true);
    for vector in 0..100 {
        m.write(vector, Some(vector + 1));
    }
    m.invalidate();
    m.wait();
    assert_eq!(m.routed(), 0);
    let errors = m.irqfds.take_errors();
    assert_eq!(errors.count, 1);
    let last = errors.last.unwrap();
    assert!(last.contains("KVM_SET_GSI_ROUTING"), "{last}");
    for vector in 0..100 {
        assert_eq!(m.fire(vector), Outcome::Delivered(target(vector + 1)));
    }
    m.kvm.refuse_tables(false);
    for _ in 0..HOT {
        m.fire(0);
    }
    assert_eq!((m.kvm.tables(), m.routed()), (2, 100));
}

#[test]
fn with_no_gsi_left_the_others_keep_theirs() {
    let m = Machine::hot(2048);
    let more = [m.another_function(0), m.another_function(0)];
    for function in &more {
        m.invalidate();
        m.wait();
        for vector in 0..2048 {
            m.fire_through(function, vector, message(vector));
        }
        for _ in 0..HOT {
            m.fire_through(function, 0, message(0));
        }
    }
    // 24 pins, 4072 vectors.
    assert_eq!(m.kvm.assigned(), 4072);
    assert_eq!(
        m.fire_through(&more[1], 2047, message(2047)),
        Outcome::Delivered(target(2047))
    );
    let errors = m.irqfds.take_errors();
    assert_eq!(errors.last.as_deref(), Some("irqfd: KVM has no GSI left"));
}

/// A device that the VMM does not see writes the eventfd.
#[test]
fn a_producer_outside_reaches_the_target_with_and_without_a_route() {
    let m = Machine::new(4);
    let (vector, event) = (2, m.function.producer(2).unwrap());
    m.function.set_message(vector, Some(message(2)));
    let send = |expected: Option<u16>| {
        event.write(1).unwrap();
        m.kvm.pump();
        m.function.service(vector);
        let sent = m.kvm.take_sent();
        let expected = expected.map(|of| KvmMessage::encode(&target(of), m.format()).unwrap());
        assert_eq!(sent, Vec::from_iter(expected));
    };
    for _ in 0..2 * HOT {
        send(Some(2));
    }
    assert_eq!((m.kvm.tables(), m.routed()), (1, 1));

    m.write(2, Some(8));
    m.invalidate();
    m.wait();
    send(Some(8));
    m.write(2, None);
    m.invalidate();
    m.wait();
    let events = m.events();
    send(None);
    assert_eq!(m.events(), events + 1);
}

#[test]
fn a_masked_vector_of_a_producer_outside_keeps_its_interrupt_and_sends_it_once() {
    let m = Machine::new(4);
    let event = m.function.producer(2).unwrap();
    let mask = |masked: bool| {
        let msi = (!masked).then(|| message(2));
        m.function.set_message(2, msi);
    };
    let received = || {
        m.kvm.pump();
        m.function.service(2);
        m.kvm.take_sent().len()
    };
    event.write(1).unwrap();
    assert_eq!(received(), 0, "nothing is programmed");
    mask(false);
    assert_eq!(received(), 1);
    for _ in 0..HOT {
        event.write(1).unwrap();
        assert_eq!(received(), 1);
    }
    assert!(m.function.route(2).is_some());
    for _ in 0..3 {
        mask(true);
        assert_eq!(
            received(),
            0,
            "what was delivered by the route is not sent again"
        );
        event.write(1).unwrap();
        event.write(1).unwrap();
        assert_eq!(received(), 0);
        mask(false);
        assert_eq!(received(), 1);
        for _ in 0..HOT {
            event.write(1).unwrap();
            assert_eq!(received(), 1);
        }
        assert!(m.function.route(2).is_some());
    }
}

/// KVM takes what is in an eventfd when it gets it, and leaves it there.
#[test]
fn what_was_written_just_before_kvm_got_the_eventfd_is_one_interrupt() {
    let m = Machine::new(4);
    let [early, hot] = [2, 3].map(|vector| {
        m.function.set_message(vector, Some(message(vector)));
        m.function.producer(vector).unwrap()
    });
    early.write(1).unwrap();
    m.function.service(2);
    early.write(1).unwrap();
    for _ in 0..HOT {
        hot.write(1).unwrap();
        m.function.service(3);
    }
    assert_eq!(m.routed(), 2);
    let of_2 = KvmMessage::encode(&target(2), m.format()).unwrap();
    let sent = m.kvm.take_sent();
    assert_eq!(sent.iter().filter(|sent| **sent == of_2).count(), 2);
    m.function.set_message(2, None);
    m.function.set_message(2, Some(message(2)));
    assert_eq!(m.kvm.take_sent(), []);
}

#[test]
fn once_settled_nothing_is_on_its_way_and_vectors_keep_their_routes() {
    let m = Machine::hot(4);
    let (tables, outside) = (m.kvm.tables(), m.function.producer(3).unwrap());
    m.kvm.take_sent();
    m.kvm.defer();
    let trigger = |vector| m.function.trigger(vector, message(vector), |_| ());
    let arrived = || -> Vec<_> {
        let mut vectors: Vec<_> = m
            .kvm
            .take_sent()
            .iter()
            .map(|sent| sent.data & 0xff)
            .collect();
        vectors.sort_unstable();
        vectors
    };
    let of = |n: u16| u32::from(target(n).vector);
    trigger(0).unwrap();
    trigger(2).unwrap();
    outside.write(1).unwrap();
    m.kvm.pump();
    assert_eq!(arrived(), [0; 0], "what was signalled is on its way");
    m.irqfds.settle();
    assert_eq!(arrived(), [of(0), of(2), of(3)]);
    // Once, and as before.
    m.irqfds.settle();
    assert_eq!(arrived(), [0; 0]);
    assert_eq!(
        (m.routed(), m.kvm.assigned(), m.kvm.tables()),
        (4, 4, tables)
    );
    trigger(1).unwrap();
    m.irqfds.settle();
    assert_eq!((arrived(), m.kvm.lost()), (vec![of(1)], 0));
    assert_eq!(m.irqfds.take_errors().count, 0);
}

#[test]
fn one_table_serves_the_vectors_and_the_pins_of_an_ioapic() {
    let m = Machine::hot(100);
    for vector in 0..100 {
        m.write(vector, Some(vector + 1));
    }
    // As an IOAPIC does: its pin's route changes for the same reason.
    let others = || {
        let mut table = m.table.lock().unwrap();
        table.set(9, Some(&target(77))).unwrap();
        table.commit(&*m.kvm).unwrap();
    };
    m.irqfds.tables_changed(0, |_| true, others);
    assert_eq!((m.kvm.tables(), m.routed()), (2, 100));
    assert_eq!(m.fire(3), Outcome::Delivered(target(4)));
    // What another IOMMU's guest driver invalidates is not ours.
    let notifications = m.irqfds.counters().notifications;
    m.irqfds.tables_changed(1, |_| true, || ());
    assert_eq!(m.irqfds.counters().notifications, notifications);
}

/// Threads fire while this one retargets what they fire: what they begin after a COMPLETION_WAIT is
/// complete never goes to an older target, and nothing waits for ever.
#[test]
fn no_thread_sends_to_an_old_target_after_completion_wait() {
    const VECTORS: u16 = 48;
    const ROUNDS: u16 = 400;
    let m = Machine::hot(VECTORS);
    (0..VECTORS).for_each(|vector| m.write(vector, Some(0)));
    m.invalidate();
    m.wait();
    let (completed, stop) = (AtomicU16::new(0), AtomicBool::new(false));
    let fire = |first: u16, function: &FunctionIrqfds<Arc<Kvm>>, source: &RemappedSource| {
        for (fired, vector) in (first..VECTORS).step_by(2).cycle().enumerate() {
            if stop.load(Ordering::Acquire) {
                return fired;
            }
            let floor = completed.load(Ordering::Acquire);
            let msi = message(vector);
            let delivery = function
                .trigger(vector, msi, |_| ())
                .or_else(|| source.request(msi));
            let delivery = delivery.expect("no entry is ever blocked");
            let round = (delivery.dest - 250) * 200 + u32::from(delivery.vector - 0x20);
            assert!(round >= u32::from(floor), "round {round} after {floor}");
        }
        unreachable!("the vectors are repeated for ever")
    };
    let sources = [m.another_source(), m.another_source()];
    let function = &m.function;
    std::thread::scope(|scope| {
        let fire = &fire;
        let threads = [0, 1].map(|n| {
            let source = &sources[usize::from(n)];
            scope.spawn(move || fire(n, function, source))
        });
        for round in 1..=ROUNDS {
            // All at once, with a new table; or few at a time, which are taken back.
            let group = if round % 8 == 0 { VECTORS } else { 12 };
            for first in (0..VECTORS).step_by(group.into()) {
                (first..first + group).for_each(|vector| m.write(vector, Some(round)));
                m.invalidate();
                m.wait();
            }
            completed.store(round, Ordering::Release);
        }
        stop.store(true, Ordering::Release);
        for thread in threads {
            assert!(thread.join().unwrap() > 0);
        }
    });
    let counters = m.irqfds.counters();
    assert!(counters.commits <= counters.notifications);
    assert!(counters.by_irqfd > 0 && counters.by_userspace > 0);
    assert_eq!(m.irqfds.take_errors().count, 0);
}
