//! Reset and power-off.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1, §4.8.3.7): a sleep control and a sleep status register of
//! one byte each, and a reset register. The latter is the reset control register of chipsets,
//! which a guest without ACPI knows too.

use std::sync::Arc;

use crate::board::config::FixedDevice;

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
}

impl PowerPorts {
    pub(super) fn new(power: Arc<dyn Power>) -> Self {
        Self { power }
    }
}

impl FixedDevice for PowerPorts {
    fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
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
                if value & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_OFF {
                    self.power.off();
                }
            }
            (SLEEP_STATUS, [_]) => {}
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

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
}
