//! What a requester's tables map now: the ranges, in order, with a bound on the work.
//!
//! For whoever keeps a copy of the mappings, such as a VFIO container that follows the guest. It asks
//! [`translate`] page by page and skips what a fault says is absent, so that no rule of translation
//! stands here a second time. The words on the way down are kept, so that each is loaded once and a
//! leaf costs one load.

use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use amdvi_core::{View, dtab};
use amdvi_regs::dte::DteQ0;
use amdvi_regs::pte::{HostPte, level_shift};
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};

use crate::context::WalkContext;
use crate::dte::{DmaEntry, read_entry};
use crate::fault::{Fault, Reason, Stage};
use crate::guest::MAX_LOADS;
use crate::ranges::{classify, classify_untranslated};
use crate::request::{Access, Bypass, Permissions, Request, RequestKind, Target};
use crate::translate::translate;

/// The DMA address space of one requester without PASID, as the registers and its Device Table Entry
/// defined it when they were [read](Self::read).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    device_id: DeviceId,
    context: WalkContext,
    /// `None` if there is none: everything is blocked.
    dte: Option<DmaEntry>,
}

/// A contiguous range of IOVAs that a requester may access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first IOVA.
    pub iova: u64,
    /// The guest physical address behind it.
    pub gpa: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// What the requester may do: never nothing.
    pub permissions: Permissions,
}

impl Mapping {
    /// The last IOVA.
    pub const fn last(&self) -> u64 {
        self.iova + (self.len - 1)
    }

    /// Whether `next` goes on where this ends, in IOVAs, in memory and with the same permissions.
    fn continues_with(&self, next: &Self) -> bool {
        self.iova.checked_add(self.len) == Some(next.iova)
            && self.gpa.checked_add(self.len) == Some(next.gpa)
            && self.permissions == next.permissions
    }
}

impl AddressSpace {
    /// Reads the DTE of `device_id`. A DeviceID outside the device table, or a DTE that can't be read,
    /// gives a space without mappings. `va_bits` as in [`WalkContext::va_bits`].
    pub fn read<M: PhysMemory + ?Sized>(
        view: &View,
        memory: &M,
        device_id: DeviceId,
        va_bits: u8,
    ) -> Self {
        let mut context = WalkContext::of_view(view, va_bits);
        // To look is no access: nothing is marked.
        context.guest.accessed = false;
        context.guest.dirty = false;
        let dte = if context.iommu_enabled {
            dtab::locate(view, device_id)
                .ok()
                .and_then(|gpa| read_entry(&context, memory, gpa).ok())
                .map(DmaEntry::without_marks)
        } else {
            Some(DmaEntry::default())
        };
        Self {
            device_id,
            context,
            dte,
        }
    }

    /// Whose space it is.
    pub const fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// The domain whose invalidations concern it; `None` if nothing in it comes from a table.
    pub fn domain(&self) -> Option<u16> {
        let DmaEntry { q0, q1, .. } = self.dte?;
        let tables = q0.mode() != 0 || self.uses_guest_tables();
        let translated = self.context.iommu_enabled && q0.v() && q0.tv() && tables;
        translated.then(|| q1.domain_id())
    }

    /// Whether an invalidation of a range of the [`domain`](Self::domain) may concern any address of
    /// the space, because the guest's tables stand between the two: a range of the host's table is
    /// one of guest physical addresses then.
    pub fn is_nested(&self) -> bool {
        self.dte
            .is_some_and(|DmaEntry { q0, .. }| self.context.uses_guest_tables(q0) && q0.giov())
    }

    /// Whether its addresses are those of PASID 0 (DTE.GIoV), so that they go through a guest table. Then
    /// every invalidation of its domain concerns it: the range of one of the host's table is in other
    /// addresses than its own.
    pub fn uses_guest_tables(&self) -> bool {
        self.dte.is_some_and(|entry| {
            self.context.iommu_enabled
                && self.context.uses_guest_tables(entry.q0)
                && entry.q0.giov()
        })
    }

