//! IVHD device entries (48882 §5.2): which devices an IOMMU serves, and how.

use core::fmt;

use bitfield_struct::bitfield;

use super::IvrsError;
use super::bytes::{array_at, put, u16_at, u32_at, u64_at};
use crate::dte::SysMgt;
use crate::fmt::{Always, List, display_flags};
use crate::id::DeviceId;

/// DTE setting byte: what the firmware wants in a device's DTE.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DteSetting {
    /// Bit 0, InitPass.
    pub init_pass: bool,
    /// Bit 1, EIntPass.
    pub eint_pass: bool,
    /// Bit 2, NMIPass.
    pub nmi_pass: bool,
    /// Bit 3, reserved.
    pub rsvd_3: bool,
    /// Bits \[5:4\], SysMgt, see [`SysMgt`].
    #[bits(2)]
    pub sys_mgt: u8,
    /// Bit 6, Lint0Pass.
    pub lint0_pass: bool,
    /// Bit 7, Lint1Pass.
    pub lint1_pass: bool,
}

impl DteSetting {
    /// Bits without a defined meaning.
    pub const RESERVED: u8 = 0x08;
}

impl fmt::Display for DteSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("InitPass", self.init_pass())
            .field("EIntPass", self.eint_pass())
            .field("NMIPass", self.nmi_pass())
            .field_if(
                self.sys_mgt() != 0,
                "SysMgt",
                Always(SysMgt::from_bits(self.sys_mgt())),
            )
            .field("Lint0Pass", self.lint0_pass())
            .field("Lint1Pass", self.lint1_pass())
            .field("reserved", u64::from(self.into_bits() & Self::RESERVED))
            .finish()
    }
}

bitflags::bitflags! {
    /// Extended DTE setting of entries 46h and 47h.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ExtendedSetting: u32 {
        /// Bit 31: ATS requests of the device are blocked.
        const ATS_DISABLED = 1 << 31;
    }
}

display_flags!(ExtendedSetting, {
    ATS_DISABLED: "AtsDisabled",
});

/// What a special device entry (48h) names. Open: other values are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SpecialVariety {
    /// 1: an IOAPIC; the handle is its APIC ID.
    IoApic,
    /// 2: an HPET; the handle is its number.
    Hpet,
    /// Any other value.
    Other(u8),
}

impl SpecialVariety {
    /// Decodes the variety byte.
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::IoApic,
            2 => Self::Hpet,
            other => Self::Other(other),
        }
    }

    /// The variety byte.
    pub const fn bits(self) -> u8 {
        match self {
            Self::IoApic => 1,
            Self::Hpet => 2,
            Self::Other(bits) => bits,
        }
    }
}

impl fmt::Display for SpecialVariety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoApic => f.write_str("IOAPIC"),
            Self::Hpet => f.write_str("HPET"),
            Self::Other(bits) => write!(f, "variety({bits})"),
        }
    }
}

/// Unique ID of an ACPI device (entry F0h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uid<'a> {
    /// Format 0: none.
    None,
    /// Format 1: a 64-bit integer.
    Integer(u64),
    /// Format 2: a string, as it stands in the table.
    String(&'a [u8]),
    /// Any other format, or a length that does not fit the format.
    Other {
        /// The format byte.
        format: u8,
        /// The bytes.
        bytes: &'a [u8],
    },
}

impl<'a> Uid<'a> {
    fn decode(format: u8, bytes: &'a [u8]) -> Self {
        match (format, bytes.len()) {
            (0, 0) => Self::None,
            (1, 8) => Self::Integer(u64_at(bytes, 0)),
            (2, _) => Self::String(bytes),
            _ => Self::Other { format, bytes },
        }
    }

    /// The format byte.
    pub const fn format(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Integer(_) => 1,
            Self::String(_) => 2,
            Self::Other { format, .. } => *format,
        }
    }

    /// Bytes that the UID takes.
    pub const fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Integer(_) => 8,
            Self::String(bytes) | Self::Other { bytes, .. } => bytes.len(),
        }
    }

    /// Whether the UID takes no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Uid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Integer(value) => write!(f, "{value:#x}"),
            Self::String(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Other { format, bytes } => {
                write!(f, "format({format}) \"{}\"", bytes.escape_ascii())
            }
        }
    }
}

