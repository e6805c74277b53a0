//! All 2048 entries of a table rewritten while KVM delivers by copies of them, its routes.
//!
//! A local APIC merges two pending interrupts of one vector, so what is counted exactly fires once and
//! is awaited; beside it runs a stream of a few vectors that are rewritten, too, of which every message
//! must leave the IOMMU. Where the machine has no routes, everything must hold but what is said of them.

use core::ops::Range;

use amdvi_regs::event::IoPageFault;

use super::done;
use super::remap::ADDRESS_DM;
use crate::endpoint::{VECTORS, feature, outcome, reg};
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irt, Irte, LEN_2K};
use crate::machine::{Machine, name};
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

/// Vectors that fire one at a time; those behind them are the stream's.
const EXACT: u16 = VECTORS - STREAM;
const STREAM: u16 = 8;
/// Vectors that the stream is sent to: of lower priority than the others, or a stream that is faster than
/// its handlers would let none of those be handled.
const STREAM_VECTOR: u8 = 0x30;
/// The first vector that exact ones are sent to, and how many there are.
const FIRST_VECTOR: u8 = 0x40;
const TARGETS: usize = 160;
/// Messages of the range that fire at once.
const BATCH: u16 = 480;
/// Entries that are rewritten and fired one by one before their handlers are awaited.
const GROUP: u16 = 120;
/// More messages than a VMM sends by itself before it takes a route.
const HOT: usize = 80;
/// Waits behind invalidations that change nothing.
const IDLE_WAITS: u64 = 20;

/// The table, and which target each entry has.
struct Rig {
    irt: Irt,
    /// Entry n has target n + `shift[n]`.
    shift: [u8; EXACT as usize],
    /// The stream's CPU is the first or the second of two.
    stream_on_second: bool,
    /// There are routes.
    routes: bool,
    waits: u64,
    fired: u64,
}

/// What the VMM has counted.
#[derive(Clone, Copy)]
struct Routes {
    commits: u64,
    routed: u64,
}

impl Rig {
    fn new<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<Self> {
        let irt = m.new_table(LEN_2K)?;
        let mut rig = Self {
            irt,
            shift: [0; EXACT as usize],
            stream_on_second: false,
            routes: m.dev.read(m.p, reg::FEATURES) & feature::IRQFD != 0,
            waits: 0,
            fired: 0,
        };
        for n in 0..VECTORS {
            m.dev.msix_entry(m.p, n, ADDRESS_DM as u32, u32::from(n));
        }
        (0..EXACT).for_each(|n| rig.write(m, n));
        rig.write_stream(m);
        rig.invalidate(m)?;
        m.dev.msix_enable(m.p, true);
        m.dev.msix_mask_function(m.p, false);
        Ok(rig)
    }

    /// CPU and vector of entry `n` now: any `cpus × TARGETS` neighbours with one shift are distinct.
    fn target<P: Platform + ?Sized>(&self, m: &Machine<'_, P>, n: u16) -> (usize, u8) {
        let at = usize::from(n) + usize::from(self.shift[usize::from(n)]);
        let cpus = m.cpus();
        (at % cpus, FIRST_VECTOR + (at / cpus % TARGETS) as u8)
    }

