//! The designs of others, reduced to what a translation costs them.

use std::hint::black_box;
use std::sync::Arc;

use amdvi_dma::{Access, DmaEntry, Request, RequestKind, WalkContext, translate};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::{DeviceId, PhysMemory};
use criterion::{Criterion, Throughput};
use parking_lot::RwLock;
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

use crate::race;
use crate::rig::{Rig, SMALL, page, shuffled};

/// The simplest design: no cache, a walk under a read-write lock around the registers.
pub(crate) fn rwlock_walk(c: &mut Criterion) {
    let rig = Rig::new(1);
    let registers = RwLock::new(WalkContext {
        iommu_enabled: true,
        host_levels: 4,
        ..WalkContext::default()
    });
    let addresses = shuffled(SMALL, 12, 4096);
    let dte = rig.dte();
    let turn = || {
        for iova in black_box(&addresses[..]) {
            let context = registers.read();
            let load = |gpa| {
                rig.memory
                    .load_u64(gpa)
                    .expect("the device table is backed")
            };
            let (q0, q1) = (DteQ0::from_bits(load(dte)), DteQ1::from_bits(load(dte + 8)));
            let request = Request {
                device_id: DeviceId(8),
                iova: *iova,
                len: 64,
                access: Access::Read,
                kind: RequestKind::Untranslated,
                pasid: None,
            };
            let span = translate(&context, &DmaEntry::new(q0, q1), &request, &rig.memory);
            black_box(span.expect("the page is mapped").gpa);
        }
    };
    let mut group = c.benchmark_group("peer/rwlock-walk");
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function("1t", |b| b.iter(turn));
    group.throughput(Throughput::Elements(2 * addresses.len() as u64));
    group.bench_function("2t", |b| {
        b.iter_custom(|turns| race(turns, &mut [(), ()], |()| turn()));
    });
    group.finish();
}

/// vm-memory's IOTLB as its users hold it: a range map behind a read-write lock.
pub(crate) fn vm_memory_iotlb(c: &mut Criterion) {
    let mut group = c.benchmark_group("peer/vm-memory-iotlb");
    for count in [64usize, 65_536] {
        let mut iotlb = Iotlb::new();
        for n in 0..count as u64 {
            iotlb
                .set_mapping(
                    GuestAddress(SMALL + (n << 12)),
                    GuestAddress(page(n)),
                    0x1000,
                    Permissions::ReadWrite,
                )
                .expect("a mapping can be added");
        }
        let iotlb = Arc::new(std::sync::RwLock::new(iotlb));
        let addresses = shuffled(SMALL, 12, count).repeat(4096usize.div_ceil(count));
        group.throughput(Throughput::Elements(addresses.len() as u64));
        group.bench_function(count.to_string(), |b| {
            b.iter(|| {
                for iova in black_box(&addresses[..]) {
                    let guard = iotlb.read().expect("nobody panics with the lock");
                    let found = Iotlb::lookup(guard, GuestAddress(*iova), 64, Permissions::Read);
                    let range = found.expect("the page is mapped").next();
                    black_box(range.expect("it has a first range").base);
                }
            });
        });
    }
    group.finish();
}
