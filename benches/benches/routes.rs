//! A guest that retargets all 2048 interrupts of a function while KVM delivers them by routes.
//!
//! On the host's KVM; without one there is nothing to measure, and the benches say so.
#![allow(missing_docs)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::sync::{Arc, Mutex};

use amdvi_core::test_utils::TestMemory;
use amdvi_device::{Host, Iommu, Options};
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletionWait, InvalidateInterruptTable};
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, offset};
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::RemapSource;
use amdvi_vmm_glue::endpoint::RemappedSource;
use amdvi_vmm_glue::kvm::{FunctionIrqfds, IrqfdObserver, Irqfds, MsiFormat, RouteTable};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};

const NIC: DeviceId = DeviceId::new(0, 5, 0);
const VECTORS: u16 = 2048;
const COMMANDS: u64 = 0x1_0000;
const DEVICE_TABLE: u64 = 0x3_0000;
const IRT: u64 = 0x4_0000;
/// Interrupts after which a vector that was taken back gets a route again.
const HOT: u16 = 64;

struct Nobody;

impl Host for Nobody {
    fn deliver(&self, _: &Delivery) {}
    fn doorbell(&self, _: u32) {}
    fn commands_pending(&self) {}
}

/// A source that looks at the registers and the DTE for each message anew, as one without a
/// [`RemapSource::routes`] of its own.
struct OneByOne(RemappedSource);

impl RemapSource for OneByOne {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        self.0.request(msi)
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.0.resolve(msi)
    }

    fn route(&self, msi: Msi) -> Option<Delivery> {
        self.0.route(msi)
    }
}

fn vm() -> Result<VmFd, kvm_ioctls::Error> {
    let vm = Kvm::new()?.create_vm()?;
    for (cap, arg) in [(KVM_CAP_SPLIT_IRQCHIP, 24), (KVM_CAP_X2APIC_API, 3)] {
        let mut request = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        request.args[0] = arg;
        vm.enable_cap(&request)?;
    }
    Ok(vm)
}

struct Rig {
    memory: Arc<TestMemory>,
    iommu: Arc<Iommu>,
    function: Arc<FunctionIrqfds<Arc<VmFd>>>,
    irqfds: Arc<Irqfds<Arc<VmFd>>>,
    vm: Arc<VmFd>,
    table: Arc<Mutex<RouteTable>>,
    cpu: std::cell::Cell<u32>,
}

impl Rig {
    fn new(vm: &Arc<VmFd>) -> Self {
        Self::with(vm, |source| source)
    }

