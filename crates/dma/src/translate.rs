//! From a request to its first span, and on to the others.

use amdvi_regs::PhysMemory;
use amdvi_regs::dte::{DteQ1, SysMgt};
use amdvi_regs::event::InvalidRequestType;
use amdvi_regs::pte::iova_bits;

use crate::context::WalkContext;
use crate::dte::{DmaEntry, DteDefect, check_dte};
use crate::fault::{Fault, Reason, Stop};
use crate::guest::GuestTable;
use crate::ranges::{AddressClass, HtRange, classify, classify_untranslated};
use crate::request::{Access, Bypass, Permissions, Request, RequestKind, Span, Target};
use crate::walk::{Need, Table, Walked, Walker};

/// Resolves the beginning of `request` for a device whose DTE is `entry`.
///
/// The span ends with the leaf that maps its first byte at the latest, so a request that is longer
/// takes several calls ([`spans`]), and each costs at most [`MAX_LOADS`](crate::MAX_LOADS) loads. Accessed and dirty bits are set on
/// the way where they are maintained.
///
/// # Errors
/// A [`Fault`] when the access is to be aborted. A write to the MSI window is one of them
/// ([`Reason::InterruptWindow`]): a caller asks [`classify`] first and hands such a write
/// to the interrupt path.
pub fn translate<M: PhysMemory + ?Sized>(
    context: &WalkContext,
    entry: &DmaEntry,
    request: &Request,
    memory: &M,
) -> Result<Span, Fault> {
    let mut walker = Walker::new(memory, None);
    translate_by(context, entry, request, &mut walker)
        .map_err(|stop| fault(context, entry, request, stop))
}

/// [`translate`] with whoever walks the tables.
#[inline(always)]
pub(crate) fn translate_by<M: PhysMemory + ?Sized>(
    context: &WalkContext,
    entry: &DmaEntry,
    request: &Request,
    walker: &mut Walker<'_, M>,
) -> Result<Span, Stop> {
    if !context.iommu_enabled {
        return Ok(disabled(request)?);
    }
    if !entry.q0.v() {
        return Ok(resolve_invalid_dte(request)?);
    }
    resolve(context, entry, request, walker)
}

/// The fault that [`translate_by`] has found the reason of.
#[cold]
pub(crate) fn fault(
    context: &WalkContext,
    entry: &DmaEntry,
    request: &Request,
    stop: Stop,
) -> Fault {
    if !context.iommu_enabled {
        stop.unlogged()
    } else {
        stop.fault(request, entry.q0.v().then_some(entry.q1))
    }
}

/// The last address of the request, or that of its only byte.
pub(crate) fn last_address(request: &Request) -> Result<u64, Reason> {
    request
        .iova
        .checked_add(request.len.saturating_sub(1))
        .ok_or(Reason::AddressOverflow)
}

/// The span from the request's first byte to the first of the request's end and `last`.
fn span(request: &Request, gpa: u64, last: u64, permissions: Permissions, target: Target) -> Span {
    // `last` is not below `iova`; only the whole address space would overflow, and no request has
    // that length.
    let reach = (last - request.iova).saturating_add(1);
    Span {
        iova: request.iova,
        gpa,
        len: request.len.min(reach),
        permissions,
        target,
    }
}

/// A span whose GPA is its IOVA.
fn identity(request: &Request, last: u64, permissions: Permissions, why: Bypass) -> Span {
    span(
        request,
        request.iova,
        last,
        permissions,
        Target::Identity(why),
    )
}

/// A request into the MSI window: a posted write is an interrupt, everything else is an error.
fn in_msi_window(request: &Request) -> Reason {
    match (request.kind, request.access) {
        (RequestKind::TranslationRequest, _) => {
            Reason::InvalidRequest(InvalidRequestType::TranslationInvalidAccess)
        }
        (_, Access::Write) => Reason::InterruptWindow,
        (_, Access::Read | Access::Atomic) => {
            Reason::InvalidRequest(InvalidRequestType::ReadInInterruptRange)
        }
    }
}

/// IommuEn=0: everything passes and nothing is logged. The MSI window is no memory even then.
fn disabled(request: &Request) -> Result<Span, Reason> {
    last_address(request)?;
    if request.kind == RequestKind::TranslationRequest {
        return Err(Reason::InvalidRequest(
            InvalidRequestType::TranslationDisabled,
        ));
    }
    match classify_untranslated(request.iova) {
        (AddressClass::MsiWindow, _) => Err(in_msi_window(request)),
        (_, last) => Ok(identity(
            request,
            last,
            Permissions::all(),
            Bypass::IommuDisabled,
        )),
    }
}

