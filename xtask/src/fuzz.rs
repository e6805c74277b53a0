//! `cargo xtask fuzz`.

use std::process::ExitCode;

use anyhow::Result;

use crate::step::{Outcome, Steps, cargo, root, succeeded};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target: mmio, command_ring, remap, translate, process or restore
    #[arg(long)]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Coverage-guided, by cargo-fuzz and a nightly toolchain, instead of seeded random input
    #[arg(long)]
    libfuzzer: bool,
}

const TARGETS: [&str; 6] = [
    "mmio",
    "command_ring",
    "remap",
    "translate",
    "process",
    "restore",
];

/// Fuzzes for as long as asked.
pub(crate) fn fuzz(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::default();
    for target in TARGETS {
        if args.target.as_deref().is_some_and(|only| only != target) {
            continue;
        }
        if args.libfuzzer {
            steps.run(target, || {
                let mut command = cargo();
                command
                    .current_dir(root())
                    .args(["+nightly", "fuzz", "run", target, "--"])
                    .arg(format!("-max_total_time={}", args.seconds));
                // `cargo` of a toolchain ignores `+nightly`; the proxy does not.
                let mut proxy = std::process::Command::new("cargo");
                proxy
                    .current_dir(root())
                    .args(command.get_args())
                    .env_remove("CARGO");
                Ok(if succeeded(&mut proxy)? {
                    Outcome::Passed(format!("{} s under libFuzzer", args.seconds))
                } else {
                    Outcome::Failed(
                        "see above; needs `cargo install cargo-fuzz` and a nightly toolchain"
                            .to_owned(),
                    )
                })
            });
        } else {
            steps.command(
                target,
                &format!("{} s of seeded random input", args.seconds),
                cargo()
                    .args(["run", "--release", "--quiet", "-p", "amdvi-device"])
                    .args(["--features", "fuzzing", "--example", "fuzz", "--", target])
                    .arg(args.seconds.to_string()),
            );
        }
    }
    Ok(if steps.summary() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
