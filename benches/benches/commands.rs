//! The command processor: per command, through the ring, tail write included.
#![allow(missing_docs)]

use std::sync::Arc;

use amdvi_core::test_utils::TestMemory;
use amdvi_device::{Endpoint, Host, Iommu, Options};
use amdvi_irt::Delivery;
use amdvi_regs::command::{Command, CompletionWait, InvalidateInterruptTable};
use amdvi_regs::mmio::{Control, RingBase, offset};
use amdvi_regs::{DeviceId, PhysMemory};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const RING: u64 = 0x1_0000;
const RING_LENGTH: u8 = 12;
const STORE: u64 = 0x8000;
const BATCH: u64 = 512;

struct Nobody;

impl Host for Nobody {
    fn deliver(&self, _: &Delivery) {}
    fn doorbell(&self, _: u32) {}
    fn commands_pending(&self) {}
}

/// An IOMMU with eight functions behind it whose command ring is full of `command`.
struct Rig {
    iommu: Arc<Iommu>,
    tail: u64,
    _functions: Vec<Endpoint>,
}

impl Rig {
    fn new(command: Command) -> Self {
        let memory = Arc::new(TestMemory::new(0x4_0000));
        for slot in 0..1u64 << RING_LENGTH {
            for (word, value) in (0..).zip(command.words()) {
                memory
                    .store_u64(RING + slot * 16 + word * 8, value)
                    .unwrap();
            }
        }
        let options: Options = "amd-iommu,numint2k=on".parse().unwrap();
        let iommu = Iommu::new(&options, memory, Arc::new(Nobody));
        let functions = (0..8)
            .map(|n| iommu.endpoint(DeviceId::new(0, n, 0)))
            .collect();
        let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
        let ring = RingBase::new()
            .with_base_page(RING >> 12)
            .with_length(RING_LENGTH);
        write(offset::COMMAND_BUFFER_BASE, ring.into_bits());
        let control = Control::RESET.with_iommu_en(true).with_cmd_buf_en(true);
        write(offset::CONTROL, control.into_bits());
        Self {
            iommu,
            tail: 0,
            _functions: functions,
        }
    }

    /// Has the device run [`BATCH`] commands.
    fn run(&mut self) {
        self.tail = (self.tail + BATCH * 16) & ((16 << RING_LENGTH) - 1);
        self.iommu
            .mmio_write(offset::COMMAND_TAIL, &self.tail.to_le_bytes());
    }

    fn head(&self) -> u64 {
        let mut head = [0; 8];
        self.iommu.mmio_read(offset::COMMAND_HEAD, &mut head);
        u64::from_le_bytes(head)
    }
}

fn commands(c: &mut Criterion) {
    let wait = CompletionWait::new()
        .with_s(true)
        .with_store_address_8(STORE >> 3);
    let invalidate = InvalidateInterruptTable::new().with_device_id(0x28);
    let cases: [(&str, Command); 2] = [
        ("completion-wait", wait.into()),
        ("invalidate-interrupt-table", invalidate.into()),
    ];
    let mut group = c.benchmark_group("commands");
    group.throughput(Throughput::Elements(BATCH));
    for (id, command) in cases {
        let mut rig = Rig::new(command);
        group.bench_function(id, |b| {
            b.iter(|| {
                rig.run();
                assert_eq!(rig.head(), rig.tail);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commands);
criterion_main!(benches);
