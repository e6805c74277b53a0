//! The text by which a user picks a source: `--host-caps mock:numint2k=off`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::aspect::Aspect;
use crate::fact::{Fact, Phase, Subject};
use crate::feature::{Feature, ParseSettingError, Setting, UnknownFeature, parse_switch};
#[cfg(feature = "iommufd")]
use crate::scope::PciFunction;
use crate::scope::Scope;
#[cfg(feature = "iommufd")]
use crate::source::Iommufd;
#[cfg(feature = "file")]
use crate::source::RecordedFile;
use crate::source::{
    Debugfs, Described, Emulated, HostCapSource, KernelInference, LegacyVfio, Several, Sysfs,
};
#[cfg(feature = "kvm")]
use crate::source::{Kvm, Unusable};

/// Which source to ask.
///
/// - `none`: no function is passed through, nothing depends on the host;
/// - `auto`: sysfs, debugfs (root), and iommufd for functions that are passed through;
/// - `sysfs[:ROOT]`: the files of the AMD IOMMU driver below `/sys` or a recorded tree;
/// - `debugfs[:ROOT]`: the control registers, for root, below `/sys/kernel/debug`;
/// - `iommufd[:PATH][,FUNCTION[=DEVICE]…]`: `IOMMU_GET_HW_INFO` through `/dev/iommu` or `PATH`.
///   Functions named here (`0000:c1:00.0`, or `0000:c1:00.0=/dev/vfio/devices/vfio0`) are bound
///   without being attached, and asked early; others when they are passed through;
/// - `kvm:NUMBER[,dev=PATH]`: a KVM capability that says whether the host has 2K interrupts;
/// - `legacy-vfio`: functions are passed through by a legacy VFIO container, which knows nothing;
/// - `kernel-inference[:ROOT]`: a conclusion from the kernel's version, never part of `auto`;
/// - `file:PATH`: what `amdvi-hostcap probe --json` printed, here or on another host;
/// - `mock:NAME=VALUE,…`: a host described by hand. `NAME` is a feature or `hthole`, for all the
///   aspects that the feature needs, or `NAME.hw`, `NAME.firmware`, `NAME.kernel` for one of
///   them. What is not named is unknown, and unknown is not yes. `mock:` alone is a host about
///   which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostCapSpec {
    /// `none`.
    None,
    /// `auto`.
    Auto,
    /// `sysfs[:ROOT]`.
    Sysfs(PathBuf),
    /// `debugfs[:ROOT]`.
    Debugfs(PathBuf),
    /// `iommufd[:…]`.
    #[cfg(feature = "iommufd")]
    Iommufd(IommufdSpec),
    /// `kvm:NUMBER[,dev=PATH]`.
    #[cfg(feature = "kvm")]
    Kvm {
        /// The capability's number.
        number: u32,
        /// KVM's device file.
        device: PathBuf,
    },
    /// `legacy-vfio`.
    LegacyVfio,
    /// `kernel-inference[:ROOT]`.
    KernelInference(PathBuf),
    /// `file:PATH`.
    #[cfg(feature = "file")]
    File(PathBuf),
    /// `mock:…`.
    Mock(MockHost),
}

/// What `iommufd:…` says.
#[cfg(feature = "iommufd")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommufdSpec {
    /// The iommufd, `/dev/iommu`.
    pub device: PathBuf,
    /// The functions to ask early, with their VFIO device files where those are given.
    pub functions: Vec<(PciFunction, Option<PathBuf>)>,
}

/// What `mock:…` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MockHost {
    text: String,
    values: BTreeMap<(Subject, Aspect), Setting>,
}

const ACCEPTED: &str = "none, auto, sysfs[:ROOT], debugfs[:ROOT], \
                        iommufd[:PATH][,FUNCTION[=DEVICE]…], kvm:NUMBER[,dev=PATH], legacy-vfio, \
                        kernel-inference[:ROOT], file:PATH, \
                        mock:NAME=VALUE,… (such as mock:numint2k=off,xtsup=on)";

