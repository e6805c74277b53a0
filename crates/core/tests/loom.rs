//! Model-checks the in-flight protocol over every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p amdvi-core --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Requester, Slot, View};
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

const OLD: u64 = 1;
const NEW: u64 = 2;

/// A requester with a one-entry cache of a word of guest memory, against an invalidator that
/// rewrites the word, invalidates, and then (with `drain`) waits for what is in flight. Once the
/// invalidator has set `done`, a use of the old word is a bug.
fn model(barrier: Barrier, invalidate: fn(&Fabric, &Slot), drain: bool) {
    let mut builder = loom::model::Builder::new();
    if barrier != Barrier::Portable {
        // The model of membarrier waits, which has no end of interleavings.
        builder.preemption_bound = Some(3);
    }
    builder.check(move || {
        let view = View::new(ExtendedFeature::new(), ExtendedFeature2::new());
        let fabric = Arc::new(Fabric::new(view, barrier));
        let mut requester = Requester::new(fabric.clone(), DeviceId(8));
        let slot = requester.slot().clone();
        let word = Arc::new(AtomicU64::new(OLD));
        let done = Arc::new(AtomicU64::new(0));

        let mut cache = (requester.enter().generation(), OLD);
        let user = {
            let (word, done) = (word.clone(), done.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let guard = requester.enter();
                    let generation = guard.generation();
                    if generation != cache.0 {
                        cache = (generation, word.load(Ordering::Acquire));
                    }
                    let complete = done.load(Ordering::Acquire) == 1;
                    assert!(!complete || cache.1 == NEW, "stale use");
                    drop(guard);
                }
                amdvi_core::modelled::thread_ends();
            })
        };

        word.store(NEW, Ordering::Release);
        invalidate(&fabric, &slot);
        if drain {
            fabric.drain([&slot], thread::yield_now);
        }
        done.store(1, Ordering::Release);
        user.join().unwrap();
    });
}

#[test]
fn after_invalidating_one_requester_and_draining_nothing_stale_is_used() {
    model(Barrier::Portable, |_, slot| slot.invalidate(), true);
}

#[test]
fn after_invalidating_all_and_draining_nothing_stale_is_used() {
    model(Barrier::Portable, |fabric, _| fabric.invalidate_all(), true);
}

#[test]
fn a_changed_device_id_invalidates_too() {
    model(
        Barrier::Portable,
        |_, slot| slot.set_device_id(DeviceId(9)),
        true,
    );
}

/// The model has teeth: leave out the drain and it finds the stale use.
#[test]
#[should_panic(expected = "stale use")]
fn without_the_drain_a_stale_use_is_found() {
    model(Barrier::Portable, |_, slot| slot.invalidate(), false);
}

#[test]
fn membarrier_on_the_invalidating_side_is_enough() {
    model(Barrier::Modelled, |_, slot| slot.invalidate(), true);
    model(Barrier::Modelled, |fabric, _| fabric.invalidate_all(), true);
}

/// Without it the in-flight store may stay behind the load of the generation.
#[test]
#[should_panic(expected = "stale use")]
fn without_membarrier_a_stale_use_is_found() {
    model(Barrier::Forgotten, |_, slot| slot.invalidate(), true);
}

/// Nor does the model of membarrier forgive a missing drain.
#[test]
#[should_panic(expected = "stale use")]
fn membarrier_without_waiting_is_not_enough() {
    model(Barrier::Modelled, |_, slot| slot.invalidate(), false);
}
