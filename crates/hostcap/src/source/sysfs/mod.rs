//! The source `sysfs`: what the driver shows in files, before anything is opened or bound.

mod features;

use std::path::{Path, PathBuf};

pub use features::{Features, FeaturesError, FeaturesFormat, OrderBy, read_features};

use crate::answer::{Answer, Gap, Note, Served, Situation};
use crate::aspect::Aspect;
use crate::fact::{Early, Fact, Late, Subject};
use crate::registers::HostRegisters;
use crate::scope::{PciFunction, Scope};
use crate::source::os::{self, KernelVersion};
use crate::source::{HostCapSource, SourceError};

/// PCI capability header: extended features are there (48882 §3.2.1, EFRSup).
const CAP_EFR_SUP: u32 = 1 << 27;

/// Reads `class/iommu/ivhd*/amd-iommu/{cap,features}` and `bus/pci/devices/*/iommu` under a root.
///
/// Needs no device, no file descriptor and no privilege, so all it tells is early. Named
/// `sysfs:ROOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
    osrelease: PathBuf,
}

/// What drives an IOMMU, by the name that its driver gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AmdVi,
    VtD,
    Other,
}

fn kind(name: &str) -> Kind {
    let numbered = |prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    match () {
        () if numbered("ivhd") => Kind::AmdVi,
        () if numbered("dmar") => Kind::VtD,
        () => Kind::Other,
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// A tree, `/sys` or a recorded one. The kernel's version is read from
    /// `proc/sys/kernel/osrelease` beside the root, if it is there.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let beside = root.parent().unwrap_or(Path::new("/"));
        Self {
            osrelease: beside.join("proc/sys/kernel/osrelease"),
            root,
        }
    }

    /// Reads the kernel's version from another file.
    #[must_use]
    pub fn with_osrelease(mut self, path: impl Into<PathBuf>) -> Self {
        self.osrelease = path.into();
        self
    }

    /// The root of the tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The kernel's version, when it can be read.
    pub fn kernel(&self) -> Option<KernelVersion> {
        let release = os::read(&self.osrelease, "").ok()?;
        KernelVersion::parse(&release)
    }

    /// The names of all IOMMUs, whoever made them.
    ///
    /// # Errors
    /// There is none, or the directory can't be read.
    pub fn iommus(&self) -> Result<Vec<String>, SourceError> {
        let path = self.root.join("class/iommu");
        let names = os::names(
            &path,
            "mount sysfs there, or name its root: sysfs:ROOT (a container may hide it)",
        )?;
        if names.is_empty() {
            return Err(os::unexpected(
                &path,
                "the kernel drives no IOMMU",
                "enable the IOMMU in the firmware's setup and boot without amd_iommu=off, \
                 intel_iommu=off and iommu=off (in a virtual machine: give it an IOMMU)",
            ));
        }
        Ok(names)
    }

    /// The name of the IOMMU that serves a function; `None` when none does.
    ///
    /// # Errors
    /// There is no such function, or its link can't be read.
    pub fn iommu_of(&self, function: PciFunction) -> Result<Option<String>, SourceError> {
        let device = self.device(function);
        if let Err(error) = device.metadata() {
            let remedy = "name a PCI function that this host has (lspci -D lists them)";
            return Err(os::file_error(&device, &error, remedy));
        }
        let link = device.join("iommu");
        match link.read_link() {
            Ok(target) => Ok(target
                .file_name()
                .and_then(|name| name.to_str())
                .map(str::to_owned)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(os::file_error(&link, &error, "")),
        }
    }

    /// The directory of a function.
    pub fn device(&self, function: PciFunction) -> PathBuf {
        self.root.join(format!("bus/pci/devices/{function}"))
    }

    /// Reads `features` of an AMD IOMMU.
    ///
    /// # Errors
    /// The file can't be read, or what it holds can't be understood.
    pub fn features(&self, iommu: &str) -> Result<Features, SourceError> {
        let path = self.attribute(iommu, "features");
        let text = os::read(&path, "it is there from Linux 3.17 on")?;
        read_features(&text, self.kernel()).map_err(|error| {
            let remedy = "use a source that reads the registers (iommufd, debugfs), or report it";
            os::unexpected(&path, &error.to_string(), remedy)
        })
    }

    fn attribute(&self, iommu: &str, name: &str) -> PathBuf {
        self.root
            .join("class/iommu")
            .join(iommu)
            .join("amd-iommu")
            .join(name)
    }

    fn cap(&self, iommu: &str) -> Result<u32, SourceError> {
        let path = self.attribute(iommu, "cap");
        let text = os::read(&path, "it is there from Linux 3.17 on")?;
        u32::from_str_radix(&text, 16).map_err(|_| {
            let problem = format!("`{text}` is no 32-bit hexadecimal number");
            os::unexpected(&path, &problem, "report it")
        })
    }

    fn amd(&self, iommu: &str, answer: &mut Answer<Early>) {
        let scope = Scope::Iommu(iommu.to_owned());
        let gap = |error: SourceError| Gap {
            source: self.name(),
            scope: scope.clone(),
            problem: error.to_string(),
        };
        let note = |text: String| Note {
            source: self.name(),
            scope: scope.clone(),
            text,
        };
        match self.cap(iommu) {
            Ok(cap) => {
                let efr = match cap & CAP_EFR_SUP {
                    0 => "without an EFR of its own: what is shown comes from the IVRS table",
                    _ => "with EFR",
                };
                answer
                    .notes
                    .push(note(format!("capability header {cap:#x}, {efr}")));
            }
            Err(error) => answer.gaps.push(gap(error)),
        }
        match self.features(iommu) {
            Ok(features) => {
                let HostRegisters { efr, efr2, .. } = features.registers;
                let mut text = format!("EFR={:#018x}", efr.map_or(0, u64::from));
                if let Some(efr2) = efr2 {
                    text += &format!(", EFR2={:#x}", u64::from(efr2));
                }
                let by = match features.by {
                    OrderBy::Nothing => "",
                    OrderBy::Values => ", told by what they hold",
                    OrderBy::ValuesAgainstVersion => {
                        ", told by what they hold, against the kernel's version"
                    }
                    OrderBy::Version => ", told by the kernel's version alone",
                };
                answer
                    .notes
                    .push(note(format!("{text} ({}{by})", features.format)));
                answer
                    .facts
                    .extend(features.registers.facts(&scope, &self.name()));
            }
            Err(error) => answer.gaps.push(gap(error)),
        }
    }
}

impl HostCapSource for Sysfs {
    fn name(&self) -> String {
        format!("sysfs:{}", self.root.display())
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let mut answer = Answer::nothing();
        let iommus = self.iommus()?;
        for iommu in &iommus {
            let what = match kind(iommu) {
                Kind::AmdVi => {
                    self.amd(iommu, &mut answer);
                    continue;
                }
                Kind::VtD => "an Intel VT-d IOMMU",
                Kind::Other => "not an AMD IOMMU",
            };
            answer.gaps.push(Gap {
                source: self.name(),
                scope: Scope::Iommu(iommu.clone()),
                problem: format!(
                    "it is {what} and has none of the registers that are asked for; use an AMD \
                     host for what depends on them"
                ),
            });
        }
        let any = |wanted| iommus.iter().any(|iommu| kind(iommu) == wanted);
        let hole = match (any(Kind::AmdVi), any(Kind::VtD)) {
            (true, _) => Some((true, "ivhd*: the host has AMD IOMMUs")),
            (false, true) => Some((false, "dmar*: the host has Intel IOMMUs")),
            // Some other maker's: nothing is known about its addresses.
            (false, false) => None,
        };
        if let Some((hole, seen)) = hole {
            let seen = format!("class/iommu/{seen}");
            let (aspect, scope) = (Aspect::Hardware, Scope::Host);
            let fact = Fact::new(Subject::HtHole, hole, aspect, scope, self.name(), seen);
            answer.facts.push(fact);
        }
        let devices = self.root.join("bus/pci/devices");
        for name in os::names(&devices, "").unwrap_or_default() {
            let Ok(function) = name.parse() else { continue };
            if let Ok(Some(iommu)) = self.iommu_of(function) {
                answer.served.push(Served { function, iommu });
            }
        }
        Ok(answer)
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        let mut answer = Answer::nothing();
        match self.iommu_of(function)? {
            Some(iommu) => answer.served.push(Served { function, iommu }),
            None => answer.gaps.push(Gap {
                source: self.name(),
                scope: Scope::Function(function),
                problem: "no IOMMU serves it, so it can't be passed through; enable the IOMMU in \
                          the firmware's setup"
                    .to_owned(),
            }),
        }
        Ok(answer)
    }
}
