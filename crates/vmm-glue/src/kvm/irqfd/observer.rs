//! The irqfds as an observer of an `amdvi-device` IOMMU.

use std::sync::Arc;

use amdvi_device::{Changes, Observer};

use super::Irqfds;
use crate::kvm::KvmIrqfds;

/// Tells [`Irqfds`] what an IOMMU's guest has invalidated.
#[derive(Debug)]
pub struct IrqfdObserver<K: KvmIrqfds> {
    irqfds: Arc<Irqfds<K>>,
    iommu: u32,
}

impl<K: KvmIrqfds> IrqfdObserver<K> {
    /// An observer for the IOMMU with this number, see [`Irqfds::function`]; give it to
    /// [`Iommu::add_observer`](amdvi_device::Iommu::add_observer).
    pub fn new(irqfds: Arc<Irqfds<K>>, iommu: u32) -> Self {
        Self { irqfds, iommu }
    }
}

impl<K: KvmIrqfds + Send + Sync> Observer for IrqfdObserver<K> {
    fn changed(&self, changes: &Changes) {
        self.irqfds
            .tables_changed(self.iommu, |id| changes.touches(id), || ());
    }
}
