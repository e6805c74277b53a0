//! Address spaces as a driver builds them, entry by entry: guest (v2) page tables, the GCR3 table
//! above them, and host (v1) page tables below.

use amdvi_regs::command::{InvalidateIommuPages, InvalidationRange};
use amdvi_regs::dte::Dte;

use super::table::{ADDRESS, ALL, entry, index, leaf, level_shift};
use super::{DOMAIN, alloc, passthrough};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::platform::Platform;

/// Bits of a guest entry: present.
pub(super) const P: u64 = 1;
/// Writable.
pub(super) const RW: u64 = 1 << 1;
/// User access.
pub(super) const US: u64 = 1 << 2;
/// Accessed, at this bit in a host entry too.
pub(super) const A: u64 = 1 << 5;
/// Dirty, at this bit in a host entry too.
pub(super) const D: u64 = 1 << 6;
/// A large page, at levels 2 and 3.
pub(super) const PS: u64 = 1 << 7;
/// No execution.
pub(super) const NX: u64 = 1 << 63;
/// What an entry permits that permits everything.
pub(super) const FULL: u64 = P | RW | US;

/// Guest translation is offered.
pub(super) fn required<Q: Platform + ?Sized>(m: &Machine<'_, Q>) -> Result<()> {
    ensure!(
        m.iommu.efr.gt_sup(),
        "EFR is {:#x}: guest translation is not offered (GTSup=0)",
        m.iommu.efr.into_bits()
    );
    Ok(())
}

/// A guest page table. What is written into its entries is `offset` above where things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestSpace {
    /// Where its root is.
    pub(super) root: u64,
    /// Its levels, 4 or 5.
    pub(super) levels: u8,
    offset: u64,
}

impl GuestSpace {
    pub(super) fn new<Q: Platform + ?Sized>(
        m: &mut Machine<'_, Q>,
        levels: u8,
        offset: u64,
    ) -> Result<Self> {
        Ok(Self {
            root: alloc(m, 4096)?,
            levels,
            offset,
        })
    }

    /// An address that has other indexes than those of other sizes and the offset of `gpa` within a
    /// page of level `leaf`; in the upper half of the address space, or in the lower.
    pub(super) fn address(&self, leaf: u8, gpa: u64, upper: bool) -> u64 {
        let mut va = gpa & ((1 << level_shift(leaf)) - 1);
        for level in leaf..=self.levels {
            let number = 0x20 + 0x11 * u64::from(level) + 3 * u64::from(leaf);
            va |= number << level_shift(level);
        }
        if upper {
            va |= !0 << (level_shift(self.levels) + 8);
        }
        va
    }

    /// Where the entry for `va` at a level is; the tables above it must exist.
    pub(super) fn slot<Q: Platform + ?Sized>(&self, m: &Machine<'_, Q>, va: u64, level: u8) -> u64 {
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            let entry = m.p.read_u64(table + index(va, above));
            table = (entry & ADDRESS) - self.offset;
        }
        table + index(va, level)
    }

    /// The entry for `va` at a level.
    pub(super) fn entry<Q: Platform + ?Sized>(
        &self,
        m: &Machine<'_, Q>,
        va: u64,
        level: u8,
    ) -> u64 {
        m.p.read_u64(self.slot(m, va, level))
    }

    /// Maps the page of level `leaf` around `va` to the one around `gpa`. Nothing is invalidated.
    pub(super) fn map<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        va: u64,
        gpa: u64,
        leaf: u8,
    ) -> Result<()> {
        let mut table = self.root;
        for level in (leaf + 1..=self.levels).rev() {
            let slot = table + index(va, level);
            let entry = m.p.read_u64(slot);
            table = if entry & P == 0 {
                let next = alloc(m, 4096)?;
                m.p.write_u64(slot, (next + self.offset) | FULL);
                next
            } else {
                (entry & ADDRESS) - self.offset
            };
        }
        let page = gpa & ADDRESS & !((1 << level_shift(leaf)) - 1);
        let size = if leaf > 1 { PS } else { 0 };
        m.p.write_u64(table + index(va, leaf), page | FULL | size);
        Ok(())
    }
}

/// A GCR3 table. What is written into its entries is `offset` above where things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gcr3 {
    /// Where its root is.
    pub(super) root: u64,
    /// Its levels, 1–3.
    pub(super) levels: u8,
    offset: u64,
}

impl Gcr3 {
    pub(super) fn new<Q: Platform + ?Sized>(
        m: &mut Machine<'_, Q>,
        levels: u8,
        offset: u64,
    ) -> Result<Self> {
        Ok(Self {
            root: alloc(m, 4096)?,
            levels,
            offset,
        })
    }

