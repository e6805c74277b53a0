//! A requester's DMA space as the guest memory of the [`vm_memory`] crate.

use std::cell::RefCell;
use std::io;
use std::iter::FusedIterator;
use std::sync::Arc;

use amdvi_device::{Abort, Access, DmaOperation, Endpoint};
use vm_memory::bitmap::{BS, MS};
use vm_memory::guest_memory::{
    Error, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result,
};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, VolatileSlice,
};

/// What a device sees of memory through its [`Endpoint`]: addresses are IOVAs.
///
/// [`enter`](Self::enter) gives a [`DmaMemory`], which is a [`GuestMemory`]: a virtio device hands it
/// to `virtio_queue::Queue` in the place of guest memory and needs no other change.
///
/// A space belongs to one thread at a time; [`clone`](Clone::clone) it for others.
#[derive(Debug)]
pub struct DmaSpace<B> {
    endpoint: Endpoint,
    backend: Arc<B>,
}

impl<B: GuestMemoryBackend> DmaSpace<B> {
    /// The DMA space of `endpoint`; `backend` is the memory behind guest physical addresses, the same
    /// that the IOMMU reads its tables from.
    pub fn new(endpoint: Endpoint, backend: Arc<B>) -> Self {
        Self { endpoint, backend }
    }

    /// The endpoint, for interrupts.
    pub fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Begins an access to memory. A COMPLETION_WAIT of the guest waits until the result is dropped,
    /// so that no slice of memory is in use after the guest was told that its mapping is gone: take
    /// it for the handling of a request or of a queue, not for good. The thread that holds it must
    /// not access the IOMMU's registers.
    pub fn enter(&mut self) -> DmaMemory<'_, B> {
        DmaMemory::begin(&mut self.endpoint, &self.backend)
    }
}

impl<B> Clone for DmaSpace<B> {
    /// The same space for another thread.
    fn clone(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            backend: Arc::clone(&self.backend),
        }
    }
}

/// Memory at IOVAs, for as long as the access that [`DmaSpace::enter`] began.
///
/// Slices end where a page or a region ends. Their dirty bitmap is the region's, keyed by guest
/// physical address, as live migration needs it. A slice that is not permitted ends the iteration
/// with an error that wraps [`Abort`], and logs the one event of the transaction.
#[derive(Debug)]
pub struct DmaMemory<'a, B> {
    operation: RefCell<DmaOperation<'a>>,
    backend: &'a B,
}

impl<'a, B: GuestMemoryBackend> DmaMemory<'a, B> {
    /// As [`DmaSpace::enter`], through an endpoint that is kept elsewhere: behind a lock, say, so
    /// that it can be exchanged when its IOMMU is.
    pub fn begin(endpoint: &'a mut Endpoint, backend: &'a B) -> Self {
        Self {
            operation: RefCell::new(endpoint.begin()),
            backend,
        }
    }
}

fn access(permissions: Permissions) -> Access {
    match permissions {
        Permissions::No | Permissions::Read => Access::Read,
        Permissions::Write => Access::Write,
        Permissions::ReadWrite => Access::Atomic,
    }
}

fn error(abort: Abort) -> Error {
    Error::IOError(io::Error::new(io::ErrorKind::PermissionDenied, abort))
}

impl<B: GuestMemoryBackend> GuestMemory for DmaMemory<'_, B> {
    type PhysicalMemory = B;
    type Bitmap = <B::R as GuestMemoryRegion>::B;

    /// Whether all of the range may be accessed. Logs nothing: it is a question, not a transaction.
    fn check_range(&self, addr: GuestAddress, count: usize, permissions: Permissions) -> bool {
        let access = access(permissions);
        let (mut iova, mut rest) = (addr.0, count as u64);
        let mut operation = self.operation.borrow_mut();
        while rest > 0 {
            let Some(piece) = operation.probe(iova, rest, access) else {
                return false;
            };
            // At most `count`, which is a usize.
            let len = piece.len as usize;
            if !GuestMemoryBackend::check_range(self.backend, GuestAddress(piece.gpa), len) {
                return false;
            }
            // The first piece was refused if the range were to wrap.
            iova = iova.wrapping_add(piece.len);
            rest -= piece.len;
        }
        true
    }

    fn get_slices<'s>(
        &'s self,
        addr: GuestAddress,
        count: usize,
        permissions: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'s, BS<'s, Self::Bitmap>>> {
        Ok(Slices {
            memory: self,
            iova: addr.0,
            rest: count as u64,
            access: access(permissions),
            piece: None,
        })
    }
}

/// The slices of a range of IOVAs.
struct Slices<'s, 'a, B: GuestMemoryBackend> {
    memory: &'s DmaMemory<'a, B>,
    /// What is not translated yet.
    iova: u64,
    rest: u64,
    access: Access,
    /// What is left of the piece that was translated last.
    piece: Option<GuestMemoryBackendSliceIterator<'s, B>>,
}

impl<'s, B: GuestMemoryBackend> Iterator for Slices<'s, '_, B> {
    type Item = Result<VolatileSlice<'s, MS<'s, B>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.piece.as_mut().and_then(Iterator::next) {
                if slice.is_err() {
                    self.rest = 0;
                    self.piece = None;
                }
                return Some(slice);
            }
            self.piece = None;
            if self.rest == 0 {
                return None;
            }
            let mut operation = self.memory.operation.borrow_mut();
            match operation.translate(self.iova, self.rest, self.access) {
                Ok(piece) => {
                    self.iova = self.iova.wrapping_add(piece.len);
                    self.rest -= piece.len;
                    let gpa = GuestAddress(piece.gpa);
                    // At most what was asked for, which was a usize.
                    let slices = self.memory.backend.get_slices(gpa, piece.len as usize);
                    self.piece = Some(slices);
                }
                Err(abort) => {
                    self.rest = 0;
                    return Some(Err(error(abort)));
                }
            }
        }
    }
}

impl<B: GuestMemoryBackend> FusedIterator for Slices<'_, '_, B> {}

impl<'s, B: GuestMemoryBackend> GuestMemorySliceIterator<'s, MS<'s, B>> for Slices<'s, '_, B> {}
