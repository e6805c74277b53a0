//! A device table, one function and its interrupt remapping table, in a little guest memory.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::sync::Arc;

use amdvi_core::test_utils::TestMemory;
use amdvi_core::{Barrier, Fabric, View};
use amdvi_irt::{Delivery, DestMode, Fault, FaultReason, Outcome, Remapper, Trigger};
use amdvi_regs::DeviceId;
pub use amdvi_regs::PhysMemory;
use amdvi_regs::dte::{Dte, DteQ1, DteQ2};
use amdvi_regs::event::{IllegalDevTableEntry, IoPageFault};
use amdvi_regs::irte::{Irte32, Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::msi::{DeliveryMode, Msi};

pub const DEVICE_TABLE: u64 = 0x1_0000;
pub const IRT: u64 = 0x2_0000;
pub const BACKING_PAGE: u64 = 0x3_0000;
pub const HOLE: u64 = 0x3_8000;
pub const MEMORY: u64 = 0x4_0000;
pub const DEVICE: DeviceId = DeviceId(0x0028);
pub const DOMAIN: u16 = 0x1234;

pub const EFR: ExtendedFeature = ExtendedFeature::new()
    .with_xt_sup(true)
    .with_ga_sup(true)
    .with_gam_sup(1);
pub const EFR2_2K: ExtendedFeature2 = ExtendedFeature2::new().with_num_int_remap_sup(1);
pub const ENABLED: Control = Control::RESET.with_iommu_en(true);

pub struct Rig {
    pub memory: TestMemory,
    pub fabric: Arc<Fabric>,
    pub device: Remapper,
}

impl Rig {
    /// An IOMMU with `control`; 128 DTEs; the function's table has 2^`int_tab_len` zeroed entries.
    pub fn new(efr2: ExtendedFeature2, control: Control, int_tab_len: u8) -> Self {
        let fabric = Arc::new(Fabric::new(View::new(EFR, efr2), Barrier::Portable));
        fabric.view.set_control(control);
        fabric
            .view
            .set_device_table(0, DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12));
        let device = Remapper::new(fabric.clone(), DEVICE, Remapper::FULL_CACHE);
        let rig = Self {
            memory: TestMemory::new(MEMORY).with_hole(HOLE..HOLE + 0x1000),
            fabric,
            device,
        };
        rig.set_dte(rig.dte(int_tab_len));
        rig
    }

    pub fn dte(&self, int_tab_len: u8) -> Dte {
        Dte {
            q1: DteQ1::new().with_domain_id(DOMAIN),
            q2: DteQ2::new()
                .with_iv(true)
                .with_int_tab_len(int_tab_len)
                .with_int_tab_address(IRT)
                .with_int_ctl(2),
            ..Dte::default()
        }
    }

    pub fn set_dte(&self, dte: Dte) {
        for (i, word) in (0..).zip(dte.words()) {
            let gpa = DEVICE_TABLE + u64::from(DEVICE.0) * 32 + 8 * i;
            self.memory.store_u64(gpa, word).unwrap();
        }
        self.device.slot().invalidate();
    }

    /// Changes the interrupt word of the DTE.
    pub fn set_q2(&self, change: impl FnOnce(DteQ2) -> DteQ2) {
        let mut dte = self.dte(9);
        dte.q2 = change(dte.q2);
        self.set_dte(dte);
    }

    pub fn set_irte32(&self, index: u64, word: u32) {
        self.memory.store_u32(IRT + 4 * index, word).unwrap();
    }

    pub fn set_irte128(&self, index: u64, words: [u64; 2]) {
        self.memory
            .store_u64(IRT + 16 * index + 8, words[1])
            .unwrap();
        self.memory.store_u64(IRT + 16 * index, words[0]).unwrap();
    }

    pub fn remap(&mut self, address: u64, data: u32) -> Outcome {
        self.device
            .remap(&self.memory, Msi { address, data })
            .outcome
    }
}

pub const NO_2K: ExtendedFeature2 = ExtendedFeature2::new();
pub const PHYSICAL: u64 = 0xfee0_0000;
pub const LOGICAL: u64 = 0xfee0_0004;

pub fn legacy() -> Rig {
    Rig::new(NO_2K, ENABLED, 9)
}

pub fn ga(xt: bool) -> Rig {
    Rig::new(NO_2K, ENABLED.with_ga_en(true).with_xt_en(xt), 9)
}

pub fn two_k() -> Rig {
    let control = ENABLED
        .with_ga_en(true)
        .with_xt_en(true)
        .with_num_int_remap_mode(1);
    Rig::new(EFR2_2K, control, 11)
}

pub fn irte32(vector: u8, dest: u8) -> Irte32 {
    Irte32::new()
        .with_remap_en(true)
        .with_vector(vector)
        .with_destination(dest)
}

pub fn irte128(vector: u8, dest: u32) -> [u64; 2] {
    [
        Irte128Lo::new()
            .with_remap_en(true)
            .with_destination_lo(dest & 0xff_ffff)
            .into_bits(),
        Irte128Hi::new()
            .with_vector(vector)
            .with_destination_hi((dest >> 24) as u8)
            .into_bits(),
    ]
}

pub fn fixed(vector: u8, dest: u32) -> Outcome {
    Outcome::Deliver(Delivery {
        dest,
        dest_mode: DestMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        vector,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: false,
    })
}

pub fn forwarded(address: u64, data: u32) -> Outcome {
    Outcome::Deliver(Delivery::from_msi(Msi { address, data }))
}

pub fn silent(reason: FaultReason) -> Outcome {
    Outcome::Blocked(Fault::silent(reason))
}

pub fn page_fault(reason: FaultReason, address: u64, present: bool, reserved: bool) -> Outcome {
    let event = IoPageFault::new()
        .with_device_id(DEVICE.0)
        .with_pasid_domain_id(DOMAIN)
        .with_i(true)
        .with_pr(present)
        .with_rz(reserved)
        .with_address(address);
    Outcome::Blocked(Fault::new(reason, event.into()))
}

pub fn illegal_dte(reason: FaultReason, address: u64, reserved: bool) -> Outcome {
    let event = IllegalDevTableEntry::new()
        .with_device_id(DEVICE.0)
        .with_i(true)
        .with_rz(reserved)
        .with_address_4(address >> 2);
    Outcome::Blocked(Fault::new(reason, event.into()))
}

pub fn reason(outcome: Outcome) -> FaultReason {
    match outcome {
        Outcome::Blocked(fault) => fault.reason,
        other => panic!("not blocked: {other:?}"),
    }
}
