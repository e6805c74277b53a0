//! Guest memory and a host that record what happens, for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use amdvi_irt::Delivery;
use amdvi_regs::{MemoryError, PhysMemory};

use crate::host::{Changes, Host, Observer};

/// RAM from GPA 0 up to a limit, which counts how often it is accessed.
#[derive(Debug)]
pub struct TestMemory {
    words: Box<[AtomicU64]>,
    accesses: AtomicU64,
}

impl TestMemory {
    /// `bytes` of zeroed RAM, rounded down to a multiple of 8.
    pub fn new(bytes: u64) -> Self {
        Self {
            words: (0..bytes / 8).map(|_| AtomicU64::new(0)).collect(),
            accesses: AtomicU64::new(0),
        }
    }

    /// Number of accesses since construction.
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Reads a 64-bit word without counting it.
    ///
    /// # Panics
    ///
    /// If there is no RAM at `gpa`.
    pub fn read(&self, gpa: u64) -> u64 {
        self.words[gpa as usize / 8].load(Ordering::Acquire)
    }

    /// Writes a 64-bit word without counting it.
    ///
    /// # Panics
    ///
    /// If there is no RAM at `gpa`.
    pub fn write(&self, gpa: u64, value: u64) {
        self.words[gpa as usize / 8].store(value, Ordering::Release);
    }

    /// Writes consecutive 64-bit words.
    pub fn write_all(&self, gpa: u64, values: &[u64]) {
        for (i, &value) in values.iter().enumerate() {
            self.write(gpa + 8 * i as u64, value);
        }
    }

    fn word(&self, gpa: u64, align: u64) -> Result<&AtomicU64, MemoryError> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let index = usize::try_from(gpa / 8).map_err(|_| MemoryError { gpa })?;
        match self.words.get(index) {
            Some(word) if gpa.is_multiple_of(align) => Ok(word),
            _ => Err(MemoryError { gpa }),
        }
    }

    fn update_half(&self, gpa: u64, new: impl Fn(u32) -> u32) -> Result<u32, MemoryError> {
        let word = self.word(gpa, 4)?;
        let shift = 8 * (gpa & 4);
        let old = word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let half = new((word >> shift) as u32);
                Some(word & !(0xffff_ffff << shift) | u64::from(half) << shift)
            })
            .unwrap_or_else(|word| word);
        Ok((old >> shift) as u32)
    }
}

impl PhysMemory for TestMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        let word = self.word(gpa, 4)?.load(Ordering::Acquire);
        Ok((word >> (8 * (gpa & 4))) as u32)
    }

    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        Ok(self.word(gpa, 8)?.load(Ordering::Acquire))
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        self.update_half(gpa, |_| value).map(drop)
    }

    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.word(gpa, 8)?.store(value, Ordering::Release);
        Ok(())
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
        Ok(self
            .word(gpa, 8)?
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }
}

/// A host that keeps what it is given.
#[derive(Debug, Default)]
pub struct TestHost {
    deliveries: Mutex<Vec<Delivery>>,
    doorbells: Mutex<Vec<u32>>,
    pending: AtomicU64,
}

impl TestHost {
    /// The deliveries since the last call, in order.
    pub fn take_deliveries(&self) -> Vec<Delivery> {
        std::mem::take(
            &mut self
                .deliveries
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// The doorbells since the last call, in order.
    pub fn take_doorbells(&self) -> Vec<u32> {
        std::mem::take(
            &mut self
                .doorbells
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// How often [`Host::commands_pending`] was called.
    pub fn pending_calls(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }
}

impl Host for TestHost {
    fn deliver(&self, delivery: &Delivery) {
        self.deliveries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(*delivery);
    }

    fn doorbell(&self, physical_apic_id: u32) {
        self.doorbells
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(physical_apic_id);
    }

    fn commands_pending(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }
}

/// An observer that keeps what it is told.
#[derive(Debug, Default)]
pub struct TestObserver {
    changes: Mutex<Vec<Changes>>,
}

impl TestObserver {
    /// The changes since the last call, in order.
    pub fn take(&self) -> Vec<Changes> {
        std::mem::take(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for TestObserver {
    fn changed(&self, changes: &Changes) {
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(changes.clone());
    }
}
