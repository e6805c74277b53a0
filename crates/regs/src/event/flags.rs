//! Parts of events that several events share.

use core::fmt;

use super::Event;

bitflags::bitflags! {
    /// Flag bits \[59:48\] that the request events share (48882 §2.5), shifted down by 48.
    ///
    /// Which of them an event defines differs; [`Event::flags`] returns only those.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EventFlags: u16 {
        /// Bit 48, GN: a guest PASID is given.
        const GN = 1 << 0;
        /// Bit 49, NX: no-execute.
        const NX = 1 << 1;
        /// Bit 50, US: user privilege.
        const US = 1 << 2;
        /// Bit 51, I: interrupt request.
        const I = 1 << 3;
        /// Bit 52, PR: the entry was present.
        const PR = 1 << 4;
        /// Bit 53, RW: write.
        const RW = 1 << 5;
        /// Bit 54, PE: permission missing.
        const PE = 1 << 6;
        /// Bit 55, RZ: reserved bit not zero.
        const RZ = 1 << 7;
        /// Bit 56, TR: translation request.
        const TR = 1 << 8;
    }
}

impl fmt::Display for EventFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, _)) in self.iter_names().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl Event {
    /// The common flags that this event defines and has set; empty for events without them.
    pub const fn flags(&self) -> EventFlags {
        // Masks of bits [59:48] per layout.
        let mask = match self {
            Self::IllegalDevTableEntry(_) => 0x1a9,
            Self::IoPageFault(_) => 0x1ff,
            Self::DevTabHardwareError(_) => 0x128,
            Self::PageTabHardwareError(_) => 0x129,
            Self::InvalidDeviceRequest(_) => 0x105,
            _ => 0,
        };
        EventFlags::from_bits_truncate((self.bits() >> 48) as u16 & mask)
    }
}

/// Type of an INVALID_DEVICE_REQUEST, bits \[59:57\] together with TR (48882 §2.5.9, table 53).
/// Open: other combinations are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum InvalidRequestType {
    /// TR=0, 0: read or non-posted write in the interrupt address range.
    ReadInInterruptRange,
    /// TR=0, 1: pre-translated request from a device that may not send one.
    PretranslatedNotAllowed,
    /// TR=0, 2: request in the port I/O range.
    PortIo,
    /// TR=0, 3: posted write in the system management range.
    SystemManagementWrite,
    /// TR=0, 4: request in the interrupt range.
    InterruptRange,
    /// TR=0, 5: request in the reserved interrupt range.
    ReservedInterruptRange,
    /// TR=0, 6: request in the system management address range.
    SystemManagementAddress,
    /// TR=1, 0: translation request for an address or access that is invalid.
    TranslationInvalidAccess,
    /// TR=1, 1: translation request while translation is disabled (DTE.I = 0 or V = 0).
    TranslationDisabled,
    /// TR=1, 2: translation request with a DeviceID beyond the device table.
    TranslationDeviceIdOutOfRange,
    /// Any other combination.
    Reserved {
        /// The TR bit.
        tr: bool,
        /// Bits \[59:57\].
        kind: u8,
    },
}

impl InvalidRequestType {
    /// Decodes the TR bit and the low three bits of `kind`.
    pub const fn from_bits(tr: bool, kind: u8) -> Self {
        match (tr, kind & 7) {
            (false, 0) => Self::ReadInInterruptRange,
            (false, 1) => Self::PretranslatedNotAllowed,
            (false, 2) => Self::PortIo,
            (false, 3) => Self::SystemManagementWrite,
            (false, 4) => Self::InterruptRange,
            (false, 5) => Self::ReservedInterruptRange,
            (false, 6) => Self::SystemManagementAddress,
            (true, 0) => Self::TranslationInvalidAccess,
            (true, 1) => Self::TranslationDisabled,
            (true, 2) => Self::TranslationDeviceIdOutOfRange,
            (tr, kind) => Self::Reserved { tr, kind },
        }
    }

    /// The encoding: the TR bit and bits \[59:57\].
    pub const fn bits(self) -> (bool, u8) {
        match self {
            Self::ReadInInterruptRange => (false, 0),
            Self::PretranslatedNotAllowed => (false, 1),
            Self::PortIo => (false, 2),
            Self::SystemManagementWrite => (false, 3),
            Self::InterruptRange => (false, 4),
            Self::ReservedInterruptRange => (false, 5),
            Self::SystemManagementAddress => (false, 6),
            Self::TranslationInvalidAccess => (true, 0),
            Self::TranslationDisabled => (true, 1),
            Self::TranslationDeviceIdOutOfRange => (true, 2),
            Self::Reserved { tr, kind } => (tr, kind & 7),
        }
    }
}

impl fmt::Display for InvalidRequestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadInInterruptRange => "read-in-interrupt-range",
            Self::PretranslatedNotAllowed => "pretranslated-not-allowed",
            Self::PortIo => "port-io",
            Self::SystemManagementWrite => "system-management-write",
            Self::InterruptRange => "interrupt-range",
            Self::ReservedInterruptRange => "reserved-interrupt-range",
            Self::SystemManagementAddress => "system-management-address",
            Self::TranslationInvalidAccess => "translation-invalid-access",
            Self::TranslationDisabled => "translation-disabled",
            Self::TranslationDeviceIdOutOfRange => "translation-device-id-out-of-range",
            Self::Reserved { tr, kind } => {
                return write!(f, "reserved(TR={},{kind})", u8::from(*tr));
            }
        })
    }
}
