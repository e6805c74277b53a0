//! A function with a process address space: guest tables of four levels over a host table of four.

use std::sync::Arc;

use amdvi_core::{Barrier, Fabric, View};
use amdvi_dma::{Iotlb, Mapper, Pasid};
use amdvi_regs::DeviceId;
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};

use crate::rig::{DOMAIN, Memory, SMALL, page};

const DEVICE_TABLE: u64 = 0x1_0000;
const DEVICE: DeviceId = DeviceId(8);
const PASID: u32 = 5;
/// Pages of the process, from [`SMALL`] on.
pub(crate) const PAGES: u64 = 4096;

/// The host's tables.
const ROOT: u64 = 0x2_0000;
const LEVEL_3: u64 = 0x2_1000;
const LEVEL_2: [u64; 2] = [0x2_2000, 0x2_3000];
const LEVEL_1_TABLES: u64 = 0x2_4000;
const LEVEL_1_DATA: u64 = 0x3_0000;
/// PR, IR and IW.
const PRESENT: u64 = 1 | 3 << 61;

/// Where guest physical address 0 is.
const GUEST: u64 = 0x10_0000;
/// The guest's tables, by guest physical addresses.
const GCR3: u64 = 0x1000;
const GUEST_4: u64 = 0x2000;
const GUEST_3: u64 = 0x3000;
const GUEST_2: u64 = 0x4000;
const GUEST_1: u64 = 0x1_0000;
/// The guest physical address of the data: the second gibibyte.
const DATA: u64 = 1 << 30;
/// P, RW, US, A and D: what a driver sets from the beginning.
const GUEST_RW: u64 = 7 | 3 << 5;

pub(crate) struct Nested {
    pub(crate) memory: Memory,
    fabric: Arc<Fabric>,
    iotlb: Arc<Iotlb>,
}

impl Nested {
    /// Every level of both tables with pages of 4 KiB, and a shared IOTLB of `iotlb_entries`.
    pub(crate) fn new(iotlb_entries: usize) -> Self {
        let memory = Memory::new(0x20_0000);
        let dte = Dte {
            q0: DteQ0::new()
                .with_v(true)
                .with_tv(true)
                .with_mode(4)
                .with_host_pt_root(ROOT >> 12)
                .with_gv(true)
                .with_ir(true)
                .with_iw(true),
            q1: DteQ1::new().with_domain_id(DOMAIN),
            ..Dte::default()
        }
        .with_gcr3_address(GUEST + GCR3);
        for (n, word) in dte.words().into_iter().enumerate() {
            memory.set(DEVICE_TABLE + u64::from(DEVICE.0) * 32 + n as u64 * 8, word);
        }
        let pde = |level: u64, table: u64| PRESENT | level << 9 | table;
        memory.set(ROOT, pde(3, LEVEL_3));
        for (n, table) in (0..).zip(LEVEL_2) {
            memory.set(LEVEL_3 + n * 8, pde(2, table));
        }
        memory.set(LEVEL_2[0], pde(1, LEVEL_1_TABLES));
        for n in 0..512 {
            memory.set(LEVEL_1_TABLES + n * 8, PRESENT | (GUEST + (n << 12)));
        }
        for n in 0..PAGES / 512 {
            memory.set(LEVEL_2[1] + n * 8, pde(1, LEVEL_1_DATA + (n << 12)));
        }
        let guest = |gpa: u64, word| memory.set(GUEST + gpa, word);
        guest(GCR3 + u64::from(PASID) * 8, GUEST_4 | 1);
        guest(GUEST_4, GUEST_3 | GUEST_RW);
        guest(GUEST_3 + (SMALL >> 30) * 8, GUEST_2 | GUEST_RW);
        for n in 0..PAGES / 512 {
            guest(GUEST_2 + n * 8, (GUEST_1 + (n << 12)) | GUEST_RW);
        }
        for n in 0..PAGES {
            guest(GUEST_1 + n * 8, (DATA + (n << 12)) | GUEST_RW);
            memory.set(LEVEL_1_DATA + n * 8, PRESENT | page(n));
        }
        let efr = ExtendedFeature::new()
            .with_gt_sup(true)
            .with_gio_sup(true)
            .with_pas_max(15);
        let view = View::new(efr, ExtendedFeature2::new());
        view.set_control(Control::RESET.with_iommu_en(true).with_gt_en(true));
        view.set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        Self {
            memory,
            fabric: Arc::new(Fabric::new(view, Barrier::best())),
            iotlb: Arc::new(Iotlb::new(iotlb_entries)),
        }
    }

    pub(crate) fn mapper(&self, entries: usize) -> Mapper {
        let (fabric, iotlb) = (self.fabric.clone(), self.iotlb.clone());
        Mapper::new(fabric, iotlb, DEVICE, entries, 48)
    }

    /// The process that has the pages.
    pub(crate) fn pasid() -> Option<Pasid> {
        Pasid::new(PASID)
    }
}
