//! How a virtio function tells its driver that something happened.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use amdvi_regs::msi::{Msi, is_msi_address};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::lock;
use crate::board::pci::{Msix, MsixState, Request};
use crate::board::snapshot::{StateError, ensure};
use crate::board::{Handle, Vectors};

/// VIRTIO_MSI_NO_VECTOR: this event has no vector.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// ISR status\[0\]: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR status\[1\]: the device's configuration or status changed.
const ISR_CONFIG: u8 = 2;

/// Sends the message of a vector. One whose address is not in the interrupt window is what it is on the bus: a
/// write of four bytes to memory, which the IOMMU translates or refuses. The result is nobody's: a
/// posted write has none.
fn send(routes: &Vectors, handle: &Handle, vector: u16, msi: Msi) {
    if is_msi_address(msi.address) {
        routes.signal(handle, vector, msi);
    } else {
        let mut space = handle.space();
        let _ = space
            .enter()
            .write_slice(&msi.data.to_le_bytes(), GuestAddress(msi.address));
    }
}

/// What is saved; the right to master the bus is configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InterruptsState {
    msix: MsixState,
    config: u16,
    queues: Vec<u16>,
    isr: u8,
}

/// The MSI-X table, which event has which vector, and the ISR status.
pub(super) struct Interrupts {
    vectors: u16,
    routes: Vectors,
    /// Held while a message is sent, so that none is on its way after the driver masked its vector.
    msix: Mutex<Msix>,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    isr: AtomicU8,
    bus_master: AtomicBool,
}

impl Interrupts {
    /// A vector for each queue, and one for changes of the configuration.
    pub(super) fn new(queues: u16, routes: Vectors) -> Self {
        Self {
            vectors: queues + 1,
            routes,
            msix: Mutex::new(Msix::new(queues + 1)),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            bus_master: AtomicBool::new(false),
        }
    }

    /// Looks at the table, or changes it.
    pub(super) fn with_msix<T>(&self, look: impl FnOnce(&mut Msix) -> T) -> T {
        look(&mut lock(&self.msix))
    }

    /// Without the right to master the bus a function sends no messages.
    pub(super) fn set_bus_master(&self, may: bool) {
        self.bus_master.store(may, Ordering::Release);
    }

    fn vector(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            Some(queue) => self.queues.get(usize::from(queue)),
            None => Some(&self.config),
        }
    }

    /// The vector of a queue or, without one, of the configuration.
    pub(super) fn assigned(&self, queue: Option<u16>) -> u16 {
        self.vector(queue)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Assigns a vector; one that does not exist is refused, which the driver sees in what it reads
    /// back.
    pub(super) fn assign(&self, queue: Option<u16>, vector: u16) {
        if let Some(register) = self.vector(queue) {
            let vector = if vector < self.vectors {
                vector
            } else {
                NO_VECTOR
            };
            register.store(vector, Ordering::Release);
        }
    }

    /// Buffers of `queue` were used.
    pub(super) fn queue_used(&self, queue: u16, handle: &Handle) {
        self.raise(Some(queue), ISR_QUEUE, handle);
    }

    /// The configuration or the status changed.
    pub(super) fn config_changed(&self, handle: &Handle) {
        self.raise(None, ISR_CONFIG, handle);
    }

    fn raise(&self, queue: Option<u16>, isr: u8, handle: &Handle) {
        let mut msix = lock(&self.msix);
        if !msix.enabled() {
            // There is no INTx: what polls can see it here.
            self.isr.fetch_or(isr, Ordering::AcqRel);
            return;
        }
        let vector = self.assigned(queue);
        if vector != NO_VECTOR
            && self.bus_master.load(Ordering::Acquire)
            && let Request::Send(msi) = msix.request(u32::from(vector))
        {
            send(&self.routes, handle, vector, msi);
        }
    }

    /// Sends what was pending and may go now.
    pub(super) fn flush(&self, handle: &Handle) {
        let mut msix = lock(&self.msix);
        if self.bus_master.load(Ordering::Acquire) {
            for (vector, msi) in msix.take_ready_vectors() {
                send(&self.routes, handle, vector, msi);
            }
        }
    }

    pub(super) fn save(&self) -> InterruptsState {
        let assigned = |queue: usize| self.assigned(Some(queue as u16));
        InterruptsState {
            msix: lock(&self.msix).save(),
            config: self.assigned(None),
            queues: (0..self.queues.len()).map(assigned).collect(),
            isr: self.isr.load(Ordering::Acquire),
        }
    }

    /// Takes over a saved state, with Message Control as it is in configuration space.
    pub(super) fn restore(&self, state: &InterruptsState, control: u16) -> Result<(), StateError> {
        ensure(
            state.queues.len() == self.queues.len(),
            "vectors of another number of queues",
        )?;
        lock(&self.msix).restore(&state.msix, control)?;
        self.assign(None, state.config);
        for (queue, vector) in (0..).zip(&state.queues) {
            self.assign(Some(queue), *vector);
        }
        self.isr.store(state.isr, Ordering::Release);
        Ok(())
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// What a reset of the virtio device does; the MSI-X table is the PCI function's and stays.
    pub(super) fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
    }
}
