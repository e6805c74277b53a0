//! DMA through guest (v2) page tables: every page size, what entries permit, accessed and dirty bits,
//! GIoV, and the events that tell of what is refused.

use amdvi_regs::dte::Dte;

use super::super::done;
use super::access::{Who, passes, reads, refused, writes};
use super::rig::{BOTH, NOWHERE, in_case};
use super::space::{
    A, D, FULL, Gcr3, GuestSpace, NX, P, PS, RW, US, invalidate_page, invalidate_pasid, required,
};
use super::table::{index, level_shift};
use super::{Flags, NOT_PERMITTED, NOT_PRESENT, RESERVED, alloc};
use crate::failure::{During, Failure, Result};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// A PASID that a GCR3 table of one level holds.
const PASID: u32 = 0x15;
const USER: Who = Who::pasid(PASID);
const KERNEL: Who = USER.privileged();

/// `dma-v2`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    required(&m)?;
    m.dev.pasid_enable(m.p, true)?;
    let most = m.iommu.efr.guest_levels().unwrap_or(4).min(5);
    let mut sizes = 0;
    for levels in 4..=most {
        let rig = Rig::new(&mut m, levels)?;
        for leaf in 1..=3 {
            for upper in BOTH {
                let result = one_size(&mut m, &rig, leaf, upper);
                result.map_err(|failure| {
                    Failure::new(format_args!(
                        "{levels} levels, page at level {leaf}, upper half {upper}: {failure}"
                    ))
                })?;
                sizes += 1;
            }
        }
        if levels == most {
            for leaf in 1..=3 {
                let result = entries(&mut m, &rig, leaf);
                in_case("page at level", leaf, result)?;
            }
        }
    }
    let rig = Rig::new(&mut m, 4)?;
    addresses(&mut m, &rig)?;
    missing_tables(&mut m, &rig)?;
    without_pasid(&mut m, &rig)?;
    device_table_entry(&mut m, &rig)?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "{sizes} pages of 4 KiB, 2 MiB and 1 GiB in tables of 4 to {most} levels, both halves: \
             data, A and D bits entry by entry; {blocked} accesses aborted, {events} events with GN=1 \
             compared: P, R/W, U/S, NX, reserved bits at each level, addresses, GCR3, GIoV, GV, GTEn, \
             GLX, GuestPagingMode, TV, IR, IW, SA"
        ),
    )
}

/// A page table for one PASID, and a page.
struct Rig {
    space: GuestSpace,
    gcr3: Gcr3,
    /// The page that is read and written.
    page: u64,
    dte: Dte,
}

impl Rig {
    fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, levels: u8) -> Result<Self> {
        let page = alloc(m, 4096)?;
        let space = GuestSpace::new(m, levels, 0)?;
        let gcr3 = Gcr3::new(m, 1, 0)?;
        gcr3.set(m, PASID, &space)?;
        let dte = gcr3.dte(gcr3.root, levels);
        let rig = Self {
            space,
            gcr3,
            page,
            dte,
        };
        rig.restore(m)?;
        Ok(rig)
    }

    /// The DTE as it was.
    fn restore<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &self.dte)
    }

    /// The entries for `va` from the leaf up: those of tables must have these bits of A and D, the
    /// leaf those.
    fn marks<Q: Platform + ?Sized>(
        &self,
        m: &Machine<'_, Q>,
        va: u64,
        leaf: u8,
        tables: u64,
        page: u64,
    ) -> Result<()> {
        for level in leaf..=self.space.levels {
            let seen = self.space.entry(m, va, level) & (A | D);
            let expected = if level == leaf { page } else { tables };
            if seen != expected {
                return Err(Failure::new(format_args!(
                    "A and D of the entry at level {level} are {seen:#x}, not {expected:#x}"
                )));
            }
        }
        Ok(())
    }

    /// Clears A and D of every entry for `va`.
    fn unmark<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>, va: u64, leaf: u8) {
        for level in leaf..=self.space.levels {
            let slot = self.space.slot(m, va, level);
            let entry = m.p.read_u64(slot);
            m.p.write_u64(slot, entry & !(A | D));
        }
    }

    /// With the entry for `va` at a level changed, and nothing of the PASID cached.
    fn changed<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        va: u64,
        level: u8,
        change: impl Fn(u64) -> u64,
        then: impl FnOnce(&mut Machine<'_, Q>) -> Result<()>,
    ) -> Result<()> {
        let slot = self.space.slot(m, va, level);
        let old = m.p.read_u64(slot);
        m.p.write_u64(slot, change(old));
        invalidate_pasid(m, PASID)?;
        in_case("level", level, then(m))?;
        m.p.write_u64(slot, old);
        invalidate_pasid(m, PASID)
    }

    /// An access of a PASID that its table refuses.
    fn refuses<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        who: Who,
        va: u64,
        write: bool,
        flags: Flags,
    ) -> Result<()> {
        let event = who.fault(m, va, write, flags);
        refused(m, who, va, write, self.page, Some(event)).during(if write {
            "write"
        } else {
            "read"
        })
    }
}

