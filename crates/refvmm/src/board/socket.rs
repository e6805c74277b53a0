//! Where the IOMMU is plugged in: it can be replaced while its users keep their handles.
//!
//! A VMM that migrates builds the new device on another host. This board does it under a running
//! guest, so that a test guest can see that nothing is lost on the way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use super::patience::Patience;
use crate::ram::Memory;
use amdvi_device::{DeviceAts, Host, Iommu, Observer, Options, RestoreError, Signal};
use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;
use amdvi_regs::{DeviceId, PhysMemory, Segment};
use amdvi_vmm_glue::dma::DmaSpace;
use amdvi_vmm_glue::ram::GuestRam;

/// Why the device could not be replaced; the old one is still in its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveRestoreError {
    /// The state could not be written or read.
    #[error("the IOMMU's state as text: {0}")]
    Text(#[from] serde_json::Error),
    /// The new device refused it.
    #[error(transparent)]
    Refused(#[from] RestoreError),
}

/// The IOMMU, what it was built from, and the handles of its requesters.
///
/// Lock order: `current`, then the handles. Nothing that the device calls back into takes
/// `current`, so that a callback can never wait for a replacement that waits for it.
pub(crate) struct Socket {
    options: Options,
    memory: Arc<Memory>,
    physical: Arc<dyn PhysMemory>,
    host: Arc<dyn Host>,
    /// Of the `host`.
    patience: Arc<Patience>,
    current: RwLock<Arc<Iommu>>,
    handles: Mutex<Vec<Arc<Handle>>>,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Socket {
    /// Builds the device; `patience` is what its `host` has with devices.
    pub(super) fn new(
        options: Options,
        memory: Arc<Memory>,
        host: Arc<dyn Host>,
        patience: Arc<Patience>,
    ) -> Self {
        let physical: Arc<dyn PhysMemory> = Arc::new(GuestRam::new(Arc::clone(&memory)));
        let iommu = Iommu::new(&options, Arc::clone(&physical), Arc::clone(&host));
        Self {
            options,
            memory,
            physical,
            host,
            patience,
            current: RwLock::new(iommu),
            handles: Mutex::default(),
            observers: Mutex::default(),
        }
    }

    /// The segment and DeviceID of the IOMMU's own function.
    pub(crate) fn place(&self) -> (Segment, DeviceId) {
        (self.options.segment(), self.options.device_id())
    }

    /// Uses the device; it is not replaced meanwhile.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&Arc<Iommu>) -> T) -> T {
        use_it(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.patience.end()
    }

    /// Lets the device go on if it has waited for others for long enough.
    pub(super) fn expire(&self, now: Instant) {
        self.with(|iommu| {
            if let Some(wait) = self.patience.take_over(now) {
                iommu.expire_invalidations(&wait);
            }
        });
    }

    /// Reads a register of the device; `false` when it does not decode `gpa`.
    pub(crate) fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.with(|iommu| match offset(iommu, gpa) {
            Some(offset) => {
                iommu.mmio_read(offset, data);
                true
            }
            None => false,
        })
    }

    /// Writes a register of the device; `false` when it does not decode `gpa`.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.with(|iommu| match offset(iommu, gpa) {
            Some(offset) => {
                iommu.mmio_write(offset, data);
                true
            }
            None => false,
        })
    }

    /// Adds somebody to be told of changes by whichever device is plugged in.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        self.with(|iommu| iommu.add_observer(Arc::clone(&observer)));
        lock(&self.observers).push(observer);
    }

    /// A new handle for the requester `device_id`, which survives replacement of the device.
    pub(crate) fn handle(&self, device_id: DeviceId) -> Arc<Handle> {
        self.with(|iommu| {
            let handle = Arc::new(Handle {
                device_id,
                space: Mutex::new(self.space(iommu, device_id)),
                ats: Mutex::default(),
                host: Arc::clone(&self.host),
            });
            lock(&self.handles).push(Arc::clone(&handle));
            handle
        })
    }

    fn space(&self, iommu: &Arc<Iommu>, device_id: DeviceId) -> Space {
        DmaSpace::new(iommu.endpoint(device_id), Arc::clone(&self.memory))
    }

    /// Saves the device's state, restores it into a new device, and puts that in its place.
    ///
    /// The state goes through text, as it would through a migration stream.
    pub(crate) fn save_and_restore(&self) -> Result<(), SaveRestoreError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let handles = lock(&self.handles);
        // With every handle held, no interrupt or DMA is on its way through the old device.
        let mut spaces: Vec<_> = handles
            .iter()
            .map(|handle| (handle, lock(&handle.space)))
            .collect();
        let stream = serde_json::to_vec(&current.save())?;
        let iommu = Iommu::new(
            &self.options,
            Arc::clone(&self.physical),
            Arc::clone(&self.host),
        );
        iommu.restore(&serde_json::from_slice(&stream)?)?;
        for (handle, space) in &mut spaces {
            **space = self.space(&iommu, handle.device_id);
            if let Some(device) = &*lock(&handle.ats) {
                space.endpoint().set_ats(Arc::clone(device));
            }
        }
        for observer in lock(&self.observers).iter() {
            iommu.add_observer(Arc::clone(observer));
        }
        self.patience.forget();
        *current = iommu;
        Ok(())
    }
}

