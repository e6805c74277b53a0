//! What is on the board: IOMMUs, the functions behind them, and what else a VMM plugs in.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use amdvi_device::Options;
use amdvi_guest::endpoint::VECTORS;
use amdvi_regs::{DeviceId, Segment};

use super::pci::Function;
use super::slot::{Lines, Slot};
use super::{BoardError, IOAPIC};
use crate::layout;

/// The host bridge of every segment.
const HOST_BRIDGE: DeviceId = DeviceId::new(0, 0, 0);
/// Where the first test endpoint sits when nothing else is said; others look for a free device from
/// here on.
pub(super) const FIRST_FREE: DeviceId = DeviceId::new(0, 5, 0);

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
pub trait FixedDevice: Send + Sync {
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

/// The whole board.
#[derive(Default)]
pub struct Config {
    /// The IOMMUs; every function must be behind one.
    pub iommus: Vec<IommuConfig>,
    /// The test endpoints.
    pub endpoints: Vec<EndpointConfig>,
    /// Other functions.
    pub functions: Vec<FunctionConfig>,
    /// Devices at fixed ports and addresses, and what errors call them.
    pub fixed: Vec<(String, FixedBuilder)>,
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

/// Where a function sits.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Segment,
    pub(super) addr: DeviceId,
    /// The index of the IOMMU that it is behind.
    pub(super) iommu: usize,
}

/// Where everything sits.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The index of the IOMMU that the IOAPIC is behind.
    pub(super) ioapic: usize,
    /// In the order of [`Config::endpoints`].
    pub(super) endpoints: Vec<Place>,
    /// In the order of [`Config::functions`].
    pub(super) functions: Vec<Place>,
}

impl Config {
    /// The board of the scenarios: one IOMMU, and the test endpoint at 00:05.0.
    pub fn scenario(options: Options) -> Self {
        Self {
            iommus: vec![options.into()],
            endpoints: vec![EndpointConfig::default()],
            ..Self::default()
        }
    }

