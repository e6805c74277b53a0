//! A device's way through the IOMMU.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use amdvi_core::{InFlight, Requester, Slot, dtab};
use amdvi_dma::{Access, Exclusion, Request, RequestKind, Span, WalkContext};
use amdvi_irt::{Delivery, FaultReason, LintPin, Outcome, Remapped, Remapper};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::event::{DevTabHardwareError, Event, IoPageFault};
use amdvi_regs::msi::Msi;
use amdvi_regs::{DeviceId, PhysMemory};

use crate::iommu::Iommu;
use crate::pci::VIRTUAL_ADDRESS_BITS;

/// Type field of a hardware-error event: nothing answers at the address.
const MASTER_ABORT: u8 = 1;

/// One function behind the IOMMU, as one thread uses it: a PCI function's queue, an IOAPIC, an
/// HPET.
///
/// A handle belongs to one thread at a time; [`clone`](Clone::clone) it for others. A remapped
/// interrupt that hits the handle's cache takes no lock.
pub struct Endpoint {
    iommu: Arc<Iommu>,
    remapper: Remapper,
    dma: Requester,
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

/// The beginning of a DMA access, translated.
///
/// Access memory while this lives: it is what a COMPLETION_WAIT waits for. For that reason the
/// thread that holds it must not access the device's registers.
#[derive(Debug)]
pub struct Mapped<'a> {
    span: Span,
    _in_flight: InFlight<'a>,
}

impl Deref for Mapped<'_> {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.span
    }
}

impl Iommu {
    /// A handle for the function `device_id`; also for an IOAPIC or HPET, by the DeviceID that the
    /// IVRS gives it.
    pub fn endpoint(self: &Arc<Self>, device_id: DeviceId) -> Endpoint {
        let endpoint = Endpoint {
            iommu: self.clone(),
            remapper: Remapper::new(self.fabric.clone(), device_id, Remapper::FULL_CACHE),
            dma: Requester::new(self.fabric.clone(), device_id),
        };
        let slots = endpoint.slots().map(Arc::clone);
        self.update(|inner| inner.slots = inner.slots.iter().cloned().chain(slots).collect());
        endpoint
    }
}

impl Endpoint {
    fn slots(&self) -> [&Arc<Slot>; 2] {
        [self.remapper.slot(), self.dma.slot()]
    }

    /// The IOMMU that this function is behind.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The DeviceID that requests carry.
    pub fn device_id(&self) -> DeviceId {
        self.dma.slot().device_id()
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
        match self.remapper.resolve(&*self.iommu.memory, msi) {
            Outcome::Deliver(delivery) => Some(delivery),
            Outcome::Posted(_) | Outcome::Blocked(_) => None,
        }
    }

    /// Translates the beginning of an untranslated DMA request of `len` bytes at `iova`.
    ///
    /// The result covers up to the end of the page; ask again for what lies behind it. A request
    /// that fails is aborted as a whole by a device that stops at the first error, so one request
    /// logs one event.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the access must not happen.
    pub fn translate(&mut self, iova: u64, len: u64, access: Access) -> Result<Mapped<'_>, Abort> {
        let iommu = &*self.iommu;
        let in_flight = self.dma.enter();
        let request = Request {
            device_id: in_flight.device_id(),
            iova,
            len,
            access,
            kind: RequestKind::Untranslated,
        };
        match translate(&in_flight, &*iommu.memory, &request) {
            Ok(span) => Ok(Mapped {
                span,
                _in_flight: in_flight,
            }),
            Err(Failure { abort, event, once }) => {
                let logged = event.map(|event| {
                    let ((), emission) = iommu.locked(|inner| {
                        let memory = &*iommu.memory;
                        if once {
                            inner
                                .registers
                                .log_event_once(memory, request.device_id, &event);
                        } else {
                            inner.registers.log_event(memory, &event);
                        }
                    });
                    emission
                });
                drop(in_flight);
                if let Some(emission) = logged {
                    iommu.emit(emission);
                }
                Err(abort)
            }
        }
    }
}

/// A failed translation before it is logged.
struct Failure {
    abort: Abort,
    event: Option<Event>,
    once: bool,
}

/// Finds the DTE and asks the engine. Every guest word is loaded once.
fn translate(
    in_flight: &InFlight<'_>,
    memory: &dyn PhysMemory,
    request: &Request,
) -> Result<Span, Failure> {
    let view = in_flight.view();
    let control = view.control();
    let [base, limit] = view.exclusion();
    let context = WalkContext::new(control, view.efr(), view.efr2(), VIRTUAL_ADDRESS_BITS)
        .with_exclusion(Exclusion::from_registers(base, limit));
    let device_id = request.device_id;
    let (mut q0, mut q1) = (DteQ0::new(), DteQ1::new());
    if control.iommu_en() {
        let failure = |abort, event: Event| Failure {
            abort,
            event: Some(event),
            once: false,
        };
        let gpa = dtab::locate(view, device_id).map_err(|_| {
            let event = IoPageFault::new()
                .with_device_id(device_id.0)
                .with_rw(request.access.writes())
                .with_address(request.iova);
            failure(Abort::DeviceIdOutOfRange(device_id), event.into())
        })?;
        let unreadable = |_| {
            let event = DevTabHardwareError::new()
                .with_device_id(device_id.0)
                .with_rw(request.access.writes())
                .with_kind(MASTER_ABORT)
                .with_address_16(gpa >> 4);
            failure(Abort::DteUnreadable(gpa), event.into())
        };
        q0 = DteQ0::from_bits(memory.load_u64(gpa).map_err(unreadable)?);
        q1 = DteQ1::from_bits(memory.load_u64(gpa + 8).map_err(unreadable)?);
    }
    amdvi_dma::translate(&context, q0, q1, request, memory).map_err(|fault| Failure {
        abort: Abort::Translation(fault.reason),
        event: fault.event,
        once: fault.suppress_after_first,
    })
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
        self.iommu.update(|inner| {
            let kept = inner
                .slots
                .iter()
                .filter(|slot| !mine.iter().any(|m| Arc::ptr_eq(m, slot)));
            inner.slots = kept.cloned().collect();
        });
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("device_id", &self.device_id())
            .finish_non_exhaustive()
    }
}
