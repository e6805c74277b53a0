//! How events print: `IO_PAGE_FAULT device=00:05.0 domain=0x0007 address=0x… flags=[I PR RW]`.

use core::fmt;

use super::*;
use crate::fmt::{Always, Hex, List};
use crate::id::{DeviceId, DomainId};

/// `flags=[…]`; absent when no flag is set.
struct Flags(EventFlags);

impl crate::fmt::Show for Flags {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        if self.0.is_empty() {
            return Ok(false);
        }
        write!(f, "{sep}{name}=[{}]", self.0)?;
        Ok(true)
    }
}

/// Type of a hardware error, bits \[58:57\].
struct HardwareErrorType(u8);

impl fmt::Display for HardwareErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "master-abort",
            2 => "target-abort",
            3 => "data-error",
            _ => "reserved",
        })
    }
}

fn pasid(hi: u8, lo: u16) -> Hex {
    Hex(u64::from(hi) << 16 | u64::from(lo))
}

fn device(id: u16) -> Always<DeviceId> {
    Always(DeviceId(id))
}

impl Event {
    /// The name of the event in the specification; `UNKNOWN` for a code it does not define.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::IllegalDevTableEntry(_) => "ILLEGAL_DEV_TABLE_ENTRY",
            Self::IoPageFault(_) => "IO_PAGE_FAULT",
            Self::DevTabHardwareError(_) => "DEV_TAB_HARDWARE_ERROR",
            Self::PageTabHardwareError(_) => "PAGE_TAB_HARDWARE_ERROR",
            Self::IllegalCommandError(_) => "ILLEGAL_COMMAND_ERROR",
            Self::CommandHardwareError(_) => "COMMAND_HARDWARE_ERROR",
            Self::IotlbInvTimeout(_) => "IOTLB_INV_TIMEOUT",
            Self::InvalidDeviceRequest(_) => "INVALID_DEVICE_REQUEST",
            Self::InvalidPprRequest(_) => "INVALID_PPR_REQUEST",
            Self::EventCounterZero(_) => "EVENT_COUNTER_ZERO",
            Self::GuestEventFault(_) => "GUEST_EVENT_FAULT",
            Self::ViommuHardwareError(_) => "VIOMMU_HARDWARE_ERROR",
            Self::RmpPageFault(_) => "RMP_PAGE_FAULT",
            Self::RmpHardwareError(_) => "RMP_HARDWARE_ERROR",
            Self::Unknown(_) => "UNKNOWN",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = Flags(self.flags());
        let mut list = List::new(f);
        list.word(self.name());
        match self {
            Self::IllegalDevTableEntry(e) => list
                .field("device", device(e.device_id()))
                .field_if(e.gn(), "pasid", pasid(e.pasid_19_16(), e.pasid_15_0()))
                .field("address", Hex(e.address_4() << 2))
                .field("flags", flags),
            Self::IoPageFault(e) => list
                .field("device", device(e.device_id()))
                .field_if(e.gn(), "pasid", pasid(e.pasid_19_16(), e.pasid_domain_id()))
                .field_if(!e.gn(), "domain", Always(DomainId(e.pasid_domain_id())))
                .field("address", Hex(e.address()))
                .field("flags", flags),
            Self::DevTabHardwareError(e) => list
                .field("device", device(e.device_id()))
                .field("type", Always(HardwareErrorType(e.kind())))
                .field("address", Hex(e.address_16() << 4))
                .field("flags", flags),
            Self::PageTabHardwareError(e) => list
                .field("device", device(e.device_id()))
                .field_if(e.gn(), "pasid", Hex(e.pasid_domain_id().into()))
                .field_if(!e.gn(), "domain", Always(DomainId(e.pasid_domain_id())))
                .field("type", Always(HardwareErrorType(e.kind())))
                .field("address", Hex(e.address_8() << 3))
                .field("flags", flags),
            Self::IllegalCommandError(e) => list.field("address", Hex(e.address_16() << 4)),
            Self::CommandHardwareError(e) => list
                .field("type", Always(HardwareErrorType(e.kind())))
                .field("address", Hex(e.address_16() << 4)),
            Self::IotlbInvTimeout(e) => list
                .field("device", device(e.device_id()))
                .field("address", Hex(e.address_16() << 4)),
            Self::InvalidDeviceRequest(e) => list
                .field("device", device(e.device_id()))
                .field_if(e.gn(), "pasid", pasid(e.pasid_19_16(), e.pasid_15_0()))
                .field(
                    "type",
                    Always(InvalidRequestType::from_bits(e.tr(), e.kind())),
                )
                .field("address", Hex(e.address()))
                .field("flags", flags),
            Self::InvalidPprRequest(e) => list
                .field("device", device(e.device_id()))
                .field_if(e.gn(), "pasid", pasid(e.pasid_19_16(), e.pasid_15_0()))
                .field("tag", Hex(e.tag().into()))
                .field("address", Hex(e.address()))
                .field("RX", e.rx()),
            Self::EventCounterZero(e) => list.field(
                "note",
                Hex(u64::from(e.note_51_32()) << 32 | u64::from(e.note_31_0())),
            ),
            Self::GuestEventFault(e) => list
                .field("guest", Hex(e.guest_id().into()))
                .field("flags", e.flags()),
            Self::ViommuHardwareError(e) => list
                .field("guest", Hex(e.guest_id().into()))
                .field("source", Always(e.source()))
                .field("address", Hex(e.address()))
                .field("flags", e.flags()),
            Self::RmpPageFault(e) => list
                .field("device", device(e.device_id()))
                .field("vm-guard-tag", Hex(e.vm_guard_tag().into()))
                .field("gpa", Hex(e.gpa()))
                .field("rmp-flags", Hex(e.rmp_flags().into()))
                .field("flags", e.flags()),
            Self::RmpHardwareError(e) => list
                .field("device", device(e.device_id()))
                .field("vm-guard-tag", Hex(e.vm_guard_tag().into()))
                .field("spa", Hex(e.address_8() << 3))
                .field("flags", e.flags()),
            Self::Unknown(bits) => list
                .field("code", Always((*bits >> 60) as u8 & 0xf))
                .field("bits", *bits),
        };
        list.finish()
    }
}

macro_rules! display_as_event {
    ($($name:ident),* $(,)?) => {
        $(
            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    Event::from(*self).fmt(f)
                }
            }
        )*
    };
}

display_as_event!(
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