    /// The segments, in order. Segment 0 always exists.
    fn segments(&self) -> BTreeSet<u16> {
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

    /// The IOMMU, by its index, that requests of this DeviceID go through.
    pub fn iommu_of(&self, segment: Segment, id: DeviceId) -> Option<usize> {
        (0..self.iommus.len()).find(|&n| {
            let (first, last) = self.scope(n);
            self.iommus[n].options.segment() == segment && first <= id && id <= last
        })
    }

    /// The DeviceIDs that are behind IOMMU `n`: first and last.
    pub fn scope(&self, n: usize) -> (DeviceId, DeviceId) {
        let iommu = &self.iommus[n];
        if let Some(serves) = iommu.serves {
            return serves;
        }
        // Function 0 of an IOMMU's device.
        let start = |other: &IommuConfig| other.options.device_id().0 & !7;
        let mine = start(iommu);
        let others: Vec<u16> = self
            .iommus
            .iter()
            .filter(|other| other.options.segment() == iommu.options.segment())
            .map(start)
            .collect();
        let first = if others.iter().any(|&other| other < mine) {
            mine
        } else {
            0
        };
        let next = others.into_iter().filter(|&other| other > mine).min();
        let last = next.map_or(u16::MAX, |next| next - 1);
        (DeviceId(first), DeviceId(last))
    }

    /// Whether such a board is possible.
    ///
    /// # Errors
    /// Something is in the way of something else, or behind no IOMMU.
    pub fn check(&self) -> Result<(), BoardError> {
        self.places().map(|_| ())
    }

    /// Finds a place for everything.
    ///
    /// # Errors
    /// Something is in the way of something else, or behind no IOMMU.
    pub(super) fn places(&self) -> Result<Places, BoardError> {
        let ioapic = self.check_iommus()?;
        let mut taken: BTreeSet<(u16, DeviceId)> = BTreeSet::from([(0, IOAPIC)]);
        for segment in self.segments() {
            taken.insert((segment, HOST_BRIDGE));
        }
        for iommu in &self.iommus {
            taken.insert((iommu.options.segment().0, iommu.options.device_id()));
        }
        let mut wishes: Vec<(String, Segment, Option<DeviceId>)> = Vec::new();
        for endpoint in &self.endpoints {
            wishes.push(("--endpoint".to_owned(), endpoint.segment, endpoint.addr));
        }
        for function in &self.functions {
            wishes.push((function.name.clone(), function.segment, function.addr));
        }
        // Who names a place gets it, whatever comes before in the list.
        for (name, segment, addr) in &wishes {
            let Some(addr) = *addr else { continue };
            let refused = |why| BoardError::Slot {
                name: name.clone(),
                segment: *segment,
                addr,
                why,
            };
            if addr.bus() != 0 {
                return Err(refused("there is bus 0 only"));
            }
            if !taken.insert((segment.0, addr)) {
                return Err(refused("something else is there"));
            }
        }
        let mut places = Vec::new();
        for (name, segment, addr) in &wishes {
            let free = |device: &u8| {
                let at = |function| (segment.0, DeviceId::new(0, *device, function));
                (0..8).all(|function| !taken.contains(&at(function)))
            };
            let place = match addr {
                Some(addr) => *addr,
                None => {
                    let device = (FIRST_FREE.device()..32).find(free);
                    let device = device.ok_or_else(|| BoardError::Full { name: name.clone() })?;
                    DeviceId::new(0, device, 0)
                }
            };
            taken.insert((segment.0, place));
            let Some(iommu) = self.iommu_of(*segment, place) else {
                return Err(BoardError::Slot {
                    name: name.clone(),
                    segment: *segment,
                    addr: place,
                    why: "no IOMMU serves it; give one with this segment, or widen `serves`",
                });
            };
            places.push(Place {
                segment: *segment,
                addr: place,
                iommu,
            });
        }
        let functions = places.split_off(self.endpoints.len());
        Ok(Places {
            ioapic,
            endpoints: places,
            functions,
        })
    }

    /// The index of the IOMMU that the IOAPIC is behind.
    fn check_iommus(&self) -> Result<usize, BoardError> {
        let segments = self.segments();
        if segments.len() > layout::MAX_SEGMENTS {
            return Err(BoardError::Segments {
                count: segments.len(),
            });
        }
        let others = segments.len() as u64 - 1;
        let free = layout::PCI_MEMORY_END + others * (layout::OTHER_ECAM_BUSES << 20);
        for (n, iommu) in self.iommus.iter().enumerate() {
            placement(&iommu.options, free)?;
            for other in &self.iommus[..n] {
                self.check_pair(n, other)?;
            }
        }
        self.iommu_of(Segment(0), IOAPIC)
            .ok_or_else(|| BoardError::Slot {
                name: "the IOAPIC".to_owned(),
                segment: Segment(0),
                addr: IOAPIC,
                why: "no IOMMU serves it; give one with segment=0, or widen `serves`",
            })
    }

    fn check_pair(&self, n: usize, other: &IommuConfig) -> Result<(), BoardError> {
        let options = &self.iommus[n].options;
        let error = |option, value: String, why: &str| {
            let why = why.to_owned();
            Err(BoardError::Placement { option, value, why })
        };
        let base = options.mmio_base();
        let theirs = other.options.mmio_base();
        if base < theirs + other.options.mmio_size() && theirs < base + options.mmio_size() {
            let why = "another IOMMU has its registers there; give each its own mmio-base";
            return error("mmio-base", format!("{base:#x}"), why);
        }
        if options.segment() != other.options.segment() {
            return Ok(());
        }
        let id = options.device_id();
        if id.0 & !7 == other.options.device_id().0 & !7 {
            let why = "another IOMMU is in this device; give each its own device, such as 10.2";
            return error("addr", id.to_string(), why);
        }
        let (first, last) = self.scope(n);
        let theirs = self
            .iommus
            .iter()
            .position(|iommu| std::ptr::eq(iommu, other))
            .map(|other| self.scope(other));
        if theirs.is_some_and(|(start, end)| first <= end && start <= last) {
            let why = "another IOMMU of the segment serves some of these";
            return error("serves", format!("{first}-{last}"), why);
        }
        Ok(())
    }
}

/// Whether the IOMMU can be where its options put it: BAR windows, ECAM and other functions are
/// in the way. `free` is the first byte behind the ECAM windows.
fn placement(options: &Options, free: u64) -> Result<(), BoardError> {
    let error = |option, value: String, why: &str| {
        let why = why.to_owned();
        Err(BoardError::Placement { option, value, why })
    };
    let base = options.mmio_base();
    let end = base.saturating_add(options.mmio_size());
    if base < free || end > layout::IOAPIC_BASE && base < layout::ABOVE_INTERRUPTS || end > 1 << 32
    {
        let last = layout::IOAPIC_BASE - options.mmio_size();
        let why = format!("{free:#x} to {last:#x} is free for it");
        return error("mmio-base", format!("{base:#x}"), &why);
    }
    let id = options.device_id();
    let ioapic = options.segment() == Segment(0) && id == IOAPIC;
    if id.bus() != 0 || id == HOST_BRIDGE || id == FIRST_FREE || ioapic {
        let why = "00.2 is its usual place; 00.0, 05.0 and 14.0 are taken, and there is bus 0 only";
        return error("addr", id.to_string(), why);
    }
    Ok(())
}
