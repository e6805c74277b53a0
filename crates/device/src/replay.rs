//! What the guest's tables say now, for observers that keep a copy and for those who look.

use std::ops::RangeInclusive;

use amdvi_core::dtab;
use amdvi_dma::{AddressSpace, Mappings};
use amdvi_regs::dte::Dte;
use amdvi_regs::{DeviceId, PhysMemory};

use crate::endpoint::Endpoint;
use crate::iommu::Iommu;
use crate::pci::VIRTUAL_ADDRESS_BITS;

impl Iommu {
    /// The Device Table Entry of a function as it is in memory now (48882 §2.2.2), whole only if the
    /// guest does not write it meanwhile: for reports and debuggers, not for decisions. `None` if the
    /// IOMMU is not enabled, the table has no such entry, or there is no memory.
    pub fn device_table_entry(&self, device_id: DeviceId) -> Option<Dte> {
        let view = &self.fabric.view;
        let gpa = view
            .control()
            .iommu_en()
            .then(|| dtab::locate(view, device_id))?
            .ok()?;
        let mut words = [0; 4];
        for (word, at) in words.iter_mut().zip((gpa..).step_by(8)) {
            *word = self.memory.load_u64(at).ok()?;
        }
        Some(Dte::from_words(words))
    }

    /// The DMA address space of a function, as registers and Device Table Entry define it now. It is
    /// a copy: [`Observer::changed`](crate::Observer::changed) tells when to take another.
    pub fn address_space(&self, device_id: DeviceId) -> AddressSpace {
        let view = &self.fabric.view;
        AddressSpace::read(view, &*self.memory, device_id, VIRTUAL_ADDRESS_BITS)
    }

    /// What `space` maps now in `range`, read from the guest's tables past all caches: at most
    /// `max_loads` loads, see [`AddressSpace::mappings`].
    ///
    /// An observer that calls it in [`Observer::invalidated`](crate::Observer::invalidated) for what
    /// was invalidated, and for everything in `changed`, has a copy that is never older than the
    /// guest's last COMPLETION_WAIT.
    pub fn mappings(
        &self,
        space: &AddressSpace,
        range: RangeInclusive<u64>,
        max_loads: u64,
    ) -> Mappings<'_, dyn PhysMemory> {
        space.mappings(&*self.memory, range, max_loads)
    }

    /// Whether the guest is told that not-present entries are cached (the capability's NpCache bit,
    /// 48882 §3.1; option `np-cache`). Without it a guest says nothing when it adds a mapping, so a
    /// copy of its mappings has to be made on demand.
    pub fn np_cache(&self) -> bool {
        self.offer.np_cache
    }
}

impl Endpoint {
    /// What this function's tables map now in `range`, see [`Iommu::mappings`].
    pub fn mappings(
        &self,
        range: RangeInclusive<u64>,
        max_loads: u64,
    ) -> Mappings<'_, dyn PhysMemory> {
        let iommu = self.iommu();
        iommu.mappings(&iommu.address_space(self.device_id()), range, max_loads)
    }
}
