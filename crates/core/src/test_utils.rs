//! Guest memory for tests and benches (feature `test-utils`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use amdvi_regs::{MemoryError, PhysMemory};

/// Flat guest memory from GPA 0 on, with holes, that counts the accesses made to it.
#[derive(Debug)]
pub struct TestMemory {
    words: Box<[AtomicU64]>,
    holes: Vec<Range<u64>>,
    loads: AtomicU64,
    stores: AtomicU64,
}

impl TestMemory {
    /// `bytes` (rounded down to words) of zeroed memory.
    pub fn new(bytes: u64) -> Self {
        Self {
            words: (0..bytes / 8).map(|_| AtomicU64::new(0)).collect(),
            holes: Vec::new(),
            loads: AtomicU64::new(0),
            stores: AtomicU64::new(0),
        }
    }

    /// Makes `range` unbacked.
    #[must_use]
    pub fn with_hole(mut self, range: Range<u64>) -> Self {
        self.holes.push(range);
        self
    }

    /// Loads made since the last [`reset_counts`](Self::reset_counts).
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// Stores and read-modify-writes made since the last [`reset_counts`](Self::reset_counts).
    pub fn stores(&self) -> u64 {
        self.stores.load(Ordering::Relaxed)
    }

    /// Accesses of either kind since construction or the last [`reset_counts`](Self::reset_counts),
    /// failed ones included.
    pub fn accesses(&self) -> u64 {
        self.loads() + self.stores()
    }

    /// Reads a 64-bit word without counting it, holes included.
    ///
    /// # Panics
    ///
    /// If `gpa` lies behind the end.
    pub fn read(&self, gpa: u64) -> u64 {
        self.words[gpa as usize / 8].load(Ordering::Acquire)
    }

    /// Writes a 64-bit word without counting it, holes included.
    ///
    /// # Panics
    ///
    /// If `gpa` lies behind the end.
    pub fn write(&self, gpa: u64, value: u64) {
        self.words[gpa as usize / 8].store(value, Ordering::Release);
    }

    /// Writes consecutive 64-bit words without counting them.
    ///
    /// # Panics
    ///
    /// If one of them lies behind the end.
    pub fn write_all(&self, gpa: u64, values: &[u64]) {
        for (i, &value) in values.iter().enumerate() {
            self.write(gpa + 8 * i as u64, value);
        }
    }

    /// Sets both counters to 0.
    pub fn reset_counts(&self) {
        self.loads.store(0, Ordering::Relaxed);
        self.stores.store(0, Ordering::Relaxed);
    }

    fn word(&self, gpa: u64, size: u64) -> Result<&AtomicU64, MemoryError> {
        let error = MemoryError { gpa };
        if !gpa.is_multiple_of(size) || self.holes.iter().any(|hole| hole.contains(&gpa)) {
            return Err(error);
        }
        usize::try_from(gpa / 8)
            .ok()
            .and_then(|index| self.words.get(index))
            .ok_or(error)
    }

    /// Applies `change` to the 32-bit half at `gpa`, atomically; returns the old half.
    fn update_u32(&self, gpa: u64, change: impl Fn(u32) -> u32) -> Result<u32, MemoryError> {
        let shift = (gpa & 4) * 8;
        let mask = 0xffff_ffff << shift;
        self.stores.fetch_add(1, Ordering::Relaxed);
        let word = self.word(gpa & !4, 8)?;
        self.word(gpa, 4)?;
        let old = word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let half = change((word >> shift) as u32);
                Some(word & !mask | u64::from(half) << shift)
            })
            .unwrap_or_else(|word| word);
        Ok((old >> shift) as u32)
    }
}

impl PhysMemory for TestMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let word = self.word(gpa, 4)?.load(Ordering::Acquire);
        Ok((word >> ((gpa & 4) * 8)) as u32)
    }

    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        Ok(self.word(gpa, 8)?.load(Ordering::Acquire))
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        self.update_u32(gpa, |_| value).map(|_| ())
    }

    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.stores.fetch_add(1, Ordering::Relaxed);
        self.word(gpa, 8)?.store(value, Ordering::Release);
        Ok(())
    }

    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        self.update_u32(gpa, |half| half | bits)
    }

    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.stores.fetch_add(1, Ordering::Relaxed);
        let word = self.word(gpa, 8)?;
        Ok(word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn halves_holes_and_counts() {
        let memory = TestMemory::new(0x1000).with_hole(0x800..0x810);
        memory.store_u64(8, 0x1111_2222_3333_4444).unwrap();
        memory.store_u32(12, 0xaaaa_bbbb).unwrap();
        assert_eq!(memory.load_u64(8), Ok(0xaaaa_bbbb_3333_4444));
        assert_eq!(memory.load_u32(8), Ok(0x3333_4444));
        assert_eq!(memory.fetch_or_u32(12, 0x4), Ok(0xaaaa_bbbb));
        assert_eq!(memory.load_u32(12), Ok(0xaaaa_bbbf));
        assert_eq!(
            memory.compare_exchange_u64(8, 0, 1),
            Ok(Err(0xaaaa_bbbf_3333_4444))
        );
        for bad in [0x1000, 4, 0x800, 0x808, u64::MAX, u64::MAX - 7] {
            assert_eq!(memory.load_u64(bad), Err(MemoryError { gpa: bad }));
        }
        assert_eq!((memory.loads(), memory.stores()), (9, 4));
    }
}
