//! Whether what came of a case is what must come of it.

use amdvi_lab_guest::{Outcome, Report, reports_in};
use serde::Serialize;
use serde_json::Value;

use super::Case;
use crate::lab::nested::Ran;

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// The guest's last report.
    pub(crate) report: Report,
    /// All that was checked, inside and outside of the guest.
    pub(crate) checks: Vec<Outcome>,
    /// What the reference VMM says of the machine.
    pub(crate) machine: Option<Value>,
    /// What went wrong with the emulator and was overcome.
    pub(crate) remarks: Vec<String>,
    pub(crate) passed: bool,
    /// A processor of the guest hangs or died, by the kernel's word or the reference VMM's.
    pub(crate) stalled: Option<String>,
}

fn stall(console: &str) -> Option<String> {
    let is_one = |line: &&str| {
        crate::lab::emulator::STALLS
            .iter()
            .any(|stall| line.contains(stall))
    };
    console.lines().find(is_one).map(str::to_owned)
}

/// Judges a run of the reference VMM.
pub(super) fn judge(case: &Case, ran: Ran) -> Verdict {
    let mut checks = Vec::new();
    let mut say = |name: &str, passed: bool, detail: String| {
        checks.push(Outcome {
            name: name.to_owned(),
            passed,
            detail,
        });
    };
    let reports = match reports_in(&ran.console) {
        Ok(reports) => reports,
        Err(why) => {
            say("report", false, why);
            Vec::new()
        }
    };
    if reports.len() != case.reports {
        let detail = match reports.len() {
            0 => format!("no kernel reported; its last words:\n{}", last_words(&ran)),
            some => format!("{some} kernels reported, {} must", case.reports),
        };
        say("report", false, detail);
    }
    let how = match ran.code {
        Some(0) => "the guest switched the machine off".to_owned(),
        Some(code) if code == case.status => "as it must".to_owned(),
        Some(code) => format!("exit status {code} of the reference VMM"),
        None => "the reference VMM was ended by a signal".to_owned(),
    };
    say("end", ran.code == Some(case.status), how);
    let mut went = 0;
    for (name, json) in &ran.legs {
        let how = json.as_ref().and_then(|json| json.pointer("/ended/how"));
        let gone = how == Some(&case.journey.ending().into());
        went += usize::from(gone);
        say(name, gone && obeyed(json.as_ref()), orders(json.as_ref()));
    }
    let least = case.journey.least();
    if least > 0 {
        let what = case.journey.ending();
        let last = orders(ran.json.as_ref());
        say(
            "journey",
            went >= least && obeyed(ran.json.as_ref()),
            format!("{what} {went} times, {least} at least; in the end {last}"),
        );
        if let Some(count) = by_irqfds(&ran) {
            say(
                "irqfds",
                count > 0,
                format!("{count} interrupts went by irqfds"),
            );
        }
    }
    for (index, report) in reports.iter().enumerate() {
        let prefix = if index == 0 { "" } else { "after-kexec/" };
        for check in &report.checks {
            say(
                &format!("{prefix}{}", check.name),
                check.passed,
                check.detail.clone(),
            );
        }
        for problem in &report.problems {
            say(&format!("{prefix}init"), false, problem.clone());
        }
        if !report.unexpected_log_lines.is_empty() {
            say(
                &format!("{prefix}unexpected-log-lines"),
                false,
                report.unexpected_log_lines.join("\n"),
            );
        } else if !report.passed && report.checks.iter().all(|check| check.passed) {
            say(&format!("{prefix}report"), false, "it did not pass".into());
        }
    }
    match &ran.json {
        None => say(
            "machine",
            false,
            "the reference VMM printed no report of the machine".into(),
        ),
        Some(machine) => {
            for expect in &case.machine {
                let (passed, detail) = expect.holds(machine);
                say(&format!("machine{}", expect.pointer), passed, detail);
            }
        }
    }
    Verdict {
        stalled: stall(&ran.console),
        passed: checks.iter().all(|check| check.passed),
        report: reports.into_iter().next_back().unwrap_or_default(),
        checks,
        machine: ran.json,
        remarks: ran.remarks,
    }
}

/// Interrupts that went by irqfds in all processes; none without irqfds.
fn by_irqfds(ran: &Ran) -> Option<u64> {
    let legs = ran.legs.iter().map(|(_, json)| json.as_ref());
    let counts = legs
        .chain([ran.json.as_ref()])
        .filter_map(|json| json?.pointer("/routes/by_irqfd")?.as_u64());
    counts.reduce(|sum, count| sum + count)
}

