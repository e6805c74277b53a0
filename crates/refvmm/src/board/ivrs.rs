//! The IVRS of the board: its IOMMUs, and which devices are behind each.

use amdvi_device::pci;
use amdvi_regs::ivrs::{DteSetting, IvhdFlags};
use amdvi_regs::{DeviceId, Segment};
use amdvi_vmm_glue::ivrs::{ConfigError, Coverage, IommuUnit, IvrsConfig, Special};

use super::config::Config;
use super::{IOAPIC, acpi};
use crate::layout;

/// The table, checksum included.
pub(super) fn table(config: &Config) -> Result<Vec<u8>, ConfigError> {
    let ivrs = IvrsConfig {
        oem_id: acpi::OEM_ID,
        oem_table_id: acpi::OEM_TABLE_ID,
        pa_bits: pci::PHYSICAL_ADDRESS_BITS,
        va_bits: pci::VIRTUAL_ADDRESS_BITS,
        units: (0..config.iommus.len()).map(|n| unit(config, n)).collect(),
        ..IvrsConfig::default()
    };
    ivrs.build()
}

fn unit(config: &Config, n: usize) -> IommuUnit {
    let options = &config.iommus[n].options;
    let mut unit = IommuUnit::new(
        options.device_id(),
        pci::CAPABILITY_OFFSET,
        options.mmio_base(),
    );
    unit.segment = options.segment();
    unit.efr = options.efr();
    unit.efr2 = options.efr2();
    unit.hat_dis = !options.dma_remap();
    unit.flags.set(IvhdFlags::IOTLB_SUP, options.device_iotlb());
    (unit.pn_banks, unit.pn_counters) = options.perf_counters();
    unit.devices = coverage(config, n);
    if options.intremap() && config.iommu_of(Segment(0), IOAPIC) == Some(n) {
        // Without interrupt remapping a guest must not find a way to remap its IOAPIC.
        unit.specials.push(Special {
            device: IOAPIC,
            ..Special::southbridge_ioapic(layout::IOAPIC_ID)
        });
    }
    unit
}

/// The DeviceIDs that the IOMMU serves, but itself: one or two ranges.
fn coverage(config: &Config, n: usize) -> Vec<Coverage> {
    let (first, last) = config.scope(n);
    let own = config.iommus[n].options.device_id();
    let range = |first: u16, last: u16| Coverage::Range {
        first: DeviceId(first),
        last: DeviceId(last),
        setting: DteSetting::new(),
    };
    if own < first || last < own {
        return vec![range(first.0, last.0)];
    }
    let before = (first < own).then(|| range(first.0, own.0 - 1));
    let after = (own < last).then(|| range(own.0 + 1, last.0));
    before.into_iter().chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_device::Options;
    use amdvi_regs::ivrs::{Block, DeviceEntry, IvhdKind, Ivrs};

    #[test]
    fn the_ivrs_shows_what_the_registers_show_and_where_the_ioapic_is() {
        let options: Options = "amd-iommu,numint2k=on,dma-remap=off".parse().unwrap();
        let bytes = table(&Config::scenario(options.clone())).unwrap();
        let parsed = Ivrs::parse(&bytes).unwrap();
        let (mut images, mut ioapics) = (0, 0);
        for block in parsed.blocks() {
            let Ok(Block::Hardware(unit)) = block else {
                panic!("{block:?}")
            };
            let header = unit.header;
            assert_eq!(header.device_id, options.device_id());
            assert_eq!(header.mmio_base, options.mmio_base());
            if header.kind != IvhdKind::Type10 {
                assert_eq!((header.efr, header.efr2), (options.efr(), options.efr2()));
                images += 1;
            }
            ioapics += unit
                .entries()
                .filter(|entry| {
                    matches!(entry, Ok(DeviceEntry::Special { handle: layout::IOAPIC_ID, device, .. })
                             if device.0 == 0x00a0)
                })
                .count();
        }
        assert_eq!((images, ioapics), (2, 3));
    }

    #[test]
    fn without_interrupt_remapping_the_ivrs_names_no_ioapic() {
        let with = table(&Config::scenario(Options::default())).unwrap();
        let without = table(&Config::scenario("amd-iommu,intremap=off".parse().unwrap())).unwrap();
        assert_eq!(with.len() - without.len(), 3 * 8);
    }
}
