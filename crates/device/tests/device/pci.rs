//! The PCI function.

use amdvi_device::pci::{CAPABILITY_OFFSET, HT_MSI_MAPPING_OFFSET, MSI_OFFSET};
use amdvi_regs::mmio::offset;

use crate::rig::*;

#[test]
fn identity_and_class() {
    let rig = Rig::new("amd-iommu");
    assert_eq!(rig.config(0x00), 0x1451_1022);
    assert_eq!(rig.config(0x08), 0x0806_0000);
    assert_eq!(rig.config(0x0c), 0);
    assert_eq!(rig.config(0x2c), 0x1451_1022);
    assert_eq!(rig.config(0x04) >> 16 & 0x10, 0x10, "capability list");
}

#[test]
fn the_capability_list_is_iommu_msi_ht_mapping() {
    let rig = Rig::new("amd-iommu");
    let mut at = rig.config(0x34) as u16 & 0xff;
    let mut list = Vec::new();
    while at != 0 {
        let header = rig.config(at);
        list.push((at, header as u8));
        at = header as u16 >> 8;
    }
    assert_eq!(
        list,
        [
            (CAPABILITY_OFFSET, 0x0f),
            (MSI_OFFSET, 0x05),
            (HT_MSI_MAPPING_OFFSET, 0x08)
        ]
    );
}

#[test]
fn capability_block() {
    let rig = Rig::new("amd-iommu,mmio-base=0x1234568000");
    let header = rig.config(0x40);
    assert_eq!(header >> 16 & 7, 3, "type: IOMMU");
    assert_eq!(header >> 19 & 0x1f, 1, "revision");
    assert_eq!(
        header >> 24,
        0b0001_1000,
        "EFRSup, CapExt; no IotlbSup, HtTunnel, NpCache"
    );
    assert_eq!(rig.config(0x44), 0x3456_8001, "base and Enable");
    assert_eq!(rig.config(0x48), 0x12);
    assert_eq!(rig.config(0x4c), 0, "no device range");
    let misc = rig.config(0x50);
    assert_eq!(
        (
            misc & 0x1f,
            misc >> 5 & 7,
            misc >> 8 & 0x7f,
            misc >> 15 & 0x7f
        ),
        (0, 2, 52, 64)
    );
    assert_eq!(rig.config(0x54), 0);
    assert_eq!(Rig::new("amd-iommu,np-cache=on").config(0x40) >> 26 & 1, 1);
}

#[test]
fn enable_locks_the_base() {
    let rig = Rig::new("amd-iommu");
    let before: Vec<u32> = (0x40..0x58).step_by(4).map(|at| rig.config(at)).collect();
    for at in (0x40..0x58).step_by(4) {
        rig.set_config(at, 0);
        rig.set_config(at, u32::MAX);
    }
    let after: Vec<u32> = (0x40..0x58).step_by(4).map(|at| rig.config(at)).collect();
    assert_eq!(before, after);
    assert_eq!(rig.iommu.mmio_base(), 0xfeb8_0000);
}

#[test]
fn writable_bits_of_configuration_space() {
    let rig = Rig::new("amd-iommu");
    let before: Vec<u32> = (0..0x100).step_by(4).map(|at| rig.config(at)).collect();
    for at in (0..0x100).step_by(4) {
        rig.set_config(at, u32::MAX);
    }
    for (n, &before) in before.iter().enumerate() {
        let at = 4 * n as u16;
        let writable = match at {
            0x04 => 0x0406,
            0x3c => 0xff,
            0x64 => 1 << 16,
            0x68 => 0xffff_fffc,
            0x6c => 0xffff_ffff,
            0x70 => 0xffff,
            _ => 0,
        };
        assert_eq!(rig.config(at), before | writable, "{at:#x}");
    }
}

#[test]
fn bytes_and_words_are_accesses_too() {
    let rig = Rig::new("amd-iommu");
    rig.iommu.config_write(0x69, &[0x12]);
    rig.iommu.config_write(0x6a, &[0xe0, 0xfe]);
    assert_eq!(rig.config(0x68), 0xfee0_1200);
    rig.iommu.config_write(0x66, &[0x81, 0x00]);
    assert_eq!(
        rig.config(0x64),
        0x0081_7405,
        "MSI enabled by a 16-bit write of message control"
    );
    let mut class = [0; 3];
    rig.iommu.config_read(0x09, &mut class);
    assert_eq!(class, [0x00, 0x06, 0x08]);
    let mut straddling = [0; 8];
    rig.iommu.config_read(0xfe, &mut straddling);
    assert_eq!(straddling, [0; 8]);
    rig.iommu.config_read(0xfffe, &mut straddling);
    assert_eq!(straddling, [0; 8]);
    rig.iommu.config_write(0xfffe, &[0xff; 8]);
    assert_eq!(rig.config(0x00), 0x1451_1022);
}

#[test]
fn the_msi_shadow_registers_are_the_capability() {
    let rig = Rig::new("amd-iommu");
    let shadow = [
        (0x50, offset::MSI_VECTOR_0),
        (0x54, offset::MSI_VECTOR_1),
        (0x64, offset::MSI_CAPABILITY),
        (0x68, offset::MSI_ADDRESS_LOW),
        (0x6c, offset::MSI_ADDRESS_HIGH),
        (0x70, offset::MSI_DATA),
        (0x74, offset::MSI_MAPPING),
    ];
    let in_step = || {
        for (config, mmio) in shadow {
            assert_eq!(
                rig.config(config),
                rig.read32(mmio),
                "{config:#x} {mmio:#x}"
            );
        }
    };
    in_step();
    for (_, mmio) in shadow {
        rig.write32(mmio, u32::MAX);
    }
    in_step();
    assert_eq!(rig.config(0x70), 0xffff);
    assert_eq!(rig.config(0x64) >> 16 & 1, 1);
    for (config, _) in shadow {
        rig.set_config(config, 0x5555_5555);
    }
    in_step();
    assert_eq!(rig.read32(offset::MSI_ADDRESS_LOW), 0x5555_5554);
    rig.write(offset::MSI_ADDRESS_HIGH, 0x0000_0031_0000_0000);
    in_step();
    assert_eq!((rig.config(0x6c), rig.config(0x70)), (0, 0x31));
}

#[test]
fn reset_resets_configuration_space_and_msi() {
    let rig = Rig::new("amd-iommu");
    let read = || {
        (0..0x100)
            .step_by(4)
            .map(|at| rig.config(at))
            .collect::<Vec<_>>()
    };
    let fresh = read();
    for at in (0..0x100).step_by(4) {
        rig.set_config(at, u32::MAX);
    }
    assert_ne!(read(), fresh);
    rig.iommu.reset();
    assert_eq!(read(), fresh);
}
