//! Every scenario passes in-process.

use std::time::Duration;

use amdvi_refvmm::run::host::HostIommu;
use amdvi_refvmm::run::plan::{self, Wishes};
use amdvi_refvmm::run::{self, Accel, Outcome};

/// Far more than any scenario takes, for slow machines.
const TIMEOUT: Duration = Duration::from_secs(120);

fn run_all(wishes: &Wishes) -> Vec<Outcome> {
    let jobs = plan::plan(wishes)
        .expect("the scenarios' machines are possible")
        .jobs;
    assert!(!jobs.is_empty());
    jobs.iter()
        .map(|job| run::run(job, &Accel::InProcess, TIMEOUT))
        .collect()
}

fn failures(outcomes: &[Outcome]) -> Vec<String> {
    let failed = outcomes.iter().filter(|outcome| !outcome.passed);
    failed
        .map(|o| format!("{}: {}\n  {}", o.name, o.detail, o.log.join("\n  ")))
        .collect()
}

#[test]
fn every_scenario_passes_in_process() {
    let failures = failures(&run_all(&Wishes::default()));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_scenario_passes_on_the_default_device_with_all_cpus() {
    let wishes = Wishes {
        device: Some(
            amdvi_refvmm::cli::DEFAULT_DEVICE
                .parse()
                .expect("the default parses"),
        ),
        cpus: Some(amdvi_guest::boot::MAX_CPUS),
        ..Wishes::default()
    };
    let failures = failures(&run_all(&wishes));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_scenario_that_is_not_about_2k_passes_on_a_host_without_it() {
    let wishes = Wishes {
        host: Some(HostIommu::ask(
            &"mock:numint2k=off".parse().expect("it parses"),
        )),
        ..Wishes::default()
    };
    let outcomes = run_all(&wishes);
    let failures = failures(&outcomes);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let own: Vec<_> = outcomes
        .iter()
        .filter(|o| o.on_its_own_machine)
        .map(|o| o.name)
        .collect();
    assert_eq!(own, ["legacy-vfio"]);
}

#[test]
fn every_promised_scenario_exists() {
    let outcomes = plan::plan(&Wishes::default()).expect("a plan").jobs;
    for name in [
        "discover",
        "intremap-512",
        "intremap-2k",
        "intremap-2k-off",
        "host-without-2k",
        "legacy-vfio",
        "blocked-and-logged",
        "nmi-init-extint",
        "ioapic",
        "x2apic-dest",
        "msi-retarget",
        "completion-wait",
        "event-overflow",
        "guest-mode",
        "save-restore",
        "reset",
        "dma-identity-blocked",
        "dma-v1",
        "dma-faults",
        "dma-invalidate",
        "exclusion",
        "save-restore-dma",
        "dma-v2",
        "dma-nested",
        "dma-pasid",
        "ats",
        "pri",
        "dirty",
        "counters",
    ] {
        assert!(
            outcomes.iter().any(|job| job.scenario.name == name),
            "{name}"
        );
    }
}

#[test]
fn two_thousand_and_forty_eight_interrupts_arrive_where_their_entries_say() {
    let wishes = Wishes {
        scenarios: vec!["intremap-2k".into()],
        ..Wishes::default()
    };
    let outcomes = run_all(&wishes);
    assert!(outcomes[0].passed, "{}", outcomes[0].detail);
    assert!(outcomes[0].delivered >= 2048, "{}", outcomes[0].delivered);
}
