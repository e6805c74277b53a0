//! Timers and clocks: a thread on each processor sleeps again and again.

use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::Timers;
use anyhow::{Context, Result, anyhow, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::context::{online_cpus, pin, text};

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

pub(super) fn check(want: &Timers) -> Result<String> {
    let (began, raw) = (Instant::now(), now(ClockId::CLOCK_MONOTONIC_RAW)?);
    let whole = Duration::from_millis(want.millis);
    let cpus = online_cpus()?.len();
    let threads: Vec<_> = (0..cpus)
        .map(|cpu| std::thread::spawn(move || sleep(cpu, whole)))
        .collect();
    let (mut sleeps, mut latest) = (0, Duration::ZERO);
    for thread in threads {
        let (here, late) = thread
            .join()
            .map_err(|_| anyhow!("a thread that sleeps panicked"))??;
        sleeps += here;
        latest = latest.max(late);
    }
    let took = began.elapsed();
    let raw = now(ClockId::CLOCK_MONOTONIC_RAW)?.saturating_sub(raw);
    let said = format!(
        "{sleeps} sleeps of {cpus} processors in {} ms, the latest {} ms late; clock {}",
        took.as_millis(),
        latest.as_millis(),
        text(CLOCK)?
    );
    ensure!(
        latest <= Duration::from_millis(want.late_millis),
        "{said}; at most {} ms are allowed",
        want.late_millis
    );
    // The one is the other, but for what somebody else's time makes of it.
    ensure!(
        raw.abs_diff(took) <= took / 50,
        "{said}; the raw clock says {} ms",
        raw.as_millis()
    );
    Ok(said)
}

/// Sleeps of 1 to 128 ms on a processor; how many, and the most that one came late.
fn sleep(cpu: usize, whole: Duration) -> Result<(u32, Duration)> {
    pin(cpu)?;
    let (began, mut sleeps, mut latest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < whole {
        let length = Duration::from_millis(1 << (sleeps % 8));
        let before = Instant::now();
        std::thread::sleep(length);
        let slept = before.elapsed();
        ensure!(
            slept >= length,
            "processor {cpu} slept {slept:?} instead of {length:?}"
        );
        latest = latest.max(slept - length);
        sleeps += 1;
    }
    Ok((sleeps, latest))
}

fn now(clock: ClockId) -> Result<Duration> {
    Ok(clock_gettime(clock).context("clock_gettime")?.into())
}
