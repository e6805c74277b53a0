//! What goes from the IOMMU to a device with a TLB of its own (PCIe ATS and PRI): invalidations of
//! that TLB and their answers, and answers to page requests.
//!
//! A device that caches translations registers a [`DeviceAts`] at one of its endpoints. The command
//! INVALIDATE_IOTLB_PAGES then reaches it, and COMPLETION_WAIT waits for its answer (48882 §2.4.1,
//! §2.4.4). The command processor does not block a thread for that: it stops at the head, and goes on
//! when the last answer comes or the VMM says that it has waited long enough.

mod requests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use amdvi_core::Slot;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletePprRequest, InvalidateIotlbPages, InvalidationRange};
use amdvi_regs::event::IotlbInvTimeout;
use serde::{Deserialize, Serialize};

use crate::iommu::{Inner, Iommu};
use crate::page_request::PageResponse;

/// A device's side of ATS and PRI.
///
/// Methods are called with no lock of the IOMMU held, from whichever thread runs its command
/// processor. They may access endpoints; they must not access the IOMMU's registers, nor wait for
/// somebody who does.
pub trait DeviceAts: Send + Sync {
    /// The guest invalidates translations that this function may have cached.
    ///
    /// When this is called, every translation that was given out before the guest's invalidation of
    /// the IOMMU's own caches has been put into the TLB; none is on the way.
    ///
    /// Answer [`InvalidationAnswer::Done`] when none of them is in the TLB any more and no DMA by one
    /// of them will begin; what has begun through
    /// [`Endpoint::access_translated`](crate::Endpoint::access_translated) is waited for by
    /// COMPLETION_WAIT. Otherwise answer [`InvalidationAnswer::Later`] and call
    /// [`Iommu::invalidation_done`] when it is so.
    fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer;

    /// Software answers a group of page requests (COMPLETE_PPR_REQUEST). The function finds its
    /// group by the [`tag`](PageResponse::tag): the answer carries a PASID only if the guest put one
    /// in. Answers to groups that the function does not know are to be ignored.
    fn page_response(&self, response: &PageResponse) {
        let _ = response;
    }
}

/// An invalidation of a device's TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInvalidation {
    /// Names it in [`Iommu::invalidation_done`].
    pub ticket: InvalidationTicket,
    /// The address space; `None` for translations of requests without PASID.
    pub pasid: Option<u32>,
    /// The addresses, as the device's requests name them.
    pub range: InvalidationRange,
    /// The command's QueueID. The command processor has at most MaxPend invalidations under way in
    /// one queue, so a device needs no queue longer than its own Invalidate Queue Depth.
    pub queue_id: u16,
}

/// What a device says to an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationAnswer {
    /// It is done.
    Done,
    /// [`Iommu::invalidation_done`] will be called.
    Later,
}

/// Names an invalidation under way. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvalidationTicket(pub(crate) u64);

/// The command processor waits for devices; see [`Host::await_invalidations`](crate::Host).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidationWait {
    /// How long the guest wants to wait (CONTROL.InvTimeOut): 1 ms to 100 s; `None` for as long as
    /// it takes.
    pub timeout: Option<Duration>,
    /// The newest invalidation that it waits for.
    pub latest: InvalidationTicket,
}

/// An INVALIDATE_IOTLB_PAGES that a device has not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PendingInvalidation {
    /// The command.
    pub(crate) words: [u64; 2],
    /// Where it stood, for the event.
    pub(crate) gpa: u64,
    /// Those whose answers are missing; empty until it is sent.
    #[serde(skip)]
    tickets: Vec<InvalidationTicket>,
}

impl PendingInvalidation {
    /// The most of them: with so many under way the command processor waits.
    pub(crate) const MAX: usize = 64;

    pub(crate) fn command(&self) -> Option<InvalidateIotlbPages> {
        match Command::decode(self.words) {
            Command::InvalidateIotlbPages(command) => Some(command),
            _ => None,
        }
    }

    /// The same as it is saved: on another machine it will have to be sent again.
    pub(crate) fn unsent(&self) -> Self {
        Self {
            tickets: Vec::new(),
            ..self.clone()
        }
    }
}

/// A function with a [`DeviceAts`]: its handle's slot knows the DeviceID that it has now.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) slot: Arc<Slot>,
    pub(crate) device: Arc<dyn DeviceAts>,
}

/// What to tell devices once the lock is released.
pub(crate) enum Message {
    Invalidate(Arc<dyn DeviceAts>, DeviceInvalidation),
    Respond(Arc<dyn DeviceAts>, PageResponse),
}

impl Message {
    /// Whether answers to translation requests that are in flight have to arrive first.
    pub(crate) fn drains(&self) -> bool {
        matches!(self, Self::Invalidate(..))
    }
}

impl Inner {
    /// Takes out what was registered for the handle with `slot`.
    pub(crate) fn take_ats(&mut self, slot: &Arc<Slot>) -> Option<Registered> {
        let place = self
            .ats
            .iter()
            .position(|registered| Arc::ptr_eq(&registered.slot, slot))?;
        Some(self.ats.swap_remove(place))
    }

    /// The receivers of what is addressed to `device_id`.
    fn receivers(&self, device_id: DeviceId) -> impl Iterator<Item = &Arc<dyn DeviceAts>> {
        self.ats
            .iter()
            .filter(move |registered| registered.slot.device_id() == device_id)
            .map(|registered| &registered.device)
    }

