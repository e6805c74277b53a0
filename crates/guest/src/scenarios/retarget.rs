//! Entries rewritten while a device fires.
//!
//! What can be checked exactly, although a local APIC merges two pending interrupts of one vector:
//!
//! - *none lost*: every message of the stream left the IOMMU, none was blocked;
//! - *none late*: once COMPLETION_WAIT after INVALIDATE_INTERRUPT_TABLE is visible, every message
//!   that leaves has the new target, and the old target's handler runs at most twice more: for one
//!   interrupt that was pending in its local APIC and one that was just being handled.

use super::done;
use super::remap::ADDRESS;
use crate::endpoint::{RECORDS, Record, reg};
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irt, Irte, LEN_512};
use crate::machine::{Machine, fixed};
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

/// Times that an entry is rewritten for each layout as fast as messages come.
const FAST_ROUNDS: usize = 200;
/// Times that an entry is rewritten for each layout, with time for the handlers.
const ROUNDS: usize = 24;
/// MSI-X vector that the stream fires, and index of its entry.
const INDEX: u16 = 3;
/// Handler runs at the old target that may still follow, see the module's text.
const PENDING: u64 = 2;

#[derive(Clone, Copy)]
struct Target {
    cpu: usize,
    vector: u8,
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::find(p)?;
    // CPU 0 runs this and must not drown in interrupts.
    let (a, b) = match m.cpus() {
        0 | 1 => {
            return Err(Failure::new(format_args!(
                "two CPUs are needed: one fires, one handles"
            )));
        }
        2 => (1, 1),
        _ => (1, 2),
    };
    // A 32-bit entry is rewritten at once: CPU and vector change together.
    m.iommu.start(m.p, Config::basic())?;
    let targets = [
        Target {
            cpu: a,
            vector: 0x81,
        },
        Target {
            cpu: b,
            vector: 0x82,
        },
    ];
    stream(&mut m, targets).during("32-bit entries")?;

    // Of a 128-bit entry the low half is: the CPU changes, the vector stays. With two CPUs only
    // the vector can change, which stands alone in the high half.
    let config = Config {
        two_k: false,
        ..Config::offered(&m.iommu)
    };
    m.iommu.start(m.p, config)?;
    let targets = [
        Target {
            cpu: a,
            vector: 0x83,
        },
        Target {
            cpu: b,
            vector: if a == b { 0x84 } else { 0x83 },
        },
    ];
    stream(&mut m, targets).during("128-bit entries")?;
    let sent = m.delivered;
    done(
        &m,
        report,
        format_args!(
            "{} rewrites under a stream of {sent} messages: all left the IOMMU; after each \
             COMPLETION_WAIT every message had the new target, and the old target's handler ran at \
             most {PENDING} times more for what was pending in its local APIC",
            2 * (FAST_ROUNDS + ROUNDS)
        ),
    )
}

fn entry<P: Platform + ?Sized>(m: &Machine<'_, P>, target: Target) -> (Irte, Record) {
    let apic = m.apic(target.cpu);
    (Irte::fixed(apic, target.vector), fixed(apic, target.vector))
}

fn stream<P: Platform + ?Sized>(m: &mut Machine<'_, P>, targets: [Target; 2]) -> Result<()> {
    let irt = m.new_table(LEN_512)?;
    let id = m.dev.id;
    irt.write(m.p, INDEX, entry(m, targets[0]).0);
    m.iommu.invalidate_interrupts(m.p, id)?;
    m.dev
        .msix_entry(m.p, INDEX, ADDRESS as u32, u32::from(INDEX));
    m.dev.msix_enable(m.p, true);
    m.dev.msix_mask_function(m.p, false);
    // Sets the stream's range, and fires it once.
    let Target { cpu, vector } = targets[0];
    let before = m.p.interrupts(cpu, vector);
    m.dev.fire_range(m.p, INDEX, 1);
    m.await_count(cpu, vector, before + 1)?;
    m.dev.reset_stats(m.p);
    m.dev.write(m.p, reg::STORM, 1);
    let result = rewrite_fast(m, &irt, targets).and_then(|()| rewrite(m, &irt, targets));
    m.dev.write(m.p, reg::STORM, 0);
    result?;

    let sent = m.dev.read64(m.p, reg::STORM_SENT);
    let counters = [
        ("left the IOMMU", m.dev.read64(m.p, reg::DELIVERED), sent),
        ("were recorded", m.dev.recorded(m.p), sent),
        ("were blocked", m.dev.read64(m.p, reg::BLOCKED), 0),
    ];
    for (what, seen, expected) in counters {
        ensure!(
            seen == expected,
            "{sent} messages were sent: {seen} {what}, not {expected}"
        );
    }
    m.delivered += sent;
    m.expect_no_event()
}

/// Many rewrites, each with at least one message behind it.
fn rewrite_fast<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    targets: [Target; 2],
) -> Result<()> {
    const {
        assert!(
            FAST_ROUNDS.is_multiple_of(2),
            "the old target must be the first one"
        )
    };
    for round in 0..FAST_ROUNDS {
        let (irte, expected) = entry(m, targets[(round + 1) % 2]);
        irt.write(m.p, INDEX, irte);
        m.iommu.invalidate_interrupts(m.p, irt.device)?;
        let first = m.dev.recorded(m.p);
        let dev = m.dev;
        let fired = wait::until(m.p, |p| dev.recorded(p) > first);
        ensure!(fired, "fast round {round}: the stream stopped");
        // The newest ones that are kept; older ones have made room for newer ones.
        let last = m.dev.recorded(m.p);
        for n in first..last.min(first + RECORDS) {
            let seen = m.dev.record(m.p, n);
            ensure!(
                seen == Some(expected),
                "fast round {round}: {seen:?} left the IOMMU after COMPLETION_WAIT, not {expected:?}"
            );
        }
    }
    Ok(())
}

fn rewrite<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    targets: [Target; 2],
) -> Result<()> {
    for round in 0..ROUNDS {
        let (old, new) = (targets[round % 2], targets[(round + 1) % 2]);
        let (irte, expected) = entry(m, new);
        let arrived = m.p.interrupts(new.cpu, new.vector);
        irt.write(m.p, INDEX, irte);
        m.iommu.invalidate_interrupts(m.p, irt.device)?;
        // From here on: the new target only.
        let late = m.p.interrupts(old.cpu, old.vector);
        let first = m.dev.recorded(m.p);

        let dev = m.dev;
        let filled = wait::until(m.p, |p| dev.recorded(p) >= first + RECORDS);
        ensure!(
            filled,
            "round {round}: the stream stopped after {} messages",
            m.dev.recorded(m.p)
        );
        for n in 0..RECORDS {
            let seen = m.dev.record(m.p, n);
            ensure!(
                seen == Some(expected),
                "round {round}: {seen:?} left the IOMMU after COMPLETION_WAIT, not {expected:?}"
            );
        }
        let reached = wait::until(m.p, |p| p.interrupts(new.cpu, new.vector) > arrived);
        ensure!(
            reached,
            "round {round}: nothing is handled at the new target, CPU {} vector {:#x}",
            new.cpu,
            new.vector
        );
        let more = m.p.interrupts(old.cpu, old.vector) - late;
        ensure!(
            more <= PENDING,
            "round {round}: the old target handled {more} interrupts after COMPLETION_WAIT"
        );
    }
    Ok(())
}
