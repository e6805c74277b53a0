//! What a handle knows and how it finds out more.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use amdvi_core::{Fabric, InFlight, Slot, View, dtab};
use amdvi_regs::PhysMemory;
use amdvi_regs::event::{
    DevTabHardwareError, Event, InvalidDeviceRequest, InvalidRequestType, IoPageFault,
};

use crate::cache::{Cache, Kind, Meant, Pasids};
use crate::context::WalkContext;
use crate::count;
use crate::dte::{DmaEntry, read_entry};
use crate::fault::MASTER_ABORT;
use crate::iotlb::Iotlb;
use crate::outcome::{Answer, Cause, Failure, Piece};
use crate::plain::Plain;
use crate::ranges::{AddressClass, classify, classify_untranslated};
use crate::request::{Access, Bypass, Pasid, Permissions, Request, RequestKind, Span, Target};
use crate::translate::{fault, last_address, translate_by};
use crate::walk::{Shared, Walker};

/// Everything of a handle but the requester, so that both can be borrowed.
pub(crate) struct State {
    cache: Cache,
    /// [`InFlight::version`] that `cache` and `dte` are good for.
    version: u64,
    /// The two that it is the sum of.
    generation: u64,
    head: u64,
    /// What the registers and the Device Table Entry say; everything in `cache` follows from it.
    dte: Option<Dte>,
    /// The same of requests that go the short way.
    plain: Plain,
    /// Somebody counts what happens here.
    counting: bool,
    iotlb: Arc<Iotlb>,
    va_bits: u8,
}

/// A [`InFlight::version`] that never comes: the counters that it is the sum of start at 0.
const NEVER: u64 = u64::MAX;

/// A snapshot of a Device Table Entry and of the registers around it.
#[derive(Clone, Copy)]
struct Dte {
    context: WalkContext,
    entry: DmaEntry,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("cached_entries", &self.cache.len())
            .finish_non_exhaustive()
    }
}

impl State {
    pub(crate) fn new(iotlb: Arc<Iotlb>, entries: usize, va_bits: u8) -> Self {
        Self {
            cache: Cache::new(entries),
            version: 0,
            generation: 0,
            head: 0,
            dte: None,
            plain: Plain::NOTHING,
            counting: false,
            iotlb,
            va_bits,
        }
    }

