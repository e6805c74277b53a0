//! Literal images, known values and round trips.

use amdvi_regs::ivrs::{
    Block, DeviceEntries, HEADER_SIZE, IvInfo, IvhdAttributes, IvhdFeatures, IvhdHeader, IvhdKind,
    Ivmd, IvmdFlags, IvmdKind, Ivrs, IvrsBuilder, TableHeader, Uid,
};
use amdvi_regs::mmio::ExtendedFeature;
use amdvi_regs::{DeviceId, Segment};

use crate::sample::{entries, hid, image, unit, without_efr};

#[test]
fn each_device_entry_has_its_literal_image() {
    let images: [&[u8]; 12] = [
        &[0x00, 0, 0, 0],
        &[0x01, 0, 0, 0xd7],
        &[0x02, 0x34, 0x12, 0xd7],
        &[0x03, 0x34, 0x12, 0xd7],
        &[0x04, 0x78, 0x56, 0],
        &[0x40, 0, 0, 0, 0, 0, 0, 0],
        &[0x42, 0x34, 0x12, 0xd7, 0, 0x78, 0x56, 0],
        &[0x43, 0x34, 0x12, 0xd7, 0, 0x78, 0x56, 0],
        &[0x46, 0x34, 0x12, 0xd7, 0, 0, 0, 0x80],
        &[0x47, 0x34, 0x12, 0xd7, 0, 0, 0, 0x80],
        &[0x48, 0, 0, 0xd7, 0x21, 0xa0, 0x00, 1],
        &[0x48, 0, 0, 0, 0, 0x34, 0x12, 2],
    ];
    for (entry, want) in entries().iter().zip(images) {
        assert_eq!(image(entry), want, "{entry}");
        assert_eq!(entry.encoded_len(), want.len(), "{entry}");
    }
}

