//! Requests that the IOMMU does not let pass, and what Linux says to its events.

use std::sync::Arc;
use std::time::Duration;

use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::{Events, Provoke, Request};
use anyhow::{Context as _, Result, ensure};

use crate::context::{Context, Mark};
use crate::endpoint::{Dma, Endpoint};
use crate::vfio::{Irq, Received};

const BYTES: usize = 64;
/// For so long after a flood the kernel may say nothing about faults: it has said enough.
const SILENCE: Duration = Duration::from_secs(6);

pub(super) fn check(want: &Events, context: &Context) -> Result<String> {
    let endpoint = Endpoint::open(want.target)?;
    // An interrupt table with an entry in it.
    let received = Received::enable(Arc::clone(endpoint.device()), Irq::Msix, 1)?;
    let own = endpoint.requester()?;
    let mut said = Vec::new();
    for provoke in &want.provoke {
        endpoint.set_requester(provoke.requester.unwrap_or(own))?;
        let outcome = one(&endpoint, provoke, context);
        endpoint.set_requester(own)?;
        said.push(outcome.with_context(|| format!("{:x?}", provoke.request))?);
    }
    drop(received);
    Ok(said.join("; "))
}

fn one(endpoint: &Endpoint, provoke: &Provoke, context: &Context) -> Result<String> {
    let pattern = |text: &String| text.replace("{function}", endpoint.function());
    let expected: Vec<_> = provoke.expect.iter().map(pattern).collect();
    let mark = Mark::now()?;
    let passed = match provoke.request {
        Request::Write(iova) => endpoint.dma_write(iova, &[0; BYTES])? == Dma::Done,
        Request::Read(iova) => endpoint.dma_read(iova, &mut [0; BYTES])? == Dma::Done,
        Request::Message(address, data) => Endpoint::delivered(endpoint.message(address, data)?),
        Request::Flood(iova, millis) => {
            let time = Duration::from_millis(millis.into());
            let (sent, aborted) = endpoint.flood(iova, time)?;
            ensure!(sent > 0, "the flood sent nothing");
            aborted < sent
        }
    };
    ensure!(
        passed == provoke.passes,
        "the IOMMU let it pass: {passed}, and should have: {}",
        provoke.passes
    );
    for pattern in &expected {
        mark.line(pattern)?;
    }
    let flood = matches!(provoke.request, Request::Flood(..));
    if flood {
        std::thread::sleep(SILENCE);
    }
    // Lines that come besides are unexpected, unless they may come.
    let lines = mark.since()?;
    let of_these = |line: &&String| expected.iter().any(|pattern| matches(pattern, line));
    let mut found = context.found();
    found.once.extend(lines.iter().filter(of_these).cloned());
    found.allow.extend(provoke.allow.iter().map(pattern));
    // What comes after this look, as in a flood, is allowed by its pattern.
    if flood {
        found.allow.extend(expected);
    }
    Ok(format!("{:x?}: {lines:?}", provoke.request))
}
