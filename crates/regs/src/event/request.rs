//! Events about a request of a device: codes 1–4, 8 and 9.

use bitfield_struct::bitfield;

/// ILLEGAL_DEV_TABLE_ENTRY (48882 §2.5.2).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IllegalDevTableEntry {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[19:16\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[31:20\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[47:32\], PASID\[15:0\].
    pub pasid_15_0: u16,
    /// Bit 48, GN: a guest PASID is given.
    pub gn: bool,
    /// Bits \[50:49\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 51, I: interrupt request.
    pub i: bool,
    /// Bit 52, reserved.
    __: bool,
    /// Bit 53, RW: write.
    pub rw: bool,
    /// Bit 54, reserved.
    __: bool,
    /// Bit 55, RZ: reserved bit not zero.
    pub rz: bool,
    /// Bit 56, TR: translation request.
    pub tr: bool,
    /// Bits \[59:57\], reserved.
    #[bits(3)]
    __: u8,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[65:64\], reserved.
    #[bits(2)]
    __: u8,
    /// Bits \[127:66\], Address\[63:2\].
    #[bits(62)]
    pub address_4: u64,
}

impl IllegalDevTableEntry {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x1;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000003_0e560000_fff00000;
}

/// IO_PAGE_FAULT (48882 §2.5.3).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoPageFault {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[19:16\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[31:20\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[47:32\], DomainID, or PASID\[15:0\] with GN.
    pub pasid_domain_id: u16,
    /// Bit 48, GN: a guest PASID is given.
    pub gn: bool,
    /// Bit 49, NX.
    pub nx: bool,
    /// Bit 50, US: user privilege.
    pub us: bool,
    /// Bit 51, I: interrupt request.
    pub i: bool,
    /// Bit 52, PR: the entry was present.
    pub pr: bool,
    /// Bit 53, RW: write.
    pub rw: bool,
    /// Bit 54, PE: permission missing.
    pub pe: bool,
    /// Bit 55, RZ: reserved bit not zero.
    pub rz: bool,
    /// Bit 56, TR: translation request.
    pub tr: bool,
    /// Bits \[59:57\], reserved.
    #[bits(3)]
    __: u8,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], Address.
    pub address: u64,
}

impl IoPageFault {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x2;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_0e000000_fff00000;
}

/// DEV_TAB_HARDWARE_ERROR (48882 §2.5.4).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DevTabHardwareError {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[50:16\], reserved.
    #[bits(35)]
    __: u64,
    /// Bit 51, I: interrupt request.
    pub i: bool,
    /// Bit 52, reserved.
    __: bool,
    /// Bit 53, RW: write.
    pub rw: bool,
    /// Bits \[55:54\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 56, TR: translation request.
    pub tr: bool,
    /// Bits \[58:57\], Type: 1 master abort, 2 target abort, 3 data error.
    #[bits(2)]
    pub kind: u8,
    /// Bit 59, reserved.
    __: bool,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[67:64\], reserved.
    #[bits(4)]
    __: u8,
    /// Bits \[127:68\], Address\[63:4\] of the DTE.
    #[bits(60)]
    pub address_16: u64,
}

impl DevTabHardwareError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x3;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_0000000f_08d7ffff_ffff0000;
}

/// PAGE_TAB_HARDWARE_ERROR (48882 §2.5.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageTabHardwareError {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], reserved.
    __: u16,
    /// Bits \[47:32\], DomainID, or PASID\[15:0\] with GN.
    pub pasid_domain_id: u16,
    /// Bit 48, GN: a guest PASID is given.
    pub gn: bool,
    /// Bits \[50:49\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 51, I: interrupt request.
    pub i: bool,
    /// Bit 52, reserved.
    __: bool,
    /// Bit 53, RW: write.
    pub rw: bool,
    /// Bits \[55:54\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 56, TR: translation request.
    pub tr: bool,
    /// Bits \[58:57\], Type: 1 master abort, 2 target abort, 3 data error.
    #[bits(2)]
    pub kind: u8,
    /// Bit 59, reserved.
    __: bool,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[66:64\], reserved.
    #[bits(3)]
    __: u8,
    /// Bits \[127:67\], Address\[63:3\] of the entry.
    #[bits(61)]
    pub address_8: u64,
}

impl PageTabHardwareError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x4;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000007_08d60000_ffff0000;
}

/// INVALID_DEVICE_REQUEST (48882 §2.5.9).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidDeviceRequest {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[19:16\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[31:20\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[47:32\], PASID\[15:0\].
    pub pasid_15_0: u16,
    /// Bit 48, GN: a guest PASID is given.
    pub gn: bool,
    /// Bit 49, reserved.
    __: bool,
    /// Bit 50, US: user privilege.
    pub us: bool,
    /// Bits \[55:51\], reserved.
    #[bits(5)]
    __: u8,
    /// Bit 56, TR: translation request.
    pub tr: bool,
    /// Bits \[59:57\], Type, see table 53.
    #[bits(3)]
    pub kind: u8,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], Address.
    pub address: u64,
}

impl InvalidDeviceRequest {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x8;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_00fa0000_fff00000;
}

/// INVALID_PPR_REQUEST (48882 §2.5.10).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidPprRequest {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], PASID\[15:0\].
    pub pasid_15_0: u16,
    /// Bits \[41:32\], tag.
    #[bits(10)]
    pub tag: u16,
    /// Bits \[45:42\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[47:46\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 48, RX: no response is expected.
    pub rx: bool,
    /// Bits \[56:49\], reserved.
    __: u8,
    /// Bit 57, GN.
    pub gn: bool,
    /// Bits \[59:58\], reserved.
    #[bits(2)]
    __: u8,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], Address.
    pub address: u64,
}

impl InvalidPprRequest {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x9;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_0dfec000_00000000;
}
