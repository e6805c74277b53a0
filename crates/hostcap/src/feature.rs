//! The features that a guest can be offered, and what each needs from the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::aspect::Aspect;

/// A feature of the emulated IOMMU that a guest can be offered.
///
/// The [name](Feature::name) is the one of the device's property string, and of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// `numint2k`: 2048 interrupts per function, EFR2.NumIntRemapSup = 01b (48882 §3.4.16).
    NumInt2K,
    /// `xtsup`: x2APIC, 32-bit interrupt destinations, EFR.XTSup (48882 §3.4.2).
    Xt,
    /// `ga`: 128-bit interrupt remapping entries, EFR.GASup.
    Ga,
    /// `vapic`: the guest virtual APIC, EFR.GAMSup = 001b.
    GuestApic,
    /// `gtsup`: guest translation (v2 page tables), EFR.GTSup.
    Gt,
    /// `giosup`: guest I/O protection, EFR.GIoSup.
    Gio,
    /// `gats`: levels of guest page tables above four, EFR.GATS: 0 = 4 levels, 1 = 5.
    Gats,
    /// `glxsup`: levels of the GCR3 table above one, EFR.GLXSup: 0–2.
    Glx,
    /// `pasmax`: EFR.PASmax; the highest PASID is 2^(n+1) − 1.
    PasidMax,
    /// `pprsup`: peripheral page requests, EFR.PPRSup.
    Ppr,
    /// `ephsup`: enhanced PPR handling, EFR.EPHSup.
    Eph,
    /// `hats`: levels of host page tables above four, EFR.HATS: 0 = 4 levels, 1 = 5, 2 = 6.
    Hats,
    /// `htrangeignore`: the HyperTransport range is ordinary addresses, EFR2.HTRangeIgnore.
    HtRangeIgnore,
    /// `gcr3trpmode`: the GCR3 root in a DTE is a guest physical address, EFR2.GCR3TRPMode.
    Gcr3TrpMode,
    /// `hasup`: the accessed bit of host page tables, EFR.HASup.
    HostAccess,
    /// `hdsup`: the dirty bit of host page tables, EFR.HDSup.
    HostDirty,
}

/// What values a feature takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// On or off.
    Switch,
    /// A number, 0 (the architecture's base level) to `max`; more includes less.
    Level {
        /// The highest level with a meaning.
        max: u8,
    },
}

/// The value of a feature, requested, known or granted. [`Feature::shown`] is how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// On or off.
    Switch(bool),
    /// A level; see [`FeatureKind::Level`].
    Level(u8),
}

impl Setting {
    /// On.
    pub const ON: Self = Self::Switch(true);
    /// Off.
    pub const OFF: Self = Self::Switch(false);

    /// Whether this is more than nothing: on, or a level above 0.
    pub const fn is_on(self) -> bool {
        self.level() > 0
    }

    /// The value as a number: off = 0, on = 1.
    pub const fn level(self) -> u8 {
        match self {
            Self::Switch(on) => on as u8,
            Self::Level(level) => level,
        }
    }
}

impl From<bool> for Setting {
    fn from(on: bool) -> Self {
        Self::Switch(on)
    }
}

impl From<u8> for Setting {
    fn from(level: u8) -> Self {
        Self::Level(level)
    }
}

/// A name that is no feature's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such feature: `{name}`; accepted: {}", Feature::names())]
pub struct UnknownFeature {
    /// What was given.
    pub name: String,
}

/// A value that a feature does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{feature}` does not take `{value}`; accepted: {accepted}")]
pub struct ParseSettingError {
    /// The option's name.
    pub feature: String,
    /// What was given.
    pub value: String,
    /// What would be accepted.
    pub accepted: String,
}

/// What stands about a feature in one place: everything the other modules ask for.
struct Row {
    name: &'static str,
    /// The register field's name, where the option is called differently: read, never written.
    field: &'static str,
    kind: FeatureKind,
    /// What level 0 is called in options and reasons: page tables are spoken of by all their
    /// levels, while the registers count those above four.
    spelled_from: u8,
    /// The aspects that must be proven for a passed-through function.
    needs: &'static [Aspect],
    /// A feature that this one is built on: without it the guest could not use this one.
    on_top_of: Option<Feature>,
    /// Only iommufd can carry it to a passed-through function.
    iommufd: bool,
    /// It shapes RAM, so that late knowledge is too late.
    early_only: bool,
    /// What the hardware's evidence is called.
    hardware: &'static str,
    /// What would prove that the kernel has it enabled.
    kernel: &'static str,
}

