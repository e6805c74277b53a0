//! The ACPI IVRS table that announces IOMMUs to a guest (48882 §5.2), from a plain description.
//!
//! The byte layout is [`amdvi_regs::ivrs`]'s; this module knows what the known guests need:
//!
//! - Every unit is described once per [block type](IommuUnit::kinds), in ascending order, with the
//!   same contents: Linux reads the last type that it knows, Xen 4.20 and Hyper-V only 10h and 11h.
//! - Devices are covered by adjacent START/END pairs or one by one. DEV_ALL (01h) can't be
//!   expressed: Xen gives up on it.
//! - What would make a guest crash or silently do without a feature is a [`ConfigError`] that says
//!   so, see [`IvrsConfig::check`].

mod check;
#[cfg(test)]
mod tests;

use amdvi_regs::ivrs::{
    BuildError, DeviceEntry, DteSetting, ExtendedSetting, HEADER_SIZE, IVMD_SIZE, IvInfo,
    IvhdAttributes, IvhdFeatures, IvhdFlags, IvhdHeader, IvhdInfo, IvhdKind, Ivmd, IvrsBuilder,
    REVISION_FIXED, REVISION_MIXED, SpecialVariety, TableHeader, Uid,
};
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, Segment};

pub use check::ConfigError;

/// The DeviceID at which Linux up to 6.12 and Xen expect the IOAPIC. Linux 7.3 wants a PCI function of
/// class SMBus (0c05h) or ISA bridge (0601h) to exist there; without, it does not remap interrupts.
pub const SOUTHBRIDGE: DeviceId = DeviceId::new(0, 0x14, 0);

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IvrsConfig {
    /// ACPI OEM ID.
    pub oem_id: [u8; 6],
    /// ACPI OEM table ID.
    pub oem_table_id: [u8; 8],
    /// Bits of a physical address, 32 to 52 (IVinfo.PAsize).
    pub pa_bits: u8,
    /// Bits of an I/O virtual address: 32, 40, 48 or 64 (IVinfo.VAsize).
    pub va_bits: u8,
    /// DMARemapSup: the firmware protects memory from DMA before boot, and the OS should keep
    /// doing so.
    pub dma_remap_sup: bool,
    /// The IOMMUs; at least one.
    pub units: Vec<IommuUnit>,
    /// Memory that devices use without a driver's knowledge.
    pub memory: Vec<Ivmd>,
}

impl Default for IvrsConfig {
    /// No unit yet; 48-bit physical and 64-bit virtual addresses.
    fn default() -> Self {
        let header = TableHeader::default();
        Self {
            oem_id: header.oem_id,
            oem_table_id: header.oem_table_id,
            pa_bits: 48,
            va_bits: 64,
            dma_remap_sup: false,
            units: Vec::new(),
            memory: Vec::new(),
        }
    }
}

/// One IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuUnit {
    /// Its own DeviceID; 00:00.2 as a rule, never 0.
    pub device_id: DeviceId,
    /// Offset of its capability block in PCI configuration space.
    pub capability_offset: u16,
    /// Guest physical address of its registers, aligned to 16 KiB (512 KiB with EFR.PCSup).
    pub mmio_base: u64,
    /// The PCI segment that it is in and serves.
    pub segment: Segment,
    /// HtTunEn, PassPW, ResPassPW, Isoc, IotlbSup and Coherent. PreFSup and PPRSup, which only
    /// blocks of type 10h have, are taken from the EFR.
    pub flags: IvhdFlags,
    /// MSI message number of events and COMPLETION_WAIT, 0–31.
    pub msi_num: u8,
    /// MSI message number of the PPR log, 0–31.
    pub msi_num_ppr: u8,
    /// The EFR as MMIO 0030h reads.
    pub efr: ExtendedFeature,
    /// The EFR2 as MMIO 01A0h reads.
    pub efr2: ExtendedFeature2,
    /// HATDis: tells the OS to do without host address translation (types 11h and 40h).
    pub hat_dis: bool,
    /// Performance counters per bank, 0–15; not 0 exactly if EFR.PCSup.
    pub pn_counters: u8,
    /// Performance counter banks, 0–63; not 0 exactly if EFR.PCSup.
    pub pn_banks: u8,
    /// The block types to emit; any order, each once.
    pub kinds: Vec<IvhdKind>,
    /// The PCI devices behind it.
    pub devices: Vec<Coverage>,
    /// IOAPICs and HPETs.
    pub specials: Vec<Special>,
    /// Devices that ACPI names; emitted in blocks of type 40h only.
    pub acpi: Vec<AcpiDevice>,
}

