//! Model-checks the caches against invalidations over every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p amdvi-dma --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Invalidation, View};
use amdvi_dma::{Access, Iotlb, Mapper};
use amdvi_regs::command::InvalidationRange;
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

const ROOT: u64 = 0x2000;
const OLD: u64 = 0x5000;
const NEW: u64 = 0x6000;
const DOMAIN: u16 = 7;
const PRESENT: u64 = 1 | 3 << 61;

/// A constant DTE with a table of one level, and one entry that changes.
struct Memory {
    entry: AtomicU64,
}

impl PhysMemory for Memory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        match gpa {
            0x1000 => Ok(3 | 1 << 9 | ROOT | 3 << 61),
            0x1008 => Ok(DOMAIN.into()),
            ROOT => Ok(self.entry.load(Ordering::Acquire)),
            _ => Err(MemoryError { gpa }),
        }
    }
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }
    fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }
    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Err(MemoryError { gpa })
    }
}

fn page() -> Invalidation {
    Invalidation {
        range: InvalidationRange::decode(0, false),
        ..Invalidation::domain(DOMAIN)
    }
}

/// How a model is set up.
#[derive(Clone, Copy)]
struct Plan {
    /// Handles, each on a thread of its own, and how many accesses each makes.
    handles: &'static [usize],
    /// The first handle has used the translation before.
    primed: bool,
    invalidate: fn(&Fabric),
    drain: bool,
}

/// Handles that access page 0, against an invalidator that maps it elsewhere, invalidates and drains.
/// Once the invalidator has set `done`, a use of the old page is a bug.
fn model(plan: Plan) {
    let mut builder = loom::model::Builder::new();
    // Enough to find every bug that was put in on purpose; without a bound it takes days.
    builder.preemption_bound = Some(if plan.handles.len() > 1 { 2 } else { 3 });
    builder.check(move || {
        let view = View::new(ExtendedFeature::new().with_hats(2), ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(1));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        let iotlb = Arc::new(Iotlb::new(1));
        let memory = Arc::new(Memory {
            entry: AtomicU64::new(PRESENT | OLD),
        });
        let done = Arc::new(AtomicU64::new(0));
        let mut mappers: Vec<_> = plan
            .handles
            .iter()
            .map(|_| Mapper::new(fabric.clone(), iotlb.clone(), DeviceId(0), 16, 64))
            .collect();
        let slots: Vec<_> = mappers.iter().map(|mapper| mapper.slot().clone()).collect();
        if plan.primed {
            let mapped = mappers[0].translate(&*memory, 0, 1, Access::Write);
            assert_eq!(mapped.map(|mapped| mapped.gpa).ok(), Some(OLD));
        }
        let users: Vec<_> = mappers
            .into_iter()
            .zip(plan.handles)
            .map(|(mut mapper, accesses)| {
                let (memory, done) = (memory.clone(), done.clone());
                thread::spawn(move || {
                    for _ in 0..*accesses {
                        let mapped = mapper.translate(&*memory, 0, 1, Access::Write);
                        let mapped = mapped.expect("the page is mapped at any time");
                        let complete = done.load(Ordering::Acquire) == 1;
                        assert!(!complete || mapped.gpa == NEW, "stale use");
                    }
                })
            })
            .collect();
        memory.entry.store(PRESENT | NEW, Ordering::Release);
        (plan.invalidate)(&fabric);
        if plan.drain {
            fabric.drain(&slots, thread::yield_now);
        }
        done.store(1, Ordering::Release);
        for user in users {
            user.join().unwrap();
        }
    });
}

#[test]
fn after_a_page_invalidation_and_a_drain_a_handle_uses_nothing_stale() {
    model(Plan {
        handles: &[2],
        primed: true,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: true,
    });
}

#[test]
fn what_one_handle_leaves_in_the_iotlb_is_not_stale_for_another() {
    model(Plan {
        handles: &[1, 1],
        primed: true,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: true,
    });
}

#[test]
fn a_fill_that_races_with_an_invalidation_is_not_used_after_it() {
    model(Plan {
        handles: &[1, 1],
        primed: false,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: true,
    });
}

#[test]
fn invalidating_everything_includes_the_iotlb() {
    model(Plan {
        handles: &[1, 1],
        primed: true,
        invalidate: Fabric::invalidate_all,
        drain: true,
    });
}

#[test]
fn a_journal_that_has_gone_round_hides_nothing() {
    model(Plan {
        handles: &[2],
        primed: true,
        invalidate: |fabric| {
            fabric.journal.append(page());
            for _ in 0..amdvi_core::Journal::RECORDS {
                fabric.journal.append(Invalidation::domain(DOMAIN + 1));
            }
        },
        drain: true,
    });
}

/// The model has teeth: leave out the drain and it finds the stale use.
#[test]
#[should_panic(expected = "stale use")]
fn without_the_drain_a_stale_use_is_found() {
    model(Plan {
        handles: &[2],
        primed: true,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: false,
    });
}

/// The model has teeth: an invalidation of another page does not end the old translation.
#[test]
#[should_panic(expected = "stale use")]
fn invalidating_something_else_is_found() {
    model(Plan {
        handles: &[1],
        primed: true,
        invalidate: |fabric| fabric.journal.append(Invalidation::domain(DOMAIN + 1)),
        drain: true,
    });
}
