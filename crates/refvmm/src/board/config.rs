//! What is on the board: IOMMUs, the functions behind them, and what else a VMM plugs in.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use amdvi_device::Options;
use amdvi_device::options::OptionError;
use amdvi_guest::endpoint::VECTORS;
use amdvi_regs::{DeviceId, Segment};

use super::ivrs::IvrsVariant;
use super::legacy::Legacy;
use super::pci::Function;
use super::properties::{PropertyError, function_of_segment, functions, properties};
use super::slot::{Lines, Slot};
use super::snapshot::Snapshot;
use crate::layout;

/// What a builder can fail with.
pub type BuildError = Box<dyn Error + Send + Sync>;
/// Makes a PCI function for the place that it gets.
pub type FunctionBuilder =
    Box<dyn Fn(&Slot) -> Result<Arc<dyn Function>, BuildError> + Send + Sync>;
/// Makes a device at fixed ports or addresses. It may raise the IOAPIC's pins.
pub type FixedBuilder =
    Box<dyn Fn(&Arc<Lines>) -> Result<Arc<dyn FixedDevice>, BuildError> + Send + Sync>;

/// A device that PCI does not enumerate: at fixed ports or addresses.
///
/// Each method says whether the access is the device's.
pub trait FixedDevice: Snapshot + Send + Sync {
    /// Reads a port; fills `data` completely when the port is the device's.
    fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let _ = (port, data);
        false
    }
    /// Writes a port.
    fn port_write(&self, port: u16, data: &[u8]) -> bool {
        let _ = (port, data);
        false
    }
    /// Reads device memory; fills `data` completely when the address is the device's.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let _ = (gpa, data);
        false
    }
    /// Writes device memory.
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        let _ = (gpa, data);
        false
    }
}

/// One IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuConfig {
    /// What it offers and where it is.
    pub options: Options,
    /// The DeviceIDs of its segment that are behind it. Without: from its own device on, up to the
    /// device of the segment's next IOMMU; the first of a segment also has what is before it.
    pub serves: Option<(DeviceId, DeviceId)>,
}

/// `serves` besides the properties of [`Options`].
impl FromStr for IommuConfig {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let is_serves = |item: &&str| item.trim().split('=').next() == Some("serves");
        let (mine, theirs): (Vec<&str>, Vec<&str>) = text.split(',').partition(is_serves);
        let mine = properties(&mine.join(","), &["serves"], &[])?
            .first()
            .map(|property| {
                functions(property.value).ok_or_else(|| {
                    property.refused("first-last, DeviceIDs such as 00.0-0f.7 or 00:00.0-ff:1f.7")
                })
            })
            .transpose()?;
        Ok(Self {
            options: theirs.join(",").parse()?,
            serves: mine,
        })
    }
}

/// A property string of an IOMMU that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// An option of the device.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A property of its place on the board.
    #[error(transparent)]
    Property(#[from] PropertyError),
}

impl From<Options> for IommuConfig {
    fn from(options: Options) -> Self {
        Self {
            options,
            serves: None,
        }
    }
}

/// One test endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Its segment.
    pub segment: Segment,
    /// Its place; without, the next free one from 05.0 on.
    pub addr: Option<DeviceId>,
    /// Vectors of its MSI-X table, 1–2048.
    pub vectors: u16,
    /// It has an MSI capability.
    pub msi: bool,
    /// It has an interrupt pin.
    pub intx: bool,
    /// Its BARs are 64-bit ones.
    pub bar64: bool,
    /// It has a PASID capability.
    pub pasid: bool,
    /// It has an ATS capability.
    pub ats: bool,
    /// It has a PRI capability.
    pub pri: bool,
}

impl Default for EndpointConfig {
    /// 2048 vectors, MSI and INTA#.
    fn default() -> Self {
        Self {
            segment: Segment(0),
            addr: None,
            vectors: VECTORS,
            msi: true,
            intx: true,
            bar64: false,
            pasid: false,
            ats: false,
            pri: false,
        }
    }
}