impl IommuUnit {
    /// An IOMMU in segment 0 with blocks of types 10h, 11h and 40h that serves
    /// [everything but itself](Coverage::all_but), IOAPICs and HPETs apart.
    pub fn new(device_id: DeviceId, capability_offset: u16, mmio_base: u64) -> Self {
        Self {
            device_id,
            capability_offset,
            mmio_base,
            segment: Segment(0),
            flags: IvhdFlags::empty(),
            msi_num: 0,
            msi_num_ppr: 0,
            efr: ExtendedFeature::new(),
            efr2: ExtendedFeature2::new(),
            hat_dis: false,
            pn_counters: 0,
            pn_banks: 0,
            kinds: vec![IvhdKind::Type10, IvhdKind::Type11, IvhdKind::Type40],
            devices: Coverage::all_but(device_id),
            specials: Vec::new(),
            acpi: Vec::new(),
        }
    }
}

/// PCI devices that an IOMMU serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// One device (02h).
    Single {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// All devices from `first` to `last` inclusive (03h, 04h).
    Range {
        /// The first.
        first: DeviceId,
        /// The last.
        last: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// One device whose requests carry the DeviceID `source` (42h), as behind a PCIe-to-PCI bridge.
    Alias {
        /// The device.
        device: DeviceId,
        /// The DeviceID of its requests.
        source: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// Devices whose requests all carry the DeviceID `source` (43h, 04h).
    AliasRange {
        /// The first.
        first: DeviceId,
        /// The last.
        last: DeviceId,
        /// The DeviceID of their requests.
        source: DeviceId,
        /// DTE setting.
        setting: DteSetting,
    },
    /// One device with an extended setting (46h).
    Extended {
        /// The device.
        device: DeviceId,
        /// DTE setting.
        setting: DteSetting,
        /// Extended setting.
        extended: ExtendedSetting,
    },
}

impl Coverage {
    /// Every DeviceID of the segment but `iommu`, which is no device behind itself. One or two
    /// ranges.
    pub fn all_but(iommu: DeviceId) -> Vec<Self> {
        let range = |first, last| Self::Range {
            first: DeviceId(first),
            last: DeviceId(last),
            setting: DteSetting::new(),
        };
        let before = iommu.0.checked_sub(1).map(|last| range(0, last));
        let after = iommu.0.checked_add(1).map(|first| range(first, u16::MAX));
        before.into_iter().chain(after).collect()
    }

    /// First and last DeviceID; the same for a single device.
    pub const fn bounds(&self) -> (DeviceId, DeviceId) {
        match *self {
            Self::Single { device, .. }
            | Self::Alias { device, .. }
            | Self::Extended { device, .. } => (device, device),
            Self::Range { first, last, .. } | Self::AliasRange { first, last, .. } => (first, last),
        }
    }

    /// The DeviceID that the requests carry instead, for an alias.
    pub const fn source(&self) -> Option<DeviceId> {
        match *self {
            Self::Alias { source, .. } | Self::AliasRange { source, .. } => Some(source),
            Self::Single { .. } | Self::Range { .. } | Self::Extended { .. } => None,
        }
    }

    /// The device entries; a range's two are adjacent.
    fn entries(&self) -> impl Iterator<Item = DeviceEntry<'_>> {
        let (first, end) = match *self {
            Self::Single { device, setting } => (DeviceEntry::Select { device, setting }, None),
            Self::Range {
                first,
                last,
                setting,
            } => (
                DeviceEntry::RangeStart {
                    device: first,
                    setting,
                },
                Some(last),
            ),
            Self::Alias {
                device,
                source,
                setting,
            } => (
                DeviceEntry::AliasSelect {
                    device,
                    setting,
                    source,
                },
                None,
            ),
            Self::AliasRange {
                first,
                last,
                source,
                setting,
            } => (
                DeviceEntry::AliasRangeStart {
                    device: first,
                    setting,
                    source,
                },
                Some(last),
            ),
            Self::Extended {
                device,
                setting,
                extended,
            } => (
                DeviceEntry::ExtendedSelect {
                    device,
                    setting,
                    extended,
                },
                None,
            ),
        };
        [
            Some(first),
            end.map(|device| DeviceEntry::RangeEnd { device }),
        ]
        .into_iter()
        .flatten()
    }
}

/// A device that PCI does not enumerate (48h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// What it is.
    pub variety: SpecialVariety,
    /// The IOAPIC's APIC ID as in the MADT, or the HPET's number.
    pub handle: u8,
    /// The DeviceID of its requests.
    pub device: DeviceId,
    /// DTE setting.
    pub setting: DteSetting,
}

