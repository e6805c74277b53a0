use super::*;
use amdvi_regs::ivrs::{Block, Ivhd, IvmdFlags, IvmdKind, Ivrs};

const MMIO: u64 = 0xfeb8_0000;

/// XT, NX, GT, IA, GA, HATS = 2, GATS = 1, PASmax = 15; EFR2 with 2K.
fn unit() -> IommuUnit {
    IommuUnit {
        efr: ExtendedFeature::new()
            .with_xt_sup(true)
            .with_nx_sup(true)
            .with_gt_sup(true)
            .with_ia_sup(true)
            .with_ga_sup(true)
            .with_hats(2)
            .with_gats(1)
            .with_pas_max(15),
        efr2: ExtendedFeature2::new().with_num_int_remap_sup(1),
        specials: vec![
            Special::southbridge_ioapic(3),
            Special::hpet(0, SOUTHBRIDGE),
        ],
        ..IommuUnit::new(DeviceId::new(0, 0, 2), 0x40, MMIO)
    }
}

fn config() -> IvrsConfig {
    IvrsConfig {
        units: vec![unit()],
        ..IvrsConfig::default()
    }
}

fn hardware(table: &[u8]) -> Vec<Ivhd<'_>> {
    Ivrs::parse(table)
        .unwrap()
        .blocks()
        .map(Result::unwrap)
        .filter_map(|block| match block {
            Block::Hardware(block) => Some(block),
            _ => None,
        })
        .collect()
}

fn error(change: impl FnOnce(&mut IommuUnit)) -> String {
    let mut config = config();
    change(&mut config.units[0]);
    config.build().unwrap_err().to_string()
}

