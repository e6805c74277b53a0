//! Building a machine, and running it to its end.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_guest::boot::{BOOT_INFO_GPA, BootInfo, MAX_CPUS, REPORT_GPA};
use amdvi_guest::report::Report;
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
    /// Index of the scenario.
    pub scenario: u64,
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
        let ram = &self.config.ram;
        let memory = self.vm.memory().clone();
        payload.load(&memory, LOW_MEMORY..ram.low_end())?;
        cpu::write_page_tables(&memory, ram.high_heap())?;
        for ((index, vcpu), apic_id) in self.vm.vcpus.iter().enumerate().zip(&self.config.apic_ids)
        {
            cpu::set_up(vcpu, &self.vm.cpuid, index, *apic_id, payload.entry())?;
        }
        let heap = ram.heap(payload.end().next_multiple_of(LOW_MEMORY));
        self.write_boot_info(start, heap)?;

        let began = Instant::now();
        let end = Arc::new(End::default());
        let bus = Arc::new(PayloadBus::new(bus, payload.clone(), Arc::clone(&end)));
        let crew = Crew::start(
            self.vm.vcpus,
            Arc::clone(&bus),
            memory.clone(),
            Arc::clone(&end),
        )?;
        let outcome = end.wait(Some(self.config.timeout));
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
            Some(ending @ (Ending::PowerOff | Ending::Reset | Ending::Quit)) => {
                Err(KvmError::Config(format!(
                    "the payload ended by {ending:?}, which is no way for a payload; {}",
                    super::error::tail(&log)
                )))
            }
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
        let mut apic_ids = [0; MAX_CPUS];
        apic_ids[..self.config.apic_ids.len()].copy_from_slice(&self.config.apic_ids);
        let boot = BootInfo {
            magic: BootInfo::MAGIC,
            rsdp: start.rsdp,
            heap_start: heap.start,
            heap_end: heap.end,
            scenario: start.scenario,
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
