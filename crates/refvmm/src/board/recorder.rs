//! What left the IOMMU, for the guest to read back.

use std::sync::{Mutex, PoisonError};

use amdvi_guest::endpoint::{RECORDS, Record};
use amdvi_irt::{Delivery, DestMode, Trigger};
use serde::{Deserialize, Serialize};

/// The last [`RECORDS`] interrupts of every source in the machine, and how many there were.
#[derive(Default)]
pub(crate) struct Recorder {
    inner: Mutex<Inner>,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecorderState {
    count: u64,
    records: Vec<u64>,
}

#[derive(Default)]
struct Inner {
    count: u64,
    records: [u64; RECORDS as usize],
}

impl Recorder {
    /// Notes a delivery.
    pub(crate) fn push(&self, delivery: &Delivery) {
        let record = Record {
            dest: delivery.dest,
            vector: delivery.vector,
            delivery_mode: delivery.delivery_mode.bits(),
            logical: delivery.dest_mode == DestMode::Logical,
            level: delivery.trigger == Trigger::Level,
            rq_eoi: delivery.rq_eoi,
        };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (inner.count % RECORDS) as usize;
        inner.records[slot] = record.into_bits();
        inner.count += 1;
    }

    /// Interrupts since the last reset.
    pub(crate) fn count(&self) -> u64 {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count
    }

    /// The value of register RECORD_`slot`; 0 when nothing is there.
    pub(crate) fn record(&self, slot: u64) -> u64 {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.records.get(slot as usize).copied().unwrap_or(0)
    }

    pub(crate) fn save(&self) -> RecorderState {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        RecorderState {
            count: inner.count,
            records: inner.records.to_vec(),
        }
    }

    /// Takes over what was recorded elsewhere; what is too much of it is left.
    pub(crate) fn restore(&self, state: &RecorderState) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.count = state.count;
        for (record, saved) in inner.records.iter_mut().zip(&state.records) {
            *record = *saved;
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&self) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = Inner::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_regs::msi::DeliveryMode;

    fn delivery(vector: u8) -> Delivery {
        Delivery {
            dest: 300,
            dest_mode: DestMode::Logical,
            delivery_mode: DeliveryMode::LowestPriority,
            vector,
            trigger: Trigger::Level,
            assert: true,
            redirection_hint: false,
            rq_eoi: true,
        }
    }

    #[test]
    fn a_record_has_every_field_of_the_delivery() {
        let recorder = Recorder::default();
        recorder.push(&delivery(0x41));
        let record = Record::from_bits(recorder.record(0)).unwrap();
        assert_eq!(
            record,
            Record {
                dest: 300,
                vector: 0x41,
                delivery_mode: 1,
                logical: true,
                level: true,
                rq_eoi: true
            }
        );
        assert_eq!(Record::from_bits(recorder.record(1)), None);
    }

    #[test]
    fn old_records_are_overwritten_and_the_count_goes_on() {
        let recorder = Recorder::default();
        for n in 0..=RECORDS {
            recorder.push(&delivery(n as u8));
        }
        assert_eq!(recorder.count(), RECORDS + 1);
        assert_eq!(
            Record::from_bits(recorder.record(0)).unwrap().vector,
            RECORDS as u8
        );
        assert_eq!(Record::from_bits(recorder.record(1)).unwrap().vector, 1);
        recorder.reset();
        assert_eq!((recorder.count(), recorder.record(0)), (0, 0));
    }
}
