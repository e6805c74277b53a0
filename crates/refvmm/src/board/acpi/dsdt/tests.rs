use std::sync::Arc;

use super::*;
use crate::board::legacy::{Legacy, Power};

/// AML that is left to read. Only what this table has.
#[derive(Clone, Copy)]
struct Aml<'a>(&'a [u8]);

/// A term of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    /// A scope or a device, and the names in it.
    Scope(String, Vec<Term>),
    Name(String, Box<Term>),
    Method(String, u8),
    Package(Vec<Term>),
    Buffer(Vec<u8>),
    Integer(u64),
}

impl<'a> Aml<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// What a PkgLength covers (ACPI 6.5 §20.2.4).
    fn package(&mut self) -> Self {
        let before = self.0.len();
        let lead = self.byte();
        let more = usize::from(lead >> 6);
        let mut length = usize::from(if more == 0 { lead & 0x3f } else { lead & 0xf });
        for n in 0..more {
            length |= usize::from(self.byte()) << (4 + 8 * n);
        }
        let header = before - self.0.len();
        Self(self.take(length - header))
    }

    fn name(&mut self) -> String {
        if self.0[0] == b'\\' {
            self.byte();
        }
        String::from_utf8(self.take(4).to_vec()).unwrap()
    }

    fn integer(&mut self, bytes: usize) -> Term {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(self.take(bytes));
        Term::Integer(u64::from_le_bytes(value))
    }

    fn term(&mut self) -> Term {
        match self.byte() {
            0x00 => Term::Integer(0),
            0x01 => Term::Integer(1),
            0x0a => self.integer(1),
            0x0b => self.integer(2),
            0x0c => self.integer(4),
            0x0e => self.integer(8),
            0x08 => Term::Name(self.name(), Box::new(self.term())),
            0x10 => self.scope(),
            0x11 => {
                let mut inside = self.package();
                let Term::Integer(size) = inside.term() else {
                    panic!("a buffer without a size")
                };
                assert_eq!(size as usize, inside.0.len());
                Term::Buffer(inside.0.to_vec())
            }
            0x12 => {
                let mut inside = self.package();
                let count = inside.byte();
                let terms = (0..count).map(|_| inside.term()).collect();
                assert!(inside.0.is_empty());
                Term::Package(terms)
            }
            0x14 => {
                let mut inside = self.package();
                let name = inside.name();
                Term::Method(name, inside.byte() & 7)
            }
            0x5b => {
                assert_eq!(self.byte(), 0x82, "a device");
                self.scope()
            }
            other => panic!("opcode {other:#x}"),
        }
    }

    fn scope(&mut self) -> Term {
        let mut inside = self.package();
        let name = inside.name();
        Term::Scope(name, inside.terms())
    }

    fn terms(&mut self) -> Vec<Term> {
        let mut terms = Vec::new();
        while !self.0.is_empty() {
            terms.push(self.term());
        }
        terms
    }
}

struct Nothing;

impl Power for Nothing {
    fn off(&self) {}
    fn reset(&self) {}
}

fn pc() -> Config {
    Config {
        legacy: Some(Legacy {
            console: Arc::new(|_| {}),
            power: Arc::new(Nothing),
        }),
        high_bars: Some(0x10_0000_0000..0x20_0000_0000),
        ..Config::scenario("amd-iommu".parse().unwrap())
    }
}

fn parse(config: &Config) -> Vec<Term> {
    Aml(&table(config)[36..]).terms()
}

