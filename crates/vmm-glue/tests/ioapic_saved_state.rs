//! The IOAPIC's saved state as bytes.

use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::ioapic::{Ioapic, IoapicSink, IoapicState};

struct Direct;

impl IoapicSink for Direct {
    fn request(&mut self, _: u8, msi: Msi) -> Option<Delivery> {
        Some(Delivery::from_msi(msi))
    }
    fn resolve(&mut self, _: u8, msi: Msi) -> Option<Delivery> {
        Some(Delivery::from_msi(msi))
    }
    fn route(&mut self, _: u8, _: Option<&Delivery>) {}
    fn inject(&mut self, _: u8, _: &Delivery) {}
}

#[test]
fn state_survives_serialization() {
    let mut device = Ioapic::new(2, Direct);
    for (index, value) in [(0x22u32, 0x8031u32), (0x23, 0x0700_0000)] {
        device.mmio_write(0x00, &index.to_le_bytes());
        device.mmio_write(0x10, &value.to_le_bytes());
    }
    device.set_line(9, true).unwrap();
    assert!(device.rte(9).unwrap().remote_irr());
    let bytes = postcard::to_stdvec(&device.save()).unwrap();
    let state: IoapicState = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(state, device.save());
    let mut restored = Ioapic::new(0, Direct);
    restored.restore(&state).unwrap();
    assert_eq!(restored.rte(9), device.rte(9));
}
