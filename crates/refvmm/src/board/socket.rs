//! Where the IOMMU is plugged in: it can be replaced while its users keep their handles.
//!
//! A VMM that migrates builds the new device on another host. This board does it under a running
//! guest, so that a test guest can see that nothing is lost on the way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use amdvi_device::{Endpoint, Host, Iommu, Observer, Options, RestoreError, Signal};
use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;
use amdvi_regs::{DeviceId, PhysMemory};

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
    memory: Arc<dyn PhysMemory>,
    host: Arc<dyn Host>,
    current: RwLock<Arc<Iommu>>,
    handles: Mutex<Vec<Arc<Handle>>>,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Socket {
    /// Builds the device.
    pub(crate) fn new(options: Options, memory: Arc<dyn PhysMemory>, host: Arc<dyn Host>) -> Self {
        let iommu = Iommu::new(&options, Arc::clone(&memory), Arc::clone(&host));
        Self {
            options,
            memory,
            host,
            current: RwLock::new(iommu),
            handles: Mutex::default(),
            observers: Mutex::default(),
        }
    }

    /// Uses the device; it is not replaced meanwhile.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&Arc<Iommu>) -> T) -> T {
        use_it(&self.current.read().unwrap_or_else(PoisonError::into_inner))
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
                endpoint: Mutex::new(iommu.endpoint(device_id)),
                host: Arc::clone(&self.host),
            });
            lock(&self.handles).push(Arc::clone(&handle));
            handle
        })
    }

    /// Saves the device's state, restores it into a new device, and puts that in its place.
    ///
    /// The state goes through text, as it would through a migration stream.
    pub(crate) fn save_and_restore(&self) -> Result<(), SaveRestoreError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let handles = lock(&self.handles);
        // With every handle held, no interrupt or DMA is on its way through the old device.
        let mut endpoints: Vec<_> = handles
            .iter()
            .map(|handle| (handle.device_id, lock(&handle.endpoint)))
            .collect();
        let stream = serde_json::to_vec(&current.save())?;
        let iommu = Iommu::new(
            &self.options,
            Arc::clone(&self.memory),
            Arc::clone(&self.host),
        );
        iommu.restore(&serde_json::from_slice(&stream)?)?;
        for (device_id, endpoint) in &mut endpoints {
            **endpoint = iommu.endpoint(*device_id);
        }
        for observer in lock(&self.observers).iter() {
            iommu.add_observer(Arc::clone(observer));
        }
        *current = iommu;
        Ok(())
    }
}

/// One requester's way through whichever device is plugged in.
pub(crate) struct Handle {
    device_id: DeviceId,
    endpoint: Mutex<Endpoint>,
    host: Arc<dyn Host>,
}

impl Handle {
    /// Takes the requester's endpoint for one operation.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Endpoint> {
        lock(&self.endpoint)
    }

    /// Sends an interrupt message.
    pub(crate) fn signal(&self, msi: Msi) -> Signal {
        self.lock().signal(msi)
    }

    /// Sends an interrupt message in a way of the source's own. `deliver` gets the delivery and
    /// what sends it.
    pub(crate) fn signal_with(
        &self,
        msi: Msi,
        deliver: impl FnOnce(&Delivery, &dyn Fn(&Delivery)),
    ) -> Signal {
        let send = |delivery: &Delivery| self.host.deliver(delivery);
        self.lock()
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
