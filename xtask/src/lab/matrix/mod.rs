//! The acceptance matrix: what must hold on unmodified kernels, each as a row that can be run by
//! its name.

pub(super) mod case;
mod expect;
pub(crate) mod judge;
mod rows;
pub(super) mod run;
mod scenarios;
mod shell;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub(super) use case::{Case, Version};

use super::nested::Runner;
use super::programs::Programs;
use crate::step::{Outcome, Steps, target_dir};

/// A row: a profile of machine and guest, on some kernels.
pub(super) struct Row {
    /// Its name: the row of the matrix, and which part of it.
    pub(super) name: &'static str,
    /// What must hold.
    pub(super) about: &'static str,
    /// The kernels that it runs on.
    pub(super) kernels: &'static [Version],
    /// Those that it runs on in the subset that CI runs.
    pub(super) subset: &'static [Version],
    /// Makes what differs from the usual.
    pub(super) make: fn(Case) -> Case,
}

impl Row {
    /// The row on a kernel.
    pub(super) fn case(&self, version: Version) -> Case {
        (self.make)(Case::usual(version))
    }
}

/// A row on a kernel.
pub(super) type Chosen = (&'static Row, Version);

/// Every row on each of its kernels.
pub(super) fn all() -> impl Iterator<Item = Chosen> {
    rows::rows().flat_map(|row| row.kernels.iter().map(move |version| (row, *version)))
}

/// What CI runs.
pub(super) fn subset() -> impl Iterator<Item = Chosen> {
    all().filter(|(row, version)| row.subset.contains(version))
}

/// The rows that names stand for: a row's name or what it begins with up to a `-`, and a kernel's
/// after a `/`.
pub(super) fn choose(names: &[String]) -> Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    for name in names {
        let before = chosen.len();
        let named = all().filter(|(row, version)| is_named(row.name, *version, name));
        chosen.extend(named);
        if chosen.len() == before {
            bail!("no row is called {name}; `cargo xtask lab list` names them");
        }
    }
    Ok(chosen)
}

fn is_named(row: &str, version: Version, name: &str) -> bool {
    let (row, name) = (row.to_lowercase(), name.to_lowercase());
    let (name, kernel) = name
        .split_once('/')
        .map_or((name.as_str(), None), |(name, kernel)| (name, Some(kernel)));
    let rest = row.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        && kernel.is_none_or(|kernel| kernel == version.name())
}

/// Prints the rows.
pub(super) fn list() {
    for row in rows::rows() {
        println!("{:<22} {}", row.name, row.about);
        let names: Vec<_> = row
            .kernels
            .iter()
            .map(|version| {
                let mark = if row.subset.contains(version) {
                    "*"
                } else {
                    ""
                };
                format!("{}{mark}", version.name())
            })
            .collect();
        println!("{:<22} on {}", "", names.join(", "));
    }
    println!("\n* in the subset that `cargo xtask test --lab` runs");
}

/// Where a row keeps its logs.
pub(super) fn folder(name: &str) -> PathBuf {
    target_dir().join("lab").join(name)
}

/// Runs rows, each as a step. What all of them need is built and fetched first.
pub(super) fn steps(steps: &mut Steps, chosen: impl Iterator<Item = Chosen>) {
    let mut ready: Option<Result<run::Ready, String>> = None;
    for (row, version) in chosen {
        let name = format!("{}/{}", row.name, version.name());
        steps.run(&name, || {
            let ready = ready.get_or_insert_with(|| {
                let ready = run::Ready::prepare().map_err(|error| format!("{error:#}"));
                if let Ok(ready) = &ready {
                    println!("{}", ready.runner.why());
                }
                ready
            });
            match ready {
                Ok(ready) => run::step(ready, (row, version)),
                Err(why) => Ok(Outcome::NotRun(why.clone())),
            }
        });
    }
}

/// A console in the guest of a row.
pub(super) fn shell(name: &str) -> Result<()> {
    let chosen = choose(&[name.to_owned()])?;
    let (row, version) = chosen[0];
    let ready = run::Ready::prepare()?;
    eprintln!("{}", ready.runner.why());
    shell::shell(&ready, &row.case(version), &version.kernel()?)
}

/// The bare-metal scenarios on a KVM that runs Linux.
pub(super) fn scenarios_step() -> Result<Outcome> {
    let runner = match Programs::build().and_then(Runner::choose) {
        Ok(runner) => runner,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    println!("{}", runner.why());
    scenarios::run(&runner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_row_is_named_by_its_beginning_and_its_kernel() {
        assert!(is_named("M4-2k", Version::V7, "m4"));
        assert!(is_named("M4-2k", Version::V7, "M4-2k/debian-7"));
        assert!(!is_named("M4-2k", Version::V7, "m4/built"));
        assert!(!is_named("M14-irtcachedis", Version::V7, "m1"));
        assert!(choose(&["M99".to_owned()]).is_err());
        assert!(choose(&["m4".to_owned()]).is_ok_and(|rows| rows.len() > 1));
    }

    #[test]
    fn names_are_unique_and_every_subset_is_one() {
        let names: BTreeSet<_> = rows::rows().map(|row| row.name).collect();
        assert_eq!(names.len(), rows::rows().count());
        for row in rows::rows() {
            assert!(!row.kernels.is_empty(), "{}", row.name);
            for version in row.subset {
                assert!(row.kernels.contains(version), "{}", row.name);
            }
        }
    }

    #[test]
    fn the_subset_has_the_rows_that_ci_must_run() {
        for wanted in ["M2", "M4", "M5", "M7", "M19"] {
            let is_there = |(row, _): Chosen| row.name.split('-').next() == Some(wanted);
            assert!(subset().any(is_there), "{wanted}");
        }
    }

    #[test]
    fn every_row_checks_something_and_its_plan_is_one_that_init_reads() {
        for (row, version) in all() {
            let case = row.case(version);
            assert!(!case.plan.checks.is_empty(), "{}", row.name);
            let json = serde_json::to_string(&case.plan).unwrap();
            let again: amdvi_lab_guest::Plan = serde_json::from_str(&json).unwrap();
            assert_eq!(again, case.plan, "{}", row.name);
        }
    }
}
