//! Identities: PCI segment, DeviceID and DomainID.

use core::fmt;

/// A PCI segment group number.
///
/// One IOMMU serves one segment (IVHD "PCI Segment Group", 48882 §5.2.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Segment(pub u16);

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// A DeviceID: bus\[15:8\], device\[7:3\], function\[2:0\] of a requester.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceId(pub u16);

impl DeviceId {
    /// Builds a DeviceID; `device` is taken modulo 32, `function` modulo 8.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1f) << 3 | (function as u16 & 7))
    }

    /// The PCI bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The PCI device number, 0–31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }

    /// The PCI function number, 0–7.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

/// A DomainID: the 16-bit tag that a DTE gives to a translation domain (DTE\[79:64\]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DomainId(pub u16);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate alloc;
    use alloc::string::ToString;

    #[test]
    fn device_id_fields_are_bus_device_function() {
        let id = DeviceId::new(0xab, 0x1f, 7);
        assert_eq!(id.0, 0xabff);
        assert_eq!((id.bus(), id.device(), id.function()), (0xab, 0x1f, 7));
        assert_eq!(DeviceId::new(0, 0x14, 0).0, 0x00a0);
        assert_eq!(id.to_string(), "ab:1f.7");
    }
}