    /// The same, knowing nothing.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.iotlb.clone(), self.cache.len(), self.va_bits)
    }

    /// Translates the beginning of an untranslated request.
    #[inline(always)]
    pub(crate) fn resolve<M: PhysMemory + ?Sized>(
        &mut self,
        in_flight: &InFlight<'_>,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        // An access into one block, as nearly all are. Whatever else there is goes the long way: a
        // length of 0, for which the subtraction wraps, or more than the block.
        if in_flight.version() == self.version
            && let Some(hit) = self.cache.get_hot(Kind::of(pasid, access), iova)
            && hit.allows(access.needs())
            && len.wrapping_sub(1) < hit.reach(iova)
        {
            return Ok(Piece {
                gpa: hit.gpa(iova),
                len,
                permissions: hit.permissions(),
            });
        }
        // Not the guard itself: it stays in registers.
        core::hint::cold_path();
        let (fabric, slot) = (in_flight.fabric(), in_flight.slot());
        self.slow(fabric, slot, memory, pasid, iova, len, access)
    }

    /// Everything but a hit of the size that was hit last.
    // Not marked cold: that would have it compiled for size, at half the speed.
    #[inline(never)]
    #[expect(
        clippy::too_many_arguments,
        reason = "in registers on the way to a hit of another size"
    )]
    fn slow<M: PhysMemory + ?Sized>(
        &mut self,
        fabric: &Fabric,
        slot: &Slot,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        self.sync(fabric, slot);
        let needed = access.needs();
        let request = Request {
            device_id: slot.device_id(),
            iova,
            len,
            access,
            kind: RequestKind::Untranslated,
            pasid,
        };
        // A request that overflows fails as a whole, wherever its beginning is.
        let fits = last_address(&request).is_ok();
        let kind = Kind::of(pasid, access);
        if fits && let Some(hit) = self.cache.get(kind, iova, needed) {
            if self.counting
                && let Some(Dte { context, entry }) = &self.dte
            {
                count::cached(fabric, &request, context, entry);
            }
            return Ok(Piece {
                gpa: hit.gpa(iova),
                len: len.min(hit.reach(iova)),
                permissions: hit.permissions(),
            });
        }
        // Who counts wants every look-up of the long way counted.
        if fits
            && pasid.is_none()
            && !self.counting
            && let Some(page) = self.plain.walk(memory, iova, needed)
        {
            self.cache
                .put(kind, iova, page.shift, page.gpa, page.permissions);
            return Ok(Piece {
                gpa: page.gpa(iova),
                len: len.min(page.reach(iova)),
                permissions: page.permissions,
            });
        }
        let (dte, span) = self.ask(fabric, memory, &request, fits)?;
        keep(&mut self.cache, &dte, pasid, kind, &span);
        Ok(Piece {
            gpa: span.gpa,
            len: len.min(span.len),
            permissions: span.permissions,
        })
    }

    /// Asks the shared IOTLB and the tables. The span is as long as there is, whatever the request's
    /// length.
    #[inline(always)]
    fn ask<M: PhysMemory + ?Sized>(
        &mut self,
        fabric: &Fabric,
        memory: &M,
        request: &Request,
        fits: bool,
    ) -> Result<(Dte, Span), Box<Failure>> {
        let dte_was_known = self.dte.is_some();
        let dte = match self.dte {
            Some(dte) => dte,
            None => match read_dte(&fabric.view, memory, request, self.va_bits) {
                Ok(dte) => {
                    self.plain = Plain::new(&dte.context, &dte.entry);
                    *self.dte.insert(dte)
                }
                Err(failure) => {
                    if self.counting {
                        count::without_dte(fabric, request);
                    }
                    return Err(failure);
                }
            },
        };
        // Ask for as much as there is, to see how far the answer reaches.
        let whole = Request {
            len: if fits {
                (u64::MAX - request.iova).max(request.len).max(1)
            } else {
                request.len
            },
            ..*request
        };
        let (iotlb, head) = (&self.iotlb, self.head);
        let journal = &fabric.journal;
        let shared = Shared {
            iotlb,
            journal,
            head,
        };
        let mut walker = Walker::new(memory, Some(shared));
        let result = translate_by(&dte.context, &dte.entry, &whole, &mut walker);
        if self.counting {
            count::asked(
                fabric,
                request,
                (&dte.context, &dte.entry),
                dte_was_known,
                &walker.tally,
                result.as_ref().map_err(|stop| stop.reason),
            );
        }
        match result {
            Ok(span) => Ok((dte, span)),
            Err(stop) => {
                let fault = fault(&dte.context, &dte.entry, request, stop);
                Err(Box::new(Failure {
                    cause: Cause::Translation(stop.reason),
                    event: fault.event,
                    suppress_after_first: fault.suppress_after_first,
                }))
            }
        }
    }

    /// Checks a request with a translated address.
    pub(crate) fn translated<M: PhysMemory + ?Sized>(
        &mut self,
        in_flight: &InFlight<'_>,
        memory: &M,
        pasid: Option<Pasid>,
        gpa: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        let (fabric, slot) = (in_flight.fabric(), in_flight.slot());
        self.sync(fabric, slot);
        let request = Request {
            device_id: slot.device_id(),
            iova: gpa,
            len,
            access,
            kind: RequestKind::Translated,
            pasid,
        };
        let fits = last_address(&request).is_ok();
        let (_, span) = self.ask(fabric, memory, &request, fits)?;
        Ok(Piece {
            gpa: span.gpa,
            len: len.min(span.len),
            permissions: span.permissions,
        })
    }

    /// Answers a translation request.
    pub(crate) fn answer<M: PhysMemory + ?Sized>(
        &mut self,
        in_flight: &InFlight<'_>,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Answer, Box<Failure>> {
        let (fabric, slot) = (in_flight.fabric(), in_flight.slot());
        self.sync(fabric, slot);
        let request = Request {
            device_id: slot.device_id(),
            iova,
            len: 1,
            access,
            kind: RequestKind::TranslationRequest,
            pasid,
        };
        let privileged = !request.is_user();
        match self.ask(fabric, memory, &request, true) {
            Ok((dte, span)) => {
                let block = block(&dte, pasid, &span).unwrap_or(Block {
                    shift: 12,
                    of: None,
                });
                let offset_mask = (1 << block.shift) - 1;
                let (leaf, guest) = match span.target {
                    Target::Page(leaf) => (Some(leaf), leaf.guest),
                    Target::Identity(_) => (None, None),
                };
                let permissions = span.permissions;
                Ok(Answer {
                    iova: iova & !offset_mask,
                    gpa: span.gpa & !offset_mask,
                    shift: block.shift,
                    permissions,
                    execute: request.executes()
                        && permissions.contains(Permissions::READ)
                        && guest.is_some_and(|guest| guest.execute),
                    privileged,
                    untranslated_only: leaf.is_some_and(|leaf| leaf.untranslated_only),
                })
            }
            Err(failure) => match failure.cause {
                Cause::Translation(reason) if reason.is_page_fault() => Ok(Answer {
                    iova: iova & !0xfff,
                    gpa: 0,
                    shift: 12,
                    permissions: Permissions::empty(),
                    execute: false,
                    privileged,
                    untranslated_only: false,
                }),
                _ => Err(failure),
            },
        }
    }

    /// Drops what was invalidated since the last operation.
    fn sync(&mut self, fabric: &Fabric, slot: &Slot) {
        let generation = fabric.generation(slot);
        let journal = &fabric.journal;
        let head = journal.head();
        if generation != self.generation {
            self.dte = None;
            self.plain = Plain::NOTHING;
            self.cache.clear();
        } else if head != self.head
            && let Some(dte) = self.dte
        {
            let domain = dte.entry.q1.domain_id();
            // GIoV makes a request without a PASID one of PASID 0.
            let giov = dte.context.uses_guest_tables(dte.entry.q0) && dte.entry.q0.giov();
            let cache = &mut self.cache;
            // Dropping too much is never wrong, and bounds what one operation does here.
            let mut budget = 2 * cache.len();
            let lost = journal.any_since(self.head, head, |invalidation| {
                if invalidation.domain.is_some_and(|its| its != domain) {
                    return false;
                }
                let steps = match invalidation.pasid {
                    None if giov => {
                        cache.clear();
                        1
                    }
                    None => cache.invalidate(
                        invalidation.range,
                        Meant {
                            plain: true,
                            pasids: Pasids::All,
                        },
                    ),
                    Some(pasid) => cache.invalidate(
                        invalidation.range,
                        Meant {
                            plain: giov && pasid == 0,
                            pasids: Pasids::One(pasid),
                        },
                    ),
                };
                budget = budget.saturating_sub(steps);
                budget == 0
            });
            if lost {
                cache.clear();
            }
        }
        self.generation = generation;
        self.head = head;
        self.counting = fabric.view.counters.memory();
        self.version = if self.counting {
            NEVER
        } else {
            generation.wrapping_add(head)
        };
    }
}