    /// Whether one more invalidation has to wait for the answers to others.
    pub(crate) fn queue_is_full(&self, command: InvalidateIotlbPages) -> bool {
        let pending = &self.registers.invalidations;
        let same_queue = pending
            .iter()
            .filter_map(PendingInvalidation::command)
            .filter(|other| other.queue_id() == command.queue_id());
        // A depth of 0 says nothing; one at a time suits every device.
        pending.len() >= PendingInvalidation::MAX
            || same_queue.count() >= usize::from(command.max_pend().max(1))
    }

    /// Takes on an invalidation that is to be sent.
    pub(crate) fn add_invalidation(&mut self, command: InvalidateIotlbPages, gpa: u64) {
        self.registers.invalidations.push(PendingInvalidation {
            words: Command::from(command).words(),
            gpa,
            tickets: Vec::new(),
        });
        // DMA by the device's own translations is in flight like any other.
        self.undrained = true;
    }

    /// Sends what is not sent. Nobody has cached anything where nobody is registered, so that is done.
    pub(crate) fn send_invalidations(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut pending = std::mem::take(&mut self.registers.invalidations);
        pending.retain_mut(|one| {
            if !one.tickets.is_empty() {
                return true;
            }
            let Some(command) = one.command() else {
                return false;
            };
            let receivers: Vec<_> = self
                .receivers(DeviceId(command.device_id()))
                .cloned()
                .collect();
            for device in receivers {
                self.last_ticket += 1;
                let ticket = InvalidationTicket(self.last_ticket);
                one.tickets.push(ticket);
                messages.push(Message::Invalidate(
                    device,
                    DeviceInvalidation {
                        ticket,
                        pasid: command.gn().then_some(command.pasid()),
                        range: command.range(),
                        queue_id: command.queue_id(),
                    },
                ));
            }
            !one.tickets.is_empty()
        });
        self.registers.invalidations = pending;
        messages
    }

    /// Whether something is to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        let pending = &self.registers.invalidations;
        pending.iter().any(|one| one.tickets.is_empty())
    }

    /// What the command processor waits for.
    pub(crate) fn wait(&self) -> InvalidationWait {
        let timeout = self.registers.control().inv_time_out_ms();
        InvalidationWait {
            timeout: timeout.map(|ms| Duration::from_millis(ms.into())),
            latest: InvalidationTicket(self.last_ticket),
        }
    }

    pub(crate) fn respond(&self, command: CompletePprRequest) -> Vec<Message> {
        let response = PageResponse {
            tag: command.group_index(),
            code: command.response_code(),
            pasid: command.gn().then_some(command.pasid()),
        };
        self.receivers(DeviceId(command.device_id()))
            .map(|device| Message::Respond(device.clone(), response))
            .collect()
    }
}

impl Iommu {
    /// A device has done the invalidation that it had answered with [`InvalidationAnswer::Later`].
    /// From any thread. A ticket that is not, or no longer, waited for is ignored.
    pub fn invalidation_done(&self, ticket: InvalidationTicket) {
        let resume = self.update(|inner| {
            inner.registers.invalidations.retain_mut(|one| {
                let before = one.tickets.len();
                one.tickets.retain(|&other| other != ticket);
                !(one.tickets.is_empty() && before > 0)
            });
            std::mem::take(&mut inner.stalled)
        });
        if resume {
            self.host.commands_pending();
        }
    }

    /// The time of `wait` is over: each device that has not answered by now gets an
    /// IOTLB_INV_TIMEOUT event (48882 §2.5.8), and the command processor goes on. Invalidations that
    /// were sent later than `wait` are left alone. See
    /// [`Host::await_invalidations`](crate::Host::await_invalidations).
    pub fn expire_invalidations(&self, wait: &InvalidationWait) {
        if self.time_out(wait) {
            self.host.commands_pending();
        }
    }

    /// Whether the command processor has to be started again.
    pub(crate) fn time_out(&self, wait: &InvalidationWait) -> bool {
        self.update(|inner| {
            let pending = std::mem::take(&mut inner.registers.invalidations);
            let (old, rest) = pending
                .into_iter()
                .partition(|one| one.tickets.first().is_some_and(|&t| t <= wait.latest));
            inner.registers.invalidations = rest;
            let old: Vec<PendingInvalidation> = old;
            for one in &old {
                let device_id = one.command().map_or(0, |command| command.device_id());
                let event = IotlbInvTimeout::new()
                    .with_device_id(device_id)
                    .with_address_16(one.gpa >> 4);
                inner.registers.log_event(&*self.memory, &event.into());
            }
            !old.is_empty() && std::mem::take(&mut inner.stalled)
        })
    }

    /// Tells devices, with no lock held.
    pub(crate) fn tell(&self, messages: Vec<Message>) {
        for message in messages {
            match message {
                Message::Respond(device, response) => device.page_response(&response),
                Message::Invalidate(device, invalidation) => {
                    if device.invalidate(&invalidation) == InvalidationAnswer::Done {
                        self.invalidation_done(invalidation.ticket);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalidate(_, invalidation) => invalidation.fmt(f),
            Self::Respond(_, response) => response.fmt(f),
        }
    }
}
