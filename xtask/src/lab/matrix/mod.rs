//! The acceptance matrix: what must hold on unmodified kernels, each as a row that can be run by
//! its name.

mod scenarios;

use std::path::PathBuf;

use anyhow::Result;

use super::nested::Runner;
use super::programs::Programs;
use crate::step::{Outcome, target_dir};

/// Where a row keeps its logs.
fn folder(name: &str) -> PathBuf {
    target_dir().join("lab").join(name)
}

/// The bare-metal scenarios on a KVM that runs Linux.
pub(super) fn scenarios_step() -> Result<Outcome> {
    let runner = match Runner::choose(Programs::build()?) {
        Ok(runner) => runner,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    println!("{}", runner.why());
    scenarios::run(&runner)
}
