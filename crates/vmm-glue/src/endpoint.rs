//! An endpoint of `amdvi-device` as the way of an interrupt source's requests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use amdvi_device::{Endpoint, Signal};
use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;

use crate::RemapSource;

/// A requester behind an [`amdvi_device::Iommu`], for a source that sends by itself: an IOAPIC on
/// KVM (`KvmPins`), a device whose interrupts are irqfds.
///
/// [`request_with`](RemapSource::request_with) sends while the request is in flight, so that a
/// COMPLETION_WAIT covers it. The device's own `Host::deliver` is not called.
#[derive(Debug)]
pub struct RemappedSource {
    endpoint: Mutex<Endpoint>,
}

impl RemappedSource {
    /// Wraps the endpoint of the source's DeviceID.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint: Mutex::new(endpoint),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Endpoint> {
        // An endpoint is valid between any two calls, whatever its last user did.
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemapSource for RemappedSource {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        self.request_with(msi, &mut |_| ())
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.lock().resolve(msi)
    }

    fn route(&self, msi: Msi) -> Option<Delivery> {
        self.lock().route(msi)
    }

    fn routes(&self, messages: &[Msi], tell: &mut dyn FnMut(Option<Delivery>)) {
        self.lock().routes(messages, tell);
    }

    fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
        match self.lock().signal_with(msi, send) {
            Signal::Delivered(delivery) => Some(delivery),
            Signal::Posted | Signal::Blocked(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use amdvi_device::testing::{TestHost, TestMemory};
    use amdvi_device::{Iommu, Options};
    use amdvi_regs::command::{Command, CompletionWait, InvalidateIommuAll};
    use amdvi_regs::mmio::{Control, RingBase, offset};
    use amdvi_regs::{DeviceId, PhysMemory};

    use super::*;

    const RING: u64 = 0x1000;
    const STORE: u64 = 0x8000;
    const MSI: Msi = Msi {
        address: 0xfee0_1000,
        data: 0x31,
    };

    struct Rig {
        memory: Arc<TestMemory>,
        host: Arc<TestHost>,
        iommu: Arc<Iommu>,
        source: RemappedSource,
    }

    fn rig() -> Rig {
        let memory = Arc::new(TestMemory::new(0x40_0000));
        let host = Arc::new(TestHost::default());
        let options: Options = "amd-iommu".parse().unwrap();
        let iommu = Iommu::new(&options, memory.clone(), host.clone());
        let source = RemappedSource::new(iommu.endpoint(DeviceId::new(0, 5, 0)));
        Rig {
            memory,
            host,
            iommu,
            source,
        }
    }

    #[test]
    fn deciding_and_resolving_send_nothing() {
        let rig = rig();
        let expected = Some(Delivery::from_msi(MSI));
        assert_eq!(rig.source.request(MSI), expected);
        assert_eq!(rig.source.resolve(MSI), expected);
        assert!(rig.host.take_deliveries().is_empty());
    }

    #[test]
    fn a_completion_wait_waits_until_the_source_has_sent() {
        let rig = rig();
        let write = |at, value: u64| rig.iommu.mmio_write(at, &value.to_le_bytes());
        let ring = RingBase::new().with_base_page(RING >> 12).with_length(8);
        write(offset::COMMAND_BUFFER_BASE, ring.into_bits());
        let control = Control::RESET.with_iommu_en(true).with_cmd_buf_en(true);
        write(offset::CONTROL, control.into_bits());
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(1);
        let commands: [Command; 2] = [InvalidateIommuAll::new().into(), wait.into()];
        for (slot, command) in (0..).zip(commands) {
            for (word, value) in (0..).zip(command.words()) {
                let gpa = RING + slot * 16 + word * 8;
                rig.memory.store_u64(gpa, value).unwrap();
            }
        }
        let sending = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                rig.source.request_with(MSI, &mut |_| {
                    sending.store(true, Ordering::Release);
                    // Long enough for a wait that does not wait to be caught.
                    thread::sleep(Duration::from_millis(30));
                    assert_eq!(rig.memory.load_u64(STORE), Ok(0), "completed while sending");
                });
            });
            while !sending.load(Ordering::Acquire) {
                thread::yield_now();
            }
            write(offset::COMMAND_TAIL, 32);
            assert_eq!(rig.memory.load_u64(STORE), Ok(1));
        });
    }
}
