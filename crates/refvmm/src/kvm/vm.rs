//! A virtual machine: RAM, vCPUs, and the interrupt controller split between KVM and the VMM.

use std::sync::{Arc, Mutex};

use amdvi_vmm_glue::kvm::{MsiFormat, RouteTable};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::cpu;
use super::error::KvmError;
use super::inject::Injector;
use crate::ram::{Memory, Ram};

/// Pins of the userspace IOAPIC: GSIs 0–23, whose level-triggered routes make KVM tell the VMM of
/// EOIs.
pub const IOAPIC_PINS: u32 = 24;

/// The least RAM that a machine can have.
const LEAST_RAM: u64 = 2 << 20;
/// Pages that Intel's virtualization needs in the guest's physical address space.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A machine without devices, whose CPUs have not been started.
#[derive(Debug)]
pub struct Vm {
    pub(crate) vcpus: Vec<VcpuFd>,
    /// What KVM can show a guest.
    pub(crate) cpuid: CpuId,
    fd: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    memory: Memory,
}

impl Vm {
    /// Builds a machine with CPUs of these x2APIC IDs, all different; the first is the boot CPU's.
    ///
    /// # Errors
    ///
    /// KVM is not usable or lacks something, or the machine is not possible; the error says which.
    pub fn new(ram: &Ram, apic_ids: &[u32]) -> Result<Self, KvmError> {
        let kvm = open()?;
        let cpuid = supported_cpuid(&kvm)?;
        check(
            ram,
            apic_ids,
            kvm.get_max_vcpus(),
            kvm.get_max_vcpu_id(),
            cpu::phys_bits(&cpuid),
        )?;
        let fd = create_vm(&kvm)?;
        let memory = ram
            .map()
            .map_err(|error| KvmError::Memory(format!("{ram}: {error}")))?;
        map_ram(&fd, &memory, 0)?;
        // KVM makes the vCPU's number its x2APIC ID.
        let vcpus: Vec<_> = apic_ids
            .iter()
            .map(|id| fd.create_vcpu(u64::from(*id)))
            .collect::<Result<_, _>>()
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        vcpus.iter().for_each(use_host_tsc);
        Ok(Self {
            vcpus,
            cpuid,
            fd: Arc::new(fd),
            routes: Arc::new(Mutex::new(RouteTable::new(
                MsiFormat::X2ApicApi,
                IOAPIC_PINS,
            ))),
            memory,
        })
    }

    /// Bits of a guest physical address on this host's KVM.
    ///
    /// # Errors
    ///
    /// KVM is not usable or lacks something.
    pub fn phys_bits() -> Result<u8, KvmError> {
        Ok(cpu::phys_bits(&supported_cpuid(&open()?)?))
    }

    /// Guest RAM, zero but for what the caller writes.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The way for devices to send interrupts.
    pub fn injector(&self) -> Injector {
        Injector::new(Arc::clone(&self.fd))
    }

    /// The VM, for what devices do with it themselves (routes, irqfds).
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The VM's one table of GSI routes; its first [`IOAPIC_PINS`] belong to the IOAPIC.
    pub fn routes(&self) -> &Arc<Mutex<RouteTable>> {
        &self.routes
    }
}

/// Opens KVM and checks that it has all that a machine needs.
pub(crate) fn open() -> Result<Kvm, KvmError> {
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

/// What KVM can show a guest.
pub(crate) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))
}

fn check(
    ram: &Ram,
    ids: &[u32],
    vcpus: usize,
    vcpu_ids: usize,
    phys_bits: u8,
) -> Result<(), KvmError> {
    let wrong = if ids.is_empty() || ids.len() > vcpus {
        format!("{} CPUs; this host's KVM has 1 to {vcpus}", ids.len())
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
    } else if ram.low_end() < LEAST_RAM {
        format!("{ram} of RAM; the least is 2 MiB")
    } else if phys_bits < 64 && ram.end() > 1 << phys_bits {
        format!(
            "RAM ends at {:#x}, but a guest physical address of this host's KVM has {phys_bits} \
             bits",
            ram.end()
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

/// Gives a CPU the host's TSC frequency as the host knows it now, which is what 0 means.
///
/// A KVM that started before the host had measured its TSC exactly gives new CPUs the first, rough
/// value. Where the hardware can't scale, Linux then leaves the CPU's TSC without any scale: the
/// guest's TSC runs, but KVM takes it for 0, and deadlines of the local APIC's timer are hours
/// away. What KVM refuses stays as it was.
fn use_host_tsc(vcpu: &VcpuFd) {
    let _ = vcpu.set_tsc_khz(0);
}

/// One memory slot for each region, in their order. Called again, it changes the slots' `flags`.
pub(crate) fn map_ram(vm: &VmFd, memory: &Memory, flags: u32) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the pointer starts a mapping of the region's length that `memory` owns. A guest
        // reaches it only while a vCPU runs, and who has a vCPU has the memory: `Vm` has both, and
        // the vCPU threads share a clone, which holds the mapping. Rust code accesses it only
        // through vm-memory, which expects others to change it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_machine_is_refused_by_name() {
        for (ram, ids, expected) in [
            (64 << 20, vec![], "0 CPUs"),
            (64 << 20, (0..1025).collect(), "1025 CPUs"),
            (64 << 20, vec![0, 5000], "APIC ID 5000"),
            (64 << 20, vec![0, 300, 300], "APIC ID 300 is given to two"),
            (
                1 << 20,
                vec![0],
                "1 MiB below 4 GiB of RAM; the least is 2 MiB",
            ),
            (80 << 30, vec![0], "has 36 bits"),
        ] {
            let ram = Ram::emulated(ram).unwrap();
            let error = check(&ram, &ids, 1024, 4096, 36).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(&Ram::default(), &[0, 1], 1024, 4096, 36).unwrap();
    }
}
