//! Tables that a guest takes out of use while devices work, and whose memory it uses for something else.
//!
//! What is put there would be a valid table once more, of entries that lead to memory and to vectors that
//! nothing may reach: an IOMMU that looks there after COMPLETION_WAIT, or writes an accessed or dirty
//! bit, is seen.

use amdvi_regs::dte::Dte;
use amdvi_regs::mmio::{DeviceTableBase, offset};

use super::super::done;
use super::super::remap::ADDRESS;
use super::stream::{PAGES, Stream, sentinel};
use super::table::{ALL, Tables, leaf};
use super::{alloc, invalidate_domain, passthrough};
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irt, Irte, LEN_512};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

/// Times that each kind of table is freed.
const ROUNDS: usize = 6;
/// Writes of the stream before and after.
const WARM: u64 = 16;
const AFTER: u64 = 64;
/// HAD: accessed and dirty bits.
const DIRTY: u8 = 3;
/// Vectors of the interrupt stream and their entries.
const VECTORS: u16 = 4;
/// Where the stream's interrupts go, and where what is put into freed tables would send them.
const VECTOR: u8 = 0x81;
const TRAP: u8 = 0x91;

/// `freed-tables`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    super::v1::levels(&m)?;
    let cpu = m.low_cpu()?;
    let mut irt = m.new_table(LEN_512)?;
    let mut spare = Irt::new(m.p, m.dev.id, LEN_512, irt.wide)?;
    fill(&mut m, &irt, cpu, VECTOR);
    m.iommu.flush_everything(m.p)?;
    for n in 0..VECTORS {
        m.dev.msix_entry(m.p, n, ADDRESS as u32, u32::from(n));
    }
    m.dev.msix_enable(m.p, true);
    m.dev.msix_mask_function(m.p, false);

    let mut stream = Stream::start(&mut m, false)?;
    let entry = dte(&stream, &irt);
    use_it(&mut m, &entry)?;
    // Sets the stream's range, and fires it once.
    m.dev.fire_range(m.p, 0, VECTORS);
    m.dev.write(m.p, reg::STORM, 1);
    let result = page_tables(&mut m, &mut stream, &irt)
        .during("page tables")
        .and_then(|()| {
            let tables = [&mut irt, &mut spare];
            interrupt_tables(&mut m, &stream, tables, cpu).during("interrupt remapping tables")
        })
        .and_then(|()| device_tables(&mut m, &stream, &irt, cpu).during("device tables"));
    m.dev.write(m.p, reg::STORM, 0);
    Stream::stop(&mut m);
    result?;
    m.expect_no_event()?;
    m.delivered = m.dev.read64(m.p, reg::DELIVERED);
    let blocked = m.dev.read64(m.p, reg::BLOCKED);
    ensure!(blocked == 0, "{blocked} interrupts were blocked");
    done(
        &m,
        report,
        format_args!(
            "page tables, interrupt remapping tables and device tables freed {ROUNDS} times each under \
             DMA and interrupts, and their memory filled with entries that lead astray: after \
             COMPLETION_WAIT nothing was looked up there, and no accessed or dirty bit was written"
        ),
    )
}

/// The DTE of the streams: dirty bits are kept, and interrupts go through `irt`.
fn dte(stream: &Stream, irt: &Irt) -> Dte {
    let mut dte = stream.dte();
    dte.q0 = dte.q0.with_had(DIRTY);
    dte.q2 = irt.dte();
    dte
}

fn use_it<P: Platform + ?Sized>(m: &mut Machine<'_, P>, dte: &Dte) -> Result<()> {
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, dte)?;
    invalidate_domain(m)
}

/// Fills a page with one word; it must be there when it is looked at.
fn put<P: Platform + ?Sized>(m: &mut Machine<'_, P>, page: u64, word: impl Fn(u64) -> u64) {
    (0..512).for_each(|n| m.p.write_u64(page + 8 * n, word(n)));
}

fn check<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    page: u64,
    word: impl Fn(u64) -> u64,
) -> Result<()> {
    for n in 0..512 {
        let (seen, expected) = (m.p.read_u64(page + 8 * n), word(n));
        ensure!(
            seen == expected,
            "memory that was a table is {seen:#x} at {:#x}, where {expected:#x} was stored",
            page + 8 * n
        );
    }
    Ok(())
}

