//! Reset and power-off.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1, §4.8.3.7): a sleep control and a sleep status register of
//! one byte each, and a reset register. The latter is the reset control register of chipsets,
//! which a guest without ACPI knows too.
//!
//! ACPI's fixed hardware (§4.8.3.1, §4.8.3.2): the PM1 status, enable and control registers. No fixed
//! event ever happens, so there is no SCI; the control register is another way to switch the machine
//! off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::board::config::FixedDevice;
use crate::board::snapshot::{Snapshot, StateError, typed};
use crate::layout;
use crate::ram::Memory;

/// The reset control register.
pub const CF9_RESET: u16 = 0xcf9;
/// What resets the machine when written there: a hard reset, now.
pub const RESET_VALUE: u8 = 0x06;
/// Its bit that acts.
const RESET_CPU: u8 = 1 << 2;

/// The sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// Sleep control: the state to enter, bits \[4:2\], and the bit that enters it.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;
/// The sleep type that switches the machine off: `_S5` in the DSDT.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// PM1 status and, behind it, PM1 enable: 16 bits each.
pub const PM1_EVENT: u16 = 0x604;
/// Bytes of the two.
pub const PM1_EVENT_LENGTH: u8 = 4;
/// PM1 control: 16 bits.
pub const PM1_CONTROL: u16 = 0x608;
/// Its bytes.
pub const PM1_CONTROL_LENGTH: u8 = 2;
/// PM1 control\[0\]: power events are the operating system's. The firmware left it so.
const SCI_EN: u16 = 1;
/// PM1 control: the state to enter, bits \[12:10\], and the bit that enters it.
const PM1_SLEEP_TYPE_SHIFT: u16 = 10;
const PM1_SLEEP_ENABLE: u16 = 1 << 13;
/// PM1 enable: global lock, both buttons, the clock, and PCI Express wake.
const PM1_ENABLES: u16 = 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14;

/// Where a processor of a PC goes on after a reset, below 1 MiB: F000:FFF0.
const RESET_VECTOR: u64 = 0xf_fff0;
/// Firmware of a few instructions, which resets the machine as a whole. A Linux without EFI on
/// hardware-reduced ACPI takes this way: it leaves the FADT's reset register alone, goes back to real
/// mode and jumps here.
///
/// ```text
/// mov al, 6
/// mov dx, 0cf9h
/// out dx, al
/// hlt
/// jmp $-1
/// ```
const RESET_CODE: [u8; 9] = [
    0xb0,
    RESET_VALUE,
    0xba,
    CF9_RESET as u8,
    (CF9_RESET >> 8) as u8,
    0xee,
    0xf4,
    0xeb,
    0xfd,
];
const _: () = assert!(layout::ACPI_END <= RESET_VECTOR);

/// Writes the code at the reset vector.
///
/// # Errors
/// There is no RAM.
pub fn write_reset_code(memory: &Memory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))
}

/// What resets the machine and switches it off. Called by a vCPU's thread, which it must not wait
/// for.
pub trait Power: Send + Sync {
    /// The guest switched the machine off.
    fn off(&self);
    /// The guest reset the machine.
    fn reset(&self);
}

pub(super) struct PowerPorts {
    power: Arc<dyn Power>,
    /// PM1 enable: remembered, although no event is there to be enabled.
    enables: AtomicU16,
}

impl PowerPorts {
    pub(super) fn new(power: Arc<dyn Power>) -> Self {
        Self {
            power,
            enables: AtomicU16::new(0),
        }
    }

    /// The PM1 register at a port, if there is one.
    fn pm1(&self, port: u16) -> Option<u16> {
        match port {
            // Status: nothing has happened.
            PM1_EVENT => Some(0),
            PM1_ENABLE => Some(self.enables.load(Ordering::Relaxed)),
            PM1_CONTROL => Some(SCI_EN),
            _ => None,
        }
    }

    fn sleep(&self, kind: u8) {
        if kind == SLEEP_TYPE_OFF {
            self.power.off();
        }
    }
}

/// PM1 enable.
const PM1_ENABLE: u16 = PM1_EVENT + 2;

impl Snapshot for PowerPorts {
    fn save(&self) -> Result<Value, StateError> {
        Ok(self.enables.load(Ordering::Relaxed).into())
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let enables: u16 = typed(state)?;
        self.enables.store(enables & PM1_ENABLES, Ordering::Relaxed);
        Ok(())
    }
}

