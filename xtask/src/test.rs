//! `cargo xtask test`: every tier that this machine can run, and a plain word on those it can't.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::step::{Outcome, Steps, cargo, target_dir};
use crate::{instructions, lab, run};

/// The optional features that tests and lints turn on, all that work in one build.
pub(crate) const FEATURES: &str = "amdvi-regs/serde,amdvi-core/membarrier,amdvi-core/test-utils,\
    amdvi-hostcap/mock,amdvi-hostcap/cli,amdvi-device/fuzzing,\
    amdvi-vmm-glue/device,amdvi-vmm-glue/shadow";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the lab tier instead: random cases against QEMU's amd-iommu, host capabilities on real
    /// kernels, Linux on the reference VMM; the first run fetches QEMU and kernels and builds one
    #[arg(long)]
    lab: bool,
    /// With --lab: every row of the acceptance matrix, not only the subset of every day
    #[arg(long, requires = "lab")]
    all: bool,
}

/// Runs the tests.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::default();
    if args.lab {
        steps.run("differential, QEMU", lab::diff_step);
        lab::scenarios_step(&mut steps);
        lab::host_steps(&mut steps);
        lab::matrix_steps(&mut steps, args.all);
        lab::stress_step(&mut steps);
    } else {
        tests(&mut steps)?;
    }
    let passed = steps.summary();
    if !args.lab {
        println!(
            "not part of this: Linux on the reference VMM, real kernels and QEMU's amd-iommu; \
             `cargo xtask test --lab` runs them"
        );
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tests(steps: &mut Steps) -> Result<()> {
    let payload = run::build_payload()?;
    steps.command(
        "unit, property, doc",
        "every crate",
        cargo()
            .args(["test", "--workspace", "--features", FEATURES])
            .env("AMDVI_PAYLOAD", &payload),
    );
    // Loom replaces the atomics of a whole build: its own folder, so that nothing is rebuilt.
    steps.command(
        "loom",
        "in-flight guard against invalidation, every interleaving",
        cargo()
            .args([
                "test",
                "--release",
                "-p",
                "amdvi-core",
                "-p",
                "amdvi-dma",
                "--test",
                "loom",
            ])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target_dir().join("loom")),
    );
    steps.run("instruction counts", || instructions::step(false));
    let binary = run::build_refvmm()?;
    steps.run("scenarios, in-process", || {
        scenarios(&binary, &payload, "in-process")
    });
    steps.run("scenarios, KVM", || scenarios(&binary, &payload, "auto"));
    Ok(())
}

/// Runs all scenarios and reads the report. `auto` stands for KVM: where that turns out to be
/// unusable the step counts as not run, with the reference VMM's word on why.
fn scenarios(binary: &Path, payload: &Path, accel: &str) -> Result<Outcome> {
    let output = run::refvmm(binary, payload)
        .args(["--accel", accel, "--json"])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let report: serde_json::Value =
        serde_json::from_str(last).context("the last line of the reference VMM is not JSON")?;
    if accel == "auto" && report["accel"] != "kvm" {
        let why = report["host"].as_str().unwrap_or("no reason given");
        return Ok(Outcome::NotRun(format!("no usable KVM: {why}")));
    }
    let list = report["scenarios"]
        .as_array()
        .context("the report has no `scenarios`")?;
    let passed = list
        .iter()
        .filter(|scenario| scenario["passed"] == true)
        .count();
    println!("scenarios: {passed} passed, {} failed", list.len() - passed);
    Ok(
        if output.status.success() && passed == list.len() && !list.is_empty() {
            Outcome::Passed(format!("{passed} scenarios"))
        } else {
            Outcome::Failed(format!("{passed} of {} scenarios passed", list.len()))
        },
    )
}