/// Guest memory as one requester sees it, and its interrupts.
pub type Space = DmaSpace<Memory>;

/// One requester's way through whichever device is plugged in.
pub struct Handle {
    device_id: DeviceId,
    space: Mutex<Space>,
    /// Who hears of invalidations of the function's own TLB.
    ats: Mutex<Option<Arc<dyn DeviceAts>>>,
    host: Arc<dyn Host>,
}

impl Handle {
    /// Takes the requester's view of memory for one operation: `handle.space().enter()` is guest
    /// memory with IOVAs for addresses. The IOMMU is not replaced meanwhile; the thread that holds it
    /// must not access the IOMMU's registers, nor take it again.
    pub fn space(&self) -> MutexGuard<'_, Space> {
        lock(&self.space)
    }

    /// Lets `device` hear of invalidations of the function's own TLB, and of answers to its page
    /// requests; also after the IOMMU was replaced.
    pub fn set_ats(&self, device: Arc<dyn DeviceAts>) {
        // In the order of a replacement: the space's lock first.
        let mut space = self.space();
        *lock(&self.ats) = Some(Arc::clone(&device));
        space.endpoint().set_ats(device);
    }

    /// Sends an interrupt message: remaps it and delivers what results.
    pub fn signal(&self, msi: Msi) -> Signal {
        self.space().endpoint().signal(msi)
    }

    /// What would be delivered for a message now; logs nothing.
    pub fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.space().endpoint().resolve(msi)
    }

    /// What would be delivered for a message, if it may go past the IOMMU now.
    pub fn route(&self, msi: Msi) -> Option<Delivery> {
        self.space().endpoint().route(msi)
    }

    /// As [`route`](Self::route) for each of `messages`, in their order.
    pub fn routes(&self, messages: &[Msi], tell: impl FnMut(Option<Delivery>)) {
        self.space().endpoint().routes(messages, tell);
    }

    /// Sends an interrupt message in a way of the source's own. `deliver` gets the delivery and
    /// what sends it.
    pub fn signal_with(
        &self,
        msi: Msi,
        deliver: impl FnOnce(&Delivery, &dyn Fn(&Delivery)),
    ) -> Signal {
        let send = |delivery: &Delivery| self.host.deliver(delivery);
        self.space()
            .endpoint()
            .signal_with(msi, |delivery| deliver(delivery, &send))
    }
}

/// The offset of a register.
fn offset(iommu: &Iommu, gpa: u64) -> Option<u64> {
    gpa.checked_sub(iommu.mmio_base())
        .filter(|offset| *offset < iommu.mmio_size())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
