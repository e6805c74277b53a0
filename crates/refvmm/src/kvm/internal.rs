//! KVM_EXIT_INTERNAL_ERROR: why KVM can't go on.
#![allow(unsafe_code)]

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;

/// What KVM says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InternalError {
    suberror: u32,
    data: Vec<u64>,
}

impl InternalError {
    /// That of a vCPU whose last exit was one.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        let run = vcpu.get_kvm_run();
        // SAFETY: all members of the union are plain integers, for which any bits are good, and
        // after this exit KVM has filled in this one.
        let said = unsafe { run.__bindgen_anon_1.internal };
        let data = said.data.iter().take(said.ndata as usize);
        Self {
            suberror: said.suberror,
            data: data.copied().collect(),
        }
    }

    /// KVM takes an access to a device for a part of the delivery of an interrupt or exception, which
    /// it does not emulate. The CPU's state is as it was, so it can be run again: if that was so,
    /// the same comes again.
    ///
    /// QEMU's emulation of SVM leaves the kind of the last event in EXITINTINFO when it is not valid
    /// any more, and Linux since 6.14 looks at the kind alone: there the CPU fails so now and then
    /// at a device's register, for nothing.
    pub(super) fn is_of_delivery(&self) -> bool {
        self.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KVM_EXIT_INTERNAL_ERROR: KVM can't go on, ")?;
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => f.write_str(
                "most likely because its instruction emulator doesn't know the instruction",
            )?,
            KVM_INTERNAL_ERROR_SIMUL_EX => f.write_str("because of exceptions in exceptions")?,
            KVM_INTERNAL_ERROR_DELIVERY_EV => {
                f.write_str("because the delivery of an interrupt or exception accesses a device")?
            }
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                f.write_str("because the processor gives a reason that it does not know")?;
            }
            other => write!(f, "suberror {other}")?,
        }
        if !self.data.is_empty() {
            write!(f, " (data {:x?})", self.data)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_it_is_with_its_data() {
        let error = InternalError {
            suberror: 3,
            data: vec![0x400, 0xfeb8_0000],
        };
        assert!(error.is_of_delivery());
        let text = error.to_string();
        assert!(text.contains("delivery of an interrupt"), "{text}");
        assert!(text.ends_with("(data [400, feb80000])"), "{text}");
        let error = InternalError {
            suberror: 99,
            data: Vec::new(),
        };
        assert!(!error.is_of_delivery());
        assert!(error.to_string().ends_with("suberror 99"));
    }
}