const BOTH: &[Aspect] = &[Aspect::Hardware, Aspect::Kernel];
const ALLOWED: &str =
    "an IOMMU_GET_HW_INFO answer of type 4 (AMD), whose documentation lists it as usable in guests";

/// The common shape: a switch that hardware and kernel must both have, through iommufd.
const HOST_SWITCH: Row = Row {
    name: "",
    field: "",
    kind: FeatureKind::Switch,
    spelled_from: 0,
    needs: BOTH,
    on_top_of: None,
    iommufd: true,
    early_only: false,
    hardware: "",
    kernel: ALLOWED,
};

/// The interrupt formats, and host page tables: emulated for every function, passed through or not.
///
/// A passed-through function's interrupt reaches the VMM (or KVM) through the host's own table,
/// as an event, and the emulated table is read after that: its format, its destination width
/// and its virtual-APIC entries never reach the host's IOMMU. So neither silence nor a clear bit
/// in the host's registers costs anything here: a server without XTSup carries a guest with it.
/// An explicit "no" for the kernel is still obeyed, see `decide`.
const EMULATED_SWITCH: Row = Row {
    needs: &[],
    iommufd: false,
    kernel: "",
    ..HOST_SWITCH
};

impl Feature {
    /// All features, in the order in which decisions are reported.
    pub const ALL: [Self; 16] = [
        Self::NumInt2K,
        Self::Xt,
        Self::Ga,
        Self::GuestApic,
        Self::Gt,
        Self::Gio,
        Self::Gats,
        Self::Glx,
        Self::PasidMax,
        Self::Ppr,
        Self::Eph,
        Self::Hats,
        Self::HtRangeIgnore,
        Self::Gcr3TrpMode,
        Self::HostAccess,
        Self::HostDirty,
    ];

    const fn row(self) -> Row {
        match self {
            Self::NumInt2K => Row {
                name: "numint2k",
                hardware: "EFR2[9:8]=01b",
                kernel: "CONTROL[44:43]=01b, read from debugfs or returned by a kernel whose IOMMU_GET_HW_INFO includes the control register",
                ..HOST_SWITCH
            },
            Self::Xt => Row {
                name: "xtsup",
                on_top_of: Some(Self::Ga),
                hardware: "EFR[2]=1",
                ..EMULATED_SWITCH
            },
            Self::Ga => Row {
                name: "ga",
                field: "gasup",
                hardware: "EFR[7]=1",
                ..EMULATED_SWITCH
            },
            Self::GuestApic => Row {
                name: "vapic",
                field: "gamsup",
                on_top_of: Some(Self::Ga),
                hardware: "EFR[23:21]=001b",
                ..EMULATED_SWITCH
            },
            Self::Gt => Row {
                name: "gtsup",
                hardware: "EFR[4]=1",
                ..HOST_SWITCH
            },
            Self::Gio => Row {
                name: "giosup",
                on_top_of: Some(Self::Gt),
                hardware: "EFR[48]=1",
                ..HOST_SWITCH
            },
            Self::Gats => Row {
                name: "gats",
                kind: FeatureKind::Level { max: 1 },
                spelled_from: 4,
                on_top_of: Some(Self::Gt),
                hardware: "EFR[13:12]",
                ..HOST_SWITCH
            },
            Self::Glx => Row {
                name: "glxsup",
                kind: FeatureKind::Level { max: 2 },
                on_top_of: Some(Self::Gt),
                hardware: "EFR[15:14]",
                ..HOST_SWITCH
            },
            Self::PasidMax => Row {
                name: "pasmax",
                // PCI Express limits a PASID to 20 bits.
                kind: FeatureKind::Level { max: 19 },
                on_top_of: Some(Self::Gt),
                hardware: "EFR[36:32]",
                ..HOST_SWITCH
            },
            Self::Ppr => Row {
                name: "pprsup",
                hardware: "EFR[1]=1",
                ..HOST_SWITCH
            },
            Self::Eph => Row {
                name: "ephsup",
                on_top_of: Some(Self::Ppr),
                hardware: "EFR[50]=1",
                ..HOST_SWITCH
            },
            // The levels of the guest's own tables are a format that the device walks: for a
            // passed-through function the VMM maps what they map, into tables that the host
            // kernel builds with as many levels as it likes. What the host limits is which
            // IOVAs can be mapped, by 4-level tables as well as by 6-level ones (an Intel host
            // may stop at 39 bits): that is the business of IVRS's VASize, and of mapping.
            Self::Hats => Row {
                name: "hats",
                kind: FeatureKind::Level { max: 2 },
                spelled_from: 4,
                hardware: "EFR[11:10]",
                ..EMULATED_SWITCH
            },
            Self::HtRangeIgnore => Row {
                name: "htrangeignore",
                // The kernel does nothing to enable it: it stops reserving the range.
                needs: &[Aspect::Hardware],
                iommufd: false,
                early_only: true,
                hardware: "EFR2[11]=1",
                kernel: "",
                ..HOST_SWITCH
            },
            Self::Gcr3TrpMode => Row {
                name: "gcr3trpmode",
                on_top_of: Some(Self::Gt),
                hardware: "EFR2[3]=1",
                kernel: "a kernel that lists GCR3TRPMode as usable in guests for IOMMU_GET_HW_INFO; CONTROL[58]=1 alone may be the firmware's doing",
                ..HOST_SWITCH
            },
            Self::HostAccess => Row {
                name: "hasup",
                hardware: "EFR[49]=1",
                kernel: "the dirty-tracking capability in IOMMU_GET_HW_INFO's out_capabilities",
                ..HOST_SWITCH
            },
            Self::HostDirty => Row {
                name: "hdsup",
                on_top_of: Some(Self::HostAccess),
                hardware: "EFR[52]=1",
                kernel: "the dirty-tracking capability in IOMMU_GET_HW_INFO's out_capabilities",
                ..HOST_SWITCH
            },
        }
    }

