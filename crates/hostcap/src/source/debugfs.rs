//! The source `debugfs`: the control register of each IOMMU, for root.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use amdvi_regs::mmio::{Control, offset};

use crate::answer::{Answer, Gap, Note, Situation};
use crate::fact::{Early, Late};
use crate::registers::HostRegisters;
use crate::scope::{PciFunction, Scope};
use crate::source::os;
use crate::source::{HostCapSource, SourceError};

const NEEDS: &str = "it takes an AMD host and Linux 6.17 or later with CONFIG_AMD_IOMMU_DEBUGFS, \
                     and debugfs mounted (mount -t debugfs debugfs /sys/kernel/debug)";

/// Reads CONTROL through `iommu/amd/iommuNN/mmio` under a root.
///
/// The file takes a register's offset and then shows that register. What it shows is believed
/// only with the offset that was asked for, so that someone else who uses the file at the same
/// time can't be mistaken for an answer. Named `debugfs:ROOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debugfs {
    root: PathBuf,
}

impl Default for Debugfs {
    fn default() -> Self {
        Self::new("/sys/kernel/debug")
    }
}

impl Debugfs {
    /// A tree, `/sys/kernel/debug` or a recorded one.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn control(path: &Path) -> Result<Control, SourceError> {
        // It may show the right register already (a recorded tree does): then nothing is written.
        if let Some(value) = shown(&os::read(path, NEEDS)?, offset::CONTROL) {
            return Ok(value.into());
        }
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            // In one piece: the kernel takes each write as a number of its own.
            .and_then(|mut file| file.write_all(format!("{:#x}\n", offset::CONTROL).as_bytes()))
            .map_err(|error| os::file_error(path, &error, NEEDS))?;
        let text = os::read(path, NEEDS)?;
        match shown(&text, offset::CONTROL) {
            Some(value) => Ok(value.into()),
            None => Err(os::unexpected(
                path,
                &format!(
                    "asked for register {:#x}, it shows `{text}`",
                    offset::CONTROL
                ),
                "see that nobody else uses the file, and try again",
            )),
        }
    }
}

/// Reads `Offset:0x18 Value:0x000c22000003f48d`.
fn shown(text: &str, wanted: u64) -> Option<u64> {
    let (offset, value) = text.split_once(char::is_whitespace)?;
    let hex = |field: &str, name: &str| {
        let digits = field.trim().strip_prefix(name)?.strip_prefix(":0x")?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
    };
    (hex(offset, "Offset")? == wanted).then_some(())?;
    hex(value, "Value")
}

impl HostCapSource for Debugfs {
    fn name(&self) -> String {
        format!("debugfs:{}", self.root.display())
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let directory = self.root.join("iommu/amd");
        let mut answer = Answer::nothing();
        for name in os::names(&directory, NEEDS)? {
            // `iommu00` here is `ivhd0` in sysfs: both are numbered by the driver's index.
            let Some(index) = name
                .strip_prefix("iommu")
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let scope = Scope::Iommu(format!("ivhd{index}"));
            match Self::control(&directory.join(&name).join("mmio")) {
                Ok(control) => {
                    let registers = HostRegisters {
                        control: Some(control),
                        ..HostRegisters::default()
                    };
                    answer.facts.extend(registers.facts(&scope, &self.name()));
                    answer.notes.push(Note {
                        source: self.name(),
                        scope,
                        text: format!("CONTROL={:#018x}", u64::from(control)),
                    });
                }
                Err(error) => answer.gaps.push(Gap {
                    source: self.name(),
                    scope,
                    problem: error.to_string(),
                }),
            }
        }
        if answer == Answer::nothing() {
            return Err(os::unexpected(&directory, "it shows no IOMMU", NEEDS));
        }
        Ok(answer)
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(Answer::nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_register_that_was_asked_for_is_believed() {
        let documented = "Offset:0x18 Value:0x000c22000003f48d";
        assert_eq!(shown(documented, 0x18), Some(0x000c_2200_0003_f48d));
        assert_eq!(shown(documented, 0x30), None);
        for text in [
            "",
            "Please provide mmio register's offset",
            "Offset:0x18",
            "Offset:0x18 Value:",
            "Offset:0x18 Value:0x",
            "Offset:0x18 Value:0x+1",
            "0x18 0x0",
        ] {
            assert_eq!(shown(text, 0x18), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_shows_another_register_is_told_the_offset_and_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let iommu = dir.path().join("iommu/amd/iommu00");
        std::fs::create_dir_all(&iommu).unwrap();
        // A plain file can't answer: what was written is what is read.
        std::fs::write(iommu.join("mmio"), "Offset:0x30 Value:0x1\n").unwrap();
        let answer = Debugfs::new(dir.path()).early_facts().unwrap();
        assert_eq!(answer.facts, []);
        let problem = &answer.gaps[0].problem;
        assert!(problem.contains("asked for register 0x18"), "{problem}");
        assert!(problem.contains("iommu00/mmio"), "{problem}");
    }

    #[test]
    fn without_the_directory_the_error_says_what_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let error = Debugfs::new(dir.path())
            .early_facts()
            .unwrap_err()
            .to_string();
        for part in [
            "iommu/amd",
            "No such file",
            "6.17",
            "CONFIG_AMD_IOMMU_DEBUGFS",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