/// V=0: bits \[127:1\] mean nothing, DMA passes. Nothing grants ATS, so its requests are invalid.
fn resolve_invalid_dte(request: &Request) -> Result<Span, Reason> {
    last_address(request)?;
    let (class, last) = classify_untranslated(request.iova);
    if class == AddressClass::MsiWindow {
        return Err(in_msi_window(request));
    }
    check_ats(request, false)?;
    Ok(identity(
        request,
        last,
        Permissions::all(),
        Bypass::DteInvalid,
    ))
}

/// Whether a request that belongs to ATS comes from a device that may use it.
fn check_ats(request: &Request, allowed: bool) -> Result<(), Reason> {
    match request.kind {
        RequestKind::TranslationRequest if !allowed => Err(Reason::InvalidRequest(
            InvalidRequestType::TranslationDisabled,
        )),
        RequestKind::Translated if !allowed => Err(Reason::InvalidRequest(
            InvalidRequestType::PretranslatedNotAllowed,
        )),
        _ => Ok(()),
    }
}

/// V=1, in the order of the specification's rules: the entry itself, what the address means, then
/// translation.
#[inline(always)]
fn resolve<M: PhysMemory + ?Sized>(
    context: &WalkContext,
    entry: &DmaEntry,
    request: &Request,
    walker: &mut Walker<'_, M>,
) -> Result<Span, Stop> {
    let (q0, q1) = (entry.q0, entry.q1);
    last_address(request)?;
    // An address in a process is memory wherever it is; an address of the bus is not.
    let process = request.pasid.is_some() && request.kind != RequestKind::Translated;
    if !process && classify_untranslated(request.iova).0 == AddressClass::MsiWindow {
        return Err(in_msi_window(request).into());
    }
    check_dte(context, entry).map_err(Reason::IllegalDte)?;
    check_ats(request, q1.i())?;
    if request.kind == RequestKind::Translated {
        // A system physical address: the special ranges of table 3 are about untranslated ones.
        let (_, last) = classify_untranslated(request.iova);
        return Ok(identity(
            request,
            last,
            Permissions::all(),
            Bypass::PreTranslated,
        ));
    }
    let last = if process {
        u64::MAX
    } else {
        match special(context, q1, request)? {
            Special::Forward(span) => return Ok(span),
            Special::Translate(last) => last,
        }
    };

    if !q0.tv() {
        return Err(Reason::TranslationNotValid.into());
    }
    let guest = context.uses_guest_tables(q0);
    let pasid = match request.pasid {
        Some(_) if !guest => return Err(Reason::PasidNotAllowed.into()),
        Some(pasid) => Some(pasid.value()),
        None if guest && q0.giov() => Some(0),
        None => None,
    };
    let granted = Permissions::from_entry(q0.into_bits());
    let needed = match request.kind {
        RequestKind::TranslationRequest => Permissions::empty(),
        _ => request.access.needs(),
    };
    if !granted.contains(needed) {
        return Err(Reason::Permission { level: None }.into());
    }
    let wants_to_write = request.access.needs().contains(Permissions::WRITE);
    let need = Need {
        needed,
        writes: wants_to_write && granted.contains(Permissions::WRITE),
        user: request.is_user(),
        execute: request.kind == RequestKind::Untranslated
            && request.executes()
            && context.guest.no_execute,
    };
    let mode = q0.mode();
    let host = Table {
        root: q0.host_pt_root() << 12,
        mode,
        domain: q1.domain_id(),
        had: q0.had(),
    };
    let (last, walked) = if let Some(pasid) = pasid {
        let host = (mode != 0).then_some(host);
        let table = GuestTable::new(context, entry, host, pasid);
        table.check(context, request.iova)?;
        let write = request.access.writes();
        let walked = walker.guest(&table, request.iova, need, write)?;
        (last, walked)
    } else if mode == 0 {
        return Ok(identity(request, last, granted, Bypass::ModeZero));
    } else {
        let last = last.min(check_width(context, mode, request.iova)?);
        (last, walker.host(host, request.iova, need)?)
    };
    let Walked { leaf, permissions } = walked;
    let gpa = leaf.gpa | (request.iova - leaf.iova);
    Ok(span(
        request,
        gpa,
        last.min(leaf.last()),
        granted & permissions,
        Target::Page(leaf),
    ))
}

/// What becomes of DMA to an address that is not refused for its own sake.
enum Special {
    /// It passes untranslated.
    Forward(Span),
    /// It is translated; the last address up to which that holds.
    Translate(u64),
}

