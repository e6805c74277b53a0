//! What a PC has at fixed ports: a serial port, a clock, and a way to reset it and to switch it off.

mod power;
mod rtc;
mod serial;

use std::sync::Arc;

use super::config::FixedDevice;
use super::slot::Lines;

pub use power::{
    CF9_RESET, PM1_CONTROL, PM1_CONTROL_LENGTH, PM1_EVENT, PM1_EVENT_LENGTH, Power, RESET_VALUE,
    SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_OFF, write_reset_code,
};
pub use rtc::RTC_PORTS;
pub use serial::{COM1, COM1_PIN, SerialPort};

/// Takes what the guest sends to its serial port.
pub type Console = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// What is on the other side of these devices.
#[derive(Clone)]
pub struct Legacy {
    /// Of the serial port.
    pub console: Console,
    /// Of the reset and sleep registers.
    pub power: Arc<dyn Power>,
}

impl Legacy {
    /// Builds the devices: the serial port, and the others.
    pub(super) fn build(&self, lines: &Arc<Lines>) -> (Arc<SerialPort>, Vec<Arc<dyn FixedDevice>>) {
        let serial = Arc::new(SerialPort::new(
            lines.line(COM1_PIN),
            Arc::clone(&self.console),
        ));
        let devices: Vec<Arc<dyn FixedDevice>> = vec![
            serial.clone(),
            Arc::new(rtc::Rtc::new()),
            Arc::new(power::PowerPorts::new(Arc::clone(&self.power))),
        ];
        (serial, devices)
    }
}
