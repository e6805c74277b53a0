//! Every MSI-X vector of the test endpoint, exactly once each time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use amdvi_guest::endpoint::reg;
use amdvi_lab_guest::plan::Msix;
use anyhow::{Context as _, Result, ensure};

use super::debugfs;
use crate::context::{Context, interrupts};
use crate::endpoint::Endpoint;
use crate::vfio::{Irq, Received};

/// How long interrupts may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How long one looks for interrupts that must not come.
pub(super) const QUIET: Duration = Duration::from_millis(300);

/// Fires all vectors, one round after the other has come, while `more` says so of the rounds so far; ends
/// with a round of which something is lost. How many rounds, and what came of them.
pub(super) fn rounds(
    endpoint: &Endpoint,
    received: &mut Received,
    vectors: u32,
    patience: Duration,
    more: impl Fn(u64) -> bool,
) -> Result<(u64, Tally)> {
    let mut expected = vec![0; vectors as usize];
    let mut round = 0;
    while more(round) {
        round += 1;
        expected.fill(round);
        endpoint.fire(0, vectors)?;
        received.wait(&expected, patience, Duration::ZERO)?;
        if lost(&expected, received.counts()) > 0 {
            break;
        }
    }
    received.wait(&expected, Duration::ZERO, QUIET)?;
    Ok((round, Tally::of(&expected, received.counts())))
}

pub(super) fn check(want: &Msix, context: &Context) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let device = endpoint.device();
    let has = device.irq_count(Irq::Msix)?;
    ensure!(
        has >= want.vectors,
        "the endpoint has {has} MSI-X vectors, not {}",
        want.vectors
    );
    let mut received = Received::enable(Arc::clone(device), Irq::Msix, want.vectors)?;
    endpoint.set(reg::RESET_STATS, 0)?;
    let mut expected = vec![0; want.vectors as usize];
    for &batch in &want.batches {
        let batch = batch.clamp(1, want.vectors);
        for first in (0..want.vectors).step_by(batch as usize) {
            let count = batch.min(want.vectors - first);
            for vector in first..first + count {
                expected[vector as usize] += 1;
            }
            endpoint.fire(first, count)?;
            received.wait(&expected, PATIENCE, Duration::ZERO)?;
            if lost(&expected, received.counts()) > 0 {
                break;
            }
        }
        received.wait(&expected, Duration::ZERO, QUIET)?;
    }
    let tally = Tally::of(&expected, received.counts());
    {
        let mut found = context.found();
        found.msix_vectors += want.vectors;
        found.msix_received += tally.right;
        found.msix_duplicates += tally.duplicates;
    }
    let kernel = kernel_counts(endpoint.function())?;
    let cpus = kernel.values().map(|row| row.cpus).max().unwrap_or(0);
    let said = format!(
        "{} of {} vectors came as often as they were fired ({} times), {} interrupts lost, {} too \
         many; {} rows in /proc/interrupts",
        tally.right,
        want.vectors,
        want.batches.len(),
        tally.lost,
        tally.duplicates,
        kernel.len()
    );
    ensure!(
        tally.right == want.vectors,
        "{said}; first wrong vectors {:?}",
        tally.wrong
    );
    // The kernel's own count is another witness.
    for (vector, expected) in expected.iter().enumerate() {
        let row = kernel.get(&(vector as u64));
        let count = row.map(|row| row.count);
        ensure!(
            count == Some(*expected) && row.is_some_and(|row| row.remapped),
            "/proc/interrupts has {count:?} for vector {vector}, not {expected}; {said}"
        );
    }
    let (sent, blocked) = (
        endpoint.get64(reg::DELIVERED)?,
        endpoint.get64(reg::BLOCKED)?,
    );
    let fired: u64 = expected.iter().sum();
    ensure!(
        (sent, blocked) == (fired, 0),
        "the endpoint counts {sent} delivered and {blocked} blocked, not {fired} and 0; {said}"
    );
    let table = table(&endpoint, want)?;
    Ok(format!(
        "{said}, each on at most {cpus} processors; {table}"
    ))
}