    /// Where the entry for `pasid` at a level is; tables above it are made.
    pub(super) fn slot<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        pasid: u32,
        level: u8,
    ) -> Result<u64> {
        let index = |level: u8| u64::from(pasid >> (9 * (level - 1)) & 0x1ff) * 8;
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            let slot = table + index(above);
            let entry = m.p.read_u64(slot);
            table = if entry & P == 0 {
                let next = alloc(m, 4096)?;
                m.p.write_u64(slot, (next + self.offset) | P);
                next
            } else {
                (entry & ADDRESS) - self.offset
            };
        }
        Ok(table + index(level))
    }

    /// Gives a PASID a page table. Nothing is invalidated.
    pub(super) fn set<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        pasid: u32,
        space: &GuestSpace,
    ) -> Result<()> {
        let slot = self.slot(m, pasid, 1)?;
        m.p.write_u64(slot, (space.root + self.offset) | P);
        Ok(())
    }

    /// A DTE that uses this table at `address` for guest tables of so many levels, without a host
    /// table.
    pub(super) fn dte(&self, address: u64, levels: u8) -> Dte {
        let mut dte = passthrough().with_gcr3_address(address);
        dte.q0 = dte.q0.with_gv(true).with_glx(self.levels - 1);
        dte.q2 = dte.q2.with_guest_paging_mode(levels - 4);
        dte
    }
}

/// A host page table.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostSpace {
    /// Where its root is.
    pub(super) root: u64,
    /// Its levels: DTE.Mode.
    pub(super) mode: u8,
}

impl HostSpace {
    pub(super) fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, mode: u8) -> Result<Self> {
        Ok(Self {
            root: alloc(m, 4096)?,
            mode,
        })
    }

    /// Where the entry for `iova` at a level is; the tables above it must exist.
    pub(super) fn slot<Q: Platform + ?Sized>(
        &self,
        m: &Machine<'_, Q>,
        iova: u64,
        level: u8,
    ) -> u64 {
        let mut table = self.root;
        for above in (level + 1..=self.mode).rev() {
            table = m.p.read_u64(table + index(iova, above)) & ADDRESS;
        }
        table + index(iova, level)
    }

    /// The entry for `iova` at a level.
    pub(super) fn entry<Q: Platform + ?Sized>(
        &self,
        m: &Machine<'_, Q>,
        iova: u64,
        level: u8,
    ) -> u64 {
        m.p.read_u64(self.slot(m, iova, level))
    }

    /// Maps the page of 2^`shift` bytes around `iova`, whose leaf stands at `level`, to the one around
    /// `spa`: in every slot that it covers. Nothing is invalidated.
    pub(super) fn map<Q: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, Q>,
        iova: u64,
        spa: u64,
        level: u8,
        shift: u32,
    ) -> Result<()> {
        let mut table = self.root;
        for above in (level + 1..=self.mode).rev() {
            let slot = table + index(iova, above);
            let old = m.p.read_u64(slot);
            table = if old & P == 0 {
                let next = alloc(m, 4096)?;
                m.p.write_u64(slot, entry(next, u64::from(above) - 1, ALL));
                next
            } else {
                old & ADDRESS
            };
        }
        for slot in self.replicas(m, iova, level, shift) {
            m.p.write_u64(slot, leaf(spa, level, shift, ALL));
        }
        Ok(())
    }

    /// The slots that the page of 2^`shift` bytes around `iova` has in its table.
    pub(super) fn replicas<Q: Platform + ?Sized>(
        &self,
        m: &Machine<'_, Q>,
        iova: u64,
        level: u8,
        shift: u32,
    ) -> impl Iterator<Item = u64> + use<Q> {
        let slots = 1u64 << (shift - level_shift(level));
        let slot = self.slot(m, iova, level);
        let first = slot & !(8 * slots - 1);
        (0..slots).map(move |n| first + 8 * n)
    }

    /// The DTE with this table.
    pub(super) fn under(&self, mut dte: Dte) -> Dte {
        dte.q0 = dte
            .q0
            .with_mode(self.mode)
            .with_host_pt_root(self.root >> 12);
        dte
    }
}

/// INVALIDATE_IOMMU_PAGES for addresses of one PASID.
pub(super) fn pasid_pages(pasid: u32, range: InvalidationRange) -> InvalidateIommuPages {
    InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_pasid(pasid)
        .with_gn(true)
        .with_pde(true)
        .with_range(range)
}

/// Invalidates every page of one PASID.
pub(super) fn invalidate_pasid<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    pasid: u32,
) -> Result<()> {
    m.iommu
        .command(m.p, pasid_pages(pasid, InvalidationRange::All))
}

/// Invalidates the page of 2^`size_log2` bytes around `va` for one PASID.
pub(super) fn invalidate_page<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    pasid: u32,
    va: u64,
    size_log2: u8,
) -> Result<()> {
    let range = InvalidationRange::Block {
        start: va,
        size_log2,
    };
    m.iommu.command(m.p, pasid_pages(pasid, range))
}
