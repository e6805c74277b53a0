//! The source `kernel-inference`: a conclusion from the kernel's version. Never asked unless named.

use std::path::PathBuf;

use amdvi_regs::mmio::ExtendedFeature2;

use crate::answer::{Answer, Gap, Situation};
use crate::aspect::Aspect;
use crate::fact::{Early, Fact, Late};
use crate::feature::Feature;
use crate::scope::{PciFunction, Scope};
use crate::source::os::{self, KernelVersion};
use crate::source::{HostCapSource, SourceError, Sysfs};

/// The first kernel whose driver turns 2K on wherever EFR2 offers it.
const ENABLES_2K: KernelVersion = KernelVersion::new(6, 15);

/// Concludes that the host kernel enabled 2K interrupts: Linux 6.15 or later, `EFR2[9:8] = 01b`, and
/// interrupt remapping in use. The driver has no switch to turn 2K off.
///
/// Nobody saw the control register: a conclusion, weaker than every other source, and
/// therefore asked only by its own name, `kernel-inference[:ROOT]`. It concludes nothing from an
/// older kernel (a distribution may have added the feature), so it never says no.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelInference {
    sysfs: Sysfs,
}

impl KernelInference {
    /// Concludes from a tree, see [`Sysfs::new`].
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            sysfs: Sysfs::new(root),
        }
    }

    /// Concludes from what `sysfs` shows.
    pub const fn from_sysfs(sysfs: Sysfs) -> Self {
        Self { sysfs }
    }

    /// Whether any interrupt goes through a remapping chip, whose name the kernel begins with
    /// `IR-`.
    fn remaps_interrupts(&self) -> Result<bool, SourceError> {
        let irqs = self.sysfs.root().join("kernel/irq");
        let names = os::names(&irqs, "it takes Linux 4.10 or later")?;
        Ok(names.iter().any(|irq| {
            os::read(&irqs.join(irq).join("chip_name"), "")
                .is_ok_and(|chip| chip.starts_with("IR-"))
        }))
    }
}

impl HostCapSource for KernelInference {
    fn name(&self) -> String {
        format!("kernel-inference:{}", self.sysfs.root().display())
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let gap = |scope, problem: String| Gap {
            source: self.name(),
            scope,
            problem,
        };
        let nothing = |problem: String| Answer {
            gaps: vec![gap(Scope::Host, problem)],
            ..Answer::nothing()
        };
        let Some(kernel) = self.sysfs.kernel() else {
            return Ok(nothing(
                "the kernel's version can't be read, so nothing follows from it".to_owned(),
            ));
        };
        if kernel < ENABLES_2K {
            return Ok(nothing(format!(
                "Linux {kernel} is older than {ENABLES_2K}, so nothing follows; update the kernel"
            )));
        }
        if !self.remaps_interrupts()? {
            return Ok(nothing(
                "no interrupt in kernel/irq goes through a remapping chip (IR-…); boot without \
                 intremap=off and enable x2APIC or the IOMMU in the firmware's setup"
                    .to_owned(),
            ));
        }
        let mut answer = Answer::nothing();
        for iommu in self.sysfs.iommus()? {
            let scope = Scope::Iommu(iommu.clone());
            let efr2 = match self.sysfs.features(&iommu) {
                Ok(features) => features.registers.efr2,
                Err(error) => {
                    answer.gaps.push(gap(scope, error.to_string()));
                    continue;
                }
            };
            if efr2.is_some_and(|e| e.num_int_remap_sup() == ExtendedFeature2::NUM_INT_REMAP_2K) {
                answer.facts.push(Fact::new(
                    Feature::NumInt2K,
                    true,
                    Aspect::Kernel,
                    scope,
                    self.name(),
                    format!("concluded from Linux {kernel}, EFR2[9:8]=01b and IR- interrupt chips"),
                ));
            } else {
                let problem = "EFR2[9:8] does not show 01b, so nothing follows".to_owned();
                answer.gaps.push(gap(scope, problem));
            }
        }
        Ok(answer)
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(Answer::nothing())
    }
}