/// Obeys the special ranges.
#[inline(always)]
fn special(context: &WalkContext, q1: DteQ1, request: &Request) -> Result<Special, Reason> {
    let (class, last) = classify(context, q1.ex(), request.iova);
    let forward = |why| Special::Forward(identity(request, last, Permissions::all(), why));
    match class {
        AddressClass::Memory => Ok(Special::Translate(last)),
        AddressClass::MsiWindow => Err(in_msi_window(request)),
        AddressClass::Excluded => Ok(forward(Bypass::Excluded)),
        AddressClass::HyperTransport(range) => {
            Ok(if hyper_transport_forwards(range, q1, request)? {
                forward(Bypass::Forwarded)
            } else {
                Special::Translate(last)
            })
        }
    }
}

/// An address must fit the table's levels and the width that the IOMMU states. Returns the last
/// address that does: a page can reach beyond a stated width.
pub(crate) fn check_width(context: &WalkContext, mode: u8, iova: u64) -> Result<u64, Reason> {
    let stated = match context.va_bits {
        0 | 64.. => 64,
        bits => u32::from(bits),
    };
    // Without a table, which a caller has excluded, no address fits.
    let bits = iova_bits(mode).unwrap_or(0).min(stated);
    let last = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
    if iova > last {
        return Err(Reason::AddressTooWide { bits: bits as u8 });
    }
    Ok(last)
}

/// Applies the controls of 48882 §2.1.2, table 3: whether the request passes untranslated, or is
/// translated like any other.
fn hyper_transport_forwards(range: HtRange, q1: DteQ1, request: &Request) -> Result<bool, Reason> {
    let posted = request.access == Access::Write;
    let refused = |kind| match request.kind {
        RequestKind::TranslationRequest => {
            Reason::InvalidRequest(InvalidRequestType::TranslationInvalidAccess)
        }
        _ => Reason::InvalidRequest(kind),
    };
    match range {
        HtRange::ReservedInterrupt => Err(refused(InvalidRequestType::ReservedInterruptRange)),
        HtRange::InterruptEoi if posted => Err(refused(InvalidRequestType::InterruptRange)),
        HtRange::InterruptEoi => Err(refused(InvalidRequestType::ReadInInterruptRange)),
        HtRange::SystemManagement => match SysMgt::from_bits(q1.sys_mgt()) {
            SysMgt::Translate => Ok(false),
            // Messages are posted writes; a read has nothing to be forwarded to.
            SysMgt::ForwardAll if posted => Ok(true),
            // DMA is no INTx message.
            SysMgt::Abort | SysMgt::ForwardIntx if posted => {
                Err(refused(InvalidRequestType::SystemManagementWrite))
            }
            _ => Err(refused(InvalidRequestType::SystemManagementAddress)),
        },
        HtRange::PortIo => match q1.io_ctl() {
            0 => Err(refused(InvalidRequestType::PortIo)),
            1 => Ok(true),
            2 => Ok(false),
            _ => Err(Reason::IllegalDte(DteDefect::IoCtl)),
        },
        HtRange::PicAcknowledge
        | HtRange::ReservedPageTables
        | HtRange::AddressTranslation
        | HtRange::Configuration
        | HtRange::ExtendedConfiguration
        | HtRange::Reserved => Err(Reason::SpecialAddress(range)),
    }
}

/// All spans of `request`, in order, until its end or the first fault.
///
/// A request without bytes yields its one empty span or its fault. One transaction logs one event:
/// the iterator ends after a fault.
pub fn spans<'a, M: PhysMemory + ?Sized>(
    context: &'a WalkContext,
    entry: DmaEntry,
    request: Request,
    memory: &'a M,
) -> Spans<'a, M> {
    Spans {
        context,
        entry,
        rest: Some(request),
        memory,
    }
}

/// Iterator over the spans of a request, see [`spans`].
#[derive(Debug)]
pub struct Spans<'a, M: ?Sized> {
    context: &'a WalkContext,
    entry: DmaEntry,
    rest: Option<Request>,
    memory: &'a M,
}

impl<M: PhysMemory + ?Sized> Iterator for Spans<'_, M> {
    type Item = Result<Span, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let request = self.rest.take()?;
        let result = translate(self.context, &self.entry, &request, self.memory);
        if let Ok(span) = &result {
            let len = request.len - span.len;
            if len > 0 {
                // The request was found not to overflow, and some of it is left.
                self.rest = Some(Request {
                    iova: request.iova + span.len,
                    len,
                    ..request
                });
            }
        }
        Some(result)
    }
}
