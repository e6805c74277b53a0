//! The IRTE cache of one requester handle.
//!
//! Private to its handle, so an entry is one plain word: no lock, no atomics. Validity is one
//! comparison of generations for the whole cache; when the generation has moved on, all entries
//! become stale at once by taking the next epoch, and only when the epochs are used up is the
//! memory wiped (once in a million invalidations).

use alloc::boxed::Box;
use alloc::vec;

use amdvi_regs::msi::{DeliveryMode, Msi, MsiData};

use crate::delivery::{Delivery, DestMode, Trigger};

const DEST: u32 = 0; // [31:0]
const VECTOR: u32 = 32; // [39:32]
const LOGICAL: u32 = 40;
const LOWEST_PRIORITY: u32 = 41;
const RQ_EOI: u32 = 42;
/// The message had DM=1. Part of the key: in 2K mode DM decides how the index is taken.
const KEY_DM: u32 = 43;
const EPOCH: u32 = 44; // [63:44]; 0 never matches
const EPOCH_FIRST: u64 = 1 << EPOCH;
const EPOCH_LAST: u64 = u64::MAX << EPOCH;

/// A direct-mapped cache of remapped deliveries, indexed by data\[10:0\].
pub(crate) struct Cache {
    entries: Box<[u64]>,
    generation: u64,
    /// The current epoch in its place within an entry.
    epoch: u64,
    /// Generation and epoch of the last request that was counted.
    counted: (u64, u64),
}

/// A generation that never comes: they count from 0.
const NEVER: u64 = u64::MAX;

impl Cache {
    /// A cache for the indices below `entries`; larger indices are walked each time.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            entries: vec![0; entries.min(2048)].into_boxed_slice(),
            generation: 0,
            epoch: EPOCH_FIRST,
            counted: (NEVER, 0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Must be called before each use, with the generation of the operation.
    #[inline(always)]
    pub(crate) fn sync(&mut self, generation: u64) {
        if generation != self.generation {
            self.next_epoch(generation);
        }
    }

    #[cold]
    fn next_epoch(&mut self, generation: u64) {
        self.generation = generation;
        if self.epoch == EPOCH_LAST {
            self.entries.fill(0);
            self.epoch = 0;
        }
        self.epoch += EPOCH_FIRST;
    }

    /// Before a request is counted: finds again what was there when the last one was, unless it is stale
    /// since.
    pub(crate) fn resume(&mut self) {
        let (generation, epoch) = self.counted;
        // An epoch that is larger than the current one was wiped.
        if generation == self.generation && epoch <= self.epoch {
            self.epoch = epoch;
        }
    }

    /// After a request was counted: the next one finds nothing and so goes where it can be counted.
    pub(crate) fn suspend(&mut self) {
        self.counted = (self.generation, self.epoch);
        self.generation = NEVER;
    }

    /// The bits of an entry's word that must match for `msi`, in place.
    #[inline(always)]
    fn key(&self, msi: Msi) -> u64 {
        self.epoch | (msi.address & 4) << (KEY_DM - 2)
    }

    /// The delivery for `msi`, if its IRTE is cached.
    #[inline(always)]
    pub(crate) fn get(&self, msi: Msi) -> Option<Delivery> {
        let data = MsiData::from_bits(msi.data);
        let word = *self.entries.get(usize::from(data.irte_index()))?;
        // The whole upper part of the address takes part: only FEEx_xxxxh is an interrupt. One
        // condition instead of two.
        let elsewhere = msi.address >> 20 ^ 0xfee;
        if (word ^ self.key(msi)) >> KEY_DM | elsewhere != 0 {
            return None;
        }
        Some(Delivery {
            dest: (word >> DEST) as u32,
            dest_mode: if word >> LOGICAL & 1 == 1 {
                DestMode::Logical
            } else {
                DestMode::Physical
            },
            delivery_mode: if word >> LOWEST_PRIORITY & 1 == 1 {
                DeliveryMode::LowestPriority
            } else {
                DeliveryMode::Fixed
            },
            vector: (word >> VECTOR) as u8,
            trigger: if data.level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: data.assert(),
            redirection_hint: false,
            rq_eoi: word >> RQ_EOI & 1 == 1,
        })
    }

    /// Keeps the IRTE's part of `delivery`. It must have been read after the generation given to
    /// [`sync`](Self::sync).
    pub(crate) fn put(&mut self, msi: Msi, delivery: &Delivery) {
        let key = self.key(msi);
        let index = usize::from(MsiData::from_bits(msi.data).irte_index());
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = key
                | u64::from(delivery.dest) << DEST
                | u64::from(delivery.vector) << VECTOR
                | u64::from(delivery.dest_mode == DestMode::Logical) << LOGICAL
                | u64::from(delivery.delivery_mode == DeliveryMode::LowestPriority)
                    << LOWEST_PRIORITY
                | u64::from(delivery.rq_eoi) << RQ_EOI;
        }
    }

