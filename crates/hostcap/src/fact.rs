//! Facts: a value, who says so, what it speaks for, and when it was known.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::aspect::Aspect;
use crate::feature::{Feature, Setting, UnknownFeature};
use crate::scope::Scope;
use crate::shown::Shown;

/// What a fact is about; in JSON and specification strings a plain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// A feature that a guest can be offered.
    Feature(Feature),
    /// `hthole`: the host's physical addresses have the HyperTransport range
    /// (fd_0000_0000–ff_ffff_ffff), as AMD hosts do. RAM layout asks for it.
    HtHole,
}

impl Subject {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Feature(feature) => feature.name(),
            Self::HtHole => "hthole",
        }
    }

    fn normalize(self, value: Setting) -> Setting {
        match self {
            Self::Feature(feature) => feature.normalize(value),
            Self::HtHole => Setting::Switch(value.is_on()),
        }
    }

    pub(crate) fn shown(self, value: Setting) -> Shown {
        match self {
            Self::Feature(feature) => feature.shown(value),
            Self::HtHole => Shown::Switch(value.is_on()),
        }
    }

    pub(crate) fn read_shown(self, shown: Shown) -> Setting {
        match self {
            Self::Feature(feature) => feature.read_shown(shown),
            Self::HtHole => Setting::Switch(matches!(shown, Shown::Switch(true))),
        }
    }
}

impl From<Feature> for Subject {
    fn from(feature: Feature) -> Self {
        Self::Feature(feature)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Subject {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        if name == Self::HtHole.name() {
            Ok(Self::HtHole)
        } else {
            name.parse().map(Self::Feature)
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Early {}
    impl Sealed for super::Late {}
}

/// When a fact was known: [`Early`] or [`Late`]. Sealed: there are no other phases.
pub trait Phase: sealed::Sealed + Copy + Default + Ord + fmt::Debug + fmt::Display {}

impl Phase for Early {}
impl Phase for Late {}

/// Known before RAM is laid out.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Early {
    /// The only value: it writes the phase into JSON, and refuses a recorded late fact.
    #[default]
    #[serde(rename = "early")]
    Early,
}

/// Known only after a device was bound: too late for RAM layout.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Late {
    /// The only value: it writes the phase into JSON, and refuses a recorded early fact.
    #[default]
    #[serde(rename = "late")]
    Late,
}

impl fmt::Display for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("early")
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("late")
    }
}

/// What a fact says, without its phase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Statement {
    pub(crate) subject: Subject,
    pub(crate) aspect: Aspect,
    pub(crate) scope: Scope,
    pub(crate) value: Setting,
    pub(crate) source: String,
    pub(crate) detail: String,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            detail,
            scope,
            ..
        } = self;
        f.write_str(source)?;
        let about = *scope != Scope::Host;
        match (about, detail.is_empty()) {
            (true, true) => write!(f, " ({scope})"),
            (true, false) => write!(f, " ({scope}: {detail})"),
            (false, true) => Ok(()),
            (false, false) => write!(f, " ({detail})"),
        }
    }
}

/// One thing that is known about the host.
///
/// `Fact<Early>` and `Fact<Late>` are different types with no conversion between them. In JSON:
/// `{"subject","aspect","scope","value","source","detail","phase"}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Wire<P>", into = "Wire<P>")]
#[serde(bound(
    serialize = "P: Serialize + Phase",
    deserialize = "P: Deserialize<'de> + Phase"
))]
pub struct Fact<P> {
    pub(crate) statement: Statement,
    phase: P,
}

/// The JSON form. Reading it goes through [`Fact::new`], so that a value from a file is brought
/// into its feature's kind as one from code is.
#[derive(Serialize, Deserialize)]
struct Wire<P> {
    subject: Subject,
    aspect: Aspect,
    scope: Scope,
    value: Shown,
    source: String,
    #[serde(default)]
    detail: String,
    phase: P,
}

impl<P: Phase> From<Wire<P>> for Fact<P> {
    fn from(w: Wire<P>) -> Self {
        let value = w.subject.read_shown(w.value);
        Self::new(w.subject, value, w.aspect, w.scope, w.source, w.detail)
    }
}

