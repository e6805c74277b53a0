//! The IVRS of the board: its IOMMUs, which devices are behind each, and what firmware can say
//! besides, right or wrong.

use std::str::FromStr;

use amdvi_device::pci;
use amdvi_regs::ivrs::{DteSetting, IvhdFlags, IvhdKind, Ivmd, IvmdFlags, IvmdKind};
use amdvi_regs::{DeviceId, Segment};
use amdvi_vmm_glue::ivrs::{
    AcpiDevice, AcpiUid, ConfigError, Coverage, IommuUnit, IvrsConfig, Special,
};

use super::config::Config;
use super::properties::{
    PropertyError, function_of_segment, functions_of_segment, number, properties,
};
use super::{IOAPIC, acpi, hpet};
use crate::layout;

/// Each property of `--ivrs`: its name, what it accepts, and what it is for.
pub const PROPERTIES: &[(&str, &str, &str)] = &[
    (
        "types",
        "10, 11 and 40 joined by +, such as 10+11",
        "the IVHD block types; all three without it",
    ),
    (
        "ioapic",
        "listed, off, or [bus:]device.function",
        "whether the IOAPIC has an entry, and the DeviceID of its requests; listed at 00:14.0 \
         without it",
    ),
    (
        "southbridge",
        "smbus, isa or off",
        "the PCI function with the IOAPIC's DeviceID; smbus without it",
    ),
    (
        "hpet",
        "[bus:]device.function",
        "an HPET with message-signalled timers, whose requests carry this DeviceID",
    ),
    (
        "hat-dis",
        "on or off",
        "HATDis of blocks 11h and 40h; without it, on exactly if dma-remap=off",
    ),
    (
        "flags",
        "ht-tun, pass-pw, res-pass-pw, isoc, iotlb and coherent joined by +",
        "IVHD flags besides those that follow from the device",
    ),
    (
        "dma-guard",
        "on or off",
        "DMARemapSup: firmware protects memory from DMA before boot",
    ),
    (
        "alias",
        "[[segment:]bus:]device.function[-last]@source",
        "these functions' requests carry the DeviceID of source; can be repeated",
    ),
    (
        "unity",
        "START-END[@all|@function[-last]][:r|:w|:rw]",
        "IVMD: memory that stays mapped one to one; can be repeated",
    ),
    (
        "exclusion",
        "START-END[@all|@function[-last]]",
        "IVMD: memory that is not translated; can be repeated",
    ),
    (
        "acpi",
        "HID@[bus:]device.function[/UID]",
        "a device that only ACPI names, in blocks of type 40h; can be repeated",
    ),
];
const LISTS: &[&str] = &["alias", "unity", "exclusion", "acpi"];

const FLAGS: [(&str, IvhdFlags); 6] = [
    ("ht-tun", IvhdFlags::HT_TUN_EN),
    ("pass-pw", IvhdFlags::PASS_PW),
    ("res-pass-pw", IvhdFlags::RES_PASS_PW),
    ("isoc", IvhdFlags::ISOC),
    ("iotlb", IvhdFlags::IOTLB_SUP),
    ("coherent", IvhdFlags::COHERENT),
];

/// The PCI function that has the IOAPIC's DeviceID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Southbridge {
    /// An SMBus controller.
    #[default]
    Smbus,
    /// An ISA bridge.
    Isa,
    /// No function is there.
    Absent,
}

/// Functions whose requests carry another DeviceID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Their segment.
    pub segment: Segment,
    /// The first function.
    pub first: DeviceId,
    /// The last.
    pub last: DeviceId,
    /// The DeviceID that their requests carry.
    pub source: DeviceId,
}

/// What the IVRS says besides which IOMMUs there are. The default is the table of good firmware.
///
/// Parsed from a property string, see [`PROPERTIES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IvrsVariant {
    /// IVHD block types.
    pub types: Vec<IvhdKind>,
    /// The IOAPIC has an entry.
    pub ioapic_listed: bool,
    /// The DeviceID of the IOAPIC's requests.
    pub ioapic: DeviceId,
    /// The function there.
    pub southbridge: Southbridge,
    /// The HPET and the DeviceID of its requests.
    pub hpet: Option<DeviceId>,
    /// HATDis, if it does not follow from the device's options.
    pub hat_dis: Option<bool>,
    /// More IVHD flags.
    pub flags: IvhdFlags,
    /// DMARemapSup.
    pub dma_guard: bool,
    /// Aliases.
    pub aliases: Vec<Alias>,
    /// IVMD blocks.
    pub memory: Vec<Ivmd>,
    /// Devices that ACPI names.
    pub acpi: Vec<AcpiDevice>,
}

