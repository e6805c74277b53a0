//! The IVRS (48882 §5.2): which IOMMU serves which device.
//!
//! Reads the blocks as Linux does: of the blocks that describe one IOMMU, the last whose type is
//! known wins, which makes the order 10h, 11h, 40h a preference for the richest.

use amdvi_regs::DeviceId;

use crate::failure::{Result, bail, ensure};

/// Offset of the first block.
const BLOCKS: usize = 48;

fn word(bytes: &[u8], offset: usize) -> u16 {
    u16::from(bytes[offset]) | u16::from(bytes[offset + 1]) << 8
}

fn dword(bytes: &[u8], offset: usize) -> u32 {
    u32::from(word(bytes, offset)) | u32::from(word(bytes, offset + 2)) << 16
}

fn qword(bytes: &[u8], offset: usize) -> u64 {
    u64::from(dword(bytes, offset)) | u64::from(dword(bytes, offset + 4)) << 32
}

/// One IVHD block: an IOMMU and the devices behind it.
#[derive(Clone, Copy, Debug)]
pub struct Ivhd<'a> {
    /// Block type: 10h, 11h or 40h.
    pub kind: u8,
    /// HtTunEn 0, PassPW 1, ResPassPW 2, Isoc 3, IotlbSup 4, Coherent 5.
    pub flags: u8,
    /// DeviceID of the IOMMU itself.
    pub device_id: DeviceId,
    /// Offset of its capability block in PCI configuration space.
    pub capability: u16,
    /// Address of its registers.
    pub mmio_base: u64,
    /// PCI segment.
    pub segment: u16,
    /// EFR image; blocks of type 10h have none.
    pub efr: Option<u64>,
    /// EFR2 image; blocks of type 10h have none.
    pub efr2: Option<u64>,
    entries: &'a [u8],
}

/// What the IVRS says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// DTE setting: InitPass 0, EIntPass 1, NMIPass 2, SysMgt \[5:4\], Lint0Pass 6, Lint1Pass 7.
    pub setting: u8,
    /// The DeviceID that its requests carry.
    pub requester: DeviceId,
}

/// A device that is no PCI function (entry type 48h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// IOAPIC ID or HPET number.
    pub handle: u8,
    /// The DeviceID that its requests carry.
    pub device_id: DeviceId,
    /// DTE setting, see [`Coverage::setting`].
    pub setting: u8,
}

/// Special device variety: IOAPIC.
pub const IOAPIC: u8 = 1;
/// Special device variety: HPET.
pub const HPET: u8 = 2;

/// One device entry, with its own length.
fn entry_length(entries: &[u8], offset: usize, kind: u8) -> Result<usize> {
    let length = match kind {
        0x00..=0x7f => 4usize << (kind >> 6),
        0xf0 if offset + 22 <= entries.len() => 22 + usize::from(entries[offset + 21]),
        _ => bail!("IVHD device entry of unknown type {kind:#04x}"),
    };
    ensure!(
        length <= entries.len() - offset,
        "IVHD device entry {kind:#04x} goes beyond its block"
    );
    Ok(length)
}

impl<'a> Ivhd<'a> {
    fn from_block(bytes: &'a [u8]) -> Result<Self> {
        let kind = bytes[0];
        let header = if kind == 0x10 { 24 } else { 40 };
        ensure!(
            bytes.len() >= header,
            "IVHD block {kind:#04x} has {} bytes, at least {header} are needed",
            bytes.len()
        );
        let images = kind != 0x10;
        Ok(Self {
            kind,
            flags: bytes[1],
            device_id: DeviceId(word(bytes, 4)),
            capability: word(bytes, 6),
            mmio_base: qword(bytes, 8),
            segment: word(bytes, 16),
            efr: images.then(|| qword(bytes, 24)),
            efr2: images.then(|| qword(bytes, 32)),
            entries: &bytes[header..],
        })
    }

    /// Calls `visit(type, entry)` for each device entry.
    fn each(&self, mut visit: impl FnMut(u8, &[u8]) -> Result<()>) -> Result<()> {
        let mut offset = 0;
        while offset < self.entries.len() {
            let kind = self.entries[offset];
            let length = entry_length(self.entries, offset, kind)?;
            visit(kind, &self.entries[offset..offset + length])?;
            offset += length;
        }
        Ok(())
    }

