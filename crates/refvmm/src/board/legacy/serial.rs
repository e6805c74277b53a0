//! The first serial port: vm-superio's 16550A at COM1.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};

use super::Console;
use crate::board::config::FixedDevice;
use crate::board::slot::Line;
use crate::board::snapshot::{Hex, Snapshot, StateError, typed};

/// The first of its eight ports.
pub const COM1: u16 = 0x3f8;
const PORTS: u16 = 8;
/// Its pin of the IOAPIC, edge-triggered.
pub const COM1_PIN: u8 = 4;

struct Edge(Arc<Line>);

impl Trigger for Edge {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

struct Out(Console);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The registers, as vm-superio names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Hex,
}

/// The port.
pub struct SerialPort {
    inner: Mutex<Serial<Edge, NoEvents, Out>>,
    line: Arc<Line>,
    console: Console,
}

impl SerialPort {
    pub(super) fn new(line: Line, console: Console) -> Self {
        let line = Arc::new(line);
        Self {
            inner: Mutex::new(Serial::new(
                Edge(Arc::clone(&line)),
                Out(Arc::clone(&console)),
            )),
            line,
            console,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Edge, NoEvents, Out>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends bytes to the guest; returns how many there was room for.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        // Neither a full buffer nor a line can fail in a way that matters here.
        self.lock().enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

fn register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(COM1)?;
    (offset < PORTS).then_some(offset as u8)
}

impl Snapshot for SerialPort {
    fn save(&self) -> Result<Value, StateError> {
        let state = self.lock().state();
        Ok(serde_json::to_value(Registers {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Hex(state.in_buffer),
        })?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let saved: Registers = typed(state)?;
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer.0,
        };
        let (edge, out) = (Edge(Arc::clone(&self.line)), Out(Arc::clone(&self.console)));
        *self.lock() = Serial::from_state(&state, edge, NoEvents, out)
            .map_err(|error| StateError(format!("serial port: {error}")))?;
        Ok(())
    }
}

impl FixedDevice for SerialPort {
    fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let Some(register) = register(port) else {
            return false;
        };
        // A string instruction reads the same register again and again.
        let mut serial = self.lock();
        for byte in data {
            *byte = serial.read(register);
        }
        true
    }

    fn port_write(&self, port: u16, data: &[u8]) -> bool {
        let Some(register) = register(port) else {
            return false;
        };
        let mut serial = self.lock();
        for byte in data {
            // It fails when its output or its line does; neither can here.
            let _ = serial.write(register, *byte);
        }
        true
    }
}
