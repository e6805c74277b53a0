//! The one trait by which the engines reach guest physical memory.

use core::fmt;

/// Why a guest physical address could not be accessed.
///
/// The IOMMU turns it into the architecture's answer (a hardware-error event or an abort); it is
/// never a host error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryError {
    /// The guest physical address of the failed access.
    pub gpa: u64,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest memory at GPA {:#x}", self.gpa)
    }
}

impl core::error::Error for MemoryError {}

/// Guest physical memory as the IOMMU's table walkers see it.
///
/// Addresses are system physical addresses *of the guest* (GPA), naturally aligned for the access;
/// an implementation returns an error for an unaligned or unbacked address and must never panic.
/// Every access is a single atomic operation of its size with at least the stated ordering: guest
/// CPUs write these words while they are read. Values are little-endian in memory and native here.
pub trait PhysMemory: Send + Sync {
    /// Loads a 32-bit word (acquire).
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError>;

    /// Loads a 64-bit word (acquire).
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError>;

    /// Stores a 32-bit word (release).
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError>;

    /// Stores a 64-bit word (release).
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError>;

    /// Atomically ORs `bits` into the 32-bit word and returns its former value.
    ///
    /// Used to set an IRR bit in a guest virtual-APIC backing page (48882 §2.2.5.3).
    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError>;

    /// Atomically replaces the 64-bit word `current` by `new`.
    ///
    /// The inner result is `Ok(current)` when the exchange happened and `Err(actual)` when another
    /// value was found. Used for accessed and dirty bits.
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError>;

    /// Loads the 16-byte-aligned 128-bit entry at `gpa` as `[low, high]`, without tearing.
    ///
    /// Hardware reads a 128-bit IRTE at once, and a driver replaces it at once (`cmpxchg16b`): a
    /// mix of old and new halves would send an interrupt to a CPU and vector that never belonged
    /// together. The provided implementation accepts a pair only when the low half is unchanged
    /// after the high half was read; each attempt that fails means the guest was rewriting the entry
    /// at that moment. It gives up after a few attempts and returns the last pair, so that a guest
    /// that rewrites an entry for ever can hurt only itself.
    fn load_pair(&self, gpa: u64) -> Result<[u64; 2], MemoryError> {
        const ATTEMPTS: usize = 8;
        let mut low = self.load_u64(gpa)?;
        let mut high = self.load_u64(gpa.wrapping_add(8))?;
        for _ in 0..ATTEMPTS {
            let again = self.load_u64(gpa)?;
            if again == low {
                break;
            }
            low = again;
            high = self.load_u64(gpa.wrapping_add(8))?;
        }
        Ok([low, high])
    }
}

impl<M: PhysMemory + ?Sized> PhysMemory for &M {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        (**self).load_u32(gpa)
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        (**self).load_u64(gpa)
    }
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        (**self).store_u32(gpa, value)
    }
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        (**self).store_u64(gpa, value)
    }
    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        (**self).fetch_or_u32(gpa, bits)
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        (**self).compare_exchange_u64(gpa, current, new)
    }
    fn load_pair(&self, gpa: u64) -> Result<[u64; 2], MemoryError> {
        (**self).load_pair(gpa)
    }
}
