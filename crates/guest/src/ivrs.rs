//! Which IOMMU serves which device, as a driver reads it from the IVRS (48882 §5.2).
//!
//! Of the blocks that describe one IOMMU, the last whose type is known wins, as in Linux: that makes
//! the order 10h, 11h, 40h a preference for the richest.

use amdvi_regs::DeviceId;
use amdvi_regs::ivrs::{
    Block, DeviceEntry, DteSetting, Ivhd, IvhdKind, Ivrs, IvrsError, SpecialVariety,
};

use crate::failure::{Failure, Result, bail, ensure};

impl From<IvrsError> for Failure {
    fn from(error: IvrsError) -> Self {
        Self::new(format_args!("{error}"))
    }
}

/// What the IVRS says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// What the firmware wants in its DTE.
    pub setting: DteSetting,
    /// The DeviceID that its requests carry.
    pub requester: DeviceId,
}

/// A device that is no PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// APIC ID of an IOAPIC, number of an HPET.
    pub handle: u8,
    /// The DeviceID that its requests carry.
    pub device_id: DeviceId,
    /// What the firmware wants in its DTE.
    pub setting: DteSetting,
}

/// The blocks of the first IOMMU: how many of types 10h, 11h and 40h, and the one to use.
pub fn first_iommu<'a>(ivrs: &Ivrs<'a>) -> Result<([u32; 3], Ivhd<'a>)> {
    let mut counts = [0; 3];
    let mut chosen: Option<Ivhd<'a>> = None;
    for block in ivrs.blocks() {
        let Block::Hardware(ivhd) = block? else {
            continue;
        };
        if chosen.is_some_and(|first| first.header.device_id != ivhd.header.device_id) {
            continue;
        }
        counts[match ivhd.header.kind {
            IvhdKind::Type10 => 0,
            IvhdKind::Type11 => 1,
            IvhdKind::Type40 => 2,
        }] += 1;
        chosen = Some(ivhd);
    }
    match chosen {
        Some(ivhd) => Ok((counts, ivhd)),
        None => bail!("the IVRS has no IVHD block of type 10h, 11h or 40h"),
    }
}

/// What the block says about requests of `device`; `None` when it does not cover the device.
pub fn coverage(ivhd: &Ivhd<'_>, device: DeviceId) -> Result<Option<Coverage>> {
    let mut named = None;
    let mut all = None;
    let mut open: Option<(DeviceId, DteSetting, Option<DeviceId>)> = None;
    for entry in ivhd.entries() {
        match entry? {
            DeviceEntry::All { setting } => all = Some((setting, device)),
            DeviceEntry::Select {
                device: id,
                setting,
            }
            | DeviceEntry::ExtendedSelect {
                device: id,
                setting,
                ..
            } if id == device => {
                named = Some((setting, device));
            }
            DeviceEntry::AliasSelect {
                device: id,
                setting,
                source,
            } if id == device => {
                named = Some((setting, source));
            }
            DeviceEntry::RangeStart {
                device: first,
                setting,
            }
            | DeviceEntry::ExtendedRangeStart {
                device: first,
                setting,
                ..
            } => {
                open = Some((first, setting, None));
            }
            DeviceEntry::AliasRangeStart {
                device: first,
                setting,
                source,
            } => {
                open = Some((first, setting, Some(source)));
            }
            DeviceEntry::RangeEnd { device: last } => {
                let Some((first, setting, source)) = open.take() else {
                    bail!("an IVHD range ends at {last} without a start");
                };
                if (first..=last).contains(&device) {
                    named = Some((setting, source.unwrap_or(device)));
                }
            }
            DeviceEntry::Unknown { bytes } => {
                bail!("IVHD device entry of unknown type {:#04x}", bytes[0])
            }
            _ => {}
        }
    }
    ensure!(open.is_none(), "an IVHD range has no end");
    Ok(named
        .or(all)
        .map(|(setting, requester)| Coverage { setting, requester }))
}

