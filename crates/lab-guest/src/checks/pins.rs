//! The test endpoint's other interrupts: MSI and INTx.

use std::sync::Arc;
use std::time::Duration;

use amdvi_lab_guest::plan::Pin;
use anyhow::{Context, Result, ensure};

use super::msix::{PATIENCE, QUIET, Tally};
use crate::context::interrupts;
use crate::endpoint::Endpoint;
use crate::vfio::{Irq, Received};

/// Every MSI vector, one after the other.
pub(super) fn check_msi(want: &Pin) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let vectors = endpoint.device().irq_count(Irq::Msi)?;
    ensure!(vectors > 0, "the endpoint has no MSI capability");
    let mut received = Received::enable(Arc::clone(endpoint.device()), Irq::Msi, vectors)?;
    let mut expected = vec![0; vectors as usize];
    for _ in 0..want.count {
        for expected in &mut expected {
            *expected += 1;
        }
        endpoint.fire(0, vectors)?;
        received.wait(&expected, PATIENCE, Duration::ZERO)?;
    }
    received.wait(&expected, Duration::ZERO, QUIET)?;
    let tally = Tally::of(&expected, received.counts());
    let chip = chip(&format!("vfio-msi[0]({})", endpoint.function()))?;
    let said = format!(
        "{} of {vectors} vectors came {} times, {} lost, {} too many; {chip}",
        tally.right, want.count, tally.lost, tally.duplicates
    );
    ensure!(tally.right == vectors, "{said}; {:?}", tally.wrong);
    Ok(said)
}

/// The line: it comes while it is asserted, as often as it is unmasked, and not when it is not.
pub(super) fn check_intx(want: &Pin) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let lines = endpoint.device().irq_count(Irq::Intx)?;
    ensure!(lines == 1, "the endpoint has {lines} interrupt pins");
    let mut received = Received::enable(Arc::clone(endpoint.device()), Irq::Intx, 1)?;
    let chip = chip(&format!("vfio-intx({})", endpoint.function()))?;
    let mut expected = 0;
    for round in 0..want.count {
        expected += 1;
        endpoint.set_intx(true)?;
        received.wait(&[expected], PATIENCE, Duration::ZERO)?;
        // Nobody has served the device: the line is asserted still.
        if round % 4 == 0 {
            expected += 1;
            received.unmask()?;
            received.wait(&[expected], PATIENCE, Duration::ZERO)?;
        }
        endpoint.set_intx(false)?;
        received.unmask()?;
        ensure!(
            received.counts() == [expected],
            "in round {round} it came {:?} times, not {expected}",
            received.counts()
        );
    }
    received.wait(&[expected], Duration::ZERO, QUIET)?;
    ensure!(
        received.counts() == [expected],
        "it came {:?} times, not {expected}",
        received.counts()
    );
    Ok(format!("{expected} times; {chip}"))
}

/// The remapped chip that an interrupt has.
fn chip(actions: &str) -> Result<String> {
    let rows = interrupts()?;
    let row = rows
        .iter()
        .find(|row| row.actions().starts_with(actions))
        .with_context(|| format!("/proc/interrupts has no `{actions}`"))?;
    ensure!(row.remapped(), "`{}` is not remapped", row.text);
    Ok(row.text.clone())
}
