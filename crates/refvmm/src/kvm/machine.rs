//! Building a machine, and running it to its end.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_guest::boot::{BOOT_INFO_GPA, BootInfo, MAX_CPUS, NAME_BYTES, REPORT_GPA, ScenarioName};
use amdvi_guest::report::Report;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::bus::Bus;
use super::console::PayloadBus;
use super::cpu;
use super::end::{End, Ending};
use super::error::KvmError;
use super::inject::Injector;
use super::payload::Payload;
use super::vcpu::Crew;
use super::vm::Vm;
use crate::ram::{Memory, Ram};

/// The payload's image starts here; all that the VMM places for itself is below.
const LOW_MEMORY: u64 = 1 << 20;

// The machine's own pages don't meet.
const _: () = assert!(BOOT_INFO_GPA + size_of::<BootInfo>() as u64 <= REPORT_GPA);
const _: () = assert!(REPORT_GPA + size_of::<Report>() as u64 <= cpu::PAGE_TABLES);
const _: () = assert!(cpu::PAGE_TABLES_END <= LOW_MEMORY);

/// The machine that is wanted.
#[derive(Clone, Debug)]
pub struct Config {
    /// RAM; at least 2 MiB, and where the CPUs' addresses reach.
    pub ram: Ram,
    /// x2APIC IDs of the CPUs, all different; the first is the boot CPU's.
    pub apic_ids: Vec<u32>,
    /// How long the payload may run.
    pub timeout: Duration,
}

impl Default for Config {
    /// Two CPUs, 64 MiB and a minute.
    fn default() -> Self {
        Self {
            ram: Ram::default(),
            apic_ids: vec![0, 1],
            timeout: Duration::from_secs(60),
        }
    }
}

/// What the payload is started with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// GPA of the ACPI RSDP; 0 when there is none.
    pub rsdp: u64,
    /// Name of the scenario, at most [`NAME_BYTES`] long.
    pub scenario: &'static str,
}

/// How often a machine that runs is looked after.
const CARE: Duration = Duration::from_millis(5);

/// A machine that runs, for who looks after it.
pub(crate) struct Running<'a> {
    pub(crate) vm: &'a VmFd,
    pub(crate) memory: &'a Memory,
    pub(crate) crew: &'a Crew,
    pub(crate) end: &'a End,
    /// For how long.
    pub(crate) ran: Duration,
}

/// How a run ended, when it ended well.
#[derive(Clone)]
pub struct RunResult {
    /// What the payload reports.
    pub report: Report,
    /// What it printed.
    pub log: String,
    /// From the first instruction to the write to the exit port.
    pub elapsed: Duration,
}

/// A machine that has not run yet: RAM for firmware tables, and interrupts for devices.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    vm: Vm,
}

impl Machine {
    /// Builds a machine.
    ///
    /// # Errors
    ///
    /// KVM is not usable or lacks something, or `config` is not possible; the error says which.
    pub fn new(config: Config) -> Result<Self, KvmError> {
        let cpus = config.apic_ids.len();
        if cpus > MAX_CPUS {
            return Err(KvmError::Config(format!(
                "{cpus} CPUs; the payload knows up to {MAX_CPUS}"
            )));
        }
        let vm = Vm::new(&config.ram, &config.apic_ids)?;
        Ok(Self { config, vm })
    }

    /// Guest RAM, zero but for what the caller writes. Below 1 MiB, pages 7000h–10FFFh are
    /// the machine's own; from 1 MiB on it is the payload's.
    pub fn memory(&self) -> &Memory {
        self.vm.memory()
    }

    /// The way for devices to send interrupts.
    pub fn injector(&self) -> Injector {
        self.vm.injector()
    }

