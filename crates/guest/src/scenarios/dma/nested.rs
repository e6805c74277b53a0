//! Guest page tables over host page tables: every combination of page sizes, and faults that are put
//! down to the table that caused them.
//!
//! Guest physical addresses are never those of memory: an address that goes round a table, or twice
//! through one, is seen.

use amdvi_regs::dte::Dte;

use super::super::done;
use super::access::{
    LENGTH, Who, host_fault, host_table_error, next_seed, operation, passes, reads, refused,
    succeeded, writes,
};
use super::rig::{BOTH, NOWHERE, in_case};
use super::space::{
    A, D, Gcr3, GuestSpace, HostSpace, P, RW, invalidate_page, invalidate_pasid, required,
};
use super::table::{ADDRESS, ALL, READ, WRITE, entry, index, leaf, level_shift};
use super::{
    Flags, NOT_PERMITTED, NOT_PRESENT, PAGE, RESERVED, alloc, invalidate_block, invalidate_domain,
};
use crate::endpoint::dma::{EQUAL, pattern};
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

const PASID: u32 = 0x37;
const USER: Who = Who::pasid(PASID);
/// From memory to guest physical addresses. A multiple of the largest page.
const OFFSET: u64 = 0x55_4000_0000;
/// From the guest physical address of one case's data to that of the next.
const STEP: u64 = 1 << 41;
/// The step at which the data of the rig's own page stands: apart from the guest's tables at every
/// level of the host's.
const DATA: u64 = 40;
/// Host pages: level and log2 of the size.
const HOST_PAGES: [(u8, u32); 5] = [(1, 12), (1, 15), (2, 21), (2, 24), (3, 30)];

/// `dma-nested`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    super::v1::levels(&m)?;
    m.dev.pasid_enable(m.p, true)?;
    let rig = Rig::new(&mut m)?;
    let mut sizes = 0;
    for guest in 1..=3 {
        for (level, shift) in HOST_PAGES {
            sizes += 1;
            let result = one_size(&mut m, &rig, sizes, guest, (level, shift));
            result.map_err(|failure| {
                Failure::new(format_args!(
                    "guest page at level {guest}, host page of 2^{shift} bytes: {failure}"
                ))
            })?;
        }
    }
    split(&mut m, &rig).during("one guest page, two host pages")?;
    let roots = gcr3_root(&mut m, &rig)?;
    host_faults(&mut m, &rig)?;
    marks(&mut m, &rig)?;
    guest_faults(&mut m, &rig)?;
    unreadable(&mut m, &rig)?;
    without_pasid(&mut m, &rig)?;
    moved(&mut m, &rig)?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "{sizes} combinations of guest and host pages; GCR3 root {roots}; GV=1 without PASID by \
             the host's table alone, or by GIoV; {blocked} accesses aborted, {events} events compared: \
             the guest's with GN=1 and the request's address, the host's with GN=0 and the guest \
             physical one, for data, tables of each level, GCR3 table, and A and D in a table that \
             must not be written; host pages that move"
        ),
    )
}

/// A guest's table, and the host's below it.
struct Rig {
    host: HostSpace,
    space: GuestSpace,
    gcr3: Gcr3,
    page: u64,
    /// A page of 4 KiB over a page of 4 KiB, and its guest physical address.
    va: u64,
    gpa: u64,
    dte: Dte,
}

impl Rig {
    fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<Self> {
        let page = alloc(m, 4096)?;
        let host = HostSpace::new(m, 4)?;
        let space = GuestSpace::new(m, 4, OFFSET)?;
        let levels = m.iommu.efr.gcr3_levels().unwrap_or(1);
        let gcr3 = Gcr3::new(m, levels, OFFSET)?;
        gcr3.set(m, PASID, &space)?;
        for level in 1..=levels {
            let at = gcr3.slot(m, PASID, level)? & !0xfff;
            host.map(m, at + OFFSET, at, 1, 12)?;
        }
        let rig = Self {
            host,
            space,
            gcr3,
            page,
            // Beside where pages of each size come and go.
            va: space.address(1, page, true) + (2 << level_shift(2)),
            gpa: page + OFFSET + DATA * STEP,
            dte: host.under(gcr3.dte(gcr3.root, 4)),
        };
        rig.guest_page(m, rig.va, rig.gpa, 1)?;
        rig.host.map(m, rig.gpa, page, 1, 12)?;
        rig.restore(m)?;
        Ok(rig)
    }

