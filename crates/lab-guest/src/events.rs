//! The driver's lines about events.

/// A page fault as the driver prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Who the line says it is: driver and address, `vfio-pci 0000:00:05.0`, or for a DeviceID that no
    /// function has the address alone.
    pub who: String,
    /// DomainID.
    pub domain: u16,
    /// The IOVA.
    pub address: u64,
    /// Bits 27:16 of the event's second dword.
    pub flags: u16,
}

/// `flags` of a write to what is not mapped: RW.
pub const WRITE_NOT_PRESENT: u16 = 0x20;
/// `flags` of a read of what is not mapped.
pub const READ_NOT_PRESENT: u16 = 0;

/// What is in `flags` besides when guest tables were used: GN and US.
pub const BY_GUEST_TABLES: u16 = 5;

impl PageFault {
    /// Reads `<who>: AMD-Vi: Event logged [IO_PAGE_FAULT domain=… address=… flags=…]`, or
    /// `AMD-Vi: Event logged [IO_PAGE_FAULT device=<who> domain=… address=… flags=…]`.
    pub fn parse(line: &str) -> Option<Self> {
        let (who, rest) = match line.strip_prefix("AMD-Vi: Event logged [IO_PAGE_FAULT device=") {
            Some(rest) => rest.split_once(" domain=0x")?,
            None => line.split_once(": AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x")?,
        };
        let (domain, rest) = rest.split_once(" address=0x")?;
        let (address, rest) = rest.split_once(" flags=0x")?;
        Some(Self {
            who: who.to_owned(),
            domain: u16::from_str_radix(domain, 16).ok()?,
            address: u64::from_str_radix(address, 16).ok()?,
            flags: u16::from_str_radix(rest.strip_suffix(']')?, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fault_names_domain_address_and_flags() {
        let line = "vfio-pci 0000:00:05.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0005 \
                    address=0x100000000 flags=0x0020]";
        let expected = PageFault {
            who: "vfio-pci 0000:00:05.0".into(),
            domain: 5,
            address: 1 << 32,
            flags: WRITE_NOT_PRESENT,
        };
        assert_eq!(PageFault::parse(line), Some(expected));
        let of_nobody = "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:1d.0 domain=0x0009 \
                         address=0x1000 flags=0x0000]";
        let expected = PageFault {
            who: "0000:00:1d.0".into(),
            domain: 9,
            address: 0x1000,
            flags: READ_NOT_PRESENT,
        };
        assert_eq!(PageFault::parse(of_nobody), Some(expected));
        let other = "AMD-Vi: Event logged [INVALID_DEVICE_REQUEST device=0000:00:06.0 domain=0x0000 \
                     address=0x1000 flags=0x0000]";
        assert_eq!(PageFault::parse(other), None);
    }
}