    fn write<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, n: u16) {
        let (cpu, vector) = self.target(m, n);
        let apic = m.apic(cpu);
        self.irt.write(m.p, n, Irte::fixed(apic, vector));
    }

    /// Gives entry `n` its next target.
    fn retarget<P: Platform + ?Sized>(&mut self, m: &mut Machine<'_, P>, n: u16) {
        let shift = &mut self.shift[usize::from(n)];
        *shift = shift.wrapping_add(1);
        self.write(m, n);
    }

    /// The stream's entries: only their CPU ever changes, which one write of the low half does.
    fn write_stream<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) {
        let apic = m.apic(1 + usize::from(self.stream_on_second));
        for n in 0..STREAM {
            let irte = Irte::fixed(apic, STREAM_VECTOR + n as u8);
            self.irt.write(m.p, EXACT + n, irte);
        }
    }

    fn invalidate<P: Platform + ?Sized>(&mut self, m: &mut Machine<'_, P>) -> Result<()> {
        self.waits += 1;
        m.iommu.invalidate_interrupts(m.p, self.irt.device)
    }

    /// Fires entry `n`, which must be handled once, where it says.
    fn fire<P: Platform + ?Sized>(&mut self, m: &mut Machine<'_, P>, n: u16) -> Result<()> {
        let (cpu, vector) = self.target(m, n);
        let before = m.p.interrupts(cpu, vector);
        m.dev.write(m.p, reg::FIRE, u32::from(n));
        self.fired += 1;
        m.await_count(cpu, vector, before + 1)
    }

    /// Fires every exact entry once, many at a time.
    fn fire_all<P: Platform + ?Sized>(&mut self, m: &mut Machine<'_, P>) -> Result<()> {
        let mut before = [0; BATCH as usize];
        for first in (0..EXACT).step_by(BATCH.into()) {
            let size = BATCH.min(EXACT - first);
            for (n, before) in (first..first + size).zip(&mut before) {
                let (cpu, vector) = self.target(m, n);
                *before = m.p.interrupts(cpu, vector);
            }
            m.dev.fire_range(m.p, first, size);
            for (n, before) in (first..first + size).zip(&before) {
                let (cpu, vector) = self.target(m, n);
                m.await_count(cpu, vector, before + 1)?;
            }
            self.fired += u64::from(size);
        }
        Ok(())
    }

    /// Every exact entry gets a route, if it has none.
    fn heat<P: Platform + ?Sized>(&mut self, m: &mut Machine<'_, P>) -> Result<()> {
        self.fire_all(m)?;
        for _ in 0..HOT {
            self.fire(m, 0)?;
        }
        Ok(())
    }

    /// Since `before`, every entry has gone by a route, once.
    fn expect_routed<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        before: Routes,
    ) -> Result<()> {
        let routed = routes(m).routed - before.routed;
        ensure!(
            !self.routes || routed == u64::from(EXACT),
            "of {EXACT} vectors {routed} were delivered by routes"
        );
        Ok(())
    }

    /// Since `before`, KVM was given this many tables.
    fn expect_commits<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        before: Routes,
        expected: u64,
    ) -> Result<()> {
        let commits = routes(m).commits - before.commits;
        ensure!(
            !self.routes || commits == expected,
            "KVM was given {commits} tables of routes, not {expected}"
        );
        Ok(())
    }
}

fn routes<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Routes {
    Routes {
        commits: m.dev.read64(m.p, reg::ROUTE_COMMITS),
        routed: m.dev.read64(m.p, reg::ROUTED),
    }
}

