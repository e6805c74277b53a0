//! The IOMMU's PCI function (48882 §3): capability block, MSI capability, HyperTransport MSI
//! mapping, and the vendor-specific capability of the hardware vIOMMU.

use core::fmt;

use bitfield_struct::bitfield;

use crate::fmt::{Always, Hex, List, display_fields};
use crate::id::DeviceId;

/// Class code byte of the function: base system peripheral.
pub const CLASS: u8 = 0x08;
/// Subclass: IOMMU.
pub const SUBCLASS: u8 = 0x06;
/// Programming interface.
pub const PROG_IF: u8 = 0x00;
/// PCI vendor ID of AMD.
pub const VENDOR_AMD: u16 = 0x1022;

/// Capability ID of the IOMMU capability block ("secure device").
pub const CAP_ID_SECURE_DEVICE: u8 = 0x0f;
/// Capability ID of the MSI capability.
pub const CAP_ID_MSI: u8 = 0x05;
/// Capability ID of HyperTransport capabilities.
pub const CAP_ID_HT: u8 = 0x08;
/// Capability ID of vendor-specific capabilities.
pub const CAP_ID_VENDOR: u8 = 0x09;

/// Offsets in the IOMMU capability block.
pub mod offset {
    /// Capability header, [`CapabilityHeader`](super::CapabilityHeader).
    pub const HEADER: u16 = 0x00;
    /// Base address low, [`BaseAddressLow`](super::BaseAddressLow).
    pub const BASE_LOW: u16 = 0x04;
    /// Base address high, [`BaseAddressHigh`](super::BaseAddressHigh).
    pub const BASE_HIGH: u16 = 0x08;
    /// Range, [`DeviceRange`](super::DeviceRange).
    pub const RANGE: u16 = 0x0c;
    /// Miscellaneous information 0, [`MiscInfo0`](super::MiscInfo0).
    pub const MISC_INFO_0: u16 = 0x10;
    /// Miscellaneous information 1, [`MiscInfo1`](super::MiscInfo1); with CapExt.
    pub const MISC_INFO_1: u16 = 0x14;
    /// Bytes of the block with Miscellaneous Information 1.
    pub const SIZE: u16 = 0x18;

    /// MSI capability: header.
    pub const MSI_HEADER: u16 = 0x00;
    /// MSI capability: address low.
    pub const MSI_ADDRESS_LOW: u16 = 0x04;
    /// MSI capability: address high.
    pub const MSI_ADDRESS_HIGH: u16 = 0x08;
    /// MSI capability: data.
    pub const MSI_DATA: u16 = 0x0c;

    /// vIOMMU capability: header.
    pub const VIOMMU_HEADER: u16 = 0x00;
    /// vIOMMU capability: information.
    pub const VIOMMU_INFO: u16 = 0x04;
    /// vIOMMU capability: VF region base low; high follows at + 4.
    pub const VIOMMU_VF_BASE: u16 = 0x08;
    /// vIOMMU capability: VF control region base low; high follows at + 4.
    pub const VIOMMU_VF_CONTROL_BASE: u16 = 0x10;
}

/// Capability header (+00h).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CapabilityHeader {
    /// Bits \[7:0\], CapId: 0Fh.
    pub cap_id: u8,
    /// Bits \[15:8\], CapPtr: offset of the next capability.
    pub cap_ptr: u8,
    /// Bits \[18:16\], CapType: 3 for an IOMMU.
    #[bits(3)]
    pub cap_type: u8,
    /// Bits \[23:19\], CapRev: 1.
    #[bits(5)]
    pub cap_rev: u8,
    /// Bit 24, IotlbSup: commands for remote IOTLBs (ATS) are supported.
    pub iotlb_sup: bool,
    /// Bit 25, HtTunnel: HyperTransport tunnel translation is supported.
    pub ht_tunnel: bool,
    /// Bit 26, NpCache: not-present entries are cached.
    pub np_cache: bool,
    /// Bit 27, EFRSup: MMIO 0030h is implemented.
    pub efr_sup: bool,
    /// Bit 28, CapExt: Miscellaneous Information 1 is present.
    pub cap_ext: bool,
    /// Bits \[31:29\], reserved.
    #[bits(3)]
    pub rsvd_31_29: u8,
}

impl CapabilityHeader {
    /// CapType of an IOMMU.
    pub const TYPE_IOMMU: u8 = 3;
    /// CapRev that the specification defines.
    pub const REVISION: u8 = 1;
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xe000_0000;

