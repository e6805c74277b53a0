//! Everything at once: interrupts that fire while they move, processors that leave and come back,
//! mappings, disks and networks. Nothing may be lost, nothing may come twice, no byte may differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::reg;
use amdvi_lab_guest::plan::{Disk, Net, Stress};
use anyhow::{Context as _, Result, ensure};

use super::affinity::{join, replug, shift, until};
use super::msix::{irqs, rounds};
use super::{disk, dma, net};
use crate::context::{Context, online_cpus};
use crate::endpoint::Endpoint;
use crate::vfio::{Irq, Received};

/// How long the interrupts of a round may take: all processors have something else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the threads count.
#[derive(Default)]
struct Counts {
    moves: AtomicU64,
    departures: AtomicU64,
    disks: AtomicU64,
    nets: AtomicU64,
    mappings: AtomicU64,
}

pub(super) fn check(want: &Stress, context: &Context) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let mut received = Received::enable(Arc::clone(endpoint.device()), Irq::Msix, want.vectors)?;
    let irqs = irqs(endpoint.function(), want.vectors)?;
    let cpus = online_cpus()?;
    ensure!(
        cpus.len() > 1,
        "there is one processor: interrupts can't move"
    );
    endpoint.set(reg::RESET_STATS, 0)?;
    let stop = AtomicBool::new(false);
    let counts = Counts::default();
    let end = Instant::now() + Duration::from_secs(want.seconds);
    let fired = thread::scope(|scope| {
        let others = others(scope, want, &irqs, &cpus, &stop, &counts);
        let more = |_| Instant::now() < end && !stop.load(Ordering::Relaxed);
        let fired = rounds(&endpoint, &mut received, want.vectors, PATIENCE, more);
        // Also where it failed, or nobody would end.
        stop.store(true, Ordering::Relaxed);
        let ended: Result<Vec<()>> = others.into_iter().map(join).collect();
        ended.and(fired)
    })?;
    let (rounds, tally) = fired;
    let delivered = endpoint.get64(reg::DELIVERED)?;
    let blocked = endpoint.get64(reg::BLOCKED)?;
    {
        let mut found = context.found();
        found.msix_vectors += want.vectors;
        found.msix_received += tally.right;
        found.msix_duplicates += tally.duplicates;
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let said = format!(
        "{} vectors {rounds} times in {} s while {} times one moved and {} times a processor left, \
         {} mappings, {} turns of the disks and {} of the networks: {} lost, {} too many; the endpoint \
         counts {delivered} delivered and {blocked} blocked",
        want.vectors,
        want.seconds,
        count(&counts.moves),
        count(&counts.departures),
        count(&counts.mappings),
        count(&counts.disks),
        count(&counts.nets),
        tally.lost,
        tally.duplicates
    );
    // A processor that leaves sends again what waits there: with hotplug twice is no fault.
    ensure!(
        tally.lost == 0 && (want.hotplug || tally.duplicates == 0),
        "{said}; {:?}",
        tally.wrong
    );
    let fired = rounds * u64::from(want.vectors);
    ensure!(
        (delivered, blocked) == (fired, 0),
        "{said}, not {fired} and 0"
    );
    for (asked, counter, what) in [
        (want.affinity, &counts.moves, "moved an interrupt"),
        (want.hotplug, &counts.departures, "took a processor away"),
        (want.mappings.is_some(), &counts.mappings, "mapped memory"),
        (want.disk.is_some(), &counts.disks, "used the disks"),
        (want.net.is_some(), &counts.nets, "used the networks"),
    ] {
        ensure!(!asked || count(counter) > 0, "{said}: nobody {what}");
    }
    Ok(said)
}

/// Starts what goes on beside the interrupts.
fn others<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    want: &'env Stress,
    irqs: &'env [u32],
    cpus: &'env [u32],
    stop: &'env AtomicBool,
    counts: &'env Counts,
) -> Vec<ScopedJoinHandle<'scope, Result<()>>> {
    let mut threads = Vec::new();
    if want.affinity {
        let moves = move || until(stop, |turn| shift(irqs, cpus, turn, &counts.moves));
        threads.push(scope.spawn(moves));
    }
    if want.hotplug {
        threads
            .push(scope.spawn(move || until(stop, |turn| replug(cpus, turn, &counts.departures))));
    }
    if let Some(target) = want.mappings {
        threads.push(scope.spawn(move || {
            let mappings = dma::storm(target, stop).context("mappings")?;
            counts.mappings.store(mappings, Ordering::Relaxed);
            Ok(())
        }));
    }
    if let Some(disk) = &want.disk {
        threads.push(scope.spawn(move || {
            until(stop, |turn| {
                let seed = disk.seed.wrapping_add(turn << 32);
                disk::check(&Disk { seed, ..*disk }).context("disks")?;
                counts.disks.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        }));
    }
    if let Some(net) = &want.net {
        threads.push(scope.spawn(move || {
            until(stop, |turn| {
                let seed = net.seed.wrapping_add(turn << 32);
                net::check(&Net { seed, ..*net }).context("networks")?;
                counts.nets.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        }));
    }
    threads
}
