//! Interrupts from the device side into the local APICs.

use std::sync::Arc;

use amdvi_irt::Delivery;
use amdvi_regs::msi::DeliveryMode;
use amdvi_vmm_glue::kvm::{KvmMessage, MsiFormat};
use kvm_ioctls::VmFd;

use super::error::KvmError;

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// A local APIC took it.
    Accepted,
    /// No local APIC has that destination, or the one that has takes no interrupts now. Real
    /// hardware drops it too.
    Ignored,
    /// This machine can't deliver it; says why.
    Refused(String),
}

/// The way into the local APICs; as many copies as there are devices.
#[derive(Clone, Debug)]
pub struct Injector {
    vm: Arc<VmFd>,
}

impl Injector {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    /// Sends an interrupt. Does not wait for the CPU; may be called from any thread.
    ///
    /// # Errors
    ///
    /// `KVM_SIGNAL_MSI` failed.
    pub fn deliver(&self, delivery: &Delivery) -> Result<Injected, KvmError> {
        // KVM would take both and do something else than hardware does.
        match delivery.delivery_mode {
            DeliveryMode::Smi => return Ok(refused("SMI: the payload has no SMM handler")),
            DeliveryMode::ExtInt => {
                return Ok(refused(
                    "ExtINT: the machine has no 8259 that could answer with a vector",
                ));
            }
            _ => {}
        }
        let message = match KvmMessage::encode(delivery, MsiFormat::X2ApicApi) {
            Ok(message) => message,
            Err(error) => return Ok(refused(&error.to_string())),
        };
        match self.vm.signal_msi(message.to_msi()) {
            Ok(0) => Ok(Injected::Ignored),
            Ok(_) => Ok(Injected::Accepted),
            Err(error) => Err(KvmError::call("KVM_SIGNAL_MSI")(error)),
        }
    }
}

fn refused(why: &str) -> Injected {
    Injected::Refused(why.to_owned())
}
