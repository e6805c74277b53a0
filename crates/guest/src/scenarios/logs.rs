//! A full event log: what is lost, what is not, and how it starts again.

use amdvi_regs::event::IoPageFault;
use amdvi_regs::mmio::{Status, offset};

use super::done;
use super::own::Own;
use super::remap::ADDRESS;
use crate::endpoint::outcome;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::LEN_512;
use crate::machine::{Machine, name};
use crate::platform::Platform;
use crate::report::Report;

/// Entries of the shortest log; one slot stays empty.
const ENTRIES: u32 = 256;

/// Causes a fault whose event can be told from others: the message's address carries `n`.
fn fault<P: Platform + ?Sized>(m: &mut Machine<'_, P>, n: u32) -> Result<()> {
    let seen = m.dev.raw(m.p, address(n), 0);
    ensure!(
        seen == outcome::BLOCKED,
        "message {n} had outcome {}, not blocked",
        name(seen)
    );
    m.blocked += 1;
    Ok(())
}

fn address(n: u32) -> u64 {
    ADDRESS | u64::from(n & 0xff) << 12
}

fn event<P: Platform + ?Sized>(m: &Machine<'_, P>, n: u32) -> IoPageFault {
    IoPageFault::new()
        .with_device_id(m.dev.id.0)
        .with_i(true)
        .with_address(address(n))
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, |iommu| Config {
        event_len: 8,
        ..Config::offered(iommu)
    })?;
    m.new_table(LEN_512)?;
    let cpu = m.low_cpu()?;

    // Without the interrupt first: status bits do not depend on its enable bit.
    overflow(&mut m, None).during("EventIntEn=0")?;
    m.iommu.restart_events(m.p)?;
    works_again(&mut m)?;

    let own = Own::by_msi(&mut m, cpu, 0x95)?;
    m.iommu
        .clear_status(m.p, Status::new().with_event_log_int(true));
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_event_int_en(true));
    overflow(&mut m, Some(&own)).during("EventIntEn=1")?;
    m.iommu.restart_events(m.p)?;
    works_again(&mut m)?;
    own.off(&mut m);
    done(
        &m,
        report,
        format_args!(
            "a log of {ENTRIES} entries takes {}; the next event sets EventOverflow, clears \
             EventLogRun, interrupts if enabled, and is lost like all after it, even with room, \
             until the bit is cleared and EventLogEn set; nothing logged before is damaged",
            ENTRIES - 1
        ),
    )
}

/// Fills the log, overflows it and empties it.
fn overflow<P: Platform + ?Sized>(m: &mut Machine<'_, P>, own: Option<&Own>) -> Result<()> {
    for n in 0..ENTRIES - 1 {
        fault(m, n)?;
        if n == 0
            && let Some(own) = own
        {
            own.one(m).during("first event")?;
        }
    }
    let status = m.iommu.status(m.p);
    ensure!(
        !status.event_overflow() && status.event_log_run() && status.event_log_int(),
        "STATUS is {:#x} when the log is just full: EventLogInt and EventLogRun must be 1, \
         EventOverflow 0",
        status.into_bits()
    );
    if let Some(own) = own {
        own.none(m).during("log full, not overflowed")?;
    }
    let tail = m.iommu.read32(m.p, offset::EVENT_TAIL);
    fault(m, ENTRIES)?;
    let status = m.iommu.status(m.p);
    ensure!(
        status.event_overflow() && !status.event_log_run(),
        "STATUS is {:#x} after one event too many: EventOverflow must be 1, EventLogRun 0",
        status.into_bits()
    );
    let seen = m.iommu.read32(m.p, offset::EVENT_TAIL);
    ensure!(
        seen == tail,
        "the tail moved from {tail:#x} to {seen:#x} although the log was full"
    );
    if let Some(own) = own {
        own.one(m).during("EventOverflow")?;
    }
    fault(m, ENTRIES + 1)?;
    // All that was logged is there; and room alone does not start the log again.
    for n in 0..ENTRIES - 1 {
        let expected = event(m, n);
        m.expect_event(expected)?;
    }
    fault(m, ENTRIES + 2)?;
    m.expect_no_event().during("EventOverflow still 1")?;
    if let Some(own) = own {
        own.none(m).during("EventOverflow still 1")?;
    }
    Ok(())
}

fn works_again<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let status = m.iommu.status(m.p);
    ensure!(
        !status.event_overflow() && status.event_log_run(),
        "STATUS is {:#x} after the restart: EventOverflow must be 0, EventLogRun 1",
        status.into_bits()
    );
    fault(m, 77)?;
    let expected = event(m, 77);
    m.expect_event(expected).during("after the restart")?;
    m.expect_no_event().during("after the restart")
}