/// Maps a page of one size, uses it, unmaps it.
fn one_size<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    rig: &Rig,
    leaf: u8,
    upper: bool,
) -> Result<()> {
    let (space, page) = (&rig.space, rig.page);
    let va = space.address(leaf, page, upper);
    space.map(m, va, page, leaf)?;
    rig.marks(m, va, leaf, 0, 0).during("before any access")?;
    reads(m, USER, va, page)?;
    rig.marks(m, va, leaf, A, A).during("after a read")?;
    writes(m, USER, va, page)?;
    rig.marks(m, va, leaf, A, A | D).during("after a write")?;
    passes(m, USER, va, page).during("again, from caches")?;
    passes(m, KERNEL, va, page).during("privileged")?;
    rig.marks(m, va, leaf, A, A | D).during("after all")?;

    // A page that is clean again gets dirty again.
    rig.unmark(m, va, leaf);
    let size = level_shift(leaf) as u8;
    invalidate_page(m, PASID, va & !((1 << size) - 1), size)?;
    writes(m, USER, va, page)?;
    rig.marks(m, va, leaf, A, A | D)
        .during("after a write first")?;

    let slot = space.slot(m, va, leaf);
    m.p.write_u64(slot, 0);
    invalidate_page(m, PASID, va & !((1 << size) - 1), size)?;
    for write in BOTH {
        rig.refuses(m, USER, va, write, NOT_PRESENT)
            .during("unmapped")?;
    }
    Ok(())
}

/// What entries of each level permit and reserve.
fn entries<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig, leaf: u8) -> Result<()> {
    let page = rig.page;
    let va = rig.space.address(leaf, page, false);
    rig.space.map(m, va, page, leaf)?;
    invalidate_pasid(m, PASID)?;
    let nx = m.iommu.efr.nx_sup();
    reads(m, USER.execute(), va, page).during("execute")?;
    for level in leaf..=rig.space.levels {
        rig.changed(
            m,
            va,
            level,
            |e| e & !P,
            |m| {
                rig.refuses(m, USER, va, false, NOT_PRESENT)?;
                rig.refuses(m, USER, va, true, NOT_PRESENT)
            },
        )
        .during("P=0")?;
        rig.unmark(m, va, leaf);
        rig.changed(
            m,
            va,
            level,
            |e| e & !RW,
            |m| {
                reads(m, USER, va, page)?;
                rig.refuses(m, USER, va, true, NOT_PERMITTED)?;
                // As with CR0.WP=1.
                rig.refuses(m, KERNEL, va, true, NOT_PERMITTED)?;
                rig.marks(m, va, leaf, A, A)
                    .during("a page that nobody may write")
            },
        )
        .during("R/W=0")?;
        rig.changed(
            m,
            va,
            level,
            |e| e & !US,
            |m| {
                passes(m, KERNEL, va, page)?;
                rig.refuses(m, USER, va, false, NOT_PERMITTED)?;
                rig.refuses(m, USER, va, true, NOT_PERMITTED)
            },
        )
        .during("U/S=0")?;
        rig.changed(
            m,
            va,
            level,
            |e| e | NX,
            |m| {
                passes(m, USER, va, page)?;
                if !nx {
                    return reads(m, USER.execute(), va, page);
                }
                rig.refuses(m, USER.execute(), va, false, NOT_PERMITTED)?;
                rig.refuses(m, KERNEL.execute(), va, false, NOT_PERMITTED)
            },
        )
        .during("NX=1")?;
        // PWT, PCD, what software has for itself, and G and PAT of a page.
        let pat = match (level == leaf, level) {
            (false, _) => 0,
            (true, 1) => 1 << 7 | 1 << 8,
            (true, _) => 1 << 12 | 1 << 8,
        };
        let ignored = 0x7ff << 52 | 7 << 9 | 3 << 3 | pat;
        rig.changed(m, va, level, |e| e | ignored, |m| passes(m, USER, va, page))
            .during("ignored bits")?;
    }
    // The bits of the address below the size of a large page, but for PAT; PS where no page is.
    let reserved = match leaf {
        1 => 0..0,
        _ => 13..level_shift(leaf),
    };
    for bit in reserved {
        rig.changed(
            m,
            va,
            leaf,
            |e| e | 1 << bit,
            |m| rig.refuses(m, USER, va, bit & 1 == 0, RESERVED),
        )
        .during("address bit below the page's size")?;
    }
    for level in 4..=rig.space.levels {
        rig.changed(
            m,
            va,
            level,
            |e| e | PS,
            |m| {
                rig.refuses(m, USER, va, false, RESERVED)?;
                rig.refuses(m, USER, va, true, RESERVED)
            },
        )
        .during("PS=1")?;
    }
    passes(m, USER, va, page)
}

