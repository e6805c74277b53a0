//! DMA remapping: hits, misses and invalidations, and what they are measured against.
#![allow(missing_docs)]

mod nested;
mod peers;
mod rig;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amdvi_core::Invalidation;
use amdvi_dma::{Access, Iotlb, Mapper};
use amdvi_regs::PhysMemory;
use amdvi_regs::command::InvalidationRange;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use nested::{Nested, PAGES};
use rig::{DOMAIN, LARGE, Memory, ROOT, Rig, SMALL, shuffled};

/// Bytes of each request: a cache line.
const LEN: u64 = 64;

/// One translation, guard included: what a device does before it touches memory.
#[inline(always)]
fn translate(mapper: &mut Mapper, memory: &Memory, iova: u64) {
    match mapper.translate(memory, iova, LEN, Access::Read) {
        Ok(mapped) => {
            black_box(mapped.gpa);
            black_box(mapped.len);
        }
        Err(failed) => panic!("{:?}", failed.cause),
    }
}

fn run(mapper: &mut Mapper, memory: &Memory, addresses: &[u64]) {
    for iova in addresses {
        translate(mapper, memory, *iova);
    }
}

/// Each state on a thread of its own, doing `turn` `turns` times: from the moment when all of them
/// run until the last is done. They spin for each other, so that they run at the same time and not
/// one after the other on the CPU that woke them.
pub(crate) fn race<T: Send>(
    turns: u64,
    states: &mut [T],
    turn: impl Fn(&mut T) + Sync,
) -> Duration {
    let (all, ready) = (states.len() as u64, AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = states
            .iter_mut()
            .map(|state| {
                let (ready, turn) = (&ready, &turn);
                scope.spawn(move || {
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < all {
                        std::hint::spin_loop();
                    }
                    let began = Instant::now();
                    for _ in 0..turns {
                        turn(state);
                    }
                    (began, Instant::now())
                })
            })
            .collect();
        let times: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a bench does not fail"))
            .collect();
        let began = times.iter().map(|(began, _)| *began).min();
        let ended = times.iter().map(|(_, ended)| *ended).max();
        began
            .zip(ended)
            .map_or(Duration::ZERO, |(began, ended)| ended - began)
    })
}

fn hits(c: &mut Criterion) {
    // The handle's cache is as large as the working set, which is what its size is for.
    for (id, base, shift, count) in [
        ("4k/1", SMALL, 12, 1),
        ("4k/64", SMALL, 12, 64),
        ("4k/4096", SMALL, 12, 4096),
        ("4k/262144", SMALL, 12, 262_144),
        ("2m/64", LARGE, 21, 64),
    ] {
        let rig = Rig::new(Iotlb::DEFAULT_ENTRIES);
        let mut mapper = rig.mapper(0, count.max(Mapper::DEFAULT_ENTRIES));
        hit(c, id, &rig, &mut mapper, &shuffled(base, shift, count));
    }
    // What is too much for the handle's cache and is found in the shared IOTLB.
    let rig = Rig::marked(8 * Iotlb::DEFAULT_ENTRIES);
    let mut mapper = rig.mapper(0, 16);
    hit(
        c,
        "4k/4096-shared",
        &rig,
        &mut mapper,
        &shuffled(SMALL, 12, 4096),
    );
    hit(
        c,
        "4k/262144-shared",
        &rig,
        &mut mapper,
        &shuffled(SMALL, 12, 262_144),
    );
}

fn hit(c: &mut Criterion, id: &str, rig: &Rig, mapper: &mut Mapper, addresses: &[u64]) {
    // A short list is repeated, so that the loop around it does not count.
    let addresses = addresses.repeat(4096usize.div_ceil(addresses.len()));
    run(mapper, &rig.memory, &addresses);
    let mut group = c.benchmark_group("translate/hit");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function(id, |b| {
        b.iter(|| run(mapper, &rig.memory, black_box(&addresses)));
    });
    group.finish();
}

/// Caches that are far too small: every request walks four levels, the short way or the long one.
fn miss(c: &mut Criterion) {
    let addresses = shuffled(SMALL, 12, 4096);
    let mut group = c.benchmark_group("translate");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    for (id, rig) in [
        ("miss/short", Rig::new(1)),
        ("miss/4-level", Rig::marked(1)),
    ] {
        let mut mapper = rig.mapper(0, 16);
        group.bench_function(id, |b| {
            b.iter(|| run(&mut mapper, &rig.memory, black_box(&addresses)));
        });
    }
    group.finish();
    let rig = Rig::new(1);

    // The same loads, each depending on the one before, with nothing else.
    let mut group = c.benchmark_group("baseline");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function("4-loads", |b| {
        b.iter(|| {
            for iova in black_box(&addresses[..]) {
                let mut entry = ROOT;
                for shift in [39, 30, 21, 12] {
                    let table = entry & 0x000f_ffff_ffff_f000;
                    let gpa = table + (iova >> shift & 0x1ff) * 8;
                    entry = rig.memory.load_u64(gpa).expect("the tables are backed");
                }
                black_box(entry);
            }
        });
    });
    group.finish();
}

