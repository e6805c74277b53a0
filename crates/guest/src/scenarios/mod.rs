//! The scenarios: what a guest must see of a correct AMD IOMMU.
//!
//! Each scenario is a real guest driver's view of one promise of the device. It fails loudly: the
//! report's detail says what was expected and what was seen.

use core::fmt::Write;

use crate::platform::Platform;
use crate::report::Report;

mod discover;

/// The machine that a scenario needs; the VMM builds it before the scenario starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The device's option string, as `--device` takes it.
    pub device: &'static str,
    /// What the host can do, as `--host-caps` takes it; empty when nothing is passed through.
    pub host_caps: &'static str,
    /// Fewest CPUs with which the scenario makes sense; more are welcome.
    pub cpus: usize,
    /// The last CPU has an x2APIC ID above 255.
    pub high_apic_id: bool,
}

/// One scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, as `--scenario` takes it.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// The machine that it runs on.
    pub needs: Needs,
}

/// Why a scenario stopped: the report's detail already says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// How a scenario ends.
pub type Outcome = Result<(), Failed>;

macro_rules! scenarios {
    ($($name:literal, $about:literal, $needs:expr => $run:path;)*) => {
        /// Every scenario, in the order in which they are run.
        pub const ALL: &[Scenario] = &[
            $(Scenario { name: $name, about: $about, needs: $needs },)*
        ];

        fn dispatch<P: Platform + ?Sized>(name: &str, p: &mut P, report: &mut Report) -> Outcome {
            match name {
                $($name => $run(p, report),)*
                _ => fail(report, format_args!("no scenario is called {name}")),
            }
        }
    };
}

/// Options of a device with every interrupt feature.
const FULL: &str = "amd-iommu,intremap=on,xtsup=on,numint2k=on";

const fn needs(device: &'static str) -> Needs {
    Needs {
        device,
        host_caps: "",
        cpus: 2,
        high_apic_id: false,
    }
}

scenarios! {
    "discover", "finds the IOMMU through ACPI and PCI, and both agree",
        needs(FULL) => discover::run;
}

/// Runs scenario `index` of [`ALL`] on the machine behind `p`.
///
/// Always returns a complete report; an index without a scenario is a failed one.
pub fn run<P: Platform + ?Sized>(index: usize, p: &mut P) -> Report {
    let mut report = Report::new();
    let outcome = match ALL.get(index) {
        Some(scenario) => dispatch(scenario.name, p, &mut report),
        None => fail(&mut report, format_args!("no scenario has index {index}")),
    };
    report.passed = u64::from(outcome.is_ok());
    report.magic = Report::MAGIC;
    report
}

/// Writes why the scenario failed, in front of nothing else: what was said before is dropped.
fn fail(report: &mut Report, why: core::fmt::Arguments<'_>) -> Outcome {
    report.detail_len = 0;
    let _ = report.write_fmt(why);
    Err(Failed)
}
