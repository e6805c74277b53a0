//! Hardware vIOMMU regions, as far as published driver patches describe them (preliminary; not in
//! the public revisions of 48882).
//!
//! Each guest has a 4 KiB page in the VF region, which mirrors MMIO page 2000h, and 64 bytes of VF
//! control registers.

use core::fmt;

use bitfield_struct::bitfield;

use crate::fmt::{Always, Hex, List, display_fields};
use crate::id::DeviceId;

/// Bytes of the VF region: 65536 guests, 4 KiB each.
pub const VF_REGION_SIZE: u64 = 0x1000_0000;
/// Bytes of the VF control region: 65536 guests, 64 bytes each.
pub const VF_CONTROL_REGION_SIZE: u64 = 0x40_0000;
/// Bytes of a guest's VF page.
pub const VF_PAGE_SIZE: u64 = 0x1000;
/// Bytes of a guest's VF control registers.
pub const VF_CONTROL_SIZE: u64 = 0x40;

/// Offset in the VF region of the register that the guest sees at MMIO 2000h + `register`;
/// `register` is taken modulo 1000h.
pub const fn vf_offset(guest_id: u16, register: u64) -> u64 {
    guest_id as u64 * VF_PAGE_SIZE + (register & 0xfff)
}

/// Offset in the VF control region of a guest's control register, see [`vf_control`]; `register`
/// is taken modulo 40h.
pub const fn vf_control_offset(guest_id: u16, register: u64) -> u64 {
    guest_id as u64 * VF_CONTROL_SIZE + (register & 0x3f)
}

/// Offsets of a guest's VF control registers.
pub mod vf_control {
    /// [`IdMapControl`](super::IdMapControl) for DeviceIDs.
    pub const DEVICE_ID_MAP: u64 = 0x00;
    /// [`IdMapControl`](super::IdMapControl) for DomainIDs.
    pub const DOMAIN_ID_MAP: u64 = 0x08;
    /// [`VfMisc`](super::VfMisc).
    pub const MISC: u64 = 0x10;
    /// [`VfLogBBase`](super::VfLogBBase) of event log B.
    pub const EVENT_LOG_B_BASE: u64 = 0x18;
    /// [`VfCommandControl`](super::VfCommandControl).
    pub const COMMAND_CONTROL: u64 = 0x20;
    /// [`VfEventControl`](super::VfEventControl).
    pub const EVENT_CONTROL: u64 = 0x28;
    /// [`VfPprControl`](super::VfPprControl).
    pub const PPR_CONTROL: u64 = 0x30;
    /// [`VfLogBBase`](super::VfLogBBase) of PPR log B.
    pub const PPR_LOG_B_BASE: u64 = 0x38;
}

/// Places in the IOMMU's private address space.
pub mod private_space {
    /// Guest MMIO: 64 bytes per guest.
    pub const GUEST_MMIO: u64 = 0;
    /// Command buffer dirty status, 2000h bytes.
    pub const COMMAND_DIRTY_STATUS: u64 = 0x40_0000;
    /// DeviceID maps: 1 MiB per guest, 16 bytes per entry.
    pub const DEVICE_ID_MAP: u64 = 0x10_0000_0000;
    /// DomainID maps: 512 KiB per guest, 8 bytes per entry.
    pub const DOMAIN_ID_MAP: u64 = 0x20_0000_0000;

    /// The DeviceID map entry of a guest's device.
    pub const fn device_id_map(guest_id: u16, g_device_id: u16) -> u64 {
        DEVICE_ID_MAP + guest_id as u64 * 0x10_0000 + g_device_id as u64 * 16
    }

    /// The DomainID map entry of a guest's domain.
    pub const fn domain_id_map(guest_id: u16, g_domain_id: u16) -> u64 {
        DOMAIN_ID_MAP + guest_id as u64 * 0x8_0000 + g_domain_id as u64 * 8
    }
}

/// DeviceID or DomainID map control (+00h, +08h): writes one entry of a guest's map.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IdMapControl {
    /// Bit 0, the entry is valid.
    pub valid: bool,
    /// Bits \[13:1\], reserved.
    #[bits(13)]
    pub rsvd_13_1: u16,
    /// Bits \[29:14\], host DeviceID or DomainID.
    pub host_id: u16,
    /// Bits \[45:30\], reserved.
    pub rsvd_45_30: u16,
    /// Bits \[61:46\], guest DeviceID or DomainID.
    pub guest_id: u16,
    /// Bit 62, reserved.
    pub rsvd_62: bool,
    /// Bit 63, write the entry.
    pub write: bool,
}

impl IdMapControl {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x4000_3fff_c000_3ffe;
}

display_fields!(IdMapControl, reserved IdMapControl::RESERVED, {
    "write": write,
    "valid": valid,
    "guest": guest_id,
    "host": host_id,
});

/// Miscellaneous VF control (+10h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VfMisc {
    /// Bits \[15:0\], reserved.
    pub rsvd_15_0: u16,
    /// Bits \[31:16\], TranslateDevID: the DeviceID whose DTE translates the guest's buffers.
    pub translate_dev_id: u16,
    /// Bits \[63:32\], reserved.
    pub rsvd_63_32: u32,
}

impl VfMisc {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_0000_ffff;
}

impl fmt::Display for VfMisc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        List::new(f)
            .field("TranslateDevID", Always(DeviceId(self.translate_dev_id())))
            .field("reserved", self.into_bits() & Self::RESERVED)
            .finish()
    }
}

/// Base of event log B (+18h) or PPR log B (+38h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VfLogBBase {
    /// Bits \[11:0\], reserved.
    #[bits(12)]
    pub rsvd_11_0: u16,
    /// Bits \[51:12\], base as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl VfLogBBase {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0fff;

    /// The byte address of the log.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }
}