    /// The VM, for what devices do with it themselves (routes, irqfds).
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Runs the payload on all CPUs until it ends or the time is up. Every vCPU thread has ended
    /// when this returns, unless a device of the VMM holds it.
    ///
    /// # Errors
    ///
    /// The payload did not end, ended with a code, stopped a CPU or left no report; the error
    /// shows the end of its log.
    pub fn run<B: Bus + 'static>(
        self,
        bus: Arc<B>,
        payload: &Payload,
        start: Start,
    ) -> Result<RunResult, KvmError> {
        self.load(payload, start)?;
        self.run_loaded(bus, payload, |_| ())
    }

    /// Loads the payload and puts the CPUs where it starts.
    ///
    /// # Errors
    ///
    /// The payload does not fit, or KVM refuses something.
    pub(crate) fn load(&self, payload: &Payload, start: Start) -> Result<(), KvmError> {
        let ram = &self.config.ram;
        let memory = self.vm.memory();
        payload.load(memory, LOW_MEMORY..ram.low_end())?;
        cpu::write_page_tables(memory, ram.high_heap())?;
        self.set_up_cpus(payload)?;
        let heap = ram.heap(payload.end().next_multiple_of(LOW_MEMORY));
        self.write_boot_info(start, heap)
    }

    /// Makes the CPUs what they are for a payload, without anything in RAM.
    pub(crate) fn set_up_cpus(&self, payload: &Payload) -> Result<(), KvmError> {
        for ((index, vcpu), apic_id) in self.vm.vcpus.iter().enumerate().zip(&self.config.apic_ids)
        {
            cpu::set_up(vcpu, &self.vm.cpuid, index, *apic_id, payload.entry())?;
        }
        Ok(())
    }

    /// As [`run`](Self::run), of a machine whose RAM and CPUs are ready. `care` is called again and
    /// again meanwhile.
    pub(crate) fn run_loaded<B: Bus + 'static>(
        self,
        bus: Arc<B>,
        payload: &Payload,
        mut care: impl FnMut(Running<'_>),
    ) -> Result<RunResult, KvmError> {
        let memory = self.vm.memory().clone();
        let vm = Arc::clone(self.vm.fd());
        let began = Instant::now();
        let end = Arc::new(End::default());
        let bus = Arc::new(PayloadBus::new(bus, payload.clone(), Arc::clone(&end)));
        let crew = Crew::start(
            self.vm.vcpus,
            Arc::clone(&bus),
            memory.clone(),
            Arc::clone(&end),
        )?;
        let outcome = loop {
            care(Running {
                vm: &vm,
                memory: &memory,
                crew: &crew,
                end: &end,
                ran: began.elapsed(),
            });
            let left = self.config.timeout.saturating_sub(began.elapsed());
            let ending = end.wait(Some(left.min(CARE)));
            if ending.is_some() || left.is_zero() {
                break ending;
            }
        };
        let elapsed = began.elapsed();
        let places = crew.join();
        let log = bus.take_log();
        match outcome {
            Some(Ending::Exit(0)) => {
                let report = read_report(&memory)?;
                if report.magic != Report::MAGIC {
                    return Err(KvmError::NoReport {
                        magic: report.magic,
                        log,
                    });
                }
                Ok(RunResult {
                    report,
                    log,
                    elapsed,
                })
            }
            Some(Ending::Exit(code)) => Err(KvmError::Exit { code, log }),
            Some(Ending::Stopped { cpu, why }) => Err(KvmError::Stopped { cpu, why, log }),
            Some(Ending::TripleFault { cpu, place }) => Err(KvmError::Stopped {
                cpu,
                why: format!("triple fault at {place}"),
                log,
            }),
            Some(Ending::Saved) => Err(KvmError::Gone("saved")),
            Some(Ending::Moved) => Err(KvmError::Gone("moved")),
            Some(Ending::Quit) => Err(KvmError::Gone("ended")),
            Some(ending @ (Ending::PowerOff | Ending::Reset)) => Err(KvmError::Config(format!(
                "the payload ended by {ending:?}, which is no way for a payload; {}",
                super::error::tail(&log)
            ))),
            None => Err(KvmError::Timeout {
                limit: self.config.timeout,
                cpus: places.join("; "),
                log,
            }),
        }
    }

    fn write_boot_info(&self, start: Start, heap: Range<u64>) -> Result<(), KvmError> {
        let khz = self.vm.vcpus[0]
            .get_tsc_khz()
            .map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
        if khz < 1000 {
            return Err(KvmError::Config(format!(
                "KVM_GET_TSC_KHZ says {khz} kHz, so the payload would have no clock"
            )));
        }
        let scenario = ScenarioName::new(start.scenario).ok_or_else(|| {
            KvmError::Config(format!(
                "{:?} can't be the name of a scenario: that has 1 to {NAME_BYTES} bytes, none of them 0",
                start.scenario
            ))
        })?;
        let mut apic_ids = [0; MAX_CPUS];
        apic_ids[..self.config.apic_ids.len()].copy_from_slice(&self.config.apic_ids);
        let boot = BootInfo {
            magic: BootInfo::MAGIC,
            rsdp: start.rsdp,
            heap_start: heap.start,
            heap_end: heap.end,
            scenario,
            tsc_per_us: u64::from(khz / 1000),
            cpus: self.config.apic_ids.len() as u64,
            apic_ids,
        };
        self.vm
            .memory()
            .write_slice(boot.as_bytes(), GuestAddress(BOOT_INFO_GPA))
            .map_err(|error| KvmError::Memory(format!("boot information: {error}")))
    }
}

fn read_report(memory: &Memory) -> Result<Report, KvmError> {
    let mut bytes = [0; size_of::<Report>()];
    memory
        .read_slice(&mut bytes, GuestAddress(REPORT_GPA))
        .map_err(|error| KvmError::Memory(format!("report: {error}")))?;
    Report::read_from_bytes(&bytes).map_err(|error| KvmError::Memory(format!("report: {error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cpus_than_the_payload_knows_are_refused() {
        let config = Config {
            apic_ids: (0..17).collect(),
            ..Config::default()
        };
        let error = Machine::new(config).unwrap_err().to_string();
        assert!(error.contains("17 CPUs"), "{error}");
    }
}
