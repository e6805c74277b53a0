//! Building a machine, and running it to its end.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amdvi_guest::boot::{BOOT_INFO_GPA, BootInfo, MAX_CPUS, REPORT_GPA};
use amdvi_guest::report::Report;
use amdvi_vmm_glue::kvm::{MsiFormat, RouteTable};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zerocopy::{FromBytes, IntoBytes};

use super::bus::Bus;
use super::cpu;
use super::error::KvmError;
use super::inject::Injector;
use super::payload::Payload;
use super::vcpu::{self, Ending, Shared};
use crate::ram::Ram;

/// Pins of the userspace IOAPIC: GSIs 0–23, whose level-triggered routes make KVM tell the VMM of
/// EOIs.
pub const IOAPIC_PINS: u32 = 24;

/// The payload's image starts here; all that the VMM places for itself is below.
const LOW_MEMORY: u64 = 1 << 20;
/// Pages that Intel's virtualization needs in the guest's physical address space.
const TSS_ADDRESS: usize = 0xfffb_d000;

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
    vcpus: Vec<VcpuFd>,
    cpuid: CpuId,
    vm: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    memory: GuestMemoryMmap,
}

impl Machine {
    /// Builds a machine.
    ///
    /// # Errors
    ///
    /// KVM is not usable or lacks something, or `config` is not possible; the error says which.
    pub fn new(config: Config) -> Result<Self, KvmError> {
        let kvm = open()?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
        check(&config, kvm.get_max_vcpu_id(), cpu::phys_bits(&cpuid))?;
        let vm = create_vm(&kvm)?;
        let memory = config
            .ram
            .map()
            .map_err(|error| KvmError::Memory(format!("{}: {error}", config.ram)))?;
        map_ram(&vm, &memory)?;
        // KVM makes the vCPU's number its x2APIC ID.
        let vcpus = config
            .apic_ids
            .iter()
            .map(|id| vm.create_vcpu(u64::from(*id)))
            .collect::<Result<_, _>>()
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        Ok(Self {
            config,
            vcpus,
            cpuid,
            vm: Arc::new(vm),
            routes: Arc::new(Mutex::new(RouteTable::new(
                MsiFormat::X2ApicApi,
                IOAPIC_PINS,
            ))),
            memory,
        })
    }

    /// Guest RAM, zero but for what the caller writes. Below 1 MiB, pages 7000h–10FFFh are
    /// the machine's own; from 1 MiB on it is the payload's.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The way for devices to send interrupts.
    pub fn injector(&self) -> Injector {
        Injector::new(Arc::clone(&self.vm))
    }

    /// The VM, for what devices do with it themselves (routes, irqfds).
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The VM's one table of GSI routes; its first [`IOAPIC_PINS`] belong to the IOAPIC.
    pub fn routes(&self) -> &Arc<Mutex<RouteTable>> {
        &self.routes
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
        payload.load(&self.memory, LOW_MEMORY..ram.low_end())?;
        cpu::write_page_tables(&self.memory, ram.high_heap())?;
        for ((index, vcpu), apic_id) in self.vcpus.iter().enumerate().zip(&self.config.apic_ids) {
            cpu::set_up(vcpu, &self.cpuid, index, *apic_id, payload.entry())?;
        }
        let heap = ram.heap(payload.end().next_multiple_of(LOW_MEMORY));
        self.write_boot_info(start, heap)?;

        let began = Instant::now();
        let shared = Arc::new(Shared::new(bus, self.memory.clone(), payload.clone()));
        let threads = spawn(self.vcpus, &shared)?;
        let outcome = shared.wait(self.config.timeout);
        let elapsed = began.elapsed();
        let places = join(threads, &shared);
        let log = shared.take_log();
        match outcome {
            Some(Ending::Exit(0)) => {
                let report = read_report(&self.memory)?;
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
            None => Err(KvmError::Timeout {
                limit: self.config.timeout,
                cpus: places.join("; "),
                log,
            }),
        }
    }

    fn write_boot_info(&self, start: Start, heap: Range<u64>) -> Result<(), KvmError> {
        let khz = self.vcpus[0]
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
        self.memory
            .write_slice(boot.as_bytes(), GuestAddress(BOOT_INFO_GPA))
            .map_err(|error| KvmError::Memory(format!("boot information: {error}")))
    }
}

/// Opens KVM and checks that it has all that a machine needs.
pub(super) fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| KvmError::Open {
        source: error.into(),
    })?;
    for (cap, capability, purpose) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest RAM"),
        (
            Cap::SplitIrqchip,
            "KVM_CAP_SPLIT_IRQCHIP",
            "an IOAPIC behind the IOMMU (Linux 4.4)",
        ),
        (
            Cap::X2ApicApi,
            "KVM_CAP_X2APIC_API",
            "APIC IDs above 255 (Linux 4.7)",
        ),
        (
            Cap::SignalMsi,
            "KVM_CAP_SIGNAL_MSI",
            "interrupts of devices",
        ),
        (
            Cap::MpState,
            "KVM_CAP_MP_STATE",
            "starting all CPUs at once",
        ),
        (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ", "the payload's clock"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability {
                capability,
                purpose,
            });
        }
    }
    Ok(kvm)
}

