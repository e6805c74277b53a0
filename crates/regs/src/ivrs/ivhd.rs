//! I/O Virtualization Hardware Definition blocks (48882 §5.2.2.1).

use core::fmt;

use bitfield_struct::bitfield;

use super::bytes::{put, u16_at, u32_at, u64_at};
use super::entry::DeviceEntries;
use crate::fmt::{Always, display_fields, display_flags};
use crate::id::{DeviceId, Segment};
use crate::mmio::{ExtendedFeature, ExtendedFeature2};

/// Type of an IVHD block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum IvhdKind {
    /// 10h: a 24-byte header with a feature word.
    Type10,
    /// 11h: a 40-byte header with attributes, EFR and EFR2 images.
    Type11,
    /// 40h: as 11h, and ACPI HID device entries are allowed.
    Type40,
}

impl IvhdKind {
    /// The block type byte, `None` for a type that is no IVHD.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x10 => Some(Self::Type10),
            0x11 => Some(Self::Type11),
            0x40 => Some(Self::Type40),
            _ => None,
        }
    }

    /// The block type byte.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Type10 => 0x10,
            Self::Type11 => 0x11,
            Self::Type40 => 0x40,
        }
    }

    /// Bytes before the first device entry: 24 or 40.
    pub const fn header_size(self) -> usize {
        match self {
            Self::Type10 => 24,
            Self::Type11 | Self::Type40 => 40,
        }
    }
}

impl fmt::Display for IvhdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h", self.bits())
    }
}

bitflags::bitflags! {
    /// Flags of an IVHD block.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IvhdFlags: u8 {
        /// Bit 0, HtTunEn.
        const HT_TUN_EN = 1 << 0;
        /// Bit 1, PassPW.
        const PASS_PW = 1 << 1;
        /// Bit 2, ResPassPW.
        const RES_PASS_PW = 1 << 2;
        /// Bit 3, Isoc.
        const ISOC = 1 << 3;
        /// Bit 4, IotlbSup.
        const IOTLB_SUP = 1 << 4;
        /// Bit 5, Coherent.
        const COHERENT = 1 << 5;
        /// Bit 6, PreFSup (type 10h).
        const PRE_F_SUP = 1 << 6;
        /// Bit 7, PPRSup (type 10h).
        const PPR_SUP = 1 << 7;
    }
}

display_flags!(IvhdFlags, {
    HT_TUN_EN: "HtTunEn",
    PASS_PW: "PassPW",
    RES_PASS_PW: "ResPassPW",
    ISOC: "Isoc",
    IOTLB_SUP: "IotlbSup",
    COHERENT: "Coherent",
    PRE_F_SUP: "PreFSup",
    PPR_SUP: "PPRSup",
});

/// IOMMU info word of an IVHD block.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IvhdInfo {
    /// Bits \[4:0\], MsiNum.
    #[bits(5)]
    pub msi_num: u8,
    /// Bits \[7:5\], reserved.
    #[bits(3)]
    pub rsvd_7_5: u8,
    /// Bits \[12:8\], UnitID.
    #[bits(5)]
    pub unit_id: u8,
    /// Bits \[15:13\], reserved.
    #[bits(3)]
    pub rsvd_15_13: u8,
}

impl IvhdInfo {
    /// Bits without a defined meaning.
    pub const RESERVED: u16 = 0xe0e0;
}

display_fields!(IvhdInfo, reserved IvhdInfo::RESERVED, {
    "MsiNum": msi_num,
    "UnitID": unit_id,
});

/// Feature word of a type 10h block.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IvhdFeatures {
    /// Bit 0, XTSup.
    pub xt_sup: bool,
    /// Bit 1, NXSup.
    pub nx_sup: bool,
    /// Bit 2, GTSup.
    pub gt_sup: bool,
    /// Bits \[4:3\], GLXSup.
    #[bits(2)]
    pub glx_sup: u8,
    /// Bit 5, IASup.
    pub ia_sup: bool,
    /// Bit 6, GASup.
    pub ga_sup: bool,
    /// Bit 7, HESup.
    pub he_sup: bool,
    /// Bits \[12:8\], PASmax.
    #[bits(5)]
    pub pas_max: u8,
    /// Bits \[16:13\], PNCounters: performance counters per bank.
    #[bits(4)]
    pub pn_counters: u8,
    /// Bits \[22:17\], PNBanks: performance counter banks.
    #[bits(6)]
    pub pn_banks: u8,
    /// Bits \[27:23\], MsiNumPPR.
    #[bits(5)]
    pub msi_num_ppr: u8,
    /// Bits \[29:28\], GATS.
    #[bits(2)]
    pub gats: u8,
    /// Bits \[31:30\], HATS.
    #[bits(2)]
    pub hats: u8,
}

