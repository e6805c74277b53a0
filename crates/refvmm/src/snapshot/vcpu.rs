//! The state of a CPU, and of the clocks.
//!
//! KVM derives some state from other state as it is read and written, so there is an order. Read:
//! the run state first, since asking for it makes the CPU take an INIT or SIPI that waits; events
//! last, since every other question may move something there. Written: what decides the meaning of
//! others before them, that is the APIC base (in the special registers) before the APIC, the APIC's
//! timer mode before its deadline, the TSC before what is compared with it; events last.
//!
//! TSCs and clock are one thing to a guest that has both, and it looks for small differences: they are
//! read together when all else has been, and set together likewise.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::kvm::KvmError;

/// MSRs of one call.
const CHUNK: usize = 64;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// In the order in which they are to be set.
pub(crate) const TIME: [u32; 2] = [TSC, TSC_DEADLINE];
/// EFER.SVME: the guest is a hypervisor itself.
const SVME: u64 = 1 << 12;
/// MTRRs, which KVM has and does not list: variable ranges, fixed ranges, the default type.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];
/// TSC frequencies that differ by no more are one, where KVM can't scale. A host measures its own roughly
/// when it boots and exactly a while later; Linux takes up to 1 % for a better measurement. KVM would
/// make up for a guest's that is higher by going forward at each entry, at the cost of a slow guest.
const TSC_TOLERANCE_PERCENT: u64 = 1;
/// Registers of a local APIC: interrupts in service and requested, 32 bits in each 16 bytes.
const ISR: usize = 0x100;
const IRR: usize = 0x200;

/// A CPU. The kernel's structures, which don't change, stand as bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Option<kvm_xsave>,
    xcrs: Option<kvm_xcrs>,
    debugregs: Option<kvm_debugregs>,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    tsc_khz: u32,
    nested: Option<Box<KvmNestedStateBuffer>>,
    events: kvm_vcpu_events,
}

/// What this host's KVM has of a CPU's state.
pub(crate) struct Model {
    msrs: Vec<u32>,
    xsave: bool,
    xcrs: bool,
    debugregs: bool,
    nested: bool,
}

impl Model {
    /// Asks KVM.
    pub(crate) fn ask(kvm: &Kvm) -> Result<Self, KvmError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
        let mut msrs = list.as_slice().to_vec();
        msrs.extend(MTRRS.into_iter().flatten());
        msrs.sort_unstable();
        msrs.dedup();
        Ok(Self {
            msrs,
            xsave: kvm.check_extension(Cap::Xsave),
            xcrs: kvm.check_extension(Cap::Xcrs),
            debugregs: kvm.check_extension(Cap::Debugregs),
            nested: kvm.check_extension(Cap::NestedState),
        })
    }

    /// The state of a CPU whose thread stands still.
    pub(crate) fn save(&self, vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        let mp_state = vcpu
            .get_mp_state()
            .map_err(KvmError::call("KVM_GET_MP_STATE"))?;
        let regs = vcpu.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?;
        let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
        let some = |has: bool| has.then_some(());
        let xsave = some(self.xsave)
            .map(|()| vcpu.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE")))
            .transpose()?;
        let xcrs = some(self.xcrs)
            .map(|()| vcpu.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS")))
            .transpose()?;
        let debugregs = some(self.debugregs)
            .map(|()| {
                vcpu.get_debug_regs()
                    .map_err(KvmError::call("KVM_GET_DEBUGREGS"))
            })
            .transpose()?;
        let lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
        let msrs = self.read_msrs(vcpu)?;
        let tsc_khz = vcpu
            .get_tsc_khz()
            .map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
        let nested = some(self.nested && sregs.efer & SVME != 0)
            .map(|()| {
                let mut buffer = Box::new(KvmNestedStateBuffer::empty());
                vcpu.nested_state(&mut buffer)
                    .map_err(KvmError::call("KVM_GET_NESTED_STATE"))?;
                Ok::<_, KvmError>(buffer)
            })
            .transpose()?;
        let events = vcpu
            .get_vcpu_events()
            .map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?;
        Ok(VcpuState {
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debugregs,
            lapic,
            msrs,
            tsc_khz,
            nested,
            events,
        })
    }

    /// Reads the TSC once more.
    pub(crate) fn save_tsc(state: &mut VcpuState, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let mut entries = msrs(std::iter::once((TSC, 0)))?;
        let read = vcpu
            .get_msrs(&mut entries)
            .map_err(KvmError::call("KVM_GET_MSRS"))?;
        if let Some(entry) = entries.as_slice().first().filter(|_| read == 1) {
            for (_, value) in state.msrs.iter_mut().filter(|(index, _)| *index == TSC) {
                *value = entry.data;
            }
        }
        Ok(())
    }

    /// Those MSRs of the list that the CPU has.
    fn read_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, KvmError> {
        let mut values = Vec::new();
        let mut rest = &self.msrs[..];
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            let mut entries = msrs(chunk.iter().map(|index| (*index, 0)))?;
            // KVM ends at the first that it can't read, which is then left out.
            let read = vcpu
                .get_msrs(&mut entries)
                .map_err(KvmError::call("KVM_GET_MSRS"))?;
            let read = read.min(chunk.len());
            let got = &entries.as_slice()[..read];
            values.extend(got.iter().map(|entry| (entry.index, entry.data)));
            let next = if read == chunk.len() { read } else { read + 1 };
            rest = &rest[next..];
        }
        Ok(values)
    }
}