/// The first special device of this variety.
pub fn special(ivhd: &Ivhd<'_>, wanted: SpecialVariety) -> Result<Option<Special>> {
    for entry in ivhd.entries() {
        if let DeviceEntry::Special {
            setting,
            handle,
            device,
            variety,
        } = entry?
            && variety == wanted
        {
            return Ok(Some(Special {
                handle,
                device_id: device,
                setting,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate alloc;
    use alloc::vec::Vec;

    const HEADER: usize = 48;

    fn block(kind: u8, device: u16, entries: &[u8]) -> Vec<u8> {
        let header = if kind == 0x11 || kind == 0x40 { 40 } else { 24 };
        let header = if kind == 0x20 { 32 } else { header };
        let mut bytes = alloc::vec![0; header];
        bytes[0] = kind;
        let length = (header + entries.len()) as u16;
        bytes[2..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..6].copy_from_slice(&device.to_le_bytes());
        bytes.extend_from_slice(entries);
        bytes
    }

    fn table(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = alloc::vec![0; HEADER];
        for block in blocks {
            bytes.extend_from_slice(block);
        }
        bytes[..4].copy_from_slice(b"IVRS");
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn only(bytes: &[u8]) -> Ivhd<'_> {
        first_iommu(&Ivrs::parse(bytes).unwrap()).unwrap().1
    }

    #[test]
    fn the_last_block_of_the_first_iommu_wins() {
        let bytes = table(&[
            block(0x10, 2, &[]),
            block(0x11, 2, &[]),
            block(0x40, 2, &[]),
            block(0x40, 0x102, &[]),
        ]);
        let (counts, ivhd) = first_iommu(&Ivrs::parse(&bytes).unwrap()).unwrap();
        assert_eq!(counts, [1, 1, 1]);
        assert_eq!(
            (ivhd.header.kind, ivhd.header.device_id.0),
            (IvhdKind::Type40, 2)
        );
        let bytes = table(&[block(0x10, 2, &[]), block(0x20, 2, &[])]);
        assert_eq!(only(&bytes).header.kind, IvhdKind::Type10);
        let bytes = table(&[block(0x20, 2, &[])]);
        assert!(first_iommu(&Ivrs::parse(&bytes).unwrap()).is_err());
    }

    #[test]
    fn entries_say_which_devices_are_covered() {
        let entries = [
            3, 0x08, 0, 0x01, 4, 0x10, 0, 0, // range 0008–0010, INIT
            2, 0x20, 0, 0x04, // 0020, NMI
            0x42, 0x28, 0, 0, 0, 0x30, 0, 0, // 0028 appears as 0030
            0x48, 0, 0, 0xd7, 5, 0xa0, 0, 1, // IOAPIC 5 is 00a0
        ];
        let bytes = table(&[block(0x11, 2, &entries)]);
        let ivhd = only(&bytes);
        let at = |id| coverage(&ivhd, DeviceId(id)).unwrap();
        assert_eq!(at(0x07), None);
        assert!(at(0x10).unwrap().setting.init_pass());
        assert_eq!(at(0x11), None);
        assert!(at(0x20).unwrap().setting.nmi_pass());
        assert_eq!(at(0x28).unwrap().requester, DeviceId(0x30));
        let ioapic = special(&ivhd, SpecialVariety::IoApic).unwrap().unwrap();
        assert_eq!((ioapic.handle, ioapic.device_id.0), (5, 0xa0));
        assert_eq!(special(&ivhd, SpecialVariety::Hpet).unwrap(), None);
    }

    #[test]
    fn an_entry_for_all_devices_gives_way_to_one_that_names_the_device() {
        let bytes = table(&[block(0x40, 2, &[2, 0x20, 0, 0x04, 1, 0, 0, 0x01])]);
        let ivhd = only(&bytes);
        let at = |id| coverage(&ivhd, DeviceId(id)).unwrap().unwrap().setting;
        assert!(at(0x20).nmi_pass() && !at(0x20).init_pass());
        assert!(at(0x21).init_pass());
    }

    #[test]
    fn ranges_without_both_ends_and_unknown_entries_are_errors() {
        for entries in [
            &[3, 8, 0, 0][..],
            &[4, 8, 0, 0],
            &[5, 8, 0, 0],
            &[0x81, 0, 0, 0],
        ] {
            let bytes = table(&[block(0x11, 2, entries)]);
            assert!(coverage(&only(&bytes), DeviceId(9)).is_err());
        }
    }

    #[test]
    fn hostile_bytes_are_errors_and_never_a_panic() {
        let good = table(&[block(0x40, 2, &[3, 8, 0, 0, 4, 16, 0, 0])]);
        for at in HEADER..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok((_, ivhd)) = first_iommu(&Ivrs::parse(&bytes).unwrap()) {
                    let _ = coverage(&ivhd, DeviceId(9));
                    let _ = special(&ivhd, SpecialVariety::Hpet);
                }
            }
        }
        let mut bytes = good;
        bytes[HEADER + 2] = 0;
        assert!(first_iommu(&Ivrs::parse(&bytes).unwrap()).is_err());
    }
}
