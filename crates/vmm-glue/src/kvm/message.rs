//! A delivery as KVM's MSI message.

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::msi::{DeliveryMode, MsiAddress, MsiData};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi};
use thiserror::Error;

/// How the VM reads the destination of an MSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsiFormat {
    /// 32-bit destinations: the VMM enabled `KVM_CAP_X2APIC_API` with
    /// `KVM_X2APIC_API_USE_32BIT_IDS`. `address_hi` then carries destination bits \[31:8\] at
    /// their own positions, and its low byte must be zero.
    X2ApicApi,
    /// 8-bit destinations only: the capability was not enabled, and KVM ignores `address_hi`.
    XApic,
}

/// Why a delivery can't be handed to KVM unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// KVM would deliver to the APIC ID's low byte: the wrong CPU.
    #[error(
        "destination APIC ID {dest:#x} needs 32-bit MSI destinations: enable KVM_CAP_X2APIC_API \
         with KVM_X2APIC_API_USE_32BIT_IDS on the VM and use MsiFormat::X2ApicApi (without it \
         destinations up to 0xff are accepted)"
    )]
    DestinationTooWide {
        /// The destination APIC ID.
        dest: u32,
    },
    /// KVM gives delivery mode 3 a meaning of its own (it wakes a halted vCPU).
    #[error(
        "delivery mode {mode} is reserved; KVM can be given fixed (0), lowest priority (1), \
         SMI (2), NMI (4), INIT (5) and ExtINT (7)"
    )]
    ReservedDeliveryMode {
        /// The three-bit mode.
        mode: u8,
    },
    /// KVM takes every MSI for an assertion.
    #[error("a level de-assert message delivers nothing and must not be given to KVM")]
    Deassert,
}

/// An MSI in KVM's packing: the three words that `kvm_msi` and `kvm_irq_routing_msi` share.
///
/// - address: FEEh, destination\[7:0\] in \[19:12\], destination mode in bit 2, and in bit 3
///   the redirection hint of a message that passes unmapped, which KVM treats as lowest priority. A
///   remapped interrupt has none: no field of an IRTE asks for it (RqEoi, 48882 §2.2.5.1, is a
///   request to the destination for an EOI, which KVM has no message for).
/// - data: vector \[7:0\], delivery mode \[10:8\], assert 14, trigger 15.
///
/// KVM accepts an ExtINT message and drops it (`KVM_SIGNAL_MSI` then reports that nothing was
/// delivered): the vector of a userspace 8259 is queued with `KVM_INTERRUPT` instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmMessage {
    /// Address, low word.
    pub address_lo: u32,
    /// Address, high word: destination\[31:8\] in place, with [`MsiFormat::X2ApicApi`].
    pub address_hi: u32,
    /// Data.
    pub data: u32,
}

impl KvmMessage {
    /// Packs a delivery.
    ///
    /// # Errors
    /// When KVM would read the message as something else; see [`MessageError`].
    pub fn encode(delivery: &Delivery, format: MsiFormat) -> Result<Self, MessageError> {
        let dest = delivery.dest;
        if format == MsiFormat::XApic && dest > 0xff {
            return Err(MessageError::DestinationTooWide { dest });
        }
        if let DeliveryMode::Reserved(mode) = delivery.delivery_mode {
            return Err(MessageError::ReservedDeliveryMode { mode });
        }
        let level = delivery.trigger == Trigger::Level;
        if level && !delivery.assert {
            return Err(MessageError::Deassert);
        }
        let address = MsiAddress::new()
            .with_logical(delivery.dest_mode == DestMode::Logical)
            .with_redirection_hint(delivery.redirection_hint)
            .with_dest(dest as u8);
        let data = MsiData::new()
            .with_vector(delivery.vector)
            .with_delivery_mode(delivery.delivery_mode.bits())
            .with_assert(delivery.assert)
            .with_level(level);
        Ok(Self {
            address_lo: address.into_bits(),
            address_hi: dest & !0xff,
            data: data.into_bits(),
        })
    }

