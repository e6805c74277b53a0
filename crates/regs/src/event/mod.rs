//! Event log entries (48882 §2.5): 128 bits, event code in bits \[63:60\].
//!
//! The DeviceID stands in bits \[15:0\], bus included.

mod display;
mod flags;
mod other;
mod request;

pub use flags::{EventFlags, InvalidRequestType};
pub use other::{
    CommandHardwareError, EventCounterZero, GuestEventFault, IllegalCommandError, IotlbInvTimeout,
    RmpHardwareError, RmpPageFault, ViommuHardwareError,
};
pub use request::{
    DevTabHardwareError, IllegalDevTableEntry, InvalidDeviceRequest, InvalidPprRequest,
    IoPageFault, PageTabHardwareError,
};

/// Size of an event log entry in bytes.
pub const EVENT_SIZE: u64 = 16;

/// A decoded event. Open: an unknown code is kept as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

macro_rules! from_event {
    ($($name:ident),* $(,)?) => {
        $(
            impl From<$name> for Event {
                fn from(entry: $name) -> Self {
                    Self::$name(entry)
                }
            }
        )*
    };
}

from_event!(
    IllegalDevTableEntry,
    IoPageFault,
    DevTabHardwareError,
    PageTabHardwareError,
    IllegalCommandError,
    CommandHardwareError,
    IotlbInvTimeout,
    InvalidDeviceRequest,
    InvalidPprRequest,
    EventCounterZero,
    GuestEventFault,
    ViommuHardwareError,
    RmpPageFault,
    RmpHardwareError,
);
