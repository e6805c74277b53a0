//! Running scenarios, each on a fresh machine.

pub mod host;
pub mod machine;
pub mod plan;
pub(crate) mod vm;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_guest::report::Report;
use amdvi_vmm_glue::kvm::IrqfdCounters;
use serde::Serialize;

use crate::inproc;
use crate::kvm::Payload;
use crate::snapshot::{Configuration, Orders, Origin};
use plan::Job;

pub use vm::Interrupts;

/// What runs the guest.
#[derive(Clone, Debug)]
pub enum Accel {
    /// The payload on KVM's CPUs.
    Kvm(Payload),
    /// The scenario's code in this process.
    InProcess,
}

impl Accel {
    /// The name, as `--accel` takes it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Kvm(_) => "kvm",
            Self::InProcess => "in-process",
        }
    }
}

/// Where a scenario's machine comes from and may go.
#[derive(Clone)]
pub struct Saving {
    /// What a saved machine must have, too.
    pub configuration: Configuration,
    /// It is not started anew.
    pub origin: Option<Origin>,
    /// What is wanted of it while it runs.
    pub orders: Arc<Mutex<Orders>>,
}

impl std::fmt::Debug for Saving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// What became of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub name: &'static str,
    /// Every check held.
    pub passed: bool,
    /// Interrupts that arrived where they should.
    pub delivered: u64,
    /// Requests that were blocked, as they should.
    pub blocked: u64,
    /// Event log entries read back.
    pub events: u64,
    /// Time from request to handler, on average; 0 when not measured.
    pub ns_per_interrupt: u64,
    /// What was checked, or why it failed.
    pub detail: String,
    /// What ran it.
    pub accel: &'static str,
    /// How vectors reached the CPUs, if a VM ran it.
    pub interrupts: Option<Interrupts>,
    /// What routes of vectors have cost, if there were some.
    pub routes: Option<IrqfdCounters>,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// The device it ran with.
    pub device: String,
    /// The host that was described to it.
    pub host_caps: String,
    /// Where its RAM was.
    pub ram: String,
    /// The machine left this process before the scenario ended: `saved` or `moved`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<&'static str>,
    /// That device and host were the scenario's own, although others were asked for.
    pub on_its_own_machine: bool,
    /// What the guest printed.
    #[serde(skip)]
    pub log: Vec<String>,
}

/// Runs one scenario. Never fails: what goes wrong is the outcome's detail.
pub fn run(job: &Job, accel: &Accel, timeout: Duration) -> Outcome {
    let started = Instant::now();
    let vm::Ran {
        result,
        log,
        routes,
    } = match accel {
        Accel::InProcess => in_process(job, timeout),
        Accel::Kvm(payload) => vm::run(job, payload, timeout),
    };
    let mut outcome = Outcome {
        name: job.scenario.name,
        passed: false,
        delivered: 0,
        blocked: 0,
        events: 0,
        ns_per_interrupt: 0,
        detail: String::new(),
        accel: accel.name(),
        interrupts: matches!(accel, Accel::Kvm(_)).then_some(job.interrupts),
        routes,
        ms: started.elapsed().as_millis() as u64,
        device: job.machine.requested.text.clone(),
        host_caps: job.machine.host.spec.to_string(),
        ram: job.machine.ram.to_string(),
        gone: None,
        on_its_own_machine: job.on_its_own,
        log,
    };
    match result {
        Ok(report) if report.magic == Report::MAGIC => {
            outcome.passed = report.passed == 1;
            outcome.delivered = report.delivered;
            outcome.blocked = report.blocked;
            outcome.events = report.events;
            outcome.ns_per_interrupt = report.total_ns.checked_div(report.delivered).unwrap_or(0);
            outcome.detail = report.detail().to_owned();
        }
        Ok(_) => outcome.detail = "the guest ended without a complete report".to_owned(),
        Err(vm::Failure { why, gone }) => (outcome.detail, outcome.gone) = (why, gone),
    }
    outcome
}

/// A thread of its own, so that a scenario that never ends costs the run only its time.
fn in_process(job: &Job, timeout: Duration) -> vm::Ran {
    let (lines, log) = mpsc::channel();
    let (done, result) = mpsc::channel();
    let (name, machine, apic_ids) = (job.scenario.name, job.machine.clone(), job.apic_ids.clone());
    let body = move || {
        let log = Box::new(move |line: &str| drop(lines.send(line.to_owned())));
        let report = inproc::run(name, &machine, &apic_ids, log);
        drop(done.send(report.map_err(|error| error.to_string())));
    };
    let result = match std::thread::Builder::new()
        .name(job.scenario.name.into())
        .spawn(body)
    {
        Err(error) => Err(format!("can't start a thread: {error}")),
        Ok(_) => match result.recv_timeout(timeout) {
            Ok(report) => report,
            Err(RecvTimeoutError::Timeout) => Err(timed_out(timeout)),
            Err(RecvTimeoutError::Disconnected) => Err("the scenario's code panicked".to_owned()),
        },
    };
    vm::Ran {
        result: result.map_err(vm::Failure::from),
        log: log.try_iter().collect(),
        routes: None,
    }
}

fn timed_out(timeout: Duration) -> String {
    format!(
        "no result after {} s (--timeout sets that)",
        timeout.as_secs()
    )
}
