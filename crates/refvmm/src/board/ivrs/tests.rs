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

fn variant(device: &str, variant: &str) -> Config {
    Config {
        ivrs: variant.parse().unwrap(),
        ..Config::scenario(device.parse().unwrap())
    }
}

/// The blocks of hardware: header and entries.
fn units(table: &[u8]) -> Vec<(amdvi_regs::ivrs::IvhdHeader, Vec<DeviceEntry<'_>>)> {
    let ivrs = Ivrs::parse(table).unwrap();
    ivrs.blocks()
        .filter_map(|block| match block.unwrap() {
            Block::Hardware(unit) => {
                Some((unit.header, unit.entries().map(Result::unwrap).collect()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn types_choose_the_blocks() {
    let bytes = table(&variant("amd-iommu,ga=off,ia=off", "types=10")).unwrap();
    let kinds: Vec<_> = units(&bytes).iter().map(|unit| unit.0.kind).collect();
    assert_eq!(kinds, [IvhdKind::Type10]);
    let bytes = table(&variant("amd-iommu", "types=11+10")).unwrap();
    let kinds: Vec<_> = units(&bytes).iter().map(|unit| unit.0.kind).collect();
    assert_eq!(kinds, [IvhdKind::Type10, IvhdKind::Type11]);
    let error = table(&variant("amd-iommu,numint2k=on", "types=10")).unwrap_err();
    assert!(error.to_string().contains("11h or 40h"), "{error}");
}

#[test]
fn the_ioapic_is_listed_where_it_is_or_not_at_all() {
    let special = |text: &str| {
        let bytes = table(&variant("amd-iommu", text)).unwrap();
        units(&bytes)[0].1.iter().find_map(|entry| match entry {
            DeviceEntry::Special { device, .. } => Some(*device),
            _ => None,
        })
    };
    assert_eq!(special(""), Some(IOAPIC));
    assert_eq!(special("ioapic=1f.0"), Some(DeviceId::new(0, 0x1f, 0)));
    assert_eq!(special("ioapic=off"), None);
}

#[test]
fn aliases_memory_and_acpi_devices_stand_in_the_table() {
    let text = "alias=07.0@05.0,alias=08.0-09.7@05.0,unity=0x1000-0x1fff@05.0:r,\
                exclusion=0x2000-0x3fff,acpi=AMDI0040@1e.0/\\_SB.SDHC,hat-dis=on,\
                flags=isoc+coherent,dma-guard=on";
    let bytes = table(&variant("amd-iommu", text)).unwrap();
    let ivrs = Ivrs::parse(&bytes).unwrap();
    assert!(ivrs.header().iv_info.dma_remap_sup());
    let (header, entries) = units(&bytes).pop().unwrap();
    assert_eq!(header.kind, IvhdKind::Type40);
    assert!(
        header
            .attributes()
            .is_some_and(|attributes| attributes.hat_dis())
    );
    assert!(header.flags.contains(IvhdFlags::ISOC | IvhdFlags::COHERENT));
    let source = DeviceId::new(0, 5, 0);
    let setting = DteSetting::new();
    for expected in [
        DeviceEntry::AliasSelect {
            device: DeviceId::new(0, 7, 0),
            setting,
            source,
        },
        DeviceEntry::AliasRangeStart {
            device: DeviceId::new(0, 8, 0),
            setting,
            source,
        },
        DeviceEntry::AcpiHid {
            device: DeviceId::new(0, 0x1e, 0),
            setting,
            hid: *b"AMDI0040",
            cid: [0; 8],
            uid: amdvi_regs::ivrs::Uid::String(b"\\_SB.SDHC"),
        },
    ] {
        assert!(entries.contains(&expected), "{expected}");
    }
    let memory: Vec<Ivmd> = ivrs
        .blocks()
        .filter_map(|block| match block.unwrap() {
            Block::Memory(memory) => Some(memory),
            _ => None,
        })
        .collect();
    assert_eq!(memory.len(), 2);
    assert_eq!((memory[0].start, memory[0].length), (0x1000, 0x1000));
    assert_eq!(memory[0].flags, IvmdFlags::UNITY | IvmdFlags::IR);
    assert_eq!(memory[0].device_id, source);
    assert_eq!(memory[1].kind, IvmdKind::All);
}

#[test]
fn each_of_two_iommus_lists_its_own_devices() {
    let mut config = Config::scenario("amd-iommu".parse().unwrap());
    let second: Options = "amd-iommu,addr=10.2,mmio-base=0xfeb00000".parse().unwrap();
    config.iommus.push(second.into());
    let bytes = table(&config).unwrap();
    let ranges: Vec<Vec<(u16, u16)>> = units(&bytes)
        .iter()
        .filter(|unit| unit.0.kind == IvhdKind::Type40)
        .map(|(_, entries)| {
            let ends = entries.windows(2).filter_map(|pair| match pair {
                [
                    DeviceEntry::RangeStart { device: first, .. },
                    DeviceEntry::RangeEnd { device: last },
                ] => Some((first.0, last.0)),
                _ => None,
            });
            ends.collect()
        })
        .collect();
    assert_eq!(
        ranges,
        [
            vec![(0, 1), (3, 0x7f)],
            vec![(0x80, 0x81), (0x83, u16::MAX)]
        ]
    );
    let has_special = |unit: &(amdvi_regs::ivrs::IvhdHeader, Vec<DeviceEntry<'_>>)| {
        let mut entries = unit.1.iter();
        entries.any(|entry| matches!(entry, DeviceEntry::Special { .. }))
    };
    let specials: Vec<bool> = units(&bytes).iter().map(has_special).collect();
    assert_eq!(specials, [false, true, false, true, false, true]);
}

#[test]
fn every_property_refuses_a_wrong_value_and_says_what_it_accepts() {
    for (name, accepts, _) in PROPERTIES {
        for value in ["=what?", "", "=@", "=-", "=5-4", "=05.0@", "=+"] {
            let error = format!("{name}{value}").parse::<IvrsVariant>();
            let error = error.unwrap_err().to_string();
            assert!(error.contains(name), "{name}{value}: {error}");
            let accepted = accepts
                .split(|c: char| !c.is_ascii_alphabetic())
                .max_by_key(|w| w.len());
            assert!(accepted.is_some_and(|word| error.contains(word)), "{error}");
        }
    }
    assert!(
        "hats=4"
            .parse::<IvrsVariant>()
            .unwrap_err()
            .to_string()
            .contains("ioapic")
    );
    assert!("types=10,types=11".parse::<IvrsVariant>().is_err());
}