    fn restore<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &self.dte)
    }

    /// Maps a page in the guest's table, and that table's own pages in the host's.
    fn guest_page<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        va: u64,
        gpa: u64,
        leaf: u8,
    ) -> Result<()> {
        self.space.map(m, va, gpa, leaf)?;
        for level in leaf..=self.space.levels {
            let table = self.space.slot(m, va, level) & !0xfff;
            self.host.map(m, table + OFFSET, table, 1, 12)?;
        }
        Ok(())
    }

    /// With the host's entry for a guest physical address changed, and nothing cached.
    fn changed<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        gpa: u64,
        level: u8,
        change: impl Fn(u64) -> u64,
        then: impl FnOnce(&mut Machine<'_, Q>) -> Result<()>,
    ) -> Result<()> {
        let slot = self.host.slot(m, gpa, level);
        let old = m.p.read_u64(slot);
        m.p.write_u64(slot, change(old));
        invalidate_domain(m)?;
        then(m)?;
        m.p.write_u64(slot, old);
        invalidate_domain(m)
    }

    /// An access that the host's table refuses on behalf of the guest's.
    fn host_refuses<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        write: bool,
        (gpa, writes_it): (u64, bool),
        flags: Flags,
    ) -> Result<()> {
        let event = host_fault(m, gpa, writes_it, flags);
        refused(m, USER, self.va, write, self.page, Some(event))
    }

    /// A and D of the guest's leaf for `va`.
    fn leaf_marks<Q: Platform + ?Sized>(&self, m: &Machine<'_, Q>, expected: u64) -> Result<()> {
        let seen = self.space.entry(m, self.va, 1) & (A | D);
        ensure!(
            seen == expected,
            "A and D of the guest's leaf are {seen:#x}, not {expected:#x}"
        );
        Ok(())
    }

    fn set_leaf_marks<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>, marks: u64) {
        let slot = self.space.slot(m, self.va, 1);
        let entry = m.p.read_u64(slot);
        m.p.write_u64(slot, entry & !(A | D) | marks);
    }
}

/// A guest page of one size over a host page of one size.
fn one_size<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    rig: &Rig,
    case: u64,
    guest: u8,
    (level, shift): (u8, u32),
) -> Result<()> {
    let page = rig.page;
    let gpa = page + OFFSET + case * STEP;
    let va = rig.space.address(guest, page, case & 1 == 1);
    rig.guest_page(m, va, gpa, guest)?;
    rig.host.map(m, gpa, page, level, shift)?;
    invalidate_pasid(m, PASID)?;
    invalidate_domain(m)?;
    passes(m, USER, va, page)?;
    passes(m, USER, va, page).during("again, from caches")?;
    for at in guest..=4 {
        let seen = rig.space.entry(m, va, at) & (A | D);
        let expected = if at == guest { A | D } else { A };
        ensure!(
            seen == expected,
            "A and D of the guest's entry at level {at} are {seen:#x}, not {expected:#x}"
        );
    }
    // The host's page goes away: the smaller of the two sizes is not what counts.
    for slot in rig.host.replicas(m, gpa, level, shift) {
        m.p.write_u64(slot, 0);
    }
    invalidate_block(m, gpa & !((1 << shift) - 1), shift as u8)?;
    for write in BOTH {
        let event = host_fault(m, gpa, write, NOT_PRESENT);
        refused(m, USER, va, write, page, Some(event)).during("host page unmapped")?;
    }
    let slot = rig.space.slot(m, va, guest);
    m.p.write_u64(slot, 0);
    let size = level_shift(guest) as u8;
    invalidate_page(m, PASID, va & !((1 << size) - 1), size)?;
    let event = USER.fault(m, va, true, NOT_PRESENT);
    refused(m, USER, va, true, page, Some(event)).during("guest page unmapped")
}

