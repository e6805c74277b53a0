//! Shared set-up of the benches: an IOMMU with one function and its interrupt remapping table, and one
//! that runs commands.

mod commands;

use std::sync::Arc;

use amdvi_core::test_utils::TestMemory;
use amdvi_core::{Barrier, Fabric, View};
use amdvi_irt::Remapper;
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{Irte32, Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::msi::Msi;
use amdvi_regs::{DeviceId, PhysMemory};

pub use commands::Commands;

const DEVICE_TABLE: u64 = 0x1_0000;
const IRT: u64 = 0x2_0000;
const DEVICE: DeviceId = DeviceId(0x28);

/// IRTE format of a [`Rig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit entries, 512 interrupts.
    Irte32,
    /// 128-bit entries, x2APIC destinations, 2048 interrupts.
    Irte128,
}

/// A function whose whole interrupt remapping table is filled.
#[derive(Debug)]
pub struct Rig {
    /// Guest memory with the tables.
    pub memory: TestMemory,
    /// The function's handle.
    pub device: Remapper,
    /// How many entries the table has.
    pub entries: u32,
}

impl Rig {
    /// Builds the tables.
    ///
    /// # Panics
    /// Never: the tables lie inside the memory that it makes itself.
    pub fn new(format: Format) -> Self {
        let efr = ExtendedFeature::new().with_ga_sup(true).with_xt_sup(true);
        let efr2 = ExtendedFeature2::new().with_num_int_remap_sup(1);
        let wide = format == Format::Irte128;
        let fabric = Arc::new(Fabric::new(View::new(efr, efr2), Barrier::best()));
        fabric.view.set_control(
            Control::RESET
                .with_iommu_en(true)
                .with_ga_en(wide)
                .with_xt_en(wide)
                .with_num_int_remap_mode(u8::from(wide)),
        );
        fabric
            .view
            .set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let memory = TestMemory::new(0x4_0000);
        let int_tab_len = if wide { 11 } else { 9 };
        let q2 = DteQ2::new()
            .with_iv(true)
            .with_int_ctl(2)
            .with_int_tab_len(int_tab_len)
            .with_int_tab_address(IRT);
        let dte = DEVICE_TABLE + u64::from(DEVICE.0) * 32;
        memory
            .store_u64(dte + 16, q2.into_bits())
            .expect("the device table is backed");
        let entries = 1u32 << int_tab_len;
        for index in 0..entries {
            let vector = 0x30 + (index % 200) as u8;
            if wide {
                let low = Irte128Lo::new()
                    .with_remap_en(true)
                    .with_destination_lo(index % 300);
                let gpa = IRT + u64::from(index) * 16;
                memory
                    .store_u64(gpa, low.into_bits())
                    .expect("the table is backed");
                let high = Irte128Hi::new().with_vector(vector);
                memory
                    .store_u64(gpa + 8, high.into_bits())
                    .expect("the table is backed");
            } else {
                let irte = Irte32::new().with_remap_en(true).with_vector(vector);
                let gpa = IRT + u64::from(index) * 4;
                memory
                    .store_u32(gpa, irte.into_bits())
                    .expect("the table is backed");
            }
        }
        let device = Remapper::new(fabric, DEVICE, Remapper::FULL_CACHE);
        Self {
            memory,
            device,
            entries,
        }
    }

    /// The message that Linux would program for interrupt `index`.
    pub fn message(&self, index: u32) -> Msi {
        Msi {
            address: 0xfee0_0004,
            data: index,
        }
    }

    /// Every index of the table once, in a fixed random order.
    pub fn shuffled(&self) -> Vec<Msi> {
        let mut indices: Vec<u32> = (0..self.entries).collect();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for i in (1..indices.len()).rev() {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            indices.swap(i, (seed >> 33) as usize % (i + 1));
        }
        indices
            .into_iter()
            .map(|index| self.message(index))
            .collect()
    }
}
