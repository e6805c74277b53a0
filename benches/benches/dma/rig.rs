//! Guest memory without bookkeeping, and two functions whose domain maps a gibibyte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use amdvi_core::{Barrier, Fabric, View};
use amdvi_dma::{Iotlb, Mapper};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::pte::HostPte;
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};

const DEVICE_TABLE: u64 = 0x1_0000;
pub(crate) const ROOT: u64 = 0x2_0000;
const LEVEL_3: u64 = 0x2_1000;
const LEVEL_2: u64 = 0x2_2000;
const LEVEL_2_LARGE: u64 = 0x2_3000;
const LEVEL_1: u64 = 0x10_0000;
const BYTES: u64 = 0x40_0000;
/// PR, IR and IW.
const PRESENT: u64 = 1 | 3 << 61;

/// IOVA of the gibibyte that is mapped with pages of 4 KiB.
pub(crate) const SMALL: u64 = 0x1_0000_0000;
/// IOVA of the gibibyte that is mapped with pages of 2 MiB.
pub(crate) const LARGE: u64 = 0x2_0000_0000;
pub(crate) const DOMAIN: u16 = 7;
const DEVICES: [DeviceId; 2] = [DeviceId(8), DeviceId(16)];

/// Guest memory from GPA 0 on.
pub(crate) struct Memory(Box<[AtomicU64]>);

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        Self((0..bytes / 8).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline(always)]
    fn word(&self, gpa: u64) -> Result<&AtomicU64, MemoryError> {
        match self.0.get((gpa / 8) as usize) {
            Some(word) if gpa.is_multiple_of(8) => Ok(word),
            _ => Err(MemoryError { gpa }),
        }
    }

    pub(crate) fn set(&self, gpa: u64, word: u64) {
        self.0[(gpa / 8) as usize].store(word, Ordering::Release);
    }
}

impl PhysMemory for Memory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    #[inline(always)]
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        Ok(self.word(gpa)?.load(Ordering::Acquire))
    }
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.word(gpa)?.store(value, Ordering::Release);
        Ok(())
    }
    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Err(MemoryError { gpa })
    }
}

pub(crate) struct Rig {
    pub(crate) memory: Memory,
    pub(crate) fabric: Arc<Fabric>,
    iotlb: Arc<Iotlb>,
}

/// The GPA of page `n` of [`SMALL`]: scattered, so that nobody can merge neighbours.
pub(crate) fn page(n: u64) -> u64 {
    0x40_0000_0000 + (((n * 7919) % 262_144) << 12)
}

impl Rig {
    /// Tables of four levels, and a shared IOTLB of `iotlb_entries`.
    pub(crate) fn new(iotlb_entries: usize) -> Self {
        Self::build(iotlb_entries, false)
    }

    /// The same whose accessed bits are maintained, and set: misses of such tables go the long way.
    pub(crate) fn marked(iotlb_entries: usize) -> Self {
        Self::build(iotlb_entries, true)
    }

    fn build(iotlb_entries: usize, marked: bool) -> Self {
        let memory = Memory::new(BYTES);
        let present = PRESENT | HostPte::new().with_a(marked).into_bits();
        let q0 = DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(4)
            .with_host_pt_root(ROOT >> 12)
            .with_had(u8::from(marked))
            .with_ir(true)
            .with_iw(true);
        let q1 = DteQ1::new().with_domain_id(DOMAIN);
        for device in DEVICES {
            let dte = DEVICE_TABLE + u64::from(device.0) * 32;
            memory.set(dte, q0.into_bits());
            memory.set(dte + 8, q1.into_bits());
        }
        let pde = |level: u64, table: u64| present | level << 9 | table;
        memory.set(ROOT, pde(3, LEVEL_3));
        memory.set(LEVEL_3 + (SMALL >> 30) * 8, pde(2, LEVEL_2));
        memory.set(LEVEL_3 + (LARGE >> 30) * 8, pde(2, LEVEL_2_LARGE));
        for n in 0..512 {
            let table = LEVEL_1 + n * 0x1000;
            memory.set(LEVEL_2 + n * 8, pde(1, table));
            memory.set(LEVEL_2_LARGE + n * 8, present | 0x80_0000_0000 | n << 21);
            for m in 0..512 {
                memory.set(table + m * 8, present | page(n << 9 | m));
            }
        }
        let features = ExtendedFeature::new().with_ha_sup(marked);
        let view = View::new(features, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        Self {
            memory,
            fabric: Arc::new(Fabric::new(view, Barrier::best())),
            iotlb: Arc::new(Iotlb::new(iotlb_entries)),
        }
    }

    /// A handle of the first or second function.
    pub(crate) fn mapper(&self, n: usize, entries: usize) -> Mapper {
        let (fabric, iotlb) = (self.fabric.clone(), self.iotlb.clone());
        Mapper::new(fabric, iotlb, DEVICES[n], entries, 48)
    }

    /// The DTE's address of the first function.
    pub(crate) fn dte(&self) -> u64 {
        DEVICE_TABLE + u64::from(DEVICES[0].0) * 32
    }
}

/// `count` IOVAs, one in each page of 2^`shift` bytes from `base` on, in a fixed random order.
pub(crate) fn shuffled(base: u64, shift: u32, count: usize) -> Vec<u64> {
    let mut list: Vec<u64> = (0..count as u64)
        .map(|n| base + (n << shift) + ((n * 72) & 0xfc0))
        .collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..list.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        list.swap(i, (seed >> 33) as usize % (i + 1));
    }
    list
}
