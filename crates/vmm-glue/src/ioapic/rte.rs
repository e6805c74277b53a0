//! The redirection table entry of an IOAPIC (82093AA §3.2.4, with the extended destination of later
//! southbridges).

use amdvi_regs::msi::{Msi, MsiAddress, MsiData};
use bitfield_struct::bitfield;

/// A redirection table entry, 64 bits.
///
/// Behind an AMD IOMMU in remapping mode, vector and delivery mode together are the IRTE index:
/// index\[7:0\] and index\[10:8\].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Rte {
    /// Bits \[7:0\]: vector, or index\[7:0\].
    pub vector: u8,
    /// Bits \[10:8\]: delivery mode, or index\[10:8\].
    #[bits(3)]
    pub delivery_mode: u8,
    /// Bit 11: destination mode, 1 = logical.
    pub logical: bool,
    /// Bit 12, read only: a message is on its way. Always 0 here, sending takes no time.
    pub delivery_status: bool,
    /// Bit 13: polarity, 1 = active low.
    pub active_low: bool,
    /// Bit 14, read only: a level interrupt was accepted and has had no EOI.
    pub remote_irr: bool,
    /// Bit 15: trigger mode, 1 = level.
    pub level: bool,
    /// Bit 16: masked.
    pub masked: bool,
    /// Bits \[47:17\], reserved.
    #[bits(31)]
    __: u32,
    /// Bits \[55:48\]: extended destination, sent in address bits \[11:4\].
    pub ext_dest: u8,
    /// Bits \[63:56\]: destination.
    pub dest: u8,
}

impl Rte {
    /// The entry after reset: masked, all else 0.
    pub const RESET: Self = Self::new().with_masked(true);

    /// The bits that software can write: all but the two read-only and the reserved ones.
    pub const WRITABLE: u64 = 0xffff_0000_0001_afff;

    /// The message by which the pin requests its interrupt.
    pub const fn message(self) -> Msi {
        let address = MsiAddress::new()
            .with_dest(self.dest())
            .with_logical(self.logical());
        let data = MsiData::new()
            .with_vector(self.vector())
            .with_delivery_mode(self.delivery_mode())
            // A level pin sends on assertion only.
            .with_assert(self.level())
            .with_level(self.level());
        Msi {
            address: (address.into_bits() | (self.ext_dest() as u32) << 4) as u64,
            data: data.into_bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_at_its_bit() {
        let bits = |rte: Rte| rte.into_bits();
        let new = Rte::new();
        assert_eq!(bits(new.with_vector(0xff)), 0xff);
        assert_eq!(bits(new.with_delivery_mode(7)), 0x700);
        assert_eq!(bits(new.with_logical(true)), 1 << 11);
        assert_eq!(bits(new.with_delivery_status(true)), 1 << 12);
        assert_eq!(bits(new.with_active_low(true)), 1 << 13);
        assert_eq!(bits(new.with_remote_irr(true)), 1 << 14);
        assert_eq!(bits(new.with_level(true)), 1 << 15);
        assert_eq!(bits(new.with_masked(true)), 1 << 16);
        assert_eq!(bits(new.with_ext_dest(0xff)), 0xff << 48);
        assert_eq!(bits(new.with_dest(0xff)), 0xff << 56);
        assert_eq!(bits(Rte::RESET), 0x1_0000);
    }

    #[test]
    fn the_message_carries_the_irte_index_in_data_10_0() {
        // Index 0x5a7: vector a7h, delivery mode 5; DM = 1 as Linux sets it with 2K.
        let rte = Rte::new()
            .with_vector(0xa7)
            .with_delivery_mode(5)
            .with_logical(true);
        assert_eq!(
            rte.message(),
            Msi {
                address: 0xfee0_0004,
                data: 0x05a7
            }
        );
        assert_eq!(MsiData::from_bits(rte.message().data).irte_index(), 0x5a7);
    }

    #[test]
    fn the_message_of_a_level_pin_has_trigger_and_assert() {
        let rte = Rte::new()
            .with_vector(0x31)
            .with_level(true)
            .with_dest(0x12);
        assert_eq!(
            rte.message(),
            Msi {
                address: 0xfee1_2000,
                data: 0xc031
            }
        );
    }

    #[test]
    fn polarity_mask_and_remote_irr_are_not_sent() {
        let rte = Rte::from_bits(0x0000_0000_0001_7031);
        assert_eq!(
            rte.message(),
            Msi {
                address: 0xfee0_0000,
                data: 0x0031
            }
        );
    }

    #[test]
    fn the_extended_destination_is_address_11_4() {
        let rte = Rte::new().with_ext_dest(0xfe).with_dest(0x01);
        assert_eq!(rte.message().address, 0xfee0_1fe0);
    }
}
