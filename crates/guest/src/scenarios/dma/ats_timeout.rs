//! A device that does not answer INVALIDATE_IOTLB_PAGES: IOTLB_INV_TIMEOUT, and COMPLETION_WAIT
//! comes to its end all the same.

use amdvi_regs::command::InvalidationRange;
use amdvi_regs::event::IotlbInvTimeout;

use super::super::done;
use super::access::{Who, passes, reads, writes};
use super::ats::{Rig, device_pages, expect_tlb, invalidate_device};
use super::space::required;
use super::table::{ALL, leaf};
use super::{PAGE, invalidate_block};
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// Invalidations under way at a time, as many as MaxPend allows at least.
const TOGETHER: usize = 3;

/// `ats-timeout`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    super::v1::levels(&m)?;
    ensure!(
        m.has_ats(),
        "the IOMMU's capability block has IotlbSup=0: no ATS"
    );
    m.dev.ats_enable(m.p, true)?;
    let rig = Rig::new(&mut m)?;
    // The shortest time: 1 ms.
    let control = m.iommu.control.with_inv_time_out(1);
    m.iommu.set_control(m.p, control);
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
    let asked = m.dev.read64(m.p, reg::TLB_INVALIDATIONS) - asked;
    ensure!(
        asked == 1 + TOGETHER as u64,
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
             each command and with its address, before COMPLETION_WAIT's store; then all goes on"
        ),
    )
}

/// So many invalidations that get no answer, and the events of them.
fn unanswered<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    range: InvalidationRange,
    count: usize,
) -> Result<()> {
    let mut at = [0; TOGETHER];
    for at in &mut at[..count] {
        *at = m.iommu.commands.gpa + m.iommu.commands.at;
        let command = device_pages(m.dev.id, None, range);
        m.iommu.submit(m.p, command.into())?;
    }
    m.iommu.wait(m.p)?;
    for at in &at[..count] {
        m.expect_event(
            IotlbInvTimeout::new()
                .with_device_id(m.dev.id.0)
                .with_address_16(at >> 4),
        )?;
    }
    m.expect_no_event()
}
