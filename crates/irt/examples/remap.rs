//! Interrupt remapping on its own: one function, one entry, no device around it.
//!
//! `cargo run -p amdvi-irt --example remap`

use std::sync::Arc;

use amdvi_core::test_utils::TestMemory;
use amdvi_core::{Barrier, Fabric, View};
use amdvi_irt::{Outcome, Remapper};
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::msi::Msi;
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};

const DEVICE_TABLE: u64 = 0x1000;
const IRT: u64 = 0x8000;

fn main() -> Result<(), MemoryError> {
    // What the guest sees: x2APIC destinations and 2048 interrupts per function; both turned on.
    let efr = ExtendedFeature::new().with_ga_sup(true).with_xt_sup(true);
    let efr2 = ExtendedFeature2::new().with_num_int_remap_sup(ExtendedFeature2::NUM_INT_REMAP_2K);
    let fabric = Arc::new(Fabric::new(View::new(efr, efr2), Barrier::best()));
    fabric.view.set_control(
        Control::RESET
            .with_iommu_en(true)
            .with_ga_en(true)
            .with_xt_en(true)
            .with_num_int_remap_mode(Control::NUM_INT_REMAP_2K),
    );
    fabric
        .view
        .set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));

    // What the guest's driver writes: a DTE with a table of 2048 entries, and entry 2000.
    let memory = TestMemory::new(0x2_0000);
    let nic = DeviceId::new(0, 5, 0);
    let dte = DteQ2::new()
        .with_iv(true)
        .with_int_tab_len(11)
        .with_int_tab_address(IRT)
        .with_int_ctl(2);
    memory.store_u64(DEVICE_TABLE + u64::from(nic.0) * 32 + 16, dte.into_bits())?;
    let low = Irte128Lo::new()
        .with_remap_en(true)
        .with_destination_lo(300);
    let high = Irte128Hi::new().with_vector(0x51);
    memory.store_u64(IRT + 2000 * 16 + 8, high.into_bits())?;
    memory.store_u64(IRT + 2000 * 16, low.into_bits())?;

    // The function sends what its MSI-X table says: DM=1, data = index.
    let mut requests = Remapper::new(fabric, nic, Remapper::FULL_CACHE);
    for data in [2000, 2001] {
        match requests
            .remap(
                &memory,
                Msi {
                    address: 0xfee0_0004,
                    data,
                },
            )
            .outcome
        {
            Outcome::Deliver(delivery) => println!("{nic} data {data}: {delivery}"),
            Outcome::Posted(posted) => println!("{nic} data {data}: {posted:?}"),
            Outcome::Blocked(fault) => {
                println!("{nic} data {data}: blocked, {}", fault.reason);
                if let Some(event) = fault.event() {
                    println!("  event log: {event}");
                }
            }
        }
    }
    Ok(())
}
