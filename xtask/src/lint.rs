//! `cargo xtask lint`.

use std::process::ExitCode;

use anyhow::Result;

use crate::step::{Steps, cargo};
use crate::test::FEATURES;

/// Formatting, clippy and documentation, each without a warning.
pub(crate) fn lint() -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.command(
        "format",
        "rustfmt",
        cargo().args(["fmt", "--all", "--check"]),
    );
    steps.command(
        "clippy",
        "all targets, no warnings",
        cargo()
            .args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--features",
                FEATURES,
            ])
            .args(["--", "-D", "warnings"]),
    );
    steps.command(
        "documentation",
        "rustdoc, no warnings",
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--features", FEATURES])
            .env("RUSTDOCFLAGS", "-D warnings"),
    );
    Ok(if steps.summary() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
