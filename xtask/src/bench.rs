//! `cargo xtask bench`: criterion, and its results as ratios within one run.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::step::{cargo, describe, succeeded, target_dir};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only benches whose id contains this
    filter: Option<String>,
    /// Seconds of measurement for each bench
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Print one JSON object (id → nanoseconds per element) as the last line
    #[arg(long)]
    json: bool,
}

/// Each group of benches and the baseline it is compared with, and how many elements one
/// iteration of it handles.
const RATIOS: [(&str, &str); 3] = [
    ("remap/", "baseline/atomic-load"),
    ("translate/hit/", "baseline/array-lookup"),
    ("retarget/", "retarget/no-routes/wait-for-each"),
];

/// Runs the benches.
pub(crate) fn bench(args: &Args) -> Result<ExitCode> {
    let results = target_dir().join("criterion");
    let mut command = cargo();
    command
        .args(["bench", "-p", "amdvi-benches", "--"])
        .args([
            "--measurement-time",
            &args.seconds.to_string(),
            "--warm-up-time",
            "1",
        ])
        .args(&args.filter);
    if !succeeded(&mut command)? {
        bail!("`{}` failed, see above", describe(&command));
    }
    let mut list = Vec::new();
    collect(&results, &mut list)?;
    list.sort_by(|a, b| a.0.cmp(&b.0));
    println!("\n{:<36} {:>12} {:>10}", "bench", "ns/element", "ratio");
    for (id, ns) in &list {
        let baseline = RATIOS
            .iter()
            .find(|(group, _)| id.starts_with(group))
            .and_then(|(_, baseline)| list.iter().find(|(id, _)| id == baseline));
        match baseline {
            Some((_, base)) => println!("{id:<36} {ns:>12.3} {:>9.2}×", ns / base),
            None => println!("{id:<36} {ns:>12.3}"),
        }
    }
    println!("ratio: to the baseline of the same run; medians");
    if args.json {
        let map: serde_json::Map<_, _> = list.into_iter().map(|(id, ns)| (id, ns.into())).collect();
        println!("{}", serde_json::Value::Object(map));
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds every `new/estimates.json` below `folder`.
fn collect(folder: &Path, list: &mut Vec<(String, f64)>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if path.file_name().is_some_and(|name| name == "new") {
            list.push(read(&path)?);
        } else {
            collect(&path, list)?;
        }
    }
    Ok(())
}

fn read(folder: &Path) -> Result<(String, f64)> {
    let json = |name: &str| -> Result<serde_json::Value> {
        let path = folder.join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))
    };
    let benchmark = json("benchmark.json")?;
    let estimates = json("estimates.json")?;
    let id = benchmark["full_id"]
        .as_str()
        .context("no full_id")?
        .to_owned();
    let ns = estimates["median"]["point_estimate"]
        .as_f64()
        .context("no median")?;
    let elements = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    Ok((id, ns / elements))
}