impl Special {
    /// The board's first IOAPIC, at [`SOUTHBRIDGE`], with all that is not remapped let through, as
    /// firmware does it.
    pub fn southbridge_ioapic(apic_id: u8) -> Self {
        Self {
            variety: SpecialVariety::IoApic,
            handle: apic_id,
            device: SOUTHBRIDGE,
            setting: DteSetting::new()
                .with_init_pass(true)
                .with_eint_pass(true)
                .with_nmi_pass(true)
                .with_sys_mgt(1)
                .with_lint0_pass(true)
                .with_lint1_pass(true),
        }
    }

    /// An HPET whose requests carry `device`.
    pub fn hpet(number: u8, device: DeviceId) -> Self {
        Self {
            variety: SpecialVariety::Hpet,
            handle: number,
            device,
            setting: DteSetting::new(),
        }
    }
}

/// A device that ACPI names (F0h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiDevice {
    /// The DeviceID of its requests.
    pub device: DeviceId,
    /// DTE setting.
    pub setting: DteSetting,
    /// Hardware ID, padded with zeroes.
    pub hid: [u8; 8],
    /// Compatible ID, padded with zeroes; all zero for none.
    pub cid: [u8; 8],
    /// Unique ID; usually the path in the ACPI namespace, such as `\_SB.AMDI`.
    pub uid: AcpiUid,
}

/// Unique ID of an [`AcpiDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcpiUid {
    /// None.
    None,
    /// A number.
    Integer(u64),
    /// A string of at most 255 bytes.
    String(String),
}

impl AcpiDevice {
    fn entry(&self) -> DeviceEntry<'_> {
        DeviceEntry::AcpiHid {
            device: self.device,
            setting: self.setting,
            hid: self.hid,
            cid: self.cid,
            uid: match &self.uid {
                AcpiUid::None => Uid::None,
                AcpiUid::Integer(value) => Uid::Integer(*value),
                AcpiUid::String(text) => Uid::String(text.as_bytes()),
            },
        }
    }
}

impl IommuUnit {
    fn header(&self, kind: IvhdKind) -> IvhdHeader {
        let only_10h = IvhdFlags::PRE_F_SUP | IvhdFlags::PPR_SUP;
        let mut flags = self.flags - only_10h;
        if kind == IvhdKind::Type10 {
            flags.set(IvhdFlags::PRE_F_SUP, self.efr.pre_f_sup());
            flags.set(IvhdFlags::PPR_SUP, self.efr.ppr_sup());
        }
        let images = kind != IvhdKind::Type10;
        let feature_word = if images {
            IvhdAttributes::new()
                .with_hat_dis(self.hat_dis)
                .with_pn_counters(self.pn_counters)
                .with_pn_banks(self.pn_banks)
                .with_msi_num_ppr(self.msi_num_ppr)
                .into_bits()
        } else {
            IvhdFeatures::from_efr(self.efr)
                .with_pn_counters(self.pn_counters)
                .with_pn_banks(self.pn_banks)
                .with_msi_num_ppr(self.msi_num_ppr)
                .into_bits()
        };
        IvhdHeader {
            flags,
            device_id: self.device_id,
            capability_offset: self.capability_offset,
            mmio_base: self.mmio_base,
            segment: self.segment,
            info: IvhdInfo::new().with_msi_num(self.msi_num),
            feature_word,
            efr: if images {
                self.efr
            } else {
                ExtendedFeature::new()
            },
            efr2: if images {
                self.efr2
            } else {
                ExtendedFeature2::new()
            },
            ..IvhdHeader::new(kind)
        }
    }

