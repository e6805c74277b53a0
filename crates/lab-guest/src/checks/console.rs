//! The virtio console.

use std::fs::File;
use std::io::Write;

use amdvi_lab_guest::plan::Console;
use anyhow::{Context, Result, ensure};

use crate::context::interrupts;

pub(super) fn check(want: &Console) -> Result<String> {
    let mut device = File::options()
        .write(true)
        .open(&want.path)
        .with_context(|| format!("open {}: is there a virtio console?", want.path))?;
    let before = counted()?;
    for n in 0..want.lines {
        writeln!(device, "amdvi-lab-guest: console line {n}")
            .with_context(|| format!("write line {n} to {}", want.path))?;
    }
    device.flush()?;
    // tcdrain: all of it has been handed over, and the device has given back the buffers.
    nix::sys::termios::tcdrain(&device).context("tcdrain")?;
    let after = counted()?;
    ensure!(
        after >= before,
        "the interrupts went back from {before} to {after}"
    );
    Ok(format!(
        "{} lines to {}, {} interrupts",
        want.lines,
        want.path,
        after - before
    ))
}

/// Interrupts of all virtio devices.
fn counted() -> Result<u64> {
    let rows = interrupts()?;
    let rows = rows
        .iter()
        .filter(|row| row.actions().starts_with("virtio"));
    Ok(rows.map(|row| row.count).sum())
}
