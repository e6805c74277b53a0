//! Guest memory of the [`vm_memory`] crate as the engines' [`PhysMemory`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use amdvi_regs::{MemoryError, PhysMemory};
use vm_memory::bitmap::{Bitmap, MS};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, VolatileMemory, VolatileSlice,
};

/// A fixed set of guest RAM regions.
///
/// Accesses take no lock and touch no reference count: an access is a region search and one atomic
/// instruction. Words are naturally aligned little-endian; an unaligned address, a hole, and a word
/// that would cross the end of its region are all a [`MemoryError`] that names the address.
///
/// Every change marks the region's dirty bitmap, after the write, as live migration needs it; a
/// compare-exchange that does not exchange marks nothing.
///
/// Memory that is hot-plugged later is not seen; use [`HotplugRam`] for that.
#[derive(Debug)]
pub struct GuestRam<B> {
    backend: Arc<B>,
}

impl<B> GuestRam<B> {
    /// Wraps the VMM's memory; keep another `Arc` to it for the VMM's own use.
    pub fn new(backend: Arc<B>) -> Self {
        Self { backend }
    }

    /// The wrapped memory.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }
}

impl<B> Clone for GuestRam<B> {
    fn clone(&self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
        }
    }
}

/// Guest RAM whose set of regions may change while the guest runs, such as a
/// `vm_memory::GuestMemoryAtomic`.
///
/// Each access takes the snapshot that is current at that moment, which costs what the address
/// space's own snapshot costs (a reference count for the usual ones); otherwise as [`GuestRam`].
#[derive(Clone, Debug)]
pub struct HotplugRam<A> {
    space: A,
}

impl<A> HotplugRam<A> {
    /// Wraps an address space.
    pub fn new(space: A) -> Self {
        Self { space }
    }
}

/// The naturally aligned slice of `size` bytes at `gpa`; the one place where addresses are checked.
fn word<B: GuestMemoryBackend>(
    backend: &B,
    gpa: u64,
    size: usize,
) -> Result<VolatileSlice<'_, MS<'_, B>>, MemoryError> {
    if !gpa.is_multiple_of(size as u64) {
        return Err(MemoryError { gpa });
    }
    backend
        .get_slice(GuestAddress(gpa), size)
        .map_err(|_| MemoryError { gpa })
}

fn load_u32<B: GuestMemoryBackend>(backend: &B, gpa: u64) -> Result<u32, MemoryError> {
    let slice = word(backend, gpa, 4)?;
    slice
        .load(0, Ordering::Acquire)
        .map(u32::from_le)
        .map_err(|_| MemoryError { gpa })
}

fn load_u64<B: GuestMemoryBackend>(backend: &B, gpa: u64) -> Result<u64, MemoryError> {
    let slice = word(backend, gpa, 8)?;
    slice
        .load(0, Ordering::Acquire)
        .map(u64::from_le)
        .map_err(|_| MemoryError { gpa })
}

fn store_u32<B: GuestMemoryBackend>(backend: &B, gpa: u64, value: u32) -> Result<(), MemoryError> {
    // The slice's `store` marks the bitmap.
    let slice = word(backend, gpa, 4)?;
    slice
        .store(value.to_le(), 0, Ordering::Release)
        .map_err(|_| MemoryError { gpa })
}

fn store_u64<B: GuestMemoryBackend>(backend: &B, gpa: u64, value: u64) -> Result<(), MemoryError> {
    let slice = word(backend, gpa, 8)?;
    slice
        .store(value.to_le(), 0, Ordering::Release)
        .map_err(|_| MemoryError { gpa })
}

fn fetch_or_u32<B: GuestMemoryBackend>(
    backend: &B,
    gpa: u64,
    bits: u32,
) -> Result<u32, MemoryError> {
    let slice = word(backend, gpa, 4)?;
    let atomic = slice
        .get_atomic_ref::<AtomicU32>(0)
        .map_err(|_| MemoryError { gpa })?;
    let former = atomic.fetch_or(bits.to_le(), Ordering::AcqRel);
    // An atomic reference is outside the bitmap's knowledge.
    slice.bitmap().mark_dirty(0, 4);
    Ok(u32::from_le(former))
}

