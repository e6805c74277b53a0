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
/// No entry ever has it: with this one every look-up misses.
const EPOCH_NEVER: u64 = u64::MAX << EPOCH;
const EPOCH_LAST: u64 = EPOCH_NEVER - EPOCH_FIRST;

/// A direct-mapped cache of remapped deliveries, indexed by data\[10:0\].
pub(crate) struct Cache {
    entries: Box<[u64]>,
    generation: u64,
    /// The current epoch in its place within an entry; [`EPOCH_NEVER`] while requests are counted.
    epoch: u64,
    /// Then it is here.
    counted_epoch: Option<u64>,
}

impl Cache {
    /// A cache for the indices below `entries`; larger indices are walked each time.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            entries: vec![0; entries.min(2048)].into_boxed_slice(),
            generation: 0,
            epoch: EPOCH_FIRST,
            counted_epoch: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it was [`sync`](Self::sync)ed with this generation: the condition of a hit.
    #[inline(always)]
    pub(crate) fn is_of(&self, generation: u64) -> bool {
        generation == self.generation
    }

    /// Makes everything stale if the generation is another one.
    pub(crate) fn sync(&mut self, generation: u64) {
        if self.is_of(generation) {
            return;
        }
        self.generation = generation;
        let epoch = self.counted_epoch.as_mut().unwrap_or(&mut self.epoch);
        if *epoch == EPOCH_LAST {
            self.entries.fill(0);
            *epoch = 0;
        }
        *epoch += EPOCH_FIRST;
    }

    /// While requests are counted, [`get`](Self::get) finds nothing, so that every request goes where
    /// it can be counted; [`get_counted`](Self::get_counted) finds what is there.
    pub(crate) fn set_counting(&mut self, on: bool) {
        match self.counted_epoch {
            None if on => {
                self.counted_epoch = Some(core::mem::replace(&mut self.epoch, EPOCH_NEVER));
            }
            Some(epoch) if !on => {
                self.epoch = epoch;
                self.counted_epoch = None;
            }
            _ => {}
        }
    }

    /// [`get`](Self::get) while requests are counted.
    pub(crate) fn get_counted(&mut self, msi: Msi) -> Option<Delivery> {
        self.with_true_epoch(|cache| cache.get(msi))
    }

    fn with_true_epoch<R>(&mut self, look: impl FnOnce(&mut Self) -> R) -> R {
        let counting = self.counted_epoch.is_some();
        self.set_counting(false);
        let result = look(self);
        self.set_counting(counting);
        result
    }

    /// The bits of an entry's word that must match for `msi`, in place.
    #[inline(always)]
    fn key(&self, msi: Msi) -> u64 {
        self.epoch | (msi.address & 4) << (KEY_DM - 2)
    }

    /// The delivery for `msi`, if its IRTE is cached.
    #[inline(always)]
    pub(crate) fn get(&self, msi: Msi) -> Option<Delivery> {
        // The whole upper part of the address takes part: only FEEx_xxxxh is an interrupt.
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let data = MsiData::from_bits(msi.data);
        let word = *self.entries.get(usize::from(data.irte_index()))?;
        if (word ^ self.key(msi)) >> KEY_DM != 0 {
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
        let key = self.with_true_epoch(|cache| cache.key(msi));
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
        cache.sync(1);
        cache.put(MSI, &delivery(1));
        cache.set_counting(true);
        cache.sync(1);
        assert_eq!(cache.get(MSI), None);
        assert_eq!(cache.get_counted(MSI), Some(delivery(1)));
        let other = Msi { data: 3, ..MSI };
        cache.put(other, &delivery(2));
        cache.set_counting(false);
        assert_eq!(cache.get(MSI), Some(delivery(1)));
        assert!(cache.get(other).is_some());
        cache.set_counting(true);
        cache.sync(2);
        assert_eq!(cache.get_counted(MSI), None);
        assert_eq!(Cache::new(2048).get(MSI), None);
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
