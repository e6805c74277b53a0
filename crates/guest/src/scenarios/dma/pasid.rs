//! PASIDs: each has its own page table, GCR3 tables of every depth, and invalidation of one PASID's
//! pages.

use amdvi_regs::command::InvalidationRange;

use super::super::done;
use super::access::{Who, holds, next_seed, operation, passes, put, reads, refused, succeeded};
use super::rig::{BOTH, in_case};
use super::space::{Gcr3, GuestSpace, P, invalidate_page, invalidate_pasid, pasid_pages, required};
use super::{DOMAIN, NOT_PRESENT, PAGE, alloc};
use crate::endpoint::dma::{op, status};
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;
use crate::testdev::Operation;

/// Address spaces at once.
const SPACES: usize = 4;

/// `dma-pasid`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    m.dev.pasid_enable(m.p, true)?;
    let spaces = Spaces::new(&mut m)?;
    let levels = m.iommu.efr.gcr3_levels().unwrap_or(1);
    let mut last = 0;
    for level in 1..=levels {
        last = in_case("GCR3 levels", level, depth(&mut m, &spaces, level))?;
    }
    // A table of the most levels, for the rest.
    let pasids = [0, 1, 0x1ff, last];
    let gcr3 = Gcr3::new(&mut m, levels, 0)?;
    for (pasid, space) in pasids.into_iter().zip(&spaces.tables) {
        gcr3.set(&mut m, pasid, space)?;
    }
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &gcr3.dte(gcr3.root, 4))?;
    for pasid in pasids {
        invalidate_pasid(&mut m, pasid)?;
    }
    spaces.each_its_own(&mut m, &pasids)?;
    let rounds = moves(&mut m, spaces, &pasids)?;
    let spaces = Spaces::new(&mut m)?;
    for (pasid, space) in pasids.into_iter().zip(&spaces.tables) {
        gcr3.set(&mut m, pasid, space)?;
        invalidate_pasid(&mut m, pasid)?;
    }
    unbound(&mut m, &spaces, &gcr3, &pasids)?;
    atomics(&mut m, &spaces, &pasids)?;
    done(
        &m,
        report,
        format_args!(
            "GCR3 tables of 1 to {levels} levels, PASIDs 0 to {last:#x}, one address with {SPACES} \
             meanings; PASIDs beyond the table and beyond EFR.PASmax abort; {rounds} times one PASID's \
             pages moved and only it was invalidated, by page, block and whole: it used the new ones, \
             the others went on; a PASID that was unbound; atomic operations"
        ),
    )
}

/// One virtual address that means another page to each address space.
struct Spaces {
    tables: [GuestSpace; SPACES],
    va: u64,
    pages: [u64; SPACES],
}

impl Spaces {
    fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<Self> {
        let block = alloc(m, 0x1000 * SPACES as u64)?;
        let mut tables = [GuestSpace::new(m, 4, 0)?; SPACES];
        for table in &mut tables[1..] {
            *table = GuestSpace::new(m, 4, 0)?;
        }
        // The offset within the page is that of all of them: 0.
        let va = tables[0].address(1, 0, false);
        let pages = core::array::from_fn(|n| block + 0x1000 * n as u64);
        for (table, page) in tables.iter().zip(pages) {
            table.map(m, va, page, 1)?;
        }
        Ok(Self { tables, va, pages })
    }

    /// Each PASID reads and writes its own page, and no other.
    fn each_its_own<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        pasids: &[u32; SPACES],
    ) -> Result<()> {
        let mut seeds = [0; SPACES];
        for (seed, page) in seeds.iter_mut().zip(self.pages) {
            *seed = next_seed(m);
            put(m, page, *seed);
        }
        for (n, &pasid) in pasids.iter().enumerate() {
            passes(m, Who::pasid(pasid), self.va, self.pages[n])?;
            let seed = next_seed(m);
            put(m, self.pages[n], seed);
            seeds[n] = seed;
            for (page, seed) in self.pages.into_iter().zip(seeds) {
                holds(m, page, seed)?;
            }
        }
        Ok(())
    }
}

/// A GCR3 table of so many levels: the PASIDs that it holds, and those that nobody has. Returns the
/// largest PASID that there is.
fn depth<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, spaces: &Spaces, levels: u8) -> Result<u32> {
    let gcr3 = Gcr3::new(m, levels, 0)?;
    let table_max = match levels {
        1 => 0x1ff,
        2 => 0x3_ffff,
        _ => 0xf_ffff,
    };
    let last = table_max.min(m.iommu.efr.max_pasid().unwrap_or(0));
    let pasids = [1, last / 2, last - 1, last];
    for (pasid, space) in pasids.into_iter().zip(&spaces.tables) {
        gcr3.set(m, pasid, space)?;
    }
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &gcr3.dte(gcr3.root, 4))?;
    for pasid in pasids {
        invalidate_pasid(m, pasid)?;
    }
    spaces.each_its_own(m, &pasids)?;
    // The largest is too large by one bit: what is below it is a PASID that exists.
    for pasid in [last + 1, last << 1, 1 << 19 | 1, 0xf_ffff] {
        if pasid <= last || pasid > 0xf_ffff {
            continue;
        }
        for write in BOTH {
            let who = Who::pasid(pasid);
            let event = who.fault(m, spaces.va, write, NOT_PRESENT);
            refused(m, who, spaces.va, write, spaces.pages[3], Some(event))
                .during("PASID that there is none of")?;
        }
    }
    // One that would have an entry.
    let who = Who::pasid(last - 2);
    let event = who.fault(m, spaces.va, true, NOT_PRESENT);
    refused(m, who, spaces.va, true, spaces.pages[3], Some(event))
        .during("PASID without a table")?;
    Ok(last)
}