/// What is to be done for a TSC of another frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frequency {
    /// Nothing.
    Same,
    /// KVM is to scale.
    Scale,
    /// Nothing can be done.
    Other,
}

/// A guest that counts at `saved` kHz, on a host that does at `here`.
fn tsc_frequency(saved: u32, here: u32, scales: bool) -> Frequency {
    let difference = u64::from(here.abs_diff(saved));
    if difference == 0 {
        Frequency::Same
    } else if scales {
        Frequency::Scale
    } else if difference * 100 <= u64::from(saved) * TSC_TOLERANCE_PERCENT {
        Frequency::Same
    } else {
        Frequency::Other
    }
}

/// A list for KVM.
fn msrs(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, KvmError> {
    let entries: Vec<_> = values
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries)
        .map_err(|error| KvmError::Config(format!("a list of MSRs: {error:?}")))
}

impl VcpuState {
    /// Puts the state into a CPU that has its CPUID leaves and has not run. Its time is for
    /// [`restore_time`](Self::restore_time). `scales`: KVM can scale TSCs.
    pub(crate) fn restore(&self, vcpu: &VcpuFd, scales: bool) -> Result<(), KvmError> {
        self.set_tsc_frequency(vcpu, scales)?;
        vcpu.set_sregs(&self.sregs)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs)
            .map_err(KvmError::call("KVM_SET_REGS"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(KvmError::call("KVM_SET_XCRS"))?;
        }
        if let Some(xsave) = &self.xsave {
            // SAFETY: KVM reads more than these 4096 bytes only of a process that has asked for
            // larger states (arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)), which this one never does.
            unsafe { vcpu.set_xsave(xsave) }.map_err(KvmError::call("KVM_SET_XSAVE"))?;
        }
        if let Some(debugregs) = &self.debugregs {
            vcpu.set_debug_regs(debugregs)
                .map_err(KvmError::call("KVM_SET_DEBUGREGS"))?;
        }
        vcpu.set_lapic(&self.lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        self.write_msrs(vcpu, |index| !TIME.contains(&index))?;
        if let Some(nested) = &self.nested {
            // KVM reads as much as the state says that it has.
            if nested.size as usize > size_of::<KvmNestedStateBuffer>() {
                return Err(KvmError::Config(format!(
                    "a nested state of {} bytes, which no CPU has: the saved machine is damaged",
                    nested.size
                )));
            }
            vcpu.set_nested_state(nested)
                .map_err(KvmError::call("KVM_SET_NESTED_STATE"))?;
        }
        vcpu.set_mp_state(self.mp_state)
            .map_err(KvmError::call("KVM_SET_MP_STATE"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))?;
        // So that a guest's watchdog does not take the pause for its own fault; a guest without
        // KVM's clock has no way to be told.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }

    fn set_tsc_frequency(&self, vcpu: &VcpuFd, scales: bool) -> Result<(), KvmError> {
        let here = vcpu
            .get_tsc_khz()
            .map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
        match tsc_frequency(self.tsc_khz, here, scales) {
            Frequency::Same => Ok(()),
            // KVM scales by nothing where the difference is nothing.
            Frequency::Scale => vcpu
                .set_tsc_khz(self.tsc_khz)
                .map_err(KvmError::call("KVM_SET_TSC_KHZ")),
            Frequency::Other => Err(KvmError::Config(format!(
                "the machine's TSC runs at {} kHz, this host's at {here} kHz, and its KVM can't \
                 scale it: restore the machine on a host like the one that saved it",
                self.tsc_khz
            ))),
        }
    }

    /// Sets the TSC, or the deadline that is compared with it: of all CPUs the one, then of all the
    /// other. KVM takes TSCs that are written within a second of each other for the same.
    pub(crate) fn restore_time(&self, vcpu: &VcpuFd, which: u32) -> Result<(), KvmError> {
        self.write_msrs(vcpu, |index| index == which)
    }

    fn write_msrs(&self, vcpu: &VcpuFd, wanted: impl Fn(u32) -> bool) -> Result<(), KvmError> {
        let values = self.msrs.iter().copied();
        let values: Vec<_> = values.filter(|(index, _)| wanted(*index)).collect();
        let mut rest = &values[..];
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            let written = vcpu
                .set_msrs(&msrs(chunk.iter().copied())?)
                .map_err(KvmError::call("KVM_SET_MSRS"))?;
            let written = written.min(chunk.len());
            if let Some((index, value)) = chunk.get(written) {
                // What can't be written must be so already.
                let mut here = msrs(std::iter::once((*index, 0)))?;
                let read = vcpu
                    .get_msrs(&mut here)
                    .map_err(KvmError::call("KVM_GET_MSRS"))?;
                let same = read == 1 && here.as_slice()[0].data == *value;
                if !same {
                    return Err(KvmError::Config(format!(
                        "this host's KVM does not take {value:#x} for MSR {index:#x}: restore the \
                         machine on a host like the one that saved it"
                    )));
                }
                rest = &rest[written + 1..];
            } else {
                rest = &rest[written..];
            }
        }
        Ok(())
    }

    /// Whether the local APIC has this interrupt, requested or in service.
    pub(crate) fn has_interrupt(&self, vector: u8) -> bool {
        [ISR, IRR].into_iter().any(|base| {
            let at = base + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
            let byte = self
                .lapic
                .regs
                .get(at)
                .map_or(0, |byte| byte.cast_unsigned());
            byte >> (vector % 8) & 1 == 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};

    /// A CPU with an in-kernel APIC.
    fn cpu() -> Option<(Kvm, kvm_ioctls::VmFd, VcpuFd)> {
        let kvm = crate::kvm::open()
            .inspect_err(|error| eprintln!("not run: {error}"))
            .ok()?;
        let vm = kvm.create_vm().unwrap();
        let mut split = kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        split.args[0] = 24;
        vm.enable_cap(&split).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        Some((kvm, vm, vcpu))
    }

    #[test]
    fn a_host_that_has_measured_its_tsc_anew_is_the_same_and_another_one_is_refused() {
        let all = [2_000_000, 2_000_001, 1_980_000, 2_020_001, 3_000_000, 0];
        let on = |scales| all.map(|saved| tsc_frequency(saved, 2_000_000, scales));
        use Frequency::{Other, Same, Scale};
        assert_eq!(on(false), [Same, Same, Other, Same, Other, Other]);
        assert_eq!(on(true), [Same, Scale, Scale, Scale, Scale, Scale]);
    }

    #[test]
    fn a_nested_state_that_claims_to_be_longer_than_it_is_does_not_get_to_kvm() {
        let Some((kvm, _vm, vcpu)) = cpu() else {
            return;
        };
        let mut saved = Model::ask(&kvm).unwrap().save(&vcpu).unwrap();
        let mut nested = Box::new(KvmNestedStateBuffer::empty());
        nested.size = u32::MAX;
        saved.nested = Some(nested);
        let error = saved.restore(&vcpu, false).unwrap_err().to_string();
        assert!(error.contains("nested state of 4294967295"), "{error}");
    }

    #[test]
    fn a_cpu_s_state_comes_back_by_way_of_text() {
        let Some((kvm, _vm, vcpu)) = cpu() else {
            return;
        };
        let model = Model::ask(&kvm).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rax, regs.rip, regs.rflags) = (0x1234_5678_9abc_def0, 0x10_0000, 0x246);
        vcpu.set_regs(&regs).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        // Software enabled, and vector 41h requested.
        lapic.regs[0xf1] = 1;
        lapic.regs[IRR + 0x20] = 2;
        vcpu.set_lapic(&lapic).unwrap();
        let saved = model.save(&vcpu).unwrap();
        let text = serde_json::to_string(&saved).unwrap();

        let (_kvm, _other, fresh) = cpu().unwrap();
        let read: VcpuState = serde_json::from_str(&text).unwrap();
        assert!(read.has_interrupt(0x41) && !read.has_interrupt(0x40));
        read.restore(&fresh, false).unwrap();
        for which in TIME {
            read.restore_time(&fresh, which).unwrap();
        }
        let again = model.save(&fresh).unwrap();
        assert_eq!(again.regs, saved.regs);
        assert_eq!(again.sregs, saved.sregs);
        assert_eq!(again.mp_state, saved.mp_state);
        assert_eq!(again.events, saved.events);
        let vector = |state: &VcpuState| state.has_interrupt(0x41);
        assert!(vector(&again));
        let others = |state: &VcpuState| -> Vec<(u32, u64)> {
            let moves = [TSC, TSC_DEADLINE];
            let msrs = state.msrs.iter().copied();
            msrs.filter(|(index, _)| !moves.contains(index)).collect()
        };
        assert_eq!(others(&again), others(&saved));
        let tsc = |state: &VcpuState| {
            let tsc = state.msrs.iter().find(|(index, _)| *index == TSC);
            tsc.map(|(_, value)| *value)
        };
        assert!(tsc(&again) >= tsc(&saved));
    }
}
