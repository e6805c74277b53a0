//! The result as one JSON object.

use std::collections::BTreeMap;

use amdvi_hostcap::Decision;
use serde::Serialize;
use serde_json::Value;

use crate::run::machine::Machine;
use crate::run::plan::LeftOut;
use crate::run::{Accel, Outcome};

/// Everything that was found out.
#[derive(Debug)]
pub struct Summary<'a> {
    /// What ran the scenarios.
    pub accel: &'a Accel,
    /// What the host's KVM offers, or why it was not used.
    pub host: &'a str,
    /// The machine that was requested.
    pub machine: &'a Machine,
    /// The scenarios.
    pub outcomes: &'a [Outcome],
    /// The scenarios that this machine can't run.
    pub left_out: &'a [LeftOut],
}

impl Summary<'_> {
    /// Whether there were scenarios and all passed.
    pub fn passed(&self) -> bool {
        !self.outcomes.is_empty() && self.outcomes.iter().all(|outcome| outcome.passed)
    }
}

#[derive(Serialize)]
struct Object<'a> {
    accel: &'static str,
    host: &'a str,
    host_caps: String,
    requested: &'a str,
    offered: BTreeMap<String, Value>,
    decisions: &'a [Decision],
    scenarios: &'a [Outcome],
    not_run: &'a [LeftOut],
    passed: bool,
}

/// The JSON object, in one line.
pub fn json(summary: &Summary<'_>) -> String {
    let object = Object {
        accel: summary.accel.name(),
        host: summary.host,
        host_caps: summary.machine.host_caps.to_string(),
        requested: &summary.machine.requested.text,
        offered: summary.machine.offered(),
        decisions: &summary.machine.offer.decisions,
        scenarios: summary.outcomes,
        not_run: summary.left_out,
        passed: summary.passed(),
    };
    // Strings, numbers and maps with string keys: there is nothing that JSON can't say.
    serde_json::to_string(&object).expect("the summary is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: bool) -> Outcome {
        Outcome {
            name: "intremap-2k",
            passed,
            delivered: 2048,
            blocked: 1,
            events: 1,
            ns_per_interrupt: 300,
            detail: "a \"quoted\" detail\nin two lines".into(),
            accel: "in-process",
            ms: 12,
            device: "amd-iommu".into(),
            host_caps: "none".into(),
            on_its_own_machine: false,
            log: vec!["not for programs".into()],
        }
    }

    fn machine() -> Machine {
        let device = "amd-iommu,numint2k=on".parse().unwrap();
        Machine::new(&device, &"mock:numint2k=off".parse().unwrap())
    }

    #[test]
    fn the_object_is_one_line_with_every_promised_field() {
        let (machine, outcomes) = (machine(), [outcome(true)]);
        let summary = Summary {
            accel: &Accel::InProcess,
            host: "no KVM",
            machine: &machine,
            outcomes: &outcomes,
            left_out: &[],
        };
        let text = json(&summary);
        assert!(!text.contains('\n'));
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["accel"], "in-process");
        assert_eq!(object["offered"]["numint2k"], false);
        assert_eq!(object["passed"], true);
        let decision = &object["decisions"][0];
        assert_eq!(decision["feature"], "numint2k");
        assert_eq!(
            (&decision["requested"], &decision["granted"]),
            (&true.into(), &false.into())
        );
        assert!(
            decision["reason"]
                .as_str()
                .is_some_and(|reason| !reason.is_empty())
        );
        let scenario = &object["scenarios"][0];
        assert_eq!(scenario["name"], "intremap-2k");
        for number in ["delivered", "blocked", "events", "ns_per_interrupt", "ms"] {
            assert!(scenario[number].is_u64(), "{number}");
        }
        assert_eq!(scenario["passed"], true);
        assert!(scenario["detail"].is_string() && scenario.get("log").is_none());
    }

    #[test]
    fn one_failed_scenario_fails_the_run_and_no_scenario_passes_nothing() {
        let machine = machine();
        let verdict = |outcomes: &[Outcome]| {
            Summary {
                accel: &Accel::InProcess,
                host: "",
                machine: &machine,
                outcomes,
                left_out: &[],
            }
            .passed()
        };
        assert!(verdict(&[outcome(true), outcome(true)]));
        assert!(!verdict(&[outcome(true), outcome(false)]));
        assert!(!verdict(&[]));
    }
}
