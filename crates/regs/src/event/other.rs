//! Events about commands, counters, guests and the RMP: codes 5–7 and A–E.

use bitfield_struct::bitfield;

/// ILLEGAL_COMMAND_ERROR (48882 §2.5.6).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IllegalCommandError {
    /// Bits \[59:0\], reserved.
    #[bits(60)]
    __: u64,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[67:64\], reserved.
    #[bits(4)]
    __: u8,
    /// Bits \[127:68\], Address\[63:4\] of the command.
    #[bits(60)]
    pub address_16: u64,
}

impl IllegalCommandError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x5;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_0000000f_0fffffff_ffffffff;
}

/// COMMAND_HARDWARE_ERROR (48882 §2.5.7).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CommandHardwareError {
    /// Bits \[56:0\], reserved.
    #[bits(57)]
    __: u64,
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
    /// Bits \[127:68\], Address\[63:4\] of the command.
    #[bits(60)]
    pub address_16: u64,
}

impl CommandHardwareError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x6;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_0000000f_09ffffff_ffffffff;
}

/// IOTLB_INV_TIMEOUT (48882 §2.5.8).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IotlbInvTimeout {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:16\], reserved.
    #[bits(44)]
    __: u64,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[67:64\], reserved.
    #[bits(4)]
    __: u8,
    /// Bits \[127:68\], Address\[63:4\] of the command.
    #[bits(60)]
    pub address_16: u64,
}

impl IotlbInvTimeout {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0x7;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_0000000f_0fffffff_ffff0000;
}

/// EVENT_COUNTER_ZERO (48882 §2.5.11).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EventCounterZero {
    /// Bits \[59:0\], reserved.
    #[bits(60)]
    __: u64,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[83:64\], CounterNote\[51:32\].
    #[bits(20)]
    pub note_51_32: u32,
    /// Bits \[95:84\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[127:96\], CounterNote\[31:0\].
    pub note_31_0: u32,
}

impl EventCounterZero {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0xa;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_fff00000_0fffffff_ffffffff;
}

/// GUEST_EVENT_FAULT (hardware vIOMMU, preliminary).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestEventFault {
    /// Bits \[31:0\], reserved.
    __: u32,
    /// Bits \[47:32\], GuestID.
    pub guest_id: u16,
    /// Bits \[59:48\], flags.
    #[bits(12)]
    pub flags: u16,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl GuestEventFault {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0xb;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_00000000_ffffffff;
}

/// VIOMMU_HARDWARE_ERROR (hardware vIOMMU, preliminary).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ViommuHardwareError {
    /// Bits \[15:0\], GuestID.
    pub guest_id: u16,
    /// Bits \[17:16\], Src.
    #[bits(2)]
    pub source: u8,
    /// Bits \[47:18\], reserved.
    #[bits(30)]
    __: u32,
    /// Bits \[59:48\], flags.
    #[bits(12)]
    pub flags: u16,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], Address.
    pub address: u64,
}

impl ViommuHardwareError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0xc;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_0000ffff_fffc0000;
}

/// RMP_PAGE_FAULT (48882 §2.5, SNP).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RmpPageFault {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[23:16\], RMP flags.
    pub rmp_flags: u8,
    /// Bits \[31:24\], reserved.
    __: u8,
    /// Bits \[47:32\], VMGuardTag.
    pub vm_guard_tag: u16,
    /// Bits \[59:48\], flags.
    #[bits(12)]
    pub flags: u16,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[127:64\], GPA.
    pub gpa: u64,
}

impl RmpPageFault {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0xd;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_00000000_ff000000;
}

/// RMP_HARDWARE_ERROR (48882 §2.5, SNP).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RmpHardwareError {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], reserved.
    __: u16,
    /// Bits \[47:32\], VMGuardTag.
    pub vm_guard_tag: u16,
    /// Bits \[59:48\], flags.
    #[bits(12)]
    pub flags: u16,
    /// Bits \[63:60\], event code.
    #[bits(4, default = Self::CODE)]
    pub code: u8,
    /// Bits \[66:64\], reserved.
    #[bits(3)]
    __: u8,
    /// Bits \[127:67\], SPA\[63:3\].
    #[bits(61)]
    pub address_8: u64,
}

impl RmpHardwareError {
    /// The value of bits \[63:60\].
    pub const CODE: u8 = 0xe;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000007_00000000_ffff0000;
}
