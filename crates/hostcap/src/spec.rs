//! The text by which a user picks a source: `--host-caps mock:numint2k=off`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::fact::{Aspect, Early, Fact, Subject};
use crate::feature::{Feature, ParseSettingError, Setting, UnknownFeature, parse_switch};
use crate::scope::Scope;
use crate::source::{Emulated, Fixed, HostCapSource, LegacyVfio};

/// Which source to ask.
///
/// - `none`: no function is passed through, nothing depends on the host;
/// - `legacy-vfio`: functions are passed through by a legacy VFIO container, which knows nothing;
/// - `mock:NAME=VALUE,…`: a host described by hand. `NAME` is a feature or `hthole`, for all the
///   aspects that the feature needs, or `NAME.hw`, `NAME.firmware`, `NAME.kernel` for one of
///   them. What is not named is unknown, and unknown is not yes. `mock:` alone is a host about
///   which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostCapSpec {
    /// `none`.
    None,
    /// `legacy-vfio`.
    LegacyVfio,
    /// `mock:…`.
    Mock(MockHost),
}

/// What `mock:…` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MockHost {
    text: String,
    values: BTreeMap<(Subject, Aspect), Setting>,
}

const ACCEPTED: &str = "none, legacy-vfio, mock:NAME=VALUE,… (such as mock:numint2k=off,xtsup=on)";

/// The sources that read a real host: known names, so that the error can tell a typing mistake
/// from something that this build lacks.
const NOT_YET: [(&str, &str); 5] = [
    ("iommufd", "iommufd:…"),
    ("sysfs", "sysfs[:ROOT]"),
    ("kvm", "kvm:NUMBER"),
    ("file", "file:PATH"),
    ("auto", "auto"),
];

/// A specification that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No source has that name.
    #[error(
        "host capabilities: no source `{spec}`; accepted: {ACCEPTED}; not available in this \
         build: {}",
        not_yet()
    )]
    Unknown {
        /// What was given.
        spec: String,
    },
    /// A source that reads a real host, which this build does not have.
    #[error(
        "host capabilities: `{spec}` asks for `{form}`, which is not available in this build; \
         accepted: {ACCEPTED}"
    )]
    NotInThisBuild {
        /// What was given.
        spec: String,
        /// The form that it has.
        form: &'static str,
    },
    /// Something after a source that takes nothing.
    #[error("host capabilities: `{source_name}` takes no argument, but `{argument}` was given")]
    Argument {
        /// The source.
        source_name: &'static str,
        /// What followed the colon.
        argument: String,
    },
    /// A part of `mock:…` without a value.
    #[error(
        "mock: `{option}` has no value; accepted: NAME=VALUE, separated by commas, such as numint2k=off"
    )]
    NoValue {
        /// What was given.
        option: String,
    },
    /// A name in `mock:…` that is nothing a host can have.
    #[error("mock: {0}, hthole; each alone or with .hw, .firmware or .kernel")]
    UnknownFeature(UnknownFeature),
    /// What follows the dot is no aspect.
    #[error("mock: `{option}`: no aspect `{aspect}`; accepted: hw, firmware, kernel")]
    UnknownAspect {
        /// What was given.
        option: String,
        /// What followed the dot.
        aspect: String,
    },
    /// A value that the feature does not take.
    #[error("mock: {0}")]
    Setting(#[from] ParseSettingError),
    /// The same aspect of the same feature given twice.
    #[error("mock: the {aspect} aspect of `{subject}` is given twice; give it once")]
    Twice {
        /// The subject.
        subject: Subject,
        /// The aspect.
        aspect: Aspect,
    },
}

fn not_yet() -> String {
    NOT_YET.map(|(_, form)| form).join(", ")
}

impl HostCapSpec {
    /// The source.
    pub fn build(&self) -> Box<dyn HostCapSource> {
        match self {
            Self::None => Box::new(Emulated),
            Self::LegacyVfio => Box::new(LegacyVfio),
            Self::Mock(mock) => Box::new(mock.source()),
        }
    }
}

impl MockHost {
    /// The source that says what the text says, before RAM is laid out and for the whole host.
    pub fn source(&self) -> Fixed {
        let name = format!("mock:{}", self.text);
        let facts: Vec<Fact<Early>> = self
            .values
            .iter()
            .map(|((subject, aspect), value)| {
                let detail = format!("{subject}.{}={}", aspect.short(), subject.shown(*value));
                Fact::new(*subject, *value, *aspect, Scope::Host, &name, detail)
            })
            .collect();
        Fixed::new(name).with_early(facts)
    }
}

impl FromStr for MockHost {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut values = BTreeMap::new();
        for option in text
            .split(',')
            .map(str::trim)
            .filter(|option| !option.is_empty())
        {
            let Some((name, value)) = option.split_once('=') else {
                return Err(SpecError::NoValue {
                    option: option.to_owned(),
                });
            };
            let (name, value) = (name.trim(), value.trim());
            let (subject, aspect) = match name.split_once('.') {
                Some((subject, aspect)) => (subject, Some(parse_aspect(option, aspect)?)),
                None => (name, None),
            };
            let subject: Subject = subject.parse().map_err(SpecError::UnknownFeature)?;
            let value = parse_value(subject, value)?;
            let named;
            let aspects = match (aspect, subject) {
                (Some(aspect), _) => {
                    named = [aspect];
                    &named[..]
                }
                (None, Subject::Feature(feature)) if !feature.needs().is_empty() => feature.needs(),
                (None, _) => &[Aspect::Hardware],
            };
            for aspect in aspects.iter().copied() {
                if values.insert((subject, aspect), value).is_some() {
                    return Err(SpecError::Twice { subject, aspect });
                }
            }
        }
        Ok(Self {
            text: text.to_owned(),
            values,
        })
    }
}

