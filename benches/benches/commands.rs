//! The command processor: per command, through the ring, tail write included.
#![allow(missing_docs)]

use amdvi_benches::Commands;
use amdvi_regs::command::{Command, InvalidateInterruptTable};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BATCH: u64 = 512;

fn commands(c: &mut Criterion) {
    let invalidate = InvalidateInterruptTable::new().with_device_id(0x28);
    let cases: [(&str, Command); 2] = [
        ("completion-wait", Commands::wait()),
        ("invalidate-interrupt-table", invalidate.into()),
    ];
    let mut group = c.benchmark_group("commands");
    group.throughput(Throughput::Elements(BATCH));
    for (id, command) in cases {
        let mut commands = Commands::new(&[command]);
        group.bench_function(id, |b| {
            b.iter(|| {
                commands.run(BATCH);
                assert!(commands.is_done());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commands);
criterion_main!(benches);