/// Neighbours in a large guest page that are none in memory.
fn split<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let block = alloc(m, 0x4000)?;
    let (first, second) = (block + 0x2000, block);
    let gpa = block + OFFSET + 20 * STEP;
    let va = rig.space.address(2, block, false);
    rig.guest_page(m, va, gpa, 2)?;
    rig.host.map(m, gpa, first, 1, 12)?;
    rig.host.map(m, gpa + 0x1000, second, 1, 12)?;
    invalidate_pasid(m, PASID)?;
    invalidate_domain(m)?;
    let half = u64::from(LENGTH) / 2;
    let iova = va + 0x1000 - half;
    let place = |n: u64| {
        if 8 * n < half {
            first + 0x1000 - half + 8 * n
        } else {
            second + 8 * n - half
        }
    };
    let words = u64::from(LENGTH) / 8;
    let seed = next_seed(m);
    for n in 0..words {
        m.p.write_u64(place(n), pattern(seed, n));
    }
    let ended = m
        .dev
        .operate(m.p, &operation(USER, iova, false, LENGTH, seed));
    succeeded(&ended, "read", iova)?;
    ensure!(
        ended.result == EQUAL,
        "byte {} of what was read is another",
        ended.result
    );
    let seed = next_seed(m);
    let ended = m
        .dev
        .operate(m.p, &operation(USER, iova, true, LENGTH, seed));
    succeeded(&ended, "write", iova)?;
    for n in 0..words {
        let seen = m.p.read_u64(place(n));
        ensure!(seen == pattern(seed, n), "word {n} is {seen:#x}");
    }
    m.expect_no_event()
}

/// The root of the GCR3 table is an address of memory, or with GCR3TRPMode a guest physical one.
fn gcr3_root<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<&'static str> {
    let (va, page) = (rig.va, rig.page);
    passes(m, USER, va, page).during("GCR3TRPMode=0")?;
    if !m.iommu.efr2.gcr3_trp_mode() {
        return Ok("in memory");
    }
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_gcr3_trp_mode(true));
    let seen = m.iommu.read_control(m.p);
    ensure!(
        seen.gcr3_trp_mode(),
        "GCR3TRPMode reads 0 after 1 was written"
    );
    m.iommu.flush_everything(m.p)?;
    // The address of memory is none that the host's table maps.
    let at = rig.gcr3.root + 8 * u64::from(PASID >> (9 * (rig.gcr3.levels - 1)));
    rig.host_refuses(m, false, (at, false), NOT_PRESENT)
        .during("GCR3TRPMode=1, root in memory")?;
    let id = m.dev.id;
    let moved = rig.dte.with_gcr3_address(rig.gcr3.root + OFFSET);
    m.iommu.set_dte(m.p, id, &moved)?;
    passes(m, USER, va, page).during("GCR3TRPMode=1")?;
    rig.changed(
        m,
        rig.gcr3.root + OFFSET,
        1,
        |_| 0,
        |m| rig.host_refuses(m, true, (at + OFFSET, false), NOT_PRESENT),
    )
    .during("GCR3TRPMode=1, GCR3 table not mapped")?;
    m.iommu.set_control(m.p, control);
    m.iommu.flush_everything(m.p)?;
    // And with the mode off nothing but memory is there to be read.
    let at = rig.gcr3.root + OFFSET + 8 * u64::from(PASID >> (9 * (rig.gcr3.levels - 1)));
    let event = USER.table_error(m, at, false);
    refused(m, USER, va, false, page, Some(event)).during("GCR3TRPMode=0, guest physical root")?;
    rig.restore(m)?;
    passes(m, USER, va, page).during("GCR3TRPMode 1 → 0")?;
    Ok("in memory and in guest physical memory")
}

