//! Virtio devices behind the IOMMU: a modern (1.2) PCI transport, and block, network, console and
//! entropy devices on it.
//!
//! Every device offers VIRTIO_F_ACCESS_PLATFORM and refuses a driver that does not take it: all
//! addresses are IOVAs. Queues are `virtio_queue`'s, over the requester's DMA space; each has a
//! thread of its own, and the notification of the driver only wakes it: where the machine can,
//! without a way through the VMM (an ioeventfd of KVM). While a thread accesses memory, a
//! COMPLETION_WAIT of the guest waits for it, so it never holds that while it waits for something
//! else.

mod blk;
mod chain;
mod console;
mod interrupts;
mod lane;
mod net;
mod pci;
mod rng;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::board::{FunctionBuilder, StateError};
use lane::Handler;

pub use blk::{DiskConfig, DiskError};
pub use console::ConsoleConfig;
pub use net::{ECHO_PORT, NetBackend, NetConfig, PEER_ADDRESS, PEER_MAC};

use pci::VirtioFunction;

/// Feature bits that the transport knows.
mod feature {
    use virtio_bindings::virtio_config::{
        VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
    };
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

    pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    pub(super) const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;
    pub(super) const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;
    pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    pub(super) const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
}

/// What a driver must accept.
const REQUIRED_FEATURES: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;
/// What every device offers.
const COMMON_FEATURES: u64 =
    REQUIRED_FEATURES | feature::RING_RESET | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// The driver or the IOMMU did something that leaves no way to go on: the device needs a reset. The
/// text is for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) &'static str);

/// Who a device is on its bus.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// What its threads and errors are called: "virtio-blk".
    pub(crate) name: &'static str,
    /// The virtio Device ID (5).
    pub(crate) virtio_id: u16,
    /// PCI class code, subclass and programming interface.
    pub(crate) class: [u8; 3],
}

/// The device-specific configuration.
pub(crate) trait Registers: Send + Sync {
    /// Reads; what is behind the end reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]);
}

/// A configuration that never changes.
impl Registers for Vec<u8> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).map_or(usize::MAX, |at| at.saturating_add(n));
            *byte = self.get(at).copied().unwrap_or(0);
        }
    }
}

/// One queue of a device.
pub(crate) struct QueueModel {
    /// The most entries, a power of two.
    pub(crate) max_size: u16,
    /// What serves it.
    pub(crate) handler: Box<dyn Handler>,
}

/// A device, for the transport to put on a bus.
pub(crate) struct Model {
    /// Who it is.
    pub(crate) identity: Identity,
    /// The feature bits of its own that it offers.
    pub(crate) features: u64,
    /// Its configuration.
    pub(crate) registers: Box<dyn Registers>,
    /// Its queues.
    pub(crate) queues: Vec<QueueModel>,
    /// What it depends on on the host.
    pub(crate) backend: Option<Box<dyn Backend>>,
}

/// What a device depends on on the host, and what is not saved but must be the same: a disk's file.
pub(crate) trait Backend: Send + Sync {
    /// What tells it from another, once all that was written is where it belongs.
    fn save(&self) -> Result<Value, StateError>;

    /// Refuses to stand in for another.
    fn check(&self, saved: &Value) -> Result<(), StateError>;
}

/// A function for [`Config::functions`](crate::board::Config::functions): the disk is opened when a
/// board is built.
pub fn disk(config: DiskConfig) -> FunctionBuilder {
    Box::new(move |slot| Ok(VirtioFunction::new(slot, blk::model(&config)?)?))
}

/// A network card, likewise.
pub fn net(config: NetConfig) -> FunctionBuilder {
    Box::new(move |slot| {
        let model = net::model(&config, slot.device_id())?;
        Ok(VirtioFunction::new(slot, model)?)
    })
}

/// A console, likewise.
pub fn console(config: ConsoleConfig) -> FunctionBuilder {
    Box::new(move |slot| Ok(VirtioFunction::new(slot, console::model(&config)?)?))
}

/// A source of entropy, likewise.
pub fn rng() -> FunctionBuilder {
    Box::new(|slot| Ok(VirtioFunction::new(slot, rng::model()?)?))
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
