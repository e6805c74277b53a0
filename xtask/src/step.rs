//! Named steps: what runs, how long it took, and what did not run.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// The folder for build products, as cargo would choose it.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |dir| root().join(PathBuf::from(dir)),
    )
}

/// `cargo` in the workspace's root.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// What became of a step.
pub(crate) enum Outcome {
    /// It ran and succeeded; a note on what it did.
    Passed(String),
    /// It ran and failed.
    Failed(String),
    /// It could not be run here: why, and what would be needed.
    NotRun(String),
}

/// A list of steps, and their summary.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, Outcome)>,
}

impl Steps {
    /// Runs one step under a headline.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = step().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        self.done.push((name.to_owned(), start.elapsed(), outcome));
    }

    /// Prints the summary; true only when every step ran and succeeded.
    pub(crate) fn all_passed(&self) -> bool {
        let passed = |(_, _, outcome): &_| matches!(outcome, Outcome::Passed(_));
        self.summary() && self.done.iter().all(passed)
    }

    /// Runs a command as a step; its output goes where ours goes.
    pub(crate) fn command(&mut self, name: &str, note: &str, command: &mut Command) {
        self.run(name, || {
            Ok(if succeeded(command)? {
                Outcome::Passed(note.to_owned())
            } else {
                Outcome::Failed(format!("`{}` failed, see above", describe(command)))
            })
        });
    }

    /// Prints the summary; true when nothing failed.
    pub(crate) fn summary(&self) -> bool {
        println!("\n=== summary");
        let width = self
            .done
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let (mut passed, mut failed, mut not_run) = (0, 0, 0);
        for (name, time, outcome) in &self.done {
            let (mark, note) = match outcome {
                Outcome::Passed(note) => {
                    passed += 1;
                    ("ok      ", note)
                }
                Outcome::Failed(note) => {
                    failed += 1;
                    ("FAILED  ", note)
                }
                Outcome::NotRun(note) => {
                    not_run += 1;
                    ("not run ", note)
                }
            };
            println!("{mark} {name:width$} {:6.1} s  {note}", time.as_secs_f64());
        }
        println!("{passed} steps ok, {failed} failed, {not_run} not run");
        failed == 0
    }
}

/// Runs a command with our own output; true when it succeeded.
pub(crate) fn succeeded(command: &mut Command) -> Result<bool> {
    let status = command.stdin(Stdio::null()).status();
    Ok(status
        .with_context(|| format!("cannot start `{}`", describe(command)))?
        .success())
}

/// The command line, for people.
pub(crate) fn describe(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(name)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}
