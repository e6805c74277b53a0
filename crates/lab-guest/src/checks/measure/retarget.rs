//! An interrupt that is moved to another processor.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::MeasureRetarget;
use anyhow::{Context as _, Result, ensure};

use super::msi::Ready;
use super::net::ready;
use super::{note, phase};
use crate::context::{Context, interrupts, online_cpus, pin, put, text};

/// How long an interrupt may take to come to its new processor.
const PATIENCE: Duration = Duration::from_secs(5);

/// Linux gives the old processor's vector back by a timer, some ticks after an interrupt has come to the new
/// one, and the next move waits for that: which is not to be measured.
const SETTLE: Duration = Duration::from_millis(24);

pub(in crate::checks) fn check(want: &MeasureRetarget, context: &Arc<Context>) -> Result<String> {
    let cpus = online_cpus()?;
    ensure!(cpus.len() > 1, "there is one processor");
    let interface = ready(want.peer, want.port)?;
    let irq = irq(&interface)?;
    phase("retarget-write");
    let writes = repeat(want, &cpus, |cpu| {
        let start = Instant::now();
        target(irq, cpu)?;
        Ok(micros(start))
    })?;
    let mut said = vec![note(context, "retarget-write", "µs", writes)];
    if want.arrival {
        let mut sender = Ready::open()?;
        pin(0)?;
        phase("retarget-arrival");
        let arrivals = repeat(want, &cpus, |cpu| {
            let before = count(sender.irq, cpu)?;
            let start = Instant::now();
            target(sender.irq, cpu)?;
            // Where Linux has the interrupt move itself, the first one comes to the old processor.
            loop {
                sender.send()?;
                // Reading this takes some time, too, and the same for all.
                if count(sender.irq, cpu)? > before {
                    break;
                }
                ensure!(
                    start.elapsed() < PATIENCE,
                    "none came to processor {cpu}; it is on {}",
                    text(format!("/proc/irq/{}/effective_affinity_list", sender.irq))?
                );
            }
            Ok(micros(start))
        })?;
        let sent = sender.sent()?;
        said.push(note(context, "retarget-arrival", "µs", arrivals));
        said.push(format!("{}, {sent} sent", sender.function));
    }
    Ok(said.join("; "))
}

/// Moves an interrupt from processor to processor; the medians of what that took.
fn repeat(
    want: &MeasureRetarget,
    cpus: &[u32],
    mut step: impl FnMut(u32) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut turn = 0;
    let mut medians = Vec::new();
    for _ in 0..want.repeats {
        let mut all = Vec::new();
        for _ in 0..want.moves.max(1) {
            turn += 1;
            thread::sleep(SETTLE);
            all.push(step(cpus[turn % cpus.len()])?);
        }
        medians.push(median(all));
    }
    Ok(medians)
}

fn target(irq: u32, cpu: u32) -> Result<()> {
    put(
        format!("/proc/irq/{irq}/smp_affinity_list"),
        &cpu.to_string(),
    )
}

/// The interrupt for what an interface receives.
fn irq(interface: &str) -> Result<u32> {
    let device = fs::canonicalize(format!("/sys/class/net/{interface}/device"))?;
    let device = device.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{device}-input.0");
    let rows = interrupts()?;
    let row = rows.iter().find(|row| row.actions() == name);
    Ok(row
        .with_context(|| format!("no interrupt is called {name}"))?
        .irq)
}

/// How often an interrupt came to a processor.
fn count(irq: u32, cpu: u32) -> Result<u64> {
    let text = text(format!("/sys/kernel/irq/{irq}/per_cpu_count"))?;
    let count = text.split(',').nth(cpu as usize);
    Ok(count.unwrap_or_default().trim().parse()?)
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Of two in the middle, the upper one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
