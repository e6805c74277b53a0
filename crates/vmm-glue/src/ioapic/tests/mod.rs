use super::*;
use amdvi_irt::{DestMode, Trigger};
use amdvi_regs::msi::{DeliveryMode, MsiData};

mod state;

/// Everything that a sink is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Request(u8, Msi),
    Route(u8, Option<(u8, u32)>),
    Inject(u8, Delivery),
    Settle,
}

/// An IOMMU that maps an index to vector `index + offset` at CPU `dest`, or blocks everything.
struct Sink {
    told: Vec<Told>,
    offset: u8,
    dest: u32,
    block: bool,
    mode: DeliveryMode,
}

impl Sink {
    fn answer(&self, msi: Msi) -> Option<Delivery> {
        let data = MsiData::from_bits(msi.data);
        (!self.block).then(|| Delivery {
            dest: self.dest,
            dest_mode: DestMode::Physical,
            delivery_mode: self.mode,
            vector: data.vector().wrapping_add(self.offset),
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
}

impl IoapicSink for Sink {
    fn request(&mut self, pin: u8, msi: Msi) -> Option<Delivery> {
        self.told.push(Told::Request(pin, msi));
        self.answer(msi)
    }
    fn resolve(&mut self, _: u8, msi: Msi) -> Option<Delivery> {
        self.answer(msi)
    }
    fn route(&mut self, pin: u8, target: Option<&Delivery>) {
        let target = target.map(|delivery| {
            assert_eq!(
                delivery.trigger,
                Trigger::Level,
                "only level deliveries have an EOI"
            );
            (delivery.vector, delivery.dest)
        });
        self.told.push(Told::Route(pin, target));
    }
    fn inject(&mut self, pin: u8, delivery: &Delivery) {
        self.told.push(Told::Inject(pin, *delivery));
    }
    fn settle(&mut self) {
        self.told.push(Told::Settle);
    }
}

type Device = Ioapic<Sink>;

fn device() -> Device {
    let sink = Sink {
        told: Vec::new(),
        offset: 0x80,
        dest: 300,
        block: false,
        mode: DeliveryMode::Fixed,
    };
    Ioapic::new(5, sink)
}

fn write(device: &mut Device, register: u8, value: u32) {
    device.mmio_write(INDEX, &u32::from(register).to_le_bytes());
    device.mmio_write(DATA, &value.to_le_bytes());
}

fn read(device: &mut Device, register: u8) -> u32 {
    device.mmio_write(INDEX, &[register]);
    let mut value = [0; 4];
    device.mmio_read(DATA, &mut value);
    u32::from_le_bytes(value)
}

/// Programs a pin as Linux does: high word first.
fn program(device: &mut Device, pin: u8, low: u32) {
    write(device, 0x11 + 2 * pin, 0);
    write(device, 0x10 + 2 * pin, low);
}

fn told(device: &mut Device) -> Vec<Told> {
    std::mem::take(&mut device.sink_mut().told)
}

/// (pin, vector) of what was injected since the last call.
fn injected(device: &mut Device) -> Vec<(u8, u8)> {
    told(device)
        .into_iter()
        .filter_map(|told| match told {
            Told::Inject(pin, delivery) => Some((pin, delivery.vector)),
            _ => None,
        })
        .collect()
}

fn requested(device: &mut Device) -> usize {
    told(device)
        .iter()
        .filter(|told| matches!(told, Told::Request(..)))
        .count()
}

const LEVEL: u32 = 1 << 15;
const MASK: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn identification_registers() {
    let mut device = device();
    assert_eq!(read(&mut device, 0x00), 5 << 24);
    assert_eq!(read(&mut device, 0x01), 0x0017_0020, "24 pins, version 20h");
    write(&mut device, 0x00, 0xffff_ffff);
    assert_eq!(read(&mut device, 0x00), 0x0f00_0000);
    assert_eq!(
        read(&mut device, 0x02),
        0x0f00_0000,
        "the arbitration ID follows the ID"
    );
    write(&mut device, 0x01, 0);
    assert_eq!(read(&mut device, 0x01), 0x0017_0020);
}

#[test]
fn all_pins_are_masked_after_reset() {
    let mut device = device();
    for pin in 0..24 {
        assert_eq!(read(&mut device, 0x10 + 2 * pin), 0x1_0000);
        assert_eq!(read(&mut device, 0x11 + 2 * pin), 0);
    }
    assert_eq!(read(&mut device, 0x40), 0, "no pin 24");
}

#[test]
fn read_only_and_reserved_bits_of_an_entry_do_not_stick() {
    let mut device = device();
    write(&mut device, 0x10, 0xffff_ffff);
    write(&mut device, 0x11, 0xffff_ffff);
    assert_eq!(read(&mut device, 0x10), 0x0001_afff);
    assert_eq!(read(&mut device, 0x11), 0xffff_0000);
}

#[test]
fn index_and_data_are_readable_in_every_aligned_size() {
    let mut device = device();
    device.mmio_write(INDEX, &[0x01, 0xee]);
    let read = |offset, len: usize| {
        let mut data = [0xee; 8];
        device.mmio_read(offset, &mut data[..len]);
        data[..len].to_vec()
    };
    assert_eq!(read(INDEX, 1), [0x01]);
    assert_eq!(read(INDEX, 4), [0x01, 0, 0, 0]);
    assert_eq!(read(DATA, 4), [0x20, 0, 0x17, 0]);
    assert_eq!(read(DATA, 1), [0x20]);
    assert_eq!(read(DATA + 2, 2), [0x17, 0]);
    assert_eq!(read(DATA + 2, 1), [0x17]);
    assert_eq!(read(DATA + 1, 2), [0, 0], "unaligned");
    assert_eq!(read(DATA, 8), [0; 8], "wider than the register");
    assert_eq!(read(EOI, 4), [0; 4], "write only");
    assert_eq!(read(0xffc, 4), [0; 4]);
    assert_eq!(read(u64::MAX, 4), [0; 4]);
    assert_eq!(read(DATA, 0), []);
}

#[test]
fn a_partial_write_to_the_data_register_is_ignored() {
    let mut device = device();
    device.mmio_write(INDEX, &[0x10]);
    for data in [&[0xff][..], &[0xff; 2], &[0xff; 8], &[]] {
        device.mmio_write(DATA, data);
    }
    device.mmio_write(DATA + 1, &[0xff; 4]);
    assert_eq!(read(&mut device, 0x10), 0x1_0000);
}

#[test]
fn an_edge_pin_requests_its_index_and_sends_what_the_iommu_answers() {
    let mut device = device();
    program(&mut device, 4, 0x0804);
    told(&mut device);
    device.pulse(4).unwrap();
    let delivery = Delivery {
        dest: 300,
        dest_mode: DestMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        vector: 0x84,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: false,
    };
    assert_eq!(
        told(&mut device),
        [
            Told::Request(
                4,
                Msi {
                    address: 0xfee0_0004,
                    data: 4
                }
            ),
            Told::Inject(4, delivery),
        ]
    );
    assert_eq!(read(&mut device, 0x18), 0x0804, "no Remote IRR for an edge");
    device.pulse(4).unwrap();
    assert_eq!(injected(&mut device), [(4, 0x84)], "an edge needs no EOI");
}

#[test]
fn an_edge_fires_on_the_rising_side_only() {
    let mut device = device();
    program(&mut device, 4, 0x04);
    device.set_line(4, true).unwrap();
    device.set_line(4, true).unwrap();
    device.set_line(4, false).unwrap();
    assert_eq!(injected(&mut device), [(4, 0x84)]);
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let mut device = device();
    program(&mut device, 4, 0x04 | MASK);
    device.set_line(4, true).unwrap();
    program(&mut device, 4, 0x04);
    assert_eq!(injected(&mut device), []);
}

#[test]
fn unmasking_fires_an_asserted_level_pin() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL | MASK);
    device.set_line(9, true).unwrap();
    assert_eq!(injected(&mut device), []);
    program(&mut device, 9, 0x09 | LEVEL);
    assert_eq!(injected(&mut device), [(9, 0x89)]);
}

#[test]
fn a_level_pin_is_routed_before_it_is_sent() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    told(&mut device);
    device.set_line(9, true).unwrap();
    let told = told(&mut device);
    assert_eq!(
        told[0],
        Told::Request(
            9,
            Msi {
                address: 0xfee0_0000,
                data: 0xc009
            }
        )
    );
    assert_eq!(told[1], Told::Route(9, Some((0x89, 300))));
    assert!(matches!(told[2], Told::Inject(9, delivery) if delivery.trigger == Trigger::Level));
    assert_eq!(told.len(), 3);
}

