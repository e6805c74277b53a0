//! The command processor (48882 §2.4).
//!
//! One thread at a time runs it: whoever writes the tail while another thread runs commands only
//! moves the tail, which the other sees under the lock before it stops. A command is fetched,
//! checked and carried out under the lock, except for what COMPLETION_WAIT waits for.

use std::sync::Arc;

use amdvi_core::{Invalidation, Slot, Subject};
use amdvi_regs::command::{COMMAND_SIZE, Command, CompletionWait, InvalidationRange};
use amdvi_regs::event::{CommandHardwareError, Event, IllegalCommandError};
use amdvi_regs::mmio::CounterEvent;
use amdvi_regs::{DeviceId, PhysMemory};

use crate::ats::Message;
use crate::host::{Changes, Invalidated, Observer};
use crate::iommu::{Inner, Iommu};
use crate::state::Offer;

/// Type field of a hardware-error event: nothing answers at the address.
const MASTER_ABORT: u8 = 1;

/// Why a stretch of commands under the lock ended.
enum Step {
    /// Nothing to do, or the processor does not run.
    Idle,
    /// The budget is used up.
    Spent,
    /// A COMPLETION_WAIT.
    Wait(Waiting),
    /// Devices have to hear something.
    Tell(Vec<Message>, Arc<[Arc<Slot>]>),
    /// The command at the head waits for devices.
    Stall,
}

/// A COMPLETION_WAIT in progress: it is still at the head.
struct Waiting {
    command: CompletionWait,
    gpa: u64,
    epoch: u64,
    undrained: bool,
    changes: Changes,
    invalidated: Invalidated,
    slots: Arc<[Arc<Slot>]>,
    observers: Arc<[Arc<dyn Observer>]>,
}

/// The right to run commands. Given back under the lock, or here if an observer panics.
struct Token<'a> {
    iommu: &'a Iommu,
    held: bool,
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        if self.held {
            self.iommu.update(|inner| inner.processing = false);
        }
    }
}

impl Iommu {
    /// The most commands that one call runs.
    pub const COMMANDS_PER_CALL: u32 = 1024;

    /// Runs commands up to the budget; whether more remain.
    pub(crate) fn process(&self) -> bool {
        let mut token = Token {
            iommu: self,
            held: false,
        };
        let mut budget = Self::COMMANDS_PER_CALL;
        let mut waited = None;
        loop {
            // As much as possible each time the lock is taken.
            let step = self.update(|inner| {
                if !token.held {
                    let unsent = inner.has_unsent() && inner.registers.commands_run();
                    let work = (inner.has_commands() || unsent) && !inner.stalled;
                    if !work || std::mem::replace(&mut inner.processing, true) {
                        return Step::Idle;
                    }
                    token.held = true;
                }
                if let Some(waiting) = waited.take() {
                    self.complete(inner, &waiting);
                }
                let step = self.step(inner, &mut budget);
                if matches!(step, Step::Idle | Step::Spent) {
                    inner.processing = false;
                    token.held = false;
                }
                step
            });
            match step {
                Step::Idle => return false,
                Step::Spent => return true,
                Step::Tell(messages, slots) => {
                    if messages.iter().any(Message::drains) {
                        self.fabric.drain(slots.iter(), std::thread::yield_now);
                    }
                    self.tell(messages);
                }
                Step::Stall => {
                    if self.stall(&mut token) {
                        return false;
                    }
                }
                Step::Wait(waiting) => {
                    if waiting.undrained {
                        self.fabric
                            .drain(waiting.slots.iter(), std::thread::yield_now);
                    }
                    for observer in waiting.observers.iter() {
                        if !waiting.changes.is_empty() {
                            observer.changed(&waiting.changes);
                        }
                        if !waiting.invalidated.is_empty() {
                            observer.invalidated(&waiting.invalidated);
                        }
                    }
                    waited = Some(waiting);
                }
            }
        }
    }

    /// Waits for devices: whether this thread is done, because somebody else will go on.
    fn stall(&self, token: &mut Token<'_>) -> bool {
        let wait = self.update(|inner| inner.wait());
        if !self.host.await_invalidations(&wait) {
            self.time_out(&wait);
            return false;
        }
        self.update(|inner| {
            // An answer may have come meanwhile; from here on each one starts the processor again.
            if !inner.is_blocked(&*self.memory) {
                return false;
            }
            inner.stalled = true;
            inner.processing = false;
            token.held = false;
            true
        })
    }

