//! Performance counters, by perf, against what the test endpoint really did.

use std::sync::Arc;
use std::time::Duration;

use amdvi_lab_guest::events::WRITE_NOT_PRESENT;
use amdvi_lab_guest::plan::{Counted, Counters, Work};
use amdvi_lab_init::pci;
use anyhow::{Context as _, Result, ensure};

use super::dma::faults;
use super::msix::{PATIENCE, QUIET};
use crate::context::{Context, Mark};
use crate::endpoint::{Dma, Endpoint};
use crate::memory::Memory;
use crate::perf::{Counter, Unit};
use crate::vfio::{Irq, Received};

const PAGE: u64 = 4096;
const BYTES: usize = 64;
const IOVA: u64 = 1 << 32;
/// Nothing is ever mapped there.
const NOWHERE: u64 = 1 << 33;
/// Where mappings come and go.
const CHANGING: u64 = 1 << 34;
/// Vectors that take turns.
const VECTORS: u32 = 8;

/// Events whose counts are added up, as they are counted.
struct Sum<'a> {
    events: &'a [String],
    is: Counted,
    counters: Vec<Counter>,
}

pub(super) fn check(want: &Counters, context: &Context) -> Result<String> {
    let unit = Unit::open(want.index)?;
    let endpoint = Endpoint::open(want.target)?;
    let device = endpoint.device();
    let mut received = Received::enable(Arc::clone(device), Irq::Msix, VECTORS)?;
    let memory = Memory::new(2 * PAGE)?;
    device.map(IOVA, &memory, 0, PAGE)?;
    let id = pci::device_id(endpoint.function()).context("the endpoint's address")?;
    let own = [("devid", u64::from(id)), ("devid_mask", 0xffff)];
    let mut sums = Vec::new();
    for count in &want.counts {
        let only: &[_] = match count.is {
            Counted::Exactly(_) => &own,
            Counted::AtLeast(_) => &[],
        };
        let counters = count.events.iter().map(|event| unit.counter(event, only));
        sums.push(Sum {
            events: &count.events,
            is: count.is,
            counters: counters.collect::<Result<_>>()?,
        });
    }

    for counter in sums.iter().flat_map(|sum| &sum.counters) {
        counter.start()?;
    }
    for n in 0..want.writes {
        let ended = endpoint.dma_write(IOVA + u64::from(n) % 32 * 128, &[n as u8; BYTES])?;
        ensure!(ended == Dma::Done, "write {n} {ended}");
    }
    for _ in 0..want.unmaps {
        device.map(CHANGING, &memory, PAGE, PAGE)?;
        device.unmap(CHANGING, PAGE)?;
    }
    let mut expected = vec![0; VECTORS as usize];
    for n in 0..want.interrupts {
        let vector = n % VECTORS;
        expected[vector as usize] += 1;
        endpoint.fire(vector, 1)?;
        received.wait(&expected, PATIENCE, Duration::ZERO)?;
    }
    received.wait(&expected, Duration::ZERO, QUIET)?;
    ensure!(
        received.counts() == expected,
        "of interrupts came {:?}, not {expected:?}",
        received.counts()
    );
    let mark = Mark::now()?;
    for n in 0..want.aborted {
        let ended = endpoint.dma_write(NOWHERE, &[0; BYTES])?;
        ensure!(ended == Dma::Aborted, "write {n} to nowhere {ended}");
    }
    let mut said = Vec::new();
    let mut wrong = Vec::new();
    for sum in sums {
        let mut count = 0;
        for counter in sum.counters {
            count += counter.stop()?;
        }
        let (right, must) = match sum.is {
            Counted::Exactly(work) => (count == done(want, work), format!("= {work:?}")),
            Counted::AtLeast(work) => (count >= done(want, work), format!("≥ {work:?}")),
        };
        let line = format!("{} {count}", sum.events.join(" + "));
        if !right {
            wrong.push(format!("{line}, must be {must}"));
        }
        said.push(line);
    }
    // What the kernel says of the aborted ones is part of the plan.
    let aborted = vec![(NOWHERE, WRITE_NOT_PRESENT); want.aborted as usize];
    if !aborted.is_empty() {
        faults(&mark, &endpoint.in_log(), &aborted, context)?;
    }
    device.unmap(IOVA, PAGE)?;
    ensure!(
        wrong.is_empty(),
        "{} of {} writes, {} aborted, {} interrupts, {} unmaps; all: {}",
        wrong.join("; "),
        want.writes,
        want.aborted,
        want.interrupts,
        want.unmaps,
        said.join(", ")
    );
    Ok(said.join(", "))
}

/// How often it was done.
fn done(want: &Counters, work: Work) -> u64 {
    u64::from(match work {
        Work::Writes => want.writes,
        Work::Aborted => want.aborted,
        Work::Interrupts => want.interrupts,
        Work::Unmaps => want.unmaps,
        Work::Requests => want.writes + want.aborted,
    })
}
