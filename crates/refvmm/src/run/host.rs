//! What of the host matters to a run: whether its KVM can run the guest.

use crate::kvm;

/// The host's KVM.
#[derive(Clone, Debug)]
pub struct HostKvm {
    /// What it offers, or why it can't be used.
    pub usable: Result<String, String>,
}

impl HostKvm {
    /// Finds out by running a guest of a few instructions.
    pub fn probe() -> Self {
        let usable = kvm::probe().map(|offer| offer.to_string());
        Self {
            usable: usable.map_err(|error| error.to_string()),
        }
    }
}
