//! The whole device in a VMM of thirty lines: registers, a function behind it, an interrupt.
//!
//! `cargo run -p amdvi-device --example device --features test-utils`

use std::sync::Arc;

use amdvi_device::testing::TestMemory;
use amdvi_device::{Host, Iommu, Options};
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2, offset};
use amdvi_regs::msi::Msi;

/// Where interrupts go: a real VMM gives them to KVM, see `amdvi-vmm-glue`.
struct Vmm;

impl Host for Vmm {
    fn deliver(&self, delivery: &Delivery) {
        println!("to the CPUs: {delivery}");
    }
    fn doorbell(&self, apic_id: u32) {
        println!("doorbell of physical APIC {apic_id:#x}");
    }
    fn commands_pending(&self) {
        println!("more commands: call run_commands from a worker");
    }
}

fn main() -> Result<(), amdvi_device::options::OptionError> {
    let options: Options = "amd-iommu,xtsup=on,numint2k=on".parse()?;
    let memory = Arc::new(TestMemory::new(0x10_0000));
    let iommu = Iommu::new(&options, memory, Arc::new(Vmm));
    println!(
        "MMIO at {:#x}, {:#x} bytes",
        iommu.mmio_base(),
        iommu.mmio_size()
    );

    let read = |at| {
        let mut bytes = [0; 8];
        iommu.mmio_read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    println!(
        "EFR  {}",
        ExtendedFeature::from_bits(read(offset::EXTENDED_FEATURE))
    );
    println!(
        "EFR2 {}",
        ExtendedFeature2::from_bits(read(offset::EXTENDED_FEATURE_2))
    );

    // The guest has not enabled the IOMMU yet: messages pass as they are.
    let mut nic = iommu.endpoint(DeviceId::new(0, 5, 0));
    println!(
        "{:?}",
        nic.signal(Msi {
            address: 0xfee0_1000,
            data: 0x31
        })
    );
    Ok(())
}