/// How often the handlers of exact vectors have run.
fn handled<P: Platform + ?Sized>(m: &Machine<'_, P>) -> u64 {
    let vectors = FIRST_VECTOR..FIRST_VECTOR + TARGETS as u8;
    (0..m.cpus())
        .flat_map(|cpu| vectors.clone().map(move |vector| (cpu, vector)))
        .map(|(cpu, vector)| m.p.interrupts(cpu, vector))
        .sum()
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    ensure!(
        m.iommu.config.two_k && m.cpus() >= 3,
        "EFR2 is {:#x}, {} CPUs: 2048 interrupts per function and three CPUs are needed",
        m.iommu.efr2.into_bits(),
        m.cpus()
    );
    let mut rig = Rig::new(&mut m)?;
    let handled_before = handled(&m);
    m.dev.reset_stats(m.p);
    rig.heat(&mut m).during("before any rewrite")?;
    let start = routes(&mut m);
    rig.waits = 0;

    let streamed = under_a_stream(&mut m, &mut rig)?;
    quiet(&mut m, &mut rig)?;
    blocked(&mut m, &mut rig).during("a blocked entry")?;
    masked(&mut m, &mut rig).during("a masked vector")?;

    let commits = routes(&mut m).commits - start.commits;
    ensure!(
        commits <= rig.waits,
        "KVM was given {commits} tables of routes in {} COMPLETION_WAITs",
        rig.waits
    );
    let total = rig.fired + streamed;
    let counters = [
        ("were handled", handled(&m) - handled_before, rig.fired),
        ("left the IOMMU", m.dev.read64(m.p, reg::DELIVERED), total),
        ("were recorded", m.dev.recorded(m.p), total),
        ("were blocked", m.dev.read64(m.p, reg::BLOCKED), m.blocked),
    ];
    for (what, seen, expected) in counters {
        ensure!(
            seen == expected,
            "{} messages one at a time and {streamed} of a stream: {seen} {what}, not {expected}",
            rig.fired
        );
    }
    m.expect_no_event()?;
    m.delivered = total;
    let (fired, waits) = (rig.fired, rig.waits);
    let routed = routes(&mut m).routed;
    if rig.routes {
        done(
            &m,
            report,
            format_args!(
                "every entry rewritten with a COMPLETION_WAIT of its own and with one for all: {fired} \
                 messages handled once each where the entry said, beside a stream of {streamed}; {routed} \
                 went by routes, which took {commits} tables in {waits} COMPLETION_WAITs and none when \
                 nothing changed; blocked and masked vectors as without"
            ),
        )
    } else {
        done(
            &m,
            report,
            format_args!(
                "every entry rewritten with a COMPLETION_WAIT of its own and with one for all: {fired} \
                 messages handled once each where the entry said, beside a stream of {streamed}; this \
                 machine has no routes, so nothing is said of them"
            ),
        )
    }
}

/// Every entry is rewritten while others fire: one by one, then all together. How many messages the
/// stream had.
fn under_a_stream<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &mut Rig) -> Result<u64> {
    let mut streamed = 0;
    for first in (0..EXACT).step_by(GROUP.into()) {
        // Where KVM emulates every instruction, handlers of a stream leave little time for others.
        let alone = !(first / GROUP).is_multiple_of(8);
        let group = first..EXACT.min(first + GROUP);
        let step = |m: &mut Machine<'_, P>, rig: &mut Rig| {
            one_by_one(m, rig, group).during("a COMPLETION_WAIT for each")?;
            if alone { Ok(()) } else { follows(m, rig) }
        };
        if alone {
            step(m, rig)?;
        } else {
            streamed += stream(m, rig, step)?;
        }
    }
    Ok(streamed + stream(m, rig, together)?)
}

/// Does something while the stream runs; how many messages it had.
fn stream<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    rig: &mut Rig,
    step: impl FnOnce(&mut Machine<'_, P>, &mut Rig) -> Result<()>,
) -> Result<u64> {
    m.dev.write(m.p, reg::FIRE_START, u32::from(EXACT));
    // Fires each of the stream's vectors once, and sets its range.
    m.dev.write(m.p, reg::FIRE_COUNT, u32::from(STREAM));
    m.dev.write(m.p, reg::STORM, 1);
    let result = step(m, rig);
    m.dev.write(m.p, reg::STORM, 0);
    result?;
    Ok(m.dev.read64(m.p, reg::STORM_SENT) + u64::from(STREAM))
}

fn one_by_one<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    rig: &mut Rig,
    group: Range<u16>,
) -> Result<()> {
    let mut before = [0; GROUP as usize];
    rig.stream_on_second ^= true;
    rig.write_stream(m);
    for (n, before) in group.clone().zip(&mut before) {
        rig.retarget(m, n);
        let (cpu, vector) = rig.target(m, n);
        *before = m.p.interrupts(cpu, vector);
        rig.invalidate(m)?;
        m.dev.write(m.p, reg::FIRE, u32::from(n));
        rig.fired += 1;
    }
    for (n, before) in group.zip(&before) {
        let (cpu, vector) = rig.target(m, n);
        m.await_count(cpu, vector, before + 1)?;
    }
    Ok(())
}