    /// What may be accessed in `range`, in ascending order, one item for each page or range without
    /// a page table; [`Mappings::merged`] joins neighbours.
    ///
    /// The interrupt window and the HyperTransport ranges whose requests are forwarded are no memory,
    /// so they are never among it; what is not translated is: a space of an IOMMU that is off, of a
    /// DTE with V=0 or of Mode 0 is a few huge ranges, and whoever maps them intersects them with the
    /// RAM that exists. The tables are read while the iterator runs, each word once at the most; a
    /// guest that changes them meanwhile is asked for an invalidation in any case.
    ///
    /// At most `max_loads` loads, or steps over ranges without one, are made before the iterator
    /// stops: tables of 4 KiB that point at each other can pretend 2^52 pages. Then
    /// [`Mappings::rest`] says where to go on.
    pub fn mappings<'m, M: PhysMemory + ?Sized>(
        &self,
        memory: &'m M,
        range: RangeInclusive<u64>,
        max_loads: u64,
    ) -> Mappings<'m, M> {
        let (next, last) = range.into_inner();
        Mappings {
            space: *self,
            path: Path::new(memory),
            next: (next <= last && self.dte.is_some()).then_some(next),
            last,
            budget: max_loads,
            merge: false,
            pending: None,
        }
    }
}

/// Iterator over what an [`AddressSpace`] maps.
#[derive(Debug)]
pub struct Mappings<'m, M: ?Sized> {
    space: AddressSpace,
    path: Path<'m, M>,
    /// The first address that was not looked at.
    next: Option<u64>,
    last: u64,
    budget: u64,
    merge: bool,
    pending: Option<Mapping>,
}

/// What stands at an address, and the last address up to which that is so.
struct Stretch {
    mapping: Option<(u64, Permissions)>,
    last: u64,
}

impl<M: PhysMemory + ?Sized> Mappings<'_, M> {
    /// Joins what is contiguous in IOVAs and in memory and has the same permissions.
    #[must_use]
    pub fn merged(mut self) -> Self {
        self.merge = true;
        self
    }

    /// What was not looked at when the iterator ended, because of the bound; `None` if all was. A
    /// merged range may go on there.
    pub fn rest(&self) -> Option<RangeInclusive<u64>> {
        self.next.map(|next| next..=self.last)
    }

    /// How many loads of guest memory were made.
    pub fn loads(&self) -> u64 {
        self.path.loads.load(Ordering::Relaxed)
    }

    /// Looks at one address.
    fn look(&self, entry: &DmaEntry, iova: u64) -> Stretch {
        let DmaEntry { q0, q1, .. } = *entry;
        let AddressSpace {
            device_id, context, ..
        } = &self.space;
        let (_, end_of_class) = if context.iommu_enabled && q0.v() {
            classify(context, q1.ex(), iova)
        } else {
            classify_untranslated(iova)
        };
        let mut last = end_of_class.min(self.last);
        for access in [Access::Read, Access::Write] {
            let request = Request {
                device_id: *device_id,
                iova,
                len: (last - iova).saturating_add(1),
                access,
                kind: RequestKind::Untranslated,
                pasid: None,
            };
            self.path.start();
            match translate(context, entry, &request, &self.path) {
                // It depends on the request, and what answers it is no memory.
                Ok(span) if span.target == Target::Identity(Bypass::Forwarded) => {}
                Ok(span) => {
                    return Stretch {
                        mapping: Some((span.gpa, span.permissions)),
                        last: last.min(iova + (span.len - 1)),
                    };
                }
                Err(fault) => {
                    last = last.min(self.end_of(&fault, q0, iova));
                    if !depends_on_access(fault.reason) {
                        break;
                    }
                }
            }
        }
        Stretch {
            mapping: None,
            last,
        }
    }

    /// The last address for which a walk of `iova` that has failed would fail likewise.
    fn end_of(&self, fault: &Fault, q0: DteQ0, iova: u64) -> u64 {
        let level = match fault.reason {
            // Those levels are not of this address.
            _ if matches!(fault.stage, Stage::Host { .. }) => 1,
            Reason::NotPresent { level }
            | Reason::ReservedEntryBits { level, .. }
            | Reason::NextLevel { level, .. }
            // All addresses of the entry that are higher have one of these bits set as well.
            | Reason::SkippedBits { level, .. }
            | Reason::PageSize { level }
            | Reason::Permission { level: Some(level) } => level,
            Reason::TableUnreadable { .. } if fault.stage == Stage::Request => {
                self.path.level_below(q0)
            }
            Reason::TableUnreadable { .. } | Reason::EntryInMotion { .. } => 1,
            // Below the addresses whose upper bits are all ones.
            Reason::NotCanonical { bits } => return (u64::MAX << (bits - 1)) - 1,
            // Not a matter of tables: as far as the class of addresses goes. A wider address is no
            // better.
            Reason::AddressOverflow
            | Reason::InterruptWindow
            | Reason::InvalidRequest(_)
            | Reason::SpecialAddress(_)
            | Reason::IllegalDte(_)
            | Reason::TranslationNotValid
            | Reason::AddressTooWide { .. }
            | Reason::PasidNotAllowed
            | Reason::PasidTooLarge { .. }
            | Reason::Gcr3NotValid { .. }
            | Reason::Gcr3ReservedBits { .. }
            | Reason::Permission { level: None } => return u64::MAX,
        };
        iova | ((1 << level_shift(level).unwrap_or(12)) - 1)
    }
}