    /// The header of an IOMMU with `next` as the next capability and no optional part.
    pub const fn iommu(next: u8) -> Self {
        Self::new()
            .with_cap_id(CAP_ID_SECURE_DEVICE)
            .with_cap_ptr(next)
            .with_cap_type(Self::TYPE_IOMMU)
            .with_cap_rev(Self::REVISION)
    }
}

display_fields!(CapabilityHeader, reserved CapabilityHeader::RESERVED, {
    "CapId": cap_id as Always,
    "CapPtr": cap_ptr as Always,
    "CapType": cap_type as Always,
    "CapRev": cap_rev as Always,
    "IotlbSup": iotlb_sup,
    "HtTunnel": ht_tunnel,
    "NpCache": np_cache,
    "EFRSup": efr_sup,
    "CapExt": cap_ext,
});

/// Base address low (+04h). Locked by Enable.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BaseAddressLow {
    /// Bit 0, Enable (RW1S): MMIO accesses are accepted; locks the block until reset.
    pub enable: bool,
    /// Bits \[13:1\], reserved.
    #[bits(13)]
    pub rsvd_13_1: u16,
    /// Bits \[31:14\], MMIO base address \[31:14\].
    #[bits(18)]
    pub base_31_14: u32,
}

impl BaseAddressLow {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0x0000_3ffe;
    /// Base bits that are writable when the region has 512 KiB (EFR.PCSup).
    pub const BASE_MASK_512K: u32 = 0xfff8_0000;
    /// Base bits that are writable when the region has 16 KiB.
    pub const BASE_MASK_16K: u32 = 0xffff_c000;
}

impl fmt::Display for BaseAddressLow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("Enable", self.enable())
            .field("base[31:14]", Hex(u64::from(self.base_31_14()) << 14))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

/// Base address high (+08h). Locked by Enable.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BaseAddressHigh {
    /// Bits \[31:0\], MMIO base address \[63:32\].
    pub base_63_32: u32,
}

impl BaseAddressHigh {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0;
}

display_fields!(BaseAddressHigh, reserved BaseAddressHigh::RESERVED, {
    "base[63:32]": base_63_32,
});

/// Range (+0Ch).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceRange {
    /// Bits \[4:0\], UnitID: HyperTransport unit; 0.
    #[bits(5)]
    pub unit_id: u8,
    /// Bits \[6:5\], reserved.
    #[bits(2)]
    pub rsvd_6_5: u8,
    /// Bit 7, RngValid: bus, first and last device are valid.
    pub rng_valid: bool,
    /// Bits \[15:8\], BusNumber of the range.
    pub bus_number: u8,
    /// Bits \[23:16\], FirstDevice: device and function.
    pub first_device: u8,
    /// Bits \[31:24\], LastDevice: device and function.
    pub last_device: u8,
}

impl DeviceRange {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0x0000_0060;

    /// The first DeviceID of the range.
    pub const fn first(self) -> DeviceId {
        DeviceId((self.bus_number() as u16) << 8 | self.first_device() as u16)
    }

    /// The last DeviceID of the range, inclusive.
    pub const fn last(self) -> DeviceId {
        DeviceId((self.bus_number() as u16) << 8 | self.last_device() as u16)
    }
}

impl fmt::Display for DeviceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("RngValid", self.rng_valid())
            .field_if(self.rng_valid(), "first", Always(self.first()))
            .field_if(self.rng_valid(), "last", Always(self.last()))
            .field("UnitID", self.unit_id())
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

/// Miscellaneous Information 0 (+10h), shadowed at MMIO 0150h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MiscInfo0 {
    /// Bits \[4:0\], MsiNum: MSI message of events and COMPLETION_WAIT.
    #[bits(5)]
    pub msi_num: u8,
    /// Bits \[7:5\], GVAsize: 2 = 48-bit guest virtual addresses.
    #[bits(3)]
    pub gva_size: u8,
    /// Bits \[14:8\], PAsize: bits of a physical address.
    #[bits(7)]
    pub pa_size: u8,
    /// Bits \[21:15\], VAsize: bits of a virtual address.
    #[bits(7)]
    pub va_size: u8,
    /// Bit 22, HtAtsResv: the ATS range is reserved on HyperTransport.
    pub ht_ats_resv: bool,
    /// Bits \[26:23\], reserved.
    #[bits(4)]
    pub rsvd_26_23: u8,
    /// Bits \[31:27\], MsiNumPPR: MSI message of the PPR log.
    #[bits(5)]
    pub msi_num_ppr: u8,
}

