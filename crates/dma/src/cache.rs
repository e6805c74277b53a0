//! The translations that one requester handle keeps for itself.
//!
//! Private to its handle and, with it, to one Device Table Entry: plain memory, no atomics, and
//! permissions are final (DTE and levels). One entry is a naturally aligned power-of-two block of
//! IOVAs, whatever its size; validity, address and size are one word, so a hit is one comparison.
//!
//! Each kind of requests that is to see translations of its own (without a PASID, or by PASID and
//! privilege) has a number, which is part of that word. Numbers are never given twice until the memory
//! is wiped, so to forget a kind is to forget its number.

use alloc::boxed::Box;
use alloc::vec;

use amdvi_regs::command::InvalidationRange;

use crate::request::{Access, Pasid, Permissions};

/// The smallest block.
const MIN_SHIFT: u8 = 12;

/// A block of IOVAs and where it is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// First IOVA; below it, at bit log2(size) − 1, a one that tells the size; in \[10:0\] the number
    /// of the kind of requests.
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
    /// The size bit and the number of the kind of requests.
    key: u64,
    /// Moves the places of a kind of requests away from those of others, which may use the same
    /// addresses; 0 without a PASID.
    salt: u64,
}

impl Class {
    const fn new(shift: u32, number: Number) -> Self {
        Self {
            shift,
            offset_mask: (1 << shift) - 1,
            key: 1 << (shift - 1) | number.number,
            salt: number.salt,
        }
    }
}

/// The number of a kind of requests, 1–2047; 0 never matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Number {
    number: u64,
    salt: u64,
}

impl Number {
    const fn plain(number: u64) -> Self {
        Self { number, salt: 0 }
    }

    const fn with_pasid(number: u64) -> Self {
        Self {
            number,
            salt: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40,
        }
    }
}

/// A kind of requests that share their translations: the bits of a [`Pasid`], which are never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u32);

impl Kind {
    /// Without a PASID.
    pub(crate) const PLAIN: Self = Self(0);

    /// The kind of a request.
    #[inline(always)]
    pub(crate) const fn of(pasid: Option<Pasid>, access: Access) -> Self {
        match (pasid, access) {
            (None, _) => Self::PLAIN,
            (Some(pasid), Access::Read) => Self(pasid.bits()),
            // To execute is a kind of reading.
            (Some(pasid), Access::Write | Access::Atomic) => Self(pasid.with_execute(false).bits()),
        }
    }

    const fn pasid(self) -> u32 {
        self.0 & Pasid::MAX
    }
}

/// Which translations an invalidation concerns; the domain is this cache's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meant {
    /// Those of requests without a PASID, in the range.
    pub(crate) plain: bool,
    /// Those with a PASID.
    pub(crate) pasids: Pasids,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pasids {
    /// All, whatever the range.
    All,
    /// Those of this PASID, in the range.
    One(u32),
}

/// Kinds of requests with a PASID that are kept apart at a time.
const KINDS: usize = 64;

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
    /// The block size of the last hit or fill without a PASID.
    hot: Class,
    /// The same for requests with one, and whose that was.
    hot_other: (Kind, Class),
    /// Block sizes (bit n: 2^n bytes) that were filled since everything was dropped.
    present: u64,
    /// The number of requests without a PASID.
    plain: Number,
    /// The last number that was given.
    last_number: u64,
    /// Kinds of requests with a PASID and their numbers.
    others: Box<[(Kind, Number); KINDS]>,
    /// First and last IOVA of the pages of which only parts are kept; the first is above the last if
    /// there are none. Whoever invalidates a page means all of its parts.
    split: (u64, u64),
}

const NOT_SPLIT: (u64, u64) = (u64::MAX, 0);

const LAST_NUMBER: u64 = (1 << (MIN_SHIFT - 1)) - 1;

