//! `cargo xtask run`.

mod linux;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::payload;
use crate::step::{cargo, describe, root, succeeded, target_dir};

/// Arguments of `cargo xtask run`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Options of the reference VMM; `--help` (which builds it first) lists them. With `--linux`
    /// first: boot Linux instead; `--linux --help` lists the options
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    options: Vec<String>,
}

/// Builds the bare-metal payload and checks its instructions; gives the path of the ELF file.
pub(crate) fn build_payload() -> Result<PathBuf> {
    eprintln!("building the guest payload");
    Ok(payload::build(&root(), &target_dir().join("payload"))?)
}

/// Builds the reference VMM, optimised; gives the path of its binary.
pub(crate) fn build_refvmm() -> Result<PathBuf> {
    eprintln!("building the reference VMM");
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "-p",
        "amdvi-refvmm",
        "--bin",
        "amdvi-refvmm",
    ]);
    if !succeeded(&mut build)? {
        bail!("`{}` failed, see above", describe(&build));
    }
    Ok(target_dir().join("release").join("amdvi-refvmm"))
}

/// The reference VMM with the payload.
pub(crate) fn refvmm(binary: &Path, payload: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("--payload").arg(payload);
    command
}

/// Builds what is needed and runs the scenarios.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(options) = linux::asked_for(&args.options) {
        return linux::run(options);
    }
    eprintln!("the first build takes a minute or two; after that nothing is built again");
    let payload = build_payload()?;
    let binary = build_refvmm()?;
    let mut command = refvmm(&binary, &payload);
    command.args(&args.options);
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or_else(|| ExitCode::from(2), ExitCode::from))
}
