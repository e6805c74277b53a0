//! The bare-metal scenarios on AMD's KVM: the one of an emulated machine, where this machine's is
//! none.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::journey::Journey;
use crate::lab::nested::{Job, Runner, limits};
use crate::run;
use crate::step::Outcome;

const NAME: &str = "scenarios";

/// Runs all scenarios in one go.
pub(super) fn run(runner: &Runner) -> Result<Outcome> {
    let job = Job {
        args: ["--accel", "kvm", "--payload", "{payload}", "--json"]
            .map(str::to_owned)
            .to_vec(),
        files: vec![("payload", run::build_payload()?)],
        cpu: &[],
        limits: limits(60),
        journey: Journey::Stays,
    };
    let folder = super::folder(NAME);
    let ran = runner.run(&job, &folder, &mut |line| {
        if line.starts_with("ok ") || line.starts_with("FAILED") {
            println!("  {line}");
        }
    })?;
    for remark in &ran.remarks {
        println!("  emulator: {remark}");
    }
    let json = ran
        .json
        .with_context(|| format!("no report; logs are in {}", folder.display()))?;
    let list = json["scenarios"]
        .as_array()
        .context("the report has no `scenarios`")?;
    let failed: Vec<_> = list
        .iter()
        .filter(|scenario| scenario["passed"] != true)
        .collect();
    for scenario in &failed {
        println!(
            "  FAILED  {}: {}",
            text(&scenario["name"]),
            text(&scenario["detail"])
        );
    }
    Ok(if failed.is_empty() && ran.code == Some(0) {
        Outcome::Passed(format!("{} scenarios, {}", list.len(), runner.accel()))
    } else {
        Outcome::Failed(format!(
            "{} of {} scenarios failed; logs are in {}",
            failed.len(),
            list.len(),
            folder.display()
        ))
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
