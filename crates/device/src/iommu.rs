//! One IOMMU: what is shared between the vCPUs that program it and the devices behind it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use amdvi_core::{Barrier, Counters, Fabric, Slot, View};
use amdvi_dma::Iotlb;
use amdvi_irt::Delivery;
use amdvi_regs::event::EventCounterZero;
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, PhysMemory, Segment};

use crate::ats::Registered;
use crate::host::{Changes, Host, Invalidated, Observer};
use crate::mmio::{self, Effects};
use crate::options::Options;
use crate::pci;
use crate::save::{RestoreError, SavedState};
use crate::state::{Offer, Registers};

/// An emulated AMD IOMMU.
///
/// All methods take `&self` and may be called from any thread. There is one lock, around the
/// registers; it is never held while the host, an observer or a requester is waited for. The
/// devices behind the IOMMU don't take it at all, except to log a fault.
pub struct Iommu {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) iotlb: Arc<Iotlb>,
    /// Size of each endpoint's cache of translations.
    pub(crate) dma_cache_entries: usize,
    pub(crate) memory: Arc<dyn PhysMemory>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) offer: Offer,
    device_id: DeviceId,
    segment: Segment,
    inner: Mutex<Inner>,
}

/// What the lock protects.
pub(crate) struct Inner {
    pub(crate) registers: Registers,
    /// What invalidation commands have touched since observers last heard of it.
    pub(crate) changes: Changes,
    /// The DMA mappings among it.
    pub(crate) invalidated: Invalidated,
    /// Something was invalidated since the last drain.
    pub(crate) undrained: bool,
    /// Somebody runs the command processor.
    pub(crate) processing: bool,
    /// The command at the head waits for devices, and nobody runs the command processor until one of
    /// them answers or the time is over.
    pub(crate) stalled: bool,
    /// The last invalidation that was sent to a device.
    pub(crate) last_ticket: u64,
    /// The functions that have a TLB of their own.
    pub(crate) ats: Vec<Registered>,
    /// Counts the events after which a command that was fetched before is no longer at the head.
    pub(crate) epoch: u64,
    pub(crate) slots: Arc<[Arc<Slot>]>,
    pub(crate) observers: Arc<[Arc<dyn Observer>]>,
    /// Observers have to hear that everything has changed.
    announce: bool,
}

impl Inner {
    /// Observers hear that everything has changed when the lock is released. Should a COMPLETION_WAIT of
    /// another vCPU overtake that, it announces the same before its store.
    fn announce_all(&mut self) {
        self.announce = true;
        self.changes = Changes::All;
    }
}

/// What follows from a change of state once the lock is released.
#[must_use]
pub(crate) struct Emission {
    interrupts: [Option<Delivery>; 3],
    announce: Option<Arc<[Arc<dyn Observer>]>>,
}

impl Emission {
    pub(crate) fn is_empty(&self) -> bool {
        self.interrupts.iter().all(Option::is_none) && self.announce.is_none()
    }
}

impl Iommu {
    /// Builds the device in its reset state, enabled at its MMIO base as firmware leaves it.
    pub fn new(options: &Options, memory: Arc<dyn PhysMemory>, host: Arc<dyn Host>) -> Arc<Self> {
        let offer = Offer {
            efr: options.efr(),
            efr2: options.efr2(),
            np_cache: options.np_cache(),
            device_iotlb: options.device_iotlb(),
            counters: options.perf_counters(),
            mmio_base: options.mmio_base(),
            mmio_size: options.mmio_size(),
        };
        let view = View::new(offer.efr, offer.efr2);
        let (banks, per_bank) = offer.counters;
        Arc::new_cyclic(|iommu: &Weak<Self>| Self {
            fabric: Arc::new(Fabric::new(
                view.with_counters(Counters::new(banks, per_bank, wrapped(iommu.clone()))),
                Barrier::best(),
            )),
            iotlb: Arc::new(Iotlb::new(options.iotlb_entries())),
            dma_cache_entries: options.dma_cache_entries(),
            memory,
            host,
            offer,
            device_id: options.device_id(),
            segment: options.segment(),
            inner: Mutex::new(Inner {
                registers: Registers::reset(),
                changes: Changes::none(),
                invalidated: Invalidated::none(),
                undrained: false,
                processing: false,
                stalled: false,
                last_ticket: 0,
                ats: Vec::new(),
                epoch: 0,
                slots: Arc::new([]),
                observers: Arc::new([]),
                announce: false,
            }),
        })
    }