display_fields!(VfLogBBase, reserved VfLogBBase::RESERVED, {
    "base": address as Hex,
});

/// Command buffer control (+20h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VfCommandControl {
    /// Bits \[3:0\], length, as in the command buffer base register.
    #[bits(4)]
    pub length: u8,
    /// Bits \[7:4\], reserved.
    #[bits(4)]
    pub rsvd_7_4: u8,
    /// Bit 8, CmdBufEn.
    pub cmd_buf_en: bool,
    /// Bit 9, ComWaitIntEn.
    pub com_wait_int_en: bool,
    /// Bits \[11:10\], reserved.
    #[bits(2)]
    pub rsvd_11_10: u8,
    /// Bits \[51:12\], base as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl VfCommandControl {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0cf0;

    /// The byte address of the command buffer.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }
}

display_fields!(VfCommandControl, reserved VfCommandControl::RESERVED, {
    "CmdBufEn": cmd_buf_en,
    "ComWaitIntEn": com_wait_int_en,
    "base": address as Hex,
    "ComLen": length as Always,
});

/// Event log control (+28h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VfEventControl {
    /// Bits \[3:0\], length of log A.
    #[bits(4)]
    pub length: u8,
    /// Bits \[7:4\], length of log B.
    #[bits(4)]
    pub length_b: u8,
    /// Bit 8, EventLogEn.
    pub event_log_en: bool,
    /// Bit 9, EventIntEn.
    pub event_int_en: bool,
    /// Bits \[11:10\], DualEventLogEn.
    #[bits(2)]
    pub dual_event_log_en: u8,
    /// Bits \[51:12\], base of log A as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl VfEventControl {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0000;

    /// The byte address of log A.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }
}

display_fields!(VfEventControl, reserved VfEventControl::RESERVED, {
    "EventLogEn": event_log_en,
    "EventIntEn": event_int_en,
    "DualEventLogEn": dual_event_log_en,
    "base": address as Hex,
    "EventLen": length as Always,
    "EventLenB": length_b,
});

/// PPR log control (+30h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VfPprControl {
    /// Bits \[3:0\], length of log A.
    #[bits(4)]
    pub length: u8,
    /// Bits \[7:4\], length of log B.
    #[bits(4)]
    pub length_b: u8,
    /// Bit 8, PPRLogEn.
    pub ppr_log_en: bool,
    /// Bit 9, PPRIntEn.
    pub ppr_int_en: bool,
    /// Bit 10, PPREn.
    pub ppr_en: bool,
    /// Bits \[12:11\], DualPprLogEn.
    #[bits(2)]
    pub dual_ppr_log_en: u8,
    /// Bit 13, PprAutoRspEn.
    pub ppr_auto_rsp_en: bool,
    /// Bit 14, BlkStopMrkEn.
    pub blk_stop_mrk_en: bool,
    /// Bit 15, PprAutoRspAon.
    pub ppr_auto_rsp_aon: bool,
    /// Bits \[55:16\], base \[51:12\] of log A as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:56\], reserved.
    pub rsvd_63_56: u8,
}

impl VfPprControl {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xff00_0000_0000_0000;

    /// The byte address of log A.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }
}

display_fields!(VfPprControl, reserved VfPprControl::RESERVED, {
    "PPRLogEn": ppr_log_en,
    "PPRIntEn": ppr_int_en,
    "PPREn": ppr_en,
    "DualPprLogEn": dual_ppr_log_en,
    "PprAutoRspEn": ppr_auto_rsp_en,
    "BlkStopMrkEn": blk_stop_mrk_en,
    "PprAutoRspAon": ppr_auto_rsp_aon,
    "base": address as Hex,
    "PPRLen": length as Always,
    "PPRLenB": length_b,
});

/// Extended interrupt index: which entry of the extended interrupt table a guest's log interrupt
/// uses.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtendedInterruptId {
    /// Bits \[15:0\], GuestID.
    pub guest_id: u16,
    /// Bits \[17:16\], type: 0 event log, 1 PPR log.
    #[bits(2)]
    pub kind: u8,
    /// Bits \[31:18\], reserved.
    #[bits(14)]
    pub rsvd_31_18: u16,
}

impl ExtendedInterruptId {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xfffc_0000;

    /// Index in the first-level table, bits \[17:8\].
    pub const fn level_1_index(self) -> u16 {
        (self.into_bits() >> 8) as u16 & 0x3ff
    }

    /// Index in the second-level table of 128-bit IRTEs, bits \[7:0\].
    pub const fn level_2_index(self) -> u8 {
        self.into_bits() as u8
    }
}

display_fields!(ExtendedInterruptId, reserved ExtendedInterruptId::RESERVED, {
    "guest": guest_id as Always,
    "type": kind as Always,
});

/// First-level entry of the extended interrupt table. The length encoding is not public.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtendedInterruptTableEntry {
    /// Bit 0, valid.
    pub valid: bool,
    /// Bit 1, reserved.
    pub rsvd_1: bool,
    /// Bits \[5:2\], length of the second-level table.
    #[bits(4)]
    pub length: u8,
    /// Bits \[51:6\], address of the second-level table, in units of 64 bytes.
    #[bits(46)]
    pub address_64: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl ExtendedInterruptTableEntry {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_0000_0002;

    /// The byte address of the second-level table.
    pub const fn address(self) -> u64 {
        self.address_64() << 6
    }
}

display_fields!(ExtendedInterruptTableEntry, reserved ExtendedInterruptTableEntry::RESERVED, {
    "valid": valid,
    "table": address as Hex,
    "length": length,
});
