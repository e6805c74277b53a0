//! `cargo xtask lab compare`: what an IOMMU costs, the reference VMM beside QEMU.
//!
//! Each run boots the emulated machine anew, with one virtual machine in it. Rounds go through all
//! contenders one after the other, so that what changes on this machine meanwhile changes for all.

mod contenders;
mod lines;
mod page;
mod plot;
mod profile;
mod qemu;
mod results;
mod runs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::matrix::{Version, folder};
use crate::step::root;
use contenders::Contender;
use results::Results;
use runs::Laboratory;

/// How often a run is tried: the emulated machine loses an interrupt now and then.
const ATTEMPTS: u32 = 3;
/// Where results are kept.
const RESULTS: &str = "results.json";
/// The same of runs that were sampled.
const PROFILED: &str = "results-profiled.json";
/// What is written, and where unless something else is said.
const PAGE: &str = "comparison.md";
const PLOT: &str = "comparison.svg";
const DOCS: &str = "docs";

/// Arguments of `cargo xtask lab compare`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each contender runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only this contender; can be given several times
    #[arg(long, alias = "contender", value_name = "NAME", value_parser = contenders::named)]
    only: Vec<&'static Contender>,
    /// CPUs of the guests
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    cpus: u32,
    /// The guests' kernel: debian-6.12, debian-7 or built
    #[arg(long, default_value = "debian-7", value_parser = Version::named)]
    kernel: Version,
    /// More of the guests' command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    cmdline: String,
    /// Adds rounds to the results of before, if there are any: of the same machine and kernel
    #[arg(long)]
    add: bool,
    /// Runs nothing: writes the page and the plot from the results of before
    #[arg(long, conflicts_with_all = ["add", "boot_only"])]
    render: bool,
    /// Boots, writes to the disk and ends, once for each round; nothing is measured or written
    #[arg(long, conflicts_with = "add")]
    boot_only: bool,
    /// Samples where the processors are, and prints it by phase: the guest's functions, the VMM's, the
    /// kernel's. Nothing is written to the page, as that takes time, too
    #[arg(long, conflicts_with_all = ["add", "render", "boot_only", "out"])]
    profile: bool,
    /// Where the page and the plot go; `docs`, or nowhere if only some contenders run
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Prints the results as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Lists the contenders and ends
    #[arg(long)]
    list: bool,
}

/// Runs the comparison.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        for contender in &contenders::ALL {
            println!("{:<18} {}", contender.name, contender.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kept = folder("compare").join(if args.profile { PROFILED } else { RESULTS });
    let (results, failed) = if args.render {
        (Results::read(&kept)?, 0)
    } else {
        let chosen: Vec<&Contender> = if args.only.is_empty() {
            contenders::ALL.iter().filter(|one| one.usual).collect()
        } else {
            args.only.clone()
        };
        let laboratory = Laboratory::open(args.kernel, args.cpus, &args.cmdline, args.profile)?;
        if args.boot_only {
            return boot_only(&laboratory, &chosen, args.rounds);
        }
        measure(&laboratory, args, &chosen, &kept)?
    };
    print!("{}", page::table(&results));
    if let Some(out) = out(args) {
        write(&results, &out)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&results)?);
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Where the page and the plot go.
fn out(args: &Args) -> Option<PathBuf> {
    let whole = args.only.is_empty() && !args.profile;
    let docs = || whole.then(|| root().join(DOCS));
    args.out.clone().or_else(docs)
}

fn write(results: &Results, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    for (name, text) in [
        (PAGE, page::page(results, PLOT)),
        (PLOT, plot::plot(results)),
    ] {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("lab: wrote {}", path.display());
    }
    Ok(())
}

/// Runs all rounds. What was measured is kept after each run, so that nothing is lost when it is
/// ended early. Gives how many runs failed.
fn measure(
    laboratory: &Laboratory,
    args: &Args,
    chosen: &[&Contender],
    kept: &Path,
) -> Result<(Results, usize)> {
    let mut results = laboratory.results()?;
    if args.add && kept.exists() {
        let before = Results::read(kept)?;
        before.continues(&results)?;
        results = before;
    }
    if let Some(folder) = kept.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut failed = 0;
    let all = args.rounds as usize * chosen.len();
    let numbered = (0..args.rounds).flat_map(|_| chosen);
    for (number, contender) in numbered.enumerate() {
        let start = Instant::now();
        let round = results.next_round(contender);
        eprintln!(
            "lab: run {} of {all}: {}, round {round}",
            number + 1,
            contender.name
        );
        let mut attempt = 1;
        let name = contender.name;
        let remark = |what: &str| format!("{name}, round {round}: {}", first_line(what));
        loop {
            let error = match laboratory.measure(contender, round) {
                Ok((sample, remarks)) => {
                    results.samples.push(sample);
                    results
                        .remarks
                        .extend(remarks.iter().map(|what| remark(what)));
                    break;
                }
                Err(error) => error,
            };
            eprintln!("lab: {name}, round {round}: {error:#}");
            results.remarks.push(remark(&format!("{error:#}")));
            if attempt == ATTEMPTS {
                failed += 1;
                break;
            }
            attempt += 1;
        }
        results.write(kept)?;
        eprintln!("lab: it took {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok((results, failed))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Boots each contender; what came of it is said, and kept in the folder of the logs.
fn boot_only(laboratory: &Laboratory, chosen: &[&Contender], rounds: u32) -> Result<ExitCode> {
    let mut failed = 0;
    for round in 1..=rounds {
        for contender in chosen {
            let start = Instant::now();
            let said = match laboratory.boot(contender, round) {
                Ok(said) => said,
                Err(error) => {
                    failed += 1;
                    format!("FAILED: {error:#}")
                }
            };
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{:<18} round {round}, {seconds:5.1} s: {said}",
                contender.name
            );
        }
    }
    let all = rounds as usize * chosen.len();
    println!("{} of {all} boots passed", all - failed);
    Ok(ExitCode::from(u8::from(failed > 0)))
}