impl Default for IvrsVariant {
    fn default() -> Self {
        Self {
            types: vec![IvhdKind::Type10, IvhdKind::Type11, IvhdKind::Type40],
            ioapic_listed: true,
            ioapic: IOAPIC,
            southbridge: Southbridge::default(),
            hpet: None,
            hat_dis: None,
            flags: IvhdFlags::empty(),
            dma_guard: false,
            aliases: Vec::new(),
            memory: Vec::new(),
            acpi: Vec::new(),
        }
    }
}

impl IvrsVariant {
    /// The DeviceID that the requests of a function carry.
    pub fn requester(&self, segment: Segment, id: DeviceId) -> DeviceId {
        let alias = self
            .aliases
            .iter()
            .rfind(|alias| alias.segment == segment && alias.first <= id && id <= alias.last);
        alias.map_or(id, |alias| alias.source)
    }
}

fn alias(text: &str) -> Option<Alias> {
    let (functions, source) = text.split_once('@')?;
    let (segment, first, last) = functions_of_segment(functions)?;
    let (_, source) = function_of_segment(source)?;
    Some(Alias {
        segment,
        first,
        last,
        source,
    })
}

fn memory(text: &str, exclusion: bool) -> Option<Ivmd> {
    let (text, access) = match text.rsplit_once(':') {
        Some((rest, access @ ("r" | "w" | "rw"))) if !exclusion => (rest, access),
        _ => (text, "rw"),
    };
    let mut flags = if exclusion {
        IvmdFlags::EXCLUSION_RANGE
    } else {
        IvmdFlags::UNITY
    };
    flags.set(IvmdFlags::IR, access.contains('r'));
    flags.set(IvmdFlags::IW, access.contains('w'));
    let (range, devices) = text.split_once('@').unwrap_or((text, "all"));
    let (start, end) = range.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    let (kind, (segment, first, last)) = match devices {
        "all" => (IvmdKind::All, (Segment(0), DeviceId(0), DeviceId(0))),
        devices => {
            let (segment, first, last) = functions_of_segment(devices)?;
            // The second DeviceID is a range's only.
            match first == last {
                true => (IvmdKind::Device, (segment, first, DeviceId(0))),
                false => (IvmdKind::Range, (segment, first, last)),
            }
        }
    };
    Some(Ivmd {
        kind,
        flags,
        device_id: first,
        last_device_id: last,
        segment,
        start,
        length: end.checked_sub(start)?.checked_add(1)?,
    })
}

fn acpi_device(text: &str) -> Option<AcpiDevice> {
    let (name, rest) = text.split_once('@')?;
    let (device, uid) = match rest.split_once('/') {
        Some((device, uid)) => (device, Some(uid)),
        None => (rest, None),
    };
    let mut hid = [0; 8];
    if name.is_empty() || !name.is_ascii() {
        return None;
    }
    hid.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(AcpiDevice {
        device: function_of_segment(device)?.1,
        setting: DteSetting::new(),
        hid,
        cid: [0; 8],
        uid: match uid {
            None => AcpiUid::None,
            Some(text) => match number(text) {
                Some(number) => AcpiUid::Integer(number),
                None => AcpiUid::String(text.to_owned()),
            },
        },
    })
}

fn types(text: &str) -> Option<Vec<IvhdKind>> {
    let kind = |text| match text {
        "10" => Some(IvhdKind::Type10),
        "11" => Some(IvhdKind::Type11),
        "40" => Some(IvhdKind::Type40),
        _ => None,
    };
    let mut kinds: Vec<IvhdKind> = text.split('+').map(kind).collect::<Option<_>>()?;
    kinds.sort();
    kinds.dedup();
    Some(kinds)
}

fn flags(text: &str) -> Option<IvhdFlags> {
    let flag = |text| {
        let known = FLAGS.iter().find(|(name, _)| *name == text);
        known.map(|(_, flag)| *flag)
    };
    text.split('+')
        .map(flag)
        .try_fold(IvhdFlags::empty(), |flags, flag| Some(flags | flag?))
}