impl MiscInfo0 {
    /// GVAsize of 48-bit guest virtual addresses.
    pub const GVA_48: u8 = 2;
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0x0780_0000;
}

display_fields!(MiscInfo0, reserved MiscInfo0::RESERVED, {
    "MsiNum": msi_num as Always,
    "GVAsize": gva_size as Always,
    "PAsize": pa_size as Always,
    "VAsize": va_size as Always,
    "HtAtsResv": ht_ats_resv,
    "MsiNumPPR": msi_num_ppr as Always,
});

/// Miscellaneous Information 1 (+14h, with CapExt), shadowed at MMIO 0154h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MiscInfo1 {
    /// Bits \[4:0\], MsiNumGA: MSI message of the GA log.
    #[bits(5)]
    pub msi_num_ga: u8,
    /// Bits \[31:5\], reserved.
    #[bits(27)]
    pub rsvd_31_5: u32,
}

impl MiscInfo1 {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xffff_ffe0;
}

display_fields!(MiscInfo1, reserved MiscInfo1::RESERVED, {
    "MsiNumGA": msi_num_ga as Always,
});

/// The whole capability block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CapabilityBlock {
    /// +00h.
    pub header: CapabilityHeader,
    /// +04h.
    pub base_low: BaseAddressLow,
    /// +08h.
    pub base_high: BaseAddressHigh,
    /// +0Ch.
    pub range: DeviceRange,
    /// +10h.
    pub misc_info_0: MiscInfo0,
    /// +14h.
    pub misc_info_1: MiscInfo1,
}

impl CapabilityBlock {
    /// The block from its six 32-bit words.
    pub const fn from_words(words: [u32; 6]) -> Self {
        Self {
            header: CapabilityHeader::from_bits(words[0]),
            base_low: BaseAddressLow::from_bits(words[1]),
            base_high: BaseAddressHigh::from_bits(words[2]),
            range: DeviceRange::from_bits(words[3]),
            misc_info_0: MiscInfo0::from_bits(words[4]),
            misc_info_1: MiscInfo1::from_bits(words[5]),
        }
    }

    /// The six 32-bit words.
    pub const fn words(&self) -> [u32; 6] {
        [
            self.header.into_bits(),
            self.base_low.into_bits(),
            self.base_high.into_bits(),
            self.range.into_bits(),
            self.misc_info_0.into_bits(),
            self.misc_info_1.into_bits(),
        ]
    }

    /// The MMIO base address.
    pub const fn mmio_base(&self) -> u64 {
        (self.base_high.base_63_32() as u64) << 32 | (self.base_low.base_31_14() as u64) << 14
    }

    /// Sets the MMIO base address; bits \[13:0\] are dropped.
    #[must_use]
    pub const fn with_mmio_base(mut self, address: u64) -> Self {
        self.base_low = self.base_low.with_base_31_14(address as u32 >> 14);
        self.base_high = self.base_high.with_base_63_32((address >> 32) as u32);
        self
    }
}

impl fmt::Display for CapabilityBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} | {}base={:#x} | {} | {} | {}",
            self.header,
            if self.base_low.enable() {
                "Enable "
            } else {
                ""
            },
            self.mmio_base(),
            self.range,
            self.misc_info_0,
            self.misc_info_1
        )
    }
}

/// MSI capability header, shadowed at MMIO 0158h where only MsiEn is writable.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiCapability {
    /// Bits \[7:0\], CapId: 05h.
    pub cap_id: u8,
    /// Bits \[15:8\], CapPtr: offset of the next capability.
    pub cap_ptr: u8,
    /// Bit 16, MsiEn.
    pub msi_en: bool,
    /// Bits \[19:17\], MultMessCap: log2 of the messages requested.
    #[bits(3)]
    pub mult_mess_cap: u8,
    /// Bits \[22:20\], MultMessEn: log2 of the messages granted.
    #[bits(3)]
    pub mult_mess_en: u8,
    /// Bit 23, 64BitEn: 64-bit message addresses.
    pub addr_64: bool,
    /// Bits \[31:24\], reserved.
    pub rsvd_31_24: u8,
}

impl MsiCapability {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xff00_0000;
}

