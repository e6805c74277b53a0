//! Scenarios whose tables, rings and DMA buffers lie above 4 GiB and above 1 TiB.

use std::time::Duration;

use amdvi_hostcap::ram::{FOUR_GIB, HT_HOLE_END};
use amdvi_refvmm::ram::{Heap, RamWish};
use amdvi_refvmm::run::host::HostIommu;
use amdvi_refvmm::run::plan::{self, Job, Wishes};
use amdvi_refvmm::run::{self, Accel};

/// Far more than any scenario takes, for slow machines.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A host that keeps whatever it is asked for, with and without the HyperTransport range.
const HOST: &str = "mock:numint2k=on,hthole=";

/// The scenarios on machines whose heap starts at `heap`.
fn jobs(heap: u64, phys_bits: u8, scenarios: &[&str]) -> Vec<Job> {
    let hole = if heap == FOUR_GIB { "off" } else { "on" };
    let host = HostIommu::ask(&format!("{HOST}{hole}").parse().expect("it parses"));
    let wishes = Wishes {
        host: Some(host),
        ram: RamWish {
            size: "10G".parse().expect("a size"),
            heap: Heap::High,
            phys_bits,
        },
        scenarios: scenarios.iter().map(|name| (*name).to_owned()).collect(),
        ..Wishes::default()
    };
    let mut jobs = plan::plan(&wishes).expect("the machines are possible").jobs;
    // Those that are about a host of their own have their RAM where that host lets it.
    jobs.retain(|job| !job.on_its_own);
    for job in &jobs {
        assert_eq!(
            job.machine.ram.high_heap(),
            Some(heap),
            "{}",
            job.scenario.name
        );
    }
    jobs
}

fn assert_all_pass(jobs: &[Job], accel: &Accel) {
    assert!(!jobs.is_empty());
    for job in jobs {
        let outcome = run::run(job, accel, TIMEOUT);
        let log = outcome.log.join("\n  ");
        assert!(
            outcome.passed,
            "{}: {}\n  {log}",
            outcome.name, outcome.detail
        );
    }
}

#[test]
fn every_scenario_passes_with_its_tables_above_4_gib() {
    assert_all_pass(&jobs(FOUR_GIB, 48, &[]), &Accel::InProcess);
}

#[test]
fn every_scenario_passes_with_its_tables_above_1_tib() {
    let jobs = jobs(HT_HOLE_END, 48, &[]);
    for name in ["intremap-2k", "dma-v1"] {
        assert!(jobs.iter().any(|job| job.scenario.name == name), "{name}");
    }
    assert_all_pass(&jobs, &Accel::InProcess);
}

/// Under KVM the CPUs' own page tables and the memory slots have to reach there too.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn tables_above_4_gib_and_above_1_tib_work_under_kvm() {
    use amdvi_refvmm::kvm::{Payload, probe};

    let offer = match probe() {
        Ok(offer) => offer,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let Some(path) = std::env::var_os("AMDVI_PAYLOAD") else {
        return eprintln!(
            "skipped: AMDVI_PAYLOAD does not name the payload's file; `cargo xtask test` sets it"
        );
    };
    let payload = Payload::from_file(path.as_ref()).expect("the payload that the variable names");
    for heap in [FOUR_GIB, HT_HOLE_END] {
        if heap == HT_HOLE_END && offer.phys_bits <= 40 {
            eprintln!(
                "skipped: above 1 TiB, for which {} address bits are too few",
                offer.phys_bits
            );
            continue;
        }
        let jobs = jobs(
            heap,
            offer.phys_bits,
            &["intremap-2k", "dma-v1", "ioapic", "reset"],
        );
        assert_all_pass(&jobs, &Accel::Kvm(payload.clone()));
    }
}