fn together<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &mut Rig) -> Result<()> {
    (0..EXACT).for_each(|n| rig.retarget(m, n));
    rig.stream_on_second ^= true;
    rig.write_stream(m);
    rig.invalidate(m)?;
    follows(m, rig)?;
    rig.fire_all(m).during("one COMPLETION_WAIT for all")
}

/// The stream's messages reach their new target: some of them, since a local APIC delivers the highest
/// vector that is pending and a fast stream leaves the lowest ones pending for ever.
fn follows<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    let cpu = 1 + usize::from(rig.stream_on_second);
    let handled = |p: &P| -> u64 {
        (STREAM_VECTOR..STREAM_VECTOR + STREAM as u8)
            .map(|vector| p.interrupts(cpu, vector))
            .sum()
    };
    let before = handled(m.p);
    let reached = wait::until(m.p, |p| handled(p) > before);
    ensure!(
        reached,
        "nothing is handled at the stream's new target, CPU {cpu}"
    );
    Ok(())
}

/// What KVM is given when nothing else goes on: nothing if nothing changes, one table if all does.
fn quiet<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &mut Rig) -> Result<()> {
    rig.heat(m).during("after the stream")?;
    let before = routes(m);
    rig.fire_all(m)?;
    rig.expect_routed(m, before).during("after the stream")?;
    (0..EXACT).for_each(|n| rig.write(m, n));
    for _ in 0..IDLE_WAITS {
        rig.invalidate(m)?;
    }
    rig.expect_commits(m, before, 0)
        .during("entries rewritten as they were")?;
    (0..EXACT).for_each(|n| rig.retarget(m, n));
    rig.invalidate(m)?;
    rig.expect_commits(m, before, 1)
        .during("all entries rewritten")?;
    let before = routes(m);
    rig.fire_all(m)?;
    rig.expect_routed(m, before).during("all entries rewritten")
}

/// An interrupt that is blocked does not go by the route that was there before, and is logged.
fn blocked<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &mut Rig) -> Result<()> {
    let n = 7;
    let (cpu, vector) = rig.target(m, n);
    let entry = Irte::fixed(m.apic(cpu), vector);
    let absent = Irte {
        remap_en: false,
        ..entry
    };
    rig.irt.write(m.p, n, absent);
    rig.invalidate(m)?;
    let fault = IoPageFault::new()
        .with_device_id(m.dev.id.0)
        .with_i(true)
        .with_address(ADDRESS_DM);
    for _ in 0..HOT {
        let seen = m.dev.fire(m.p, n);
        ensure!(
            seen == outcome::BLOCKED,
            "outcome {}, not blocked",
            name(seen)
        );
        m.blocked += 1;
        m.expect_event(fault)?;
    }
    rig.irt.write(m.p, n, entry);
    rig.invalidate(m)?;
    // Had one been delivered all the same, there would be two now.
    rig.fire(m, n)
}

/// A masked vector keeps its interrupt and sends it once, to where its entry says by then.
fn masked<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &mut Rig) -> Result<()> {
    let n = 9;
    let (old_cpu, old_vector) = rig.target(m, n);
    let old = m.p.interrupts(old_cpu, old_vector);
    m.dev.msix_mask(m.p, n, true);
    for _ in 0..2 {
        let seen = m.dev.fire(m.p, n);
        ensure!(
            seen == outcome::MASKED,
            "outcome {}, not masked",
            name(seen)
        );
    }
    rig.retarget(m, n);
    rig.invalidate(m)?;
    let (cpu, vector) = rig.target(m, n);
    let before = m.p.interrupts(cpu, vector);
    m.dev.msix_mask(m.p, n, false);
    rig.fired += 1;
    m.await_count(cpu, vector, before + 1)?;
    m.await_count(old_cpu, old_vector, old)
}