display_fields!(MsiCapability, reserved MsiCapability::RESERVED, {
    "CapId": cap_id as Always,
    "CapPtr": cap_ptr as Always,
    "MsiEn": msi_en,
    "MultMessCap": mult_mess_cap,
    "MultMessEn": mult_mess_en,
    "64BitEn": addr_64,
});

/// MSI address low, shadowed at MMIO 015Ch.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiAddressLow {
    /// Bits \[1:0\], reserved.
    #[bits(2)]
    pub rsvd_1_0: u8,
    /// Bits \[31:2\], message address \[31:2\].
    #[bits(30)]
    pub address_31_2: u32,
}

impl MsiAddressLow {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0x0000_0003;
}

impl fmt::Display for MsiAddressLow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("address", Hex(u64::from(self.address_31_2()) << 2))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

/// MSI address high, shadowed at MMIO 0160h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiAddressHigh {
    /// Bits \[31:0\], message address \[63:32\].
    pub address_63_32: u32,
}

impl MsiAddressHigh {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0;
}

display_fields!(MsiAddressHigh, reserved MsiAddressHigh::RESERVED, {
    "address[63:32]": address_63_32,
});

/// MSI data, shadowed at MMIO 0164h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiDataRegister {
    /// Bits \[15:0\], message data.
    pub data: u16,
    /// Bits \[31:16\], reserved.
    pub rsvd_31_16: u16,
}

impl MsiDataRegister {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xffff_0000;
}

display_fields!(MsiDataRegister, reserved MsiDataRegister::RESERVED, {
    "data": data,
});

/// HyperTransport MSI mapping capability, shadowed at MMIO 0168h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HtMsiMapping {
    /// Bits \[7:0\], CapId: 08h.
    pub cap_id: u8,
    /// Bits \[15:8\], CapPtr: offset of the next capability.
    pub cap_ptr: u8,
    /// Bit 16, En: mapping is always on, reads 1.
    pub en: bool,
    /// Bit 17, Fixed: the window is FEEx_xxxxh, reads 1.
    pub fixed: bool,
    /// Bits \[26:18\], reserved.
    #[bits(9)]
    pub rsvd_26_18: u16,
    /// Bits \[31:27\], CapType: 15h.
    #[bits(5)]
    pub cap_type: u8,
}

impl HtMsiMapping {
    /// CapType of an MSI mapping capability.
    pub const TYPE_MSI_MAPPING: u8 = 0x15;
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0x07fc_0000;

    /// The only value that an IOMMU has, with `next` as the next capability.
    pub const fn fixed_mapping(next: u8) -> Self {
        Self::new()
            .with_cap_id(CAP_ID_HT)
            .with_cap_ptr(next)
            .with_en(true)
            .with_fixed(true)
            .with_cap_type(Self::TYPE_MSI_MAPPING)
    }
}

display_fields!(HtMsiMapping, reserved HtMsiMapping::RESERVED, {
    "CapId": cap_id as Always,
    "CapPtr": cap_ptr as Always,
    "En": en,
    "Fixed": fixed,
    "CapType": cap_type as Always,
});

/// Information dword of the vIOMMU capability (preliminary, from published driver patches).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ViommuCapabilityInfo {
    /// Bits \[15:0\], Id.
    pub id: u16,
    /// Bits \[23:16\], Rev.
    pub rev: u8,
    /// Bits \[31:24\], reserved.
    pub rsvd_31_24: u8,
}

impl ViommuCapabilityInfo {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xff00_0000;
}

display_fields!(ViommuCapabilityInfo, reserved ViommuCapabilityInfo::RESERVED, {
    "Id": id,
    "Rev": rev,
});

/// Base of the VF region or the VF control region in the vIOMMU capability: the low and high dword
/// as one 64-bit word (preliminary, from published driver patches).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ViommuRegionBase {
    /// Bit 0, enable; set by firmware.
    pub enable: bool,
    /// Bits \[63:1\], base address \[63:1\]; the region is naturally aligned.
    #[bits(63)]
    pub address_63_1: u64,
}

impl ViommuRegionBase {
    /// Bits without a defined meaning: which address bits are fixed to zero is not public.
    pub const RESERVED: u64 = 0;

    /// The byte address of the region.
    pub const fn address(self) -> u64 {
        self.address_63_1() << 1
    }
}

display_fields!(ViommuRegionBase, reserved ViommuRegionBase::RESERVED, {
    "enable": enable,
    "base": address as Hex,
});