impl<P> From<Fact<P>> for Wire<P> {
    fn from(
        Fact {
            statement: s,
            phase,
        }: Fact<P>,
    ) -> Self {
        Self {
            subject: s.subject,
            aspect: s.aspect,
            scope: s.scope,
            value: s.subject.shown(s.value),
            source: s.source,
            detail: s.detail,
            phase,
        }
    }
}

impl<P: Phase> Fact<P> {
    /// A fact. `source` is the [name](crate::HostCapSource::name) of who says so, `detail` what
    /// was seen (`EFR2[9:8]=01b`), for reasons; `value` is brought into the feature's kind
    /// ([`Feature::normalize`]).
    pub fn new(
        subject: impl Into<Subject>,
        value: impl Into<Setting>,
        aspect: Aspect,
        scope: Scope,
        source: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        let subject = subject.into();
        Self {
            statement: Statement {
                subject,
                aspect,
                scope,
                value: subject.normalize(value.into()),
                source: source.into(),
                detail: detail.into(),
            },
            phase: P::default(),
        }
    }

    /// What it is about.
    pub fn subject(&self) -> Subject {
        self.statement.subject
    }

    /// What it is evidence of.
    pub fn aspect(&self) -> Aspect {
        self.statement.aspect
    }

    /// What it speaks for.
    pub fn scope(&self) -> &Scope {
        &self.statement.scope
    }

    /// The value, of the subject's kind.
    pub fn value(&self) -> Setting {
        self.statement.value
    }

    /// The value as a person reads it.
    pub fn spelled(&self) -> String {
        let Statement { subject, value, .. } = &self.statement;
        subject.shown(*value).to_string()
    }

    /// Who says so.
    pub fn source(&self) -> &str {
        &self.statement.source
    }

    /// What was seen; may be empty.
    pub fn detail(&self) -> &str {
        &self.statement.detail
    }

    /// When it was known.
    pub fn phase(&self) -> P {
        self.phase
    }
}

impl<P: Phase> fmt::Display for Fact<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Statement {
            subject,
            aspect,
            value,
            ..
        } = &self.statement;
        write!(
            f,
            "{subject} {aspect}={}, {}, from {}",
            subject.shown(*value),
            self.phase,
            self.statement
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::PciFunction;

    fn late() -> Fact<Late> {
        Fact::new(
            Feature::NumInt2K,
            true,
            Aspect::Kernel,
            Scope::Function(PciFunction::new(0, 0xc1, 0, 0)),
            "iommufd:/dev/iommu",
            "CONTROL[44:43]=01b",
        )
    }

    #[test]
    fn a_number_for_a_subject_that_is_a_switch_is_not_a_yes() {
        assert_eq!(Subject::HtHole.read_shown(Shown::Number(7)), Setting::OFF);
    }

    #[test]
    fn a_fact_round_trips_through_json_with_its_phase() {
        let json = serde_json::to_value(late()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "subject": "numint2k", "aspect": "kernel", "scope": {"function": "0000:c1:00.0"},
                "value": true, "source": "iommufd:/dev/iommu", "detail": "CONTROL[44:43]=01b",
                "phase": "late",
            })
        );
        assert_eq!(serde_json::from_value::<Fact<Late>>(json).unwrap(), late());
    }

    #[test]
    fn a_recorded_late_fact_cannot_be_read_as_an_early_one() {
        let json = serde_json::to_string(&late()).unwrap();
        let error = serde_json::from_str::<Fact<Early>>(&json)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unknown variant `late`, expected `early`"),
            "{error}"
        );
    }

    #[test]
    fn a_recorded_value_of_the_wrong_kind_is_not_a_yes() {
        let mut json = serde_json::to_value(late()).unwrap();
        json["value"] = 7.into();
        assert_eq!(
            serde_json::from_value::<Fact<Late>>(json).unwrap().value(),
            Setting::OFF
        );
    }

    #[test]
    fn a_fact_reads_as_a_line_of_a_log() {
        assert_eq!(
            late().to_string(),
            "numint2k kernel=on, late, from iommufd:/dev/iommu (0000:c1:00.0: CONTROL[44:43]=01b)"
        );
    }
}