/// Whether another kind of access may have another answer.
const fn depends_on_access(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Permission { .. } | Reason::InvalidRequest(_) | Reason::InterruptWindow
    )
}

impl<M: PhysMemory + ?Sized> Iterator for Mappings<'_, M> {
    type Item = Mapping;

    fn next(&mut self) -> Option<Mapping> {
        let entry = self.space.dte?;
        while let Some(iova) = self.next
            && self.budget > 0
        {
            let before = self.loads();
            let stretch = self.look(&entry, iova);
            self.budget = self.budget.saturating_sub((self.loads() - before).max(1));
            self.next = stretch
                .last
                .checked_add(1)
                .filter(|&next| next <= self.last);
            let Some((gpa, permissions)) = stretch.mapping else {
                continue;
            };
            let found = Mapping {
                iova,
                gpa,
                // No stretch is the whole address space: the interrupt window is in it.
                len: stretch.last - iova + 1,
                permissions,
            };
            if permissions.is_empty() {
                continue;
            }
            if !self.merge {
                return Some(found);
            }
            match &mut self.pending {
                Some(pending) if pending.continues_with(&found) => pending.len += found.len,
                pending => {
                    if let Some(done) = pending.replace(found) {
                        return Some(done);
                    }
                }
            }
        }
        self.pending.take()
    }
}

/// The words of the walk before, so that the next one loads only what differs.
#[derive(Debug)]
struct Path<'m, M: ?Sized> {
    memory: &'m M,
    /// Address and word of the entry at each step down.
    words: [[AtomicU64; 2]; MAX_LOADS],
    /// How many of them there are.
    known: AtomicUsize,
    /// How many the walk in progress has taken.
    taken: AtomicUsize,
    loads: AtomicU64,
}

// The counters are atomics because memory is `Sync`; nobody shares them.
impl<'m, M: PhysMemory + ?Sized> Path<'m, M> {
    fn new(memory: &'m M) -> Self {
        Self {
            memory,
            words: core::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]),
            known: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            loads: AtomicU64::new(0),
        }
    }

    fn start(&self) {
        self.taken.store(0, Ordering::Relaxed);
    }

    /// The level of the entry that the walk did not get: what the one before it points to.
    fn level_below(&self, q0: DteQ0) -> u8 {
        let taken = self.taken.load(Ordering::Relaxed);
        match taken.checked_sub(1).and_then(|n| self.words.get(n)) {
            Some([_, word]) => HostPte::from_bits(word.load(Ordering::Relaxed)).next_level(),
            None => q0.mode(),
        }
    }
}

impl<M: PhysMemory + ?Sized> PhysMemory for Path<'_, M> {
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        let step = self.taken.load(Ordering::Relaxed);
        let place = self.words.get(step);
        if step < self.known.load(Ordering::Relaxed)
            && let Some([address, word]) = place
            && address.load(Ordering::Relaxed) == gpa
        {
            self.taken.store(step + 1, Ordering::Relaxed);
            return Ok(word.load(Ordering::Relaxed));
        }
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.known.store(step, Ordering::Relaxed);
        let loaded = self.memory.load_u64(gpa)?;
        if let Some([address, word]) = place {
            address.store(gpa, Ordering::Relaxed);
            word.store(loaded, Ordering::Relaxed);
            self.known.store(step + 1, Ordering::Relaxed);
            self.taken.store(step + 1, Ordering::Relaxed);
        }
        Ok(loaded)
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        self.memory.load_u32(gpa)
    }

    // To enumerate is to look: nothing is marked as accessed.
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }

    fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }

    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }

    fn compare_exchange_u64(
        &self,
        gpa: u64,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Err(MemoryError { gpa })
    }
}
