//! The IVRS of a board with one IOMMU and an IOAPIC.

use amdvi_regs::DeviceId;
use amdvi_regs::ivrs::Ivrs;
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};
use amdvi_vmm_glue::ivrs::{IommuUnit, IvrsConfig, Special};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let unit = IommuUnit {
        // What the registers of the device read; XT needs GA, 2K needs GA as well.
        efr: ExtendedFeature::new()
            .with_xt_sup(true)
            .with_ga_sup(true)
            .with_ia_sup(true),
        efr2: ExtendedFeature2::new().with_num_int_remap_sup(ExtendedFeature2::NUM_INT_REMAP_2K),
        specials: vec![Special::southbridge_ioapic(0)],
        ..IommuUnit::new(DeviceId::new(0, 0, 2), 0x40, 0xfeb8_0000)
    };
    let table = IvrsConfig {
        units: vec![unit],
        ..IvrsConfig::default()
    }
    .build()?;
    println!("{} bytes for the guest:", table.len());
    println!("{}", Ivrs::parse(&table)?);
    Ok(())
}
