//! A device's way through the IOMMU.

use std::fmt;
use std::sync::Arc;

use amdvi_core::Slot;
use amdvi_dma::{Access, Cause, Failed, Failure, Mapped, Mapper, Operation, Pasid, Piece};
use amdvi_irt::{Delivery, FaultReason, LintPin, Outcome, Remapped, Remapper};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;

use crate::iommu::{Emission, Iommu};
use crate::pci::VIRTUAL_ADDRESS_BITS;

/// One function behind the IOMMU, as one thread uses it: a PCI function's queue, an IOAPIC, an
/// HPET.
///
/// A handle belongs to one thread at a time; [`clone`](Clone::clone) it for others. An interrupt or
/// a DMA access that hits the handle's caches takes no lock.
pub struct Endpoint {
    pub(crate) iommu: Arc<Iommu>,
    remapper: Remapper,
    pub(crate) mapper: Mapper,
}

/// What became of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It was given to the host.
    Delivered(Delivery),
    /// It was posted to a guest virtual APIC.
    Posted,
    /// It was blocked; what the specification logs is logged.
    Blocked(FaultReason),
}

/// Why a DMA access is aborted. What the specification logs is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Abort {
    /// The DeviceID lies behind the end of its device table.
    #[error("DeviceID {0} is outside the device table")]
    DeviceIdOutOfRange(DeviceId),
    /// The DTE is not in guest memory.
    #[error("no memory behind the DTE at GPA {0:#x}")]
    DteUnreadable(u64),
    /// The translation failed. [`amdvi_dma::Reason::InterruptWindow`] says that the access is an
    /// interrupt request, for [`Endpoint::signal`].
    #[error("{0}")]
    Translation(amdvi_dma::Reason),
}

impl From<Cause> for Abort {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::DeviceIdOutOfRange(device_id) => Self::DeviceIdOutOfRange(device_id),
            Cause::DteUnreadable(gpa) => Self::DteUnreadable(gpa),
            Cause::Translation(reason) => Self::Translation(reason),
        }
    }
}

impl Iommu {
    /// A handle for the function `device_id`; also for an IOAPIC or HPET, by the DeviceID that the
    /// IVRS gives it.
    pub fn endpoint(self: &Arc<Self>, device_id: DeviceId) -> Endpoint {
        let endpoint = Endpoint {
            iommu: self.clone(),
            remapper: Remapper::new(self.fabric.clone(), device_id, Remapper::FULL_CACHE),
            mapper: Mapper::new(
                self.fabric.clone(),
                self.iotlb.clone(),
                device_id,
                self.dma_cache_entries,
                VIRTUAL_ADDRESS_BITS,
            ),
        };
        let slots = endpoint.slots().map(Arc::clone);
        self.update(|inner| inner.slots = inner.slots.iter().cloned().chain(slots).collect());
        endpoint
    }
}

impl Endpoint {
    fn slots(&self) -> [&Arc<Slot>; 2] {
        [self.remapper.slot(), self.mapper.slot()]
    }

    /// The IOMMU that this function is behind.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The DeviceID that requests carry.
    pub fn device_id(&self) -> DeviceId {
        self.mapper.slot().device_id()
    }

    /// Changes the DeviceID: the function's bus was renumbered.
    pub fn set_device_id(&self, device_id: DeviceId) {
        for slot in self.slots() {
            slot.set_device_id(device_id);
        }
    }

    /// Sends an interrupt request: remaps it and delivers what results, or logs the fault.
    pub fn signal(&mut self, msi: Msi) -> Signal {
        let iommu = &*self.iommu;
        let remapped = self.remapper.remap(&*iommu.memory, msi);
        iommu.carry_out_interrupt(remapped, |delivery| iommu.host.deliver(delivery))
    }

    /// As [`signal`](Self::signal), with `deliver` in the place of [`Host::deliver`](crate::Host):
    /// for a source that has more to do than to send, such as an IOAPIC that must route the EOI of
    /// what it sends.
    ///
    /// `deliver` runs while the request is in flight, so a COMPLETION_WAIT covers it too. It must
    /// not access the device's registers.
    pub fn signal_with(&mut self, msi: Msi, deliver: impl FnOnce(&Delivery)) -> Signal {
        let iommu = &*self.iommu;
        let remapped = self.remapper.remap(&*iommu.memory, msi);
        iommu.carry_out_interrupt(remapped, deliver)
    }

