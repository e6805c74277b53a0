//! DMA: from an IOVA through the IOMMU to guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use amdvi_dma::Access;
use amdvi_regs::DeviceId;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::board::socket::Handle;

/// One queue's way to memory.
pub(super) struct Dma {
    handle: Arc<Handle>,
    memory: Arc<GuestMemoryMmap>,
    requester: AtomicU16,
}

impl Dma {
    pub(super) fn new(handle: Arc<Handle>, memory: Arc<GuestMemoryMmap>) -> Self {
        let requester = AtomicU16::new(handle.space().endpoint().device_id().0);
        Self {
            handle,
            memory,
            requester,
        }
    }

    /// The DeviceID that requests carry.
    pub(super) fn requester(&self) -> DeviceId {
        DeviceId(self.requester.load(Ordering::Acquire))
    }

    /// Lets requests carry another DeviceID from the next transfer on.
    pub(super) fn set_requester(&self, id: DeviceId) {
        self.requester.store(id.0, Ordering::Release);
    }

    /// Copies memory at `iova` to `buffer` or, for a write, the buffer to memory. `false` when the
    /// IOMMU aborted the transfer or nothing is at the translated address; what came before that is
    /// done, as on a real bus.
    pub(super) fn transfer(&self, mut iova: u64, mut buffer: &mut [u8], access: Access) -> bool {
        let mut space = self.handle.space();
        let endpoint = space.endpoint();
        // Asked each time: a device that was restored has handed out a new handle.
        if endpoint.device_id() != self.requester() {
            endpoint.set_device_id(self.requester());
        }
        while !buffer.is_empty() {
            let Ok(span) = endpoint.translate(iova, buffer.len() as u64, access) else {
                return false;
            };
            let len = usize::try_from(span.len)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            if len == 0 {
                return false;
            }
            let (now, rest) = buffer.split_at_mut(len);
            let at = GuestAddress(span.gpa);
            let done = match access {
                Access::Read => self.memory.read_slice(now, at),
                Access::Write | Access::Atomic => self.memory.write_slice(now, at),
            };
            if done.is_err() {
                return false;
            }
            iova = iova.wrapping_add(len as u64);
            buffer = rest;
        }
        true
    }
}