impl IvhdFeatures {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0;

    /// The fields that the EFR has too, copied from it; counters and MsiNumPPR are zero.
    pub const fn from_efr(efr: ExtendedFeature) -> Self {
        Self::new()
            .with_xt_sup(efr.xt_sup())
            .with_nx_sup(efr.nx_sup())
            .with_gt_sup(efr.gt_sup())
            .with_glx_sup(efr.glx_sup())
            .with_ia_sup(efr.ia_sup())
            .with_ga_sup(efr.ga_sup())
            .with_he_sup(efr.he_sup())
            .with_pas_max(efr.pas_max())
            .with_gats(efr.gats())
            .with_hats(efr.hats())
    }
}

display_fields!(IvhdFeatures, reserved IvhdFeatures::RESERVED, {
    "XTSup": xt_sup,
    "NXSup": nx_sup,
    "GTSup": gt_sup,
    "GLXSup": glx_sup,
    "IASup": ia_sup,
    "GASup": ga_sup,
    "HESup": he_sup,
    "PASmax": pas_max,
    "PNCounters": pn_counters,
    "PNBanks": pn_banks,
    "MsiNumPPR": msi_num_ppr,
    "GATS": gats as Always,
    "HATS": hats as Always,
});

/// Attribute word of a type 11h or 40h block.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IvhdAttributes {
    /// Bit 0, HATDis: no host address translation.
    pub hat_dis: bool,
    /// Bits \[12:1\], reserved.
    #[bits(12)]
    pub rsvd_12_1: u16,
    /// Bits \[16:13\], PNCounters: performance counters per bank.
    #[bits(4)]
    pub pn_counters: u8,
    /// Bits \[22:17\], PNBanks: performance counter banks.
    #[bits(6)]
    pub pn_banks: u8,
    /// Bits \[27:23\], MsiNumPPR.
    #[bits(5)]
    pub msi_num_ppr: u8,
    /// Bits \[31:28\], reserved.
    #[bits(4)]
    pub rsvd_31_28: u8,
}

impl IvhdAttributes {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xf000_1ffe;
}

display_fields!(IvhdAttributes, reserved IvhdAttributes::RESERVED, {
    "HATDis": hat_dis,
    "PNCounters": pn_counters,
    "PNBanks": pn_banks,
    "MsiNumPPR": msi_num_ppr,
});

/// The header of an IVHD block, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IvhdHeader {
    /// Type of the block.
    pub kind: IvhdKind,
    /// Flags.
    pub flags: IvhdFlags,
    /// DeviceID of the IOMMU.
    pub device_id: DeviceId,
    /// Offset of its capability block in configuration space.
    pub capability_offset: u16,
    /// Base address of its MMIO registers.
    pub mmio_base: u64,
    /// PCI segment that it serves.
    pub segment: Segment,
    /// IOMMU info word.
    pub info: IvhdInfo,
    /// Feature word (10h) or attributes (11h, 40h), see [`IvhdHeader::features`] and
    /// [`IvhdHeader::attributes`].
    pub feature_word: u32,
    /// EFR image; zero in a type 10h block, which has none.
    pub efr: ExtendedFeature,
    /// EFR2 image; zero in a type 10h block, which has none.
    pub efr2: ExtendedFeature2,
}

impl IvhdHeader {
    /// A header of the given type with every other field zero.
    pub const fn new(kind: IvhdKind) -> Self {
        Self {
            kind,
            flags: IvhdFlags::empty(),
            device_id: DeviceId(0),
            capability_offset: 0,
            mmio_base: 0,
            segment: Segment(0),
            info: IvhdInfo::new(),
            feature_word: 0,
            efr: ExtendedFeature::new(),
            efr2: ExtendedFeature2::new(),
        }
    }