/// What the kernel counted for a vector.
struct Row {
    irq: u32,
    count: u64,
    cpus: usize,
    remapped: bool,
}

/// The rows of the function's MSI-X vectors, by vector.
fn kernel_counts(function: &str) -> Result<BTreeMap<u64, Row>> {
    let mut counts = BTreeMap::new();
    for row in interrupts()? {
        let vector = vector_of(row.actions(), function);
        if let Some(vector) = vector {
            counts.insert(
                vector,
                Row {
                    irq: row.irq,
                    count: row.count,
                    cpus: row.cpus,
                    remapped: row.remapped(),
                },
            );
        }
    }
    Ok(counts)
}

/// Linux' number of each of the first `vectors` vectors.
pub(super) fn irqs(function: &str, vectors: u32) -> Result<Vec<u32>> {
    let rows = kernel_counts(function)?;
    let irq = |vector: u32| rows.get(&u64::from(vector)).map(|row| row.irq);
    (0..vectors)
        .map(|vector| {
            irq(vector).with_context(|| format!("vector {vector} is not in /proc/interrupts"))
        })
        .collect()
}

/// The vector in `vfio-msix[5](0000:00:05.0)`.
fn vector_of(actions: &str, function: &str) -> Option<u64> {
    let rest = actions.strip_prefix("vfio-msix[")?;
    let (vector, rest) = rest.split_once("](")?;
    (rest.strip_suffix(')')? == function).then(|| vector.parse().ok())?
}

/// IntTabLen, in kernels that show it.
fn table(endpoint: &Endpoint, want: &Msix) -> Result<String> {
    let Some(entry) = debugfs::dte_if_shown(endpoint.function())? else {
        return Ok("IntTabLen is not shown by this kernel".to_owned());
    };
    let length = entry.int_tab_len();
    if let Some(want) = want.int_tab_len {
        ensure!(length == want, "IntTabLen is {length}, not {want}");
    }
    Ok(format!("IntTabLen {length}"))
}

/// Interrupts that did not come.
fn lost(expected: &[u64], counts: &[u64]) -> u64 {
    let pairs = expected.iter().zip(counts);
    pairs
        .map(|(expected, count)| expected.saturating_sub(*count))
        .sum()
}

/// What came, compared with what was fired.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// Vectors that came as often as they were fired.
    pub(super) right: u32,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    /// The first vectors that did not, with how often they were fired and came.
    pub(super) wrong: Vec<(usize, u64, u64)>,
}

impl Tally {
    pub(super) fn of(expected: &[u64], counts: &[u64]) -> Self {
        let pairs = || expected.iter().zip(counts);
        let wrong = pairs()
            .enumerate()
            .filter(|(_, (expected, count))| expected != count)
            .map(|(vector, (expected, count))| (vector, *expected, *count));
        Self {
            right: pairs()
                .filter(|(expected, count)| expected == count)
                .count() as u32,
            lost: lost(expected, counts),
            duplicates: pairs()
                .map(|(expected, count)| count.saturating_sub(*expected))
                .sum(),
            wrong: wrong.take(10).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_does_not_hide_what_comes_twice() {
        let tally = Tally::of(&[3, 3, 3], &[3, 2, 4]);
        let expected = Tally {
            right: 1,
            lost: 1,
            duplicates: 1,
            wrong: vec![(1, 3, 2), (2, 3, 4)],
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn a_vector_is_that_of_this_function() {
        let function = "0000:00:05.0";
        assert_eq!(
            vector_of("vfio-msix[2047](0000:00:05.0)", function),
            Some(2047)
        );
        assert_eq!(vector_of("vfio-msix[2047](0000:00:06.0)", function), None);
        assert_eq!(vector_of("vfio-msi[0](0000:00:05.0)", function), None);
    }
}
