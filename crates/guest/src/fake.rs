//! A machine for unit tests: memory and configuration space, no devices.

extern crate alloc;
extern crate std;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use amdvi_regs::DeviceId;

use crate::platform::{Platform, Width};

pub(crate) struct Fake {
    pub(crate) ram: Vec<u8>,
    pub(crate) rsdp: u64,
    pub(crate) port_accesses: u64,
    config: BTreeMap<(u16, u16), u32>,
    address: u32,
    clock: u64,
    pub(crate) log: Vec<String>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            ram: alloc::vec![0; 0x10000],
            rsdp: 0x1000,
            port_accesses: 0,
            config: BTreeMap::new(),
            address: 0,
            clock: 0,
            log: Vec::new(),
        }
    }

    /// Sets a dword of configuration space.
    pub(crate) fn config(&mut self, id: DeviceId, offset: u16, value: u32) {
        self.config.insert((id.0, offset), value);
    }

    pub(crate) fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let start = gpa as usize;
        self.ram[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&self, gpa: u64, bytes: u64) -> u64 {
        (0..bytes).fold(0, |value, n| {
            value | u64::from(self.read_u8(gpa + n)) << (8 * n)
        })
    }
}

impl Platform for Fake {
    fn read_u64(&self, gpa: u64) -> u64 {
        self.word(gpa, 8)
    }
    fn write_u64(&mut self, gpa: u64, value: u64) {
        self.put(gpa, &value.to_le_bytes());
    }
    fn read_u32(&self, gpa: u64) -> u32 {
        self.word(gpa, 4) as u32
    }
    fn write_u32(&mut self, gpa: u64, value: u32) {
        self.put(gpa, &value.to_le_bytes());
    }
    fn read_u8(&self, gpa: u64) -> u8 {
        self.ram.get(gpa as usize).copied().unwrap_or(0xff)
    }
    fn alloc(&mut self, _bytes: u64, _align: u64) -> Option<u64> {
        None
    }
    fn mmio_read(&mut self, _gpa: u64, _width: Width) -> u64 {
        !0
    }
    fn mmio_write(&mut self, _gpa: u64, _width: Width, _value: u64) {}
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.port_accesses += 1;
        let (id, offset) = ((self.address >> 8) as u16, self.address as u16 & 0xfc);
        let absent = if self.config.keys().any(|key| key.0 == id) {
            0
        } else {
            !0
        };
        let dword = self.config.get(&(id, offset)).copied().unwrap_or(absent);
        let value = dword >> (8 * u32::from(port & 3));
        match width {
            Width::Byte => value & 0xff,
            Width::Word => value & 0xffff,
            _ => value,
        }
    }
    fn port_write(&mut self, port: u16, _width: Width, value: u32) {
        self.port_accesses += 1;
        if port == 0xcf8 {
            self.address = value;
        } else {
            let (id, offset) = ((self.address >> 8) as u16, self.address as u16 & 0xfc);
            let size_mask = if offset == 0x10 { !0x1ff } else { !0 };
            self.config.insert((id, offset), value & size_mask);
        }
    }
    fn rsdp(&self) -> u64 {
        self.rsdp
    }
    fn apic_ids(&self) -> &[u32] {
        &[0]
    }
    fn interrupts(&self, _cpu: usize, _vector: u8) -> u64 {
        0
    }
    fn heartbeat(&self, _cpu: usize) -> u64 {
        0
    }
    fn pause(&mut self) {}
    fn now_ns(&mut self) -> u64 {
        self.clock += 1_000_000;
        self.clock
    }
    fn log(&mut self, line: fmt::Arguments<'_>) {
        self.log.push(std::format!("{line}"));
    }
}