fn device<'a>(terms: &'a [Term], wanted: &str) -> &'a [Term] {
    let Term::Scope(scope, devices) = &terms[0] else {
        panic!("no scope")
    };
    assert_eq!(scope, "_SB_");
    let found = devices.iter().find_map(|term| match term {
        Term::Scope(name, terms) if name == wanted => Some(terms),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no {wanted}"))
}

fn named<'a>(terms: &'a [Term], wanted: &str) -> &'a Term {
    let found = terms.iter().find_map(|term| match term {
        Term::Name(name, value) if name == wanted => Some(&**value),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no {wanted}"))
}

/// Tag, and body, of each descriptor of a resource template (ACPI 6.5 §6.4).
fn resources(terms: &[Term]) -> Vec<(u8, Vec<u8>)> {
    let Term::Buffer(bytes) = named(terms, "_CRS") else {
        panic!("_CRS is no buffer")
    };
    let mut rest = &bytes[..];
    let mut found = Vec::new();
    loop {
        let tag = rest[0];
        let (header, length) = if tag & 0x80 == 0 {
            (1, usize::from(tag & 7))
        } else {
            (3, usize::from(u16::from_le_bytes([rest[1], rest[2]])))
        };
        if tag == 0x79 {
            assert_eq!(rest.len(), 2, "the end tag ends it");
            return found;
        }
        found.push((tag, rest[header..header + length].to_vec()));
        rest = &rest[header + length..];
    }
}

fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut value = [0; 8];
    value[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(value)
}

/// Kind (0 memory, 1 ports, 2 buses), first and last of the address space descriptors.
fn windows(terms: &[Term]) -> Vec<(u8, u64, u64)> {
    let descriptor = |(tag, body): (u8, Vec<u8>)| {
        let size = match tag {
            0x88 => 2,
            0x87 => 4,
            0x8a => 8,
            _ => return None,
        };
        let (first, last) = (word(&body, 3 + size, size), word(&body, 3 + 2 * size, size));
        assert_eq!(word(&body, 3 + 4 * size, size), last - first + 1, "length");
        Some((body[0], first, last))
    };
    resources(terms)
        .into_iter()
        .filter_map(descriptor)
        .collect()
}

#[test]
fn the_host_bridge_has_its_buses_ports_and_bar_windows_and_not_the_ecam_or_the_iommu() {
    let terms = parse(&pc());
    let bridge = device(&terms, "PCI0");
    // EISA IDs are big-endian: PNP0A08.
    assert_eq!(named(bridge, "_HID"), &Term::Integer(0x080a_d041));
    assert_eq!(named(bridge, "_SEG"), &Term::Integer(0));
    let windows = windows(bridge);
    assert_eq!(
        windows,
        [
            (2, 0, 255),
            (0, 0xc000_0000, 0xcfff_ffff),
            (1, 0, 0xcf7),
            (1, 0xd00, 0xffff),
            (0, 0x10_0000_0000, 0x1f_ffff_ffff),
        ]
    );
    let iommu = pc().iommus[0].options.mmio_base();
    for (kind, first, last) in windows {
        let memory = kind == 0;
        assert!(!memory || !(first..=last).contains(&iommu));
        assert!(!memory || !(first..=last).contains(&layout::ECAM_BASE));
    }
    assert!(bridge.contains(&Term::Method("_OSC".into(), 4)));
}

#[test]
fn every_interrupt_pin_is_wired_as_the_board_wires_it() {
    let terms = parse(&pc());
    let Term::Package(wires) = named(device(&terms, "PCI0"), "_PRT") else {
        panic!("_PRT is no package")
    };
    assert_eq!(wires.len(), 128);
    let expected = (0..32u8).flat_map(|device| (0..4u8).map(move |pin| (device, pin)));
    for (wire, (device, pin)) in wires.iter().zip(expected) {
        let number = |n: u64| Term::Integer(n);
        let address = u64::from(device) << 16 | 0xffff;
        let gsi = layout::intx_pin(device, pin);
        let parts = vec![
            number(address),
            number(pin.into()),
            number(0),
            number(gsi.into()),
        ];
        assert_eq!(wire, &Term::Package(parts));
    }
}

#[test]
fn the_ecam_windows_are_reserved_and_a_pc_has_its_devices() {
    let terms = parse(&pc());
    let reserved = resources(device(&terms, "MBRD"));
    // Memory32Fixed.
    assert_eq!(reserved.len(), 1);
    assert_eq!(
        (reserved[0].0, word(&reserved[0].1, 1, 4)),
        (0x86, layout::ECAM_BASE)
    );
    assert_eq!(word(&reserved[0].1, 5, 4), layout::ECAM_BUSES << 20);
    let serial = resources(device(&terms, "COM1"));
    assert_eq!((serial[0].0, word(&serial[0].1, 1, 2)), (0x47, 0x3f8));
    // Extended interrupt: consumer, edge, active high, exclusive; GSI 4.
    assert_eq!(serial[1], (0x89, vec![0b0011, 1, 4, 0, 0, 0]));
    let clock = resources(device(&terms, "RTC_"));
    assert_eq!((clock[0].0, word(&clock[0].1, 1, 2)), (0x47, 0x70));
    let Term::Package(off) = named(&terms, "_S5_") else {
        panic!("_S5 is no package")
    };
    assert_eq!(off[0], Term::Integer(SLEEP_TYPE_OFF.into()));
}

#[test]
fn a_machine_without_legacy_devices_has_none_in_the_table() {
    let terms = parse(&Config::scenario("amd-iommu".parse().unwrap()));
    assert_eq!(terms.len(), 1, "no _S5");
    let Term::Scope(_, devices) = &terms[0] else {
        panic!("no scope")
    };
    let names: Vec<_> = devices
        .iter()
        .map(|term| match term {
            Term::Scope(name, _) => name.as_str(),
            _ => "?",
        })
        .collect();
    assert_eq!(names, ["PCI0", "MBRD"]);
}
