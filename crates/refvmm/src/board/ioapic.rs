//! The IOAPIC of `amdvi-vmm-glue`, connected to this board.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amdvi_device::Signal;
use amdvi_irt::{Delivery, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::ioapic::{Ioapic, IoapicSink, IoapicState};

use super::Injector;
use super::snapshot::StateError;
use super::socket::{Handle, Socket};
use crate::layout;

/// The way of the pins' requests: through the IOMMU under the IOAPIC's DeviceID.
struct Pins {
    handle: Arc<Handle>,
    injector: Arc<dyn Injector>,
}

/// The delivery, if an EOI will come for it.
fn level_triggered(delivery: &Delivery) -> Option<&Delivery> {
    (delivery.trigger == Trigger::Level).then_some(delivery)
}

impl IoapicSink for Pins {
    fn request(&mut self, pin: u8, msi: Msi) -> Option<Delivery> {
        // Route and send while the request is in flight: the way of the EOI stands before the
        // interrupt can be handled, and a COMPLETION_WAIT covers both.
        let injector = &self.injector;
        let signal = self.handle.signal_with(msi, |delivery, send| {
            injector.route_pin(pin, level_triggered(delivery));
            injector.commit_routes();
            send(delivery);
        });
        match signal {
            Signal::Delivered(delivery) => Some(delivery),
            _ => None,
        }
    }

    fn resolve(&mut self, _pin: u8, msi: Msi) -> Option<Delivery> {
        self.handle.resolve(msi)
    }

    fn route(&mut self, pin: u8, target: Option<&Delivery>) {
        self.injector
            .route_pin(pin, target.and_then(level_triggered));
    }

    fn inject(&mut self, _pin: u8, _delivery: &Delivery) {
        // `request` did it.
    }

    fn settle(&mut self) {
        self.injector.commit_routes();
    }
}

/// The IOAPIC, for any thread.
pub(super) struct BoardIoapic {
    inner: Mutex<Ioapic<Pins>>,
}

impl BoardIoapic {
    /// The IOAPIC behind the IOMMU in `socket`; its requests carry `requester`.
    pub(super) fn new(
        socket: &Socket,
        requester: DeviceId,
        injector: Arc<dyn Injector>,
    ) -> Arc<Self> {
        let pins = Pins {
            handle: socket.handle(requester),
            injector,
        };
        Arc::new(Self {
            inner: Mutex::new(Ioapic::new(layout::IOAPIC_ID, pins)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ioapic<Pins>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.lock().mmio_read(offset, data);
    }

    pub(super) fn mmio_write(&self, offset: u64, data: &[u8]) {
        self.lock().mmio_write(offset, data);
    }

    /// Sets a pin's line; a pin that does not exist is ignored, the number is the guest's.
    pub(super) fn set_line(&self, pin: u8, asserted: bool) {
        let _ = self.lock().set_line(pin.into(), asserted);
    }

    pub(super) fn eoi(&self, vector: u8) {
        self.lock().eoi(vector);
    }

    pub(super) fn save(&self) -> IoapicState {
        self.lock().save()
    }

    pub(super) fn restore(&self, state: &IoapicState) -> Result<(), StateError> {
        let restored = self.lock().restore(state);
        restored.map_err(|error| StateError(error.to_string()))
    }

    /// The guest's tables changed: routes and blocked requests are looked at again.
    pub(super) fn tables_changed(&self) {
        self.lock().tables_changed();
    }
}
