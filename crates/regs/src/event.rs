//! Event log entries (48882 §2.5): 128 bits, event code in bits \[63:60\].
//!
//! The DeviceID stands in bits \[15:0\], bus included.

use bitfield_struct::bitfield;

/// Size of an event log entry in bytes.
pub const EVENT_SIZE: u64 = 16;

/// ILLEGAL_DEV_TABLE_ENTRY (48882 §2.5.2).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
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

/// ILLEGAL_COMMAND_ERROR (48882 §2.5.6).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
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

/// INVALID_DEVICE_REQUEST (48882 §2.5.9).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
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

/// EVENT_COUNTER_ZERO (48882 §2.5.11).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
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

/// A decoded event. Open: an unknown code is kept as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// ILLEGAL_DEV_TABLE_ENTRY.
    IllegalDevTableEntry(IllegalDevTableEntry),
    /// IO_PAGE_FAULT.
    IoPageFault(IoPageFault),
    /// DEV_TAB_HARDWARE_ERROR.
    DevTabHardwareError(DevTabHardwareError),
    /// PAGE_TAB_HARDWARE_ERROR.
    PageTabHardwareError(PageTabHardwareError),
    /// ILLEGAL_COMMAND_ERROR.
    IllegalCommandError(IllegalCommandError),
    /// COMMAND_HARDWARE_ERROR.
    CommandHardwareError(CommandHardwareError),
    /// IOTLB_INV_TIMEOUT.
    IotlbInvTimeout(IotlbInvTimeout),
    /// INVALID_DEVICE_REQUEST.
    InvalidDeviceRequest(InvalidDeviceRequest),
    /// INVALID_PPR_REQUEST.
    InvalidPprRequest(InvalidPprRequest),
    /// EVENT_COUNTER_ZERO.
    EventCounterZero(EventCounterZero),
    /// GUEST_EVENT_FAULT.
    GuestEventFault(GuestEventFault),
    /// VIOMMU_HARDWARE_ERROR.
    ViommuHardwareError(ViommuHardwareError),
    /// RMP_PAGE_FAULT.
    RmpPageFault(RmpPageFault),
    /// RMP_HARDWARE_ERROR.
    RmpHardwareError(RmpHardwareError),
    /// Code 0 (not yet written) or a code that is not defined.
    Unknown(u128),
}

impl Event {
    /// Decodes the two words of an entry as they stand in memory, low word first. Never fails.
    pub const fn decode(words: [u64; 2]) -> Self {
        let bits = words[0] as u128 | (words[1] as u128) << 64;
        match (words[0] >> 60) as u8 {
            IllegalDevTableEntry::CODE => {
                Self::IllegalDevTableEntry(IllegalDevTableEntry::from_bits(bits))
            }
            IoPageFault::CODE => Self::IoPageFault(IoPageFault::from_bits(bits)),
            DevTabHardwareError::CODE => {
                Self::DevTabHardwareError(DevTabHardwareError::from_bits(bits))
            }
            PageTabHardwareError::CODE => {
                Self::PageTabHardwareError(PageTabHardwareError::from_bits(bits))
            }
            IllegalCommandError::CODE => {
                Self::IllegalCommandError(IllegalCommandError::from_bits(bits))
            }
            CommandHardwareError::CODE => {
                Self::CommandHardwareError(CommandHardwareError::from_bits(bits))
            }
            IotlbInvTimeout::CODE => Self::IotlbInvTimeout(IotlbInvTimeout::from_bits(bits)),
            InvalidDeviceRequest::CODE => {
                Self::InvalidDeviceRequest(InvalidDeviceRequest::from_bits(bits))
            }
            InvalidPprRequest::CODE => Self::InvalidPprRequest(InvalidPprRequest::from_bits(bits)),
            EventCounterZero::CODE => Self::EventCounterZero(EventCounterZero::from_bits(bits)),
            GuestEventFault::CODE => Self::GuestEventFault(GuestEventFault::from_bits(bits)),
            ViommuHardwareError::CODE => {
                Self::ViommuHardwareError(ViommuHardwareError::from_bits(bits))
            }
            RmpPageFault::CODE => Self::RmpPageFault(RmpPageFault::from_bits(bits)),
            RmpHardwareError::CODE => Self::RmpHardwareError(RmpHardwareError::from_bits(bits)),
            _ => Self::Unknown(bits),
        }
    }

