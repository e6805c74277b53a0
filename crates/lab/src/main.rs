//! Runs the lab's tests; `cargo xtask lab` finds what they need and calls this.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Lab tests of amdvi.
#[derive(Parser)]
#[command(name = "amdvi-lab")]
enum Cli {
    /// Compare our device with QEMU's amd-iommu on random cases
    Diff(amdvi_lab::diff::Args),
}

fn main() -> ExitCode {
    let Cli::Diff(args) = Cli::parse();
    match amdvi_lab::diff::run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