#[test]
fn a_level_pin_waits_for_the_eoi_of_the_remapped_vector() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    assert_eq!(injected(&mut device), [(9, 0x89)]);
    assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, REMOTE_IRR);
    device.set_line(9, false).unwrap();
    device.set_line(9, true).unwrap();
    assert_eq!(injected(&mut device), [], "Remote IRR holds it back");
    device.eoi(0x09);
    assert_eq!(
        injected(&mut device),
        [],
        "that is the RTE's vector, nobody's EOI"
    );
    device.eoi(0x89);
    assert_eq!(injected(&mut device), [(9, 0x89)], "still asserted");
    device.set_line(9, false).unwrap();
    device.eoi(0x89);
    assert_eq!(injected(&mut device), []);
    assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, 0);
}

#[test]
fn an_eoi_ends_the_vector_that_was_sent_even_if_the_tables_changed_since() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    told(&mut device);
    device.sink_mut().offset = 0x90;
    device.tables_changed();
    assert_eq!(
        told(&mut device),
        [],
        "in service: the old route stays until its EOI"
    );
    device.eoi(0x89);
    let told = told(&mut device);
    assert_eq!(told[1], Told::Route(9, Some((0x99, 300))));
    assert!(matches!(told[2], Told::Inject(9, delivery) if delivery.vector == 0x99));
    device.eoi(0x89);
    assert_eq!(
        injected(&mut device),
        [],
        "the old vector means nothing now"
    );
}

