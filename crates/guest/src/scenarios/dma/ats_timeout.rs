//! A device that does not answer INVALIDATE_IOTLB_PAGES: IOTLB_INV_TIMEOUT, and COMPLETION_WAIT
//! comes to its end all the same.

use amdvi_regs::command::InvalidationRange;
use amdvi_regs::event::IotlbInvTimeout;

use super::super::done;
use super::access::{Who, passes, reads, writes};
use super::ats::{device_pages, expect_tlb, invalidate_device, start};
use super::table::{ALL, leaf};
use super::{PAGE, invalidate_block};
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// Invalidations under way at a time, as many as MaxPend allows at least.
const TOGETHER: usize = 3;
/// InvTimeOut of 1 ms, the shortest.
const SHORTEST: u8 = 1;
/// InvTimeOut of 1 s, which Linux sets.
const ONE_SECOND: u8 = 4;
const MS: u64 = 1_000_000;

/// `ats-timeout`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let (mut m, rig) = start(p, false)?;
    set_time_out(&mut m, SHORTEST);
    let (iova, old, new) = (rig.at[0], rig.pages[0], rig.pages[1]);
    passes(&mut m, Who::PLAIN, iova, old)?;
    expect_tlb(&mut m, 1)?;

    m.dev.write(m.p, reg::TLB_MUTE, 1);
    let slot = rig.space.slot(&m, iova, 1);
    m.p.write_u64(slot, leaf(new, 1, 12, ALL));
    invalidate_block(&mut m, iova, PAGE)?;
    let asked = m.dev.read64(m.p, reg::TLB_INVALIDATIONS);
    let one = InvalidationRange::Block {
        start: iova,
        size_log2: PAGE,
    };
    unanswered(&mut m, one, 1)?;
    unanswered(&mut m, InvalidationRange::All, TOGETHER)?;
    set_time_out(&mut m, ONE_SECOND);
    let (told, waited) = unanswered(&mut m, one, 1)?;
    // The guest's clock and the VMM's need not agree to the last tenth.
    ensure!(
        waited >= 900 * MS,
        "IOTLB_INV_TIMEOUT came {} ms after the command, and InvTimeOut says 1 s",
        waited / MS
    );
    ensure!(
        told < 500 * MS,
        "the CPU that told the IOMMU of the command was held for {} ms",
        told / MS
    );
    set_time_out(&mut m, SHORTEST);
    let asked = m.dev.read64(m.p, reg::TLB_INVALIDATIONS) - asked;
    ensure!(
        asked == 2 + TOGETHER as u64,
        "the device was asked {asked} times to invalidate"
    );
    // It goes on with what it knows: that is why software must reset such a device.
    expect_tlb(&mut m, 1).during("no answer")?;
    writes(&mut m, Who::PLAIN, iova, old).during("no answer")?;
    // Everybody else's commands are carried out.
    invalidate_block(&mut m, rig.at[1], PAGE)?;
    m.expect_no_event().during("commands for others")?;

    m.dev.write(m.p, reg::TLB_MUTE, 0);
    // What it was asked for is forgotten, and must be asked again.
    expect_tlb(&mut m, 1).during("before it is asked again")?;
    invalidate_device(&mut m, None, iova, PAGE)?;
    expect_tlb(&mut m, 0).during("after it was asked again")?;
    reads(&mut m, Who::PLAIN, iova, new)?;
    passes(&mut m, Who::PLAIN, iova, new)?;
    m.expect_no_event()?;
    let events = m.events;
    done(
        &m,
        report,
        format_args!(
            "an endpoint that answers no invalidation: {events} IOTLB_INV_TIMEOUT events, one for \
             each command and with its address, after InvTimeOut ({} ms of 1 s) and before \
             COMPLETION_WAIT's store, with no CPU held; then all goes on",
            waited / MS
        ),
    )
}

fn set_time_out<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, code: u8) {
    let control = m.iommu.control.with_inv_time_out(code);
    m.iommu.set_control(m.p, control);
}

/// So many invalidations that get no answer, and the events of them. How long it took to tell the IOMMU
/// of them, and until they were over, in nanoseconds.
fn unanswered<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    range: InvalidationRange,
    count: usize,
) -> Result<(u64, u64)> {
    let began = m.p.now_ns();
    let mut at = [0; TOGETHER];
    for at in &mut at[..count] {
        *at = m.iommu.commands.gpa + m.iommu.commands.at;
        let command = device_pages(m.dev.id, None, range);
        m.iommu.submit(m.p, command.into())?;
    }
    m.iommu.begin_wait(m.p)?;
    let told = m.p.now_ns() - began;
    m.iommu.end_wait(m.p)?;
    let waited = m.p.now_ns() - began;
    for at in &at[..count] {
        m.expect_event(
            IotlbInvTimeout::new()
                .with_device_id(m.dev.id.0)
                .with_address_16(at >> 4),
        )?;
    }
    m.expect_no_event()?;
    Ok((told, waited))
}