    /// Runs commands until something has to be done without the lock.
    fn step(&self, inner: &mut Inner, budget: &mut u32) -> Step {
        loop {
            // Invalidations that stand behind each other go to the devices together.
            let last = !inner.has_commands() || *budget == 0;
            if last && inner.has_unsent() && inner.registers.commands_run() {
                return Step::Tell(inner.send_invalidations(), inner.slots.clone());
            }
            if !inner.has_commands() {
                return Step::Idle;
            }
            let ring = inner.registers.command;
            if *budget == 0 {
                return Step::Spent;
            }
            *budget -= 1;
            let gpa = ring.address() + ring.head;
            let low = self.memory.load_u64(gpa);
            let words = low.and_then(|low| Ok([low, self.memory.load_u64(gpa + 8)?]));
            let command = words.map(Command::decode);
            let legal = command
                .ok()
                .filter(|command| is_legal(command, &self.offer));
            let blocked = legal.is_some_and(|command| inner.waits_for_devices(&command));
            let one_more = matches!(legal, Some(Command::InvalidateIotlbPages(_))) && !blocked;
            if inner.has_unsent() && !one_more {
                return Step::Tell(inner.send_invalidations(), inner.slots.clone());
            }
            let Ok(command) = command else {
                self.hardware_error(inner, gpa);
                continue;
            };
            if legal.is_none() {
                let event = IllegalCommandError::new().with_address_16(gpa >> 4);
                self.halt(inner, event.into());
                continue;
            }
            if blocked {
                return Step::Stall;
            }
            match command {
                Command::CompletionWait(command) => {
                    return Step::Wait(Waiting {
                        command,
                        gpa,
                        epoch: inner.epoch,
                        undrained: std::mem::take(&mut inner.undrained),
                        changes: std::mem::replace(&mut inner.changes, Changes::none()),
                        invalidated: std::mem::replace(&mut inner.invalidated, Invalidated::none()),
                        slots: inner.slots.clone(),
                        observers: inner.observers.clone(),
                    });
                }
                Command::InvalidateIotlbPages(iotlb) => {
                    inner.add_invalidation(iotlb, gpa);
                    self.retire(inner, &command);
                }
                Command::CompletePprRequest(ppr) => {
                    self.retire(inner, &command);
                    return Step::Tell(inner.respond(ppr), Arc::new([]));
                }
                command => {
                    self.carry_out(inner, &command);
                    self.retire(inner, &command);
                }
            }
        }
    }

    /// What concerns nobody outside; the command is legal.
    fn carry_out(&self, inner: &mut Inner, command: &Command) {
        match command {
            Command::InvalidateDevtabEntry(c) => {
                inner.registers.faulted_once.remove(&c.device_id());
                inner.invalidate_device(DeviceId(c.device_id()));
            }
            Command::InvalidateInterruptTable(c) => {
                inner.invalidate_device(DeviceId(c.device_id()));
            }
            Command::InvalidateIommuAll(_) => {
                inner.registers.faulted_once.clear();
                self.fabric.invalidate_all();
                inner.undrained = true;
                inner.changes = Changes::All;
                inner.invalidated = Invalidated::All;
            }
            // PDE asks for cached upper levels too: only leaves are cached.
            Command::InvalidateIommuPages(c) => {
                let (domain, range) = (c.domain_id(), c.range());
                self.fabric.journal.append(Invalidation {
                    domain: Some(domain),
                    pasid: c.gn().then_some(c.pasid()),
                    range,
                });
                inner.undrained = true;
                // Observers copy what requests without PASID see. Where those go through guest tables
                // (GIoV) over host tables, a guest physical range says nothing of their addresses.
                let control = inner.registers.control();
                let indirect = !c.gn() && control.gt_en() && self.efr().gio_sup();
                let seen = if indirect {
                    InvalidationRange::All
                } else {
                    range
                };
                if inner.observers.is_empty() {
                    // Nobody asks what exactly.
                    inner.invalidated = Invalidated::All;
                } else {
                    inner.invalidated.add(domain, seen);
                }
            }
            // What is fetched when it is needed is there in time: the hint is taken, and nothing read,
            // so that a guest can't have the IOMMU do work for it. Inval asks for more than a hint.
            Command::PrefetchIommuPages(c) if c.inval() => {
                // The domain stands in the DTE; all of them are on the safe side.
                self.fabric.journal.append(Invalidation {
                    domain: None,
                    pasid: c.gn().then_some(c.pasid()),
                    range: c.range(),
                });
                inner.undrained = true;
                inner.invalidated = Invalidated::All;
            }
            _ => {}
        }
    }

    /// The visible part of COMPLETION_WAIT (48882 §2.4.1): everything before it has completed.
    fn complete(&self, inner: &mut Inner, waiting: &Waiting) {
        if inner.epoch != waiting.epoch {
            // Reset, restored or restarted elsewhere meanwhile: that command is gone.
            return;
        }
        let command = waiting.command;
        if command.s() {
            let address = command.store_address_8() << 3;
            if self
                .memory
                .store_u64(address, command.store_data())
                .is_err()
            {
                return self.hardware_error(inner, waiting.gpa);
            }
        }
        if command.i() {
            inner
                .registers
                .set_status(|status| status.with_com_wait_int(true));
        }
        self.retire(inner, &command.into());
    }