    /// The delivery that KVM makes of this message.
    pub fn decode(self, format: MsiFormat) -> Delivery {
        let address = MsiAddress::from_bits(self.address_lo);
        let data = MsiData::from_bits(self.data);
        let high = match format {
            MsiFormat::X2ApicApi => self.address_hi & !0xff,
            MsiFormat::XApic => 0,
        };
        Delivery {
            dest: high | u32::from(address.dest()),
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

    /// As the argument of `KVM_SIGNAL_MSI`.
    pub fn to_msi(self) -> kvm_msi {
        kvm_msi {
            address_lo: self.address_lo,
            address_hi: self.address_hi,
            data: self.data,
            ..Default::default()
        }
    }

    /// As an entry of `KVM_SET_GSI_ROUTING`.
    pub fn to_route(self, gsi: u32) -> kvm_irq_routing_entry {
        // From zeroes, so that no byte that KVM reads is indeterminate.
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: self.address_lo,
            address_hi: self.address_hi,
            data: self.data,
            ..Default::default()
        };
        entry
    }
}

impl From<kvm_msi> for KvmMessage {
    fn from(msi: kvm_msi) -> Self {
        Self {
            address_lo: msi.address_lo,
            address_hi: msi.address_hi,
            data: msi.data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed(dest: u32, vector: u8) -> Delivery {
        Delivery {
            dest,
            dest_mode: DestMode::Physical,
            delivery_mode: DeliveryMode::Fixed,
            vector,
            trigger: Trigger::Edge,
            assert: false,
            redirection_hint: false,
            rq_eoi: false,
        }
    }

    fn encode(delivery: &Delivery) -> KvmMessage {
        let message = KvmMessage::encode(delivery, MsiFormat::X2ApicApi).unwrap();
        assert_eq!(message.decode(MsiFormat::X2ApicApi), *delivery);
        message
    }

    #[test]
    fn fixed_edge_physical_is_a_plain_msi() {
        let message = encode(&fixed(5, 0x41));
        assert_eq!(
            message,
            KvmMessage {
                address_lo: 0xfee0_5000,
                address_hi: 0,
                data: 0x0041
            }
        );
    }

    #[test]
    fn each_delivery_mode_stands_in_data_10_8() {
        for (delivery_mode, data) in [
            (DeliveryMode::Fixed, 0x0033),
            (DeliveryMode::LowestPriority, 0x0133),
            (DeliveryMode::Smi, 0x0233),
            (DeliveryMode::Nmi, 0x0433),
            (DeliveryMode::Init, 0x0533),
            (DeliveryMode::ExtInt, 0x0733),
        ] {
            let message = encode(&Delivery {
                delivery_mode,
                ..fixed(1, 0x33)
            });
            assert_eq!(message.data, data, "{delivery_mode:?}");
            assert_eq!(message.address_lo, 0xfee0_1000);
        }
    }

    #[test]
    fn reserved_delivery_modes_are_refused() {
        for mode in [3, 6] {
            let delivery = Delivery {
                delivery_mode: DeliveryMode::Reserved(mode),
                ..fixed(1, 0x33)
            };
            let error = KvmMessage::encode(&delivery, MsiFormat::X2ApicApi);
            assert_eq!(error, Err(MessageError::ReservedDeliveryMode { mode }));
        }
    }

    #[test]
    fn destinations_above_255_go_to_address_hi_with_its_low_byte_zero() {
        let message = encode(&fixed(300, 0x50));
        assert_eq!(
            (message.address_lo, message.address_hi),
            (0xfee2_c000, 0x0000_0100)
        );
        let message = encode(&fixed(0x8765_4321, 0x50));
        assert_eq!(
            (message.address_lo, message.address_hi),
            (0xfee2_1000, 0x8765_4300)
        );
        let message = encode(&fixed(u32::MAX, 0x50));
        assert_eq!(
            (message.address_lo, message.address_hi),
            (0xfeef_f000, 0xffff_ff00)
        );
    }

    #[test]
    fn without_the_x2apic_api_a_wide_destination_is_refused_by_name() {
        let error = KvmMessage::encode(&fixed(256, 0x50), MsiFormat::XApic).unwrap_err();
        assert_eq!(error, MessageError::DestinationTooWide { dest: 256 });
        assert!(error.to_string().contains("KVM_CAP_X2APIC_API"), "{error}");
        let message = KvmMessage::encode(&fixed(255, 0x50), MsiFormat::XApic).unwrap();
        assert_eq!((message.address_lo, message.address_hi), (0xfeef_f000, 0));
    }

    #[test]
    fn logical_mode_is_address_bit_2() {
        let delivery = Delivery {
            dest_mode: DestMode::Logical,
            ..fixed(0x0001_0004, 0x60)
        };
        let message = encode(&delivery);
        assert_eq!(
            (message.address_lo, message.address_hi),
            (0xfee0_4004, 0x0001_0000)
        );
    }

    #[test]
    fn level_is_data_bit_15_with_assert_in_bit_14() {
        let level = Delivery {
            trigger: Trigger::Level,
            assert: true,
            ..fixed(0, 0x70)
        };
        assert_eq!(encode(&level).data, 0xc070);
        let edge = Delivery {
            assert: true,
            ..fixed(0, 0x70)
        };
        assert_eq!(encode(&edge).data, 0x4070);
    }

    #[test]
    fn a_level_deassert_never_reaches_kvm() {
        let delivery = Delivery {
            delivery_mode: DeliveryMode::Init,
            trigger: Trigger::Level,
            assert: false,
            ..fixed(0, 0)
        };
        let error = KvmMessage::encode(&delivery, MsiFormat::X2ApicApi);
        assert_eq!(error, Err(MessageError::Deassert));
    }

    #[test]
    fn rq_eoi_is_not_the_redirection_hint() {
        let asked = Delivery {
            rq_eoi: true,
            ..fixed(2, 0x44)
        };
        let message = KvmMessage::encode(&asked, MsiFormat::X2ApicApi).unwrap();
        assert_eq!(message, encode(&fixed(2, 0x44)));
        assert!(!MsiAddress::from_bits(message.address_lo).redirection_hint());
    }

    #[test]
    fn the_signal_msi_argument_carries_the_words_and_nothing_else() {
        let message = encode(&fixed(300, 0x50));
        let msi = message.to_msi();
        assert_eq!(
            (msi.address_lo, msi.address_hi, msi.data),
            (0xfee2_c000, 0x100, 0x50)
        );
        assert_eq!((msi.flags, msi.devid, msi.pad), (0, 0, [0; 12]));
        assert_eq!(KvmMessage::from(msi), message);
    }

    #[test]
    fn a_route_entry_is_an_msi_route_without_flags() {
        let entry = encode(&fixed(300, 0x50)).to_route(77);
        assert_eq!(
            (entry.gsi, entry.type_, entry.flags, entry.pad),
            (77, 2, 0, 0)
        );
    }

    proptest! {
        #[test]
        fn every_deliverable_message_survives_kvm(
            dest: u32, logical: bool, mode in prop::sample::select(vec![0u8, 1, 2, 4, 5, 7]),
            vector: u8, level: bool, redirection_hint: bool,
        ) {
            let delivery = Delivery {
                dest,
                dest_mode: if logical { DestMode::Logical } else { DestMode::Physical },
                delivery_mode: DeliveryMode::from_bits(mode),
                vector,
                trigger: if level { Trigger::Level } else { Trigger::Edge },
                assert: level,
                redirection_hint,
                rq_eoi: false,
            };
            let message = KvmMessage::encode(&delivery, MsiFormat::X2ApicApi).unwrap();
            prop_assert_eq!(message.decode(MsiFormat::X2ApicApi), delivery);
            prop_assert_eq!(message.address_hi & 0xff, 0);
            prop_assert_eq!(message.address_lo >> 20, 0xfee);
        }
    }
}
