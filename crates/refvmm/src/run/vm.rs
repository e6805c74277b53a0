//! A board whose CPUs are KVM's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amdvi_guest::report::Report;
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::RemapSource;
use amdvi_vmm_glue::kvm::{FunctionIrqfds, IrqfdCounters, Irqfds, RouteTable};
use clap::ValueEnum;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use super::Saving;
use super::plan::Job;
use crate::board::{self, Board, Injector, VectorRoutes};
use crate::kvm::{self, Bus, Config, KvmError, Machine, Payload, RunResult, Running, Start};
use crate::layout;
use crate::snapshot::{Live, Waiting};

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

/// How the MSI-X vectors of devices reach the local APICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Interrupts {
    /// Each is remapped by the VMM and sent with KVM_SIGNAL_MSI: the cheapest for devices in the VMM
    #[default]
    Signal,
    /// KVM delivers what is written to irqfds, by routes that follow the guest's tables
    Irqfd,
}

impl Interrupts {
    /// The name, as `--interrupts` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Irqfd => "irqfd",
        }
    }
}

impl VectorRoutes for FunctionIrqfds<Arc<VmFd>> {
    fn trigger(
        &self,
        vector: u16,
        msi: Msi,
        before: &mut dyn FnMut(&Delivery),
    ) -> Option<Delivery> {
        Self::trigger(self, vector, msi, before)
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
    irqfds: Option<Arc<Irqfds<Arc<VmFd>>>>,
    problems: Problems,
}

impl VmInjector {
    /// The way of a board's devices into a VM.
    pub(crate) fn new(vm: &kvm::Vm, interrupts: Interrupts, problems: &Problems) -> Self {
        let irqfds = || Irqfds::new(Arc::clone(vm.fd()), Arc::clone(vm.routes()));
        Self {
            irqfds: (interrupts == Interrupts::Irqfd).then(irqfds),
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

    fn vectors(
        &self,
        iommu: u32,
        requester: DeviceId,
        source: Arc<dyn RemapSource + Send + Sync>,
        count: u16,
    ) -> Option<Arc<dyn VectorRoutes>> {
        let irqfds = self.irqfds.as_ref()?;
        Some(irqfds.function(iommu, requester, source, count))
    }

    fn tables_changed(
        &self,
        iommu: u32,
        touches: &dyn Fn(DeviceId) -> bool,
        pins: &mut dyn FnMut(),
    ) {
        match &self.irqfds {
            Some(irqfds) => irqfds.tables_changed(iommu, touches, pins),
            None => pins(),
        }
    }

    fn add_doorbell(&self, gpa: u64, bell: &EventFd) -> bool {
        let at = IoEventAddress::Mmio(gpa);
        self.vm.register_ioevent(bell, &at, NoDatamatch).is_ok()
    }

    fn remove_doorbell(&self, gpa: u64, bell: &EventFd) {
        let at = IoEventAddress::Mmio(gpa);
        if let Err(error) = self.vm.unregister_ioevent(bell, &at, NoDatamatch) {
            self.note(format!(
                "the ioeventfd at {gpa:#x} can't be removed: {error}"
            ));
        }
    }

    fn settle(&self) {
        if let Some(irqfds) = &self.irqfds {
            irqfds.settle();
        }
    }

    fn route_counters(&self) -> Option<IrqfdCounters> {
        let irqfds = self.irqfds.as_ref()?;
        if let Some(error) = irqfds.take_errors().last {
            self.note(error);
        }
        Some(irqfds.counters())
    }
}

/// What a scenario in a VM leaves.
pub(super) struct Ran {
    /// Its report.
    pub(super) result: Result<Report, Failure>,
    /// What it printed, and what went wrong on the host's side.
    pub(super) log: Vec<String>,
    /// What routes have cost, if there were some.
    pub(super) routes: Option<IrqfdCounters>,
}

/// Why there is no report.
pub(super) struct Failure {
    pub(super) why: String,
    /// The machine goes on elsewhere.
    pub(super) gone: Option<&'static str>,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, gone: None }
    }
}

impl From<KvmError> for Failure {
    fn from(error: KvmError) -> Self {
        let gone = match &error {
            KvmError::Gone(how) => Some(*how),
            _ => None,
        };
        Self {
            why: error.to_string(),
            gone,
        }
    }
}

/// Runs a scenario in a fresh VM, or in one that was saved.
pub(super) fn run(job: &Job, payload: &Payload, timeout: Duration) -> Ran {
    let problems = Problems::default();
    let (mut log, mut routes) = (Vec::new(), None);
    let result = build_and_run(job, payload, timeout, &problems, &mut log, &mut routes);
    log.append(&mut problems.take());
    Ran {
        result,
        log,
        routes,
    }
}

fn build_and_run(
    job: &Job,
    payload: &Payload,
    timeout: Duration,
    problems: &Problems,
    log: &mut Vec<String>,
    routes: &mut Option<IrqfdCounters>,
) -> Result<Report, Failure> {
    let config = Config {
        ram: job.machine.ram.clone(),
        apic_ids: job.apic_ids.clone(),
        timeout,
    };
    let machine = Machine::new(config)?;
    let injector = Arc::new(VmInjector::new(machine.vm(), job.interrupts, problems));
    // A clone maps the same memory.
    let memory = Arc::new(machine.memory().clone());
    let parts = board::Config::scenario(job.machine.options.clone());
    let board =
        Board::new(&parts, &memory, &job.apic_ids, injector.clone()).map_err(|e| e.to_string())?;
    let start = Start {
        rsdp: layout::RSDP,
        scenario: job.scenario.name,
    };
    let board = Arc::new(board);
    let run = match &job.saving {
        None => machine.run(board, payload, start).map_err(Failure::from),
        Some(saving) => run_saved(machine, board, payload, start, saving),
    };
    *routes = injector.route_counters();
    let run = run?;
    log.extend(run.log.lines().map(str::to_owned));
    Ok(run.report)
}

/// Runs a machine that may come from elsewhere, and go there.
fn run_saved(
    machine: Machine,
    board: Arc<Board>,
    payload: &Payload,
    start: Start,
    saving: &Saving,
) -> Result<RunResult, Failure> {
    let mut configuration = saving.configuration.clone();
    configuration.push_cpuid(&machine.vm().cpuid);
    let mut restored = None;
    if let Some(origin) = &saving.origin {
        machine.set_up_cpus(payload)?;
        let vm = machine.vm();
        let waiting = Waiting::open(origin).map_err(|error| error.to_string())?;
        let put_in = waiting.restore(vm.fd(), &vm.vcpus, vm.memory(), &board, &configuration);
        restored = Some(put_in.map_err(|error| error.to_string())?);
        board.thaw();
    } else {
        machine.load(payload, start)?;
    }
    let mut orders = saving.orders.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = Arc::clone(&board);
    let run = machine.run_loaded(board, payload, |running: Running<'_>| {
        if let Some(restored) = restored.take() {
            restored.running();
        }
        let live = Live {
            vm: running.vm,
            memory: running.memory,
            board: &devices,
            crew: running.crew,
            configuration: &configuration,
            end: running.end,
        };
        orders.obey(live, running.ran);
    })?;
    Ok(run)
}