impl FixedDevice for PowerPorts {
    fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        if let Some(register) = self.pm1(port)
            && data.len() == 2
        {
            data.copy_from_slice(&register.to_le_bytes());
            return true;
        }
        // Nothing wakes a machine that is off, so WAK_STS is never set.
        let known = matches!(port, CF9_RESET | SLEEP_CONTROL | SLEEP_STATUS);
        if known {
            data.fill(0);
        }
        known
    }

    fn port_write(&self, port: u16, data: &[u8]) -> bool {
        match (port, data) {
            (CF9_RESET, [value]) => {
                if value & RESET_CPU != 0 {
                    self.power.reset();
                }
            }
            (SLEEP_CONTROL, [value]) => {
                let kind = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 {
                    self.sleep(kind);
                }
            }
            // Bits of both are cleared by writing them, and none is ever set.
            (SLEEP_STATUS, [_]) | (PM1_EVENT, [_, _]) => {}
            (PM1_ENABLE, &[low, high]) => {
                let enables = u16::from_le_bytes([low, high]) & PM1_ENABLES;
                self.enables.store(enables, Ordering::Relaxed);
            }
            (PM1_CONTROL, &[low, high]) => {
                let value = u16::from_le_bytes([low, high]);
                if value & PM1_SLEEP_ENABLE != 0 {
                    self.sleep((value >> PM1_SLEEP_TYPE_SHIFT) as u8 & SLEEP_TYPE_MASK);
                }
            }
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Count {
        off: AtomicU32,
        reset: AtomicU32,
    }

    impl Power for Count {
        fn off(&self) {
            self.off.fetch_add(1, Ordering::SeqCst);
        }
        fn reset(&self) {
            self.reset.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_the_bit_that_acts_resets_and_only_s5_switches_off() {
        let count = Arc::new(Count::default());
        let ports = PowerPorts::new(count.clone());
        let counted = || {
            (
                count.off.load(Ordering::SeqCst),
                count.reset.load(Ordering::SeqCst),
            )
        };
        assert!(ports.port_write(CF9_RESET, &[0x02]));
        assert!(ports.port_write(SLEEP_CONTROL, &[SLEEP_TYPE_OFF << 2]));
        assert!(ports.port_write(SLEEP_CONTROL, &[SLEEP_ENABLE | 3 << 2]));
        assert!(ports.port_write(SLEEP_STATUS, &[0x80]));
        assert_eq!(counted(), (0, 0));
        assert!(ports.port_write(CF9_RESET, &[RESET_VALUE]));
        assert!(ports.port_write(SLEEP_CONTROL, &[SLEEP_ENABLE | SLEEP_TYPE_OFF << 2]));
        assert_eq!(counted(), (1, 1));
        assert!(!ports.port_write(0x80, &[0]));
        let mut status = [0xff];
        assert!(ports.port_read(SLEEP_STATUS, &mut status));
        assert_eq!(status, [0]);
    }

    #[test]
    fn the_fixed_hardware_has_no_events_and_switches_off_in_s5_only() {
        let count = Arc::new(Count::default());
        let ports = PowerPorts::new(count.clone());
        let read = |port: u16| {
            let mut data = [0xff; 2];
            assert!(ports.port_read(port, &mut data), "{port:#x}");
            u16::from_le_bytes(data)
        };
        let write = |port: u16, value: u16| assert!(ports.port_write(port, &value.to_le_bytes()));
        assert_eq!((read(PM1_EVENT), read(PM1_CONTROL)), (0, SCI_EN));
        write(PM1_EVENT, 0xffff);
        write(PM1_ENABLE, 0xffff);
        assert_eq!((read(PM1_EVENT), read(PM1_ENABLE)), (0, 0x4720));
        let off = u16::from(SLEEP_TYPE_OFF) << PM1_SLEEP_TYPE_SHIFT;
        write(PM1_CONTROL, off);
        write(PM1_CONTROL, PM1_SLEEP_ENABLE | 3 << PM1_SLEEP_TYPE_SHIFT);
        assert_eq!(count.off.load(Ordering::SeqCst), 0);
        write(PM1_CONTROL, PM1_SLEEP_ENABLE | off);
        assert_eq!(count.off.load(Ordering::SeqCst), 1);
        assert_eq!(count.reset.load(Ordering::SeqCst), 0);
        // The registers have 16 bits.
        assert!(!ports.port_write(PM1_CONTROL, &[0]));
        assert!(!ports.port_read(PM1_EVENT, &mut [0; 4]));
    }

    #[test]
    fn the_code_at_the_reset_vector_writes_what_resets_the_machine() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_reset_code(&memory).unwrap();
        let mut code = [0; 16];
        memory
            .read_slice(&mut code, GuestAddress(0xf_fff0))
            .unwrap();
        assert_eq!(code[..2], [0xb0, 6], "mov al, 6");
        assert_eq!(code[2..5], [0xba, 0xf9, 0x0c], "mov dx, 0cf9h");
        assert_eq!(
            code[5..9],
            [0xee, 0xf4, 0xeb, 0xfd],
            "out dx, al; hlt; jmp to hlt"
        );
        assert_eq!(code[9..], [0; 7]);
    }
}
