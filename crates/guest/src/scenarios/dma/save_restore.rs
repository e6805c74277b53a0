//! The IOMMU is saved and restored into a new device while DMA runs.

use super::super::done;
use super::stream::{PAGES, Stream, sentinel};
use super::{ABORTED, LENGTH, NOT_PRESENT, invalidate, page_fault};
use crate::endpoint::vmm;
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// Times that the device is replaced.
const ROUNDS: usize = 12;
/// Writes of the stream between two steps.
const WRITES: u64 = 96;

/// `save-restore-dma`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let mut stream = Stream::start(&mut m, false)?;
    let result = rounds(&mut m, &mut stream);
    // Whatever was found: the device must not write while the next scenario runs.
    Stream::stop(&mut m);
    result?;
    m.expect_no_event()?;
    faults_are_logged(&mut m, &stream)?;
    done(
        &m,
        report,
        format_args!(
            "{ROUNDS} times saved and restored into a new device under a stream of DMA writes: the \
             stream goes on, nothing passes untranslated, and a page unmapped and invalidated right \
             before is gone afterwards"
        ),
    )
}

fn rounds<P: Platform + ?Sized>(m: &mut Machine<'_, P>, stream: &mut Stream) -> Result<()> {
    for round in 0..ROUNDS {
        let in_round = |failure: Failure| Failure::new(format_args!("round {round}: {failure}"));
        let n = round % PAGES;
        one(m, stream, n).map_err(in_round)?;
        mapped_again(m, stream, n).map_err(in_round)?;
    }
    Ok(())
}

/// A page goes, the device is replaced: the page stays gone, the others go on.
fn one<P: Platform + ?Sized>(m: &mut Machine<'_, P>, stream: &Stream, gone: usize) -> Result<()> {
    Stream::flow(m, WRITES)?;
    stream.set(m, gone, None);
    invalidate(m, stream.page(gone))?;
    sentinel(m, stream.mapped[gone]);
    m.dev.vmm(m.p, vmm::SAVE_RESTORE)?;
    for n in 0..PAGES {
        if n != gone {
            sentinel(m, stream.mapped[n]);
        }
    }
    let aborted = Stream::flow(m, WRITES).during("after the restore")?;
    // The stream visits the pages in turn.
    let expected = WRITES / PAGES as u64;
    ensure!(
        aborted >= expected,
        "{aborted} writes were aborted after the restore; of {WRITES}, {expected} must be"
    );
    m.blocked += aborted;
    Stream::untouched(m, gone, stream.mapped[gone]).during("after the restore")?;
    for n in 0..PAGES {
        if n != gone {
            Stream::lands(m, n, stream.mapped[n]).during("after the restore")?;
        }
    }
    stream.nothing_bypassed(m).during("after the restore")?;
    let status = m.dev.dma(m.p, stream.page(gone), LENGTH, true);
    ensure!(
        status == ABORTED,
        "a transfer to the page that is gone had status {status}"
    );
    m.expect_no_event()
}

/// The page is mapped elsewhere, and invalidations work in the new device.
fn mapped_again<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &mut Stream,
    n: usize,
) -> Result<()> {
    sentinel(m, stream.mapped[n]);
    sentinel(m, stream.spare[n]);
    stream.set(m, n, Some(stream.spare[n]));
    invalidate(m, stream.page(n))?;
    let aborted = Stream::flow(m, WRITES).during("mapped again")?;
    ensure!(aborted == 0, "mapped again: {aborted} writes were aborted");
    Stream::lands(m, n, stream.spare[n])?;
    Stream::untouched(m, n, stream.mapped[n])?;
    stream.swap(n);
    Ok(())
}

/// With the stream at rest and SA=0: what is gone after a restore is logged as it should.
fn faults_are_logged<P: Platform + ?Sized>(m: &mut Machine<'_, P>, stream: &Stream) -> Result<()> {
    let mut dte = stream.dte();
    dte.q1 = dte.q1.with_sa(false);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    stream.set(m, 0, None);
    invalidate(m, stream.page(0))?;
    m.dev.vmm(m.p, vmm::SAVE_RESTORE)?;
    for write in [false, true] {
        let iova = stream.page(0);
        let status = m.dev.dma(m.p, iova, LENGTH, write);
        ensure!(status == ABORTED, "an unmapped page: status {status}");
        let event = page_fault(m, iova, write, NOT_PRESENT);
        m.expect_event(event).during("after the restore")?;
        m.expect_no_event()?;
        m.blocked += 1;
    }
    Ok(())
}
