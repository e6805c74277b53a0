//! The layout of each command.

use bitfield_struct::bitfield;

/// COMPLETION_WAIT (48882 §2.4.1).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CompletionWait {
    /// Bit 0, s: store StoreData at StoreAddr.
    pub s: bool,
    /// Bit 1, i: set ComWaitInt.
    pub i: bool,
    /// Bit 2, f: flush queue.
    pub f: bool,
    /// Bits \[51:3\], StoreAddr\[51:3\].
    #[bits(49)]
    pub store_address_8: u64,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], StoreData.
    pub store_data: u64,
}

impl CompletionWait {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x1;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_0ff00000_00000000;
}

/// INVALIDATE_DEVTAB_ENTRY (48882 §2.4.2).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidateDevtabEntry {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:16\], reserved.
    #[bits(44)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateDevtabEntry {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x2;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffff0000;
}

/// INVALIDATE_IOMMU_PAGES (48882 §2.4.3).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidateIommuPages {
    /// Bits \[19:0\], PASID, with GN.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[31:20\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[47:32\], DomainID.
    pub domain_id: u16,
    /// Bits \[59:48\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S: the size is encoded in the address.
    pub s: bool,
    /// Bit 65, PDE: cached upper-level entries too.
    pub pde: bool,
    /// Bit 66, GN: a guest virtual address, PASID is valid.
    pub gn: bool,
    /// Bits \[75:67\], reserved.
    #[bits(9)]
    __: u16,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl InvalidateIommuPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x3;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000ff8_0fff0000_fff00000;
}

/// INVALIDATE_IOTLB_PAGES (48882 §2.4.4).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidateIotlbPages {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[23:16\], PASID\[15:8\].
    pub pasid_15_8: u8,
    /// Bits \[31:24\], MaxPend.
    pub max_pend: u8,
    /// Bits \[47:32\], QueueID.
    pub queue_id: u16,
    /// Bits \[55:48\], PASID\[7:0\].
    pub pasid_7_0: u8,
    /// Bits \[59:56\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S.
    pub s: bool,
    /// Bit 65, reserved.
    __: bool,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bit 67, reserved.
    __: bool,
    /// Bits \[69:68\], Type, with InvIotlbTypeSup.
    #[bits(2)]
    pub kind: u8,
    /// Bits \[75:70\], reserved.
    #[bits(6)]
    __: u8,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl InvalidateIotlbPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x4;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000fca_00000000_00000000;
}

/// INVALIDATE_INTERRUPT_TABLE (48882 §2.4.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidateInterruptTable {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:16\], reserved.
    #[bits(44)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateInterruptTable {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x5;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffff0000;
}

/// PREFETCH_IOMMU_PAGES (48882 §2.4.6).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrefetchIommuPages {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[23:16\], reserved.
    __: u8,
    /// Bits \[31:24\], PFCount.
    pub pf_count: u8,
    /// Bits \[51:32\], PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S.
    pub s: bool,
    /// Bit 65, reserved.
    __: bool,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bit 67, reserved.
    __: bool,
    /// Bit 68, Inval: invalidate first.
    pub inval: bool,
    /// Bits \[75:69\], reserved.
    #[bits(7)]
    __: u8,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl PrefetchIommuPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x6;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000fea_0ff00000_00ff0000;
}

/// COMPLETE_PPR_REQUEST (48882 §2.4.7).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CompletePprRequest {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], reserved.
    __: u16,
    /// Bits \[51:32\], PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[65:64\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bits \[95:67\], reserved.
    #[bits(29)]
    __: u32,
    /// Bits \[111:96\], CompletionTag: response code \[15:12\], group index \[8:0\].
    pub completion_tag: u16,
    /// Bits \[127:112\], reserved.
    __: u16,
}

impl CompletePprRequest {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x7;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffff0000_fffffffb_0ff00000_ffff0000;
}

/// INVALIDATE_IOMMU_ALL (48882 §2.4.8).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InvalidateIommuAll {
    /// Bits \[59:0\], reserved.
    #[bits(60)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateIommuAll {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x8;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffffffff;
}

/// INSERT_GUEST_EVENT (48882 §2.4.9). Where its payload lives is not public.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InsertGuestEvent {
    /// Bits \[31:0\], reserved.
    __: u32,
    /// Bits \[47:32\], GuestID.
    pub guest_id: u16,
    /// Bits \[59:48\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InsertGuestEvent {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x9;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fff0000_ffffffff;
}

/// RESET_VMMIO (48882 §2.4.10).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ResetVmmio {
    /// Bits \[15:0\], GuestID.
    pub guest_id: u16,
    /// Bits \[27:16\], reserved.
    #[bits(12)]
    __: u16,
    /// Bit 28, All.
    pub all: bool,
    /// Bits \[30:29\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 31, vCmd.
    pub v_cmd: bool,
    /// Bits \[59:32\], reserved.
    #[bits(28)]
    __: u32,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl ResetVmmio {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0xa;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_6fff0000;
}

impl InvalidateIotlbPages {
    /// The PASID, assembled from its three fields.
    pub const fn pasid(self) -> u32 {
        (self.pasid_19_16() as u32) << 16
            | (self.pasid_15_8() as u32) << 8
            | self.pasid_7_0() as u32
    }

    /// Sets the three PASID fields; bits above 19 are dropped.
    #[must_use]
    pub const fn with_pasid(self, pasid: u32) -> Self {
        self.with_pasid_19_16((pasid >> 16) as u8 & 0xf)
            .with_pasid_15_8((pasid >> 8) as u8)
            .with_pasid_7_0(pasid as u8)
    }
}

impl CompletePprRequest {
    /// Response code of a request that was served.
    pub const RESPONSE_SUCCESS: u8 = 0;
    /// Response code of a request that was invalid.
    pub const RESPONSE_INVALID: u8 = 1;
    /// Response code of a request that failed.
    pub const RESPONSE_FAILURE: u8 = 0xf;

    /// The page request group index, CompletionTag\[8:0\].
    pub const fn group_index(self) -> u16 {
        self.completion_tag() & 0x1ff
    }

    /// The response code, CompletionTag\[15:12\].
    pub const fn response_code(self) -> u8 {
        (self.completion_tag() >> 12) as u8
    }
}
