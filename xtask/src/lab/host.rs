//! `amdvi-hostcap` on real kernels: the program runs inside guests with QEMU's IOMMUs, and what
//! it prints is checked here.

use std::path::PathBuf;
use std::time::Instant;

use amdvi_lab_init::{Command, PciId, Plan, Report};
use anyhow::{Context, Result};

use super::guest::{Guest, physical};
use super::host_checks::{Check, Seen};
use super::kernels::{self, Debian, Kernel};
use super::programs::Programs;
use super::{build, cache, host_checks, qemu};
use crate::step::Outcome;

/// QEMU's IOMMUs, each with the device that is passed through.
const AMD: [&str; 2] = ["amd-iommu,intremap=on,xtsup=on,dma-remap=on", EDU];
const INTEL: [&str; 2] = ["intel-iommu,intremap=off", EDU];
const NONE: [&str; 1] = [EDU];
/// QEMU's educational device: a PCI function without a driver, with DMA and MSI.
const EDU: &str = "edu";
const EDU_ID: PciId = PciId {
    vendor: 0x1234,
    device: 0x11e8,
};
/// Where QEMU puts the registers of amd-iommu, and two of them.
const AMD_BASE: u64 = 0xfed8_0000;
const EFR: u64 = 0x30;
const EFR2: u64 = 0x1a0;
/// A user without privileges.
const NOBODY: u32 = 65534;
/// Where the program is in a guest.
const TOOL: &str = "/bin/amdvi-hostcap";

/// What Debian's kernels have as modules.
const MODULES: [(&str, &str); 3] = [
    ("vfio_iommu_type1", "allow_unsafe_interrupts=1"),
    ("vfio_pci", ""),
    ("kvm_amd", ""),
];
/// Lets VFIO do without interrupt remapping: QEMU's amd-iommu does not have the southbridge that
/// Linux 7 looks for before it trusts it.
const UNSAFE: &str = "iommufd.allow_unsafe_interrupts=1 \
                      vfio_iommu_type1.allow_unsafe_interrupts=1";

/// Which kernels to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// Debian's, as they come.
    Debian,
    /// The one that the lab builds.
    Built,
}

impl Set {
    /// The step's name.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Debian => "host capabilities, Debian's kernels",
            Self::Built => "host capabilities, kernel with iommufd",
        }
    }

    /// Its guests, with how each is made.
    fn scenes(self) -> &'static [Scene] {
        match self {
            Self::Debian => &DEBIAN,
            Self::Built => &BUILT,
        }
    }
}

/// The names of all tests of a set.
pub(super) fn names(set: Set) -> impl Iterator<Item = String> {
    set.scenes().iter().flat_map(Scene::names)
}

/// A guest and what is checked in it.
struct Scene {
    name: &'static str,
    /// Debian's kernel; the lab's own unless given.
    debian: Option<Debian>,
    devices: &'static [&'static str],
    cmdline: &'static str,
    checks: &'static [(&'static str, Check)],
}

impl Scene {
    fn names(&self) -> impl Iterator<Item = String> {
        self.checks
            .iter()
            .map(|(check, _)| format!("{}/{check}", self.name))
    }

    const fn debian(name: &'static str, debian: Debian) -> Self {
        Self {
            name,
            debian: Some(debian),
            devices: &AMD,
            cmdline: "",
            checks: host_checks::DEBIAN,
        }
    }
}

const DEBIAN: [Scene; 2] = [
    Scene::debian("debian-6.12", Debian::V6_12),
    Scene::debian("debian-7", Debian::V7),
];

const BUILT: [Scene; 4] = [
    Scene {
        name: "iommufd-amd",
        debian: None,
        devices: &AMD,
        cmdline: UNSAFE,
        checks: host_checks::BUILT_AMD,
    },
    Scene {
        name: "iommufd-intel",
        debian: None,
        devices: &INTEL,
        cmdline: UNSAFE,
        checks: host_checks::BUILT_INTEL,
    },
    Scene {
        name: "iommufd-no-remapping",
        debian: None,
        devices: &AMD,
        cmdline: "",
        checks: host_checks::BUILT_UNSAFE,
    },
    Scene {
        name: "iommufd-none",
        debian: None,
        devices: &NONE,
        cmdline: "",
        checks: host_checks::BUILT_NONE,
    },
];

