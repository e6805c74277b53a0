//! A host page table that works, to be spoiled in one way at a time, and the events that tell of it.

use amdvi_regs::dte::Dte;
use amdvi_regs::event::{
    Event, IllegalDevTableEntry, InvalidDeviceRequest, InvalidRequestType, PageTabHardwareError,
};

use super::table::{Path, Tables};
use super::{
    DOMAIN, Flags, Pages, aborted_with, alloc, copies, invalidate_domain, page_fault, passthrough,
};
use crate::failure::{During, Failure, Result};
use crate::machine::Machine;
use crate::platform::Platform;

/// No RAM stands here: below 2^52, and above what a machine may have.
pub(super) const NOWHERE: u64 = 1 << 50;
pub(super) const BOTH: [bool; 2] = [false, true];

/// A table of three levels that works, and what it maps.
pub(super) struct Rig {
    pub(super) pages: Pages,
    pub(super) tables: Tables,
    pub(super) path: Path,
    /// IOVAs of the two pages.
    pub(super) at: [u64; 2],
    pub(super) dte: Dte,
}

impl Rig {
    pub(super) fn new<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<Self> {
        let block = alloc(m, 0x2000)?;
        let pages = Pages {
            source: block,
            target: block + 0x1000,
        };
        let tables = Tables::new(m)?;
        let path = Path::down(3, 1, 12);
        let at = [path.iova(pages.source), path.iova(pages.target)];
        tables.map(m, &path, at[0], pages.source);
        tables.map(m, &path, at[1], pages.target);
        let mut dte = passthrough();
        dte.q0 = dte.q0.with_mode(3).with_host_pt_root(tables.table(3) >> 12);
        let rig = Self {
            pages,
            tables,
            path,
            at,
            dte,
        };
        rig.mend(m)?;
        Ok(rig)
    }

    /// The DTE as it was; the table must work.
    pub(super) fn mend<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &self.dte)?;
        self.works(m)
    }

    pub(super) fn works<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) -> Result<()> {
        copies(m, &self.pages, self.at[0], self.at[1])
    }

    /// Changes the entries for both pages at a level, and invalidates what is cached.
    pub(super) fn change<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        level: u8,
        change: impl Fn(u64) -> u64,
    ) -> Result<[(u64, u64); 2]> {
        let slots = self.at.map(|iova| self.tables.slot(iova, level));
        let old = slots.map(|slot| (slot, m.p.read_u64(slot)));
        for (slot, value) in old {
            m.p.write_u64(slot, change(value));
        }
        invalidate_domain(m)?;
        Ok(old)
    }

    pub(super) fn restore<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        old: [(u64, u64); 2],
    ) -> Result<()> {
        for (slot, value) in old {
            m.p.write_u64(slot, value);
        }
        invalidate_domain(m)
    }

    /// With the entries of a level changed, these accesses fault so.
    pub(super) fn entry_case<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        what: &str,
        level: u8,
        writes: &[bool],
        flags: Flags,
        change: impl Fn(u64) -> u64,
    ) -> Result<()> {
        let old = self.change(m, level, change)?;
        let result = self.both(m, writes, |m, iova, write| {
            Some(page_fault(m, iova, write, flags))
        });
        in_case(what, level, result)?;
        self.restore(m, old)
    }

    /// These accesses abort, with these events.
    pub(super) fn both<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        writes: &[bool],
        event: impl Fn(&Machine<'_, P>, u64, bool) -> Option<Event>,
    ) -> Result<()> {
        for &write in writes {
            let iova = self.at[usize::from(write)];
            let expected = event(m, iova, write);
            aborted_with(m, &self.pages, iova, write, expected).during(if write {
                "write"
            } else {
                "read"
            })?;
        }
        Ok(())
    }

    /// With this DTE both accesses abort with these events.
    pub(super) fn dte_case<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        what: &str,
        dte: &Dte,
        event: impl Fn(&Machine<'_, P>, u64, bool) -> Option<Event>,
    ) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, dte)?;
        self.both(m, &BOTH, event).during(what)
    }
}

pub(super) fn in_case<T>(what: &str, n: u8, result: Result<T>) -> Result<T> {
    result.map_err(|failure| Failure::new(format_args!("{what} {n}: {failure}")))
}

pub(super) fn illegal<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    iova: u64,
    write: bool,
    rz: bool,
) -> Event {
    IllegalDevTableEntry::new()
        .with_device_id(m.dev.id.0)
        .with_rw(write)
        .with_rz(rz)
        .with_address_4(iova >> 2)
        .into()
}

pub(super) fn table_error<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    gpa: u64,
    write: bool,
) -> Event {
    PageTabHardwareError::new()
        .with_device_id(m.dev.id.0)
        .with_pasid_domain_id(DOMAIN)
        .with_rw(write)
        .with_kind(1)
        .with_address_8(gpa >> 3)
        .into()
}

pub(super) fn invalid<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    iova: u64,
    kind: InvalidRequestType,
) -> Event {
    let (tr, kind) = kind.bits();
    InvalidDeviceRequest::new()
        .with_device_id(m.dev.id.0)
        .with_tr(tr)
        .with_kind(kind)
        .with_address(iova)
        .into()
}
