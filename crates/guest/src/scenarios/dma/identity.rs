//! DMA without a page table: untranslated, by the DTE's permissions, and blocked.

use super::super::done;
use super::{
    DONE, LENGTH, NOT_PERMITTED, NOT_PRESENT, Pages, aborted, alloc, copies, passthrough, pattern,
};
use crate::endpoint::reg;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// `dma-identity-blocked`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let id = m.dev.id;
    let pages = Pages {
        source: alloc(&mut m, 4096)?,
        target: alloc(&mut m, 4096)?,
    };
    let (from, to) = (pages.source, pages.target);

    // Nobody has claimed the device: V=0.
    copies(&mut m, &pages, from, to).during("V=0")?;
    let mut dte = passthrough();
    m.iommu.set_dte(m.p, id, &dte)?;
    copies(&mut m, &pages, from, to).during("Mode 0, IR=IW=1")?;

    dte.q0 = dte.q0.with_iw(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, to, true, Some(NOT_PERMITTED)).during("IW=0")?;
    let status = m.dev.dma(m.p, from, LENGTH, false);
    ensure!(status == DONE, "IW=0: a DMA read had status {status}");
    let word = u64::from(m.dev.read(m.p, reg::DMA_BUFFER));
    ensure!(
        word == pattern(0) & 0xffff_ffff,
        "IW=0: a DMA read brought {word:#x}, not {:#x}",
        pattern(0) & 0xffff_ffff
    );

    dte.q0 = dte.q0.with_iw(true).with_ir(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, from, false, Some(NOT_PERMITTED)).during("IR=0")?;
    dte.q0 = dte.q0.with_iw(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    for (iova, write) in [(from, false), (to, true)] {
        aborted(&mut m, &pages, iova, write, Some(NOT_PERMITTED)).during("IR=IW=0")?;
    }
    dte.q1 = dte.q1.with_sa(true);
    m.iommu.set_dte(m.p, id, &dte)?;
    aborted(&mut m, &pages, to, true, None).during("IR=IW=0, SA=1")?;

    dte = passthrough();
    dte.q0 = dte.q0.with_tv(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    for (iova, write) in [(from, false), (to, true)] {
        aborted(&mut m, &pages, iova, write, Some(NOT_PRESENT)).during("TV=0")?;
    }

    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_iommu_en(false));
    copies(&mut m, &pages, from, to).during("IommuEn=0")?;
    m.iommu.set_control(m.p, control);
    aborted(&mut m, &pages, to, true, Some(NOT_PRESENT)).during("IommuEn 0 → 1")?;
    m.iommu.set_dte(m.p, id, &passthrough())?;
    copies(&mut m, &pages, from, to).during("passthrough again")?;
    done(
        &m,
        report,
        format_args!(
            "DMA passes with V=0, with Mode 0 as IR and IW say, and with IommuEn=0; it is aborted \
             by IR=0, IW=0 and TV=0 with one event per transfer, or none with SA=1; aborted \
             transfers change no memory"
        ),
    )
}