    fn entries(&self, kind: IvhdKind) -> Vec<DeviceEntry<'_>> {
        let specials = self.specials.iter().map(|special| DeviceEntry::Special {
            setting: special.setting,
            handle: special.handle,
            device: special.device,
            variety: special.variety,
        });
        let acpi = self
            .acpi
            .iter()
            .filter(|_| kind == IvhdKind::Type40)
            .map(AcpiDevice::entry);
        self.devices
            .iter()
            .flat_map(Coverage::entries)
            .chain(specials)
            .chain(acpi)
            .collect()
    }
}

impl IvrsConfig {
    /// The table, checksum included.
    ///
    /// # Errors
    /// When [`check`](Self::check) finds something, or a block would be too long.
    pub fn build(&self) -> Result<Vec<u8>, ConfigError> {
        self.check()?;
        // All blocks of a type together, in ascending order: Linux takes the type of the *last*
        // block of the first unit and then looks at that type only.
        let mut blocks: Vec<(IvhdHeader, Vec<DeviceEntry<'_>>)> = Vec::new();
        for kind in [IvhdKind::Type10, IvhdKind::Type11, IvhdKind::Type40] {
            for unit in self.units.iter().filter(|unit| unit.kinds.contains(&kind)) {
                blocks.push((unit.header(kind), unit.entries(kind)));
            }
        }
        let hardware: usize = blocks
            .iter()
            .map(|(header, entries)| {
                header.kind.header_size()
                    + entries.iter().map(DeviceEntry::encoded_len).sum::<usize>()
            })
            .sum();
        let mut table = vec![0; HEADER_SIZE + hardware + self.memory.len() * IVMD_SIZE];
        let length = self
            .write(&mut table, &blocks)
            .map_err(ConfigError::Build)?;
        table.truncate(length);
        Ok(table)
    }

    fn write(
        &self,
        table: &mut [u8],
        blocks: &[(IvhdHeader, Vec<DeviceEntry<'_>>)],
    ) -> Result<usize, BuildError> {
        let mut builder = IvrsBuilder::new(table, &self.table_header())?;
        for (header, entries) in blocks {
            builder.ivhd(header)?;
            for entry in entries {
                builder.entry(entry)?;
            }
        }
        for range in &self.memory {
            builder.ivmd(range)?;
        }
        Ok(builder.finish().len())
    }

    fn table_header(&self) -> TableHeader {
        let mixed = self
            .units
            .iter()
            .any(|unit| unit.kinds.contains(&IvhdKind::Type40));
        let efr_sup = self
            .units
            .iter()
            .any(|unit| unit.efr.into_bits() != 0 || unit.efr2.into_bits() != 0);
        // GVAsize: 010b = 48 bits, 011b = 57 bits.
        let five_level = self.units.iter().any(|unit| unit.efr.gats() == 1);
        TableHeader {
            revision: if mixed {
                REVISION_MIXED
            } else {
                REVISION_FIXED
            },
            oem_id: self.oem_id,
            oem_table_id: self.oem_table_id,
            iv_info: IvInfo::new()
                .with_efr_sup(efr_sup)
                .with_dma_remap_sup(self.dma_remap_sup)
                .with_gva_size(if five_level { 3 } else { 2 })
                .with_pa_size(self.pa_bits)
                .with_va_size(self.va_bits),
            ..TableHeader::default()
        }
    }
}
