//! Interrupt remapping: hits, misses, and the atomic load that they are measured against.
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use amdvi_benches::{Format, Rig};
use amdvi_irt::Outcome;
use amdvi_regs::msi::Msi;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// What is done with each outcome: the least a VMM would look at.
#[inline(always)]
fn consume(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Deliver(delivery) => delivery.dest ^ u32::from(delivery.vector),
        _ => u32::MAX,
    }
}

fn hits(c: &mut Criterion, id: &str, mut rig: Rig, messages: &[Msi]) {
    let mut group = c.benchmark_group("remap/hit");
    group.throughput(Throughput::Elements(messages.len() as u64));
    for msi in messages {
        assert_ne!(
            consume(rig.device.remap(&rig.memory, *msi).outcome),
            u32::MAX
        );
    }
    group.bench_function(id, |b| {
        b.iter(|| {
            for msi in black_box(messages) {
                let remapped = rig.device.remap(&rig.memory, *msi);
                black_box(consume(remapped.outcome));
            }
        });
    });
    group.finish();
}

fn remap(c: &mut Criterion) {
    for (id, format) in [("irte32", Format::Irte32), ("irte128", Format::Irte128)] {
        let rig = Rig::new(format);
        let messages = [rig.message(7); 2048];
        hits(c, id, rig, &messages);
    }
    let rig = Rig::new(Format::Irte128);
    let messages = rig.shuffled();
    hits(c, "2048-random", rig, &messages);

    let mut rig = Rig::new(Format::Irte128);
    let messages = rig.shuffled();
    let mut next = 0;
    c.bench_function("remap/miss", |b| {
        b.iter_batched(
            || {
                next = (next + 1) % messages.len();
                messages[next]
            },
            |msi| {
                rig.device.slot().invalidate();
                black_box(consume(rig.device.remap(&rig.memory, msi).outcome))
            },
            BatchSize::SmallInput,
        );
    });
}

/// One atomic load and one comparison for each message of the same random stream.
fn baseline(c: &mut Criterion) {
    let rig = Rig::new(Format::Irte128);
    let messages = rig.shuffled();
    let table: Vec<AtomicU64> = (0..2048).map(|i| AtomicU64::new(i | 1 << 44)).collect();
    let mut group = c.benchmark_group("baseline");
    group.throughput(Throughput::Elements(messages.len() as u64));
    group.bench_function("atomic-load", |b| {
        b.iter(|| {
            for msi in black_box(&messages[..]) {
                let word = table[msi.data as usize & 0x7ff].load(Ordering::Acquire);
                black_box(if word >> 44 == 1 {
                    word as u32
                } else {
                    u32::MAX
                });
            }
        });
    });
    group.finish();
}

criterion_group!(benches, baseline, remap);
criterion_main!(benches);