    /// All 128 bits.
    pub const fn bits(&self) -> u128 {
        match self {
            Self::IllegalDevTableEntry(entry) => entry.into_bits(),
            Self::IoPageFault(entry) => entry.into_bits(),
            Self::DevTabHardwareError(entry) => entry.into_bits(),
            Self::PageTabHardwareError(entry) => entry.into_bits(),
            Self::IllegalCommandError(entry) => entry.into_bits(),
            Self::CommandHardwareError(entry) => entry.into_bits(),
            Self::IotlbInvTimeout(entry) => entry.into_bits(),
            Self::InvalidDeviceRequest(entry) => entry.into_bits(),
            Self::InvalidPprRequest(entry) => entry.into_bits(),
            Self::EventCounterZero(entry) => entry.into_bits(),
            Self::GuestEventFault(entry) => entry.into_bits(),
            Self::ViommuHardwareError(entry) => entry.into_bits(),
            Self::RmpPageFault(entry) => entry.into_bits(),
            Self::RmpHardwareError(entry) => entry.into_bits(),
            Self::Unknown(bits) => *bits,
        }
    }

    /// The two words as they stand in memory, low word first.
    pub const fn words(&self) -> [u64; 2] {
        let bits = self.bits();
        [bits as u64, (bits >> 64) as u64]
    }
}

impl From<IllegalDevTableEntry> for Event {
    fn from(entry: IllegalDevTableEntry) -> Self {
        Self::IllegalDevTableEntry(entry)
    }
}

impl From<IoPageFault> for Event {
    fn from(entry: IoPageFault) -> Self {
        Self::IoPageFault(entry)
    }
}

impl From<DevTabHardwareError> for Event {
    fn from(entry: DevTabHardwareError) -> Self {
        Self::DevTabHardwareError(entry)
    }
}

impl From<PageTabHardwareError> for Event {
    fn from(entry: PageTabHardwareError) -> Self {
        Self::PageTabHardwareError(entry)
    }
}

impl From<IllegalCommandError> for Event {
    fn from(entry: IllegalCommandError) -> Self {
        Self::IllegalCommandError(entry)
    }
}

impl From<CommandHardwareError> for Event {
    fn from(entry: CommandHardwareError) -> Self {
        Self::CommandHardwareError(entry)
    }
}

impl From<IotlbInvTimeout> for Event {
    fn from(entry: IotlbInvTimeout) -> Self {
        Self::IotlbInvTimeout(entry)
    }
}

impl From<InvalidDeviceRequest> for Event {
    fn from(entry: InvalidDeviceRequest) -> Self {
        Self::InvalidDeviceRequest(entry)
    }
}

impl From<InvalidPprRequest> for Event {
    fn from(entry: InvalidPprRequest) -> Self {
        Self::InvalidPprRequest(entry)
    }
}

impl From<EventCounterZero> for Event {
    fn from(entry: EventCounterZero) -> Self {
        Self::EventCounterZero(entry)
    }
}

impl From<GuestEventFault> for Event {
    fn from(entry: GuestEventFault) -> Self {
        Self::GuestEventFault(entry)
    }
}

impl From<ViommuHardwareError> for Event {
    fn from(entry: ViommuHardwareError) -> Self {
        Self::ViommuHardwareError(entry)
    }
}

impl From<RmpPageFault> for Event {
    fn from(entry: RmpPageFault) -> Self {
        Self::RmpPageFault(entry)
    }
}

impl From<RmpHardwareError> for Event {
    fn from(entry: RmpHardwareError) -> Self {
        Self::RmpHardwareError(entry)
    }
}