    /// Sends an interrupt of the legacy interrupt controller, which has pass bits of its own.
    pub fn lint(&mut self, pin: LintPin) -> Signal {
        let iommu = &*self.iommu;
        let remapped = self.remapper.lint(&*iommu.memory, pin);
        iommu.carry_out_interrupt(remapped, |delivery| iommu.host.deliver(delivery))
    }

    /// What would be delivered for `msi` now, without any effect: for setting up routes ahead of
    /// the interrupt. `None` if it would be blocked, or posted to a guest virtual APIC.
    ///
    /// An [`Observer`](crate::Observer) hears when the answer may have changed.
    pub fn resolve(&mut self, msi: Msi) -> Option<Delivery> {
        self.remapper.resolve(&*self.iommu.memory, msi).delivery()
    }

    /// As [`resolve`](Self::resolve), for interrupts that will not come here: an irqfd's. `None` also
    /// while a performance counter counts interrupts, which must come here to be counted.
    ///
    /// An [`Observer`](crate::Observer) hears when the answer may have changed.
    pub fn route(&mut self, msi: Msi) -> Option<Delivery> {
        if self.iommu.fabric.view.counters.interrupts() {
            return None;
        }
        self.resolve(msi)
    }

    /// As [`route`](Self::route) for each of `messages`: tells the answers in their order. It looks at
    /// the function's DTE once, which for many messages takes a fraction of the time.
    ///
    /// `tell` runs while the look-up is in flight and must not access the device's registers.
    pub fn routes(&mut self, messages: &[Msi], mut tell: impl FnMut(Option<Delivery>)) {
        if self.iommu.fabric.view.counters.interrupts() {
            return messages.iter().for_each(|_| tell(None));
        }
        let memory = &*self.iommu.memory;
        self.remapper.resolve_all(memory, messages, tell);
    }

    /// Translates the beginning of an untranslated DMA request of `len` bytes at `iova`.
    ///
    /// The result covers up to the end of the page; ask again for what lies behind it, or use
    /// [`access`](Self::access). Access memory while the result lives: it is what a COMPLETION_WAIT
    /// waits for. For that reason the thread that holds it must not access the device's registers.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the access must not happen.
    #[inline]
    pub fn translate(&mut self, iova: u64, len: u64, access: Access) -> Result<Mapped<'_>, Abort> {
        let iommu = &*self.iommu;
        self.mapper
            .translate(&*iommu.memory, iova, len, access)
            .map_err(|failed| iommu.abort(failed))
    }

    /// As [`translate`](Self::translate), for a request with or without a PASID.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the access must not happen.
    #[inline]
    pub fn translate_for(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Abort> {
        let iommu = &*self.iommu;
        self.mapper
            .translate_for(&*iommu.memory, pasid, iova, len, access)
            .map_err(|failed| iommu.abort(failed))
    }

    /// Carries out an untranslated DMA transaction of `len` bytes at `iova`: hands it to `piece`,
    /// translated, in order. It stops at the first piece that fails, so one transaction logs at most
    /// one event; what came before has happened, as on a bus. `piece` runs while the transaction is
    /// in flight and must not access the device's registers.
    ///
    /// # Errors
    ///
    /// [`Abort`] if a part of it must not happen.
    pub fn access(
        &mut self,
        iova: u64,
        len: u64,
        access: Access,
        piece: impl FnMut(&Piece),
    ) -> Result<(), Abort> {
        self.access_for(None, iova, len, access, piece)
    }

    /// As [`access`](Self::access), for a transaction with or without a PASID.
    ///
    /// # Errors
    ///
    /// [`Abort`] if a part of it must not happen.
    pub fn access_for(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
        piece: impl FnMut(&Piece),
    ) -> Result<(), Abort> {
        let iommu = &*self.iommu;
        self.mapper
            .pieces_for(&*iommu.memory, pasid, iova, len, access, piece)
            .map_err(|failed| iommu.abort(failed))
    }

    /// Begins an operation of several transactions that are in flight together.
    pub fn begin(&mut self) -> DmaOperation<'_> {
        DmaOperation {
            operation: self.mapper.enter(),
            late: Late {
                iommu: &self.iommu,
                emissions: Vec::new(),
            },
        }
    }
}

/// Several DMA transactions of one function that are in flight together, such as the handling of a
/// queue. COMPLETION_WAIT waits for all of it, so it must be short, and the thread that holds it must
/// not access the device's registers.
#[derive(Debug)]
pub struct DmaOperation<'a> {
    // Dropped in this order.
    pub(crate) operation: Operation<'a>,
    pub(crate) late: Late<'a>,
}