fn run_process(mapper: &mut Mapper, memory: &Memory, addresses: &[u64]) {
    let pasid = Nested::pasid();
    for iova in addresses {
        match mapper.translate_for(memory, pasid, *iova, LEN, Access::Read) {
            Ok(mapped) => {
                black_box(mapped.gpa);
                black_box(mapped.len);
            }
            Err(failed) => panic!("{:?}", failed.cause),
        }
    }
}

/// Requests with a PASID, through guest tables over a host table.
fn process(c: &mut Criterion) {
    let rig = Nested::new(Iotlb::DEFAULT_ENTRIES);
    let mut mapper = rig.mapper(Mapper::DEFAULT_ENTRIES);
    let addresses = shuffled(SMALL, 12, 64).repeat(64);
    run_process(&mut mapper, &rig.memory, &addresses);
    let mut group = c.benchmark_group("translate/hit");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function("pasid", |b| {
        b.iter(|| run_process(&mut mapper, &rig.memory, black_box(&addresses)));
    });
    group.finish();

    // Caches that are far too small: one level of the GCR3 table and four of the guest's, each found
    // by a walk of the host's four, and a last one for the page: 29 loads.
    let rig = Nested::new(1);
    let mut mapper = rig.mapper(16);
    let addresses = shuffled(SMALL, 12, PAGES as usize);
    let mut group = c.benchmark_group("translate");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function("nested-miss", |b| {
        b.iter(|| run_process(&mut mapper, &rig.memory, black_box(&addresses)));
    });
    group.finish();
}

fn two_threads(c: &mut Criterion) {
    let rig = Rig::new(Iotlb::DEFAULT_ENTRIES);
    let mut mappers = [0, 1].map(|n| rig.mapper(n, Mapper::DEFAULT_ENTRIES));
    let addresses = shuffled(SMALL, 12, 4096);
    for mapper in &mut mappers {
        run(mapper, &rig.memory, &addresses);
    }
    let mut group = c.benchmark_group("translate");
    group.throughput(Throughput::Elements(2 * addresses.len() as u64));
    group.bench_function("two-threads/4096", |b| {
        b.iter_custom(|turns| {
            race(turns, &mut mappers, |mapper| {
                run(mapper, &rig.memory, black_box(&addresses));
            })
        });
    });
    group.finish();
}

/// What the command processor does for each command; the caches are full.
fn invalidate(c: &mut Criterion) {
    let rig = Rig::new(Iotlb::DEFAULT_ENTRIES);
    let mut mapper = rig.mapper(0, Mapper::DEFAULT_ENTRIES);
    run(&mut mapper, &rig.memory, &shuffled(SMALL, 12, 65_536));
    let mut group = c.benchmark_group("invalidate");
    let page = Invalidation {
        range: InvalidationRange::decode(SMALL, false),
        ..Invalidation::domain(DOMAIN)
    };
    group.bench_function("page", |b| {
        b.iter(|| rig.fabric.journal.append(black_box(page)));
    });
    group.bench_function("domain", |b| {
        b.iter(|| {
            rig.fabric
                .journal
                .append(black_box(Invalidation::domain(DOMAIN)))
        });
    });
    group.bench_function("all", |b| b.iter(|| rig.fabric.invalidate_all()));
    // With the next access to a page that stays: what an invalidation costs a device.
    run(&mut mapper, &rig.memory, &[SMALL, SMALL + 0x1000]);
    group.bench_function("page-and-hit", |b| {
        b.iter(|| {
            rig.fabric.journal.append(black_box(page));
            translate(&mut mapper, &rig.memory, SMALL + 0x1000);
        });
    });
    group.finish();
}

/// The least that a lookup can be: an array indexed by the page number.
fn baseline(c: &mut Criterion) {
    let mut group = c.benchmark_group("baseline");
    for (id, count) in [("array-lookup", 4096), ("array-lookup-262144", 262_144)] {
        let table: Vec<AtomicU64> = (0..count).map(|n| AtomicU64::new(rig::page(n))).collect();
        let addresses = shuffled(SMALL, 12, count as usize);
        group.throughput(Throughput::Elements(addresses.len() as u64));
        group.bench_function(id, |b| {
            b.iter(|| {
                for iova in black_box(&addresses[..]) {
                    let page = (iova >> 12) as usize & (table.len() - 1);
                    black_box(table[page].load(Ordering::Acquire) | iova & 0xfff);
                    black_box(LEN);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    baseline,
    hits,
    miss,
    process,
    two_threads,
    invalidate,
    peers::rwlock_walk,
    peers::vm_memory_iotlb
);
criterion_main!(benches);