/// A specification that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No source has that name.
    #[error("host capabilities: no source `{spec}`; accepted: {ACCEPTED}")]
    Unknown {
        /// What was given.
        spec: String,
    },
    /// A source that this build lacks.
    #[error(
        "host capabilities: `{spec}` asks for a source that this build does not have; build \
         amdvi-hostcap with its feature `{feature}`"
    )]
    NotInThisBuild {
        /// What was given.
        spec: String,
        /// The crate's feature.
        feature: &'static str,
    },
    /// A source without what it needs to be told, or with something else.
    #[error("host capabilities: `{spec}` can't be used: {problem}; accepted: {accepted}")]
    Source {
        /// What was given.
        spec: String,
        /// What is wrong.
        problem: String,
        /// The form.
        accepted: &'static str,
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

impl HostCapSpec {
    /// The source.
    pub fn build(&self) -> Box<dyn HostCapSource> {
        match self {
            Self::None => Box::new(Emulated),
            Self::Auto => Box::new(Several::auto()),
            Self::Sysfs(root) => Box::new(Sysfs::new(root)),
            Self::Debugfs(root) => Box::new(Debugfs::new(root)),
            #[cfg(feature = "iommufd")]
            Self::Iommufd(spec) => Box::new(spec.source()),
            #[cfg(feature = "kvm")]
            Self::Kvm { number, device } => match Kvm::new(*number) {
                Ok(kvm) => Box::new(kvm.with_path(device)),
                Err(error) => Box::new(Unusable::new(format!("kvm:{number}"), error)),
            },
            Self::LegacyVfio => Box::new(LegacyVfio),
            Self::KernelInference(root) => Box::new(KernelInference::new(root)),
            #[cfg(feature = "file")]
            Self::File(path) => Box::new(RecordedFile::new(path)),
            Self::Mock(mock) => Box::new(mock.source()),
        }
    }
}

impl MockHost {
    /// The source that says what the text says: before RAM is laid out for the whole host, and
    /// again about each function that is bound, for that function.
    pub fn source(&self) -> Described {
        Described::new(self.clone())
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn facts<P: Phase>(&self, scope: &Scope) -> Vec<Fact<P>> {
        let name = format!("mock:{}", self.text);
        let said = self.values.iter().map(|((subject, aspect), value)| {
            let detail = format!("{subject}.{}={}", aspect.short(), subject.shown(*value));
            Fact::new(*subject, *value, *aspect, scope.clone(), &name, detail)
        });
        said.collect()
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
                // It needs nothing of the host's hardware: said of it, it is a prohibition.
                (None, Subject::Feature(_)) => &[Aspect::Kernel],
                (None, Subject::HtHole) => &[Aspect::Hardware],
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
        let wrong = |problem: String, accepted| SpecError::Source {
            spec: text.to_owned(),
            problem,
            accepted,
        };
        let rooted = |default: &str, accepted| match argument {
            Some("") => Err(wrong("the root is empty".to_owned(), accepted)),
            root => Ok(PathBuf::from(root.unwrap_or(default))),
        };
        match name {
            "none" => plain("none", Self::None),
            "auto" => plain("auto", Self::Auto),
            "sysfs" => rooted("/sys", "sysfs[:ROOT]").map(Self::Sysfs),
            "debugfs" => rooted("/sys/kernel/debug", "debugfs[:ROOT]").map(Self::Debugfs),
            #[cfg(feature = "iommufd")]
            "iommufd" => IommufdSpec::parse(argument.unwrap_or_default())
                .map(Self::Iommufd)
                .map_err(|problem| wrong(problem, "iommufd[:PATH][,FUNCTION[=DEVICE]…]")),
            #[cfg(feature = "kvm")]
            "kvm" => parse_kvm(argument.unwrap_or_default())
                .map_err(|problem| wrong(problem, "kvm:NUMBER[,dev=PATH]")),
            "legacy-vfio" => plain("legacy-vfio", Self::LegacyVfio),
            "kernel-inference" => {
                rooted("/sys", "kernel-inference[:ROOT]").map(Self::KernelInference)
            }
            #[cfg(feature = "file")]
            "file" => match argument {
                None | Some("") => Err(wrong("there is no path".to_owned(), "file:PATH")),
                Some(path) => Ok(Self::File(path.into())),
            },
            "mock" => argument.unwrap_or_default().parse().map(Self::Mock),
            _ => Err(lacking(name, text)),
        }
    }
}

/// A name that no arm took: a source that was left out of this build, or none at all.
fn lacking(name: &str, spec: &str) -> SpecError {
    let spec = spec.to_owned();
    match ["file", "iommufd", "kvm"].into_iter().find(|f| *f == name) {
        Some(feature) => SpecError::NotInThisBuild { spec, feature },
        None => SpecError::Unknown { spec },
    }
}

#[cfg(feature = "iommufd")]
impl IommufdSpec {
    /// The source.
    pub fn source(&self) -> Iommufd {
        self.functions
            .iter()
            .fold(Iommufd::new(&self.device), |source, (function, device)| {
                source.with_function(*function, device.clone())
            })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut spec = Self {
            device: "/dev/iommu".into(),
            functions: Vec::new(),
        };
        for (index, item) in text.split(',').enumerate() {
            match item.split_once('=') {
                None if item.is_empty() && index == 0 => {}
                None if item.starts_with('/') && index == 0 => spec.device = item.into(),
                None => {
                    let function = item.parse::<PciFunction>().map_err(|e| e.to_string())?;
                    spec.functions.push((function, None));
                }
                Some((_, "")) => return Err(format!("`{item}` has no device file")),
                Some((function, device)) => {
                    let function = function.parse::<PciFunction>().map_err(|e| e.to_string())?;
                    spec.functions.push((function, Some(device.into())));
                }
            }
        }
        Ok(spec)
    }
}

#[cfg(feature = "kvm")]
fn parse_kvm(text: &str) -> Result<HostCapSpec, String> {
    let (number, rest) = match text.split_once(',') {
        Some((number, rest)) => (number, Some(rest)),
        None => (text, None),
    };
    let device = match rest.map(|rest| rest.strip_prefix("dev=")) {
        None => "/dev/kvm",
        Some(Some(path)) if !path.is_empty() => path,
        Some(_) => return Err(format!("`{}` is not dev=PATH", rest.unwrap_or_default())),
    };
    if number.is_empty() {
        let why = "the capability has no number upstream, so it must be given";
        return Err(why.to_owned());
    }
    let number = number
        .parse()
        .map_err(|_| format!("`{number}` is no number"))?;
    Kvm::new(number).map_err(|error| error.to_string())?;
    Ok(HostCapSpec::Kvm {
        number,
        device: device.into(),
    })
}

impl fmt::Display for HostCapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mock(mock) => write!(f, "mock:{}", mock.text),
            other => f.pad(&other.build().name()),
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
    fn every_accepted_form_parses_and_shows_in_full() {
        for (text, shown) in [
            ("none", "none"),
            ("auto", "auto"),
            ("sysfs", "sysfs:/sys"),
            ("sysfs:/tmp/tree/sys", "sysfs:/tmp/tree/sys"),
            ("debugfs", "debugfs:/sys/kernel/debug"),
            ("iommufd", "iommufd:/dev/iommu"),
            ("iommufd:", "iommufd:/dev/iommu"),
            (
                "iommufd:/dev/iommu,c1:00.0",
                "iommufd:/dev/iommu,0000:c1:00.0",
            ),
            (
                "iommufd:0000:c1:00.0=/dev/vfio/devices/vfio0,c1:00.1",
                "iommufd:/dev/iommu,0000:c1:00.0=/dev/vfio/devices/vfio0,0000:c1:00.1",
            ),
            ("kvm:245", "kvm:245"),
            ("kvm:1000,dev=/dev/other", "kvm:1000,dev=/dev/other"),
            ("legacy-vfio", "legacy-vfio"),
            ("kernel-inference", "kernel-inference:/sys"),
            ("file:host.json", "file:host.json"),
            ("mock", "mock:"),
            ("mock:", "mock:"),
            ("mock:numint2k=off,xtsup=on", "mock:numint2k=off,xtsup=on"),
            ("mock:hats=6", "mock:hats=6"),
        ] {
            let spec: HostCapSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(spec.build().name(), shown);
            assert_eq!(shown.parse::<HostCapSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn a_source_that_is_told_the_wrong_thing_says_what_it_takes() {
        for (text, expected) in [
            ("kvm", "no number upstream"),
            ("kvm:", "no number upstream"),
            ("kvm:x", "`x` is no number"),
            ("kvm:245,x=1", "`x=1` is not dev=PATH"),
            ("kvm:188", "a capability number above 244"),
            ("file", "there is no path; accepted: file:PATH"),
            ("file:", "there is no path"),
            ("sysfs:", "the root is empty; accepted: sysfs[:ROOT]"),
            ("iommufd:/dev/iommu,nic", "`nic` is no PCI function"),
            ("iommufd:c1:00.0=", "has no device file"),
            ("auto:x", "`auto` takes no argument"),
        ] {
            let said = error(text);
            assert!(said.contains(expected), "{said}");
        }
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
    fn an_unknown_source_lists_what_is_accepted() {
        let said = error("mok:numint2k=off");
        assert!(
            said.contains("no source `mok:numint2k=off`; accepted: none, auto, sysfs"),
            "{said}"
        );
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