    fn with<S: RemapSource + Send + Sync + 'static>(
        vm: &Arc<VmFd>,
        wrap: impl FnOnce(RemappedSource) -> S,
    ) -> Self {
        let memory = Arc::new(TestMemory::new(0x10_0000));
        let options: Options = "amd-iommu,xtsup=on,numint2k=on".parse().unwrap();
        let iommu = Iommu::new(&options, memory.clone(), Arc::new(Nobody));
        let table = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let irqfds = Irqfds::new(Arc::clone(vm), Arc::clone(&table));
        let source = wrap(RemappedSource::new(iommu.endpoint(NIC)));
        let q2 = DteQ2::new()
            .with_iv(true)
            .with_int_ctl(2)
            .with_int_tab_len(11)
            .with_int_tab_address(IRT);
        memory.write(DEVICE_TABLE + 32 * u64::from(NIC.0) + 16, q2.into_bits());
        let control = Control::RESET
            .with_iommu_en(true)
            .with_cmd_buf_en(true)
            .with_ga_en(true)
            .with_xt_en(true)
            .with_num_int_remap_mode(1);
        for (at, value) in [
            (offset::DEVICE_TABLE_BASE, DEVICE_TABLE),
            (offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56),
            (offset::CONTROL, control.into_bits()),
        ] {
            iommu.mmio_write(at, &value.to_le_bytes());
        }
        let rig = Self {
            function: irqfds.function(0, NIC, source, VECTORS),
            memory,
            iommu,
            irqfds,
            vm: Arc::clone(vm),
            table,
            cpu: std::cell::Cell::new(0),
        };
        (0..VECTORS).for_each(|n| rig.write(n));
        rig
    }

    fn follow(self) -> Self {
        let observer = IrqfdObserver::new(Arc::clone(&self.irqfds), 0);
        self.iommu.add_observer(Arc::new(observer));
        self.heat();
        self
    }

    fn write(&self, n: u16) {
        let low = Irte128Lo::new()
            .with_remap_en(true)
            .with_destination_lo(self.cpu.get());
        let high = Irte128Hi::new().with_vector(0x20 + (n % 200) as u8);
        let at = IRT + 16 * u64::from(n);
        self.memory
            .write_all(at, &[low.into_bits(), high.into_bits()]);
    }

    fn next_cpu(&self) {
        self.cpu.set((self.cpu.get() + 1) % 16);
    }

    /// INVALIDATE_INTERRUPT_TABLE and COMPLETION_WAIT.
    fn invalidate(&self) {
        let mut tail = [0; 8];
        self.iommu.mmio_read(offset::COMMAND_TAIL, &mut tail);
        let mut tail = u64::from_le_bytes(tail);
        let commands: [Command; 2] = [
            InvalidateInterruptTable::new().with_device_id(NIC.0).into(),
            CompletionWait::new().into(),
        ];
        for command in commands {
            self.memory.write_all(COMMANDS + tail, &command.words());
            tail = (tail + 16) % 0x1000;
        }
        self.iommu
            .mmio_write(offset::COMMAND_TAIL, &tail.to_le_bytes());
    }

    /// Every vector fires, and one so often that all get their routes.
    fn heat(&self) {
        for n in (0..VECTORS).chain((0..HOT).map(|_| 0)) {
            let msi = Msi {
                address: 0xfee0_0004,
                data: n.into(),
            };
            self.function.trigger(n, msi, |_| ());
        }
        // Or one more table is not due yet.
        let routed = (0..VECTORS).all(|n| self.function.route(n).is_some());
        assert!(
            routed,
            "{:?} {:?}",
            self.irqfds.counters(),
            self.irqfds.take_errors()
        );
    }

    fn one_wait(&self) {
        self.next_cpu();
        (0..VECTORS).for_each(|n| self.write(n));
        self.invalidate();
    }

    fn wait_for_each(&self) {
        self.next_cpu();
        for n in 0..VECTORS {
            self.write(n);
            self.invalidate();
        }
    }

    /// What a VMM does that keeps routes by giving KVM a table for each entry that is invalidated.
    fn table_for_each(&self, source: &RemappedSource) {
        self.next_cpu();
        for n in 0..VECTORS {
            self.write(n);
            self.invalidate();
            let msi = Msi {
                address: 0xfee0_0004,
                data: n.into(),
            };
            let mut table = self.table.lock().unwrap();
            let target = source.resolve(msi);
            table.set(24 + u32::from(n), target.as_ref()).unwrap();
            table.commit(&self.vm).unwrap();
        }
    }
}

fn retarget(c: &mut Criterion) {
    let vm = match vm() {
        Ok(vm) => Arc::new(vm),
        Err(error) => {
            println!("retarget/*: not run: /dev/kvm unusable: {error}");
            return;
        }
    };
    let mut group = c.benchmark_group("retarget");
    group.throughput(Throughput::Elements(VECTORS.into()));
    group.sample_size(10);
    let rig = Rig::new(&vm);
    group.bench_function("no-routes/wait-for-each", |b| {
        b.iter(|| rig.wait_for_each())
    });
    group.bench_function("no-routes/one-wait", |b| b.iter(|| rig.one_wait()));
    drop(rig);

    let rig = Rig::new(&vm).follow();
    group.bench_function("routes/one-wait", |b| b.iter(|| rig.one_wait()));
    let (counters, before) = (rig.irqfds.counters(), rig.irqfds.counters().commits);
    assert!(counters.commits <= counters.notifications + 1);
    rig.invalidate();
    assert_eq!(rig.irqfds.counters().commits, before, "nothing has changed");
    group.bench_function("routes/wait-for-each", |b| {
        b.iter_batched(
            || rig.heat(),
            |()| rig.wait_for_each(),
            BatchSize::PerIteration,
        );
    });
    rig.heat();
    group.throughput(Throughput::Elements(1));
    group.bench_function("routes/wait-without-change", |b| {
        b.iter(|| rig.invalidate())
    });
    drop(rig);
    let rig = Rig::with(&vm, OneByOne).follow();
    group.bench_function("routes/wait-without-change-one-by-one", |b| {
        b.iter(|| rig.invalidate())
    });
    group.throughput(Throughput::Elements(VECTORS.into()));
    drop(rig);

    let rig = Rig::new(&vm);
    let source = RemappedSource::new(rig.iommu.endpoint(NIC));
    rig.table_for_each(&source);
    group.bench_function("routes/table-for-each", |b| {
        b.iter(|| rig.table_for_each(&source));
    });
    group.finish();
}

criterion_group!(benches, retarget);
criterion_main!(benches);