    /// The feature word of a type 10h block, else `None`.
    pub const fn features(&self) -> Option<IvhdFeatures> {
        match self.kind {
            IvhdKind::Type10 => Some(IvhdFeatures::from_bits(self.feature_word)),
            _ => None,
        }
    }

    /// The attributes of a type 11h or 40h block, else `None`.
    pub const fn attributes(&self) -> Option<IvhdAttributes> {
        match self.kind {
            IvhdKind::Type10 => None,
            _ => Some(IvhdAttributes::from_bits(self.feature_word)),
        }
    }

    /// Reads a header; `bytes` has at least `kind.header_size()` bytes.
    fn read(kind: IvhdKind, bytes: &[u8]) -> Self {
        let (efr, efr2) = match kind {
            IvhdKind::Type10 => (0, 0),
            _ => (u64_at(bytes, 24), u64_at(bytes, 32)),
        };
        Self {
            kind,
            flags: IvhdFlags::from_bits_retain(bytes[1]),
            device_id: DeviceId(u16_at(bytes, 4)),
            capability_offset: u16_at(bytes, 6),
            mmio_base: u64_at(bytes, 8),
            segment: Segment(u16_at(bytes, 16)),
            info: IvhdInfo::from_bits(u16_at(bytes, 18)),
            feature_word: u32_at(bytes, 20),
            efr: ExtendedFeature::from_bits(efr),
            efr2: ExtendedFeature2::from_bits(efr2),
        }
    }

    /// Writes the header with a block length of its own size; `out` has at least that many bytes.
    pub(super) fn write(&self, out: &mut [u8]) {
        out[0] = self.kind.bits();
        out[1] = self.flags.bits();
        put(out, 2, &(self.kind.header_size() as u16).to_le_bytes());
        put(out, 4, &self.device_id.0.to_le_bytes());
        put(out, 6, &self.capability_offset.to_le_bytes());
        put(out, 8, &self.mmio_base.to_le_bytes());
        put(out, 16, &self.segment.0.to_le_bytes());
        put(out, 18, &self.info.into_bits().to_le_bytes());
        put(out, 20, &self.feature_word.to_le_bytes());
        if self.kind != IvhdKind::Type10 {
            put(out, 24, &self.efr.into_bits().to_le_bytes());
            put(out, 32, &self.efr2.into_bits().to_le_bytes());
        }
    }
}

impl fmt::Display for IvhdHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IVHD {} iommu={}:{} cap={:#x} mmio={:#x} flags=[{}] info=[{}]",
            self.kind,
            self.segment,
            self.device_id,
            self.capability_offset,
            self.mmio_base,
            self.flags,
            self.info
        )?;
        if let Some(features) = self.features() {
            write!(f, " features=[{features}]")?;
        }
        if let Some(attributes) = self.attributes() {
            write!(
                f,
                " attributes=[{attributes}] efr=[{}] efr2=[{}]",
                self.efr, self.efr2
            )?;
        }
        Ok(())
    }
}

/// An IVHD block: an IOMMU and the devices that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivhd<'a> {
    /// The header.
    pub header: IvhdHeader,
    entries: &'a [u8],
    entries_offset: usize,
}

impl<'a> Ivhd<'a> {
    /// The block in `bytes`, which has at least a header, at `offset` in the table.
    pub(super) fn from_block(kind: IvhdKind, bytes: &'a [u8], offset: usize) -> Self {
        let size = kind.header_size();
        Self {
            header: IvhdHeader::read(kind, bytes),
            entries: &bytes[size..],
            entries_offset: offset + size,
        }
    }

    /// The device entries in block order.
    pub fn entries(&self) -> DeviceEntries<'a> {
        DeviceEntries::new(self.entries, self.entries_offset)
    }

    /// The bytes of the device entries.
    pub const fn entry_bytes(&self) -> &'a [u8] {
        self.entries
    }
}

impl fmt::Display for Ivhd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header.fmt(f)
    }
}