/// What the host's table refuses: data, and the guest's tables.
fn host_faults<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (va, page, gpa) = (rig.va, rig.page, rig.gpa);
    let whatever = |m: &mut Machine<'_, Q>, flags| {
        for write in BOTH {
            rig.host_refuses(m, write, (gpa, write), flags)?;
        }
        Ok(())
    };
    for level in 1..=4 {
        let result = rig
            .changed(m, gpa, level, |e| e | 1 << 52, |m| whatever(m, RESERVED))
            .during("reserved bit");
        in_case("host entry at level", level, result)?;
    }
    rig.changed(m, gpa, 1, |_| 0, |m| whatever(m, NOT_PRESENT))
        .during("data not mapped")?;
    rig.changed(
        m,
        gpa,
        1,
        |e| e & !WRITE,
        |m| {
            reads(m, USER, va, page)?;
            rig.host_refuses(m, true, (gpa, true), NOT_PERMITTED)
        },
    )
    .during("data without IW")?;
    rig.changed(
        m,
        gpa,
        1,
        |e| e & !READ,
        |m| {
            writes(m, USER, va, page)?;
            rig.host_refuses(m, false, (gpa, false), NOT_PERMITTED)
        },
    )
    .during("data without IR")?;
    for level in 1..=rig.space.levels {
        let at = rig.space.slot(m, va, level) + OFFSET;
        let result = rig.changed(
            m,
            at,
            1,
            |_| 0,
            |m| {
                for write in BOTH {
                    // Whatever the request does, the table is read.
                    rig.host_refuses(m, write, (at, false), NOT_PRESENT)?;
                }
                Ok(())
            },
        );
        in_case("guest table not mapped, level", level, result)?;
        let result = rig.changed(
            m,
            at,
            1,
            |e| e & !READ,
            |m| rig.host_refuses(m, true, (at, false), NOT_PERMITTED),
        );
        in_case("guest table without IR, level", level, result)?;
    }
    if rig.gcr3.levels > 1 {
        // The root is in memory; what it names is guest physical.
        let at = rig.gcr3.slot(m, PASID, 1)? + OFFSET;
        rig.changed(
            m,
            at,
            1,
            |_| 0,
            |m| rig.host_refuses(m, false, (at, false), NOT_PRESENT),
        )
        .during("GCR3 table of level 1 not mapped")?;
    }
    // A guest physical address that the host's table has no bits for.
    let slot = rig.space.slot(m, va, 1);
    let good = m.p.read_u64(slot);
    m.p.write_u64(slot, good & !ADDRESS | NOWHERE);
    invalidate_pasid(m, PASID)?;
    let wide = NOWHERE | va & 0xfff;
    for write in BOTH {
        rig.host_refuses(m, write, (wide, write), NOT_PRESENT)
            .during("guest physical address too wide")?;
    }
    m.p.write_u64(slot, good);
    invalidate_pasid(m, PASID)?;
    passes(m, USER, va, page)
}

/// A and D are written into the guest's tables: that needs IW for their pages.
fn marks<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (va, page) = (rig.va, rig.page);
    let at = rig.space.slot(m, va, 1) + OFFSET;
    rig.set_leaf_marks(m, 0);
    rig.changed(
        m,
        at,
        1,
        |e| e & !WRITE,
        |m| {
            for write in BOTH {
                rig.host_refuses(m, write, (at, true), NOT_PERMITTED)?;
            }
            rig.leaf_marks(m, 0)?;
            rig.set_leaf_marks(m, A);
            reads(m, USER, va, page).during("A is set")?;
            rig.host_refuses(m, true, (at, true), NOT_PERMITTED)
                .during("D is to be set")?;
            rig.leaf_marks(m, A)?;
            rig.set_leaf_marks(m, A | D);
            passes(m, USER, va, page).during("A and D are set")
        },
    )
    .during("guest table without IW")?;
    rig.set_leaf_marks(m, 0);
    invalidate_pasid(m, PASID)?;
    writes(m, USER, va, page)?;
    rig.leaf_marks(m, A | D)
}

