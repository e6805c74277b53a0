//! DMA: from an IOVA through the IOMMU to guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use amdvi_device::Endpoint;
use amdvi_dma::{Access, Pasid};
use amdvi_guest::endpoint::dma::{op, reason};
use amdvi_regs::DeviceId;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::tlb::{Tlb, count};
use crate::board::slot::Slot;
use crate::board::socket::Handle;
use crate::ram::Memory;

/// Why a transaction did not happen, or not completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aborted {
    /// The IOMMU aborted it.
    Iommu,
    /// It was translated to an address where there is no memory.
    NoMemory,
    /// Bus Master Enable is 0.
    NoBusMaster,
    /// There is no such page, and nobody made one.
    NoPage,
}

impl Aborted {
    /// The value of a channel's REASON register.
    pub(super) fn reason(self) -> u32 {
        match self {
            Self::Iommu => reason::IOMMU,
            Self::NoMemory => reason::NO_MEMORY,
            Self::NoBusMaster => reason::NO_BUS_MASTER,
            Self::NoPage => reason::NO_PAGE,
        }
    }
}

/// An atomic operation of 4 or 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Atomic {
    /// FETCH_ADD, SWAP or COMPARE_AND_SWAP.
    pub(super) operation: u32,
    pub(super) operand: u64,
    pub(super) expected: u64,
}

impl Atomic {
    /// What takes the place of `old`.
    fn replace(self, old: u64) -> u64 {
        match self.operation {
            op::FETCH_ADD => old.wrapping_add(self.operand),
            op::COMPARE_AND_SWAP if old != self.expected => old,
            _ => self.operand,
        }
    }
}

/// What ends an operation in the background early.
#[derive(Clone, Copy)]
pub(super) struct Interruption<'a> {
    /// It is to end now.
    pub(super) cancel: &'a AtomicBool,
    /// It is to go on later.
    pub(super) suspend: &'a AtomicBool,
}

/// The address space of a request, and whether it may wait for pages.
#[derive(Clone, Copy)]
pub(super) struct AddressSpace<'a> {
    /// The PASID that the requests carry.
    pub(super) pasid: Option<Pasid>,
    /// Where page requests may be made, what ends the wait for their answers.
    pub(super) wait: Option<Interruption<'a>>,
}

impl AddressSpace<'_> {
    /// Requests without PASID that don't wait.
    pub(super) const PLAIN: Self = Self {
        pasid: None,
        wait: None,
    };
}

/// What the queues of a function share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Bus Master Enable.
    pub(super) bus_master: Arc<AtomicBool>,
    pub(super) tlb: Arc<Tlb>,
}

/// Page requests for one access: more would mean that the page goes as soon as it comes.
const MOST_PAGE_REQUESTS: u32 = 16;

/// One queue's way to memory.
pub(super) struct Dma {
    handle: Arc<Handle>,
    memory: Arc<Memory>,
    requester: AtomicU16,
    shared: Shared,
}

impl Dma {
    /// A way of its own for a queue of the function in `slot`.
    pub(super) fn new(slot: &Slot, shared: &Shared) -> Self {
        Self {
            handle: slot.handle(),
            memory: Arc::clone(slot.memory()),
            requester: AtomicU16::new(slot.requester().0),
            shared: shared.clone(),
        }
    }

    /// What the function's queues share.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The function's Bus Master Enable.
    pub(super) fn bus_master(&self) -> bool {
        self.shared.bus_master.load(Ordering::Acquire)
    }

    /// The DeviceID that requests carry.
    pub(super) fn requester(&self) -> DeviceId {
        DeviceId(self.requester.load(Ordering::Acquire))
    }