#[test]
fn the_header_is_acpis_with_a_valid_checksum_and_length() {
    let table = config().build().unwrap();
    assert_eq!(&table[0..4], b"IVRS");
    assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
    assert_eq!(table[8], 2, "revision 2: a block of type 40h is there");
    assert_eq!(
        table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(table[40..48], [0; 8]);
}

#[test]
fn iv_info_has_efrsup_and_the_address_sizes() {
    let iv_info = |config: &IvrsConfig| {
        let table = config.build().unwrap();
        u32::from_le_bytes(table[36..40].try_into().unwrap())
    };
    let mut config = config();
    // EFRSup, GVAsize = 3 (57 bits, GATS = 1), PAsize = 48, VAsize = 64.
    assert_eq!(iv_info(&config), 1 | 3 << 5 | 48 << 8 | 64 << 15);
    config.dma_remap_sup = true;
    config.units[0].efr.set_gats(0);
    // The value that real firmware has.
    assert_eq!(iv_info(&config), 0x0020_3043);
    config.units[0].efr = ExtendedFeature::new();
    config.units[0].efr2 = ExtendedFeature2::new();
    assert_eq!(iv_info(&config) & 1, 0, "no EFR, no EFRSup");
    config.pa_bits = 52;
    config.va_bits = 48;
    assert_eq!(iv_info(&config) >> 8, 52 | 48 << 7);
}

#[test]
fn one_block_per_type_in_ascending_order_with_their_literal_bytes() {
    let mut config = config();
    config.units[0].kinds = vec![IvhdKind::Type40, IvhdKind::Type10, IvhdKind::Type11];
    let table = config.build().unwrap();
    #[rustfmt::skip]
    let entries: [u8; 32] = [
        0x03, 0x00, 0x00, 0x00,  0x04, 0x01, 0x00, 0x00, // 00:00.0 to 00:00.1
        0x03, 0x03, 0x00, 0x00,  0x04, 0xff, 0xff, 0x00, // 00:00.3 to ff:1f.7
        0x48, 0x00, 0x00, 0xd7,  0x03, 0xa0, 0x00, 0x01, // IOAPIC 3 is 00:14.0
        0x48, 0x00, 0x00, 0x00,  0x00, 0xa0, 0x00, 0x02, // HPET 0 is 00:14.0
    ];
    #[rustfmt::skip]
    let type_10: [u8; 24] = [
        0x10, 0x00, 56, 0, 0x02, 0x00, 0x40, 0x00,
        0x00, 0x00, 0xb8, 0xfe, 0, 0, 0, 0,
        0, 0, 0, 0, 0x67, 0x0f, 0x00, 0x90, // XT NX GT IA GA, PASmax 15, GATS 1, HATS 2
    ];
    assert_eq!(table[48..72], type_10);
    assert_eq!(table[72..104], entries);
    #[rustfmt::skip]
    let type_11: [u8; 40] = [
        0x11, 0x00, 72, 0, 0x02, 0x00, 0x40, 0x00,
        0x00, 0x00, 0xb8, 0xfe, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0xdc, 0x18, 0, 0, 0x0f, 0, 0, 0, // EFR
        0x00, 0x01, 0, 0, 0, 0, 0, 0, // EFR2: 2K
    ];
    assert_eq!(table[104..144], type_11);
    assert_eq!(table[144..176], entries);
    assert_eq!(table[176], 0x40);
    assert_eq!(table[177..216], type_11[1..]);
    assert_eq!(table[216..248], entries);
    assert_eq!(table.len(), 248);
}

#[test]
fn hats_and_gats_of_a_10h_block_do_not_overflow() {
    for (hats, gats) in [(0, 0), (1, 0), (2, 1), (3, 1), (3, 3)] {
        let mut config = config();
        config.units[0].efr.set_hats(hats);
        config.units[0].efr.set_gats(gats);
        let table = config.build().unwrap();
        let word = u32::from_le_bytes(table[68..72].try_into().unwrap());
        assert_eq!(word >> 30, u32::from(hats));
        assert_eq!(word >> 28 & 3, u32::from(gats));
        assert_eq!(
            word & 0x0fff_ffff,
            0x0000_0f67,
            "the neighbours are untouched"
        );
    }
}

#[test]
fn the_feature_word_of_a_known_machine() {
    let mut config = config();
    let unit = &mut config.units[0];
    unit.efr = ExtendedFeature::new()
        .with_nx_sup(true)
        .with_gt_sup(true)
        .with_glx_sup(1)
        .with_ia_sup(true)
        .with_ga_sup(true)
        .with_pas_max(15)
        .with_pc_sup(true)
        .with_hats(2);
    (unit.pn_counters, unit.pn_banks) = (4, 2);
    let table = config.build().unwrap();
    let blocks = hardware(&table);
    assert_eq!(blocks[0].header.feature_word, 0x8004_8f6e);
    assert_eq!(blocks[1].header.feature_word, 0x0004_8000);
}

#[test]
fn prefsup_and_pprsup_are_flags_of_type_10h_only() {
    let mut config = config();
    let unit = &mut config.units[0];
    unit.flags = IvhdFlags::IOTLB_SUP | IvhdFlags::COHERENT | IvhdFlags::PPR_SUP;
    unit.efr.set_pre_f_sup(true);
    let table = config.build().unwrap();
    let flags: Vec<u8> = hardware(&table)
        .iter()
        .map(|block| block.header.flags.bits())
        .collect();
    assert_eq!(flags, [0x70, 0x30, 0x30]);
}

#[test]
fn hatdis_and_message_numbers_stand_in_the_attributes() {
    let mut config = config();
    let unit = &mut config.units[0];
    unit.hat_dis = true;
    unit.msi_num = 1;
    unit.msi_num_ppr = 2;
    unit.segment = Segment(0x1234);
    let table = config.build().unwrap();
    let blocks = hardware(&table);
    assert_eq!(blocks[0].header.feature_word >> 23 & 0x1f, 2);
    assert_eq!(blocks[1].header.feature_word, 1 | 2 << 23);
    for block in blocks {
        assert_eq!(block.header.info.into_bits(), 1);
        assert_eq!(block.header.segment, Segment(0x1234));
    }
}

#[test]
fn no_entry_covers_all_devices_and_every_range_end_follows_its_start() {
    let mut config = config();
    let setting = DteSetting::new();
    config.units[0].devices.push(Coverage::AliasRange {
        first: DeviceId::new(5, 0, 0),
        last: DeviceId::new(5, 31, 7),
        source: DeviceId::new(4, 0, 0),
        setting,
    });
    let table = config.build().unwrap();
    for block in hardware(&table) {
        let kinds: Vec<u8> = block.entries().map(|entry| entry.unwrap().kind()).collect();
        assert!(!kinds.contains(&0x01));
        for (at, kind) in kinds.iter().enumerate() {
            let starts = matches!(kind, 0x03 | 0x43 | 0x47);
            let next_ends = kinds.get(at + 1) == Some(&0x04);
            assert_eq!(starts, next_ends, "{kinds:x?}");
        }
    }
}

#[test]
fn coverage_leaves_out_the_iommu_itself() {
    let bounds = |id| -> Vec<_> {
        Coverage::all_but(DeviceId(id))
            .iter()
            .map(Coverage::bounds)
            .collect()
    };
    let range = |first, last| (DeviceId(first), DeviceId(last));
    assert_eq!(bounds(2), [range(0, 1), range(3, 0xffff)]);
    assert_eq!(bounds(0), [range(1, 0xffff)]);
    assert_eq!(bounds(0xffff), [range(0, 0xfffe)]);
}

#[test]
fn every_kind_of_entry_parses_back() {
    let mut config = config();
    let setting = DteSetting::new().with_nmi_pass(true);
    let (a, b) = (DeviceId::new(1, 0, 0), DeviceId::new(1, 2, 3));
    config.units[0].devices = vec![
        Coverage::Single { device: b, setting },
        Coverage::Range {
            first: a,
            last: b,
            setting,
        },
        Coverage::Alias {
            device: b,
            source: a,
            setting,
        },
        Coverage::AliasRange {
            first: a,
            last: b,
            source: a,
            setting,
        },
        Coverage::Extended {
            device: b,
            setting,
            extended: ExtendedSetting::ATS_DISABLED,
        },
    ];
    config.units[0].specials.clear();
    config.units[0].acpi = vec![AcpiDevice {
        device: a,
        setting,
        hid: *b"AMDI0020",
        cid: [0; 8],
        uid: AcpiUid::String(r"\_SB.FUR0".into()),
    }];
    let table = config.build().unwrap();
    let expected = [
        DeviceEntry::Select { device: b, setting },
        DeviceEntry::RangeStart { device: a, setting },
        DeviceEntry::RangeEnd { device: b },
        DeviceEntry::AliasSelect {
            device: b,
            setting,
            source: a,
        },
        DeviceEntry::AliasRangeStart {
            device: a,
            setting,
            source: a,
        },
        DeviceEntry::RangeEnd { device: b },
        DeviceEntry::ExtendedSelect {
            device: b,
            setting,
            extended: ExtendedSetting::ATS_DISABLED,
        },
    ];
    let acpi = DeviceEntry::AcpiHid {
        device: a,
        setting,
        hid: *b"AMDI0020",
        cid: [0; 8],
        uid: Uid::String(br"\_SB.FUR0"),
    };
    for block in hardware(&table) {
        let entries: Vec<_> = block.entries().map(Result::unwrap).collect();
        assert_eq!(entries[..7], expected);
        // Other readers give up on an entry type that they don't know.
        let with_acpi = block.header.kind == IvhdKind::Type40;
        assert_eq!(entries[7..], if with_acpi { vec![acpi] } else { vec![] });
    }
}

#[test]
fn two_units_are_grouped_by_type_and_memory_comes_last() {
    let mut config = config();
    let mut second = unit();
    second.segment = Segment(1);
    second.mmio_base = 0xfeb0_0000;
    second.specials.clear();
    config.units.push(second);
    let memory = Ivmd {
        kind: IvmdKind::Device,
        flags: IvmdFlags::UNITY | IvmdFlags::IR | IvmdFlags::IW,
        device_id: DeviceId::new(3, 0, 0),
        last_device_id: DeviceId(0),
        segment: Segment(0),
        start: 0x8000_0000,
        length: 0x1_0000,
    };
    config.memory.push(memory);
    let table = config.build().unwrap();
    let blocks: Vec<_> = Ivrs::parse(&table)
        .unwrap()
        .blocks()
        .map(Result::unwrap)
        .collect();
    let kinds: Vec<(u8, u16)> = blocks
        .iter()
        .map(|block| match block {
            Block::Hardware(block) => (block.header.kind.bits(), block.header.segment.0),
            Block::Memory(range) => (range.kind.bits(), range.segment.0),
            Block::Unknown { kind, .. } => (*kind, 0xffff),
        })
        .collect();
    let expected = [
        (0x10, 0),
        (0x10, 1),
        (0x11, 0),
        (0x11, 1),
        (0x40, 0),
        (0x40, 1),
        (0x21, 0),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(blocks[6], Block::Memory(memory));
}

#[test]
fn a_table_without_type_40h_has_revision_1() {
    let mut config = config();
    config.units[0].kinds = vec![IvhdKind::Type11, IvhdKind::Type10];
    assert_eq!(config.build().unwrap()[8], 1);
}

#[test]
fn what_guests_stumble_over_is_refused_with_the_reason() {
    type Case = (&'static str, fn(&mut IommuUnit));
    let cases: [Case; 19] = [
        ("`device_id` is 0x0", |unit| unit.device_id = DeviceId(0)),
        ("`capability_offset` is 0x0", |unit| {
            unit.capability_offset = 0
        }),
        ("`capability_offset` is 0x42", |unit| {
            unit.capability_offset = 0x42
        }),
        ("`mmio_base` is 0x0", |unit| unit.mmio_base = 0),
        ("multiples of 16 KiB", |unit| unit.mmio_base = MMIO + 0x1000),
        ("0xfed80000", |unit| unit.mmio_base = 0xfed8_0000),
        ("multiples of 512 KiB", |unit| {
            unit.efr.set_pc_sup(true);
            unit.mmio_base = MMIO + 0x4000;
        }),
        ("`msi_num` is 0x20", |unit| unit.msi_num = 32),
        ("`pn_banks` is 0x40", |unit| unit.pn_banks = 64),
        ("`efr.PASmax` is 0x10", |unit| unit.efr.set_pas_max(16)),
        ("`kinds`", |unit| unit.kinds.clear()),
        ("`kinds`", |unit| unit.kinds.push(IvhdKind::Type10)),
        ("EFR.PCSup", |unit| unit.efr.set_pc_sup(true)),
        ("EFR.PCSup", |unit| unit.pn_counters = 1),
        ("2048 interrupts", |unit| {
            unit.kinds = vec![IvhdKind::Type10]
        }),
        ("2048 interrupts", |unit| unit.efr.set_ga_sup(false)),
        ("`devices` is empty", |unit| unit.devices.clear()),
        ("IOAPIC with handle 3 is listed twice", |unit| {
            unit.specials.push(Special::southbridge_ioapic(3));
        }),
        ("a special device uses DeviceID 00:14.0", |unit| {
            unit.devices = vec![Coverage::Single {
                device: DeviceId::new(0, 3, 0),
                setting: DteSetting::new(),
            }];
        }),
    ];
    for (expected, change) in cases {
        let error = error(change);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn bad_ranges_aliases_and_acpi_devices_are_refused() {
    let setting = DteSetting::new();
    let (first, last) = (DeviceId(0x20), DeviceId(0x10));
    let backwards = error(|unit| {
        unit.devices.push(Coverage::Range {
            first,
            last,
            setting,
        })
    });
    assert!(
        backwards.contains("00:04.0 to 00:02.0 ends before it starts"),
        "{backwards}"
    );
    let alias = error(|unit| {
        let device = DeviceId::new(0, 0x14, 0);
        let source = DeviceId::new(9, 0, 0);
        unit.devices = vec![Coverage::Alias {
            device,
            source,
            setting,
        }];
    });
    assert!(alias.contains("an alias uses DeviceID 09:00.0"), "{alias}");
    let device = AcpiDevice {
        device: first,
        setting,
        hid: [0; 8],
        cid: [0; 8],
        uid: AcpiUid::String("x".repeat(256)),
    };
    let long = error(|unit| unit.acpi = vec![device.clone()]);
    assert!(long.contains("more than 255 bytes"), "{long}");
    let kind = error(|unit| {
        unit.acpi = vec![AcpiDevice {
            uid: AcpiUid::Integer(1),
            ..device
        }];
        unit.kinds = vec![IvhdKind::Type11];
    });
    assert!(kind.contains("40h"), "{kind}");
}

#[test]
fn bad_tables_are_refused() {
    let error = |change: fn(&mut IvrsConfig)| {
        let mut config = config();
        change(&mut config);
        config.build().unwrap_err().to_string()
    };
    assert!(error(|config| config.units.clear()).contains("`units` is empty"));
    assert!(error(|config| config.pa_bits = 53).contains("`pa_bits` is 53"));
    assert!(error(|config| config.va_bits = 63).contains("`va_bits` is 63"));
    assert!(error(|config| config.units.push(unit())).contains("two IOMMUs have DeviceID 00:00.2"));
    assert!(
        error(|config| {
            let mut other = unit();
            other.segment = Segment(1);
            other.kinds.pop();
            config.units.push(other);
        })
        .contains("highest block type")
    );
    assert!(
        error(|config| {
            let setting = DteSetting::new();
            let device = DeviceId(0xa0);
            config.units[0].devices = vec![Coverage::Single { device, setting }; 20_000];
        })
        .contains("at most 65535 fit")
    );
}

#[test]
fn bad_memory_ranges_are_refused() {
    let good = Ivmd {
        kind: IvmdKind::Range,
        flags: IvmdFlags::UNITY,
        device_id: DeviceId(0x10),
        last_device_id: DeviceId(0x18),
        segment: Segment(0),
        start: 0x1000,
        length: 0x1000,
    };
    let build = |range: Ivmd| {
        let mut config = config();
        config.memory.push(range);
        config.build().map_err(|error| error.to_string())
    };
    assert!(build(good).is_ok());
    let cases = [
        (
            Ivmd {
                device_id: DeviceId(2),
                ..good
            },
            "an IOMMU's",
        ),
        (Ivmd { length: 0, ..good }, "length is 0"),
        (
            Ivmd {
                start: u64::MAX - 0xfff,
                length: 0x2000,
                ..good
            },
            "beyond the address space",
        ),
        (
            Ivmd {
                start: 0x1800,
                ..good
            },
            "4 KiB",
        ),
        (
            Ivmd {
                last_device_id: DeviceId(0xf),
                ..good
            },
            "ends before it starts",
        ),
    ];
    for (range, expected) in cases {
        let error = build(range).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