/// Each property of `--endpoint`: its name, and what it accepts and is for.
pub const ENDPOINT_PROPERTIES: &[(&str, &str)] = &[
    (
        "vectors",
        "1 to 2048: vectors of its MSI-X table; 2048 without it",
    ),
    (
        "addr",
        "[[segment:]bus:]device.function; the next free device from 05.0 on without it",
    ),
    ("msi", "on or off: an MSI capability; on without it"),
    ("intx", "on or off: an interrupt pin; on without it"),
    ("bar64", "on or off: 64-bit BARs; off without it"),
    ("pasid", "on or off: a PASID capability; off without it"),
    ("ats", "on or off: an ATS capability; off without it"),
    (
        "pri",
        "on or off: a page request capability; off without it",
    ),
];

impl FromStr for EndpointConfig {
    type Err = PropertyError;

    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let known: Vec<&str> = ENDPOINT_PROPERTIES.iter().map(|(name, _)| *name).collect();
        let mut endpoint = Self::default();
        for property in properties(text, &known, &[])? {
            match property.name {
                "vectors" => {
                    endpoint.vectors = property
                        .value
                        .parse()
                        .ok()
                        .filter(|n| (1..=VECTORS).contains(n))
                        .ok_or_else(|| property.refused("1 to 2048"))?;
                }
                "addr" => {
                    let place = function_of_segment(property.value).ok_or_else(|| {
                        property.refused("[[segment:]bus:]device.function, such as 06.0")
                    })?;
                    (endpoint.segment, endpoint.addr) = (place.0, Some(place.1));
                }
                "msi" => endpoint.msi = property.switch()?,
                "intx" => endpoint.intx = property.switch()?,
                "bar64" => endpoint.bar64 = property.switch()?,
                "pasid" => endpoint.pasid = property.switch()?,
                "ats" => endpoint.ats = property.switch()?,
                "pri" => endpoint.pri = property.switch()?,
                // `properties` lets no others through.
                _ => {}
            }
        }
        Ok(endpoint)
    }
}

/// A PCI function that the board does not know.
pub struct FunctionConfig {
    /// What errors call it, such as the option that asked for it.
    pub name: String,
    /// Its segment.
    pub segment: Segment,
    /// Its place; without, the next free one from 05.0 on, behind the test endpoints.
    pub addr: Option<DeviceId>,
    /// Makes it. Called once for each board that is built: after a reset there is a new one.
    pub build: FunctionBuilder,
}

/// Which model of ACPI hardware the firmware tables describe (ACPI 6.5 §4.1, §4.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcpiHardware {
    /// Hardware-reduced: no interrupt, timers or registers of ACPI's own but for sleep and reset.
    /// Linux then leaves legacy devices alone, the HPET among them.
    #[default]
    Reduced,
    /// Fixed hardware: PM1 registers and an SCI, as on a PC.
    Fixed,
}

/// The whole board.
#[derive(Default)]
pub struct Config {
    /// The IOMMUs; every function must be behind one.
    pub iommus: Vec<IommuConfig>,
    /// The test endpoints.
    pub endpoints: Vec<EndpointConfig>,
    /// Other functions.
    pub functions: Vec<FunctionConfig>,
    /// What the IVRS says besides.
    pub ivrs: IvrsVariant,
    /// Devices at fixed ports and addresses, and what errors call them.
    pub fixed: Vec<(String, FixedBuilder)>,
    /// What a PC has at fixed ports, if the machine is one: a serial port, a clock, and registers
    /// for reset and power-off. The firmware tables tell of them.
    pub legacy: Option<Legacy>,
    /// What the firmware tables say of ACPI's own hardware, on a machine with [`legacy`](Self::legacy).
    pub acpi: AcpiHardware,
    /// The window for BARs above 4 GiB that the firmware tables give segment 0; see
    /// [`Ram::high_bars`](crate::ram::Ram::high_bars).
    pub high_bars: Option<Range<u64>>,
}

