//! Where everything on the board sits, and whether it can.

use std::collections::BTreeSet;

use amdvi_device::Options;
use amdvi_regs::{DeviceId, Segment};

use super::BoardError;
use super::config::{Config, IommuConfig};
use super::ivrs::Southbridge;
use crate::layout;

/// The host bridge of every segment.
const HOST_BRIDGE: DeviceId = DeviceId::new(0, 0, 0);
/// Where the first test endpoint sits when nothing else is said; others look for a free device from
/// here on.
const FIRST_FREE: DeviceId = DeviceId::new(0, 5, 0);

/// Where a function sits.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Segment,
    pub(super) addr: DeviceId,
    /// The DeviceID that its requests carry.
    pub(super) requester: DeviceId,
    /// The index of the IOMMU that it is behind.
    pub(super) iommu: usize,
}

/// Where everything sits.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The index of the IOMMU that the IOAPIC is behind.
    pub(super) ioapic: usize,
    /// The HPET's, if there is one: its DeviceID and the index of its IOMMU.
    pub(super) hpet: Option<(DeviceId, usize)>,
    /// In the order of [`Config::endpoints`].
    pub(super) endpoints: Vec<Place>,
    /// In the order of [`Config::functions`].
    pub(super) functions: Vec<Place>,
}

impl Config {
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
        self.check_aliases()?;
        let hpet = self
            .ivrs
            .hpet
            .map(|id| {
                let iommu = self.behind("--ivrs hpet", Segment(0), id)?;
                Ok::<_, BoardError>((id, iommu))
            })
            .transpose()?;
        let mut taken: BTreeSet<(u16, DeviceId)> = BTreeSet::new();
        if self.ivrs.southbridge != Southbridge::Absent {
            taken.insert((0, self.ivrs.ioapic));
        }
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
        let spoken_for = self.spoken_for();
        let mut places = Vec::new();
        for (name, segment, addr) in &wishes {
            let free = |device: &u8| {
                let at = |function| (segment.0, DeviceId::new(0, *device, function));
                let is_free = |place| !taken.contains(&place) && !spoken_for.contains(&place);
                (0..8).all(|function| is_free(at(function)))
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
            places.push(Place {
                segment: *segment,
                addr: place,
                requester: self.ivrs.requester(*segment, place),
                iommu: self.behind(name, *segment, place)?,
            });
        }
        let functions = places.split_off(self.endpoints.len());
        Ok(Places {
            ioapic,
            hpet,
            endpoints: places,
            functions,
        })
    }

    /// DeviceIDs that requests carry although no function is there. A function that names no place
    /// is not put there: it would share their entries.
    fn spoken_for(&self) -> BTreeSet<(u16, DeviceId)> {
        let sources = self.ivrs.aliases.iter();
        let sources = sources.map(|alias| (alias.segment.0, alias.source));
        let hpet = self.ivrs.hpet.map(|id| (0, id));
        let acpi = self.ivrs.acpi.iter().map(|device| (0, device.device));
        let ioapic = (0, self.ivrs.ioapic);
        sources.chain(hpet).chain(acpi).chain([ioapic]).collect()
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
            placement(&iommu.options, free, self.ivrs.ioapic)?;
            for other in &self.iommus[..n] {
                self.check_pair(n, other)?;
            }
        }
        self.behind("the IOAPIC", Segment(0), self.ivrs.ioapic)
    }

    /// The index of the IOMMU that serves a requester.
    fn behind(&self, name: &str, segment: Segment, id: DeviceId) -> Result<usize, BoardError> {
        let refused = |why| BoardError::Slot {
            name: name.to_owned(),
            segment,
            addr: id,
            why,
        };
        let n = self.iommu_of(segment, id).ok_or_else(|| {
            refused("no IOMMU serves it; give one with this segment, or widen `serves`")
        })?;
        if self.iommus[n].options.device_id() == id {
            return Err(refused("an IOMMU is there"));
        }
        Ok(n)
    }

    /// An alias' functions and its source are behind the same IOMMU: a request takes one way.
    fn check_aliases(&self) -> Result<(), BoardError> {
        for alias in &self.ivrs.aliases {
            let ids = [alias.first, alias.last, alias.source];
            let mut found = BTreeSet::new();
            for id in ids {
                found.insert(self.behind("--ivrs alias", alias.segment, id)?);
            }
            if found.len() != 1 {
                return Err(BoardError::Slot {
                    name: "--ivrs alias".to_owned(),
                    segment: alias.segment,
                    addr: alias.first,
                    why: "the source is behind another IOMMU; give one behind the same",
                });
            }
        }
        Ok(())
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
            let why = "another IOMMU has its registers there; give each its own, such as \
                       mmio-base=0xfeb00000";
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
fn placement(options: &Options, free: u64, ioapic: DeviceId) -> Result<(), BoardError> {
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
    let ioapic = options.segment() == Segment(0) && id == ioapic;
    if id.bus() != 0 || id == HOST_BRIDGE || id == FIRST_FREE || ioapic {
        let why = "00.2 is its usual place; 00.0, 05.0 and 14.0 are taken, and there is bus 0 only";
        return error("addr", id.to_string(), why);
    }
    Ok(())
}
