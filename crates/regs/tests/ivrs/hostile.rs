//! Bytes that are no table, and any bytes at all.

use amdvi_regs::ivrs::{
    Block, DeviceEntries, DeviceEntry, HEADER_SIZE, IvhdKind, Ivrs, IvrsBuilder, IvrsError,
    TableHeader, Uid,
};
use proptest::prelude::*;

use crate::sample::{entries, hid, image, unit};

#[test]
fn parse_refuses_what_is_no_table_and_says_why() {
    assert_eq!(Ivrs::parse(b"IVRS"), Err(IvrsError::TooShort { have: 4 }));
    let mut bytes = [0; 48];
    assert_eq!(Ivrs::parse(&bytes), Err(IvrsError::Signature([0; 4])));
    bytes[..4].copy_from_slice(b"IVRS");
    for length in [0, 47, 49, u32::MAX] {
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let error = IvrsError::Length { length, have: 48 };
        assert_eq!(Ivrs::parse(&bytes), Err(error));
    }
    bytes[4] = 48;
    bytes[5..8].fill(0);
    assert!(Ivrs::parse(&bytes).is_ok());
    assert_eq!(
        IvrsError::Length {
            length: 47,
            have: 48
        }
        .to_string(),
        "IVRS length field is 47, accepted is 48 to 48"
    );
}

/// A table with `blocks` after its header.
fn table(blocks: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes[..4].copy_from_slice(b"IVRS");
    bytes.extend(blocks);
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn a_block_of_impossible_length_ends_the_table_with_an_error() {
    for (blocks, minimum) in [
        (&[0x10, 0, 0, 0, 0, 0, 0, 0][..], 24),
        (&[0x11, 0, 39, 0], 40),
        (&[0x40, 0, 0xff, 0xff], 40),
        (&[0x20, 0, 31, 0], 32),
        (&[0x77, 0, 3, 0], 4),
        (&[0x77, 0, 0, 0, 0x77, 0, 4, 0], 4),
        (&[0x77, 0, 4], 4),
    ] {
        let bytes = table(blocks);
        let ivrs = Ivrs::parse(&bytes).unwrap();
        let found: Vec<_> = ivrs.blocks().collect();
        match found[..] {
            [
                Err(IvrsError::Block {
                    offset: 48,
                    minimum: found,
                    left,
                    ..
                }),
            ] => {
                assert_eq!((found, left), (minimum, blocks.len()));
            }
            _ => panic!("{blocks:x?} gives {found:?}"),
        }
    }
}

#[test]
fn an_unknown_block_is_skipped_by_its_length() {
    let mut blocks = vec![0x77, 0, 6, 0, 1, 2];
    blocks.extend([0x78, 0, 4, 0]);
    let bytes = table(&blocks);
    let found: Vec<_> = Ivrs::parse(&bytes).unwrap().blocks().collect();
    assert_eq!(
        found,
        [
            Ok(Block::Unknown {
                kind: 0x77,
                bytes: &blocks[..6]
            }),
            Ok(Block::Unknown {
                kind: 0x78,
                bytes: &blocks[6..]
            }),
        ]
    );
}

#[test]
fn a_truncated_or_unknown_entry_ends_its_block_with_an_error() {
    let truncated = |bytes: &[u8]| DeviceEntries::new(bytes, 0x58).collect::<Vec<_>>().len();
    assert_eq!(truncated(&[2, 0, 0]), 1);
    let rows: [(&[u8], IvrsError); 4] = [
        (
            &[0x02, 0, 0],
            IvrsError::Entry {
                offset: 0x58,
                kind: 2,
                length: 4,
                left: 3,
            },
        ),
        (
            &[0x48, 0, 0, 0, 0, 0, 0],
            IvrsError::Entry {
                offset: 0x58,
                kind: 0x48,
                length: 8,
                left: 7,
            },
        ),
        (
            &[0xf0; 22],
            IvrsError::Entry {
                offset: 0x58,
                kind: 0xf0,
                length: 22 + 0xf0,
                left: 22,
            },
        ),
        (
            &[0x80; 64],
            IvrsError::UnknownEntry {
                offset: 0x58,
                kind: 0x80,
            },
        ),
    ];
    for (bytes, error) in rows {
        let found: Vec<_> = DeviceEntries::new(bytes, 0x58).collect();
        assert_eq!(found, [Err(error)]);
    }
    let found: Vec<_> =
        DeviceEntries::new(&[0x05, 1, 2, 3, 0x4f, 0, 0, 0, 0, 0, 0, 9], 0).collect();
    assert_eq!(
        found,
        [
            Ok(DeviceEntry::Unknown {
                bytes: &[5, 1, 2, 3]
            }),
            Ok(DeviceEntry::Unknown {
                bytes: &[0x4f, 0, 0, 0, 0, 0, 0, 9]
            }),
        ],
        "an unknown type below 80h has the length that its top bits say"
    );
}

/// Reads everything that `bytes` hold; returns how many items the iterators gave.
fn walk(bytes: &[u8]) -> usize {
    let Ok(ivrs) = Ivrs::parse(bytes) else {
        return 0;
    };
    let mut items = 0;
    for block in ivrs.blocks() {
        items += 1;
        if let Ok(Block::Hardware(unit)) = block {
            items += unit.entries().count();
        }
    }
    assert!(!ivrs.to_string().is_empty());
    items
}

proptest! {
    #[test]
    fn any_bytes_are_read_in_bounded_steps(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(walk(&bytes) <= bytes.len());
        prop_assert!(walk(&table(&bytes)) <= HEADER_SIZE + bytes.len());
        let entries = DeviceEntries::new(&bytes, 0).count();
        prop_assert!(entries <= bytes.len());
    }

    #[test]
    fn a_damaged_table_is_read_in_bounded_steps(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut buffer = [0; 1024];
        let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default()).unwrap();
        for kind in [IvhdKind::Type10, IvhdKind::Type40] {
            builder.ivhd(&unit(kind)).unwrap();
            for entry in entries() {
                builder.entry(&entry).unwrap();
            }
        }
        builder.entry(&hid(Uid::Integer(1))).unwrap();
        let mut bytes = builder.finish().to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert!(walk(&bytes) <= bytes.len());
    }

    #[test]
    fn what_is_read_is_written_and_read_back_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 4..64),
    ) {
        for entry in DeviceEntries::new(&bytes, 0).flatten() {
            let written = image(&entry);
            let again: Vec<_> = DeviceEntries::new(&written, 0).collect();
            prop_assert_eq!(&again[..], &[Ok(entry)][..]);
        }
    }
}
