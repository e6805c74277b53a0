//! A small driver.

use std::cell::{Cell, RefCell};

use amdvi_regs::DeviceId;

use super::rig::*;
use crate::layout;
use crate::virtio::REQUIRED_FEATURES;

/// Offsets in the common configuration.
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(crate) const DEVICE_FEATURE: u64 = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(crate) const DRIVER_FEATURE: u64 = 0xc;
    pub(crate) const CONFIG_VECTOR: u64 = 0x10;
    pub(crate) const STATUS: u64 = 0x14;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(crate) const QUEUE_DESC: u64 = 0x20;
    pub(crate) const QUEUE_DRIVER: u64 = 0x28;
    pub(crate) const QUEUE_DEVICE: u64 = 0x30;
    pub(crate) const QUEUE_RESET: u64 = 0x3a;
}

pub(crate) const NEEDS_RESET: u8 = 0x40;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
pub(crate) const LIVE: u8 = 0xf;

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Structure {
    pub(crate) gpa: u64,
    pub(crate) len: u64,
}

/// A driver of one function, which found its structures by its capabilities.
pub(crate) struct Driver<'r> {
    pub(crate) rig: &'r Rig,
    ecam: u64,
    pub(crate) id: DeviceId,
    pub(crate) common: Structure,
    pub(crate) notify: Structure,
    pub(crate) multiplier: u64,
    pub(crate) isr: Structure,
    pub(crate) device: Structure,
    pub(crate) window: u64,
    pub(crate) msix: u64,
    pub(crate) express: u64,
    pub(crate) table: u64,
    pub(crate) pending: u64,
}

impl<'r> Driver<'r> {
    /// The driver of function `n`.
    pub(crate) fn new(rig: &'r Rig, n: u8) -> Self {
        let id = DeviceId::new(0, 8 + n, 0);
        let mut driver = Self {
            rig,
            ecam: layout::ECAM_BASE + (u64::from(id.0) << 12),
            id,
            common: Structure::default(),
            notify: Structure::default(),
            multiplier: 0,
            isr: Structure::default(),
            device: Structure::default(),
            window: 0,
            msix: 0,
            express: 0,
            table: 0,
            pending: 0,
        };
        driver.find_structures();
        driver.set_config(4, 2, 6);
        driver
    }

    pub(crate) fn config(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.rig.board.mmio_read(self.ecam + at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub(crate) fn set_config(&self, at: u64, len: usize, value: u64) {
        let data = &value.to_le_bytes()[..len];
        self.rig.board.mmio_write(self.ecam + at, data);
    }

    fn find_structures(&mut self) {
        assert_ne!(self.config(6, 2) & 0x10, 0, "there are capabilities");
        let bar = |this: &Self, n: u64| this.config(0x10 + 4 * n, 4) & !0xf;
        let mut at = self.config(0x34, 1);
        while at != 0 {
            match self.config(at, 1) {
                0x09 => {
                    let structure = Structure {
                        gpa: bar(self, self.config(at + 4, 1)) + self.config(at + 8, 4),
                        len: self.config(at + 12, 4),
                    };
                    match self.config(at + 3, 1) {
                        1 => self.common = structure,
                        2 => {
                            self.notify = structure;
                            self.multiplier = self.config(at + 16, 4);
                        }
                        3 => self.isr = structure,
                        4 => self.device = structure,
                        5 => self.window = at,
                        other => panic!("cfg_type {other}"),
                    }
                }
                0x10 => self.express = at,
                0x11 => {
                    self.msix = at;
                    let place = |this: &Self, at| {
                        let dword = this.config(at, 4);
                        bar(this, dword & 7) + (dword & !7)
                    };
                    self.table = place(self, at + 4);
                    self.pending = place(self, at + 8);
                }
                other => panic!("capability {other:#x}"),
            }
            at = self.config(at + 1, 1);
        }
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        let gpa = self.common.gpa + at;
        self.rig.board.mmio_read(gpa, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub(crate) fn set(&self, at: u64, len: usize, value: u64) {
        let gpa = self.common.gpa + at;
        self.rig.board.mmio_write(gpa, &value.to_le_bytes()[..len]);
    }

    pub(crate) fn status(&self) -> u8 {
        self.get(common::STATUS, 1) as u8
    }

    pub(crate) fn device_config(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        let gpa = self.device.gpa + at;
        self.rig.board.mmio_read(gpa, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub(crate) fn offered(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.set(common::DEVICE_FEATURE_SELECT, 4, half);
            features | self.get(common::DEVICE_FEATURE, 4) << (32 * half)
        })
    }

    /// Resets, and negotiates; whether the device accepts.
    pub(crate) fn negotiate(&self, features: u64) -> bool {
        self.set(common::STATUS, 1, 0);
        assert_eq!(self.status(), 0);
        self.set(common::STATUS, 1, 3);
        for half in 0..2 {
            self.set(common::DRIVER_FEATURE_SELECT, 4, half);
            self.set(common::DRIVER_FEATURE, 4, features >> (32 * half));
        }
        self.set(common::STATUS, 1, 0xb);
        self.status() & 8 != 0
    }

    /// Programs an MSI-X vector with an entry of the interrupt table.
    pub(crate) fn program(&self, vector: u64, index: u64, masked: bool) {
        let at = self.table + 16 * vector;
        let write = |at, value: u64| self.rig.board.mmio_write(at, &(value as u32).to_le_bytes());
        write(at, 0xfee0_0000);
        write(at + 4, 0);
        write(at + 8, index);
        write(at + 12, u64::from(masked));
    }

    pub(crate) fn enable_msix(&self) {
        self.set_config(self.msix + 2, 2, 0x8000);
    }

    pub(crate) fn is_pending(&self, vector: u64) -> bool {
        let mut word = [0; 8];
        self.rig.board.mmio_read(self.pending, &mut word);
        u64::from_le_bytes(word) >> vector & 1 != 0
    }

    /// Negotiates what is needed and `features`, and sets up `queues` of 16 entries each, whose
    /// vector and interrupt are their number; the configuration's is behind the last.
    pub(crate) fn start(&self, queues: u16, features: u64) -> Vec<Queue<'_>> {
        assert!(self.negotiate(REQUIRED_FEATURES | features));
        self.enable_msix();
        self.program(u64::from(queues), u64::from(queues), false);
        self.set(common::CONFIG_VECTOR, 2, u64::from(queues));
        let queues = (0..queues).map(|n| Queue::new(self, n)).collect();
        self.set(common::STATUS, 1, u64::from(LIVE));
        assert_eq!(self.status(), LIVE);
        queues
    }

    pub(crate) fn config_vector(queues: u8) -> u8 {
        FIRST_VECTOR + queues
    }

    pub(crate) fn kick(&self, queue: u16) {
        self.set(common::QUEUE_SELECT, 2, u64::from(queue));
        let offset = self.get(common::QUEUE_NOTIFY_OFF, 2);
        let at = self.notify.gpa + offset * self.multiplier;
        self.rig.board.mmio_write(at, &queue.to_le_bytes());
    }
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const DEVICE_WRITES: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A part of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) iova: u64,
    pub(crate) len: u32,
    pub(crate) write: bool,
}

pub(crate) fn out(iova: u64, len: u64) -> Part {
    Part {
        iova,
        len: len as u32,
        write: false,
    }
}

pub(crate) fn into(iova: u64, len: u64) -> Part {
    Part {
        iova,
        len: len as u32,
        write: true,
    }
}

/// A queue as its driver sees it.
pub(crate) struct Queue<'d> {
    driver: &'d Driver<'d>,
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) table: Buffer<'d>,
    pub(crate) available: Buffer<'d>,
    pub(crate) used: Buffer<'d>,
    next_descriptor: Cell<u16>,
    next_available: Cell<u16>,
    next_used: Cell<u16>,
    done: RefCell<Vec<(u16, u32)>>,
}

