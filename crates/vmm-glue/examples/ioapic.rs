//! A level interrupt's life on a remapped IOAPIC pin.

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::msi::{DeliveryMode, Msi, MsiData};
use amdvi_vmm_glue::ioapic::{Ioapic, IoapicSink};

/// Stands for IOMMU and local APICs: index n goes to vector 40h + n of APIC 1000.
struct Board;

impl IoapicSink for Board {
    fn request(&mut self, pin: u8, msi: Msi) -> Option<Delivery> {
        println!("pin {pin} requests {:#x} = {:#x}", msi.address, msi.data);
        self.resolve(pin, msi)
    }

    fn resolve(&mut self, _pin: u8, msi: Msi) -> Option<Delivery> {
        let data = MsiData::from_bits(msi.data);
        Some(Delivery {
            dest: 1000,
            dest_mode: DestMode::Physical,
            delivery_mode: DeliveryMode::Fixed,
            vector: 0x40 + data.irte_index() as u8,
            trigger: if data.level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: data.assert(),
            redirection_hint: false,
            rq_eoi: false,
        })
    }

    fn route(&mut self, pin: u8, target: Option<&Delivery>) {
        match target {
            Some(delivery) => println!("pin {pin} waits for the EOI of {:#x}", delivery.vector),
            None => println!("pin {pin} waits for no EOI"),
        }
    }

    fn inject(&mut self, _pin: u8, delivery: &Delivery) {
        println!("sent: {delivery}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut ioapic = Ioapic::new(0, Board);
    // The guest: pin 9 has IRTE index 9, level triggered.
    ioapic.mmio_write(0x00, &0x22_u32.to_le_bytes());
    ioapic.mmio_write(0x10, &0x8009_u32.to_le_bytes());

    ioapic.set_line(9, true)?;
    println!("redirection entry: {:?}", ioapic.rte(9)?);
    ioapic.set_line(9, false)?;
    // KVM_EXIT_IOAPIC_EOI, with the vector that was delivered.
    ioapic.eoi(0x49);
    println!("Remote IRR after the EOI: {}", ioapic.rte(9)?.remote_irr());
    Ok(())
}