    /// Lets requests carry another DeviceID from the next transfer on.
    pub(super) fn set_requester(&self, id: DeviceId) {
        self.requester.store(id.0, Ordering::Release);
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Endpoint) -> T) -> T {
        let mut space = self.handle.space();
        let endpoint = space.endpoint();
        // Asked each time: a device that was restored has handed out a new endpoint.
        if endpoint.device_id() != self.requester() {
            endpoint.set_device_id(self.requester());
        }
        use_it(endpoint)
    }

    /// Carries out one transaction: hands its pieces to `each`, with the GPA, where in the
    /// transaction they begin, and their length. `each` says whether there is memory.
    fn transaction(
        &self,
        space: AddressSpace<'_>,
        iova: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(GuestAddress, usize, usize) -> bool,
    ) -> Result<(), Aborted> {
        if !self.bus_master() {
            return Err(Aborted::NoBusMaster);
        }
        if len == 0 {
            return Ok(());
        }
        if self.shared.tlb.enabled().ats {
            return self.by_tlb(space, iova, len, access, each);
        }
        let (mut at, mut memory) = (0, true);
        self.with(|endpoint| {
            endpoint.access_for(space.pasid, iova, len as u64, access, |piece| {
                // No piece is longer than the transaction, which a buffer holds.
                let len = piece.len as usize;
                memory = memory && each(GuestAddress(piece.gpa), at, len);
                at += len;
            })
        })
        .map_err(|_| Aborted::Iommu)?;
        if memory {
            Ok(())
        } else {
            Err(Aborted::NoMemory)
        }
    }

    /// As [`transaction`](Self::transaction), by translations of the function's own.
    fn by_tlb(
        &self,
        space: AddressSpace<'_>,
        iova: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(GuestAddress, usize, usize) -> bool,
    ) -> Result<(), Aborted> {
        let tlb = &self.shared.tlb;
        let (mut at, mut requests) = (0, 0);
        while at < len {
            let here = iova.wrapping_add(at as u64);
            match self.step(space.pasid, here, len - at, access, |gpa, len| {
                each(gpa, at, len)
            }) {
                Ok(done) => at += done,
                Err(Aborted::NoPage) => {
                    let wait = space.wait.filter(|_| tlb.enabled().pri);
                    let wait = wait.ok_or(Aborted::NoPage)?;
                    requests += 1;
                    let made = requests <= MOST_PAGE_REQUESTS
                        && tlb.request_page(
                            |use_it| self.with(|endpoint| use_it(endpoint)),
                            space.pasid,
                            here,
                            access,
                            wait,
                        );
                    if !made {
                        return Err(Aborted::NoPage);
                    }
                }
                Err(aborted) => return Err(aborted),
            }
        }
        Ok(())
    }

    /// Carries out the beginning of a transaction by the TLB; how many bytes that was.
    fn step(
        &self,
        pasid: Option<Pasid>,
        iova: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(GuestAddress, usize) -> bool,
    ) -> Result<usize, Aborted> {
        let tlb = &self.shared.tlb;
        self.with(|endpoint| {
            // Begun before the TLB is looked at, so that an invalidation waits for what follows.
            let mut operation = endpoint.begin();
            let entry = match tlb.find(pasid, iova, access) {
                Some(entry) => Some(entry),
                None => {
                    count(&tlb.counters.translation_requests);
                    let answer = operation
                        .translation_request(pasid, iova, access)
                        .map_err(|_| Aborted::Iommu)?;
                    let executable = answer.execute || !pasid.is_some_and(Pasid::execute);
                    if answer.untranslated_only {
                        None
                    } else if answer.permissions.contains(access.needs()) && executable {
                        Some(tlb.insert(pasid, &answer))
                    } else {
                        return Err(Aborted::NoPage);
                    }
                }
            };
            let len = len as u64;
            let piece = match entry {
                Some(entry) => {
                    let (gpa, room) = entry.gpa(iova);
                    operation.translated(pasid, gpa, len.min(room), access)
                }
                None => operation.translate_for(pasid, iova, len, access),
            }
            .map_err(|_| Aborted::Iommu)?;
            // At most `len`, which was a usize.
            let done = piece.len as usize;
            if each(GuestAddress(piece.gpa), done) {
                Ok(done)
            } else {
                Err(Aborted::NoMemory)
            }
        })
    }

    /// Reads memory at `iova`. What came before an abort has happened, as on a real bus.
    pub(super) fn read(
        &self,
        space: AddressSpace<'_>,
        iova: u64,
        buffer: &mut [u8],
    ) -> Result<(), Aborted> {
        self.transaction(space, iova, buffer.len(), Access::Read, |gpa, at, len| {
            self.memory
                .read_slice(&mut buffer[at..at + len], gpa)
                .is_ok()
        })
    }

    /// Writes memory at `iova`. What came before an abort has happened, as on a real bus.
    pub(super) fn write(
        &self,
        space: AddressSpace<'_>,
        iova: u64,
        data: &[u8],
    ) -> Result<(), Aborted> {
        self.transaction(space, iova, data.len(), Access::Write, |gpa, at, len| {
            self.memory.write_slice(&data[at..at + len], gpa).is_ok()
        })
    }

    /// Carries out an atomic operation on the `len` bytes, 4 or 8, at `iova`, a multiple of it.
    /// Returns what it found there.
    pub(super) fn atomic(
        &self,
        space: AddressSpace<'_>,
        iova: u64,
        len: usize,
        atomic: Atomic,
    ) -> Result<u64, Aborted> {
        let mut found = 0;
        self.transaction(space, iova, len, Access::Atomic, |gpa, _, len| {
            match self.exchange(gpa, len, atomic) {
                Some(old) => {
                    found = old;
                    true
                }
                None => false,
            }
        })?;
        Ok(found)
    }

    fn exchange(&self, gpa: GuestAddress, len: usize, atomic: Atomic) -> Option<u64> {
        let slice = GuestMemoryBackend::get_slice(&*self.memory, gpa, len).ok()?;
        let order = Ordering::SeqCst;
        // Guest memory is little-endian.
        if len == 8 {
            let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
            let new = |old| Some(atomic.replace(u64::from_le(old)).to_le());
            let old = word.fetch_update(order, order, new).ok()?;
            // An atomic reference is outside the bitmap's knowledge.
            slice.bitmap().mark_dirty(0, len);
            Some(u64::from_le(old))
        } else {
            let word = slice.get_atomic_ref::<AtomicU32>(0).ok()?;
            let atomic = Atomic {
                expected: atomic.expected & 0xffff_ffff,
                ..atomic
            };
            let new = |old| {
                let old = u64::from(u32::from_le(old));
                // The lower half is the number.
                Some((atomic.replace(old) as u32).to_le())
            };
            let old = word.fetch_update(order, order, new).ok()?;
            slice.bitmap().mark_dirty(0, len);
            Some(u32::from_le(old).into())
        }
    }
}
