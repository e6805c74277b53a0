//! From register images of a host's IOMMU to facts.
//!
//! Every source that sees registers (hw_info, sysfs, debugfs) reads them by these rules, so that
//! the same bits mean the same whoever read them.

use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2};

use crate::aspect::Aspect;
use crate::fact::{Fact, Phase};
use crate::feature::{Feature, Setting};
use crate::scope::Scope;

/// Registers of one host IOMMU, as far as a source saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRegisters {
    /// EFR, MMIO 0030h.
    pub efr: Option<ExtendedFeature>,
    /// EFR2, MMIO 01A0h.
    pub efr2: Option<ExtendedFeature2>,
    /// CONTROL, MMIO 0018h.
    pub control: Option<Control>,
}

/// Whether Linux documents the feature as one that a VMM may take from `IOMMU_GET_HW_INFO` into
/// a guest (the note at `struct iommu_hw_info_amd`: GTSup, GASup, GIoSup, PPRSup, EPHSup, GATS,
/// GLX, PASmax).
///
/// The registers that the call returns are raw hardware values. For features on the list the
/// answer itself is the kernel's word that it can use them; for the others it is not.
pub const fn kernel_allows_in_guest(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::Gt
            | Feature::Ga
            | Feature::Gio
            | Feature::Ppr
            | Feature::Eph
            | Feature::Gats
            | Feature::Glx
            | Feature::PasidMax
    )
}

/// The bits of a raw EFR that Linux documents as usable in guests: [`kernel_allows_in_guest`] as
/// a mask, for a VMM that hands register images on. Of EFR2 there are none.
///
/// PPRSup, GTSup, GASup, GATS, GLXSup, PASmax, GIoSup, EPHSup.
pub const HW_INFO_GUEST_EFR: u64 =
    1 << 1 | 1 << 4 | 1 << 7 | 0b11 << 12 | 0b11 << 14 | 0x1f << 32 | 1 << 48 | 1 << 50;

/// See [`HW_INFO_GUEST_EFR`].
pub const HW_INFO_GUEST_EFR2: u64 = 0;

impl HostRegisters {
    /// The registers that `IOMMU_GET_HW_INFO` returned, less what Linux does not document as
    /// usable in guests.
    #[must_use]
    pub fn masked_for_guest(&self) -> Self {
        Self {
            efr: self
                .efr
                .map(|efr| (u64::from(efr) & HW_INFO_GUEST_EFR).into()),
            efr2: self
                .efr2
                .map(|efr2| (u64::from(efr2) & HW_INFO_GUEST_EFR2).into()),
            control: None,
        }
    }

    /// What the hardware has, and what CONTROL shows.
    ///
    /// CONTROL.NumIntRemapMode is the kernel's: the driver writes it in each start of an IOMMU
    /// that has 2K. CONTROL.GCR3TRPMode is firmware's: a kernel that does not know the bit
    /// leaves it as found. From the other bits of CONTROL nothing is concluded.
    pub fn facts<P: Phase>(&self, scope: &Scope, source: &str) -> Vec<Fact<P>> {
        let mut facts: Vec<_> = Feature::ALL
            .into_iter()
            .filter_map(|feature| {
                let (value, seen) = self.hardware(feature)?;
                Some(Fact::new(
                    feature,
                    value,
                    Aspect::Hardware,
                    scope.clone(),
                    source,
                    seen,
                ))
            })
            .collect();
        if let Some(control) = self.control {
            let mode = control.num_int_remap_mode();
            facts.push(Fact::new(
                Feature::NumInt2K,
                mode == Control::NUM_INT_REMAP_2K,
                Aspect::Kernel,
                scope.clone(),
                source,
                format!("CONTROL[44:43]={mode:02b}b"),
            ));
            facts.push(Fact::new(
                Feature::Gcr3TrpMode,
                control.gcr3_trp_mode(),
                Aspect::Firmware,
                scope.clone(),
                source,
                format!("CONTROL[58]={}", u8::from(control.gcr3_trp_mode())),
            ));
        }
        facts
    }

    /// [`HostRegisters::facts`] for registers that `IOMMU_GET_HW_INFO` (type 4, AMD) returned:
    /// those on the kernel's list are facts about the kernel as well, unless the device emulates
    /// the feature on any host (GASup), where a clear bit must not count as a prohibition.
    pub fn hw_info_facts<P: Phase>(&self, scope: &Scope, source: &str) -> Vec<Fact<P>> {
        let mut facts = self.facts(scope, source);
        for feature in Feature::ALL
            .into_iter()
            .filter(|f| kernel_allows_in_guest(*f) && !f.needs().is_empty())
        {
            if let Some((value, seen)) = self.hardware(feature) {
                let seen = format!("{seen}, which IOMMU_GET_HW_INFO lists as usable in guests");
                facts.push(Fact::new(
                    feature,
                    value,
                    Aspect::Kernel,
                    scope.clone(),
                    source,
                    seen,
                ));
            }
        }
        facts
    }