impl Cache {
    /// A cache of `entries` blocks, rounded up to a power of two; at least 16, at most 2^24.
    pub(crate) fn new(entries: usize) -> Self {
        let len = entries.clamp(16, 1 << 24).next_power_of_two();
        Self {
            entries: vec![Entry::default(); len].into_boxed_slice(),
            hot: Class::new(MIN_SHIFT as u32, Number::plain(1)),
            hot_other: (Kind::PLAIN, Class::new(MIN_SHIFT as u32, Number::plain(0))),
            present: 0,
            plain: Number::plain(1),
            last_number: 1,
            others: Box::new([(Kind::PLAIN, Number::default()); KINDS]),
            split: NOT_SPLIT,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where a kind with a PASID has its number.
    fn place(kind: Kind) -> usize {
        // Neighbouring PASIDs have places of their own; privilege and execution are the upper bits.
        let bits = kind.0 ^ kind.0 >> 18;
        bits as usize % KINDS
    }

    /// The number of `kind`; `None` if it has none.
    fn number(&self, kind: Kind) -> Option<Number> {
        if kind == Kind::PLAIN {
            return Some(self.plain);
        }
        let (owner, number) = self.others[Self::place(kind)];
        (owner == kind).then_some(number)
    }

    /// The number of `kind`, which gets one if it has none. Another kind may lose its own.
    fn number_or_new(&mut self, kind: Kind) -> Number {
        if let Some(number) = self.number(kind) {
            return number;
        }
        if self.last_number == LAST_NUMBER {
            self.clear();
        }
        self.last_number += 1;
        let number = Number::with_pasid(self.last_number);
        self.others[Self::place(kind)] = (kind, number);
        number
    }

    /// Forgets what requests with a PASID have found.
    fn forget_others(&mut self) {
        if self.hot_other.0 != Kind::PLAIN {
            self.others.fill((Kind::PLAIN, Number::default()));
            self.hot_other.0 = Kind::PLAIN;
        }
    }

    fn set_hot(&mut self, kind: Kind, class: Class) {
        if kind == Kind::PLAIN {
            self.hot = class;
        } else {
            self.hot_other = (kind, class);
        }
    }

    /// Neighbouring blocks never share a place (this is a permutation of any aligned run of them);
    /// higher bits take part so that buffers at a power-of-two distance don't all meet in one.
    #[inline(always)]
    fn index(&self, class: Class, iova: u64) -> usize {
        let block = iova >> class.shift;
        (block ^ block >> 9 ^ class.salt) as usize & (self.entries.len() - 1)
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
    pub(crate) fn get_hot(&self, kind: Kind, iova: u64) -> Option<Hit> {
        if kind == Kind::PLAIN {
            // Its salt is 0; said here, it costs nothing.
            return self.probe(
                Class {
                    salt: 0,
                    ..self.hot
                },
                iova,
            );
        }
        let (owner, class) = self.hot_other;
        if owner != kind {
            return None;
        }
        self.probe(class, iova)
    }

    /// The block around `iova` with the needed permissions, of any size. Bounded by the number of
    /// sizes.
    pub(crate) fn get(&mut self, kind: Kind, iova: u64, needed: Permissions) -> Option<Hit> {
        let number = self.number(kind)?;
        for shift in self.sizes() {
            let class = Class::new(shift.into(), number);
            if let Some(hit) = self.probe(class, iova).filter(|hit| hit.allows(needed)) {
                self.set_hot(kind, class);
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
    pub(crate) fn put(
        &mut self,
        kind: Kind,
        iova: u64,
        shift: u8,
        gpa: u64,
        permissions: Permissions,
    ) {
        let class = Class::new(shift.into(), self.number_or_new(kind));
        let index = self.index(class, iova);
        self.entries[index] = Entry {
            tag: iova & !class.offset_mask | class.key,
            value: gpa & !class.offset_mask | u64::from(permissions.bits()),
        };
        self.present |= 1 << shift;
        self.set_hot(kind, class);
    }

    /// What was put here, or is about to be, is a part of the page from `first` to `last`.
    pub(crate) fn is_part_of(&mut self, first: u64, last: u64) {
        self.split = (self.split.0.min(first), self.split.1.max(last));
    }

    /// Drops everything: O(1), except that once in 2047 times the memory is wiped.
    pub(crate) fn clear(&mut self) {
        if self.last_number == LAST_NUMBER {
            self.entries.fill(Entry::default());
            self.last_number = 0;
        }
        self.last_number += 1;
        self.plain = Number::plain(self.last_number);
        self.present = 0;
        self.split = NOT_SPLIT;
        self.hot = Class::new(self.hot.shift, self.plain);
        self.forget_others();
    }

    /// Drops the blocks that are meant, and no others unless one of them is part of a larger page.
    /// Returns the steps that it took: for each kind that is meant at most the number of entries and of
    /// sizes, and for a page one for each size in use.
    pub(crate) fn invalidate(&mut self, range: InvalidationRange, meant: Meant) -> usize {
        if meant.pasids == Pasids::All {
            self.forget_others();
        }
        let one = match meant.pasids {
            Pasids::All => None,
            Pasids::One(pasid) => Some(pasid),
        };
        // Privileged or not, to execute or not.
        let mut numbers = [Number::default(); 5];
        let mut count = 0;
        if meant.plain {
            numbers[0] = self.plain;
            count = 1;
        }
        if let Some(pasid) = one
            && self.hot_other.0 != Kind::PLAIN
        {
            for (kind, number) in self.others.iter() {
                if *kind != Kind::PLAIN && kind.pasid() == pasid && count < numbers.len() {
                    numbers[count] = *number;
                    count += 1;
                }
            }
        }
        let numbers = &numbers[..count];
        if numbers.is_empty() {
            return 1;
        }
        let InvalidationRange::Block { start, size_log2 } = range else {
            // Without a PASID, and with none that is known: nothing stays.
            if one.is_none() {
                self.clear();
            } else {
                self.forget(meant.plain, one);
            }
            return 1;
        };
        if range.overlaps(self.split.0, self.split.1) {
            // Where those parts are is not remembered. Such a page contains the MSI window, reaches
            // beyond what the IOMMU translates, or is mapped in smaller ones by the host's table.
            self.clear();
            return 1;
        }
        let mut steps = 0;
        for number in numbers {
            steps += self.drop_range(range, start, size_log2, *number);
        }
        steps
    }

    /// Forgets the numbers that are meant.
    fn forget(&mut self, plain: bool, pasid: Option<u32>) {
        for (kind, number) in self.others.iter_mut() {
            if *kind != Kind::PLAIN && Some(kind.pasid()) == pasid {
                (*kind, *number) = (Kind::PLAIN, Number::default());
            }
        }
        if self.hot_other.0 != Kind::PLAIN && Some(self.hot_other.0.pasid()) == pasid {
            // Its class keeps the kind's name, so that there is still somebody to forget.
            self.hot_other.1 = Class::new(MIN_SHIFT as u32, Number::default());
        }
        if plain {
            if self.last_number == LAST_NUMBER {
                return self.clear();
            }
            self.last_number += 1;
            self.plain = Number::plain(self.last_number);
            self.hot = Class::new(self.hot.shift, self.plain);
        }
    }

    /// Drops the blocks with a number that overlap a range.
    fn drop_range(
        &mut self,
        range: InvalidationRange,
        start: u64,
        size_log2: u8,
        number: Number,
    ) -> usize {
        let mut steps = 0;
        let mut scan = false;
        for shift in self.sizes() {
            // Both are naturally aligned, so one contains the other or they have nothing in common.
            let blocks = 1u64 << size_log2.saturating_sub(shift);
            if blocks > self.entries.len() as u64 / 4 {
                scan = true;
                continue;
            }
            let class = Class::new(shift.into(), number);
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
                // The size bit is the lowest one above the number; an empty entry has none.
                let block = entry.tag & !LAST_NUMBER;
                let half = block & block.wrapping_neg();
                let first = block ^ half;
                if entry.tag & LAST_NUMBER == number.number
                    && half != 0
                    && range.overlaps(first, first | half | (half - 1))
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
mod tests;
