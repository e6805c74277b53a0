//! An interrupt that is moved to another processor.

use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::MeasureRetarget;
use anyhow::{Context as _, Result, bail, ensure};

use super::net::{is_late, ready, socket};
use super::note;
use crate::context::{Context, interrupts, online_cpus, put, text};

/// How long an interrupt may take to come to its new processor.
const PATIENCE: Duration = Duration::from_secs(5);

pub(in crate::checks) fn check(want: &MeasureRetarget, context: &Arc<Context>) -> Result<String> {
    let interface = ready(want.peer, want.port)?;
    let irq = irq(&interface)?;
    let cpus = online_cpus()?;
    ensure!(cpus.len() > 1, "there is one processor");
    let socket = socket(want.peer, want.port)?;
    let (mut writes, mut arrivals) = (Vec::new(), Vec::new());
    let mut turn = 0;
    for _ in 0..want.repeats {
        let (mut write, mut arrival) = (Vec::new(), Vec::new());
        for _ in 0..want.moves.max(1) {
            turn += 1;
            let cpu = cpus[turn % cpus.len()];
            let before = counts(irq)?;
            let start = Instant::now();
            put(
                format!("/proc/irq/{irq}/smp_affinity_list"),
                &cpu.to_string(),
            )?;
            write.push(micros(start));
            arrive(&socket, irq, cpu, &before, start)
                .with_context(|| format!("interrupt {irq} was moved to processor {cpu}"))?;
            arrival.push(micros(start));
        }
        writes.push(median(write));
        arrivals.push(median(arrival));
    }
    let said = [
        note(context, "retarget-write", "µs", writes),
        note(context, "retarget-arrival", "µs", arrivals),
    ];
    Ok(said.join("; "))
}

/// Lets the peer answer until an interrupt has come to the processor.
fn arrive(socket: &UdpSocket, irq: u32, cpu: u32, before: &[u64], start: Instant) -> Result<()> {
    let mut data = [0; 64];
    let count = |counts: &[u64]| counts.get(cpu as usize).copied().unwrap_or(0);
    loop {
        socket.send(&data).context("send")?;
        match socket.recv(&mut data) {
            Ok(_) => {}
            Err(error) if is_late(&error) => {}
            Err(error) => return Err(error).context("receive"),
        }
        let now = counts(irq)?;
        if count(&now) > count(before) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            let effective = text(format!("/proc/irq/{irq}/effective_affinity_list"))?;
            bail!("none came there, {before:?} before and {now:?} now; it is on {effective}");
        }
    }
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

/// How often an interrupt came to each processor.
fn counts(irq: u32) -> Result<Vec<u64>> {
    let text = text(format!("/sys/kernel/irq/{irq}/per_cpu_count"))?;
    let counts = text.split(',').map(|count| Ok(count.trim().parse()?));
    counts.collect()
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Of two in the middle, the upper one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