#[test]
fn the_eoi_register_takes_the_vector_of_the_entry() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    device.set_line(9, false).unwrap();
    device.mmio_write(EOI, &0x89u32.to_le_bytes());
    assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, REMOTE_IRR);
    device.mmio_write(EOI, &0x09u32.to_le_bytes());
    assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, 0);
}

#[test]
fn one_eoi_ends_every_pin_with_that_vector_and_no_other() {
    let mut device = device();
    for pin in [9, 10, 11] {
        // Pins 9 and 10 share a vector.
        program(
            &mut device,
            pin,
            LEVEL | if pin == 11 { 0x11 } else { 0x10 },
        );
        device.set_line(pin.into(), true).unwrap();
    }
    told(&mut device);
    device.eoi(0x90);
    assert_eq!(injected(&mut device), [(9, 0x90), (10, 0x90)]);
}

#[test]
fn an_interrupt_sent_by_an_eoi_is_not_ended_by_it() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    program(&mut device, 10, 0x0a | LEVEL);
    device.set_line(9, true).unwrap();
    device.set_line(10, true).unwrap();
    told(&mut device);
    // Pin 9 moves to the vector at which pin 10 is in service.
    device.sink_mut().offset = 0x81;
    device.eoi(0x89);
    assert_eq!(injected(&mut device), [(9, 0x8a)]);
    assert_ne!(read(&mut device, 0x22) & REMOTE_IRR, 0);
}

#[test]
fn masking_keeps_remote_irr_and_the_route() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    told(&mut device);
    write(&mut device, 0x22, 0x09 | LEVEL | MASK);
    assert_eq!(told(&mut device), []);
    assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, REMOTE_IRR);
    device.eoi(0x89);
    assert_eq!(told(&mut device), [], "masked: nothing is sent");
    write(&mut device, 0x22, 0x09 | LEVEL);
    assert_eq!(injected(&mut device), [(9, 0x89)]);
}

#[test]
fn switching_to_edge_clears_remote_irr_and_unroutes() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    told(&mut device);
    write(&mut device, 0x22, 0x09 | MASK);
    assert_eq!(read(&mut device, 0x22), 0x09 | MASK);
    assert_eq!(told(&mut device), []);
    write(&mut device, 0x22, 0x09);
    assert_eq!(told(&mut device), [Told::Route(9, None)]);
}

