//! `cargo xtask instructions`: how many instructions a hit takes, against what is recorded.
//!
//! Counted by callgrind, so the machine's noise does not matter. The recorded numbers belong to one
//! compiler: with another the check is not run, and says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::step::{Outcome, Steps, cargo, describe, root, succeeded, target_dir};

/// Arguments of `cargo xtask instructions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Record what is counted instead of checking it
    #[arg(long)]
    record: bool,
}

/// The recorded numbers.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Record {
    rustc: String,
    instructions_per_hit: BTreeMap<String, f64>,
}

const PATHS: [&str; 7] = [
    "remap/hit/irte32",
    "remap/hit/irte128",
    "translate/hit/4k",
    "translate/hit/2m",
    "translate/miss/4k",
    "translate/hit/pasid",
    "commands/unmap",
];
/// More than this above the recorded number fails. Two instructions are what the layout of a loop
/// may cost; a branch or a load more shows.
const TOLERANCE: f64 = 2.0;
const FEW: u64 = 10_000;
const MANY: u64 = 30_000;

/// Counts, and checks or records.
pub(crate) fn instructions(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.run("instruction counts", || step(args.record));
    Ok(if steps.summary() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The check as a step of the tests.
pub(crate) fn step(record: bool) -> Result<Outcome> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(Outcome::NotRun(
            "valgrind is not installed; it counts the instructions of the hit paths".to_owned(),
        ));
    }
    let rustc = rustc_version()?;
    let file = root().join("benches/instructions.json");
    let recorded: Record = read(&file)?;
    if !record && recorded.rustc != rustc {
        return Ok(Outcome::NotRun(format!(
            "the numbers are recorded for {}, this is {rustc}; `cargo xtask instructions --record` \
             records anew",
            recorded.rustc
        )));
    }
    let binary = build()?;
    let mut counted = BTreeMap::new();
    let mut worse = Vec::new();
    println!("{:<22} {:>9} {:>9}", "path", "recorded", "counted");
    for path in PATHS {
        let (few, many) = (count(&binary, path, FEW)?, count(&binary, path, MANY)?);
        let per_hit = many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
        let before = recorded.instructions_per_hit.get(path).copied();
        let shown = before.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"));
        println!("{path:<22} {shown:>9} {per_hit:>9.1}");
        if before.is_none_or(|number| per_hit > number + TOLERANCE) {
            worse.push(path);
        }
        counted.insert(path.to_owned(), (per_hit * 10.0).round() / 10.0);
    }
    if record {
        let text = serde_json::to_string_pretty(&Record {
            rustc,
            instructions_per_hit: counted,
        })?;
        std::fs::write(&file, text + "\n")
            .with_context(|| format!("writing {}", file.display()))?;
        return Ok(Outcome::Passed(format!("recorded in {}", file.display())));
    }
    Ok(if worse.is_empty() {
        Outcome::Passed(format!("{} hit paths", PATHS.len()))
    } else {
        Outcome::Failed(format!(
            "{} took more than {TOLERANCE} instructions above what is recorded; if that is meant, \
             `cargo xtask instructions --record`",
            worse.join(", ")
        ))
    })
}

fn read(file: &Path) -> Result<Record> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parsing {}", file.display()))
}

fn rustc_version() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .output()
        .context("cannot start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Builds with the profile of the benches.
fn build() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--profile", "bench", "-p", "amdvi-benches"]);
    build.args(["--bin", "hit-paths"]);
    if !succeeded(&mut build)? {
        bail!("`{}` failed, see above", describe(&build));
    }
    Ok(target_dir().join("release").join("hit-paths"))
}

/// Instructions of one run, as callgrind's last line says.
fn count(binary: &Path, path: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args([path, &times.to_string()])
        .output()
        .context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text
        .lines()
        .rev()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, number)| number.trim().parse().ok());
    match collected {
        Some(number) if output.status.success() => Ok(number),
        _ => bail!("callgrind on {path} said:\n{text}"),
    }
}