/// The pages of one PASID move, and those of its neighbour; one of the two is invalidated.
fn moves<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    mut spaces: Spaces,
    pasids: &[u32; SPACES],
) -> Result<u32> {
    let va = spaces.va;
    let mut spare = [0; SPACES];
    for page in &mut spare {
        *page = alloc(m, 4096)?;
    }
    let ranges = [
        InvalidationRange::Block {
            start: va,
            size_log2: PAGE,
        },
        InvalidationRange::Block {
            start: va & !0x1f_ffff,
            size_log2: 21,
        },
        InvalidationRange::All,
    ];
    let mut rounds = 0;
    for range in ranges {
        for one in 0..SPACES {
            let other = (one + 1) % SPACES;
            for (&pasid, page) in pasids.iter().zip(spaces.pages) {
                passes(m, Who::pasid(pasid), va, page)?;
            }
            for n in [one, other] {
                spaces.tables[n].map(m, va, spare[n], 1)?;
            }
            m.iommu.command(m.p, pasid_pages(pasids[one], range))?;
            passes(m, Who::pasid(pasids[one]), va, spare[one])
                .during("the PASID that was invalidated")?;
            either(m, pasids[other], va, [spaces.pages[other], spare[other]])
                .during("the PASID that was not")?;
            for n in (0..SPACES).filter(|n| ![one, other].contains(n)) {
                passes(m, Who::pasid(pasids[n]), va, spaces.pages[n]).during("bystander")?;
            }
            // A command for another domain, and one for addresses beside, change nothing for it.
            let stranger =
                pasid_pages(pasids[one], InvalidationRange::All).with_domain_id(DOMAIN + 1);
            m.iommu.command(m.p, stranger)?;
            invalidate_page(m, pasids[one], va + 0x1000, PAGE)?;
            passes(m, Who::pasid(pasids[one]), va, spare[one])?;
            m.iommu.command(m.p, pasid_pages(pasids[other], range))?;
            passes(m, Who::pasid(pasids[other]), va, spare[other])
                .during("the other, invalidated too")?;
            for n in [one, other] {
                core::mem::swap(&mut spaces.pages[n], &mut spare[n]);
            }
            rounds += 1;
        }
    }
    Ok(rounds)
}

/// A write of a PASID reaches one of the two pages, whole, and not the other.
fn either<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    pasid: u32,
    va: u64,
    pages: [u64; 2],
) -> Result<()> {
    let olds = [next_seed(m), next_seed(m)];
    for (page, seed) in pages.into_iter().zip(olds) {
        put(m, page, seed);
    }
    let seed = next_seed(m);
    let operation = operation(Who::pasid(pasid), va, true, super::access::LENGTH, seed);
    let ended = m.dev.operate(m.p, &operation);
    succeeded(&ended, "write", va)?;
    let reached = |m: &mut Machine<'_, Q>, n: usize| {
        holds(m, pages[n], seed).is_ok() && holds(m, pages[1 - n], olds[1 - n]).is_ok()
    };
    ensure!(
        reached(m, 0) || reached(m, 1),
        "a write of PASID {pasid:#x} reached neither {:#x} nor {:#x} alone",
        pages[0],
        pages[1]
    );
    m.expect_no_event()
}

/// A PASID whose GCR3 entry goes away, and comes back with another's table.
fn unbound<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    spaces: &Spaces,
    gcr3: &Gcr3,
    pasids: &[u32; SPACES],
) -> Result<()> {
    let va = spaces.va;
    for n in 0..SPACES {
        let (pasid, who) = (pasids[n], Who::pasid(pasids[n]));
        spaces.each_its_own(m, pasids)?;
        let slot = gcr3.slot(m, pasid, 1)?;
        let good = m.p.read_u64(slot);
        m.p.write_u64(slot, good & !P);
        invalidate_pasid(m, pasid)?;
        for write in BOTH {
            let event = who.fault(m, va, write, NOT_PRESENT);
            refused(m, who, va, write, spaces.pages[n], Some(event)).during("unbound")?;
        }
        for other in (0..SPACES).filter(|&other| other != n) {
            reads(m, Who::pasid(pasids[other]), va, spaces.pages[other]).during("bound")?;
        }
        let next = (n + 1) % SPACES;
        gcr3.set(m, pasid, &spaces.tables[next])?;
        invalidate_pasid(m, pasid)?;
        passes(m, who, va, spaces.pages[next]).during("bound to another table")?;
        m.p.write_u64(slot, good);
        invalidate_pasid(m, pasid)?;
    }
    spaces.each_its_own(m, pasids)
}

/// Atomic operations reach the PASID's page.
fn atomics<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    spaces: &Spaces,
    pasids: &[u32; SPACES],
) -> Result<()> {
    for (n, &pasid) in pasids.iter().enumerate() {
        let page = spaces.pages[n];
        let start = 0x1000 + n as u64;
        m.p.write_u64(page, start);
        let add = Operation {
            code: op::FETCH_ADD,
            length: 8,
            operand: 0x11,
            ..operation(Who::pasid(pasid), spaces.va, true, 8, 0)
        };
        for turn in 0..3 {
            let ended = m.dev.operate(m.p, &add);
            ensure!(
                ended.status == status::DONE && ended.result == start + 0x11 * turn,
                "FETCH_ADD of PASID {pasid:#x} had status {} and found {:#x}",
                ended.status,
                ended.result
            );
        }
        let seen = m.p.read_u64(page);
        ensure!(
            seen == start + 0x33,
            "three FETCH_ADD of PASID {pasid:#x} left {seen:#x}"
        );
    }
    m.expect_no_event()
}