#[test]
fn a_blocked_level_pin_is_asked_for_again_only_when_the_tables_change() {
    let mut device = device();
    device.sink_mut().block = true;
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    device.set_line(9, true).unwrap();
    assert_eq!(requested(&mut device), 1);
    assert_eq!(
        read(&mut device, 0x22) & REMOTE_IRR,
        0,
        "nobody accepted it"
    );
    device.tables_changed();
    assert_eq!(requested(&mut device), 0, "still blocked: no second event");
    device.sink_mut().block = false;
    device.tables_changed();
    assert_eq!(injected(&mut device), [(9, 0x89)]);
}

#[test]
fn a_blocked_pin_that_is_released_is_forgotten() {
    let mut device = device();
    device.sink_mut().block = true;
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    device.set_line(9, false).unwrap();
    device.sink_mut().block = false;
    device.tables_changed();
    assert_eq!(injected(&mut device), []);
}

#[test]
fn changed_tables_reroute_unmasked_level_pins_in_one_batch() {
    let mut device = device();
    program(&mut device, 3, 0x03);
    program(&mut device, 9, 0x09 | LEVEL);
    program(&mut device, 10, 0x0a | LEVEL);
    program(&mut device, 11, 0x0b | LEVEL | MASK);
    told(&mut device);
    device.sink_mut().dest = 7;
    device.tables_changed();
    assert_eq!(
        told(&mut device),
        [
            Told::Route(9, Some((0x89, 7))),
            Told::Route(10, Some((0x8a, 7))),
            Told::Settle
        ]
    );
    device.sink_mut().block = true;
    device.tables_changed();
    assert_eq!(
        told(&mut device),
        [Told::Route(9, None), Told::Route(10, None), Told::Settle]
    );
}

#[test]
fn nmi_from_a_level_pin_waits_for_no_eoi() {
    for mode in [
        DeliveryMode::Nmi,
        DeliveryMode::Smi,
        DeliveryMode::Init,
        DeliveryMode::ExtInt,
    ] {
        let mut device = device();
        device.sink_mut().mode = mode;
        program(&mut device, 9, 0x09 | LEVEL);
        told(&mut device);
        device.set_line(9, true).unwrap();
        assert!(matches!(
            told(&mut device)[..],
            [Told::Request(..), Told::Inject(..)]
        ));
        assert_eq!(read(&mut device, 0x22) & REMOTE_IRR, 0);
        device.tables_changed();
        assert_eq!(
            told(&mut device),
            [Told::Route(9, None), Told::Settle],
            "and is not resent"
        );
    }
}

#[test]
fn polarity_is_stored_and_does_not_invert_an_asserted_line() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL | 1 << 13);
    assert_eq!(injected(&mut device), []);
    device.set_line(9, true).unwrap();
    assert_eq!(injected(&mut device), [(9, 0x89)]);
    assert_eq!(read(&mut device, 0x22) & 1 << 13, 1 << 13);
}

#[test]
fn a_pin_that_does_not_exist_is_named() {
    let mut device = device();
    let error = device.set_line(24, true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IOAPIC pin 24 does not exist: pins are 0 to 23"
    );
    assert_eq!(device.pulse(usize::MAX), Err(NoSuchPin { pin: usize::MAX }));
    assert!(device.rte(24).is_err());
    assert_eq!(device.rte(23), Ok(Rte::RESET));
}

#[test]
fn reset_masks_and_unroutes_and_keeps_the_lines() {
    let mut device = device();
    program(&mut device, 9, 0x09 | LEVEL);
    device.set_line(9, true).unwrap();
    told(&mut device);
    device.reset();
    assert_eq!(read(&mut device, 0x22), 0x1_0000);
    let told_at_reset = told(&mut device);
    assert!(told_at_reset.contains(&Told::Route(9, None)));
    assert_eq!(told_at_reset.last(), Some(&Told::Settle));
    program(&mut device, 9, 0x09 | LEVEL);
    assert_eq!(
        injected(&mut device),
        [(9, 0x89)],
        "the line is still asserted"
    );
}