    /// What the block says about requests of `device`; `None` when it does not name the device.
    pub fn coverage(&self, device: DeviceId) -> Result<Option<Coverage>> {
        let mut found = None;
        let mut open: Option<(u16, u8, Option<u16>)> = None;
        self.each(|kind, entry| {
            let id = word(entry, 1);
            let setting = entry[3];
            let alias = if entry.len() >= 8 { word(entry, 5) } else { 0 };
            match kind {
                0x01 => found = Some((setting, device)),
                0x02 | 0x46 if id == device.0 => found = Some((setting, device)),
                0x42 if id == device.0 => found = Some((setting, DeviceId(alias))),
                0x03 | 0x47 => open = Some((id, setting, None)),
                0x43 => open = Some((id, setting, Some(alias))),
                0x04 => {
                    let Some((first, setting, alias)) = open.take() else {
                        bail!("IVHD range ends at {} without a start", DeviceId(id));
                    };
                    if (first..=id).contains(&device.0) {
                        found = Some((setting, alias.map_or(device, DeviceId)));
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        ensure!(open.is_none(), "IVHD range without an end");
        Ok(found.map(|(setting, requester)| Coverage { setting, requester }))
    }

    /// The first special device of this variety.
    pub fn special(&self, variety: u8) -> Result<Option<Special>> {
        let mut found = None;
        self.each(|kind, entry| {
            if kind == 0x48 && entry[7] == variety && found.is_none() {
                found = Some(Special {
                    handle: entry[4],
                    device_id: DeviceId(word(entry, 5)),
                    setting: entry[3],
                });
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// The IVRS as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Ivrs<'a> {
    bytes: &'a [u8],
}

impl<'a> Ivrs<'a> {
    /// Takes a table whose checksum was found right.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        ensure!(
            bytes.len() >= BLOCKS,
            "an IVRS of {} bytes has no blocks",
            bytes.len()
        );
        Ok(Self { bytes })
    }

    /// IVinfo: EFRSup 0, DMA remapping before boot 1, GVAsize \[7:5\], PAsize \[14:8\], VAsize
    /// \[21:15\].
    pub fn info(&self) -> u32 {
        dword(self.bytes, 36)
    }

    /// Calls `visit` for each block: its type and its bytes.
    fn each(&self, mut visit: impl FnMut(u8, &'a [u8]) -> Result<()>) -> Result<()> {
        let mut offset = BLOCKS;
        while offset < self.bytes.len() {
            let rest = &self.bytes[offset..];
            ensure!(
                rest.len() >= 24,
                "IVRS block at offset {offset:#x} is cut off"
            );
            let length = usize::from(word(rest, 2));
            ensure!(
                (24..=rest.len()).contains(&length),
                "IVRS block at offset {offset:#x} has length {length}"
            );
            visit(rest[0], &rest[..length])?;
            offset += length;
        }
        Ok(())
    }

    /// How many IVHD blocks of each type describe the first IOMMU: 10h, 11h, 40h.
    pub fn ivhd_counts(&self) -> Result<[u32; 3]> {
        let mut counts = [0; 3];
        let mut first = None;
        self.each(|kind, block| {
            let slot = match kind {
                0x10 => 0,
                0x11 => 1,
                0x40 => 2,
                _ => return Ok(()),
            };
            if *first.get_or_insert(word(block, 4)) == word(block, 4) {
                counts[slot] += 1;
            }
            Ok(())
        })?;
        Ok(counts)
    }

    /// The block to use for the first IOMMU: the last one of a known type with its DeviceID.
    pub fn ivhd(&self) -> Result<Ivhd<'a>> {
        let mut chosen: Option<&'a [u8]> = None;
        self.each(|kind, block| {
            if matches!(kind, 0x10 | 0x11 | 0x40)
                && chosen.is_none_or(|first| word(first, 4) == word(block, 4))
            {
                chosen = Some(block);
            }
            Ok(())
        })?;
        let Some(block) = chosen else {
            bail!("the IVRS has no IVHD block of type 10h, 11h or 40h");
        };
        Ivhd::from_block(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate alloc;
    use alloc::vec::Vec;

    fn block(kind: u8, device: u16, entries: &[u8]) -> Vec<u8> {
        let header = if kind == 0x10 { 24 } else { 40 };
        let mut bytes = alloc::vec![0; header];
        bytes[0] = kind;
        let length = (header + entries.len()) as u16;
        bytes[2..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..6].copy_from_slice(&device.to_le_bytes());
        bytes[6] = 0x40;
        bytes[8..16].copy_from_slice(&0xfeb8_0000u64.to_le_bytes());
        if kind != 0x10 {
            bytes[32..40].copy_from_slice(&0x100u64.to_le_bytes());
        }
        bytes.extend_from_slice(entries);
        bytes
    }

    fn ivrs(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = alloc::vec![0; BLOCKS];
        for block in blocks {
            bytes.extend_from_slice(block);
        }
        bytes
    }

    #[test]
    fn the_last_block_of_the_first_iommu_wins() {
        let bytes = ivrs(&[
            block(0x10, 2, &[]),
            block(0x11, 2, &[]),
            block(0x40, 2, &[]),
            block(0x40, 0x102, &[]),
        ]);
        let ivrs = Ivrs::new(&bytes).unwrap();
        let ivhd = ivrs.ivhd().unwrap();
        assert_eq!((ivhd.kind, ivhd.device_id.0), (0x40, 2));
        assert_eq!(ivhd.efr2, Some(0x100));
        assert_eq!(ivrs.ivhd_counts().unwrap(), [1, 1, 1]);
        let bytes = self::ivrs(&[block(0x10, 2, &[]), block(0x20, 2, &[])]);
        let ivhd = Ivrs::new(&bytes).unwrap().ivhd().unwrap();
        assert_eq!((ivhd.kind, ivhd.efr), (0x10, None));
    }

    #[test]
    fn entries_say_which_devices_are_covered() {
        let entries = [
            3, 0x08, 0, 0x01, 4, 0x10, 0, 0, // range 0008–0010, INIT
            2, 0x20, 0, 0x04, // 0020, NMI
            0x42, 0x28, 0, 0, 0, 0x30, 0, 0, // 0028 appears as 0030
            0x48, 0, 0, 0xd7, 5, 0xa0, 0, 1, // IOAPIC 5 is 00a0
        ];
        let bytes = ivrs(&[block(0x11, 2, &entries)]);
        let ivhd = Ivrs::new(&bytes).unwrap().ivhd().unwrap();
        let at = |id| ivhd.coverage(DeviceId(id)).unwrap();
        assert_eq!(at(0x07), None);
        assert_eq!(at(0x10).unwrap().setting, 1);
        assert_eq!(at(0x11), None);
        assert_eq!(at(0x20).unwrap().setting, 4);
        assert_eq!(at(0x28).unwrap().requester, DeviceId(0x30));
        let ioapic = ivhd.special(IOAPIC).unwrap().unwrap();
        assert_eq!((ioapic.handle, ioapic.device_id.0), (5, 0xa0));
        assert_eq!(ivhd.special(HPET).unwrap(), None);
    }

    #[test]
    fn hid_entries_are_stepped_over() {
        let mut entries = alloc::vec![0; 24];
        entries[0] = 0xf0;
        entries[21] = 2;
        entries.extend_from_slice(&[1, 0, 0, 0]);
        let bytes = ivrs(&[block(0x40, 2, &entries)]);
        let ivhd = Ivrs::new(&bytes).unwrap().ivhd().unwrap();
        assert!(ivhd.coverage(DeviceId(0x99)).unwrap().is_some());
    }

    #[test]
    fn hostile_lengths_are_errors_and_never_a_panic() {
        let good = ivrs(&[block(0x40, 2, &[3, 8, 0, 0, 4, 16, 0, 0])]);
        for at in BLOCKS..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                for length in [BLOCKS, good.len() - 1, good.len()] {
                    let Ok(ivrs) = Ivrs::new(&bytes[..length]) else {
                        continue;
                    };
                    if let Ok(ivhd) = ivrs.ivhd() {
                        let _ = ivhd.coverage(DeviceId(9));
                        let _ = ivhd.special(HPET);
                    }
                }
            }
        }
        let mut bytes = good.clone();
        bytes[BLOCKS + 2] = 0;
        assert!(Ivrs::new(&bytes).unwrap().ivhd().is_err());
    }

    #[test]
    fn ranges_without_an_end_and_unknown_entries_are_errors() {
        for entries in [&[3, 8, 0, 0][..], &[4, 8, 0, 0], &[0x81, 0, 0, 0]] {
            let bytes = ivrs(&[block(0x11, 2, entries)]);
            let ivhd = Ivrs::new(&bytes).unwrap().ivhd().unwrap();
            assert!(ivhd.coverage(DeviceId(9)).is_err());
        }
    }
}
