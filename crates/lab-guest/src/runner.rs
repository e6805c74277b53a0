//! Runs a plan. Nothing that a check does, or does not do any more, keeps the report from coming.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use amdvi_lab_guest::plan::{Check, STEP_TIMEOUT, Step};
use amdvi_lab_guest::{Outcome, Plan, Report};
use anyhow::{Error, Result, anyhow};
use nix::unistd::gettid;

use crate::checks;
use crate::context::Context;

/// What looking at the log may take.
const LOG: Duration = Duration::from_secs(20);

/// A run of a plan. The report is there at any time.
pub(crate) struct Run {
    plan: Plan,
    context: Arc<Context>,
    state: Mutex<State>,
}

struct State {
    report: Report,
    /// The step that is running, or the number of steps.
    step: usize,
    /// The report has been given out: nothing is added any more.
    closed: bool,
}

impl Run {
    pub(crate) fn new(plan: Plan, report: Report) -> Self {
        let state = State {
            report,
            step: 0,
            closed: false,
        };
        Self {
            plan,
            context: Arc::default(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs all checks but that of the log.
    pub(crate) fn checks(&self) {
        for (number, step) in self.plan.checks.iter().enumerate() {
            self.state().step = number;
            if matches!(step.check, Check::Log(_)) {
                continue;
            }
            let (check, context) = (step.check.clone(), Arc::clone(&self.context));
            let seconds = step.timeout_s.unwrap_or(STEP_TIMEOUT);
            println!("amdvi-lab-guest: {} …", name(step));
            let outcome = bounded(Duration::from_secs(seconds), move || {
                checks::run(&check, &context)
            });
            self.note(step, outcome);
        }
        self.state().step = self.plan.checks.len();
    }

    fn note(&self, step: &Step, outcome: Result<String>) {
        let outcome = Outcome {
            name: name(step).to_owned(),
            passed: outcome.is_ok(),
            detail: outcome.unwrap_or_else(|error| format!("{error:#}")),
        };
        let verdict = if outcome.passed { "ok" } else { "FAILED" };
        println!(
            "amdvi-lab-guest: {verdict} {}: {}",
            outcome.name, outcome.detail
        );
        let mut state = self.state();
        if !state.closed {
            state.report.checks.push(outcome);
        }
    }

    /// Looks at the log, and gives out the report. Checks that have not ended by now have failed.
    /// `None` when it has been given out before.
    pub(crate) fn close(&self) -> Option<Report> {
        {
            let mut state = self.state();
            if state.closed {
                return None;
            }
            let step = state.step;
            let left = self.plan.checks.iter().enumerate().skip(step);
            for (number, step_left) in left {
                if matches!(step_left.check, Check::Log(_)) {
                    continue;
                }
                let detail = if number == step {
                    format!("did not end within the plan's {} s", self.plan.timeout_s)
                } else {
                    "was not run: the plan's time was over".to_owned()
                };
                state.report.checks.push(Outcome {
                    name: name(step_left).to_owned(),
                    passed: false,
                    detail,
                });
            }
            state.closed = true;
        }
        let (plan, context) = (self.plan.clone(), Arc::clone(&self.context));
        let release = self.state().report.kernel.clone();
        let looked = bounded(LOG, move || look_at_log(&plan, &release, &context));
        let mut state = self.state();
        match looked {
            Ok((unexpected, outcomes)) => {
                state.report.unexpected_log_lines = unexpected;
                state.report.checks.extend(outcomes);
            }
            Err(error) => state
                .report
                .problems
                .push(format!("look at the log: {error:#}")),
        }
        let found = self.context.found();
        state.report.numbers.clone_from(&found.numbers);
        state.report.msix_vectors = found.msix_vectors;
        state.report.msix_received = found.msix_received;
        state.report.msix_duplicates = found.msix_duplicates;
        state.report.close();
        Some(state.report.clone())
    }
}

/// The lines that nothing allows, and what the plan's checks of the log say.
fn look_at_log(
    plan: &Plan,
    release: &str,
    context: &Context,
) -> Result<(Vec<String>, Vec<Outcome>)> {
    let mut allow = plan.log_allow.clone();
    // What must be there may be there.
    for step in &plan.checks {
        if let Check::Log(want) = &step.check {
            allow.extend(want.require.iter().cloned());
        }
    }
    let unexpected = checks::log::unexpected(release, &allow, context)?;
    let mut outcomes = Vec::new();
    for step in &plan.checks {
        if let Check::Log(want) = &step.check {
            let outcome = checks::log::check(want, &unexpected);
            outcomes.push(Outcome {
                name: name(step).to_owned(),
                passed: outcome.is_ok(),
                detail: outcome.unwrap_or_else(|error| format!("{error:#}")),
            });
        }
    }
    Ok((unexpected, outcomes))
}

fn name(step: &Step) -> &str {
    step.label.as_deref().unwrap_or_else(|| step.check.name())
}

/// Runs something that may hang, in a thread of its own.
fn bounded<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = channel();
    let (id_sender, id) = channel();
    let thread = thread::Builder::new().name("check".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = id_sender.send(gettid());
        let _ = sender.send(work());
    })?;
    match receiver.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            let at = id
                .recv()
                .map_or_else(|_| String::new(), |id| place(id.as_raw()));
            Err(anyhow!("did not end within {} s{at}", limit.as_secs()))
        }
        // The thread ended without a word.
        Err(RecvTimeoutError::Disconnected) => Err(match thread.join() {
            Ok(()) => anyhow!("ended without a result"),
            Err(panic) => panicked(panic.as_ref()),
        }),
    }
}

/// Where a thread is in the kernel.
fn place(thread: i32) -> String {
    let file = |name: &str| {
        let text = fs::read_to_string(format!("/proc/self/task/{thread}/{name}"));
        text.unwrap_or_default().trim().replace('\n', " ")
    };
    format!("; system call {}, in {}", file("syscall"), file("stack"))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    anyhow!("panicked: {}", text.unwrap_or("without a text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_or_panics_is_an_error() {
        let hangs = bounded(Duration::from_millis(1), || {
            loop {
                thread::park();
            }
            #[expect(unreachable_code, reason = "it says what the closure would return")]
            Ok(())
        });
        assert!(hangs.unwrap_err().to_string().starts_with("did not end"));
        let far = Duration::from_secs(60);
        let panics = bounded(far, || -> Result<()> { panic!("no {}", "way") });
        assert_eq!(panics.unwrap_err().to_string(), "panicked: no way");
        assert_eq!(bounded(far, || Ok(5)).unwrap(), 5);
    }

    #[test]
    fn steps_that_did_not_run_have_failed_and_the_report_comes_once() {
        let plan: Plan =
            serde_json::from_str(r#"{"checks":[{"name":"files"},{"name":"rng"}]}"#).unwrap();
        let run = Run::new(plan, Report::default());
        let report = run.close().unwrap();
        assert!(!report.passed);
        let names: Vec<_> = report
            .checks
            .iter()
            .map(|check| check.name.as_str())
            .collect();
        assert_eq!(names, ["files", "rng"]);
        assert!(report.checks[0].detail.starts_with("did not end"));
        assert!(report.checks[1].detail.starts_with("was not run"));
        assert_eq!(run.close(), None);
    }
}