    /// The head goes past a command that is carried out, and counters count it.
    fn retire(&self, inner: &mut Inner, command: &Command) {
        inner.advance();
        if !self.fabric.view.counters.any() {
            return;
        }
        let device = |id: u16| Subject {
            device_id: Some(DeviceId(id)),
            ..Subject::default()
        };
        let pasid = |gn: bool, pasid: u32| gn.then_some(pasid);
        // Whom it names, whether it invalidates, and whether that is a matter of the IOMMU's TLB.
        let (subject, invalidates, tlb) = match command {
            Command::InvalidateDevtabEntry(c) => (device(c.device_id()), true, false),
            Command::InvalidateInterruptTable(c) => (device(c.device_id()), true, false),
            Command::InvalidateIommuPages(c) => (
                Subject {
                    domain: Some(c.domain_id()),
                    pasid: pasid(c.gn(), c.pasid()),
                    ..Subject::default()
                },
                true,
                true,
            ),
            Command::InvalidateIommuAll(_) => (Subject::default(), true, true),
            Command::InvalidateIotlbPages(c) => (
                Subject {
                    pasid: pasid(c.gn(), c.pasid()),
                    ..device(c.device_id())
                },
                true,
                false,
            ),
            Command::PrefetchIommuPages(c) => (
                Subject {
                    pasid: pasid(c.gn(), c.pasid()),
                    ..device(c.device_id())
                },
                false,
                c.inval(),
            ),
            Command::CompletePprRequest(c) => (
                Subject {
                    pasid: pasid(c.gn(), c.pasid()),
                    ..device(c.device_id())
                },
                false,
                false,
            ),
            _ => (Subject::default(), false, false),
        };
        for (event, happens) in [
            (CounterEvent::CmdProcessed, true),
            (CounterEvent::CmdProcessedInv, invalidates),
            (CounterEvent::TlbInv, tlb),
        ] {
            let n = u64::from(happens);
            self.fabric.view.counters.count_quietly(event, n, &subject);
        }
    }

    fn hardware_error(&self, inner: &mut Inner, gpa: u64) {
        let event = CommandHardwareError::new()
            .with_kind(MASTER_ABORT)
            .with_address_16(gpa >> 4);
        self.halt(inner, event.into());
    }

    /// The head stays at the command; CmdBufEn 0→1 starts again.
    fn halt(&self, inner: &mut Inner, event: Event) {
        inner.registers.command_halted = true;
        inner.registers.log_event(&*self.memory, &event);
    }
}

impl Inner {
    fn advance(&mut self) {
        let ring = &mut self.registers.command;
        ring.head = ring.next(ring.head, COMMAND_SIZE);
    }

    fn invalidate_device(&mut self, device_id: DeviceId) {
        for slot in self
            .slots
            .iter()
            .filter(|slot| slot.device_id() == device_id)
        {
            slot.invalidate();
        }
        self.undrained = true;
        self.changes.add(device_id);
    }
}

impl Inner {
    /// Whether the command processor runs and finds something.
    fn has_commands(&self) -> bool {
        let ring = self.registers.command;
        self.registers.commands_run() && ring.head != ring.tail
    }

    /// Whether `command`, at the head, has to wait for answers of devices.
    fn waits_for_devices(&self, command: &Command) -> bool {
        match command {
            // Everything before it has to be complete (48882 §2.4.1).
            Command::CompletionWait(_) => !self.registers.invalidations.is_empty(),
            Command::InvalidateIotlbPages(command) => self.queue_is_full(*command),
            _ => false,
        }
    }

    /// Whether the processor would stall again.
    fn is_blocked(&self, memory: &dyn PhysMemory) -> bool {
        let ring = self.registers.command;
        if !self.has_commands() || self.has_unsent() {
            return false;
        }
        // The guest may rewrite a command that was not carried out; then that one counts.
        let gpa = ring.address() + ring.head;
        let (Ok(low), Ok(high)) = (memory.load_u64(gpa), memory.load_u64(gpa + 8)) else {
            return false;
        };
        self.waits_for_devices(&Command::decode([low, high]))
    }
}

/// Whether the command exists in what is offered and has no reserved bit set.
pub(crate) fn is_legal(command: &Command, offer: &Offer) -> bool {
    let efr = offer.efr;
    let offered = match command {
        Command::CompletionWait(_)
        | Command::InvalidateDevtabEntry(_)
        | Command::InvalidateInterruptTable(_) => true,
        Command::InvalidateIommuPages(c) => !c.gn() || efr.gt_sup(),
        Command::InvalidateIotlbPages(c) => {
            // Type is reserved without InvIotlbTypeSup.
            offer.device_iotlb
                && (!c.gn() || efr.gt_sup())
                && (c.kind() == 0 || efr.inv_iotlb_type_sup())
        }
        Command::PrefetchIommuPages(c) => efr.pre_f_sup() && (!c.gn() || efr.gt_sup()),
        Command::CompletePprRequest(c) => efr.ppr_sup() && (!c.gn() || efr.gt_sup()),
        Command::InvalidateIommuAll(_) => efr.ia_sup(),
        // They need vIommuSup, which is not offered.
        Command::InsertGuestEvent(_) | Command::ResetVmmio(_) | Command::Unknown(_) => false,
    };
    offered && command.reserved_bits_set() == 0
}