fn parse_aspect(option: &str, text: &str) -> Result<Aspect, SpecError> {
    [Aspect::Hardware, Aspect::Firmware, Aspect::Kernel]
        .into_iter()
        .find(|aspect| aspect.short() == text)
        .ok_or_else(|| SpecError::UnknownAspect {
            option: option.to_owned(),
            aspect: text.to_owned(),
        })
}

fn parse_value(subject: Subject, value: &str) -> Result<Setting, ParseSettingError> {
    match subject {
        Subject::Feature(feature) => Feature::parse_setting(feature, value),
        Subject::HtHole => parse_switch(value)
            .map(Setting::Switch)
            .ok_or(ParseSettingError {
                feature: subject.name().to_owned(),
                value: value.to_owned(),
                accepted: "on, off".to_owned(),
            }),
    }
}

impl FromStr for HostCapSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let plain = |source_name, spec| match argument {
            None => Ok(spec),
            Some(argument) => Err(SpecError::Argument {
                source_name,
                argument: argument.to_owned(),
            }),
        };
        match name {
            "none" => plain("none", Self::None),
            "legacy-vfio" => plain("legacy-vfio", Self::LegacyVfio),
            "mock" => argument.unwrap_or_default().parse().map(Self::Mock),
            _ => match NOT_YET.iter().find(|(known, _)| *known == name) {
                Some((_, form)) => Err(SpecError::NotInThisBuild {
                    spec: text.to_owned(),
                    form,
                }),
                None => Err(SpecError::Unknown {
                    spec: text.to_owned(),
                }),
            },
        }
    }
}

impl fmt::Display for HostCapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::LegacyVfio => f.pad("legacy-vfio"),
            Self::Mock(mock) => write!(f, "mock:{}", mock.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<HostCapSpec>().unwrap_err().to_string()
    }

    #[test]
    fn every_accepted_form_parses_and_shows_as_it_was_given() {
        for text in [
            "none",
            "legacy-vfio",
            "mock:",
            "mock:numint2k=off,xtsup=on",
            "mock:hats=6",
        ] {
            let spec: HostCapSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            assert_eq!(spec.build().name(), text);
        }
        assert_eq!("mock".parse::<HostCapSpec>().unwrap().to_string(), "mock:");
    }

    #[test]
    fn a_mock_value_stands_for_all_aspects_that_the_feature_needs() {
        let mock: MockHost = "numint2k=on,gcr3trpmode.firmware=on,hthole=off"
            .parse()
            .unwrap();
        let early = mock.source().early_facts().unwrap();
        let said: Vec<_> = early
            .facts
            .iter()
            .map(|f| (f.subject(), f.aspect(), f.value()))
            .collect();
        assert_eq!(
            said,
            [
                (Feature::NumInt2K.into(), Aspect::Hardware, Setting::ON),
                (Feature::NumInt2K.into(), Aspect::Kernel, Setting::ON),
                (Feature::Gcr3TrpMode.into(), Aspect::Firmware, Setting::ON),
                (Subject::HtHole, Aspect::Hardware, Setting::OFF),
            ]
        );
    }

    #[test]
    fn an_unknown_source_lists_what_is_accepted_and_what_this_build_lacks() {
        let said = error("mok:numint2k=off");
        assert!(said.contains("no source `mok:numint2k=off`; accepted: none, legacy-vfio, mock:"));
        assert!(said.ends_with(
            "not available in this build: iommufd:…, sysfs[:ROOT], kvm:NUMBER, file:PATH, auto"
        ));
    }

    #[test]
    fn a_source_that_this_build_lacks_is_said_to_be_lacking() {
        for (text, form) in [
            ("iommufd:/dev/iommu", "iommufd:…"),
            ("sysfs", "sysfs[:ROOT]"),
            ("sysfs:/sys", "sysfs[:ROOT]"),
            ("kvm:245", "kvm:NUMBER"),
            ("file:host.json", "file:PATH"),
            ("auto", "auto"),
        ] {
            let said = error(text);
            assert!(
                said.contains(&format!("`{text}` asks for `{form}`")),
                "{said}"
            );
            assert!(
                said.contains("not available in this build; accepted: none"),
                "{said}"
            );
        }
    }

    #[test]
    fn mistakes_in_a_mock_name_the_option_and_what_is_accepted() {
        for (text, expected) in [
            (
                "mock:numint2k",
                "`numint2k` has no value; accepted: NAME=VALUE",
            ),
            (
                "mock:numint2k=maybe",
                "`numint2k` does not take `maybe`; accepted: on, off",
            ),
            ("mock:hats=9", "`hats` does not take `9`; accepted: 4 to 6"),
            (
                "mock:hthole=2",
                "`hthole` does not take `2`; accepted: on, off",
            ),
            (
                "mock:foo=on",
                "no such feature: `foo`; accepted: numint2k, ",
            ),
            (
                "mock:numint2k.bios=on",
                "no aspect `bios`; accepted: hw, firmware, kernel",
            ),
            (
                "mock:numint2k=on,numint2k.hw=on",
                "hardware aspect of `numint2k` is given twice",
            ),
            ("none:x", "`none` takes no argument, but `x` was given"),
            ("legacy-vfio:", "`legacy-vfio` takes no argument"),
        ] {
            let said = error(text);
            assert!(said.contains(expected), "{said}");
        }
    }
}
