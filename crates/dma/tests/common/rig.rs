//! An IOMMU as far as DMA is concerned: fabric, shared IOTLB, device table, and the literal model of
//! what the caches may answer.

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, Invalidation, View};
use amdvi_dma::{Access, Iotlb, Mapper};
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};

use super::model::{Input, Output, byte};
use super::{TestMemory, UNBACKED};

/// GPA of the device table.
pub const DEVICE_TABLE: u64 = 0x1_0000;

/// HATS 2: six levels.
pub fn fabric() -> Arc<Fabric> {
    fabric_of(ExtendedFeature::new().with_hats(2).with_ia_sup(true))
}

pub fn fabric_of(features: ExtendedFeature) -> Arc<Fabric> {
    let view = View::new(features, ExtendedFeature2::new());
    view.set_control(Control::RESET.with_iommu_en(true));
    view.set_device_table(
        0,
        DeviceTableBase::new()
            .with_base_page(DEVICE_TABLE >> 12)
            .with_size(0),
    );
    Arc::new(Fabric::new(view, Barrier::Portable))
}

/// The address of a device's DTE.
pub const fn dte(device: DeviceId) -> u64 {
    DEVICE_TABLE + device.0 as u64 * 32
}

/// A fabric, its IOTLB and one function.
pub struct Rig {
    pub fabric: Arc<Fabric>,
    pub iotlb: Arc<Iotlb>,
    pub memory: TestMemory,
}

impl Rig {
    pub fn new(iotlb_entries: usize) -> Self {
        Self {
            fabric: fabric(),
            iotlb: Arc::new(Iotlb::new(iotlb_entries)),
            memory: TestMemory::new(),
        }
    }

    pub fn set_dte(&mut self, device: DeviceId, q0: u64, q1: u64) {
        self.memory.set(dte(device), q0);
        self.memory.set(dte(device) + 8, q1);
    }

    pub fn mapper(&self, device: DeviceId, entries: usize) -> Mapper {
        Mapper::new(self.fabric.clone(), self.iotlb.clone(), device, entries, 64)
    }

    /// The GPA of one byte, or the event's words.
    pub fn one(&self, mapper: &mut Mapper, access: Access, iova: u64) -> Result<u64, [u64; 2]> {
        match mapper.translate(&self.memory, iova, 1, access) {
            Ok(mapped) => Ok(mapped.gpa),
            Err(failed) => Err(failed.event.map_or([0; 2], |event| event.words())),
        }
    }
}

/// What the guest did, as far as the literal model of staleness must know it.
#[derive(Clone, Debug)]
struct Moment {
    memory: std::collections::BTreeMap<u64, u64>,
    iommu_en: bool,
    exclusion: Option<(u64, u64, bool)>,
}

/// The literal model of what may be answered: it remembers every state of guest memory, and every
/// invalidation with the state that it found (which can be read again after it).
#[derive(Debug)]
pub struct Oracle {
    pub va_size: u64,
    moments: Vec<Moment>,
    pages: Vec<(usize, Invalidation)>,
    /// The first moment of which a device's DTE and the registers may still be in use.
    dte_from: Vec<(DeviceId, usize)>,
    all_from: usize,
}

impl Oracle {
    pub fn new(memory: &TestMemory, va_size: u64) -> Self {
        Self {
            va_size,
            moments: vec![Moment {
                memory: memory.words.clone(),
                iommu_en: true,
                exclusion: None,
            }],
            pages: Vec::new(),
            dte_from: Vec::new(),
            all_from: 0,
        }
    }

    fn now(&self) -> usize {
        self.moments.len() - 1
    }

    pub fn memory_changed(&mut self, memory: &TestMemory) {
        let mut moment = self.moments[self.now()].clone();
        moment.memory = memory.words.clone();
        self.moments.push(moment);
    }

    pub fn registers_changed(&mut self, iommu_en: bool, exclusion: Option<(u64, u64, bool)>) {
        let mut moment = self.moments[self.now()].clone();
        moment.iommu_en = iommu_en;
        moment.exclusion = exclusion;
        self.moments.push(moment);
        self.invalidated_all();
    }

    pub fn invalidated_pages(&mut self, invalidation: Invalidation) {
        self.pages.push((self.now(), invalidation));
    }

    pub fn invalidated_dte(&mut self, device: DeviceId) {
        self.dte_from.push((device, self.now()));
    }

    pub fn invalidated_all(&mut self) {
        self.all_from = self.now();
    }

    /// Every answer that one byte may get.
    ///
    /// A DTE is as old as its last invalidation at most. The table is as old as the last invalidation
    /// that overlaps the page which it maps the byte with; what is no page is never kept.
    pub fn allowed(&self, device: DeviceId, access: Access, iova: u64) -> Vec<Output> {
        let now = self.now();
        let dte_from = self
            .dte_from
            .iter()
            .filter(|(d, _)| *d == device)
            .map(|(_, from)| *from)
            .fold(self.all_from, usize::max);
        let mut allowed = Vec::new();
        for at_dte in dte_from..=now {
            let registers = &self.moments[at_dte];
            let word = |gpa| registers.memory.get(&gpa).copied().unwrap_or(0);
            let (q0, q1) = (word(dte(device)), word(dte(device) + 8));
            for at_tables in self.all_from..=now {
                let input = Input {
                    iommu_en: registers.iommu_en,
                    levels: 6,
                    va_size: self.va_size,
                    eph_sup: false,
                    ht_range_ignore: false,
                    exclusion: registers.exclusion,
                    q0,
                    q1,
                    device: device.0.into(),
                    iova,
                    read: access != Access::Write,
                    write: access != Access::Read,
                    at: 0,
                };
                let tables = &self.moments[at_tables].memory;
                let output = byte(&input, &mut |gpa| {
                    (gpa < UNBACKED).then(|| tables.get(&gpa).copied().unwrap_or(0))
                });
                let gone = match output {
                    Output::At {
                        page: Some(page), ..
                    } => {
                        let first = (u128::from(iova) / page * page) as u64;
                        let last = (u128::from(first) + (page - 1)) as u64;
                        self.pages.iter().any(|(when, invalidation)| {
                            *when > at_tables
                                && invalidation
                                    .domain
                                    .is_none_or(|d| u64::from(d) == q1 & 0xffff)
                                && invalidation.range.first() <= last
                                && first <= invalidation.range.last()
                        })
                    }
                    // Not through a page: the tables don't matter, so any moment will do.
                    Output::At { page: None, .. } => false,
                    Output::Aborted { .. } => at_tables != now,
                };
                if !gone && !allowed.contains(&output) {
                    allowed.push(output);
                }
            }
        }
        allowed
    }
}
