//! The translations that one requester handle keeps for itself.
//!
//! Private to its handle and, with it, to one Device Table Entry: plain memory, no atomics, and
//! permissions are final (DTE and levels). One entry is a naturally aligned power-of-two block of
//! IOVAs, whatever its size; validity, address and size are one word, so a hit is one comparison.

use alloc::boxed::Box;
use alloc::vec;

use amdvi_core::Invalidation;
use amdvi_regs::command::InvalidationRange;

use crate::request::Permissions;

/// The smallest block.
const MIN_SHIFT: u8 = 12;

/// A block of IOVAs and where it is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// First IOVA; below it, at bit log2(size) − 1, a one that tells the size; in \[10:0\] the epoch.
    tag: u64,
    /// First GPA, and the permissions in \[1:0\].
    value: u64,
}

/// A cached block that contains an IOVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// The first GPA of the block, with the permissions in its low bits.
    value: u64,
    /// Size of the block − 1.
    offset_mask: u64,
}

impl Hit {
    /// Whether `needed` is allowed.
    #[inline(always)]
    pub(crate) fn allows(self, needed: Permissions) -> bool {
        let needed = u64::from(needed.bits());
        self.value & needed == needed
    }

    #[inline(always)]
    pub(crate) fn permissions(self) -> Permissions {
        Permissions::from_bits_truncate(self.value as u8)
    }

    /// The GPA of `iova`.
    #[inline(always)]
    pub(crate) fn gpa(self, iova: u64) -> u64 {
        // The low bits of the value are within every block's offset.
        self.value & !self.offset_mask | iova & self.offset_mask
    }

    /// Bytes from `iova` to the end of the block.
    #[inline(always)]
    pub(crate) fn reach(self, iova: u64) -> u64 {
        // At least 1 and, for the largest block of 2^63 bytes, no overflow.
        self.offset_mask - (iova & self.offset_mask) + 1
    }
}

/// One block size, prepared for comparing.
#[derive(Clone, Copy, Debug)]
struct Class {
    shift: u32,
    /// The size − 1.
    offset_mask: u64,
    /// The size bit and the epoch.
    key: u64,
}

impl Class {
    const fn new(shift: u32, epoch: u64) -> Self {
        Self {
            shift,
            offset_mask: (1 << shift) - 1,
            key: 1 << (shift - 1) | epoch,
        }
    }
}

/// The places of the ones in `bits`, ascending.
pub(crate) fn each_bit(mut bits: u64) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let place = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (place < 64).then_some(place as u8)
    })
}

/// A direct-mapped cache of blocks of any size.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: Box<[Entry]>,
    /// The block size of the last hit or fill.
    hot: Class,
    /// Block sizes (bit n: 2^n bytes) that were filled in this epoch.
    present: u64,
    /// 1–2047; 0 never matches.
    epoch: u64,
    /// First and last IOVA of the pages of which only parts are kept; the first is above the last if
    /// there are none. Whoever invalidates a page means all of its parts.
    split: (u64, u64),
}

const NOT_SPLIT: (u64, u64) = (u64::MAX, 0);

const LAST_EPOCH: u64 = (1 << (MIN_SHIFT - 1)) - 1;