impl<'d> Queue<'d> {
    pub(crate) fn new(driver: &'d Driver<'d>, index: u16) -> Self {
        let rig = driver.rig;
        let queue = Self {
            driver,
            index,
            size: 16,
            // The device only reads two of them, and the mapping says so.
            table: rig.buffer(PAGE, READ),
            available: rig.buffer(PAGE, READ),
            used: rig.buffer(PAGE, READ | WRITE),
            next_descriptor: Cell::new(0),
            next_available: Cell::new(0),
            next_used: Cell::new(0),
            done: RefCell::default(),
        };
        driver.program(u64::from(index), u64::from(index), false);
        queue.enable();
        queue
    }

    /// Tells the device.
    pub(crate) fn enable(&self) {
        let driver = self.driver;
        driver.set(common::QUEUE_SELECT, 2, u64::from(self.index));
        driver.set(common::QUEUE_SIZE, 2, u64::from(self.size));
        driver.set(common::QUEUE_VECTOR, 2, u64::from(self.index));
        for (register, at) in [
            (common::QUEUE_DESC, self.table.iova),
            (common::QUEUE_DRIVER, self.available.iova),
            (common::QUEUE_DEVICE, self.used.iova),
        ] {
            driver.set(register, 4, at & 0xffff_ffff);
            driver.set(register + 4, 4, at >> 32);
        }
        driver.set(common::QUEUE_ENABLE, 2, 1);
    }

    pub(crate) fn descriptor(&self, n: u16, iova: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&iova.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.table.write(16 * u64::from(n), &bytes);
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn publish(&self, head: u16) {
        let n = self.next_available.get();
        let slot = u64::from(n % self.size);
        self.available.set_word(4 + 2 * slot, head);
        self.next_available.set(n.wrapping_add(1));
        self.available.set_word(2, n.wrapping_add(1));
    }

    /// Makes a chain of these parts available, without telling the device.
    pub(crate) fn add(&self, parts: &[Part]) -> u16 {
        let first = self.next_descriptor.get();
        let at = |n: usize| (first + n as u16) % self.size;
        for (n, part) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let flags = if part.write { DEVICE_WRITES } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(at(n), part.iova, part.len, flags, at(n + 1));
        }
        self.next_descriptor.set(at(parts.len()));
        self.publish(first);
        first
    }

    pub(crate) fn kick(&self) {
        self.driver.kick(self.index);
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.used.word(2)
    }

    pub(crate) fn set_used_event(&self, event: u16) {
        self.available.set_word(4 + 2 * u64::from(self.size), event);
    }

    /// Waits until the chain is used. How many bytes the device says it wrote.
    pub(crate) fn wait(&self, head: u16) -> u32 {
        let mut len = None;
        eventually("the end of a request", || {
            while self.next_used.get() != self.used_index() {
                let n = self.next_used.get();
                let at = 4 + 8 * u64::from(n % self.size);
                let entry = self.used.read(at, 8);
                let dword = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
                self.done.borrow_mut().push((dword(0) as u16, dword(4)));
                self.next_used.set(n.wrapping_add(1));
            }
            let mut done = self.done.borrow_mut();
            if let Some(at) = done.iter().position(|(used, _)| *used == head) {
                len = Some(done.remove(at).1);
            }
            len.is_some()
        });
        len.unwrap()
    }

    /// Sends a chain and waits for it.
    pub(crate) fn request(&self, parts: &[Part]) -> u32 {
        let head = self.add(parts);
        self.kick();
        self.wait(head)
    }
}