/// A naturally aligned block in which every address is treated like one of them.
#[derive(Clone, Copy)]
struct Block {
    /// log2 of its size.
    shift: u8,
    /// First and last IOVA of the page that it is only a part of.
    of: Option<(u64, u64)>,
}

/// The largest block around the span's first byte; `None` if there is none of a page's size.
#[inline(always)]
fn block(dte: &Dte, pasid: Option<Pasid>, span: &Span) -> Option<Block> {
    let iova = span.iova;
    // As `WalkContext` and `classify` say: without a DTE only the MSI window is special.
    let class_of = |address| {
        if !dte.context.iommu_enabled || !dte.entry.q0.v() {
            classify_untranslated(address)
        } else if pasid.is_some() {
            (AddressClass::Memory, u64::MAX)
        } else {
            classify(&dte.context, dte.entry.q1.ex(), address)
        }
    };
    let largest = match span.target {
        Target::Page(leaf) => leaf.shift,
        Target::Identity(_) => 63,
    };
    let (class, _) = class_of(iova);
    if !matches!(class, AddressClass::Memory | AddressClass::Excluded) {
        return None;
    }
    // What was asked for reaches as far as there is.
    let last = iova + (span.len - 1);
    // A page of four KiB at least: every boundary is a multiple of it.
    for shift in (12..=largest).rev() {
        let offset_mask = (1u64 << shift) - 1;
        let first = iova & !offset_mask;
        if iova | offset_mask > last {
            continue;
        }
        let (first_class, end) = class_of(first);
        if first_class == class && end >= iova {
            let of = match span.target {
                Target::Page(leaf) => {
                    // What the guest invalidates is its page, whatever the host's are.
                    let whole = leaf.guest.map_or(leaf.shift, |guest| guest.shift);
                    let offset_mask = (1u64 << whole) - 1;
                    (shift < whole).then_some((iova & !offset_mask, iova | offset_mask))
                }
                Target::Identity(_) => None,
            };
            return Some(Block { shift, of });
        }
    }
    None
}

