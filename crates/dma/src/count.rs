//! What the performance counters count of DMA (48882 §3.4).
//!
//! Nothing here runs unless an event of DMA is counted. While that is so, handles leave their short
//! way (see `State::sync`), so every request comes past one of the functions below.

use amdvi_core::{Fabric, Subject};
use amdvi_regs::mmio::CounterEvent as Event;

use crate::context::WalkContext;
use crate::dte::DmaEntry;
use crate::fault::Reason;
use crate::ranges::{AddressClass, classify, classify_untranslated};
use crate::request::{Bypass, Pasid, Request, RequestKind, Span, Target};

/// What one translation took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Look-ups of the translation itself in the shared IOTLB.
    pub(crate) hits: u32,
    pub(crate) misses: u32,
    /// Look-ups of where the guest's own tables are.
    pub(crate) table_hits: u32,
    pub(crate) table_misses: u32,
    /// Entries read of host tables, and of the guest's (GCR3 tables included).
    pub(crate) host_reads: u32,
    pub(crate) guest_reads: u32,
}

impl Tally {
    /// What was looked up since `before` was about tables.
    pub(crate) fn about_tables_since(&mut self, before: Self) {
        self.table_hits += self.hits - before.hits;
        self.table_misses += self.misses - before.misses;
        self.hits = before.hits;
        self.misses = before.misses;
    }
}

fn subject(request: &Request, entry: &DmaEntry) -> Subject {
    Subject {
        device_id: Some(request.device_id),
        domain: entry.q0.v().then(|| entry.q1.domain_id()),
        pasid: request.pasid.map(Pasid::value),
    }
}

/// A request that the handle's own cache has answered. What is in there follows from the DTE.
#[cold]
#[inline(never)]
pub(crate) fn cached(fabric: &Fabric, request: &Request, context: &WalkContext, entry: &DmaEntry) {
    if !context.iommu_enabled {
        return;
    }
    let subject = subject(request, entry);
    let event = |event| fabric.view.counters.count(event, 1, &subject);
    event(Event::MemDteHit);
    let q0 = entry.q0;
    let class = if request.pasid.is_some() {
        AddressClass::Memory
    } else if q0.v() {
        classify(context, entry.q1.ex(), request.iova).0
    } else {
        classify_untranslated(request.iova).0
    };
    let guest = context.uses_guest_tables(q0) && (request.pasid.is_some() || q0.giov());
    if class == AddressClass::Excluded {
        event(Event::MemPassExcl);
    } else if q0.v() && (guest || q0.mode() != 0) {
        event(Event::MemIommuTlbPteHit);
        event(Event::MemTransTotal);
    } else {
        event(Event::MemPassUntrans);
    }
}

/// A request that was resolved, or not.
#[cold]
#[inline(never)]
pub(crate) fn asked(
    fabric: &Fabric,
    request: &Request,
    (context, entry): (&WalkContext, &DmaEntry),
    dte_was_known: bool,
    tally: &Tally,
    result: Result<&Span, Reason>,
) {
    if !context.iommu_enabled {
        return;
    }
    let subject = subject(request, entry);
    let count = |event, n: u32| fabric.view.counters.count(event, n.into(), &subject);
    count(Event::MemDteHit, dte_was_known.into());
    count(Event::MemDteMis, (!dte_was_known).into());
    count(Event::MemIommuTlbPteHit, tally.hits);
    count(Event::MemIommuTlbPteMis, tally.misses);
    count(Event::MemIommuTlbPdeHit, tally.table_hits);
    count(Event::MemIommuTlbPdeMis, tally.table_misses);
    count(Event::PageTblReadTot, tally.host_reads + tally.guest_reads);
    count(Event::PageTblReadNst, tally.host_reads);
    count(Event::PageTblReadGst, tally.guest_reads);
    let is_question = request.kind == RequestKind::TranslationRequest;
    let became = match result.map(|span| span.target) {
        Ok(Target::Page(_)) => Event::MemTransTotal,
        // Nothing was asked for but an answer.
        _ if is_question => return,
        Ok(Target::Identity(Bypass::Excluded)) => Event::MemPassExcl,
        Ok(Target::Identity(Bypass::PreTranslated)) => Event::MemPassPretrans,
        Ok(Target::Identity(_)) => Event::MemPassUntrans,
        // An interrupt on its way to the other engine.
        Err(Reason::InterruptWindow) => return,
        Err(_) => Event::MemTargetAbort,
    };
    count(became, 1);
}

/// A request whose DTE could not be read.
#[cold]
#[inline(never)]
pub(crate) fn without_dte(fabric: &Fabric, request: &Request) {
    let subject = Subject {
        device_id: Some(request.device_id),
        domain: None,
        pasid: request.pasid.map(Pasid::value),
    };
    fabric.view.counters.count(Event::MemDteMis, 1, &subject);
    if request.kind != RequestKind::TranslationRequest {
        fabric
            .view
            .counters
            .count(Event::MemTargetAbort, 1, &subject);
    }
}