#[test]
fn acpi_hid_entry_has_its_literal_image_for_each_uid_format() {
    let head = [
        0xf0, 0x34, 0x12, 0x40, b'A', b'M', b'D', b'I', b'0', b'0', b'2', b'0', 0, 0, 0, 0, 0, 0,
        0, 0,
    ];
    let rows: [(Uid<'_>, &[u8]); 4] = [
        (Uid::None, &[0, 0]),
        (Uid::Integer(0x0102), &[1, 8, 2, 1, 0, 0, 0, 0, 0, 0]),
        (Uid::String(b"\\_SB"), &[2, 4, b'\\', b'_', b'S', b'B']),
        (
            Uid::Other {
                format: 1,
                bytes: &[9],
            },
            &[1, 1, 9],
        ),
    ];
    for (uid, tail) in rows {
        let want = [&head, tail].concat();
        assert_eq!(image(&hid(uid)), want, "{uid}");
        let read: Vec<_> = DeviceEntries::new(&want, 0).collect();
        assert_eq!(read, [Ok(hid(uid))]);
    }
}

#[test]
fn block_headers_have_their_literal_image() {
    let common = [
        0x21, 0, 0, 0x02, 0x00, 0x40, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xaa,
        0x99, 0x03, 0x11, 0x6e, 0x8f, 0x04, 0x80,
    ];
    let efr = [
        8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
    ];
    for (kind, byte, length) in [
        (IvhdKind::Type10, 0x10, 24),
        (IvhdKind::Type11, 0x11, 40),
        (IvhdKind::Type40, 0x40, 40),
    ] {
        let mut buffer = [0xee; 128];
        let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
        builder.ivhd(&unit(kind)).unwrap();
        let table = builder.finish();
        let mut want = vec![byte];
        want.extend(common);
        want[2] = length;
        if kind != IvhdKind::Type10 {
            want.extend(efr);
        }
        assert_eq!(table[HEADER_SIZE..], want, "type {byte:x}h");
    }
}

#[test]
fn ivmd_has_its_literal_image_and_reads_back() {
    for (kind, byte) in [
        (IvmdKind::All, 0x20),
        (IvmdKind::Device, 0x21),
        (IvmdKind::Range, 0x22),
    ] {
        let range = Ivmd {
            kind,
            flags: IvmdFlags::UNITY | IvmdFlags::IW | IvmdFlags::EXCLUSION_RANGE,
            device_id: DeviceId(0x0102),
            last_device_id: DeviceId(0x0304),
            segment: Segment(0x0506),
            start: 0x1112_1314_1516_1718,
            length: 0x2122_2324_2526_2728,
        };
        let mut buffer = [0xee; 128];
        let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
        builder.ivmd(&range).unwrap();
        let table = builder.finish();
        let want = [
            byte, 0x0d, 32, 0, 2, 1, 4, 3, 6, 5, 0, 0, 0, 0, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14,
            0x13, 0x12, 0x11, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,
        ];
        assert_eq!(table[HEADER_SIZE..], want);
        let blocks: Vec<_> = Ivrs::parse(table).unwrap().blocks().collect();
        assert_eq!(blocks, [Ok(Block::Memory(range))]);
        assert!(range.applies_to(DeviceId(0x0102)));
        assert_eq!(range.applies_to(DeviceId(0x0304)), kind != IvmdKind::Device);
        assert_eq!(range.applies_to(DeviceId(0x0305)), kind == IvmdKind::All);
    }
}

#[test]
fn table_header_has_its_literal_image_with_length_and_checksum() {
    let mut buffer = [0xee; 64];
    let header = TableHeader {
        oem_revision: 0x0102_0304,
        creator_revision: 0x0506_0708,
        ..TableHeader::default()
    };
    let builder = IvrsBuilder::new(&mut buffer, &header).unwrap();
    assert_eq!((builder.len(), builder.is_empty()), (48, false));
    let table = builder.finish();
    let mut want = *b"IVRS\x30\0\0\0\x02\0AMDVI AMDVIOMU\x04\x03\x02\x01AMVI\x08\x07\x06\x05\
        \x41\x30\x20\0\0\0\0\0\0\0\0\0";
    want[9] = 0u8.wrapping_sub(want.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    assert_eq!(table, want);
    let ivrs = Ivrs::parse(table).unwrap();
    assert!(ivrs.checksum_is_valid());
    assert_eq!(ivrs.header(), header);
    assert_eq!(ivrs.blocks().next(), None);
}

#[test]
fn a_wrong_byte_breaks_the_checksum_only() {
    let mut buffer = [0; 64];
    let table = IvrsBuilder::new(&mut buffer, &TableHeader::default())
        .unwrap()
        .finish();
    let mut copy = table.to_vec();
    copy[40] ^= 1;
    let ivrs = Ivrs::parse(&copy).unwrap();
    assert!(!ivrs.checksum_is_valid());
    assert!(ivrs.to_string().ends_with("checksum=bad"));
}

#[test]
fn iv_info_of_a_real_table_decodes_as_known() {
    let info = IvInfo::from_bits(0x0020_3043);
    assert_eq!(
        info.to_string(),
        "EFRSup DMARemapSup GVAsize=2 PAsize=48 VAsize=64"
    );
}

#[test]
fn feature_and_attribute_words_of_real_tables_decode_as_known() {
    assert_eq!(
        IvhdFeatures::from_bits(0x8004_8f6e).to_string(),
        "NXSup GTSup GLXSup=1 IASup GASup PASmax=15 PNCounters=4 PNBanks=2 GATS=0 HATS=2"
    );
    assert_eq!(
        IvhdAttributes::from_bits(0x0004_8000).to_string(),
        "PNCounters=4 PNBanks=2"
    );
}

#[test]
fn features_of_a_type_10_block_repeat_the_efr() {
    let efr = ExtendedFeature::from_bits(0x2465_77ef_a225_4afa);
    let features = IvhdFeatures::from_efr(efr)
        .with_pn_counters(4)
        .with_pn_banks(2);
    assert_eq!(features.into_bits(), 0x8004_8f6e);
}

#[test]
fn all_blocks_and_entries_survive_the_round_trip() {
    let mut buffer = [0; 2048];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    let range = Ivmd {
        kind: IvmdKind::All,
        flags: IvmdFlags::UNITY,
        device_id: DeviceId(0),
        last_device_id: DeviceId(0),
        segment: Segment(0),
        start: 0x1000,
        length: 0x2000,
    };
    let uid = Uid::String(b"\\_SB.FUR0");
    for kind in [IvhdKind::Type10, IvhdKind::Type11, IvhdKind::Type40] {
        builder.ivhd(&unit(kind)).unwrap();
        for entry in entries() {
            builder.entry(&entry).unwrap();
        }
        if kind == IvhdKind::Type40 {
            builder.entry(&hid(uid)).unwrap();
        }
        builder.ivmd(&range).unwrap();
    }
    let ivrs = Ivrs::parse(builder.finish()).unwrap();
    assert!(ivrs.checksum_is_valid());
    let mut seen = Vec::new();
    for block in ivrs.blocks() {
        match block.unwrap() {
            Block::Hardware(found) => {
                let kind = found.header.kind;
                let want = match kind {
                    IvhdKind::Type10 => without_efr(unit(kind)),
                    _ => unit(kind),
                };
                assert_eq!(found.header, want);
                assert_eq!(found.header.features().is_some(), kind == IvhdKind::Type10);
                assert_eq!(
                    found.header.attributes().is_some(),
                    kind != IvhdKind::Type10
                );
                let mut want: Vec<_> = entries().into_iter().map(Ok).collect();
                if kind == IvhdKind::Type40 {
                    want.push(Ok(hid(uid)));
                }
                assert_eq!(found.entries().collect::<Vec<_>>(), want);
                seen.push(kind.bits());
            }
            Block::Memory(found) => {
                assert_eq!(found, range);
                seen.push(found.kind.bits());
            }
            Block::Unknown { kind, .. } => panic!("unknown block {kind:x}h"),
        }
    }
    assert_eq!(seen, [0x10, 0x20, 0x11, 0x20, 0x40, 0x20]);
}

#[test]
fn a_table_prints_one_line_per_block_and_entry() {
    let mut buffer = [0; 256];
    let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
    builder
        .ivhd(&IvhdHeader {
            device_id: DeviceId::new(0, 0, 2),
            capability_offset: 0x40,
            mmio_base: 0xfed8_0000,
            feature_word: 0x0004_8000,
            ..IvhdHeader::new(IvhdKind::Type11)
        })
        .unwrap();
    builder.entry(&entries()[10]).unwrap();
    let text = Ivrs::parse(builder.finish()).unwrap().to_string();
    assert_eq!(
        text,
        "IVRS revision=2 oem=\"AMDVI \" table=\"AMDVIOMU\" EFRSup GVAsize=2 PAsize=48 VAsize=64\n\
         IVHD 11h iommu=0000:00:00.2 cap=0x40 mmio=0xfed80000 flags=[-] info=[-] \
         attributes=[PNCounters=4 PNBanks=2] efr=[HATS=0 GATS=0] efr2=[-]\n  \
         48h IOAPIC handle=33 as 00:14.0 [InitPass EIntPass NMIPass SysMgt=forward-all Lint0Pass \
         Lint1Pass]"
    );
}
