//! What the builder refuses.

use amdvi_regs::DeviceId;
use amdvi_regs::ivrs::{
    Block, BuildError, DeviceEntry, DteSetting, IvhdKind, Ivrs, IvrsBuilder, TableHeader, Uid,
};

use crate::sample::{hid, unit};

#[test]
fn builder_refuses_what_no_reader_accepts_and_says_why() {
    let mut buffer = [0; 128];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    let select = DeviceEntry::Select {
        device: DeviceId(1),
        setting: DteSetting::new(),
    };
    let error = builder.entry(&select).unwrap_err();
    assert_eq!(error, BuildError::NoBlock { kind: 2 });
    builder.ivhd(&unit(IvhdKind::Type11)).unwrap();
    let error = builder.entry(&hid(Uid::None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ACPI HID entry in an IVHD block of type 11h, only 40h may have one"
    );
    let odd = DeviceEntry::Unknown { bytes: &[0x05; 5] };
    assert_eq!(
        builder.entry(&odd).unwrap_err(),
        BuildError::UnknownEntry { kind: 5, length: 5 }
    );
    let wide = DeviceEntry::Unknown { bytes: &[0x85; 16] };
    assert!(builder.entry(&wide).is_err());
    assert!(builder.entry(&DeviceEntry::Unknown { bytes: &[] }).is_err());
    builder.ivhd(&unit(IvhdKind::Type40)).unwrap();
    let error = builder.entry(&hid(Uid::String(&[b'x'; 256]))).unwrap_err();
    assert_eq!(error, BuildError::UidTooLong { length: 256 });
    // Nothing of what was refused is in the table.
    let ivrs = Ivrs::parse(builder.finish()).unwrap();
    let count: usize = ivrs
        .blocks()
        .map(|block| match block.unwrap() {
            Block::Hardware(unit) => unit.entries().count(),
            other => panic!("{other}"),
        })
        .sum();
    assert_eq!((ivrs.blocks().count(), count), (2, 0));
}

#[test]
fn builder_refuses_a_type_40_block_in_a_revision_1_table() {
    let mut buffer = [0; 128];
    let header = TableHeader {
        revision: 1,
        ..TableHeader::default()
    };
    let mut builder = IvrsBuilder::new(&mut buffer, &header).unwrap();
    let error = builder.ivhd(&unit(IvhdKind::Type40)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IVHD block of type 40h needs table revision 2, not 1"
    );
    builder.ivhd(&unit(IvhdKind::Type11)).unwrap();
}

#[test]
fn builder_reports_how_many_bytes_a_full_buffer_lacks() {
    let error = IvrsBuilder::new(&mut [0; 47], &TableHeader::default()).unwrap_err();
    assert_eq!(
        error,
        BuildError::BufferTooSmall {
            needed: 48,
            have: 47
        }
    );
    let mut buffer = [0; 90];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    builder.ivhd(&unit(IvhdKind::Type11)).unwrap();
    let error = builder.entry(&DeviceEntry::Pad4).unwrap_err();
    assert_eq!(
        error,
        BuildError::BufferTooSmall {
            needed: 92,
            have: 90
        }
    );
    let table = builder.finish();
    assert_eq!(table.len(), 88);
    let blocks: Vec<_> = Ivrs::parse(table).unwrap().blocks().collect();
    assert!(matches!(blocks[..], [Ok(Block::Hardware(_))]));
}

#[test]
fn builder_refuses_a_block_beyond_65535_bytes() {
    let mut buffer = vec![0; 0x2_0000];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    builder.ivhd(&unit(IvhdKind::Type11)).unwrap();
    for _ in 0..(65535 - 40) / 8 {
        builder.entry(&DeviceEntry::Pad8).unwrap();
    }
    builder.entry(&DeviceEntry::Pad4).unwrap();
    let error = builder.entry(&DeviceEntry::Pad4).unwrap_err();
    assert_eq!(error, BuildError::BlockTooLong { length: 65536 });
}