    /// Guest physical address of the register file.
    pub fn mmio_base(&self) -> u64 {
        self.offer.mmio_base
    }

    /// Size of the register file in bytes: 16 KiB, or 512 KiB with performance counters.
    pub fn mmio_size(&self) -> u64 {
        self.offer.mmio_size
    }

    /// DeviceID of the IOMMU's own PCI function.
    pub fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// PCI segment group that the IOMMU serves.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The Extended Feature Register as the guest reads it, for the IVHD's image.
    pub fn efr(&self) -> ExtendedFeature {
        self.offer.efr
    }

    /// The second Extended Feature Register as the guest reads it, for the IVHD's image.
    pub fn efr2(&self) -> ExtendedFeature2 {
        self.offer.efr2
    }

    /// The control register.
    pub fn control(&self) -> Control {
        self.fabric.view.control()
    }

    /// Reads `data.len()` bytes at `offset` from the MMIO base: any size, any alignment. Holes and
    /// registers that are not offered read as 0.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.update(|inner| {
            let counters = &self.fabric.view.counters;
            mmio::read(&inner.registers, &self.offer, counters, offset, data);
        });
    }

    /// Writes `data` at `offset` from the MMIO base: any size, any alignment.
    ///
    /// A write that gives the command processor work runs up to
    /// [`COMMANDS_PER_CALL`](Self::COMMANDS_PER_CALL) commands before it returns; for the rest it
    /// calls [`Host::commands_pending`].
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        let commands = self.update(|inner| {
            let counters = &self.fabric.view.counters;
            let counted = counters.interrupts();
            let effects = mmio::write(&mut inner.registers, &self.offer, counters, offset, data);
            self.apply(inner, effects);
            if counters.interrupts() != counted {
                // Routes that lead past the IOMMU are not to be used while it counts.
                inner.announce_all();
            }
            effects.commands
        });
        if commands && self.process() {
            self.host.commands_pending();
        }
    }

    /// Reads `data.len()` bytes of the PCI configuration space at `offset`. Beyond what exists,
    /// extended space included, they are 0.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        pci::read(&self.lock().registers, &self.offer, offset, data);
    }

    /// Writes `data` to the PCI configuration space at `offset`.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        self.update(|inner| pci::write(&mut inner.registers, offset, data));
    }

    /// Continues with the commands in the command buffer, up to
    /// [`COMMANDS_PER_CALL`](Self::COMMANDS_PER_CALL). Returns whether more remain.
    ///
    /// If another thread is running commands already this returns `false` at once: that thread sees
    /// the rest.
    pub fn run_commands(&self) -> bool {
        self.process()
    }

    /// Adds somebody to be told of changes.
    pub fn add_observer(&self, observer: Arc<dyn Observer>) {
        let mut inner = self.lock();
        inner.observers = inner.observers.iter().cloned().chain([observer]).collect();
    }

    /// Takes away an observer that was [added](Self::add_observer). A notification that is under way on
    /// another thread may still reach it.
    pub fn remove_observer(&self, observer: &Arc<dyn Observer>) {
        let mut inner = self.lock();
        let same = |other: &Arc<dyn Observer>| {
            std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(observer))
        };
        let kept = inner.observers.iter().filter(|other| !same(other));
        inner.observers = kept.cloned().collect();
    }

    /// Platform reset: registers, configuration space and MSI capability as after power-on, enabled
    /// at the same base. Endpoints and observers stay; the latter are told that everything changed.
    pub fn reset(&self) {
        self.replace(Registers::reset(), &[]);
    }

    /// Waits until every interrupt and DMA request has ended that began before. What the guest has
    /// invalidated is out of use then; before memory is handed to another machine, stop the devices
    /// and call this. Not from a thread that has such a request in flight itself.
    pub fn quiesce(&self) {
        let slots = self.lock().slots.clone();
        self.fabric.drain(slots.iter(), std::thread::yield_now);
    }

    /// The architectural state. Pause the vCPUs first: what they do meanwhile may or may not be in
    /// it. A command that is waiting for its completion is still at the head, and runs again; an
    /// invalidation that a device has not answered is sent again.
    pub fn save(&self) -> SavedState {
        let inner = self.lock();
        SavedState::new(
            &inner.registers,
            self.fabric.view.counters.save(),
            &self.offer,
        )
    }

    /// Replaces the state by a saved one, as if the guest had done to this device what it did to
    /// the other. Interrupts that were sent before are not sent again. If commands remain,
    /// [`Host::commands_pending`] is called.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] if the state is of another version, of a device that offers other features,
    /// or holds a value that no guest could have written; the device is untouched then.
    pub fn restore(&self, state: &SavedState) -> Result<(), RestoreError> {
        let (registers, counters) = state.check(&self.offer, &self.fabric.view.counters)?;
        let registers = registers.clone();
        let pending = registers.commands_run()
            && (registers.command.head != registers.command.tail
                || !registers.invalidations.is_empty());
        self.replace(registers, counters);
        if pending {
            self.host.commands_pending();
        }
        Ok(())
    }

    fn replace(&self, registers: Registers, counters: &[u64]) {
        let (_, emission) = self.locked(|inner| {
            inner.registers = registers;
            self.fabric.view.counters.restore(counters);
            self.apply(
                inner,
                Effects {
                    view: true,
                    translation: true,
                    commands: false,
                    commands_moved: true,
                    counting: true,
                },
            );
        });
        // What began under the old state is not to be seen under the new one.
        self.quiesce();
        // Conditions that hold in a restored state were reported where it was saved.
        self.emit(Emission {
            interrupts: [None; 3],
            ..emission
        });
    }

    fn apply(&self, inner: &mut Inner, effects: Effects) {
        let Inner { registers, .. } = &*inner;
        if effects.view {
            let view = &self.fabric.view;
            view.set_control(registers.control());
            for (n, &base) in registers.device_tables.iter().enumerate() {
                view.set_device_table(n, DeviceTableBase::from_bits(base));
            }
            view.set_exclusion(registers.exclusion);
        }
        if effects.translation {
            self.fabric.invalidate_all();
            inner.undrained = true;
            inner.announce_all();
        }
        if effects.counting {
            self.fabric.wake();
        }
        if effects.commands_moved {
            inner.epoch += 1;
            // Whatever is at the head now may not have to wait.
            inner.stalled = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is valid between any two register writes, so a panic elsewhere can't have left
        // it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state under the lock; what follows from it is for [`emit`](Self::emit).
    pub(crate) fn locked<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> (R, Emission) {
        let mut inner = self.lock();
        let before = inner.registers.interrupt_conditions();
        let result = change(&mut inner);
        for note in self.fabric.view.counters.wrapped() {
            let event = EventCounterZero::new()
                .with_note_51_32((note >> 32) as u32)
                .with_note_31_0(note as u32);
            inner.registers.log_event(&*self.memory, &event.into());
        }
        let raised = inner.registers.interrupt_conditions() & !before;
        let interrupts = inner.registers.own_interrupts(raised);
        let announce = std::mem::take(&mut inner.announce).then(|| inner.observers.clone());
        (
            result,
            Emission {
                interrupts,
                announce,
            },
        )
    }

    /// Sends what a change of state makes necessary, with no lock held.
    pub(crate) fn emit(&self, emission: Emission) {
        if emission.is_empty() {
            return;
        }
        for observer in emission
            .announce
            .iter()
            .flat_map(|observers| observers.iter())
        {
            observer.changed(&Changes::All);
            observer.invalidated(&Invalidated::All);
        }
        for delivery in emission.interrupts.iter().flatten() {
            self.host.deliver(delivery);
        }
    }

    /// [`locked`](Self::locked), then [`emit`](Self::emit).
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let (result, emission) = self.locked(change);
        self.emit(emission);
        result
    }
}

/// What happens when a counter has wrapped: whoever takes the lock reports it.
fn wrapped(iommu: Weak<Iommu>) -> impl Fn() + Send + Sync {
    move || {
        if let Some(iommu) = iommu.upgrade() {
            iommu.update(|_| {});
        }
    }
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu")
            .field("device_id", &self.device_id)
            .field("segment", &self.segment)
            .field("offer", &self.offer)
            .field("control", &self.control())
            .finish_non_exhaustive()
    }
}
