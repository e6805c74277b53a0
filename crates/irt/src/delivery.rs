//! What leaves the IOMMU: an interrupt for the system's local APICs.

use core::fmt;

use amdvi_regs::msi::{DeliveryMode, Msi, MsiAddress, MsiData};

/// Destination mode of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestMode {
    /// The destination is an APIC ID.
    Physical,
    /// The destination is a logical APIC ID or cluster mask.
    Logical,
}

/// Trigger mode of a delivery, taken from the request (MSI data bit 15 or the IOAPIC pin).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Edge triggered.
    Edge,
    /// Level triggered; the source waits for an EOI.
    Level,
}

/// An interrupt that is to be delivered, in structured form.
///
/// Encoding it for a particular transport (an MSI, a KVM GSI route with its own form for APIC IDs
/// above 255) is the VMM's business, so that nothing is lost on the way: the destination always
/// has its full 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delivery {
    /// Destination APIC ID (8, 24 or 32 significant bits, depending on the IRTE format).
    pub dest: u32,
    /// Destination mode.
    pub dest_mode: DestMode,
    /// Delivery mode; `Fixed` or `LowestPriority` for a remapped interrupt.
    pub delivery_mode: DeliveryMode,
    /// Vector; without meaning for NMI, INIT, SMI and ExtINT.
    pub vector: u8,
    /// Trigger mode of the request.
    pub trigger: Trigger,
    /// Level of a level-triggered message: asserted.
    pub assert: bool,
    /// RH of a message that passes as it is (address bit 3). A remapped interrupt has none.
    pub redirection_hint: bool,
    /// IRTE.RqEoi: the destination is asked for an EOI (48882 §2.2.5.1).
    pub rq_eoi: bool,
}

impl Delivery {
    /// The delivery that an unremapped message asks for, by the x86 message layout with its 8-bit
    /// destination.
    pub const fn from_msi(msi: Msi) -> Self {
        let address = MsiAddress::from_bits(msi.address as u32);
        let data = MsiData::from_bits(msi.data);
        Self {
            dest: address.dest() as u32,
            dest_mode: if address.logical() {
                DestMode::Logical
            } else {
                DestMode::Physical
            },
            delivery_mode: DeliveryMode::from_bits(data.delivery_mode()),
            vector: data.vector(),
            trigger: if data.level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: data.assert(),
            redirection_hint: address.redirection_hint(),
            rq_eoi: false,
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} vector {:#04x} to {} APIC {:#x}{}{}{}",
            self.delivery_mode,
            self.vector,
            match self.dest_mode {
                DestMode::Physical => "physical",
                DestMode::Logical => "logical",
            },
            self.dest,
            match self.trigger {
                Trigger::Edge => "",
                Trigger::Level => ", level",
            },
            if self.redirection_hint {
                ", redirection hint"
            } else {
                ""
            },
            if self.rq_eoi { ", EOI requested" } else { "" },
        )
    }
}
