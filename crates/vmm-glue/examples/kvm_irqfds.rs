//! A function's vectors on irqfds whose routes follow the guest's interrupt remapping table.
//!
//! The "guest" is this program: it writes entries into memory, and asks the IOMMU to forget the old ones.

use std::sync::{Arc, Mutex};

use amdvi_device::testing::{TestHost, TestMemory};
use amdvi_device::{Iommu, Options};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletionWait, InvalidateInterruptTable};
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, offset};
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::RemapSource;
use amdvi_vmm_glue::endpoint::RemappedSource;
use amdvi_vmm_glue::kvm::{IrqfdObserver, Irqfds, KvmMessage, MsiFormat, RouteTable};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};

const NIC: DeviceId = DeviceId::new(0, 5, 0);
const VECTORS: u16 = 2048;
const COMMANDS: u64 = 0x1_0000;
const DEVICE_TABLE: u64 = 0x3_0000;
const IRT: u64 = 0x4_0000;

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

/// Points every entry at a CPU.
fn write_entries(memory: &TestMemory, cpu: u32) {
    for n in 0..u64::from(VECTORS) {
        let low = Irte128Lo::new()
            .with_remap_en(true)
            .with_destination_lo(cpu);
        let high = Irte128Hi::new().with_vector(0x20 + (n % 200) as u8);
        memory.write_all(IRT + 16 * n, &[low.into_bits(), high.into_bits()]);
    }
}

/// INVALIDATE_INTERRUPT_TABLE and COMPLETION_WAIT.
fn invalidate(iommu: &Iommu, memory: &TestMemory) {
    let mut tail = [0; 8];
    iommu.mmio_read(offset::COMMAND_TAIL, &mut tail);
    let mut tail = u64::from_le_bytes(tail);
    let commands: [Command; 2] = [
        InvalidateInterruptTable::new().with_device_id(NIC.0).into(),
        CompletionWait::new().into(),
    ];
    for command in commands {
        memory.write_all(COMMANDS + tail, &command.words());
        tail = (tail + 16) % 0x1000;
    }
    iommu.mmio_write(offset::COMMAND_TAIL, &tail.to_le_bytes());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = match vm() {
        Ok(vm) => Arc::new(vm),
        Err(error) => {
            println!("not run: /dev/kvm unusable: {error}");
            return Ok(());
        }
    };
    let memory = Arc::new(TestMemory::new(0x10_0000));
    let options: Options = "amd-iommu,xtsup=on,numint2k=on".parse()?;
    let iommu = Iommu::new(&options, memory.clone(), Arc::new(TestHost::default()));

    // The VMM: one table of routes and one set of irqfds for the VM, an observer for each IOMMU.
    let table = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
    let irqfds = Irqfds::new(Arc::clone(&vm), table);
    iommu.add_observer(Arc::new(IrqfdObserver::new(Arc::clone(&irqfds), 0)));
    let source = || RemappedSource::new(iommu.endpoint(NIC));
    let function = irqfds.function(0, NIC, source(), VECTORS);

    // The guest: tables, and a driver that has programmed every vector.
    let q2 = DteQ2::new()
        .with_iv(true)
        .with_int_ctl(2)
        .with_int_tab_len(11)
        .with_int_tab_address(IRT);
    memory.write(DEVICE_TABLE + 32 * u64::from(NIC.0) + 16, q2.into_bits());
    write_entries(&memory, 0);
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

    // A device in the VMM sends by the route, or asks the IOMMU while there is none.
    let by_hand = source();
    let fire = |vector: u16| {
        let msi = Msi {
            address: 0xfee0_0004,
            data: vector.into(),
        };
        if function.trigger(vector, msi, |_| ()).is_none() {
            by_hand.request_with(msi, &mut |delivery| {
                if let Ok(message) = KvmMessage::encode(delivery, MsiFormat::X2ApicApi) {
                    // Nobody has that APIC in this example; a VMM would note an error.
                    let _ = vm.signal_msi(message.to_msi());
                }
            });
        }
    };
    for _ in 0..70 {
        (0..VECTORS).for_each(fire);
    }
    println!("used:       {:?}", irqfds.counters());
    write_entries(&memory, 1);
    invalidate(&iommu, &memory);
    println!("retargeted: {:?}", irqfds.counters());
    invalidate(&iommu, &memory);
    println!("no change:  {:?}", irqfds.counters());
    if let Some(error) = irqfds.take_errors().last {
        println!("{error}");
    }
    Ok(())
}
