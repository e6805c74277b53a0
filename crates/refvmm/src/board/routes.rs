//! Interrupts that go past the IOMMU by routes which say what it says: irqfds.

use std::sync::{Arc, Weak};

use amdvi_device::{Changes, Observer, Signal};
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;
use amdvi_vmm_glue::RemapSource;

use super::Injector;
use super::ioapic::BoardIoapic;
use super::recorder::Recorder;
use super::socket::Handle;

/// The routes of a function's vectors, as the machine that runs the CPUs has them.
pub trait VectorRoutes: Send + Sync {
    /// The function sends `vector`, whose message is `msi`. If there is a route for that, sends it and
    /// returns what is delivered; calls `before` just before. See
    /// [`FunctionIrqfds::trigger`](amdvi_vmm_glue::kvm::FunctionIrqfds::trigger).
    fn trigger(&self, vector: u16, msi: Msi, before: &mut dyn FnMut(&Delivery))
    -> Option<Delivery>;
}

/// The MSI-X vectors of a function, for all of its threads.
#[derive(Clone, Default)]
pub struct Vectors {
    routes: Option<Arc<dyn VectorRoutes>>,
    recorder: Arc<Recorder>,
}

impl Vectors {
    pub(super) fn new(routes: Option<Arc<dyn VectorRoutes>>, recorder: Arc<Recorder>) -> Self {
        Self { routes, recorder }
    }

    /// Whether some can go by routes.
    pub fn have_routes(&self) -> bool {
        self.routes.is_some()
    }

    /// Sends `vector`, whose message is `msi`, an interrupt: by a route, or through the IOMMU by
    /// `handle`. Not to be called during an access to memory by a handle.
    pub fn signal(&self, handle: &Handle, vector: u16, msi: Msi) -> Signal {
        let mut record = |delivery: &Delivery| self.recorder.push(delivery);
        let routes = self.routes.as_deref();
        match routes.and_then(|routes| routes.trigger(vector, msi, &mut record)) {
            Some(delivery) => Signal::Delivered(delivery),
            None => handle.signal(msi),
        }
    }
}

/// A handle that no device's thread uses, for finding out what routes must say.
pub(super) struct RouteSource(pub(super) Arc<Handle>);

impl RemapSource for RouteSource {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        self.request_with(msi, &mut |_| ())
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.0.resolve(msi)
    }

    fn route(&self, msi: Msi) -> Option<Delivery> {
        self.0.route(msi)
    }

    fn routes(&self, messages: &[Msi], tell: &mut dyn FnMut(Option<Delivery>)) {
        self.0.routes(messages, tell);
    }

    fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
        match self.0.signal_with(msi, |delivery, _| send(delivery)) {
            Signal::Delivered(delivery) => Some(delivery),
            Signal::Posted | Signal::Blocked(_) => None,
        }
    }
}

/// Keeps the routes of an IOMMU's functions in step with the guest's tables, and those of the IOAPIC
/// if it is one of them: in one go, so that KVM gets one table.
pub(super) struct RouteKeeper {
    injector: Arc<dyn Injector>,
    /// The IOMMU's place in [`Config::iommus`](super::Config::iommus).
    iommu: u32,
    /// Weak, since the device that is observed is what the IOAPIC's requests go through.
    ioapic: Option<(Weak<BoardIoapic>, DeviceId)>,
}

impl RouteKeeper {
    pub(super) fn new(
        injector: Arc<dyn Injector>,
        iommu: usize,
        ioapic: Option<(&Arc<BoardIoapic>, DeviceId)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            injector,
            iommu: iommu as u32,
            ioapic: ioapic.map(|(ioapic, requester)| (Arc::downgrade(ioapic), requester)),
        })
    }
}

impl Observer for RouteKeeper {
    fn changed(&self, changes: &Changes) {
        let touches = |device_id| changes.touches(device_id);
        self.injector.tables_changed(self.iommu, &touches, &mut || {
            if let Some((ioapic, requester)) = &self.ioapic
                && touches(*requester)
                && let Some(ioapic) = ioapic.upgrade()
            {
                ioapic.tables_changed();
            }
        });
    }
}