/// One device entry. Open: an unknown type whose length is known is kept as it was.
///
/// A range is a start entry (03h, 43h or 47h) and the end entry (04h) that follows it, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEntry<'a> {
    /// 00h: four bytes of padding.
    Pad4,
    /// 40h: eight bytes of padding.
    Pad8,
    /// 01h: all devices that no other entry names.
    All {
        /// DTE setting.
        setting: DteSetting,
    },
    /// 02h: one device.
    Select {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// 03h: first device of a range.
    RangeStart {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// 04h: last device of a range.
    RangeEnd {
        /// The device.
        device: DeviceId,
    },
    /// 42h: one device whose requests carry another DeviceID.
    AliasSelect {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// The DeviceID that its requests carry.
        source: DeviceId,
    },
    /// 43h: first device of a range whose requests carry another DeviceID.
    AliasRangeStart {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// The DeviceID that the requests carry.
        source: DeviceId,
    },
    /// 46h: one device with an extended setting.
    ExtendedSelect {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// Extended setting.
        extended: ExtendedSetting,
    },
    /// 47h: first device of a range with an extended setting.
    ExtendedRangeStart {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// Extended setting.
        extended: ExtendedSetting,
    },
    /// 48h: a device that PCI does not enumerate: IOAPIC or HPET.
    Special {
        /// DTE setting.
        setting: DteSetting,
        /// APIC ID of the IOAPIC, number of the HPET.
        handle: u8,
        /// The DeviceID that its requests carry.
        device: DeviceId,
        /// What it is.
        variety: SpecialVariety,
    },
    /// F0h: a device that ACPI names; only in blocks of type 40h.
    AcpiHid {
        /// The DeviceID that its requests carry.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// ACPI hardware ID.
        hid: [u8; 8],
        /// ACPI compatible ID.
        cid: [u8; 8],
        /// Unique ID.
        uid: Uid<'a>,
    },
    /// A type that the specification does not define, of 4 or 8 bytes.
    Unknown {
        /// All bytes of the entry, its type first.
        bytes: &'a [u8],
    },
}

/// Bytes of an ACPI HID entry before its UID.
const ACPI_HID_SIZE: usize = 22;

impl DeviceEntry<'_> {
    /// The type byte. 0 for an [`DeviceEntry::Unknown`] without bytes.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Pad4 => 0x00,
            Self::Pad8 => 0x40,
            Self::All { .. } => 0x01,
            Self::Select { .. } => 0x02,
            Self::RangeStart { .. } => 0x03,
            Self::RangeEnd { .. } => 0x04,
            Self::AliasSelect { .. } => 0x42,
            Self::AliasRangeStart { .. } => 0x43,
            Self::ExtendedSelect { .. } => 0x46,
            Self::ExtendedRangeStart { .. } => 0x47,
            Self::Special { .. } => 0x48,
            Self::AcpiHid { .. } => 0xf0,
            Self::Unknown { bytes } => bytes.first().copied().unwrap_or(0),
        }
    }

    /// Bytes of the encoded entry.
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Pad4
            | Self::All { .. }
            | Self::Select { .. }
            | Self::RangeStart { .. }
            | Self::RangeEnd { .. } => 4,
            Self::Pad8
            | Self::AliasSelect { .. }
            | Self::AliasRangeStart { .. }
            | Self::ExtendedSelect { .. }
            | Self::ExtendedRangeStart { .. }
            | Self::Special { .. } => 8,
            Self::AcpiHid { uid, .. } => ACPI_HID_SIZE + uid.len(),
            Self::Unknown { bytes } => bytes.len(),
        }
    }

    /// Writes the entry; `out` has exactly [`DeviceEntry::encoded_len`] bytes, and a UID has at
    /// most 255.
    pub(super) fn write(&self, out: &mut [u8]) {
        if let Self::Unknown { bytes } = self {
            out.copy_from_slice(bytes);
            return;
        }
        out.fill(0);
        out[0] = self.kind();
        match *self {
            Self::Pad4 | Self::Pad8 | Self::Unknown { .. } => {}
            Self::All { setting } => out[3] = setting.into_bits(),
            Self::Select { device, setting } | Self::RangeStart { device, setting } => {
                put_device(out, device, setting);
            }
            Self::RangeEnd { device } => put_device(out, device, DteSetting::new()),
            Self::AliasSelect {
                device,
                setting,
                source,
            }
            | Self::AliasRangeStart {
                device,
                setting,
                source,
            } => {
                put_device(out, device, setting);
                put(out, 5, &source.0.to_le_bytes());
            }
            Self::ExtendedSelect {
                device,
                setting,
                extended,
            }
            | Self::ExtendedRangeStart {
                device,
                setting,
                extended,
            } => {
                put_device(out, device, setting);
                put(out, 4, &extended.bits().to_le_bytes());
            }
            Self::Special {
                setting,
                handle,
                device,
                variety,
            } => {
                out[3] = setting.into_bits();
                out[4] = handle;
                put(out, 5, &device.0.to_le_bytes());
                out[7] = variety.bits();
            }
            Self::AcpiHid {
                device,
                setting,
                hid,
                cid,
                uid,
            } => {
                put_device(out, device, setting);
                put(out, 4, &hid);
                put(out, 12, &cid);
                out[20] = uid.format();
                out[21] = uid.len() as u8;
                match uid {
                    Uid::None => {}
                    Uid::Integer(value) => put(out, ACPI_HID_SIZE, &value.to_le_bytes()),
                    Uid::String(bytes) | Uid::Other { bytes, .. } => {
                        put(out, ACPI_HID_SIZE, bytes);
                    }
                }
            }
        }
    }
}