fn check(config: &Config, vcpu_ids: usize, phys_bits: u8) -> Result<(), KvmError> {
    let ids = &config.apic_ids;
    let wrong = if ids.is_empty() || ids.len() > MAX_CPUS {
        format!("{} CPUs; a machine has 1 to {MAX_CPUS}", ids.len())
    } else if let Some(id) = ids.iter().find(|id| **id as usize >= vcpu_ids) {
        format!(
            "APIC ID {id}: this host's KVM accepts 0 to {}",
            vcpu_ids - 1
        )
    } else if let Some(id) = ids
        .iter()
        .find(|id| ids.iter().filter(|i| i == id).count() > 1)
    {
        format!("APIC ID {id} is given to two CPUs")
    } else if config.ram.low_end() < 2 * LOW_MEMORY {
        format!("{} of RAM; the least is 2 MiB", config.ram)
    } else if phys_bits < 64 && config.ram.end() > 1 << phys_bits {
        format!(
            "RAM ends at {:#x}, but a guest physical address of this host's KVM has {phys_bits} \
             bits",
            config.ram.end()
        )
    } else {
        return Ok(());
    };
    Err(KvmError::Config(wrong))
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
    }
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&split)
        .map_err(KvmError::call("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
    let mut x2apic = kvm_enable_cap {
        cap: KVM_CAP_X2APIC_API,
        ..Default::default()
    };
    // Without the second flag a message to APIC ID FFh would go to everybody.
    x2apic.args[0] =
        u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    vm.enable_cap(&x2apic)
        .map_err(KvmError::call("KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)"))?;
    Ok(vm)
}

/// One memory slot for each region.
fn map_ram(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the pointer starts a mapping of the region's length that `memory` owns. A guest
        // reaches it only while a vCPU runs, and who has a vCPU has the memory: `Machine` has both,
        // and each vCPU thread has a `Shared`, which holds it. Rust code accesses it only through
        // vm-memory, which expects others to change it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn read_report(memory: &GuestMemoryMmap) -> Result<Report, KvmError> {
    let mut bytes = [0; size_of::<Report>()];
    memory
        .read_slice(&mut bytes, GuestAddress(REPORT_GPA))
        .map_err(|error| KvmError::Memory(format!("report: {error}")))?;
    Report::read_from_bytes(&bytes).map_err(|error| KvmError::Memory(format!("report: {error:?}")))
}

/// Starts a thread for each vCPU. When that fails half-way, those that run are ended first.
fn spawn<B: Bus + 'static>(
    vcpus: Vec<VcpuFd>,
    shared: &Arc<Shared<B>>,
) -> Result<Vec<JoinHandle<String>>, KvmError> {
    vcpu::install_kick_handler()?;
    let mut threads = Vec::new();
    for (index, fd) in vcpus.into_iter().enumerate() {
        let for_thread = Arc::clone(shared);
        let spawned = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || vcpu::run(index, fd, &for_thread));
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                join(threads, shared);
                return Err(KvmError::Call {
                    call: "starting a vCPU thread",
                    source,
                });
            }
        }
    }
    Ok(threads)
}

/// How long a vCPU thread may take to leave a device.
const LEAVE: Duration = Duration::from_secs(5);

/// Ends all vCPU threads; returns where each CPU was. A thread that a device of the VMM holds for
/// ever is left behind: it keeps what it uses.
fn join<B: Bus>(threads: Vec<JoinHandle<String>>, shared: &Shared<B>) -> Vec<String> {
    shared.stop.store(true, Ordering::SeqCst);
    let end = Instant::now() + LEAVE;
    // A signal that arrives just before the thread enters the guest is lost on it, so each thread
    // is kicked until it has ended.
    while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < end {
        for thread in threads.iter().filter(|thread| !thread.is_finished()) {
            vcpu::kick(thread);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let place = |(index, thread): (usize, JoinHandle<String>)| {
        if !thread.is_finished() {
            return format!("CPU {index} is stuck in a device of the VMM");
        }
        thread
            .join()
            .unwrap_or_else(|_| format!("CPU {index}'s thread panicked"))
    };
    threads.into_iter().enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_machine_is_refused_by_name() {
        for (ram, ids, expected) in [
            (64 << 20, vec![], "0 CPUs"),
            (64 << 20, (0..17).collect(), "17 CPUs"),
            (64 << 20, vec![0, 5000], "APIC ID 5000"),
            (64 << 20, vec![0, 300, 300], "APIC ID 300 is given to two"),
            (
                1 << 20,
                vec![0],
                "1 MiB below 4 GiB of RAM; the least is 2 MiB",
            ),
            (80 << 30, vec![0], "has 36 bits"),
        ] {
            let config = Config {
                ram: Ram::emulated(ram).unwrap(),
                apic_ids: ids,
                ..Config::default()
            };
            let error = check(&config, 4096, 36).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(&Config::default(), 4096, 36).unwrap();
    }
}