impl FromStr for IvrsVariant {
    type Err = PropertyError;

    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let known: Vec<&str> = PROPERTIES.iter().map(|(name, ..)| *name).collect();
        let mut variant = Self::default();
        for property in properties(text, &known, LISTS)? {
            let value = property.value;
            let row = PROPERTIES.iter().find(|(name, ..)| *name == property.name);
            let accepts = row.map_or("", |(_, accepts, _)| *accepts);
            let refused = || property.refused(accepts);
            match property.name {
                "types" => variant.types = types(value).ok_or_else(refused)?,
                "ioapic" => match value {
                    "listed" => variant.ioapic_listed = true,
                    "off" => variant.ioapic_listed = false,
                    _ => variant.ioapic = property.function().map_err(|_| refused())?,
                },
                "southbridge" => {
                    variant.southbridge = match value {
                        "smbus" => Southbridge::Smbus,
                        "isa" => Southbridge::Isa,
                        "off" => Southbridge::Absent,
                        _ => return Err(refused()),
                    }
                }
                "hpet" => variant.hpet = Some(property.function()?),
                "hat-dis" => variant.hat_dis = Some(property.switch()?),
                "flags" => variant.flags = flags(value).ok_or_else(refused)?,
                "dma-guard" => variant.dma_guard = property.switch()?,
                "alias" => variant.aliases.push(alias(value).ok_or_else(refused)?),
                "unity" | "exclusion" => {
                    let exclusion = property.name == "exclusion";
                    variant
                        .memory
                        .push(memory(value, exclusion).ok_or_else(refused)?);
                }
                "acpi" => variant.acpi.push(acpi_device(value).ok_or_else(refused)?),
                // `properties` lets no others through.
                _ => {}
            }
        }
        Ok(variant)
    }
}

/// The table, checksum included.
pub(super) fn table(config: &Config) -> Result<Vec<u8>, ConfigError> {
    let ivrs = IvrsConfig {
        oem_id: acpi::OEM_ID,
        oem_table_id: acpi::OEM_TABLE_ID,
        pa_bits: pci::PHYSICAL_ADDRESS_BITS,
        va_bits: pci::VIRTUAL_ADDRESS_BITS,
        dma_remap_sup: config.ivrs.dma_guard,
        units: (0..config.iommus.len()).map(|n| unit(config, n)).collect(),
        memory: config.ivrs.memory.clone(),
    };
    ivrs.build()
}

fn unit(config: &Config, n: usize) -> IommuUnit {
    let (options, variant) = (&config.iommus[n].options, &config.ivrs);
    let mut unit = IommuUnit::new(
        options.device_id(),
        pci::CAPABILITY_OFFSET,
        options.mmio_base(),
    );
    unit.segment = options.segment();
    unit.kinds = variant.types.clone();
    unit.efr = options.efr();
    unit.efr2 = options.efr2();
    unit.hat_dis = variant.hat_dis.unwrap_or(!options.dma_remap());
    unit.flags = variant.flags;
    unit.flags.set(
        IvhdFlags::IOTLB_SUP,
        options.device_iotlb() || variant.flags.contains(IvhdFlags::IOTLB_SUP),
    );
    (unit.pn_banks, unit.pn_counters) = options.perf_counters();
    unit.devices = coverage(config, n);
    let behind = |device| config.iommu_of(Segment(0), device) == Some(n);
    // Without interrupt remapping a guest must not find a way to remap its IOAPIC.
    if options.intremap() && variant.ioapic_listed && behind(variant.ioapic) {
        unit.specials.push(Special {
            device: variant.ioapic,
            ..Special::southbridge_ioapic(layout::IOAPIC_ID)
        });
    }
    if let Some(device) = variant.hpet.filter(|&device| behind(device)) {
        unit.specials.push(Special::hpet(hpet::NUMBER, device));
    }
    unit.acpi = variant
        .acpi
        .iter()
        .filter(|device| behind(device.device))
        .cloned()
        .collect();
    unit
}

/// The DeviceIDs that the IOMMU serves, but itself: one or two ranges. Then the aliases among
/// them, which replace what the ranges said: a reader goes through the entries in order.
fn coverage(config: &Config, n: usize) -> Vec<Coverage> {
    let (first, last) = config.scope(n);
    let options = &config.iommus[n].options;
    let own = options.device_id();
    let setting = DteSetting::new();
    let range = |first: u16, last: u16| Coverage::Range {
        first: DeviceId(first),
        last: DeviceId(last),
        setting,
    };
    let mut coverage = Vec::new();
    if own < first || last < own {
        coverage.push(range(first.0, last.0));
    } else {
        if first < own {
            coverage.push(range(first.0, own.0 - 1));
        }
        if own < last {
            coverage.push(range(own.0 + 1, last.0));
        }
    }
    let aliases = config.ivrs.aliases.iter().filter(|alias| {
        let mine = first <= alias.first && alias.last <= last;
        alias.segment == options.segment() && mine
    });
    for alias in aliases {
        let source = alias.source;
        coverage.push(match alias.first == alias.last {
            true => Coverage::Alias {
                device: alias.first,
                source,
                setting,
            },
            false => Coverage::AliasRange {
                first: alias.first,
                last: alias.last,
                source,
                setting,
            },
        });
    }
    coverage
}

#[cfg(test)]
mod tests;
