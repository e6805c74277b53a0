//! What a fact speaks for: the host, one of its IOMMUs, or one PCI function.

use std::fmt;
use std::str::FromStr;

use amdvi_regs::{DeviceId, Segment};
use serde::{Deserialize, Serialize};

/// A PCI function of the host, `0000:c1:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciFunction {
    /// The PCI segment, which Linux calls domain.
    pub segment: Segment,
    /// Bus, device and function.
    pub id: DeviceId,
}

impl PciFunction {
    /// A function of segment 0 and up.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self {
            segment: Segment(segment),
            id: DeviceId::new(bus, device, function),
        }
    }
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.id)
    }
}

/// A text that is no PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no PCI function; accepted: [SSSS:]BB:DD.F in hexadecimal, such as 0000:c1:00.0"
)]
pub struct ParsePciFunctionError {
    /// What was given.
    pub text: String,
}

impl FromStr for PciFunction {
    type Err = ParsePciFunctionError;

    fn from_str(text: &str) -> Result<Self, ParsePciFunctionError> {
        parse(text).ok_or_else(|| ParsePciFunctionError {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<PciFunction> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    Some(PciFunction::new(
        hex(segment, 4, 0xffff)?,
        hex(bus, 2, 0xff)? as u8,
        hex(device, 2, 0x1f)? as u8,
        hex(function, 1, 7)? as u8,
    ))
}

fn hex(digits: &str, at_most: usize, max: u16) -> Option<u16> {
    // `from_str_radix` would take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let short = (1..=at_most).contains(&digits.len());
    (plain && short)
        .then(|| u16::from_str_radix(digits, 16).ok())
        .flatten()
        .filter(|value| *value <= max)
}

impl Serialize for PciFunction {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciFunction {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a statement speaks for.
///
/// A yes for one IOMMU is not a yes for its neighbour: a feature is proven when every
/// passed-through function is covered, by a statement about itself, about the IOMMU that serves
/// it, or about the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every IOMMU and function of the host.
    Host,
    /// One IOMMU by the name that the host gives it, such as `ivhd0`.
    Iommu(String),
    /// One PCI function.
    Function(PciFunction),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Iommu(name) => f.write_str(name),
            Self::Function(function) => write!(f, "{function}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_functions_round_trip_through_text() {
        for (text, shown) in [
            ("0000:c1:00.0", "0000:c1:00.0"),
            ("c1:1f.7", "0000:c1:1f.7"),
            ("1:2:3.4", "0001:02:03.4"),
        ] {
            assert_eq!(text.parse::<PciFunction>().unwrap().to_string(), shown);
        }
        let function = PciFunction::new(0xffff, 0xff, 0x1f, 7);
        let json = serde_json::to_string(&function).unwrap();
        assert_eq!(json, "\"ffff:ff:1f.7\"");
        assert_eq!(
            serde_json::from_str::<PciFunction>(&json).unwrap(),
            function
        );
    }

    #[test]
    fn malformed_pci_functions_are_refused_with_an_example() {
        for text in [
            "",
            "00:00",
            "00:20.0",
            "00:00.8",
            "+1:00.0",
            "10000:00:00.0",
            "0:0:0:0.0",
            "000:00.0",
            "é:00.0",
        ] {
            let error = text.parse::<PciFunction>().unwrap_err().to_string();
            assert!(error.contains("0000:c1:00.0"), "{error}");
        }
    }
}