/// Keeps the largest block around the span's first byte.
#[inline(always)]
fn keep(cache: &mut Cache, dte: &Dte, pasid: Option<Pasid>, kind: Kind, span: &Span) {
    if let Target::Identity(Bypass::Forwarded | Bypass::PreTranslated) = span.target {
        // It depends on the kind of access.
        return;
    }
    let Some(block) = block(dte, pasid, span) else {
        return;
    };
    let first = span.iova & !((1u64 << block.shift) - 1);
    let gpa = span.gpa.wrapping_sub(span.iova - first);
    cache.put(kind, span.iova, block.shift, gpa, span.permissions);
    if let Some((first, last)) = block.of {
        cache.is_part_of(first, last);
    }
}

/// Finds and reads the DTE, both words at once.
fn read_dte<M: PhysMemory + ?Sized>(
    view: &View,
    memory: &M,
    request: &Request,
    va_bits: u8,
) -> Result<Dte, Box<Failure>> {
    let context = WalkContext::of_view(view, va_bits);
    if !context.iommu_enabled {
        return Ok(Dte {
            context,
            entry: DmaEntry::default(),
        });
    }
    let device_id = request.device_id;
    let gpa = dtab::locate(view, device_id)
        .map_err(|_| failure(Cause::DeviceIdOutOfRange(device_id), out_of_range(request)))?;
    let unreadable = |gpa: u64| {
        let event = DevTabHardwareError::new()
            .with_device_id(device_id.0)
            .with_rw(request.access.writes())
            .with_tr(request.kind == RequestKind::TranslationRequest)
            .with_kind(MASTER_ABORT)
            .with_address_16(gpa >> 4);
        failure(Cause::DteUnreadable(gpa), event.into())
    };
    let entry = read_entry(&context, memory, gpa).map_err(|error| unreadable(error.gpa))?;
    Ok(Dte { context, entry })
}

fn failure(cause: Cause, event: Event) -> Box<Failure> {
    Box::new(Failure {
        cause,
        event: Some(event),
        suppress_after_first: false,
    })
}

/// The event of a DeviceID behind the end of its device table.
fn out_of_range(request: &Request) -> Event {
    let device_id = request.device_id.0;
    let pasid = request.pasid.map(Pasid::value);
    let (high, low) = pasid.map_or((0, 0), |pasid| ((pasid >> 16) as u8, pasid as u16));
    let us = pasid.is_some() && request.is_user();
    if request.kind == RequestKind::TranslationRequest {
        let (tr, kind) = InvalidRequestType::TranslationDeviceIdOutOfRange.bits();
        return InvalidDeviceRequest::new()
            .with_device_id(device_id)
            .with_pasid_19_16(high)
            .with_pasid_15_0(low)
            .with_gn(pasid.is_some())
            .with_us(us)
            .with_tr(tr)
            .with_kind(kind)
            .with_address(request.iova)
            .into();
    }
    IoPageFault::new()
        .with_device_id(device_id)
        .with_pasid_19_16(high)
        .with_pasid_domain_id(low)
        .with_gn(pasid.is_some())
        .with_nx(request.executes())
        .with_us(us)
        .with_rw(request.access.writes())
        .with_address(request.iova)
        .into()
}
