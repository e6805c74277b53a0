//! The result as one JSON object.

use std::collections::BTreeMap;

use amdvi_hostcap::ram::RamLayout;
use amdvi_hostcap::{Conflict, Decision, Early, Fact, Gap, Note};
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

    /// How the only machine left this process, if it did: its scenario has no result yet.
    pub fn gone(&self) -> Option<&'static str> {
        match self.outcomes {
            [outcome] => outcome.gone,
            _ => None,
        }
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
    host_facts: Vec<&'a Fact<Early>>,
    host_gaps: Vec<&'a Gap>,
    host_notes: Vec<&'a Note>,
    host_conflicts: Vec<Conflict>,
    ram: &'a RamLayout,
    scenarios: &'a [Outcome],
    not_run: &'a [LeftOut],
    passed: bool,
}

/// The JSON object, in one line.
pub fn json(summary: &Summary<'_>) -> String {
    let facts = &summary.machine.host.facts;
    let object = Object {
        accel: summary.accel.name(),
        host: summary.host,
        host_caps: summary.machine.host.spec.to_string(),
        requested: &summary.machine.requested.text,
        offered: summary.machine.offered(),
        decisions: &summary.machine.offer.decisions,
        host_facts: facts.early().iter().collect(),
        host_gaps: facts.gaps().collect(),
        host_notes: facts.notes().collect(),
        host_conflicts: facts.conflicts(),
        ram: summary.machine.ram.layout(),
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
    use crate::ram::RamWish;
    use crate::run::host::HostIommu;

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
            interrupts: None,
            routes: None,
            ms: 12,
            device: "amd-iommu".into(),
            host_caps: "none".into(),
            ram: "64 MiB below 4 GiB".into(),
            gone: None,
            on_its_own_machine: false,
            log: vec!["not for programs".into()],
        }
    }

    fn machine() -> Machine {
        let device = "amd-iommu,numint2k=on".parse().unwrap();
        let host = HostIommu::ask(&"mock:numint2k=off".parse().unwrap());
        Machine::new(&device, &host, &RamWish::default()).unwrap()
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
        let fact = &object["host_facts"][0];
        assert_eq!(
            (&fact["subject"], &fact["value"]),
            (&"numint2k".into(), &false.into())
        );
        for list in ["host_gaps", "host_notes", "host_conflicts"] {
            assert!(object[list].is_array(), "{list}");
        }
        let region = &object["ram"]["regions"][0];
        assert_eq!(
            (&region["base"], &region["size"], &region["kind"]),
            (&0.into(), &(64 << 20).into(), &"ram".into())
        );
        assert_eq!(object["ram"]["placement"], "below-4-gib");
        assert!(object["ram"]["reason"].is_string());
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