/// What a reference VMM did of what it was told to do in the course of time.
fn orders(report: Option<&Value>) -> String {
    let ended = report.and_then(|report| report.pointer("/ended/how"));
    let orders = report.and_then(|report| report.get("orders"));
    let said = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    format!("{}: {}", said(ended), said(orders))
}

/// Whether all of it could be done.
fn obeyed(report: Option<&Value>) -> bool {
    let orders = report.and_then(|report| report.get("orders")?.as_array());
    orders.is_none_or(|orders| orders.iter().all(|order| order["ok"] == true))
}

/// The end of the console, without the emulated machine's own report.
fn last_words(ran: &Ran) -> String {
    let text = ran
        .console
        .split(amdvi_lab_init::BEGIN)
        .next()
        .unwrap_or_default();
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::case::Version;
    use super::super::expect::equal;
    use super::*;
    use crate::lab::journey::Journey;

    fn ran(reports: &[Report]) -> Ran {
        let lines: Vec<_> = reports.iter().map(Report::line).collect();
        Ran {
            code: Some(0),
            json: Some(serde_json::json!({"x": 1})),
            legs: Vec::new(),
            console: format!("boot\n{}", lines.concat()),
            remarks: Vec::new(),
            marks: Default::default(),
            profile: Default::default(),
        }
    }

    fn report(passed: bool) -> Report {
        let mut report = Report {
            checks: vec![Outcome {
                name: "log".into(),
                passed,
                detail: "seen".into(),
            }],
            ..Report::default()
        };
        report.close();
        report
    }

    #[test]
    fn a_case_passes_when_guest_machine_and_ending_are_as_they_must_be() {
        let case = Case::usual(Version::V7).machine(equal("/x", 1));
        assert!(judge(&case, ran(&[report(true)])).passed);
        assert!(!judge(&case, ran(&[report(false)])).passed);
        assert!(!judge(&case, ran(&[])).passed);
        assert!(!judge(&case, ran(&[report(true), report(true)])).passed);
        let died = Ran {
            code: Some(1),
            ..ran(&[report(true)])
        };
        assert!(!judge(&case, died).passed);
        let silent = Ran {
            json: None,
            ..ran(&[report(true)])
        };
        assert!(!judge(&case, silent).passed);
        let other = Ran {
            json: Some(serde_json::json!({"x": 2})),
            ..ran(&[report(true)])
        };
        assert!(!judge(&case, other).passed);
    }

    #[test]
    fn a_journey_is_one_if_the_machine_went_often_enough_and_nothing_was_refused() {
        let case = Case::usual(Version::V7).journey(Journey::Saved { least: 2, most: 3 });
        let leg = |how: &str, ok: bool| serde_json::json!({ "ended": { "how": how }, "orders": [{ "ok": ok }] });
        let judged = |legs: &[Value], last: Value| {
            let legs = legs
                .iter()
                .cloned()
                .map(|leg| ("vmm".to_owned(), Some(leg)));
            let ran = Ran {
                legs: legs.collect(),
                json: Some(last),
                ..ran(&[report(true)])
            };
            judge(&case, ran).passed
        };
        let saved = || leg("saved", true);
        let end = || serde_json::json!({ "ended": { "how": "power-off" }, "orders": [] });
        assert!(judged(&[saved(), saved()], end()));
        assert!(!judged(&[saved()], end()), "too few");
        assert!(!judged(&[saved(), leg("power-off", true)], end()));
        assert!(
            !judged(&[saved(), saved()], leg("power-off", false)),
            "a save failed"
        );
        let routed = |count: u64| {
            let mut leg = saved();
            leg["routes"] = serde_json::json!({ "by_irqfd": count });
            leg
        };
        assert!(judged(&[routed(0), routed(5)], end()));
        assert!(!judged(&[routed(0), routed(0)], end()), "no irqfd was used");
    }

    #[test]
    fn a_processor_that_hangs_is_told_from_other_failures() {
        let line = "[  204.88] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:";
        assert_eq!(stall(&format!("boot\n{line}\nmore")), Some(line.into()));
        let line = "CPU 1 had a triple fault at RIP 0xfff0 (00 00) after 8.0 s";
        assert_eq!(stall(&format!("boot\n{line}")), Some(line.into()));
        assert_eq!(stall("amdvi-lab-guest: FAILED disk"), None);
    }

    #[test]
    fn a_line_of_the_log_that_nothing_allows_fails_the_case() {
        let case = Case::usual(Version::V7);
        let mut unexpected = report(true);
        unexpected.unexpected_log_lines.push("AMD-Vi: oops".into());
        unexpected.close();
        let verdict = judge(&case, ran(&[unexpected]));
        assert!(!verdict.passed);
        let named = |check: &Outcome| check.name == "unexpected-log-lines";
        assert!(verdict.checks.iter().any(named));
    }
}
