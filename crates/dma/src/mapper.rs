//! A requester's way through DMA remapping.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ops::Deref;

use amdvi_core::{Fabric, InFlight, Requester, Slot, View, dtab};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::event::{DevTabHardwareError, Event, IoPageFault};
use amdvi_regs::{DeviceId, PhysMemory};

use crate::cache::Cache;
use crate::context::WalkContext;
use crate::fault::{MASTER_ABORT, Reason};
use crate::iotlb::{Iotlb, Key};
use crate::ranges::{AddressClass, classify, classify_untranslated};
use crate::request::{Access, Bypass, Permissions, Request, RequestKind, Span, Target};
use crate::translate::{fault, last_address, translate_by};
use crate::walk::walk;

/// The DMA side of one requester handle: one function and one thread.
///
/// Looks in its own cache, then in the shared IOTLB, then in the guest's tables. What it answers is
/// as old as the last invalidation that it could know of when the operation began, never older.
pub struct Mapper {
    requester: Requester,
    state: State,
}

/// Everything but the requester, so that both can be borrowed.
struct State {
    cache: Cache,
    /// [`InFlight::version`] that `cache` and `dte` are good for.
    version: u64,
    /// The two that it is the sum of.
    generation: u64,
    head: u64,
    /// What the registers and the Device Table Entry say; everything in `cache` follows from it.
    dte: Option<Dte>,
    iotlb: Arc<Iotlb>,
    va_bits: u8,
}

/// A snapshot of a Device Table Entry and of the registers around it.
#[derive(Clone, Copy)]
struct Dte {
    context: WalkContext,
    q0: DteQ0,
    q1: DteQ1,
}

/// The beginning of a DMA request, translated: `len` bytes at `gpa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The guest physical address of the first byte.
    pub gpa: u64,
    /// How many bytes from there on belong to the request and are contiguous. Up to the end of the
    /// request or of the page; a page that contains addresses which are no DMA (the MSI window) or
    /// lie beyond the IOMMU's width may take several pieces.
    pub len: u64,
    /// What the device may do here, at least what it asked for.
    pub permissions: Permissions,
}

/// A [`Piece`], and the guard that keeps COMPLETION_WAIT waiting while memory is accessed.
#[derive(Debug)]
pub struct Mapped<'a> {
    piece: Piece,
    _in_flight: InFlight<'a>,
}

impl Deref for Mapped<'_> {
    type Target = Piece;

    #[inline(always)]
    fn deref(&self) -> &Piece {
        &self.piece
    }
}

/// Why a DMA request is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The DeviceID lies behind the end of its device table.
    DeviceIdOutOfRange(DeviceId),
    /// Nothing answers where the DTE should be.
    DteUnreadable(u64),
    /// The translation failed.
    Translation(Reason),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceIdOutOfRange(device_id) => {
                write!(f, "DeviceID {device_id} is outside the device table")
            }
            Self::DteUnreadable(gpa) => write!(f, "no memory behind the DTE at GPA {gpa:#x}"),
            Self::Translation(reason) => reason.fmt(f),
        }
    }
}

impl core::error::Error for Cause {}

/// A DMA request that must not happen, and what to log of it.
///
/// Log while this lives: after a COMPLETION_WAIT no event of an older translation appears.
#[derive(Debug)]
pub struct Failed<'a> {
    failure: Box<Failure>,
    in_flight: InFlight<'a>,
}

/// Why a DMA request fails, and its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// What to log; `None` where the specification logs nothing.
    pub event: Option<Event>,
    /// Only the first event of this device is logged (DTE.SE), see
    /// [`Fault::suppress_after_first`](crate::Fault::suppress_after_first).
    pub suppress_after_first: bool,
}

impl Failed<'_> {
    /// Whose request it was.
    pub fn device_id(&self) -> DeviceId {
        self.in_flight.device_id()
    }
}

impl Deref for Failed<'_> {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.failure
    }
}

impl Mapper {
    /// Blocks that a handle keeps by default: 64 KiB, enough for 16 MiB in pages of 4 KiB.
    pub const DEFAULT_ENTRIES: usize = 4096;

    /// A handle for `device_id` that keeps up to `entries` blocks of its own (16 bytes each, rounded
    /// up to a power of two between 16 and 2^24). `va_bits` is the address width that the IVRS
    /// states, see [`WalkContext::va_bits`].
    ///
    /// Its [`slot`](Self::slot) must be known to whoever invalidates and drains.
    pub fn new(
        fabric: Arc<Fabric>,
        iotlb: Arc<Iotlb>,
        device_id: DeviceId,
        entries: usize,
        va_bits: u8,
    ) -> Self {
        Self {
            requester: Requester::new(fabric, device_id),
            state: State {
                cache: Cache::new(entries),
                version: 0,
                generation: 0,
                head: 0,
                dte: None,
                iotlb,
                va_bits,
            },
        }
    }

