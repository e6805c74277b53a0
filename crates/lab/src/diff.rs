//! The differential run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::case::{Case, Observed, Outcome};
use crate::compare::Difference;
use crate::generate;
use crate::ours::Ours;
use crate::rules::{RECORD_RULES, RULES, explain};
use crate::theirs::Theirs;

/// A run of fewer cases doesn't tell that a rule is stale.
const ENOUGH_FOR_STALE: u64 = 100_000;
/// Cases that are handed to QEMU's side at a time.
const CHUNK: u64 = 256;
/// Unexplained cases that are printed in full.
const SHOWN: usize = 10;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// QEMU 11.1 or later, with the qtest accelerator
    #[arg(long, value_name = "PATH")]
    qemu: PathBuf,
    /// Number of cases
    #[arg(long, default_value_t = ENOUGH_FOR_STALE, value_name = "N")]
    cases: u64,
    /// Seed of the generator; a seed and a number name a case for ever
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    seed: u64,
    /// Run only this case and print all of it
    #[arg(long, value_name = "NUMBER")]
    case: Option<u64>,
}

/// Runs; true if every difference was explained.
pub fn run(args: &Args) -> Result<bool> {
    match args.case {
        Some(number) => one(args, number),
        None => many(args),
    }
}

/// Where our side's DMA landed, per step.
fn landings(observed: &Observed) -> Vec<Option<u64>> {
    let gpa = |outcome| match outcome {
        Outcome::Landed(gpa) => Some(gpa),
        _ => None,
    };
    observed
        .steps
        .iter()
        .map(|step| gpa(step.outcome))
        .collect()
}

fn one(args: &Args, number: u64) -> Result<bool> {
    let case = generate::case(args.seed, number);
    println!("{case}");
    let ours = Ours::new().run(&case);
    let mut theirs = Theirs::start(&args.qemu, true)?;
    let observed = theirs.run(&[(case.clone(), landings(&ours))])?;
    let mut all_explained = true;
    for theirs in &observed {
        for (i, (a, b)) in ours.steps.iter().zip(&theirs.steps).enumerate() {
            println!("step {i}\n  ours:   {a}\n  theirs: {b}");
        }
        for line in &theirs.trace {
            println!("trace: {line}");
        }
        for difference in Difference::all(&case, &ours, theirs) {
            let rule = explain(&difference);
            all_explained &= rule.is_some();
            let name = rule.map_or("UNEXPLAINED", |rule| rule.name);
            println!("{name}: {difference}");
        }
    }
    Ok(all_explained)
}

fn many(args: &Args) -> Result<bool> {
    println!(
        "differential run against QEMU: seed {}, {} cases",
        args.seed, args.cases
    );
    let start = Instant::now();
    let mut reported = start;
    let mut ours = Ours::new();
    let mut theirs = Theirs::start(&args.qemu, false)?;
    let mut fired: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut agreed: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut failed, mut requests, mut next) = (0, 0, 0);
    while next < args.cases {
        let end = args.cases.min(next + CHUNK);
        let mut cases = Vec::new();
        let mut observed = Vec::new();
        for number in next..end {
            let case = generate::case(args.seed, number);
            let seen = ours.run(&case);
            requests += case.steps.len();
            cases.push((case, landings(&seen)));
            observed.push(seen);
        }
        let answers = theirs.run(&cases)?;
        for (((case, expected), mine), other) in cases.iter().zip(&observed).zip(&answers) {
            for (a, b) in mine.steps.iter().zip(&other.steps) {
                if a.outcome == b.outcome {
                    *agreed.entry(a.outcome.name()).or_default() += 1;
                }
            }
            let mut again;
            let mut unexplained = judge(case, mine, other, &mut fired);
            if !unexplained.is_empty() {
                // An earlier case of the batch may have left something in memory: look at it alone.
                again = theirs.run(&[(case.clone(), expected.clone())])?;
                let Some(alone) = again.pop() else { continue };
                unexplained = judge(case, mine, &alone, &mut fired);
            }
            if !unexplained.is_empty() {
                failed += 1;
                for (kind, _) in &unexplained {
                    let (count, _) = kinds.entry(kind.clone()).or_insert((0, case.number));
                    *count += 1;
                }
                if failed <= SHOWN as u64 {
                    show(args, case, &unexplained);
                }
            }
        }
        next = end;
        if reported.elapsed() >= PROGRESS {
            reported = Instant::now();
            println!("  {next} of {} cases, {failed} unexplained", args.cases);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} cases with {requests} steps in {seconds:.1} s ({:.0} cases/s)",
        args.cases,
        args.cases as f64 / seconds
    );
    if failed > 0 {
        println!("unexplained differences, by kind:");
    }
    for (kind, (count, first)) in &kinds {
        println!("  {count:>8}  {kind}; first in case {first}");
    }
    println!("agreed on:");
    for (outcome, count) in &agreed {
        println!("  {count:>8}  {outcome}");
    }
    let stale = summary(args, &fired);
    println!("{} passed, {failed} failed", args.cases - failed);
    Ok(failed == 0 && !stale)
}

/// Counts the rules; returns the differences that none explains.
fn judge(
    case: &Case,
    ours: &Observed,
    theirs: &Observed,
    fired: &mut BTreeMap<&'static str, u64>,
) -> Vec<(String, String)> {
    let mut unexplained = Vec::new();
    for difference in Difference::all(case, ours, theirs) {
        match explain(&difference) {
            Some(rule) => *fired.entry(rule.name).or_default() += 1,
            None => unexplained.push((difference.kind(), difference.to_string())),
        }
    }
    unexplained
}

fn show(args: &Args, case: &Case, unexplained: &[(String, String)]) {
    println!("\nUNEXPLAINED: {case}");
    for (_, difference) in unexplained {
        println!("  {difference}");
    }
    println!(
        "  again: cargo xtask lab diff --seed {} --case {}",
        args.seed, case.number
    );
}

/// Prints how often each rule fired; whether one is stale.
fn summary(args: &Args, fired: &BTreeMap<&'static str, u64>) -> bool {
    let mut stale = false;
    println!("explained differences:");
    for rule in RULES.iter().chain(RECORD_RULES) {
        let count = fired.get(rule.name).copied().unwrap_or(0);
        println!("  {count:>8}  {} ({:?} right)", rule.name, rule.right);
        if count == 0 && args.cases >= ENOUGH_FOR_STALE {
            stale = true;
            println!("            STALE: it explains nothing any more; remove it");
        }
    }
    stale
}
