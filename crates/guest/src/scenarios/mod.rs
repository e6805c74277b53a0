//! The scenarios: what a guest must see of a correct AMD IOMMU.
//!
//! Each scenario is a real guest driver's view of one promise of the device. It fails loudly: the
//! report's detail says what was expected and what was seen.

mod commands;
mod discover;
mod dma;
mod faults;
mod guest_mode;
mod ioapic;
mod logs;
mod own;
mod remap;
mod retarget;
mod retarget_2k;
mod state;
mod types;

use core::fmt::Write;

use crate::failure::{Failure, Result};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

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
    /// KVM delivers the endpoint's vectors by routes, where there is a KVM.
    pub irqfds: bool,
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

macro_rules! scenarios {
    ($($name:literal, $about:literal, $needs:expr => $run:path;)*) => {
        /// Every scenario, in the order in which they are run.
        pub const ALL: &[Scenario] = &[
            $(Scenario { name: $name, about: $about, needs: $needs },)*
        ];

        fn dispatch<P: Platform + ?Sized>(
            name: &str,
            p: &mut P,
            report: &mut Report,
        ) -> Result<()> {
            match name {
                $($name => $run(p, report),)*
                _ => Err(Failure::new(format_args!(
                    "this guest has no scenario called {name:?}; if the VMM has one, they are of \
                     different builds: build the payload anew (cargo xtask payload)"
                ))),
            }
        }
    };
}

/// Options of a device with 2048 interrupts per function.
const TWO_K: &str = "amd-iommu,intremap=on,xtsup=on,numint2k=on";
/// Options of a device without.
const PLAIN: &str = "amd-iommu,intremap=on,xtsup=on";
/// Options of a device with the guest virtual APIC.
const GUEST_APIC: &str = "amd-iommu,intremap=on,xtsup=on,vapic=on";
/// Options of a device that remaps DMA as well.
const DMA: &str = "amd-iommu,intremap=on,dma-remap=on";
/// The same with as many levels of page tables as there can be.
const DMA_SIX: &str = "amd-iommu,intremap=on,dma-remap=on,hats=6";
/// Options of a device with guest page tables and PASIDs.
const GUEST_TABLES: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,gats=5";
/// The same with GCR3 tables of every depth.
const PASIDS: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,glxsup=2,pasid=16";
/// The same with GCR3 roots that are guest physical addresses.
const NESTED: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,gcr3trpmode=on";
/// Options of a device behind which functions may have TLBs of their own.
const DEVICE_TLBS: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,device-iotlb=on";
/// The same with page requests.
const PAGE_REQUESTS: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,device-iotlb=on,pprsup=on";
/// Options of a device that keeps accessed and dirty bits in host page tables.
const DIRTY_BITS: &str = "amd-iommu,intremap=on,dma-remap=on,dirty-tracking=on,device-iotlb=on";
/// Options of a device with performance counters.
const COUNTERS: &str = "amd-iommu,intremap=on,dma-remap=on,gtsup=on,perf-counters=2x4";

const fn needs(device: &'static str, cpus: usize) -> Needs {
    Needs {
        device,
        host_caps: "",
        cpus,
        high_apic_id: false,
        irqfds: false,
    }
}

const fn passed_through(host_caps: &'static str) -> Needs {
    Needs {
        host_caps,
        ..needs(TWO_K, 2)
    }
}