/// A PCI root bridge, for the firmware tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootBridge {
    /// Its segment; it has all buses of it.
    pub segment: Segment,
    /// Its ECAM window.
    pub ecam: Range<u64>,
    /// Its highest bus; the lowest is 0.
    pub last_bus: u8,
    /// The window for the memory BARs of its functions.
    pub bars: Range<u64>,
}

impl Config {
    /// The board of the scenarios: one IOMMU, and the test endpoint at 00:05.0 with what the IOMMU
    /// offers of PASIDs, ATS and page requests.
    pub fn scenario(options: Options) -> Self {
        let endpoint = EndpointConfig {
            pasid: options.efr().gt_sup(),
            ats: options.device_iotlb(),
            pri: options.device_iotlb() && options.efr().ppr_sup(),
            ..EndpointConfig::default()
        };
        Self {
            iommus: vec![options.into()],
            endpoints: vec![endpoint],
            ..Self::default()
        }
    }

    /// The segments, in order. Segment 0 always exists.
    pub(super) fn segments(&self) -> BTreeSet<u16> {
        let iommus = self.iommus.iter().map(|iommu| iommu.options.segment());
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.segment);
        let functions = self.functions.iter().map(|function| function.segment);
        std::iter::once(Segment(0))
            .chain(iommus)
            .chain(endpoints)
            .chain(functions)
            .map(|segment| segment.0)
            .collect()
    }

    /// The root bridges, in the order of their segments; segment 0 always exists.
    pub fn root_bridges(&self) -> Vec<RootBridge> {
        let bridge = |(n, segment)| {
            let ecam = layout::ecam(n);
            RootBridge {
                segment: Segment(segment),
                last_bus: (((ecam.end - ecam.start) >> 20) - 1) as u8,
                ecam,
                bars: layout::bar_window(n),
            }
        };
        self.segments()
            .into_iter()
            .take(layout::MAX_SEGMENTS)
            .enumerate()
            .map(bridge)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_s_properties_are_read() {
        let endpoint: EndpointConfig = "vectors=64,addr=0001:00:07.2,bar64=on,intx=off,pasid=on"
            .parse()
            .unwrap();
        assert_eq!(
            endpoint,
            EndpointConfig {
                segment: Segment(1),
                addr: Some(DeviceId::new(0, 7, 2)),
                vectors: 64,
                bar64: true,
                intx: false,
                pasid: true,
                ..EndpointConfig::default()
            }
        );
        assert_eq!("".parse::<EndpointConfig>(), Ok(EndpointConfig::default()));
        for (text, part) in [
            ("vectors=0", "1 to 2048"),
            ("vectors=2049", "1 to 2048"),
            ("addr=5", "device.function"),
            ("msi=yes", "on or off"),
            ("msi", "on or off"),
            ("vector=1", "vectors"),
        ] {
            let error = text.parse::<EndpointConfig>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_an_iommu_serves_is_a_property_beside_the_device_s() {
        let iommu: IommuConfig = "amd-iommu,serves=00.0-0f.7,numint2k=on".parse().unwrap();
        let serves = (DeviceId::new(0, 0, 0), DeviceId::new(0, 0xf, 7));
        assert_eq!(iommu.serves, Some(serves));
        assert_eq!(iommu.options, "amd-iommu,numint2k=on".parse().unwrap());
        assert_eq!("amd-iommu".parse::<IommuConfig>().unwrap().serves, None);
        for text in [
            "amd-iommu,serves=all",
            "amd-iommu,serves",
            "amd-iommu,serves=05.0,serves=06.0",
            "amd-iommu,servers=05.0",
        ] {
            let error = text.parse::<IommuConfig>().unwrap_err().to_string();
            assert!(error.contains("serve"), "{text}: {error}");
        }
    }
}