fn page_tables<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &mut Stream,
    irt: &Irt,
) -> Result<()> {
    let mut spare = Tables::new(m)?;
    let victim = alloc(m, 4096)?;
    let trap = |_| leaf(victim, 1, 12, ALL);
    let levels = 1..=dte(stream, irt).q0.mode();
    for _ in 0..ROUNDS {
        Stream::flow(m, WARM)?;
        // The other set takes over, and lands elsewhere.
        for level in levels.clone() {
            put(m, spare.table(level), |_| 0);
        }
        stream.map_all(m, &spare, stream.spare);
        let freed = core::mem::replace(&mut stream.tables, spare);
        let entry = dte(stream, irt);
        use_it(m, &entry)?;
        for level in levels.clone() {
            put(m, freed.table(level), trap);
        }
        sentinel(m, victim);
        for n in 0..PAGES {
            sentinel(m, stream.mapped[n]);
        }
        let aborted = Stream::flow(m, AFTER)?;
        ensure!(aborted == 0, "{aborted} writes were aborted");
        for level in levels.clone() {
            check(m, freed.table(level), trap)?;
        }
        for n in 0..PAGES {
            Stream::untouched(m, n, victim)?;
            Stream::untouched(m, n, stream.mapped[n])?;
            Stream::lands(m, n, stream.spare[n])?;
            stream.swap(n);
        }
        spare = freed;
    }
    stream.nothing_bypassed(m)
}

/// Points the entries that fire at a vector.
fn fill<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt, cpu: usize, vector: u8) {
    let apic = m.apic(cpu);
    for n in 0..VECTORS {
        irt.write(m.p, n, Irte::fixed(apic, vector + n as u8));
    }
}

/// How often handlers of the four vectors from `first` on have run.
fn handled<P: Platform + ?Sized>(m: &Machine<'_, P>, cpu: usize, first: u8) -> u64 {
    (first..first + VECTORS as u8)
        .map(|vector| m.p.interrupts(cpu, vector))
        .sum()
}

/// Interrupts go on to arrive, and none where freed tables would send them.
fn arrives<P: Platform + ?Sized>(m: &mut Machine<'_, P>, cpu: usize, trapped: u64) -> Result<()> {
    let sent = m.dev.read64(m.p, reg::STORM_SENT);
    let dev = m.dev;
    let flows = wait::until(m.p, |p| dev.read64(p, reg::STORM_SENT) >= sent + AFTER);
    ensure!(flows, "the stream of interrupts stopped");
    let before = handled(m, cpu, VECTOR);
    let mut seen = before;
    wait::until(m.p, |p| {
        seen = (VECTOR..VECTOR + VECTORS as u8)
            .map(|vector| p.interrupts(cpu, vector))
            .sum();
        seen > before
    });
    ensure!(seen > before, "no interrupt is handled any more");
    let astray = handled(m, cpu, TRAP) - trapped;
    ensure!(
        astray == 0,
        "{astray} interrupts went where a freed table would send them"
    );
    Ok(())
}

fn interrupt_tables<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &Stream,
    [used, spare]: [&mut Irt; 2],
    cpu: usize,
) -> Result<()> {
    let trapped = handled(m, cpu, TRAP);
    for _ in 0..ROUNDS {
        fill(m, spare, cpu, VECTOR);
        core::mem::swap(used, spare);
        let entry = dte(stream, used);
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &entry)?;
        fill(m, spare, cpu, TRAP);
        arrives(m, cpu, trapped)?;
    }
    Ok(())
}

/// What a freed device table says of every function: DMA passes untranslated, interrupts go through a
/// table that leads astray.
fn astray(irt: &Irt) -> [u64; 4] {
    let mut dte = passthrough();
    dte.q2 = irt.dte();
    dte.words()
}

fn device_tables<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    stream: &Stream,
    irt: &Irt,
    cpu: usize,
) -> Result<()> {
    let trap = Irt::new(m.p, m.dev.id, LEN_512, irt.wide)?;
    fill(m, &trap, cpu, TRAP);
    let trapped = handled(m, cpu, TRAP);
    let words = astray(&trap);
    let word = |n: u64| words[(n % 4) as usize];
    let bytes = u64::from(m.iommu.config.devices) * 32;
    let mut spare = alloc(m, bytes)?;
    // The pages that have entries of functions that exist.
    let pages = |table: u64| (table..table + bytes.min(256 * 32)).step_by(4096);
    for _ in 0..ROUNDS {
        let used = m.iommu.device_table;
        for (from, to) in pages(used).zip(pages(spare)) {
            for n in 0..512 {
                let entry = m.p.read_u64(from + 8 * n);
                m.p.write_u64(to + 8 * n, entry);
            }
        }
        let base = DeviceTableBase::new()
            .with_size((m.iommu.config.devices / 128 - 1) as u16)
            .with_base_page(spare >> 12);
        m.iommu
            .write(m.p, offset::DEVICE_TABLE_BASE, base.into_bits());
        m.iommu.device_table = spare;
        m.iommu.flush_everything(m.p)?;
        pages(used).for_each(|page| put(m, page, word));
        let aborted = Stream::flow(m, AFTER)?;
        ensure!(aborted == 0, "{aborted} writes were aborted");
        arrives(m, cpu, trapped)?;
        stream.nothing_bypassed(m)?;
        for page in pages(used) {
            check(m, page, word)?;
        }
        spare = used;
    }
    Ok(())
}