    /// Skips to the last epoch, so that a test reaches the wipe.
    #[cfg(test)]
    pub(crate) fn skip_to_last_epoch(&mut self) {
        self.epoch = EPOCH_LAST;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn delivery(vector: u8) -> Delivery {
        Delivery {
            dest: 0x1234_5678,
            dest_mode: DestMode::Logical,
            delivery_mode: DeliveryMode::LowestPriority,
            vector,
            trigger: Trigger::Edge,
            assert: false,
            redirection_hint: false,
            rq_eoi: true,
        }
    }

    const MSI: Msi = Msi {
        address: 0xfee0_0004,
        data: 0x7ff,
    };

    #[test]
    fn an_entry_comes_back_as_it_was_put() {
        let mut cache = Cache::new(2048);
        cache.sync(7);
        assert_eq!(cache.get(MSI), None);
        cache.put(MSI, &delivery(0x55));
        assert_eq!(cache.get(MSI), Some(delivery(0x55)));
    }

    #[test]
    fn trigger_and_level_come_from_the_message_not_from_the_cache() {
        let mut cache = Cache::new(2048);
        cache.sync(7);
        cache.put(MSI, &delivery(0x55));
        let level = cache
            .get(Msi {
                data: MSI.data | 0xc000,
                ..MSI
            })
            .unwrap();
        assert_eq!((level.trigger, level.assert), (Trigger::Level, true));
    }

    #[test]
    fn the_destination_mode_of_the_message_is_part_of_the_key() {
        let mut cache = Cache::new(2048);
        cache.sync(7);
        cache.put(MSI, &delivery(0x55));
        assert_eq!(
            cache.get(Msi {
                address: 0xfee0_0000,
                ..MSI
            }),
            None
        );
    }

    #[test]
    fn only_the_msi_window_hits() {
        let mut cache = Cache::new(2048);
        cache.sync(7);
        cache.put(MSI, &delivery(0x55));
        for address in [
            0xfed0_0004,
            0xfef0_0004,
            0x1_fee0_0004,
            0xffff_ffff_fee0_0004,
        ] {
            assert_eq!(cache.get(Msi { address, ..MSI }), None);
        }
    }

    #[test]
    fn another_generation_makes_every_entry_stale_even_when_epochs_wrap() {
        let mut cache = Cache::new(2048);
        cache.sync(1);
        cache.put(MSI, &delivery(1));
        cache.skip_to_last_epoch();
        cache.put(Msi { data: 3, ..MSI }, &delivery(2));
        cache.sync(2);
        for data in [0x7ff, 3] {
            assert_eq!(cache.get(Msi { data, ..MSI }), None);
        }
        // Epoch 2, the one of the first entry, comes again.
        cache.sync(3);
        assert_eq!(cache.get(MSI), None);
    }

    #[test]
    fn while_requests_are_counted_only_those_who_count_find_anything() {
        let mut cache = Cache::new(2048);
        let mut request = |generation, msi, put: Option<u8>| {
            cache.sync(generation);
            assert_eq!(cache.get(msi), None, "every request goes the long way");
            cache.resume();
            let found = cache.get(msi).map(|delivery| delivery.vector);
            if let Some(vector) = put {
                cache.put(msi, &delivery(vector));
            }
            cache.suspend();
            found
        };
        let other = Msi { data: 3, ..MSI };
        assert_eq!(request(1, MSI, Some(1)), None);
        assert_eq!(request(1, other, Some(2)), None);
        assert_eq!(request(1, MSI, None), Some(1));
        assert_eq!(request(1, other, None), Some(2));
        assert_eq!(request(2, MSI, None), None);
        assert_eq!(request(2, other, Some(3)), None);
        assert_eq!(request(2, other, None), Some(3));
        // Nobody counts any more.
        cache.sync(2);
        assert_eq!(cache.get(other), None);
        cache.put(other, &delivery(4));
        cache.sync(2);
        assert!(cache.get(other).is_some());
    }

    #[test]
    fn counting_survives_the_end_of_the_epochs() {
        let mut cache = Cache::new(2048);
        cache.skip_to_last_epoch();
        let mut vectors = Vec::new();
        for _ in 0..3 {
            cache.sync(1);
            cache.resume();
            vectors.push(cache.get(MSI).map(|delivery| delivery.vector));
            cache.put(MSI, &delivery(1));
            // The last epoch was in use: the next request wipes everything, once.
            if vectors.len() == 1 {
                cache.skip_to_last_epoch();
            }
            cache.suspend();
        }
        assert_eq!(vectors, [None, None, Some(1)]);
    }

    #[test]
    fn a_small_cache_leaves_larger_indices_alone() {
        let mut cache = Cache::new(16);
        cache.sync(1);
        cache.put(MSI, &delivery(1));
        assert_eq!(cache.get(MSI), None);
        cache.put(Msi { data: 15, ..MSI }, &delivery(1));
        assert!(cache.get(Msi { data: 15, ..MSI }).is_some());
    }
}
