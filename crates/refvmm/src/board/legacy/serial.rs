//! The first serial port: vm-superio's 16550A at COM1.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use super::Console;
use crate::board::config::FixedDevice;
use crate::board::slot::Line;

/// The first of its eight ports.
pub const COM1: u16 = 0x3f8;
const PORTS: u16 = 8;
/// Its pin of the IOAPIC, edge-triggered.
pub const COM1_PIN: u8 = 4;

struct Edge(Line);

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

/// The port.
pub struct SerialPort {
    inner: Mutex<Serial<Edge, NoEvents, Out>>,
}

impl SerialPort {
    pub(super) fn new(line: Line, console: Console) -> Self {
        Self {
            inner: Mutex::new(Serial::new(Edge(line), Out(console))),
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