/// What the lab's step and `cargo xtask lab host` do.
pub(super) fn step(set: Set, filter: Option<&str>) -> Result<Outcome> {
    let (qemu, kernels) = match ready(set) {
        Ok(ready) => ready,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    let programs = Programs::build()?;
    let efr = physical(&qemu, &AMD, AMD_BASE + EFR)?;
    let efr2 = physical(&qemu, &AMD, AMD_BASE + EFR2)?;
    let (mut passed, mut failed) = (0, 0);
    for (kernel, scene) in kernels.iter().zip(set.scenes()) {
        let checks: Vec<_> = scene
            .names()
            .zip(scene.checks.iter().map(|(_, check)| check))
            .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter)))
            .collect();
        if checks.is_empty() {
            continue;
        }
        let start = Instant::now();
        let guest = Guest {
            name: scene.name,
            qemu: &qemu,
            kernel,
            devices: scene.devices,
            cmdline: scene.cmdline,
            plan: plan(),
            modules: if scene.debian.is_some() {
                &MODULES
            } else {
                &[]
            },
            programs: &[("/init", &programs.init), (TOOL, &programs.tool)],
        };
        let ended = guest.run();
        let seconds = start.elapsed().as_secs_f64();
        println!("guest {}: {}, {seconds:.1} s", scene.name, kernel.release());
        if let Err(error) = &ended {
            println!("  {error:#}");
        }
        let seen = ended.map(|ended| {
            for remark in &ended.remarks {
                println!("  emulator: {remark}");
            }
            (
                Seen {
                    report: ended.report,
                    efr,
                    efr2,
                },
                ended.log,
            )
        });
        for (name, check) in checks {
            let said = match &seen {
                Ok((seen, log)) => {
                    check(seen).with_context(|| format!("console in {}.*.log", log.display()))
                }
                Err(_) => Err(anyhow::anyhow!("the guest did not report, see above")),
            };
            match said {
                Ok(detail) => {
                    passed += 1;
                    println!("  ok      {name}: {detail}");
                }
                Err(error) => {
                    failed += 1;
                    println!("  FAILED  {name}: {error:#}");
                }
            }
        }
        if let Ok((seen, _)) = &seen {
            for problem in &seen.report.problems {
                println!("  init could not {problem}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(match (passed, failed) {
        (0, 0) => Outcome::Failed("no test has this name".to_owned()),
        (_, 0) => Outcome::Passed(format!("{passed} tests")),
        _ => Outcome::Failed(format!("{failed} of {} tests failed", passed + failed)),
    })
}

/// What the guests need from the cache, fetched or built if it is not there.
fn ready(set: Set) -> Result<(PathBuf, Vec<Kernel>)> {
    let cache = cache()?;
    let qemu = qemu()?;
    let kernel = |scene: &Scene| match scene.debian {
        Some(debian) => kernels::debian(&cache, debian),
        None => build::built(&cache),
    };
    let kernels = set.scenes().iter().map(kernel).collect::<Result<_>>()?;
    Ok((qemu, kernels))
}

/// What every guest does. Checks look at what concerns them.
fn plan() -> Plan {
    let run = |name: &str, args: &[&str]| Command {
        name: name.to_owned(),
        argv: [&[TOOL], args]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        user: None,
        output: amdvi_lab_init::Output::Report,
        marks: Default::default(),
        only_after: None,
        background: false,
        profile: None,
    };
    let unprivileged = |name: &str, args: &[&str]| Command {
        user: Some(NOBODY),
        ..run(name, args)
    };
    Plan {
        modules: Vec::new(),
        vfio: vec![EDU_ID],
        taps: Vec::new(),
        commands: vec![
            run("probe", &["probe", "--json"]),
            unprivileged("probe-nobody", &["probe", "--json"]),
            run(
                "probe-function",
                &["probe", "--json", "--function", "{function}"],
            ),
            // Once more: the device must have been let go.
            run(
                "probe-again",
                &["probe", "--json", "--function", "{function}"],
            ),
            run(
                "iommufd",
                &[
                    "probe",
                    "--json",
                    "--host-caps",
                    "iommufd:/dev/iommu,{function}",
                ],
            ),
            run(
                "iommufd-device",
                &[
                    "probe",
                    "--json",
                    "--host-caps",
                    "iommufd:/dev/iommu,{function}=/dev/vfio/devices/vfio0",
                ],
            ),
            unprivileged(
                "iommufd-nobody",
                &[
                    "probe",
                    "--json",
                    "--host-caps",
                    "iommufd:/dev/iommu,{function}",
                ],
            ),
            run(
                "explain",
                &["explain", "--json", "--request", "numint2k=on,xtsup=on"],
            ),
            run(
                "explain-function",
                &[
                    "explain",
                    "--json",
                    "--request",
                    "numint2k=on,xtsup=on",
                    "--function",
                    "{function}",
                ],
            ),
            run(
                "explain-legacy",
                &[
                    "explain",
                    "--json",
                    "--request",
                    "numint2k=on",
                    "--host-caps",
                    "legacy-vfio",
                ],
            ),
            run("plan", &["plan", "--json", "--ram", "10G"]),
            run("kvm", &["probe", "--json", "--host-caps", "kvm:100000"]),
        ],
        container: true,
        files: [
            "/sys/class/iommu/ivhd0/amd-iommu/features",
            "/sys/class/iommu/ivhd0/amd-iommu/cap",
            "/sys/kernel/debug/iommu/amd/iommu00/mmio",
        ]
        .map(str::to_owned)
        .to_vec(),
    }
}

/// What was printed by a command of the plan.
pub(super) fn ran<'a>(report: &'a Report, name: &str) -> Result<&'a amdvi_lab_init::Ran> {
    report
        .commands
        .get(name)
        .with_context(|| format!("the guest did not run `{name}`"))
}
