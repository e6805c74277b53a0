//! With the `serde` feature, saved state keeps every bit.
#![cfg(feature = "serde")]

use amdvi_regs::command::Command;
use amdvi_regs::dte::Dte;
use amdvi_regs::event::Event;
use amdvi_regs::irte::Irte128;
use amdvi_regs::ivrs::TableHeader;
use amdvi_regs::mmio::{Control, RingBase, Status};
use amdvi_regs::pci::CapabilityBlock;
use amdvi_regs::{DeviceId, DomainId, Segment};
use proptest::prelude::*;

fn round_trip<T>(value: T) -> T
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut buffer = [0; 256];
    let bytes = postcard::to_slice(&value, &mut buffer).expect("256 bytes are enough");
    postcard::from_bytes(bytes).expect("what was written reads back")
}

#[test]
fn a_bit_field_serializes_as_its_number() {
    let mut buffer = [0; 16];
    let bytes = postcard::to_slice(&Control::RESET, &mut buffer).unwrap();
    assert_eq!(postcard::from_bytes::<u64>(bytes), Ok(0x400));
}

#[test]
fn identities_and_headers_survive() {
    assert_eq!(round_trip(DeviceId(0xabcd)), DeviceId(0xabcd));
    assert_eq!(round_trip(DomainId(7)), DomainId(7));
    assert_eq!(round_trip(Segment(1)), Segment(1));
    assert_eq!(round_trip(TableHeader::default()), TableHeader::default());
}

proptest! {
    #[test]
    fn formats_of_any_bits_survive(words: [u64; 4], dwords: [u32; 6]) {
        let [low, high, ..] = words;
        prop_assert_eq!(round_trip(Control::from_bits(low)), Control::from_bits(low));
        prop_assert_eq!(round_trip(Status::from_bits(low)), Status::from_bits(low));
        prop_assert_eq!(round_trip(RingBase::from_bits(low)), RingBase::from_bits(low));
        prop_assert_eq!(round_trip(Dte::from_words(words)), Dte::from_words(words));
        let command = Command::decode([low, high]);
        prop_assert_eq!(round_trip(command), command);
        let event = Event::decode([low, high]);
        prop_assert_eq!(round_trip(event), event);
        let irte = Irte128::decode([low, high]);
        prop_assert_eq!(round_trip(irte), irte);
        let block = CapabilityBlock::from_words(dwords);
        prop_assert_eq!(round_trip(block), block);
    }
}