    /// The name in the device's property string and in JSON; stable.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The values that it takes.
    pub const fn kind(self) -> FeatureKind {
        self.row().kind
    }

    /// The aspects that must each be proven before a guest with a passed-through function is
    /// offered it. Empty: the device emulates it for passed-through functions too.
    pub const fn needs(self) -> &'static [Aspect] {
        self.row().needs
    }

    /// The feature that this one is built on; it must be provable as well.
    pub const fn on_top_of(self) -> Option<Self> {
        self.row().on_top_of
    }

    /// Whether only iommufd can carry it to a passed-through function, so that a legacy VFIO
    /// container rules it out whatever else is known.
    pub const fn needs_iommufd(self) -> bool {
        self.row().iommufd
    }

    /// Whether it shapes RAM, so that only facts known early can prove it.
    pub const fn is_early_only(self) -> bool {
        self.row().early_only
    }

    /// What would prove the given aspect, in words for a person.
    pub const fn evidence(self, aspect: Aspect) -> &'static str {
        match aspect {
            Aspect::Hardware => self.row().hardware,
            Aspect::Kernel => self.row().kernel,
            Aspect::Firmware => "",
        }
    }

    /// The value that grants nothing.
    pub const fn zero(self) -> Setting {
        self.setting(0)
    }

    /// A level as this feature's kind of value; above the feature's maximum it is the maximum.
    pub const fn setting(self, level: u8) -> Setting {
        match self.kind() {
            FeatureKind::Switch => Setting::Switch(level > 0),
            FeatureKind::Level { max } => Setting::Level(if level > max { max } else { level }),
        }
    }

    /// What level 0 is called by people: 4 for page tables, which are spoken of by all their
    /// levels, else 0.
    pub(crate) const fn base(self) -> u8 {
        self.row().spelled_from
    }

    /// Brings a value into this feature's kind, without ever reading more into it than it says.
    ///
    /// "On" for a level means level 1, the least that is something. A number other than 0 and 1
    /// for a switch makes no sense, and what makes no sense is not a yes.
    pub const fn normalize(self, value: Setting) -> Setting {
        match (self.kind(), value) {
            (FeatureKind::Switch, Setting::Level(level)) => Setting::Switch(level == 1),
            (_, value) => self.setting(value.level()),
        }
    }

    /// Reads a value as the property string spells it: `on`/`off` (also `true`/`false`,
    /// `yes`/`no`, `1`/`0`), or a number for a level; `hats` and `gats` take the number of all
    /// levels, 4 and up.
    ///
    /// # Errors
    /// Names the option, the value, and what it accepts.
    pub fn parse_setting(self, value: &str) -> Result<Setting, ParseSettingError> {
        let parsed = match self.kind() {
            FeatureKind::Switch => parse_switch(value).map(Setting::Switch),
            FeatureKind::Level { max } => match value {
                "off" => Some(Setting::Level(0)),
                _ => value
                    .parse::<u8>()
                    .ok()
                    .and_then(|n| n.checked_sub(self.base()))
                    .filter(|level| *level <= max)
                    .map(Setting::Level),
            },
        };
        parsed.ok_or_else(|| ParseSettingError {
            feature: self.name().to_owned(),
            value: value.to_owned(),
            accepted: match self.kind() {
                FeatureKind::Switch => "on, off".to_owned(),
                FeatureKind::Level { max } => {
                    let from = self.base();
                    format!("{from} to {}, off", from + max)
                }
            },
        })
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// `on`, `off` and their usual synonyms.
pub(crate) fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        Self::ALL
            .into_iter()
            .find(|feature| {
                feature.name() == name || (feature.row().field == name && !name.is_empty())
            })
            .ok_or_else(|| UnknownFeature {
                name: name.to_owned(),
            })
    }
}

