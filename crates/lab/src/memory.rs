//! Guest memory of our side: sparse, and empty again for each case.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use amdvi_regs::{MemoryError, PhysMemory};

use crate::layout::is_ram;

/// RAM as [`layout`](crate::layout) places it; what was never written is 0.
#[derive(Debug, Default)]
pub struct SparseMemory {
    words: Mutex<HashMap<u64, u64>>,
}

impl SparseMemory {
    /// Makes all memory 0.
    pub fn clear(&self) {
        self.words().clear();
    }

    /// The 64-bit word at `gpa`, which is RAM.
    pub fn read(&self, gpa: u64) -> u64 {
        self.words().get(&gpa).copied().unwrap_or(0)
    }

    /// Sets the 64-bit word at `gpa`, which is RAM.
    pub fn write(&self, gpa: u64, value: u64) {
        self.words().insert(gpa, value);
    }

    fn words(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(
        &self,
        gpa: u64,
        align: u64,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<u64, MemoryError> {
        if !gpa.is_multiple_of(align) || !is_ram(gpa) {
            return Err(MemoryError { gpa });
        }
        let mut words = self.words();
        let word = words.entry(gpa & !7).or_insert(0);
        let old = *word;
        *word = change(old);
        Ok(old)
    }

    fn update_half(&self, gpa: u64, change: impl FnOnce(u32) -> u32) -> Result<u32, MemoryError> {
        let shift = 8 * (gpa & 4);
        let old = self.update(gpa, 4, |word| {
            let half = change((word >> shift) as u32);
            word & !(0xffff_ffff << shift) | u64::from(half) << shift
        })?;
        Ok((old >> shift) as u32)
    }
}

impl PhysMemory for SparseMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        self.update_half(gpa, |half| half)
    }

    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        self.update(gpa, 8, |word| word)
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        self.update_half(gpa, |_| value).map(drop)
    }

    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.update(gpa, 8, |_| value).map(drop)
    }

    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        self.update_half(gpa, |half| half | bits)
    }

    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        let old = self.update(gpa, 8, |word| if word == current { new } else { word })?;
        Ok(if old == current { Ok(old) } else { Err(old) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_words_agree_and_holes_are_errors() {
        let memory = SparseMemory::default();
        memory.store_u32(0x1004, 0xdead_beef).expect("RAM");
        assert_eq!(memory.load_u64(0x1000), Ok(0xdead_beef_0000_0000));
        assert_eq!(memory.fetch_or_u32(0x1000, 3), Ok(0));
        assert_eq!(memory.load_u32(0x1000), Ok(3));
        assert_eq!(
            memory.compare_exchange_u64(0x1000, 1, 2),
            Ok(Err(0xdead_beef_0000_0003))
        );
        for hole in [0xa_0000, 0x8000_0000, 0x1_8000_0000, 0x1001] {
            assert!(memory.load_u64(hole).is_err(), "{hole:#x}");
        }
        memory.clear();
        assert_eq!(memory.load_u64(0x1000), Ok(0));
    }
}
