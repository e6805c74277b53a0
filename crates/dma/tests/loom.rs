//! Model-checks the caches against invalidations over every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p amdvi-dma --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Invalidation, View};
use amdvi_dma::{Access, Iotlb, Mapper, Pasid};
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

/// P, RW, US, A and D of a guest's entry.
const GUEST: u64 = 7 | 3 << 5;

/// A constant DTE with a table of one level, or with a GCR3 table and a guest's table of four levels;
/// and one entry that changes.
struct Memory {
    guest: bool,
    entry: AtomicU64,
}

impl Memory {
    /// The entry that maps the page to `page`.
    fn entry(guest: bool, page: u64) -> u64 {
        page | if guest { GUEST } else { PRESENT }
    }
}

impl PhysMemory for Memory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        match gpa {
            // GV, and the GCR3 table at 3000h.
            0x1000 if self.guest => Ok(3 | 1 << 55 | 3 << 58 | 3 << 61),
            0x1010 => Ok(0),
            0x3000 => Ok(0x7000 | 1),
            0x7000 | 0x8000 | 0x9000 => Ok((gpa + 0x1000) | GUEST),
            0xa000 => Ok(self.entry.load(Ordering::Acquire)),
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
    /// The requests have PASID 0.
    guest: bool,
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
        let efr = ExtendedFeature::new().with_hats(2).with_gt_sup(true);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true).with_gt_en(true));
        let pasid = Pasid::new(0).filter(|_| plan.guest);
        view.set_device_table(0, DeviceTableBase::new().with_base_page(1));
        let fabric = Arc::new(Fabric::new(view, Barrier::Portable));
        let iotlb = Arc::new(Iotlb::new(1));
        let memory = Arc::new(Memory {
            guest: plan.guest,
            entry: AtomicU64::new(Memory::entry(plan.guest, OLD)),
        });
        let done = Arc::new(AtomicU64::new(0));
        let mut mappers: Vec<_> = plan
            .handles
            .iter()
            .map(|_| Mapper::new(fabric.clone(), iotlb.clone(), DeviceId(0), 16, 64))
            .collect();
        let slots: Vec<_> = mappers.iter().map(|mapper| mapper.slot().clone()).collect();
        if plan.primed {
            let mapped = mappers[0].translate_for(&*memory, pasid, 0, 1, Access::Write);
            assert_eq!(mapped.map(|mapped| mapped.gpa).ok(), Some(OLD));
        }
        let users: Vec<_> = mappers
            .into_iter()
            .zip(plan.handles)
            .map(|(mut mapper, accesses)| {
                let (memory, done) = (memory.clone(), done.clone());
                thread::spawn(move || {
                    for _ in 0..*accesses {
                        let mapped = mapper.translate_for(&*memory, pasid, 0, 1, Access::Write);
                        let mapped = mapped.expect("the page is mapped at any time");
                        let complete = done.load(Ordering::Acquire) == 1;
                        assert!(!complete || mapped.gpa == NEW, "stale use");
                    }
                })
            })
            .collect();
        let new = Memory::entry(plan.guest, NEW);
        memory.entry.store(new, Ordering::Release);
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
        guest: false,
    });
}

#[test]
fn what_one_handle_leaves_in_the_iotlb_is_not_stale_for_another() {
    model(Plan {
        handles: &[1, 1],
        primed: true,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: true,
        guest: false,
    });
}

#[test]
fn a_fill_that_races_with_an_invalidation_is_not_used_after_it() {
    model(Plan {
        handles: &[1, 1],
        primed: false,
        invalidate: |fabric| fabric.journal.append(page()),
        drain: true,
        guest: false,
    });
}

#[test]
fn invalidating_everything_includes_the_iotlb() {
    model(Plan {
        handles: &[1, 1],
        primed: true,
        invalidate: Fabric::invalidate_all,
        drain: true,
        guest: false,
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
        guest: false,
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
        guest: false,
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
        guest: false,
    });
}

#[test]
fn after_an_invalidation_of_a_pasid_and_a_drain_a_handle_uses_nothing_stale() {
    model(Plan {
        handles: &[2],
        primed: true,
        invalidate: |fabric| {
            fabric.journal.append(Invalidation {
                pasid: Some(0),
                ..page()
            });
        },
        drain: true,
        guest: true,
    });
}

#[test]
fn after_an_invalidation_of_the_host_and_a_drain_no_pasid_uses_anything_stale() {
    model(Plan {
        handles: &[2],
        primed: true,
        invalidate: |fabric| {
            // Some other page of the host's: the process's page may have gone through it.
            fabric.journal.append(Invalidation {
                range: InvalidationRange::decode(0x7000_0000, false),
                ..Invalidation::domain(DOMAIN)
            });
        },
        drain: true,
        guest: true,
    });
}

/// The model has teeth: another PASID's invalidation does not end the old translation.
#[test]
#[should_panic(expected = "stale use")]
fn invalidating_another_pasid_is_found() {
    model(Plan {
        handles: &[1],
        primed: true,
        invalidate: |fabric| {
            fabric.journal.append(Invalidation {
                pasid: Some(1),
                ..page()
            });
        },
        drain: true,
        guest: true,
    });
}
