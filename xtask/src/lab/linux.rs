//! Linux on the reference VMM as a person asks for it.

use std::path::PathBuf;
use std::time::Instant;

use amdvi_lab_guest::plan::{Check, Msix, Pin, UnmapFault, VfioDma};
use anyhow::Result;

use super::kernels::Kernel;
use super::matrix::judge::Verdict;
use super::matrix::run::{self, Ready};
use super::matrix::{Case, Version, folder};

/// Vectors that a CPU has for interrupts of devices, at least.
const VECTORS_PER_CPU: u32 = 180;
/// Where its logs are.
const NAME: &str = "linux";

/// What was asked for.
pub(crate) struct Wish {
    /// A kernel instead of Debian's newest.
    pub(crate) kernel: Option<PathBuf>,
    /// The folder with its modules.
    pub(crate) modules: Option<PathBuf>,
    /// An initial ramdisk instead of ours.
    pub(crate) initrd: Option<PathBuf>,
    /// More of the kernel's command line.
    pub(crate) cmdline: String,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// RAM.
    pub(crate) memory: String,
    /// The IOMMUs.
    pub(crate) devices: Vec<String>,
    /// The reference VMM's `--host-caps`.
    pub(crate) host_caps: Option<String>,
    /// More options of the reference VMM.
    pub(crate) rest: Vec<String>,
}

/// What came of it.
pub(crate) struct Finished {
    /// What was checked.
    pub(crate) verdict: Verdict,
    /// The release of the kernel that was started.
    pub(crate) kernel: String,
    /// What ran the virtual machine.
    pub(crate) accel: &'static str,
    /// Why it was that.
    pub(crate) why: String,
    /// Where the logs are.
    pub(crate) logs: PathBuf,
}

/// Boots Linux and says how it goes.
pub(crate) fn boot(wish: &Wish, say: &dyn Fn(&str)) -> Result<Finished> {
    let ready = Ready::prepare()?;
    say(&ready.runner.why());
    let kernel = match &wish.kernel {
        Some(image) => Kernel::of(image, wish.modules.as_deref())?,
        None => Version::V7.kernel()?,
    };
    let case = case(wish, &kernel);
    let logs = folder(NAME);
    say(&format!(
        "booting Linux {} on {} CPUs; logs in {}",
        kernel.release(),
        wish.cpus,
        logs.display()
    ));
    let mut progress = Progress::new(say, wish.initrd.is_some());
    let initrd = wish.initrd.as_deref();
    let verdict = run::run(&ready, &case, &kernel, initrd, &logs, &mut |line| {
        progress.line(line);
    })?;
    for remark in &verdict.remarks {
        say(&format!("emulator: {remark}"));
    }
    for check in verdict.checks.iter().filter(|check| !check.passed) {
        say(&format!("FAILED {}: {}", check.name, check.detail));
    }
    summary(&verdict, say);
    Ok(Finished {
        verdict,
        kernel: kernel.release().to_owned(),
        accel: ready.runner.accel(),
        why: ready.runner.why(),
        logs,
    })
}

/// The machine and what is checked in it.
fn case(wish: &Wish, kernel: &Kernel) -> Case {
    let mut case = Case::usual(Version::V7).cpus(wish.cpus);
    case.memory.clone_from(&wish.memory);
    case.iommus.clone_from(&wish.devices);
    case.args.extend(wish.rest.iter().cloned());
    if let Some(spec) = &wish.host_caps {
        case.args.extend(["--host-caps".to_owned(), spec.clone()]);
    }
    if !wish.cmdline.is_empty() {
        case.cmdline.push(wish.cmdline.clone());
    }
    if wish.initrd.is_some() {
        case.reports = 0;
        case.plan.checks.clear();
        return case;
    }
    case.check_as(
        "msix",
        240,
        Check::Msix(Msix {
            vectors: vectors(wish, kernel),
            ..Msix::default()
        }),
    )
    .check(Check::Msi(Pin::default()))
    .check(Check::Intx(Pin::default()))
    .check_as("vfio-dma", 120, Check::VfioDma(VfioDma::default()))
    .check(Check::UnmapFault(UnmapFault::default()))
}

/// How many vectors of one function Linux must be able to have.
fn vectors(wish: &Wish, kernel: &Kernel) -> u32 {
    let requested = wish
        .devices
        .iter()
        .any(|device| device.split(',').any(|part| part == "numint2k=on"));
    // What a host has to offer is not known here; none that was given is all of it.
    let granted = wish.host_caps.as_deref().is_none_or(|spec| spec == "none");
    let offered = if requested && granted && kernel.has_2k() {
        2048
    } else {
        512
    };
    offered.min(wish.cpus * VECTORS_PER_CPU)
}