scenarios! {
    "discover", "ACPI and PCI lead to one IOMMU and agree about it",
        needs(TWO_K, 1) => discover::run;
    "intremap-512", "512 interrupts through one table; everything above is blocked",
        needs(PLAIN, 2) => remap::plain;
    "intremap-2k", "2048 interrupts through one table, each where its entry says",
        needs(TWO_K, 4) => remap::two_k;
    "intremap-2k-off", "without numint2k=on the guest sees exactly the 512 behaviour",
        needs(PLAIN, 2) => remap::not_offered;
    "host-without-2k", "numint2k=on on a host without it: the guest sees 512",
        passed_through("mock:numint2k=off") => remap::not_offered;
    "legacy-vfio", "numint2k=on behind a legacy VFIO container: the guest sees 512",
        passed_through("legacy-vfio") => remap::not_offered;
    "blocked-and-logged", "every fault of the interrupt path, with its event record",
        needs(TWO_K, 2) => faults::run;
    "nmi-init-extint", "message types that go by the DTE's pass bits",
        needs(PLAIN, 2) => types::run;
    "ioapic", "IOAPIC pins through the table: edge, level, EOI, re-fire",
        needs(TWO_K, 2) => ioapic::run;
    "x2apic-dest", "a destination above 255",
        Needs { high_apic_id: true, ..needs(PLAIN, 2) } => remap::x2apic;
    "msi-retarget", "entries rewritten while a device fires: none lost, none late",
        needs(PLAIN, 3) => retarget::run;
    "retarget-2k", "2048 entries rewritten while KVM delivers by routes: each right, few tables",
        Needs { irqfds: true, ..needs(TWO_K, 4) } => retarget_2k::run;
    "completion-wait", "COMPLETION_WAIT: store, interrupt, flush, order, wrap",
        needs(PLAIN, 2) => commands::completion_wait;
    "command-errors", "a bad command stops the ring, is logged, and the ring restarts",
        needs(PLAIN, 1) => commands::errors;
    "event-overflow", "a full event log stops, says so, and starts again",
        needs(PLAIN, 2) => logs::run;
    "guest-mode", "guest virtual APIC: IRR in the backing page, GA log",
        needs(GUEST_APIC, 2) => guest_mode::run;
    "own-interrupt", "the IOMMU's own interrupts, by MSI and by the XT registers",
        needs(PLAIN, 2) => own::run;
    "save-restore", "state saved mid-scenario and restored into a new device",
        needs(TWO_K, 2) => state::save_restore;
    "reset", "registers at their reset values, and the device usable again",
        needs(PLAIN, 2) => state::reset;
    "dma-identity-blocked", "DMA untranslated, by permission, and blocked",
        needs(DMA, 1) => dma::identity::run;
    "dma-v1", "DMA through host page tables: each level, each page size",
        needs(DMA_SIX, 1) => dma::v1::run;
    "dma-faults", "every fault of DMA through host page tables, with its event record",
        needs(DMA, 1) => dma::faults::run;
    "dma-invalidate", "pages taken away under running DMA: nothing lands after COMPLETION_WAIT",
        needs(DMA, 1) => dma::invalidate::run;
    "exclusion", "the exclusion range passes untranslated, for all devices or by DTE.EX",
        needs(DMA, 1) => dma::exclusion::run;
    "save-restore-dma", "state saved and restored while DMA runs",
        needs(DMA, 1) => dma::save_restore::run;
    "dma-v2", "DMA through guest page tables: sizes, U/S, R/W, NX, accessed and dirty bits, GIoV",
        needs(GUEST_TABLES, 1) => dma::v2::run;
    "dma-nested", "guest page tables over host page tables, faults put down to the right one",
        needs(NESTED, 1) => dma::nested::run;
    "dma-pasid", "PASIDs: tables of their own, GCR3 tables of each depth, invalidation by PASID",
        needs(PASIDS, 1) => dma::pasid::run;
    "ats", "a device's own TLB: filled, used, and emptied before COMPLETION_WAIT",
        needs(DEVICE_TLBS, 1) => dma::ats::run;
    "ats-timeout", "a device that does not answer an invalidation of its TLB",
        needs(DEVICE_TLBS, 1) => dma::ats_timeout::run;
    "pri", "page requests, their log and its overflow, answers, and requests that are refused",
        needs(PAGE_REQUESTS, 1) => dma::pri::run;
    "dirty", "accessed and dirty bits in host page tables, as a migration reads them",
        needs(DIRTY_BITS, 1) => dma::dirty::run;
    "freed-tables", "tables freed and their memory reused under DMA and interrupts: never looked at again",
        needs(DIRTY_BITS, 2) => dma::freed::run;
    "counters", "performance counters: exact, filtered, and reported when they wrap",
        needs(COUNTERS, 1) => dma::counters::run;
}

/// Runs the scenario of [`ALL`] with this name on the machine behind `p`.
///
/// Always returns a complete report; a name without a scenario is a failed one.
pub fn run<P: Platform + ?Sized>(name: &str, p: &mut P) -> Report {
    let mut report = Report::new();
    let outcome = dispatch(name, p, &mut report);
    if let Err(failure) = &outcome {
        report.detail_len = 0;
        let _ = report.write_str(failure.text());
    }
    report.passed = u64::from(outcome.is_ok());
    report.magic = Report::MAGIC;
    report
}

/// Puts the machine's counters into the report, and what was verified.
fn done<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    report: &mut Report,
    verified: core::fmt::Arguments<'_>,
) -> Result<()> {
    report.delivered = m.delivered;
    report.blocked = m.blocked;
    report.events = m.events;
    let _ = report.write_fmt(verified);
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;
    use crate::boot::ScenarioName;
    use crate::fake::Fake;

    #[test]
    fn names_are_unique_and_fit_an_option() {
        for (n, scenario) in ALL.iter().enumerate() {
            assert!(
                scenario
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                scenario.name
            );
            assert!(ALL[n + 1..].iter().all(|other| other.name != scenario.name));
            assert!(ScenarioName::new(scenario.name).is_some());
            assert!(!scenario.name.starts_with(crate::smoke::SCENARIO));
            assert!((1..=crate::boot::MAX_CPUS).contains(&scenario.needs.cpus));
        }
    }

    #[test]
    fn a_machine_without_tables_fails_every_scenario_with_a_reason() {
        for scenario in ALL {
            let report = run(scenario.name, &mut Fake::new());
            assert_eq!((report.magic, report.passed), (Report::MAGIC, 0));
            assert!(report.detail().contains("RSDP"), "{}", report.detail());
        }
    }

    #[test]
    fn a_name_without_a_scenario_fails() {
        for name in ["", "discovers", "\0"] {
            let report = run(name, &mut Fake::new());
            assert_eq!((report.magic, report.passed), (Report::MAGIC, 0));
            let expected = format!("no scenario called {name:?}");
            assert!(report.detail().contains(&expected), "{}", report.detail());
        }
    }
}