/// Addresses that are none of the table's width.
fn addresses<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let va = rig.space.address(1, rig.page, false);
    rig.space.map(m, va, rig.page, 1)?;
    invalidate_pasid(m, PASID)?;
    passes(m, USER, va, rig.page)?;
    let top = level_shift(4) + 8;
    for bit in [top, top + 1, 63] {
        for write in BOTH {
            rig.refuses(m, USER, va | 1 << bit, write, NOT_PRESENT)
                .during("not canonical")?;
        }
    }
    Ok(())
}

/// GCR3 entries that lead nowhere, and tables outside of RAM.
fn missing_tables<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let va = rig.space.address(1, rig.page, false);
    let slot = rig.gcr3.slot(m, PASID, 1)?;
    let good = m.p.read_u64(slot);
    let cases = [
        ("GCR3 entry with V=0", good & !P, NOT_PRESENT),
        ("GCR3 entry, bit 1", good | 1 << 1, RESERVED),
        ("GCR3 entry, bit 11", good | 1 << 11, RESERVED),
        ("GCR3 entry, bit 52", good | 1 << 52, RESERVED),
        ("GCR3 entry, bit 63", good | 1 << 63, RESERVED),
    ];
    for (what, entry, flags) in cases {
        m.p.write_u64(slot, entry);
        invalidate_pasid(m, PASID)?;
        for write in BOTH {
            rig.refuses(m, USER, va, write, flags).during(what)?;
        }
    }
    m.p.write_u64(slot, NOWHERE | P);
    invalidate_pasid(m, PASID)?;
    for write in BOTH {
        let event = USER.table_error(m, NOWHERE + index(va, 4), write);
        refused(m, USER, va, write, rig.page, Some(event)).during("root outside of RAM")?;
    }
    m.p.write_u64(slot, good);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &rig.gcr3.dte(NOWHERE, 4))?;
    invalidate_pasid(m, PASID)?;
    for write in BOTH {
        let event = USER.table_error(m, NOWHERE + 8 * u64::from(PASID), write);
        refused(m, USER, va, write, rig.page, Some(event)).during("GCR3 table outside of RAM")?;
    }
    rig.restore(m)?;
    // A table below that is outside of RAM: the address is that of the entry.
    let entry = m.p.read_u64(rig.space.slot(m, va, 2));
    let at = NOWHERE + index(va, 1);
    rig.changed(
        m,
        va,
        2,
        |_| NOWHERE | FULL,
        |m| {
            let event = USER.table_error(m, at, false);
            refused(m, USER, va, false, rig.page, Some(event))
        },
    )
    .during("table outside of RAM")?;
    if m.p.read_u64(rig.space.slot(m, va, 2)) != entry {
        return Err(Failure::new(format_args!("the entry was not put back")));
    }
    passes(m, USER, va, rig.page)
}