    /// The shared part of the handle.
    pub fn slot(&self) -> &Arc<Slot> {
        self.requester.slot()
    }

    /// Translates the beginning of an untranslated DMA request of `len` bytes at `iova`.
    ///
    /// Ask again for what lies behind the result ([`pieces`](Self::pieces) does that). A length of 0 is
    /// checked like one byte. A hit takes no lock, writes nothing shared and allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the access must not happen.
    #[inline(always)]
    pub fn translate<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Failed<'_>> {
        let in_flight = self.requester.enter();
        match self.state.resolve(&in_flight, memory, iova, len, access) {
            Ok(piece) => Ok(Mapped {
                piece,
                _in_flight: in_flight,
            }),
            Err(failure) => Err(Failed { failure, in_flight }),
        }
    }

    /// Begins an operation of several translations.
    pub fn enter(&mut self) -> Operation<'_> {
        Operation {
            in_flight: self.requester.enter(),
            state: &mut self.state,
        }
    }

    /// Hands `len` bytes at `iova` to `access_piece`, translated piece by piece, in order.
    ///
    /// Stops at the first failure, so one transaction has at most one event; what was handed out
    /// before has happened, as on a bus. A request that reaches beyond the address space fails before
    /// anything is handed out. The whole transaction is one operation that a COMPLETION_WAIT waits
    /// for, but each piece is translated by what is known when its turn comes.
    ///
    /// # Errors
    ///
    /// The [`Failed`] at which it stopped.
    pub fn pieces<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        mut iova: u64,
        mut len: u64,
        access: Access,
        mut access_piece: impl FnMut(&Piece),
    ) -> Result<(), Failed<'_>> {
        let in_flight = self.requester.enter();
        loop {
            match self.state.resolve(&in_flight, memory, iova, len, access) {
                Ok(piece) => {
                    access_piece(&piece);
                    len -= piece.len;
                    if len == 0 {
                        return Ok(());
                    }
                    // The first piece was refused unless all of them fit into the address space.
                    iova += piece.len;
                }
                Err(failure) => return Err(Failed { failure, in_flight }),
            }
        }
    }
}

/// Several translations of one handle under one guard: an operation of a device that is more than one
/// transaction, such as the handling of a queue.
///
/// COMPLETION_WAIT waits for all of it, so it must be short. Each translation is as new as the
/// invalidations that are known when it is asked for.
#[derive(Debug)]
pub struct Operation<'a> {
    in_flight: InFlight<'a>,
    state: &'a mut State,
}

impl Operation<'_> {
    /// As [`Mapper::translate`]; the memory may be accessed for as long as the operation lives.
    ///
    /// # Errors
    ///
    /// [`Failure`] if the access must not happen. Log its event before the operation ends.
    #[inline]
    pub fn translate<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        self.state
            .resolve(&self.in_flight, memory, iova, len, access)
    }

    /// The DeviceID that the requests carry.
    pub fn device_id(&self) -> DeviceId {
        self.in_flight.device_id()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("cached_entries", &self.cache.len())
            .finish_non_exhaustive()
    }
}

impl State {
    #[inline(always)]
    fn resolve<M: PhysMemory + ?Sized>(
        &mut self,
        in_flight: &InFlight<'_>,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        // An access into one block, as nearly all are. Whatever else there is goes the long way: a
        // length of 0, for which the subtraction wraps, or more than the block.
        if in_flight.version() == self.version
            && let Some(hit) = self.cache.get_hot(iova)
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
        self.slow(fabric, slot, memory, iova, len, access)
    }