/// What the guest's table refuses, whatever the host's permits.
fn guest_faults<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (va, page) = (rig.va, rig.page);
    for level in 1..=rig.space.levels {
        let slot = rig.space.slot(m, va, level);
        let good = m.p.read_u64(slot);
        for (bit, writes_only, flags) in [(P, false, NOT_PRESENT), (RW, true, NOT_PERMITTED)] {
            m.p.write_u64(slot, good & !bit);
            invalidate_pasid(m, PASID)?;
            for write in BOTH {
                if writes_only && !write {
                    reads(m, USER, va, page)?;
                    continue;
                }
                let event = USER.fault(m, va, write, flags);
                let result = refused(m, USER, va, write, page, Some(event));
                in_case("guest entry at level", level, result)?;
            }
        }
        m.p.write_u64(slot, good);
        invalidate_pasid(m, PASID)?;
    }
    passes(m, USER, va, page)
}

/// Tables of either kind where no memory is.
fn unreadable<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (va, page, gpa) = (rig.va, rig.page, rig.gpa);
    rig.changed(
        m,
        gpa,
        3,
        |_| entry(NOWHERE, 2, ALL),
        |m| {
            for write in BOTH {
                let event = host_table_error(m, NOWHERE + index(gpa, 2), write);
                refused(m, USER, va, write, page, Some(event))?;
            }
            Ok(())
        },
    )
    .during("host table outside of RAM")?;
    let at = rig.space.slot(m, va, 1) + OFFSET;
    rig.changed(
        m,
        at,
        1,
        |_| leaf(NOWHERE, 1, 12, ALL),
        |m| {
            for write in BOTH {
                let event = USER.table_error(m, NOWHERE + index(va, 1), write);
                refused(m, USER, va, write, page, Some(event))?;
            }
            Ok(())
        },
    )
    .during("guest table outside of RAM")?;
    passes(m, USER, va, page)
}

/// Requests without a PASID.
fn without_pasid<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (va, page, gpa) = (rig.va, rig.page, rig.gpa);
    passes(m, Who::PLAIN, gpa, page).during("GIoV=0")?;
    passes(m, USER, va, page).during("GIoV=0, with a PASID")?;
    let event = host_fault(m, page + OFFSET + 30 * STEP, true, NOT_PRESENT);
    let nowhere = page + OFFSET + 30 * STEP;
    refused(m, Who::PLAIN, nowhere, true, page, Some(event)).during("GIoV=0, no page")?;
    if !m.iommu.efr.gio_sup() {
        return Ok(());
    }
    rig.gcr3.set(m, 0, &rig.space)?;
    let mut dte = rig.dte;
    dte.q0 = dte.q0.with_giov(true);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    invalidate_pasid(m, 0)?;
    passes(m, Who::PLAIN, va, page).during("GIoV=1")?;
    let event = Who::PLAIN.fault(m, gpa, false, NOT_PRESENT);
    refused(m, Who::PLAIN, gpa, false, page, Some(event)).during("GIoV=1, no page")?;
    rig.changed(
        m,
        gpa,
        1,
        |_| 0,
        |m| {
            let event = host_fault(m, gpa, true, NOT_PRESENT);
            refused(m, Who::PLAIN, va, true, page, Some(event))
        },
    )
    .during("GIoV=1, no host page")?;
    rig.restore(m)
}

/// A host page moves: one invalidation of guest physical addresses reaches every PASID.
fn moved<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    const OTHER: u32 = PASID + 1;
    let other = GuestSpace::new(m, 4, OFFSET)?;
    let va = other.address(1, rig.page, false);
    other.map(m, va, rig.gpa, 1)?;
    for level in 1..=4 {
        let table = other.slot(m, va, level) & !0xfff;
        rig.host.map(m, table + OFFSET, table, 1, 12)?;
    }
    rig.gcr3.set(m, OTHER, &other)?;
    invalidate_pasid(m, OTHER)?;
    invalidate_domain(m)?;
    let new = alloc(m, 4096)?;
    let slot = rig.host.slot(m, rig.gpa, 1);
    let mut frames = [rig.page, new];
    for _ in 0..4 {
        passes(m, USER, rig.va, frames[0])?;
        passes(m, Who::pasid(OTHER), va, frames[0])?;
        passes(m, Who::PLAIN, rig.gpa, frames[0])?;
        frames.swap(0, 1);
        m.p.write_u64(slot, leaf(frames[0], 1, 12, ALL));
        invalidate_block(m, rig.gpa & !0xfff, PAGE)?;
    }
    Ok(())
}