    /// The hardware's value of a feature and how it looks in the register; `None` when the
    /// register was not seen, or holds a reserved value, of which nothing is known.
    fn hardware(&self, feature: Feature) -> Option<(Setting, String)> {
        let bit = |name: &str, set: bool| Some((set.into(), format!("{name}={}", u8::from(set))));
        let level = |name: &str, field: u8, level: Option<u8>| {
            level.map(|level| (Setting::Level(level), format!("{name}={field}")))
        };
        match feature {
            Feature::NumInt2K => {
                let field = self.efr2?.num_int_remap_sup();
                let seen = format!("EFR2[9:8]={field:02b}b");
                match field {
                    0 => Some((Setting::OFF, seen)),
                    ExtendedFeature2::NUM_INT_REMAP_2K => Some((Setting::ON, seen)),
                    _ => None,
                }
            }
            Feature::HtRangeIgnore => bit("EFR2[11]", self.efr2?.ht_range_ignore()),
            Feature::Gcr3TrpMode => bit("EFR2[3]", self.efr2?.gcr3_trp_mode()),
            Feature::Xt => bit("EFR[2]", self.efr?.xt_sup()),
            Feature::Ga => bit("EFR[7]", self.efr?.ga_sup()),
            Feature::GuestApic => {
                let field = self.efr?.gam_sup();
                let seen = format!("EFR[23:21]={field:03b}b");
                (field <= 1).then(|| ((field == 1).into(), seen))
            }
            Feature::Gt => bit("EFR[4]", self.efr?.gt_sup()),
            Feature::Gio => bit("EFR[48]", self.efr?.gio_sup()),
            // GATS = 2 once meant six levels and is reserved now: no level follows from it.
            Feature::Gats => {
                let field = self.efr?.gats();
                level("EFR[13:12]", field, (field <= 1).then_some(field))
            }
            Feature::Glx => {
                let field = self.efr?.glx_sup();
                level("EFR[15:14]", field, (field <= 2).then_some(field))
            }
            Feature::PasidMax => {
                let field = self.efr?.pas_max();
                level("EFR[36:32]", field, Some(field))
            }
            Feature::Ppr => bit("EFR[1]", self.efr?.ppr_sup()),
            Feature::Eph => bit("EFR[50]", self.efr?.eph_sup()),
            // HATS = 3 means no host translation at all, hence nothing above the base level.
            Feature::Hats => {
                let field = self.efr?.hats();
                level(
                    "EFR[11:10]",
                    field,
                    Some(if field == 3 { 0 } else { field }),
                )
            }
            Feature::HostAccess => bit("EFR[49]", self.efr?.ha_sup()),
            Feature::HostDirty => bit("EFR[52]", self.efr?.hd_sup()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Late, Subject};

    fn find(facts: &[Fact<Late>], feature: Feature, aspect: Aspect) -> Option<&Fact<Late>> {
        facts
            .iter()
            .find(|f| f.subject() == Subject::Feature(feature) && f.aspect() == aspect)
    }

    fn value(facts: &[Fact<Late>], feature: Feature, aspect: Aspect) -> Option<Setting> {
        find(facts, feature, aspect).map(Fact::value)
    }

    /// A server part's EFR and EFR2 as a kernel logged them.
    fn server() -> HostRegisters {
        HostRegisters {
            efr: Some(0x2465_77EF_A225_4AFA.into()),
            efr2: Some(0x10.into()),
            control: None,
        }
    }

    #[test]
    fn a_real_register_pair_reads_as_its_fields() {
        let facts: Vec<Fact<Late>> = server().facts(&Scope::Host, "test");
        for (feature, expected) in [
            (Feature::NumInt2K, Setting::OFF),
            (Feature::Xt, Setting::OFF),
            (Feature::Ga, Setting::ON),
            (Feature::GuestApic, Setting::ON),
            (Feature::Gt, Setting::ON),
            (Feature::Gio, Setting::ON),
            (Feature::Gats, Setting::Level(0)),
            (Feature::Glx, Setting::Level(1)),
            (Feature::PasidMax, Setting::Level(15)),
            (Feature::Ppr, Setting::ON),
            (Feature::Eph, Setting::ON),
            (Feature::Hats, Setting::Level(2)),
            (Feature::HtRangeIgnore, Setting::OFF),
            (Feature::Gcr3TrpMode, Setting::OFF),
            (Feature::HostAccess, Setting::OFF),
            (Feature::HostDirty, Setting::OFF),
        ] {
            assert_eq!(
                value(&facts, feature, Aspect::Hardware),
                Some(expected),
                "{feature}"
            );
        }
        assert!(facts.iter().all(|fact| fact.aspect() == Aspect::Hardware));
    }

    #[test]
    fn the_needed_hardware_evidence_is_named_as_the_register_shows_it() {
        let all = HostRegisters {
            efr: Some(u64::MAX.into()),
            efr2: Some(0x908.into()),
            control: None,
        };
        let facts: Vec<Fact<Late>> = all.facts(&Scope::Host, "test");
        for fact in &facts {
            let Subject::Feature(feature) = fact.subject() else {
                panic!("{fact}")
            };
            assert!(
                fact.detail()
                    .starts_with(feature.evidence(Aspect::Hardware)),
                "{fact}"
            );
        }
        // GATS = 3, GLX = 3 and GAM = 7 are reserved: nothing is known of them.
        assert_eq!(facts.len(), Feature::ALL.len() - 3);
    }

    #[test]
    fn a_register_that_was_not_seen_states_nothing() {
        assert_eq!(
            HostRegisters::default().hw_info_facts::<Late>(&Scope::Host, "test"),
            []
        );
        let efr_only = HostRegisters {
            efr2: None,
            ..server()
        };
        let facts: Vec<Fact<Late>> = efr_only.facts(&Scope::Host, "test");
        assert!(find(&facts, Feature::NumInt2K, Aspect::Hardware).is_none());
    }

    #[test]
    fn reserved_num_int_remap_values_are_unknown() {
        for field in [2, 3] {
            let efr2 = ExtendedFeature2::new().with_num_int_remap_sup(field);
            let registers = HostRegisters {
                efr2: Some(efr2),
                ..Default::default()
            };
            let facts: Vec<Fact<Late>> = registers.facts(&Scope::Host, "test");
            assert!(find(&facts, Feature::NumInt2K, Aspect::Hardware).is_none());
        }
    }

    #[test]
    fn control_44_43_speaks_for_the_kernel_and_control_58_for_firmware() {
        for (mode, enabled) in [(0, false), (1, true), (2, false), (3, false)] {
            let control = Control::new()
                .with_num_int_remap_mode(mode)
                .with_gcr3_trp_mode(true);
            let registers = HostRegisters {
                control: Some(control),
                ..server()
            };
            let facts: Vec<Fact<Late>> = registers.facts(&Scope::Host, "test");
            let expected = Some(Setting::Switch(enabled));
            assert_eq!(value(&facts, Feature::NumInt2K, Aspect::Kernel), expected);
            assert_eq!(
                value(&facts, Feature::Gcr3TrpMode, Aspect::Firmware),
                Some(Setting::ON)
            );
            assert!(find(&facts, Feature::Gcr3TrpMode, Aspect::Kernel).is_none());
        }
    }

    #[test]
    fn the_documented_masks_keep_what_is_listed_and_nothing_else() {
        let every_level = !(0b11 << 12 | 0b11 << 14 | 0b11 << 22);
        let all = HostRegisters {
            efr: Some((every_level | 1 << 12 | 1 << 14).into()),
            efr2: Some(0x908.into()),
            control: Some(Control::new().with_gcr3_trp_mode(true)),
        };
        let before: Vec<Fact<Late>> = all.facts(&Scope::Host, "test");
        let after: Vec<Fact<Late>> = all.masked_for_guest().facts(&Scope::Host, "test");
        for feature in Feature::ALL {
            let kept = value(&after, feature, Aspect::Hardware);
            // HATS = 3 reads as the base level, as 0 does.
            if kernel_allows_in_guest(feature) {
                assert_eq!(kept, value(&before, feature, Aspect::Hardware), "{feature}");
                assert!(kept.unwrap().is_on(), "{feature}");
            } else {
                assert!(!kept.unwrap().is_on(), "{feature}");
            }
        }
        assert_eq!(u64::from(all.masked_for_guest().efr2.unwrap()), 0);
    }

    #[test]
    fn hw_info_speaks_for_the_kernel_only_on_its_documented_list() {
        let facts: Vec<Fact<Late>> = server().hw_info_facts(&Scope::Host, "test");
        for feature in Feature::ALL {
            let kernel = find(&facts, feature, Aspect::Kernel).is_some();
            let counts = kernel_allows_in_guest(feature) && feature != Feature::Ga;
            assert_eq!(kernel, counts, "{feature}");
        }
        assert!(!kernel_allows_in_guest(Feature::Gcr3TrpMode));
        assert!(!kernel_allows_in_guest(Feature::NumInt2K));
    }
}