    /// Everything but a hit of the size that was hit last.
    // Not marked cold: that would have it compiled for size, at half the speed.
    #[inline(never)]
    fn slow<M: PhysMemory + ?Sized>(
        &mut self,
        fabric: &Fabric,
        slot: &Slot,
        memory: &M,
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
        };
        // A request that overflows fails as a whole, wherever its beginning is.
        let fits = last_address(&request).is_ok();
        if fits && let Some(hit) = self.cache.get(iova, needed) {
            return Ok(Piece {
                gpa: hit.gpa(iova),
                len: len.min(hit.reach(iova)),
                permissions: hit.permissions(),
            });
        }
        let dte = match &self.dte {
            Some(dte) => dte,
            None => self
                .dte
                .insert(read_dte(&fabric.view, memory, &request, self.va_bits)?),
        };
        // Ask for as much as there is, to see how far the answer reaches.
        let whole = Request {
            len: if fits {
                (u64::MAX - iova).max(len).max(1)
            } else {
                len
            },
            ..request
        };
        let (iotlb, head) = (&self.iotlb, self.head);
        let journal = &fabric.journal;
        let result = translate_by(
            &dte.context,
            dte.q0,
            dte.q1,
            &whole,
            |table, iova, needed| {
                let key = Key::new(table, None);
                if let Some(walked) = iotlb.lookup(journal, head, &key, iova, needed) {
                    return Ok(walked);
                }
                let walked = walk(memory, table, iova, needed)?;
                iotlb.fill(head, &key, &walked);
                Ok(walked)
            },
        );
        match result {
            Ok(span) => {
                keep(&mut self.cache, dte, &span);
                Ok(Piece {
                    gpa: span.gpa,
                    len: len.min(span.len),
                    permissions: span.permissions,
                })
            }
            Err(reason) => {
                let fault = fault(&dte.context, dte.q0, dte.q1, &request, reason);
                Err(Box::new(Failure {
                    cause: Cause::Translation(reason),
                    event: fault.event,
                    suppress_after_first: fault.suppress_after_first,
                }))
            }
        }
    }

    /// Drops what was invalidated since the last operation.
    fn sync(&mut self, fabric: &Fabric, slot: &Slot) {
        let generation = fabric.generation(slot);
        let journal = &fabric.journal;
        let head = journal.head();
        if generation != self.generation {
            self.dte = None;
            self.cache.clear();
        } else if head != self.head
            && let Some(dte) = self.dte
        {
            let domain = dte.q1.domain_id();
            let cache = &mut self.cache;
            // Dropping too much is never wrong, and bounds what one operation does here.
            let mut budget = 2 * cache.len();
            let lost = journal.any_since(self.head, head, |invalidation| {
                let range = invalidation.range;
                if !invalidation.covers(domain, None, range.first(), range.last()) {
                    return false;
                }
                let steps = cache.invalidate(invalidation);
                budget = budget.saturating_sub(steps);
                budget == 0
            });
            if lost {
                cache.clear();
            }
        }
        self.generation = generation;
        self.head = head;
        self.version = generation.wrapping_add(head);
    }
}

/// Keeps the largest naturally aligned block around the span's first byte in which every address
/// is treated like it.
#[inline(always)]
fn keep(cache: &mut Cache, dte: &Dte, span: &Span) {
    let iova = span.iova;
    // As `WalkContext` and `classify` say: without a DTE only the MSI window is special.
    let class_of = |address| {
        if dte.context.iommu_enabled && dte.q0.v() {
            classify(&dte.context, dte.q1.ex(), address)
        } else {
            classify_untranslated(address)
        }
    };
    let largest = match span.target {
        Target::Page(leaf) => leaf.shift,
        // It depends on the kind of access.
        Target::Identity(Bypass::Forwarded | Bypass::PreTranslated) => return,
        Target::Identity(_) => 63,
    };
    let (class, _) = class_of(iova);
    if !matches!(class, AddressClass::Memory | AddressClass::Excluded) {
        return;
    }
    let last = iova + (span.len - 1);
    for shift in (12..=largest).rev() {
        let offset_mask = (1u64 << shift) - 1;
        let first = iova & !offset_mask;
        if iova | offset_mask > last {
            continue;
        }
        let (first_class, end) = class_of(first);
        if first_class == class && end >= iova {
            let gpa = span.gpa.wrapping_sub(iova - first);
            cache.put(iova, shift, gpa, span.permissions);
            if let Target::Page(leaf) = span.target
                && shift < leaf.shift
            {
                cache.is_part_of(leaf.iova, leaf.last());
            }
            return;
        }
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
            q0: DteQ0::new(),
            q1: DteQ1::new(),
        });
    }
    let device_id = request.device_id;
    let rw = request.access.writes();
    let failure = |cause, event: Event| {
        Box::new(Failure {
            cause,
            event: Some(event),
            suppress_after_first: false,
        })
    };
    let gpa = dtab::locate(view, device_id).map_err(|_| {
        let event = IoPageFault::new()
            .with_device_id(device_id.0)
            .with_rw(rw)
            .with_address(request.iova);
        failure(Cause::DeviceIdOutOfRange(device_id), event.into())
    })?;
    let [q0, q1] = memory.load_pair(gpa).map_err(|_| {
        let event = DevTabHardwareError::new()
            .with_device_id(device_id.0)
            .with_rw(rw)
            .with_kind(MASTER_ABORT)
            .with_address_16(gpa >> 4);
        failure(Cause::DteUnreadable(gpa), event.into())
    })?;
    Ok(Dte {
        context,
        q0: DteQ0::from_bits(q0),
        q1: DteQ1::from_bits(q1),
    })
}

impl Clone for Mapper {
    /// Another handle for the same function, with a slot and an empty cache of its own.
    fn clone(&self) -> Self {
        let state = &self.state;
        Self {
            requester: self.requester.clone(),
            state: State {
                cache: Cache::new(state.cache.len()),
                version: 0,
                generation: 0,
                head: 0,
                dte: None,
                iotlb: state.iotlb.clone(),
                va_bits: state.va_bits,
            },
        }
    }
}

impl fmt::Debug for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapper")
            .field("slot", self.slot())
            .field("cached_entries", &self.state.cache.len())
            .finish_non_exhaustive()
    }
}