impl Cache {
    /// A cache of `entries` blocks, rounded up to a power of two; at least 16, at most 2^24.
    pub(crate) fn new(entries: usize) -> Self {
        let len = entries.clamp(16, 1 << 24).next_power_of_two();
        Self {
            entries: vec![Entry::default(); len].into_boxed_slice(),
            hot: Class::new(MIN_SHIFT as u32, 1),
            present: 0,
            epoch: 1,
            split: NOT_SPLIT,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    const fn class(&self, shift: u32) -> Class {
        Class::new(shift, self.epoch)
    }

    /// Neighbouring blocks never share a place (this is a permutation of any aligned run of them);
    /// higher bits take part so that buffers at a power-of-two distance don't all meet in one.
    #[inline(always)]
    fn index(&self, class: Class, iova: u64) -> usize {
        let block = iova >> class.shift;
        (block ^ block >> 9) as usize & (self.entries.len() - 1)
    }

    #[inline(always)]
    fn probe(&self, class: Class, iova: u64) -> Option<Hit> {
        let entry = self.entries[self.index(class, iova)];
        (entry.tag == iova & !class.offset_mask | class.key).then_some(Hit {
            value: entry.value,
            offset_mask: class.offset_mask,
        })
    }

    /// The block around `iova`, if it is cached and of the size that was last in use.
    #[inline(always)]
    pub(crate) fn get_hot(&self, iova: u64) -> Option<Hit> {
        self.probe(self.hot, iova)
    }

    /// The block around `iova` with the needed permissions, of any size. Bounded by the number of
    /// sizes.
    pub(crate) fn get(&mut self, iova: u64, needed: Permissions) -> Option<Hit> {
        for shift in self.sizes() {
            let class = self.class(shift.into());
            if let Some(hit) = self.probe(class, iova).filter(|hit| hit.allows(needed)) {
                self.hot = class;
                return Some(hit);
            }
        }
        None
    }

    /// The sizes of the blocks that were put here since everything was dropped, as log2.
    fn sizes(&self) -> impl Iterator<Item = u8> + use<> {
        each_bit(self.present)
    }

    /// Keeps the block of 2^`shift` bytes (12–63) around `iova`. `gpa` is where it begins.
    pub(crate) fn put(&mut self, iova: u64, shift: u8, gpa: u64, permissions: Permissions) {
        let class = self.class(shift.into());
        let index = self.index(class, iova);
        self.entries[index] = Entry {
            tag: iova & !class.offset_mask | class.key,
            value: gpa & !class.offset_mask | u64::from(permissions.bits()),
        };
        self.present |= 1 << shift;
        self.hot = class;
    }

    /// What was put here, or is about to be, is a part of the page from `first` to `last`.
    pub(crate) fn is_part_of(&mut self, first: u64, last: u64) {
        self.split = (self.split.0.min(first), self.split.1.max(last));
    }

    /// Drops everything: O(1), except that once in 2047 times the memory is wiped.
    pub(crate) fn clear(&mut self) {
        if self.epoch == LAST_EPOCH {
            self.entries.fill(Entry::default());
            self.epoch = 0;
        }
        self.epoch += 1;
        self.present = 0;
        self.split = NOT_SPLIT;
        self.hot = self.class(self.hot.shift);
    }

    /// Drops the blocks that overlap the range of `invalidation`, and no others unless one of them is
    /// part of a larger page; it concerns this
    /// cache's domain. Returns the steps that it took: at most the number of entries and of sizes,
    /// and for a page one for each size in use.
    pub(crate) fn invalidate(&mut self, invalidation: &Invalidation) -> usize {
        let InvalidationRange::Block { start, size_log2 } = invalidation.range else {
            self.clear();
            return 1;
        };
        if invalidation.range.overlaps(self.split.0, self.split.1) {
            // Where those parts are is not remembered. Such a page is rare: it contains the MSI
            // window, or reaches beyond what the IOMMU translates.
            self.clear();
            return 1;
        }
        let mut steps = 0;
        let mut scan = false;
        for shift in self.sizes() {
            // Both are naturally aligned, so one contains the other or they have nothing in common.
            let blocks = 1u64 << size_log2.saturating_sub(shift);
            if blocks > self.entries.len() as u64 / 4 {
                scan = true;
                continue;
            }
            let class = self.class(shift.into());
            for n in 0..blocks {
                let iova = start | n << shift;
                if self.probe(class, iova).is_some() {
                    let index = self.index(class, iova);
                    self.entries[index] = Entry::default();
                }
            }
            steps += blocks as usize;
        }
        if scan {
            for entry in &mut self.entries {
                // The size bit is the lowest one above the epoch; an empty entry has none. What is
                // left over from another epoch may go as well.
                let block = entry.tag & !LAST_EPOCH;
                let half = block & block.wrapping_neg();
                let first = block ^ half;
                if half != 0
                    && invalidation
                        .range
                        .overlaps(first, first | half | (half - 1))
                {
                    *entry = Entry::default();
                }
            }
            steps += self.entries.len();
        }
        steps
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cache() -> Cache {
        Cache::new(64)
    }

    fn page(address: u64) -> Invalidation {
        range(address, 12)
    }

    fn range(address: u64, size_log2: u8) -> Invalidation {
        Invalidation {
            range: InvalidationRange::Block {
                start: address >> size_log2 << size_log2,
                size_log2,
            },
            ..Invalidation::ALL
        }
    }

    #[test]
    fn a_block_of_any_size_is_one_entry_and_answers_for_each_of_its_bytes() {
        for shift in 12..=63 {
            let mut cache = cache();
            let size = 1u64 << shift;
            let iova = 0x1234_5678_9abc_d000 & !(size - 1);
            cache.put(iova | 0x777 & (size - 1), shift, 0, Permissions::READ);
            for offset in [0, 1, size / 2, size - 1] {
                let hit = cache.get(iova + offset, Permissions::READ).unwrap();
                assert_eq!(hit.gpa(iova + offset), offset);
                assert_eq!(hit.reach(iova + offset), size - offset);
                assert_eq!(hit.permissions(), Permissions::READ);
                assert!(!hit.allows(Permissions::WRITE));
            }
            assert_eq!(cache.get(iova ^ size, Permissions::READ), None);
            assert_eq!(cache.get(iova, Permissions::all()), None);
        }
    }

    #[test]
    fn neighbouring_pages_do_not_throw_each_other_out() {
        let mut cache = cache();
        for n in 0..64 {
            cache.put(n << 12, 12, n << 12 | 1 << 40, Permissions::all());
        }
        for n in 0..64 {
            let hit = cache.get(n << 12, Permissions::READ).unwrap();
            assert_eq!(hit.gpa(n << 12 | 5), n << 12 | 1 << 40 | 5);
        }
    }

    #[test]
    fn everything_is_dropped_even_when_the_epochs_are_used_up() {
        let mut cache = cache();
        cache.put(0x1000, 12, 0x5000, Permissions::READ);
        for _ in 0..LAST_EPOCH + 3 {
            cache.clear();
            assert_eq!(cache.get(0x1000, Permissions::READ), None);
            assert_eq!(cache.get_hot(0x1000), None);
        }
        cache.put(0x1000, 12, 0x5000, Permissions::READ);
        assert!(cache.get_hot(0x1000).is_some());
    }

    #[test]
    fn a_range_drops_the_larger_block_around_it_and_the_smaller_ones_in_it() {
        let mut cache = cache();
        cache.put(0x40_0000, 21, 0x40_0000, Permissions::READ);
        cache.put(0x60_0000, 12, 0x60_0000, Permissions::READ);
        cache.put(0x60_1000, 12, 0x60_1000, Permissions::READ);
        cache.put(0x60_2000, 12, 0x60_2000, Permissions::READ);
        cache.invalidate(&page(0x41_2000));
        assert_eq!(cache.get(0x40_0000, Permissions::READ), None);
        cache.invalidate(&range(0x60_0000, 13));
        assert_eq!(cache.get(0x60_0000, Permissions::READ), None);
        assert_eq!(cache.get(0x60_1000, Permissions::READ), None);
        assert!(cache.get(0x60_2000, Permissions::READ).is_some());
    }

    #[test]
    fn a_large_range_costs_what_the_cache_has_entries() {
        let mut cache = cache();
        for n in 0..64 {
            cache.put(n << 12, 12, n << 12, Permissions::READ);
        }
        cache.put(1 << 40, 21, 0, Permissions::READ);
        let steps = cache.invalidate(&range(0, 17));
        assert!(steps <= 2 * 64, "{steps}");
        for n in 0..64u64 {
            assert_eq!(cache.get(n << 12, Permissions::READ).is_some(), n >= 32);
        }
        assert!(cache.get(1 << 40, Permissions::READ).is_some());
        assert!(cache.invalidate(&range(0, 63)) <= 2 * 64);
        assert_eq!(cache.get(1 << 40, Permissions::READ), None);
    }

    #[test]
    fn a_page_of_which_parts_are_kept_goes_as_a_whole() {
        let mut cache = cache();
        cache.put(0, 31, 0, Permissions::READ);
        cache.is_part_of(0, 0xffff_ffff);
        cache.put(1 << 40 | 0x3000, 12, 0, Permissions::READ);
        cache.invalidate(&page(1 << 41));
        assert!(cache.get(5, Permissions::READ).is_some());
        // In the same page, in another part.
        cache.invalidate(&page(0xf000_0000));
        assert_eq!(cache.get(5, Permissions::READ), None);
    }
}