fn put_device(out: &mut [u8], device: DeviceId, setting: DteSetting) {
    put(out, 1, &device.0.to_le_bytes());
    out[3] = setting.into_bits();
}

impl fmt::Display for DeviceEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h ", self.kind())?;
        match self {
            Self::Pad4 | Self::Pad8 => f.write_str("pad"),
            Self::All { setting } => write!(f, "all [{setting}]"),
            Self::Select { device, setting } => write!(f, "select {device} [{setting}]"),
            Self::RangeStart { device, setting } => write!(f, "range from {device} [{setting}]"),
            Self::RangeEnd { device } => write!(f, "range to {device}"),
            Self::AliasSelect {
                device,
                setting,
                source,
            } => write!(f, "alias {device} as {source} [{setting}]"),
            Self::AliasRangeStart {
                device,
                setting,
                source,
            } => write!(f, "alias range from {device} as {source} [{setting}]"),
            Self::ExtendedSelect {
                device,
                setting,
                extended,
            } => write!(f, "select {device} [{setting}] extended=[{extended}]"),
            Self::ExtendedRangeStart {
                device,
                setting,
                extended,
            } => write!(f, "range from {device} [{setting}] extended=[{extended}]"),
            Self::Special {
                setting,
                handle,
                device,
                variety,
            } => write!(f, "{variety} handle={handle} as {device} [{setting}]"),
            Self::AcpiHid {
                device,
                setting,
                hid,
                cid,
                uid,
            } => write!(
                f,
                "ACPI hid=\"{}\" cid=\"{}\" uid={uid} as {device} [{setting}]",
                hid.escape_ascii(),
                cid.escape_ascii()
            ),
            Self::Unknown { bytes } => write!(f, "unknown, {} bytes", bytes.len()),
        }
    }
}

/// Iterator over the device entries of a block. Ends after the first error.
#[derive(Clone, Debug)]
pub struct DeviceEntries<'a> {
    rest: &'a [u8],
    /// Offset of `rest` in the table, for errors.
    offset: usize,
}

impl<'a> DeviceEntries<'a> {
    /// Entries in `bytes`, which stand at `offset` in the table.
    pub const fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self {
            rest: bytes,
            offset,
        }
    }

    fn fail(&mut self, error: IvrsError) -> Option<Result<DeviceEntry<'a>, IvrsError>> {
        self.rest = &[];
        Some(Err(error))
    }
}

impl<'a> Iterator for DeviceEntries<'a> {
    type Item = Result<DeviceEntry<'a>, IvrsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (rest, offset) = (self.rest, self.offset);
        let kind = *rest.first()?;
        let length = match kind {
            // The top two bits of the type give the length; 4 and 8 bytes are defined.
            0x00..=0x7f => 4 << (kind >> 6),
            0xf0 => match rest.get(21) {
                Some(uid_length) => ACPI_HID_SIZE + usize::from(*uid_length),
                None => ACPI_HID_SIZE,
            },
            _ => return self.fail(IvrsError::UnknownEntry { offset, kind }),
        };
        let Some(bytes) = rest.get(..length) else {
            let left = rest.len();
            return self.fail(IvrsError::Entry {
                offset,
                kind,
                length,
                left,
            });
        };
        self.rest = &rest[length..];
        self.offset = offset + length;

        let device = DeviceId(u16_at(bytes, 1));
        let setting = DteSetting::from_bits(bytes[3]);
        Some(Ok(match kind {
            0x00 => DeviceEntry::Pad4,
            0x40 => DeviceEntry::Pad8,
            0x01 => DeviceEntry::All { setting },
            0x02 => DeviceEntry::Select { device, setting },
            0x03 => DeviceEntry::RangeStart { device, setting },
            0x04 => DeviceEntry::RangeEnd { device },
            0x42 => DeviceEntry::AliasSelect {
                device,
                setting,
                source: DeviceId(u16_at(bytes, 5)),
            },
            0x43 => DeviceEntry::AliasRangeStart {
                device,
                setting,
                source: DeviceId(u16_at(bytes, 5)),
            },
            0x46 => DeviceEntry::ExtendedSelect {
                device,
                setting,
                extended: ExtendedSetting::from_bits_retain(u32_at(bytes, 4)),
            },
            0x47 => DeviceEntry::ExtendedRangeStart {
                device,
                setting,
                extended: ExtendedSetting::from_bits_retain(u32_at(bytes, 4)),
            },
            0x48 => DeviceEntry::Special {
                setting,
                handle: bytes[4],
                device: DeviceId(u16_at(bytes, 5)),
                variety: SpecialVariety::from_bits(bytes[7]),
            },
            0xf0 => DeviceEntry::AcpiHid {
                device,
                setting,
                hid: array_at(bytes, 4),
                cid: array_at(bytes, 12),
                uid: Uid::decode(bytes[20], &bytes[ACPI_HID_SIZE..]),
            },
            _ => DeviceEntry::Unknown { bytes },
        }))
    }
}

impl core::iter::FusedIterator for DeviceEntries<'_> {}