impl Serialize for Feature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_round_trip() {
        assert_eq!(
            Feature::names(),
            "numint2k, xtsup, ga, vapic, gtsup, giosup, gats, glxsup, pasmax, pprsup, ephsup, \
             hats, htrangeignore, gcr3trpmode, hasup, hdsup"
        );
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(feature));
            let json = serde_json::to_string(&feature).unwrap();
            assert_eq!(json, format!("\"{feature}\""));
            assert_eq!(serde_json::from_str::<Feature>(&json).unwrap(), feature);
        }
    }

    #[test]
    fn names_of_register_fields_are_understood() {
        assert_eq!("gasup".parse(), Ok(Feature::Ga));
        assert_eq!("gamsup".parse(), Ok(Feature::GuestApic));
        assert!("".parse::<Feature>().is_err());
    }

    #[test]
    fn page_table_levels_are_spelled_in_full_and_kept_as_the_register_counts_them() {
        for (feature, text, level) in [
            (Feature::Hats, "4", 0),
            (Feature::Hats, "6", 2),
            (Feature::Gats, "5", 1),
            (Feature::Gats, "off", 0),
            (Feature::PasidMax, "15", 15),
        ] {
            assert_eq!(
                feature.parse_setting(text),
                Ok(Setting::Level(level)),
                "{feature}={text}"
            );
        }
        assert_eq!(Feature::Hats.spell(Setting::Level(2)), "6");
        assert_eq!(Feature::PasidMax.spell(Setting::Level(15)), "15");
        assert_eq!(Feature::NumInt2K.spell(Setting::ON), "on");
        assert!(Feature::Hats.parse_setting("7").is_err());
        assert!(Feature::Gats.parse_setting("6").is_err());
    }

    #[test]
    fn all_lists_every_feature_once_in_declaration_order() {
        assert!(Feature::ALL.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn two_k_needs_the_kernel_and_not_only_the_hardware() {
        assert_eq!(
            Feature::NumInt2K.needs(),
            [Aspect::Hardware, Aspect::Kernel]
        );
        assert!(
            Feature::NumInt2K
                .evidence(Aspect::Kernel)
                .contains("CONTROL[44:43]=01b")
        );
    }

    #[test]
    fn every_needed_aspect_says_what_would_prove_it() {
        for feature in Feature::ALL {
            for aspect in feature.needs() {
                assert_ne!(feature.evidence(*aspect), "", "{feature} {aspect}");
                assert_ne!(
                    *aspect,
                    Aspect::Firmware,
                    "{feature}: firmware proves nothing"
                );
            }
        }
    }

    #[test]
    fn on_top_of_has_no_cycle() {
        for feature in Feature::ALL {
            let chain = std::iter::successors(Some(feature), |f| f.on_top_of());
            assert!(chain.take(Feature::ALL.len() + 1).count() <= Feature::ALL.len());
        }
    }

    #[test]
    fn values_that_make_no_sense_are_not_a_yes() {
        assert_eq!(Feature::NumInt2K.normalize(Setting::Level(2)), Setting::OFF);
        assert_eq!(Feature::NumInt2K.normalize(Setting::Level(1)), Setting::ON);
        assert_eq!(Feature::Hats.normalize(Setting::ON), Setting::Level(1));
        assert_eq!(
            Feature::Hats.normalize(Setting::Level(200)),
            Setting::Level(2)
        );
    }

    #[test]
    fn errors_name_the_option_the_value_and_what_is_accepted() {
        let error = Feature::NumInt2K
            .parse_setting("maybe")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "`numint2k` does not take `maybe`; accepted: on, off");
        let error = Feature::Hats.parse_setting("3").unwrap_err().to_string();
        assert_eq!(error, "`hats` does not take `3`; accepted: 4 to 6, off");
        let error = "numint4k".parse::<Feature>().unwrap_err().to_string();
        assert!(error.starts_with("no such feature: `numint4k`; accepted: numint2k, xtsup"));
    }
}
