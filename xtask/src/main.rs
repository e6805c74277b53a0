//! `cargo xtask`: the one door to building, testing, running and measuring amdvi.
//!
//! Everything here works on a machine with nothing but a Rust toolchain; what needs more (KVM, a
//! nightly toolchain) says so and what was done instead.

mod bench;
mod fuzz;
mod instructions;
mod lab;
mod lint;
mod payload;
mod run;
mod scan;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests, runs and measures amdvi.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and run the scenarios in a guest: under KVM, or in-process without it
    ///
    /// Exits with 0 when every scenario passed, 1 when one failed, 2 when it could not be run.
    Run(run::Args),
    /// Run the tests: unit, property, loom, fuzz targets (briefly), scenarios both ways
    Test(test::Args),
    /// Check formatting, lints and documentation
    Lint,
    /// Run the benches and print each as a ratio to its baseline
    Bench(bench::Args),
    /// Count the instructions of the hit paths and compare with what is recorded
    Instructions(instructions::Args),
    /// Run the fuzz targets for longer, on the stable toolchain or under libFuzzer
    Fuzz(fuzz::Args),
    /// The lab: tests against QEMU, which is fetched into a cache
    #[command(subcommand)]
    Lab(lab::Args),
    /// Build the bare-metal payload and check its instructions; prints its path
    Payload,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::test(&args),
        Command::Lint => lint::lint(),
        Command::Bench(args) => bench::bench(&args),
        Command::Instructions(args) => instructions::instructions(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Lab(args) => lab::lab(&args),
        Command::Payload => run::build_payload().map(|path| {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
