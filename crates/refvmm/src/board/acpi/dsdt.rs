//! The DSDT: the PCI host bridges with their windows and interrupt wires, the devices at fixed
//! ports, and how the machine is switched off.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO,
    If, Interrupt, Memory32Fixed, Method, Name, Or, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::board::config::{Config, RootBridge};
use crate::board::legacy::{COM1, COM1_PIN, RTC_PORTS, SLEEP_TYPE_OFF};
use crate::board::pci::CONFIG_ADDRESS;
use crate::layout;

/// Ports that the configuration mechanism has: CF8h–CFFh.
const CONFIG_PORTS: u8 = 8;
/// Devices on a bus, and interrupt pins of a device.
const DEVICES: u8 = 32;
const INTERRUPT_PINS: u8 = 4;

/// AML that was made before.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The table.
pub(super) fn table(config: &Config) -> Vec<u8> {
    let mut devices = Vec::new();
    let bridges = config.root_bridges();
    for (n, bridge) in bridges.iter().enumerate() {
        devices.push(Raw(host_bridge(n, bridge, config)));
    }
    devices.push(Raw(motherboard(&bridges)));
    if config.legacy.is_some() {
        devices.push(Raw(serial_port()));
        devices.push(Raw(clock()));
    }
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes(&Scope::new(Path::new("\\_SB_"), devices)));
    if config.legacy.is_some() {
        let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
        dsdt.append_slice(&bytes(&Name::new(Path::new("\\_S5_"), &off)));
    }
    bytes(&dsdt)
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn host_bridge(n: usize, bridge: &RootBridge, config: &Config) -> Vec<u8> {
    use AddressSpaceCacheable::{NotCacheable, PreFetchable};
    // Each resource is owned by a variable, as the template only borrows.
    let buses = AddressSpace::new_bus_number(0u16, bridge.last_bus.into());
    let bars = AddressSpace::new_memory(
        NotCacheable,
        true,
        bridge.bars.start as u32,
        (bridge.bars.end - 1) as u32,
        None,
    );
    let mut resources: Vec<&dyn Aml> = vec![&buses, &bars];
    // Ports are the first bridge's, and so are BARs above 4 GiB.
    let mechanism = IO::new(CONFIG_ADDRESS, CONFIG_ADDRESS, 1, CONFIG_PORTS);
    let below = AddressSpace::new_io(0u16, CONFIG_ADDRESS - 1, None);
    let above = AddressSpace::new_io(CONFIG_ADDRESS + u16::from(CONFIG_PORTS), 0xffff, None);
    let high = config.high_bars.as_ref().map(|window| {
        AddressSpace::new_memory(PreFetchable, true, window.start, window.end - 1, None)
    });
    if n == 0 {
        resources.extend([&mechanism as &dyn Aml, &below, &above]);
        resources.extend(high.iter().map(|high| high as &dyn Aml));
    }
    let host_bridge_id = EISAName::new("PNP0A08");
    let compatible = EISAName::new("PNP0A03");
    let segment = bridge.segment.0;
    let number = n as u8;
    bytes(&Device::new(
        Path::new(&format!("PCI{n}")),
        vec![
            &name("_HID", &host_bridge_id),
            &name("_CID", &compatible),
            &name("_UID", &number),
            &name("_SEG", &segment),
            &name("_BBN", &ZERO),
            // Accesses of every device are coherent with the CPUs' caches.
            &name("_CCA", &1u8),
            &name("_CRS", &ResourceTemplate::new(resources)),
            &name("_PRT", &interrupt_wires()),
            &Raw(operating_system_capabilities()),
        ],
    ))
}

/// `_PRT`: which pin of the IOAPIC INTA–INTD of each device are wired to.
fn interrupt_wires() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for device in 0..DEVICES {
        for pin in 0..INTERRUPT_PINS {
            // Any function of the device; no link device, but a GSI.
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = layout::intx_pin(device, pin);
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    table
}

/// `_OSC`: the operating system may control all of PCI Express that it asks for; the firmware
/// keeps nothing for itself.
fn operating_system_capabilities() -> Vec<u8> {
    let pci = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let (status, unrecognized) = (Path::new("CDW1"), 4u8);
    bytes(&Method::new(
        Path::new("_OSC"),
        4,
        false,
        vec![
            &CreateDWordField::new(&Path::new("CDW1"), &Arg(3), &ZERO),
            &If::new(&Equal::new(&Arg(0), &pci), vec![&Return::new(&Arg(3))]),
            &Else::new(vec![
                &Or::new(&status, &status, &unrecognized),
                &Return::new(&Arg(3)),
            ]),
        ],
    ))
}

/// The ECAM windows as resources of the board: a guest uses one only if it is reserved.
fn motherboard(bridges: &[RootBridge]) -> Vec<u8> {
    let windows: Vec<_> = bridges
        .iter()
        .map(|bridge| {
            let size = bridge.ecam.end - bridge.ecam.start;
            Memory32Fixed::new(true, bridge.ecam.start as u32, size as u32)
        })
        .collect();
    let windows = windows.iter().map(|window| window as &dyn Aml).collect();
    bytes(&Device::new(
        Path::new("MBRD"),
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(windows)),
        ],
    ))
}

fn serial_port() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![
                    &IO::new(COM1, COM1, 1, 8),
                    &Interrupt::new(true, true, false, false, COM1_PIN.into()),
                ]),
            ),
        ],
    ))
}

fn clock() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("RTC_"),
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&IO::new(RTC_PORTS, RTC_PORTS, 1, 2)]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests;
