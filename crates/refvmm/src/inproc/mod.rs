//! The board without a hypervisor: the scenario runs in this process, the CPUs only count.

mod cpus;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_guest::platform::{Platform, Width};
use amdvi_guest::report::Report;
use amdvi_guest::scenarios;
use vm_memory::{Bytes, GuestAddress};

use crate::board::{Board, BoardError, Config};
use crate::layout;
use crate::ram::Memory;
use crate::run::machine::Machine;
use cpus::Cpus;

/// How long a waiting scenario sleeps, so that worker and stream get a CPU on a small host.
const PAUSE: Duration = Duration::from_micros(50);

/// A machine whose CPU 0 is the calling thread.
pub struct InProcess {
    board: Board,
    memory: Arc<Memory>,
    cpus: Arc<Cpus>,
    heap: Range<u64>,
    started: Instant,
    log: Box<dyn FnMut(&str)>,
}

impl InProcess {
    /// Builds the machine. `log` gets the lines that the scenario prints.
    pub fn new(
        machine: &Machine,
        apic_ids: &[u32],
        log: Box<dyn FnMut(&str)>,
    ) -> Result<Self, BoardError> {
        let memory = Arc::new(machine.ram.map()?);
        let cpus = Arc::new(Cpus::new(apic_ids));
        let config = Config::scenario(machine.options.clone());
        let board = Board::new(&config, &memory, apic_ids, Arc::clone(&cpus) as _)?;
        let started = Instant::now();
        Ok(Self {
            board,
            memory,
            cpus,
            heap: machine.ram.heap(layout::HEAP_START),
            started,
            log,
        })
    }

    /// Handlers end with an EOI, and the IOAPIC waits for those of level-triggered interrupts. A
    /// pin that is still asserted fires again at once; that one's EOI waits for the next call, so
    /// that a line that is never released can't keep us here.
    fn finish_handlers(&self) {
        for vector in self.cpus.take_unfinished() {
            self.board.eoi(vector);
        }
    }
}

impl Platform for InProcess {
    fn read_u64(&self, gpa: u64) -> u64 {
        self.memory
            .load(GuestAddress(gpa), std::sync::atomic::Ordering::SeqCst)
            .unwrap_or(u64::MAX)
    }

    fn write_u64(&mut self, gpa: u64, value: u64) {
        // As on a real bus, a write where there is no RAM goes nowhere.
        let _ = self.memory.store(
            value,
            GuestAddress(gpa),
            std::sync::atomic::Ordering::SeqCst,
        );
    }

    fn read_u32(&self, gpa: u64) -> u32 {
        self.memory
            .load(GuestAddress(gpa), std::sync::atomic::Ordering::SeqCst)
            .unwrap_or(u32::MAX)
    }

    fn write_u32(&mut self, gpa: u64, value: u32) {
        let _ = self.memory.store(
            value,
            GuestAddress(gpa),
            std::sync::atomic::Ordering::SeqCst,
        );
    }

    fn read_u8(&self, gpa: u64) -> u8 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap_or(u8::MAX)
    }

    fn alloc(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let at = self.heap.start.checked_next_multiple_of(align)?;
        let end = at.checked_add(bytes)?;
        if end > self.heap.end {
            return None;
        }
        self.heap.start = end;
        Some(at)
    }

    fn mmio_read(&mut self, gpa: u64, width: Width) -> u64 {
        let mut data = [0; 8];
        self.board.mmio_read(gpa, &mut data[..width.bytes()]);
        self.finish_handlers();
        u64::from_le_bytes(data)
    }

    fn mmio_write(&mut self, gpa: u64, width: Width, value: u64) {
        self.board
            .mmio_write(gpa, &value.to_le_bytes()[..width.bytes()]);
        self.finish_handlers();
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let mut data = [0; 4];
        let bytes = width.bytes().min(4);
        self.board.port_read(port, &mut data[..bytes]);
        u32::from_le_bytes(data)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.board
            .port_write(port, &value.to_le_bytes()[..width.bytes().min(4)]);
    }

    fn rsdp(&self) -> u64 {
        layout::RSDP
    }

    fn apic_ids(&self) -> &[u32] {
        self.cpus.ids()
    }

    fn interrupts(&self, cpu: usize, vector: u8) -> u64 {
        self.finish_handlers();
        self.cpus.handled(cpu, vector)
    }

    fn heartbeat(&self, cpu: usize) -> u64 {
        self.cpus.heartbeat(cpu)
    }

    fn pause(&mut self) {
        self.finish_handlers();
        std::thread::sleep(PAUSE);
    }

    fn now_ns(&mut self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        (self.log)(&line.to_string());
    }
}

/// Runs the scenario of [`scenarios::ALL`] with this name on a fresh machine.
pub fn run(
    name: &str,
    machine: &Machine,
    apic_ids: &[u32],
    log: Box<dyn FnMut(&str)>,
) -> Result<Report, BoardError> {
    Ok(scenarios::run(
        name,
        &mut InProcess::new(machine, apic_ids, log)?,
    ))
}
