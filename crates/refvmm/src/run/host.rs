//! What of the host matters to a run: whether its KVM can run the guest, and what its IOMMU can do.

use std::collections::BTreeMap;
use std::sync::Arc;

use amdvi_device::pci;
use amdvi_hostcap::{Facts, HostCapSpec};

use crate::kvm;

/// The host's KVM.
#[derive(Clone, Debug)]
pub struct HostKvm {
    /// What it offers, or why it can't be used.
    pub usable: Result<String, String>,
    /// Bits of a guest physical address on its CPUs; without it, those of the machine.
    pub phys_bits: u8,
}

impl HostKvm {
    /// Finds out by running a guest of a few instructions.
    pub fn probe() -> Self {
        match kvm::probe() {
            Ok(offer) => Self {
                usable: Ok(offer.to_string()),
                phys_bits: offer.phys_bits,
            },
            Err(error) => Self {
                usable: Err(error.to_string()),
                phys_bits: pci::PHYSICAL_ADDRESS_BITS,
            },
        }
    }
}

/// The host's IOMMU, as the sources of `--host-caps` tell it.
#[derive(Clone, Debug)]
pub struct HostIommu {
    /// What was asked.
    pub spec: HostCapSpec,
    /// What was answered. No function is passed through here, so these are early facts.
    pub facts: Facts,
}

impl HostIommu {
    /// Asks, once for all machines of a run: so that all are built on the same answer, and a
    /// device that has to be bound for it is bound once.
    pub fn ask(spec: &HostCapSpec) -> Arc<Self> {
        let source = spec.build();
        Arc::new(Self {
            spec: spec.clone(),
            facts: Facts::collect([source.as_ref()], &[]),
        })
    }

    /// Each source that was asked, and how many facts it stated. What could not be asked is among
    /// the facts' gaps.
    pub fn asked(&self) -> BTreeMap<&str, usize> {
        let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
        for fact in self.facts.early().iter() {
            *asked.entry(fact.source()).or_default() += 1;
        }
        let silent = self.facts.gaps().map(|gap| gap.source.as_str());
        let silent = silent.chain(self.facts.notes().map(|note| note.source.as_str()));
        for source in silent {
            asked.entry(source).or_default();
        }
        // A source that only stands for others says nothing under its own name.
        if asked.is_empty() {
            asked.extend(self.facts.early().sources().map(|source| (source, 0)));
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(spec: &str) -> Arc<HostIommu> {
        HostIommu::ask(&spec.parse().unwrap())
    }

    #[test]
    fn a_source_that_is_not_there_is_a_gap_and_has_stated_nothing() {
        let host = ask("sysfs:/nowhere");
        assert_eq!(host.asked(), [("sysfs:/nowhere", 0)].into());
        let gaps: Vec<_> = host.facts.gaps().map(ToString::to_string).collect();
        assert!(gaps.iter().any(|gap| gap.contains("/nowhere")), "{gaps:?}");
    }

    #[test]
    fn each_source_is_named_with_the_number_of_its_facts() {
        let host = ask("mock:numint2k=on");
        assert_eq!(host.asked(), [("mock:numint2k=on", 2)].into());
        assert_eq!(ask("legacy-vfio").asked(), [("legacy-vfio", 0)].into());
    }
}
