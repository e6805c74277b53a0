//! A board whose CPUs are KVM's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amdvi_guest::report::Report;
use amdvi_irt::Delivery;
use amdvi_vmm_glue::kvm::RouteTable;
use kvm_ioctls::VmFd;

use super::plan::Job;
use crate::board::{self, Board, Injector};
use crate::kvm::{self, Bus, Config, Machine, Payload, Start};
use crate::layout;

impl Bus for Board {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.port_read(port, data);
    }

    fn port_out(&self, _: usize, port: u16, data: &[u8]) {
        self.port_write(port, data);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        Self::mmio_read(self, gpa, data);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        Self::mmio_write(self, gpa, data);
    }

    fn ioapic_eoi(&self, vector: u8) {
        self.eoi(vector);
    }
}

/// What a guest can make go wrong on the host's side again and again is kept this often.
const MOST_PROBLEMS: usize = 8;

/// What went wrong on the host's side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems(Arc<Mutex<Vec<String>>>);

impl Problems {
    fn note(&self, problem: String) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < MOST_PROBLEMS && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// Takes what was noted.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Interrupts and EOI routes of the VM.
pub(crate) struct VmInjector {
    cpus: kvm::Injector,
    vm: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    problems: Problems,
}

impl VmInjector {
    /// The way of a board's devices into a VM.
    pub(crate) fn new(vm: &kvm::Vm, problems: &Problems) -> Self {
        Self {
            cpus: vm.injector(),
            vm: Arc::clone(vm.fd()),
            routes: Arc::clone(vm.routes()),
            problems: problems.clone(),
        }
    }

    fn note(&self, problem: String) {
        self.problems.note(problem);
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, RouteTable> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Injector for VmInjector {
    fn inject(&self, delivery: &Delivery) {
        match self.cpus.deliver(delivery) {
            Ok(kvm::Injected::Refused(why)) => self.note(format!("not delivered: {why}")),
            Ok(_) => {}
            Err(error) => self.note(error.to_string()),
        }
    }

    fn route_pin(&self, pin: u8, delivery: Option<&Delivery>) {
        let set = self.routes().set(u32::from(pin), delivery);
        if let Err(error) = set {
            self.note(format!("IOAPIC pin {pin}: {error}"));
        }
    }

    fn commit_routes(&self) {
        let committed = self.routes().commit(&*self.vm);
        if let Err(error) = committed {
            self.note(format!("IOAPIC routes: {error}"));
        }
    }
}

/// Runs a scenario in a fresh VM: its report and what it printed.
pub(super) fn run(
    job: &Job,
    payload: &Payload,
    timeout: Duration,
) -> (Result<Report, String>, Vec<String>) {
    let problems = Problems::default();
    let mut log = Vec::new();
    let result = build_and_run(job, payload, timeout, &problems, &mut log);
    log.append(&mut problems.take());
    (result, log)
}

fn build_and_run(
    job: &Job,
    payload: &Payload,
    timeout: Duration,
    problems: &Problems,
    log: &mut Vec<String>,
) -> Result<Report, String> {
    let config = Config {
        ram: job.machine.ram.clone(),
        apic_ids: job.apic_ids.clone(),
        timeout,
    };
    let machine = Machine::new(config).map_err(|error| error.to_string())?;
    let injector = Arc::new(VmInjector::new(machine.vm(), problems));
    // A clone maps the same memory.
    let memory = Arc::new(machine.memory().clone());
    let parts = board::Config::scenario(job.machine.options.clone());
    let board =
        Board::new(&parts, &memory, &job.apic_ids, injector).map_err(|error| error.to_string())?;
    let start = Start {
        rsdp: layout::RSDP,
        scenario: job.index as u64,
    };
    let run = machine
        .run(Arc::new(board), payload, start)
        .map_err(|error| error.to_string())?;
    log.extend(run.log.lines().map(str::to_owned));
    Ok(run.report)
}
