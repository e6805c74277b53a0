//! A unit and entries that use every field.

use amdvi_regs::ivrs::{
    DeviceEntry, DteSetting, ExtendedSetting, HEADER_SIZE, IvhdFlags, IvhdHeader, IvhdInfo,
    IvhdKind, IvrsBuilder, SpecialVariety, TableHeader, Uid,
};
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, Segment};

pub(crate) fn unit(kind: IvhdKind) -> IvhdHeader {
    IvhdHeader {
        kind,
        flags: IvhdFlags::HT_TUN_EN | IvhdFlags::COHERENT,
        device_id: DeviceId::new(0, 0, 2),
        capability_offset: 0x40,
        mmio_base: 0x1122_3344_5566_7788,
        segment: Segment(0x99aa),
        info: IvhdInfo::new().with_msi_num(3).with_unit_id(0x11),
        feature_word: 0x8004_8f6e,
        efr: ExtendedFeature::from_bits(0x0102_0304_0506_0708),
        efr2: ExtendedFeature2::from_bits(0x1112_1314_1516_1718),
    }
}

pub(crate) fn without_efr(mut header: IvhdHeader) -> IvhdHeader {
    header.efr = ExtendedFeature::new();
    header.efr2 = ExtendedFeature2::new();
    header
}

/// Every defined entry type, with every setting bit in use somewhere.
pub(crate) fn entries() -> Vec<DeviceEntry<'static>> {
    let setting = DteSetting::from_bits(0xd7);
    let device = DeviceId(0x1234);
    let source = DeviceId(0x5678);
    let extended = ExtendedSetting::ATS_DISABLED;
    vec![
        DeviceEntry::Pad4,
        DeviceEntry::All { setting },
        DeviceEntry::Select { device, setting },
        DeviceEntry::RangeStart { device, setting },
        DeviceEntry::RangeEnd { device: source },
        DeviceEntry::Pad8,
        DeviceEntry::AliasSelect {
            device,
            setting,
            source,
        },
        DeviceEntry::AliasRangeStart {
            device,
            setting,
            source,
        },
        DeviceEntry::ExtendedSelect {
            device,
            setting,
            extended,
        },
        DeviceEntry::ExtendedRangeStart {
            device,
            setting,
            extended,
        },
        DeviceEntry::Special {
            setting,
            handle: 0x21,
            device: DeviceId::new(0, 0x14, 0),
            variety: SpecialVariety::IoApic,
        },
        DeviceEntry::Special {
            setting: DteSetting::new(),
            handle: 0,
            device,
            variety: SpecialVariety::Hpet,
        },
    ]
}

pub(crate) fn hid(uid: Uid<'_>) -> DeviceEntry<'_> {
    DeviceEntry::AcpiHid {
        device: DeviceId(0x1234),
        setting: DteSetting::from_bits(0x40),
        hid: *b"AMDI0020",
        cid: [0; 8],
        uid,
    }
}

pub(crate) fn image(entry: &DeviceEntry<'_>) -> Vec<u8> {
    let mut buffer = [0xee; 512];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    builder.ivhd(&unit(IvhdKind::Type40)).unwrap();
    builder.entry(entry).unwrap();
    builder.finish()[HEADER_SIZE + 40..].to_vec()
}