/// Requests without a PASID: translated by GIoV, or not at all.
fn without_pasid<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let page = rig.page;
    let va = rig.space.address(1, page, false);
    // GV=1, GIoV=0, Mode 0: untranslated, while PASIDs are translated.
    passes(m, Who::PLAIN, page, page).during("GIoV=0")?;
    passes(m, USER, va, page).during("GIoV=0, with a PASID")?;
    if !m.iommu.efr.gio_sup() {
        return Ok(());
    }
    let zero = GuestSpace::new(m, 4, 0)?;
    let (low, high) = (zero.address(1, page, false), zero.address(1, page, true));
    zero.map(m, low, page, 1)?;
    zero.map(m, high, page, 1)?;
    rig.gcr3.set(m, 0, &zero)?;
    let mut dte = rig.dte;
    dte.q0 = dte.q0.with_giov(true);
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    invalidate_pasid(m, 0)?;
    passes(m, Who::PLAIN, low, page).during("GIoV=1")?;
    passes(m, Who::PLAIN, high, page).during("GIoV=1, upper half")?;
    // To who counts from 0 on, the upper half begins at 2^47.
    passes(m, Who::PLAIN, high & ((1 << 48) - 1), page).during("GIoV=1, from 0 on")?;
    passes(m, Who::pasid(0), low, page).during("PASID 0")?;
    passes(m, USER, va, page).during("GIoV=1, with a PASID")?;
    for write in BOTH {
        rig.refuses(m, Who::PLAIN, page, write, NOT_PRESENT)
            .during("GIoV=1, no page")?;
    }
    let slot = zero.slot(m, low, 1);
    let entry = m.p.read_u64(slot);
    m.p.write_u64(slot, entry & !RW);
    // What PASID 0 has is what requests without one have.
    invalidate_page(m, 0, low & !0xfff, 12)?;
    rig.refuses(m, Who::PLAIN, low, true, NOT_PERMITTED)
        .during("GIoV=1, R/W=0")?;
    reads(m, Who::PLAIN, low, page).during("GIoV=1, R/W=0")?;
    m.p.write_u64(slot, entry & !US);
    invalidate_page(m, 0, low & !0xfff, 12)?;
    rig.refuses(m, Who::PLAIN, low, false, NOT_PERMITTED)
        .during("GIoV=1, U/S=0")?;
    rig.restore(m)?;
    passes(m, Who::PLAIN, page, page).during("GIoV 1 → 0")
}

/// What the DTE says of the guest's tables.
fn device_table_entry<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let page = rig.page;
    let va = rig.space.address(1, page, false);
    let id = m.dev.id;
    let with = |change: &dyn Fn(&mut Dte)| {
        let mut dte = rig.dte;
        change(&mut dte);
        dte
    };
    let page_faults = [
        (
            "GV=0",
            with(&|dte| dte.q0 = dte.q0.with_gv(false)),
            NOT_PRESENT,
        ),
        (
            "TV=0",
            with(&|dte| dte.q0 = dte.q0.with_tv(false)),
            NOT_PRESENT,
        ),
        (
            "IR=IW=0",
            with(&|dte| dte.q0 = dte.q0.with_ir(false).with_iw(false)),
            NOT_PERMITTED,
        ),
    ];
    for (what, dte, flags) in page_faults {
        m.iommu.set_dte(m.p, id, &dte)?;
        for write in BOTH {
            rig.refuses(m, USER, va, write, flags).during(what)?;
        }
    }
    let dte = with(&|dte| dte.q0 = dte.q0.with_iw(false));
    m.iommu.set_dte(m.p, id, &dte)?;
    rig.refuses(m, USER, va, true, NOT_PERMITTED)
        .during("IW=0")?;
    reads(m, USER, va, page).during("IW=0")?;
    let dte = with(&|dte| {
        dte.q0 = dte.q0.with_gv(false);
        dte.q1 = dte.q1.with_sa(true);
    });
    m.iommu.set_dte(m.p, id, &dte)?;
    refused(m, USER, va, true, page, None).during("SA=1")?;

    let (glx_sup, levels) = (m.iommu.efr.glx_sup(), m.iommu.efr.guest_levels());
    for glx in glx_sup + 1..=3 {
        let dte = with(&|dte| dte.q0 = dte.q0.with_glx(glx));
        illegal(m, rig, va, &dte).during("GLX beyond what EFR offers")?;
    }
    for mode in levels.unwrap_or(4) - 3..=3 {
        let dte = with(&|dte| dte.q2 = dte.q2.with_guest_paging_mode(mode));
        illegal(m, rig, va, &dte).during("GuestPagingMode beyond what EFR offers")?;
    }
    rig.restore(m)?;
    passes(m, USER, va, page).during("the DTE as it was")?;

    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_gt_en(false));
    m.iommu.flush_everything(m.p)?;
    rig.refuses(m, USER, va, false, NOT_PRESENT)
        .during("GTEn=0")?;
    passes(m, Who::PLAIN, page, page).during("GTEn=0, without a PASID")?;
    m.iommu.set_control(m.p, control);
    m.iommu.flush_everything(m.p)?;
    passes(m, USER, va, page).during("GTEn 0 → 1")
}

fn illegal<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    rig: &Rig,
    va: u64,
    dte: &Dte,
) -> Result<()> {
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, dte)?;
    for write in BOTH {
        let event = USER.illegal(m, va, write, false);
        refused(m, USER, va, write, rig.page, Some(event))?;
    }
    Ok(())
}