fn compare_exchange_u64<B: GuestMemoryBackend>(
    backend: &B,
    gpa: u64,
    current: u64,
    new: u64,
) -> Result<Result<u64, u64>, MemoryError> {
    let slice = word(backend, gpa, 8)?;
    let atomic = slice
        .get_atomic_ref::<AtomicU64>(0)
        .map_err(|_| MemoryError { gpa })?;
    let outcome = atomic
        .compare_exchange(
            current.to_le(),
            new.to_le(),
            Ordering::AcqRel,
            Ordering::Acquire,
        )
        .map(u64::from_le)
        .map_err(u64::from_le);
    if outcome.is_ok() {
        slice.bitmap().mark_dirty(0, 8);
    }
    Ok(outcome)
}

impl<B: GuestMemoryBackend + Send + Sync> PhysMemory for GuestRam<B> {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        load_u32(&*self.backend, gpa)
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        load_u64(&*self.backend, gpa)
    }
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        store_u32(&*self.backend, gpa, value)
    }
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        store_u64(&*self.backend, gpa, value)
    }
    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        fetch_or_u32(&*self.backend, gpa, bits)
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        compare_exchange_u64(&*self.backend, gpa, current, new)
    }
}

impl<A> PhysMemory for HotplugRam<A>
where
    A: GuestAddressSpace + Send + Sync,
    A::M: GuestMemoryBackend,
{
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        load_u32(&*self.space.memory(), gpa)
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        load_u64(&*self.space.memory(), gpa)
    }
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        store_u32(&*self.space.memory(), gpa, value)
    }
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        store_u64(&*self.space.memory(), gpa, value)
    }
    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        fetch_or_u32(&*self.space.memory(), gpa, bits)
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        compare_exchange_u64(&*self.space.memory(), gpa, current, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::RwLock;
    use vm_memory::bitmap::AtomicBitmap;
    use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

    type Mmap = GuestMemoryMmap<AtomicBitmap>;

    /// RAM at [0, 0x4000) and [0x8000, 0xc000); the hole lies between.
    fn ram() -> GuestRam<Mmap> {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x8000), 0x4000)];
        GuestRam::new(Arc::new(Mmap::from_ranges(&ranges).unwrap()))
    }

    fn dirty(ram: &GuestRam<Mmap>, gpa: u64) -> bool {
        let region = ram.backend().find_region(GuestAddress(gpa)).unwrap();
        region
            .bitmap()
            .dirty_at((gpa - region.start_addr().0) as usize)
    }

    #[test]
    fn words_are_little_endian_at_their_guest_address() {
        let ram = ram();
        ram.backend()
            .write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], GuestAddress(0x8010))
            .unwrap();
        assert_eq!(ram.load_u64(0x8010), Ok(0x0807_0605_0403_0201));
        assert_eq!(ram.load_u32(0x8014), Ok(0x0807_0605));
        ram.store_u32(0x8010, 0xaabb_ccdd).unwrap();
        ram.store_u64(0x3ff8, 0x1122_3344_5566_7788).unwrap();
        let mut bytes = [0; 8];
        ram.backend()
            .read_slice(&mut bytes, GuestAddress(0x8010))
            .unwrap();
        assert_eq!(bytes, [0xdd, 0xcc, 0xbb, 0xaa, 5, 6, 7, 8]);
        ram.backend()
            .read_slice(&mut bytes, GuestAddress(0x3ff8))
            .unwrap();
        assert_eq!(bytes, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    }

    /// Every access at `gpa` fails with that address.
    fn assert_refused(ram: &GuestRam<Mmap>, gpa: u64, sizes: &[usize]) {
        let error = MemoryError { gpa };
        if sizes.contains(&4) {
            assert_eq!(ram.load_u32(gpa), Err(error));
            assert_eq!(ram.store_u32(gpa, 1), Err(error));
            assert_eq!(ram.fetch_or_u32(gpa, 1), Err(error));
        }
        if sizes.contains(&8) {
            assert_eq!(ram.load_u64(gpa), Err(error));
            assert_eq!(ram.store_u64(gpa, 1), Err(error));
            assert_eq!(ram.compare_exchange_u64(gpa, 0, 1), Err(error));
            assert_eq!(ram.load_pair(gpa), Err(error));
        }
    }

    #[test]
    fn an_unaligned_address_is_an_error() {
        let ram = ram();
        for gpa in [1, 2, 3, 5, 0x8001, 0x8007] {
            assert_refused(&ram, gpa, &[4, 8]);
        }
        assert_refused(&ram, 4, &[8]);
        assert_eq!(ram.load_u64(0), Ok(0), "a refused store changes nothing");
    }

    #[test]
    fn holes_and_both_ends_of_the_address_space_are_errors() {
        let ram = ram();
        for gpa in [0x4000, 0x7ff8, 0xc000, 1 << 52, u64::MAX - 7] {
            assert_refused(&ram, gpa, &[4, 8]);
        }
    }

    #[test]
    fn a_word_that_crosses_the_end_of_its_region_is_an_error() {
        // A region that ends in the middle of an aligned 64-bit word.
        let ranges = [(GuestAddress(0), 0x1004)];
        let ram = GuestRam::new(Arc::new(Mmap::from_ranges(&ranges).unwrap()));
        assert_eq!(ram.load_u32(0x1000), Ok(0));
        assert_refused(&ram, 0x1000, &[8]);
    }

    #[test]
    fn a_pair_that_ends_in_a_hole_is_an_error_at_its_high_half() {
        assert_eq!(ram().load_pair(0x3ff8), Err(MemoryError { gpa: 0x4000 }));
    }

    #[test]
    fn fetch_or_returns_the_former_value_and_keeps_other_bits() {
        let ram = ram();
        ram.store_u32(0x200, 0x8000_0001).unwrap();
        assert_eq!(ram.fetch_or_u32(0x200, 0x10), Ok(0x8000_0001));
        assert_eq!(ram.load_u32(0x200), Ok(0x8000_0011));
    }

    #[test]
    fn compare_exchange_reports_what_it_found() {
        let ram = ram();
        ram.store_u64(0x200, 7).unwrap();
        assert_eq!(ram.compare_exchange_u64(0x200, 8, 9), Ok(Err(7)));
        assert_eq!(ram.compare_exchange_u64(0x200, 7, 9), Ok(Ok(7)));
        assert_eq!(ram.load_u64(0x200), Ok(9));
    }

    #[test]
    fn every_kind_of_store_marks_the_dirty_bitmap() {
        let ram = ram();
        ram.store_u32(0x0, 1).unwrap();
        ram.store_u64(0x1000, 1).unwrap();
        ram.fetch_or_u32(0x8000, 1).unwrap();
        assert_eq!(ram.compare_exchange_u64(0x9000, 0, 1), Ok(Ok(0)));
        for gpa in [0x0, 0x1000, 0x8000, 0x9000] {
            assert!(dirty(&ram, gpa), "{gpa:#x}");
        }
    }

    #[test]
    fn loads_and_failed_exchanges_mark_nothing() {
        let ram = ram();
        ram.load_u32(0).unwrap();
        ram.load_u64(0).unwrap();
        ram.load_pair(0).unwrap();
        assert_eq!(ram.compare_exchange_u64(0, 5, 6), Ok(Err(0)));
        assert!(!dirty(&ram, 0));
    }

    #[test]
    fn fetch_or_from_several_threads_loses_no_bit() {
        let ram = ram();
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let ram = ram.clone();
                scope.spawn(move || {
                    for bit in 0..8 {
                        ram.fetch_or_u32(0x100, 1 << (thread * 8 + bit)).unwrap();
                    }
                });
            }
        });
        assert_eq!(ram.load_u32(0x100), Ok(u32::MAX));
    }

    /// An address space that is swapped as a whole, as memory hotplug does it.
    #[derive(Clone)]
    struct Swapped(Arc<RwLock<Arc<Mmap>>>);

    impl GuestAddressSpace for Swapped {
        type M = Mmap;
        type T = Arc<Mmap>;
        fn memory(&self) -> Arc<Mmap> {
            Arc::clone(&self.0.read().unwrap())
        }
    }

    #[test]
    fn hotplugged_memory_is_seen_by_the_next_access() {
        let small = Mmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let region = GuestRegionMmap::from_range(GuestAddress(0x1000), 0x1000, None).unwrap();
        let grown = small.insert_region(Arc::new(region)).unwrap();
        let space = Swapped(Arc::new(RwLock::new(Arc::new(small))));
        let ram = HotplugRam::new(space.clone());
        ram.store_u64(0x8, 42).unwrap();
        assert_eq!(ram.store_u32(0x1000, 1), Err(MemoryError { gpa: 0x1000 }));
        *space.0.write().unwrap() = Arc::new(grown);
        ram.store_u32(0x1000, 1).unwrap();
        assert_eq!(ram.fetch_or_u32(0x1000, 2), Ok(1));
        assert_eq!(ram.load_u32(0x1000), Ok(3));
        assert_eq!(ram.load_u64(0x8), Ok(42));
        assert_eq!(ram.compare_exchange_u64(0x8, 42, 43), Ok(Ok(42)));
    }
}
