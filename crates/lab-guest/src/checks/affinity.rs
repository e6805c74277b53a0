//! Interrupts that move between processors while they fire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use amdvi_guest::endpoint::reg;
use amdvi_lab_guest::plan::Affinity;
use anyhow::{Context, Result, anyhow, ensure};

use super::cpus::set_online;
use super::msix::{PATIENCE, QUIET, Tally, irqs, rounds};
use crate::context::{online_cpus, put, text};
use crate::endpoint::Endpoint;
use crate::vfio::{Irq, Received};

/// How long the endpoint sends as fast as it can.
const STREAM: Duration = Duration::from_millis(300);

pub(super) fn check(want: &Affinity) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let mut received = Received::enable(Arc::clone(endpoint.device()), Irq::Msix, want.vectors)?;
    let irqs = irqs(endpoint.function(), want.vectors)?;
    let cpus = online_cpus()?;
    ensure!(
        cpus.len() > 1,
        "there is one processor: interrupts can't move"
    );
    let stop = AtomicBool::new(false);
    let moves = AtomicU64::new(0);
    let turns = AtomicU64::new(0);
    let fired = thread::scope(|scope| {
        let mover = scope.spawn(|| until(&stop, |turn| shift(&irqs, &cpus, turn, &moves)));
        let plugger = want
            .hotplug
            .then(|| scope.spawn(|| until(&stop, |turn| replug(&cpus, turn, &turns))));
        let more = |round| round < u64::from(want.rounds);
        let fired = rounds(&endpoint, &mut received, want.vectors, PATIENCE, more);
        // As fast as the endpoint can. What comes while one of the same vector waits at its
        // processor is one with it, as on any machine: this is not counted.
        let fired = fired.and_then(|(_, tally)| stream(&endpoint).map(|()| tally));
        stop.store(true, Ordering::Relaxed);
        let threads = [Some(mover), plugger].into_iter().flatten();
        let ended: Result<Vec<()>> = threads.map(join).collect();
        ended.and(fired)
    });
    let tally = fired?;
    let moved = moves.load(Ordering::Relaxed);
    ensure!(moved > 0, "no interrupt was moved");
    // A processor that leaves sends again what waits there: with hotplug twice is no fault.
    let right = tally.lost == 0 && (want.hotplug || tally.duplicates == 0);
    let said = format!(
        "{} vectors {} times while {moved} times one moved and {} times a processor left: {} lost, \
         {} too many",
        want.vectors,
        want.rounds,
        turns.load(Ordering::Relaxed),
        tally.lost,
        tally.duplicates
    );
    ensure!(right, "{said}; {:?}", tally.wrong);

    // After the stream each still comes, and exactly once.
    received.wait(&[], Duration::ZERO, QUIET)?;
    let mut expected: Vec<_> = received.counts().iter().map(|count| count + 1).collect();
    endpoint.fire(0, want.vectors)?;
    received.wait(&expected, PATIENCE, QUIET)?;
    let tally = Tally::of(&expected, received.counts());
    ensure!(
        tally.right == want.vectors,
        "after the stream {} of {} vectors came once: {:?}",
        tally.right,
        want.vectors,
        tally.wrong
    );
    settled(&endpoint, &irqs, &cpus, &mut received, &mut expected)?;
    Ok(said)
}

/// Does something again and again.
pub(super) fn until(stop: &AtomicBool, mut work: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        work(turn)?;
        turn += 1;
    }
    Ok(())
}

/// Takes a processor away, another one each turn but never the first, and brings it back.
pub(super) fn replug(cpus: &[u32], turn: u64, departures: &AtomicU64) -> Result<()> {
    let cpu = cpus[1 + turn as usize % (cpus.len() - 1)];
    set_online(cpu, false)?;
    set_online(cpu, true)?;
    departures.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Waits for a thread, and for what it says.
pub(super) fn join(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    let ended = thread.join();
    ended.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// Moves each interrupt on to the next processor.
pub(super) fn shift(irqs: &[u32], cpus: &[u32], turn: u64, moves: &AtomicU64) -> Result<()> {
    for (n, irq) in irqs.iter().enumerate() {
        let cpu = cpus[(n + turn as usize) % cpus.len()];
        match put(
            format!("/proc/irq/{irq}/smp_affinity_list"),
            &cpu.to_string(),
        ) {
            Ok(()) => {
                moves.fetch_add(1, Ordering::Relaxed);
            }
            // The processor has left a moment ago, or has no vector to spare.
            Err(error) if refused(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn refused(error: &anyhow::Error) -> bool {
    let errno = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    matches!(errno, Some(libc::EINVAL | libc::ENOSPC | libc::EBUSY))
}

/// Sends all vectors of the last range for some time, round robin.
fn stream(endpoint: &Endpoint) -> Result<()> {
    endpoint.set(reg::STORM, 1)?;
    thread::sleep(STREAM);
    endpoint.set(reg::STORM, 0)
}

/// Moves each interrupt once more, and sees that it comes to where it was moved.
fn settled(
    endpoint: &Endpoint,
    irqs: &[u32],
    cpus: &[u32],
    received: &mut Received,
    expected: &mut [u64],
) -> Result<()> {
    for (n, irq) in irqs.iter().enumerate() {
        let cpu = cpus[(n + 1) % cpus.len()];
        put(
            format!("/proc/irq/{irq}/smp_affinity_list"),
            &cpu.to_string(),
        )?;
        expected[n] += 1;
        endpoint.fire(n as u32, 1)?;
        received.wait(expected, PATIENCE, Duration::ZERO)?;
        let effective = text(format!("/proc/irq/{irq}/effective_affinity_list"))
            .context("the kernel lacks CONFIG_GENERIC_IRQ_EFFECTIVE_AFF_MASK")?;
        ensure!(
            effective == cpu.to_string() && received.counts() == expected,
            "vector {n} (interrupt {irq}) was moved to processor {cpu}: it is on {effective} and \
             came {} times, not {}",
            received.counts()[n],
            expected[n]
        );
    }
    Ok(())
}
