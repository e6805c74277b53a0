//! The payload's two ports, in front of the machine's devices: its log, and its end.

use std::sync::{Arc, Mutex};

use amdvi_guest::boot::{EXIT_PORT, LOG_PORT};

use super::bus::Bus;
use super::end::{End, Ending, lock};
use super::payload::Payload;

/// Most bytes that the log keeps; a payload that prints for ever loses the rest.
const LOG_BYTES: usize = 1 << 20;
/// Longest line of the log.
const LINE_BYTES: usize = 4096;

/// What each CPU has begun to print, and what all have printed: lines of different CPUs don't mix.
#[derive(Debug, Default)]
struct Log {
    text: String,
    lines: Vec<Vec<u8>>,
}

impl Log {
    fn put(&mut self, cpu: usize, bytes: &[u8]) {
        if self.lines.len() <= cpu {
            self.lines.resize_with(cpu + 1, Vec::new);
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.flush(cpu);
            } else if self.lines[cpu].len() < LINE_BYTES {
                self.lines[cpu].push(*byte);
            }
        }
    }

    fn flush(&mut self, cpu: usize) {
        let line = &mut self.lines[cpu];
        if self.text.len() + line.len() < LOG_BYTES {
            self.text.push_str(&String::from_utf8_lossy(line));
            self.text.push('\n');
        }
        line.clear();
    }

    fn take(&mut self) -> String {
        for cpu in 0..self.lines.len() {
            if !self.lines[cpu].is_empty() {
                self.flush(cpu);
            }
        }
        std::mem::take(&mut self.text)
    }
}

/// A payload's machine: the devices, and the ports that only a payload has.
pub(super) struct PayloadBus<B> {
    devices: Arc<B>,
    payload: Payload,
    end: Arc<End>,
    log: Mutex<Log>,
}

impl<B> PayloadBus<B> {
    pub(super) fn new(devices: Arc<B>, payload: Payload, end: Arc<End>) -> Self {
        Self {
            devices,
            payload,
            end,
            log: Mutex::default(),
        }
    }

    /// Takes what was printed.
    pub(super) fn take_log(&self) -> String {
        lock(&self.log).take()
    }
}

impl<B: Bus> Bus for PayloadBus<B> {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.devices.port_in(port, data);
    }

    fn port_out(&self, cpu: usize, port: u16, data: &[u8]) {
        match port {
            LOG_PORT => lock(&self.log).put(cpu, data),
            EXIT_PORT => {
                let mut code = [0; 4];
                let bytes = data.len().min(4);
                code[..bytes].copy_from_slice(&data[..bytes]);
                self.end.reach(Ending::Exit(u32::from_le_bytes(code)));
            }
            _ => self.devices.port_out(cpu, port, data),
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.devices.mmio_read(gpa, data);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.devices.mmio_write(gpa, data);
    }

    fn ioapic_eoi(&self, vector: u8) {
        self.devices.ioapic_eoi(vector);
    }

    fn function(&self, rip: u64) -> Option<String> {
        self.payload.function(rip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_two_cpus_do_not_mix_and_the_log_is_bounded() {
        let mut log = Log::default();
        log.put(0, b"one ");
        log.put(1, b"two\n");
        log.put(0, b"line\nunfinished");
        assert_eq!(log.take(), "two\none line\nunfinished\n");
        for _ in 0..LOG_BYTES {
            log.put(1, b"0123456789\n");
        }
        log.put(1, &vec![b'x'; 10 * LINE_BYTES]);
        assert!(log.take().len() <= LOG_BYTES);
    }
}
