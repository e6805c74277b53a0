//! How many MSI-X vectors there can be: so many, and what the kernel says to more.

use std::sync::Arc;
use std::time::Duration;

use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::Limit;
use anyhow::{Context as _, Result, bail, ensure};

use super::msix::{PATIENCE, QUIET, Tally};
use crate::context::{Context, Mark};
use crate::endpoint::Endpoint;
use crate::vfio::{Irq, Received, Refused};

pub(super) fn check(want: &Limit, context: &Context) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    let device = endpoint.device();
    let fit = Received::enable(Arc::clone(device), Irq::Msix, want.vectors);
    let mut fit = fit.with_context(|| format!("{} vectors", want.vectors))?;
    endpoint.fire(0, want.vectors)?;
    let expected = vec![1; want.vectors as usize];
    fit.wait(&expected, PATIENCE, QUIET)?;
    let tally = Tally::of(&expected, fit.counts());
    {
        let mut found = context.found();
        found.msix_vectors += want.vectors;
        found.msix_received += tally.right;
        found.msix_duplicates += tally.duplicates;
    }
    ensure!(
        tally.right == want.vectors,
        "of {} vectors {} came once: {:?}",
        want.vectors,
        tally.right,
        tally.wrong
    );
    drop(fit);

    let mark = Mark::now()?;
    let refused = match Received::enable(Arc::clone(device), Irq::Msix, want.refused) {
        Ok(_) => bail!("{} vectors can be had", want.refused),
        Err(error) if error.is::<Refused>() => error,
        Err(error) => return Err(error),
    };
    mark.line(&want.message)?;
    // It may be said for each vector that is too many, and for each attempt.
    std::thread::sleep(Duration::from_millis(100));
    let said = mark.since()?;
    let said = said.into_iter().filter(|line| matches(&want.message, line));
    let mut found = context.found();
    let before = found.once.len();
    found.once.extend(said);
    let times = found.once.len() - before;
    Ok(format!(
        "{} vectors came; {} were refused ({refused}), and the kernel said so {times} times",
        want.vectors, want.refused
    ))
}
