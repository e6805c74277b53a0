//! A host and an observer that record what happens, for tests; and the memory that counts accesses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use amdvi_core::test_utils::TestMemory;
use amdvi_irt::Delivery;

use crate::ats::InvalidationWait;
use crate::host::{Changes, Host, Observer};

/// A host that keeps what it is given.
#[derive(Debug, Default)]
pub struct TestHost {
    deliveries: Mutex<Vec<Delivery>>,
    doorbells: Mutex<Vec<u32>>,
    pending: AtomicU64,
    patient: AtomicBool,
    waits: Mutex<Vec<InvalidationWait>>,
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

    /// Whether the command processor may wait for devices; not at first.
    pub fn set_patient(&self, patient: bool) {
        self.patient.store(patient, Ordering::Relaxed);
    }

    /// What the command processor has waited for since the last call, in order; at most the latest.
    pub fn take_waits(&self) -> Vec<InvalidationWait> {
        std::mem::take(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner))
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

    fn await_invalidations(&self, wait: &InvalidationWait) -> bool {
        let patient = self.patient.load(Ordering::Relaxed);
        if patient {
            let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
            // An expiry covers the earlier ones.
            waits.clear();
            waits.push(*wait);
        }
        patient
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