/// Interrupts of the device itself that go out when nothing is in flight any more.
pub(crate) struct Late<'a> {
    pub(crate) iommu: &'a Iommu,
    emissions: Vec<Emission>,
}

impl Drop for Late<'_> {
    fn drop(&mut self) {
        for emission in self.emissions.drain(..) {
            self.iommu.emit(emission);
        }
    }
}

impl fmt::Debug for Late<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} emissions", self.emissions.len())
    }
}

impl DmaOperation<'_> {
    /// As [`Endpoint::translate`]; memory may be accessed for as long as the operation lives.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the access must not happen. What the specification logs is logged.
    pub fn translate(&mut self, iova: u64, len: u64, access: Access) -> Result<Piece, Abort> {
        self.translate_for(None, iova, len, access)
    }

    /// As [`translate`](Self::translate), for a request with or without a PASID.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the access must not happen. What the specification logs is logged.
    pub fn translate_for(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Abort> {
        self.attempt(pasid, iova, len, access)
            .map_err(|failure| self.abort(&failure))
    }

    /// Logs why a request of the operation fails.
    pub(crate) fn abort(&mut self, failure: &Failure) -> Abort {
        let iommu = self.late.iommu;
        let emission = iommu.log_failure(self.operation.device_id(), failure);
        // Conditions that raise an interrupt do so once, so these are few.
        self.late
            .emissions
            .extend(emission.filter(|emission| !emission.is_empty()));
        failure.cause.into()
    }

    /// Whether the beginning of such an access would succeed and how far it reaches, without an
    /// event if it would not.
    pub fn probe(&mut self, iova: u64, len: u64, access: Access) -> Option<Piece> {
        self.attempt(None, iova, len, access).ok()
    }

    fn attempt(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        let memory = &*self.late.iommu.memory;
        self.operation
            .translate_for(memory, pasid, iova, len, access)
    }
}

impl Iommu {
    /// Logs what a failed DMA request leads to.
    pub(crate) fn log_failure(&self, device_id: DeviceId, failure: &Failure) -> Option<Emission> {
        let event = failure.event?;
        let ((), emission) = self.locked(|inner| {
            let memory = &*self.memory;
            if failure.suppress_after_first {
                inner.registers.log_event_once(memory, device_id, &event);
            } else {
                inner.registers.log_event(memory, &event);
            }
        });
        Some(emission)
    }

    /// Logs a failed DMA request while it is in flight; interrupts of the device itself go out after
    /// that.
    #[cold]
    pub(crate) fn abort(&self, failed: Failed<'_>) -> Abort {
        let emission = self.log_failure(failed.device_id(), &failed);
        let abort = failed.cause.into();
        drop(failed);
        if let Some(emission) = emission {
            self.emit(emission);
        }
        abort
    }
}

impl Iommu {
    /// Does what remapping an interrupt has found, while the operation is in flight; interrupts of
    /// the device itself go out after that.
    fn carry_out_interrupt(
        &self,
        remapped: Remapped<'_>,
        deliver: impl FnOnce(&Delivery),
    ) -> Signal {
        let (signal, emission) = match remapped.outcome {
            Outcome::Deliver(delivery) => {
                deliver(&delivery);
                return Signal::Delivered(delivery);
            }
            Outcome::Posted(posted) => {
                if let Some(apic_id) = posted.doorbell {
                    self.host.doorbell(apic_id);
                }
                let emission = posted.ga_log.map(|entry| {
                    self.locked(|inner| inner.registers.log_ga(&*self.memory, entry))
                        .1
                });
                (Signal::Posted, emission)
            }
            Outcome::Blocked(fault) => {
                let emission = fault.event().map(|event| {
                    self.locked(|inner| inner.registers.log_event(&*self.memory, &event))
                        .1
                });
                (Signal::Blocked(fault.reason), emission)
            }
        };
        drop(remapped);
        if let Some(emission) = emission {
            self.emit(emission);
        }
        signal
    }
}

impl Clone for Endpoint {
    /// Another handle for the same function, for another thread.
    fn clone(&self) -> Self {
        self.iommu.endpoint(self.device_id())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mine = self.slots();
        let old = self.iommu.update(|inner| {
            let kept = inner
                .slots
                .iter()
                .filter(|slot| !mine.iter().any(|m| Arc::ptr_eq(m, slot)));
            inner.slots = kept.cloned().collect();
            inner.take_ats(mine[1])
        });
        drop(old);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("device_id", &self.device_id())
            .finish_non_exhaustive()
    }
}