fn summary(verdict: &Verdict, say: &dyn Fn(&str)) {
    let report = &verdict.report;
    if report.kernel.is_empty() {
        return;
    }
    say(&format!(
        "Linux {}, {} CPUs: userspace after {:.1} s, {} of {} MSI-X vectors received, {} duplicates, \
         {} unexpected log lines",
        report.kernel,
        report.cpus,
        report.boot_ms as f64 / 1000.0,
        report.msix_received,
        report.msix_vectors,
        report.msix_duplicates,
        report.unexpected_log_lines.len()
    ));
}

/// Tells a person how far it is, from what comes over the console.
struct Progress<'a> {
    say: &'a dyn Fn(&str),
    /// The whole console is of interest.
    all: bool,
    start: Instant,
    stage: usize,
}

/// What a line begins or ends with, and what it means.
const STAGES: [(&str, &str); 4] = [
    ("Linux version ", "a machine boots"),
    ("amdvi-lab-init: vmm", "the reference VMM starts"),
    ("Linux version ", "the guest's kernel boots"),
    ("amdvi-lab-guest: ", "the guest's userspace runs its checks"),
];

impl<'a> Progress<'a> {
    fn new(say: &'a dyn Fn(&str), all: bool) -> Self {
        Self {
            say,
            all,
            start: Instant::now(),
            stage: 0,
        }
    }

    fn line(&mut self, line: &str) {
        let say = |text: &str| {
            (self.say)(&format!(
                "[{:5.1} s] {text}",
                self.start.elapsed().as_secs_f64()
            ));
        };
        if let Some(at) = STAGES[self.stage..]
            .iter()
            .position(|(marker, _)| line.contains(marker))
        {
            // A machine of our own has the second kernel only.
            say(STAGES[self.stage + at].1);
            self.stage += at + 1;
        }
        if self.all {
            (self.say)(line);
        } else if let Some(text) = line.strip_prefix("amdvi-lab-guest: ")
            && (text.starts_with("ok ") || text.starts_with("FAILED "))
        {
            say(&short(text));
        }
    }
}

/// What fits on a line.
fn short(text: &str) -> String {
    const MOST: usize = 140;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn wish(cpus: u32, device: &str, host_caps: Option<&str>) -> Wish {
        Wish {
            kernel: None,
            modules: None,
            initrd: None,
            cmdline: String::new(),
            cpus,
            memory: "1G".to_owned(),
            devices: vec![device.to_owned()],
            host_caps: host_caps.map(str::to_owned),
            rest: Vec::new(),
        }
    }

    #[test]
    fn the_vectors_are_those_that_device_host_kernel_and_cpus_have() {
        let new = Kernel::named("7.3.4");
        let old = Kernel::named("6.12.1");
        let two_k = "amd-iommu,numint2k=on";
        assert_eq!(vectors(&wish(12, two_k, None), &new), 2048);
        assert_eq!(vectors(&wish(13, two_k, Some("none")), &new), 2048);
        assert_eq!(vectors(&wish(12, two_k, Some("mock:")), &new), 512);
        assert_eq!(vectors(&wish(12, two_k, None), &old), 512);
        assert_eq!(vectors(&wish(12, "amd-iommu", None), &new), 512);
        assert_eq!(vectors(&wish(2, two_k, None), &new), 360);
    }

    #[test]
    fn progress_is_told_with_and_without_an_emulated_machine() {
        let nested = [
            "[    0.000000] Linux version 7.3.4-amdvi-lab",
            "amdvi-lab-init: vmm",
            "[    0.000000] Linux version 7.3.4+deb13-amd64",
            "amdvi-lab-guest: disk …",
            "amdvi-lab-guest: ok disk: 8 MiB",
        ];
        for (lines, expected) in [(&nested[..], 5), (&nested[2..], 3)] {
            let said = RefCell::new(Vec::new());
            let say = |line: &str| said.borrow_mut().push(line.to_owned());
            let mut progress = Progress::new(&say, false);
            for line in lines {
                progress.line(line);
            }
            let said = said.borrow();
            assert_eq!(said.len(), expected, "{said:?}");
            assert!(said[expected - 1].ends_with("ok disk: 8 MiB"));
        }
    }
}
