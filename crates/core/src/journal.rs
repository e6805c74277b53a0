//! What was invalidated, in order: the invalidating side of every translation cache.
//!
//! Appending a record *is* the invalidation, whatever the range covers. A cached translation carries
//! the number of records that existed when it was last known to be good; it is good now if none of
//! the records since then overlaps it. The journal is a ring, so a translation that was not touched
//! for a whole ring's length can't tell, and counts as invalidated.

use alloc::boxed::Box;

use amdvi_regs::command::InvalidationRange;

use crate::sync::{AtomicU32, AtomicU64, Ordering, spin};

/// What one invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The domain; `None` stands for all of them.
    pub domain: Option<u16>,
    /// The process address space: `range` is one of guest virtual addresses, and only translations of
    /// this PASID go. `None` for an invalidation of the host's page table: of the translations without
    /// a PASID those in `range` go; those with one go whatever `range` is, because any of them may have
    /// gone through what was changed there.
    pub pasid: Option<u32>,
    /// The addresses.
    pub range: InvalidationRange,
}

impl Invalidation {
    /// Everything.
    pub const ALL: Self = Self {
        domain: None,
        pasid: None,
        range: InvalidationRange::All,
    };

    /// Everything of one domain.
    pub const fn domain(domain: u16) -> Self {
        Self {
            domain: Some(domain),
            pasid: None,
            range: InvalidationRange::All,
        }
    }

    /// Whether a translation of `domain` and `pasid` for the bytes from `first` to `last` inclusive
    /// goes with it.
    #[inline]
    pub const fn covers(&self, domain: u16, pasid: Option<u32>, first: u64, last: u64) -> bool {
        let same_domain = match self.domain {
            Some(mine) => mine == domain,
            None => true,
        };
        let overlaps = self.range.overlaps(first, last);
        let meant = match (self.pasid, pasid) {
            (None, None) => overlaps,
            (None, Some(_)) => true,
            (Some(mine), Some(its)) => mine == its && overlaps,
            (Some(_), None) => false,
        };
        same_domain && meant
    }

    const HAS_DOMAIN: u64 = 1 << 62;
    const HAS_PASID: u64 = 1 << 63;

    /// DomainID \[15:0\], PASID \[35:16\], presence \[63:62\]; then the start with log2 of the size in
    /// its low bits, 0 for the whole address space.
    const fn encode(self) -> [u64; 2] {
        let mut who = 0;
        if let Some(domain) = self.domain {
            who |= Self::HAS_DOMAIN | domain as u64;
        }
        if let Some(pasid) = self.pasid {
            who |= Self::HAS_PASID | ((pasid & 0xf_ffff) as u64) << 16;
        }
        let what = match self.range {
            InvalidationRange::Block { start, size_log2 } => start & !0xfff | size_log2 as u64,
            InvalidationRange::All => 0,
        };
        [who, what]
    }

    const fn decode([who, what]: [u64; 2]) -> Self {
        Self {
            domain: if who & Self::HAS_DOMAIN != 0 {
                Some(who as u16)
            } else {
                None
            },
            pasid: if who & Self::HAS_PASID != 0 {
                Some((who >> 16) as u32 & 0xf_ffff)
            } else {
                None
            },
            range: if what == 0 {
                InvalidationRange::All
            } else {
                InvalidationRange::Block {
                    start: what & !0xfff,
                    size_log2: what as u8 & 0x3f,
                }
            },
        }
    }
}

/// The latest [`RECORDS`](Self::RECORDS) invalidations of one IOMMU.
#[derive(Debug)]
pub struct Journal {
    /// How many records were ever appended; record n (from 0) stands in place n modulo RECORDS.
    head: AtomicU64,
    ring: Box<[[AtomicU64; 2]]>,
    /// 1 while a record is being appended.
    appending: AtomicU32,
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

impl Journal {
    /// How many invalidations are remembered.
    #[cfg(not(loom))]
    pub const RECORDS: u64 = 256;
    /// How many invalidations are remembered.
    #[cfg(loom)]
    pub const RECORDS: u64 = 4;

    /// An empty journal.
    pub fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            ring: (0..Self::RECORDS)
                .map(|_| [AtomicU64::new(0), AtomicU64::new(0)])
                .collect(),
            appending: AtomicU32::new(0),
        }
    }

    /// How many invalidations there were. Whoever reads guest tables after it sees at least what
    /// the guest had written before the last of them.
    #[inline(always)]
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Invalidates. O(1), whatever is covered.
    ///
    /// One command processor appends at a time; should two threads ever meet here, one waits for
    /// the other's three stores.
    pub fn append(&self, invalidation: Invalidation) {
        while self.appending.swap(1, Ordering::Acquire) != 0 {
            spin();
        }
        let head = self.head.load(Ordering::Relaxed);
        let [who, what] = invalidation.encode();
        let place = &self.ring[(head % Self::RECORDS) as usize];
        // Release: whoever reads these words learns of the head that came before them, and with it
        // that the record which stood here is gone.
        place[0].store(who, Ordering::Release);
        place[1].store(what, Ordering::Release);
        self.head.store(head + 1, Ordering::Release);
        self.appending.store(0, Ordering::Release);
    }

    /// Whether one of the invalidations after the first `since`, up to `head`, satisfies `covers`, or
    /// they are not all remembered.
    ///
    /// Bounded by [`RECORDS`](Self::RECORDS). `covers` may be shown a record that never existed (one
    /// that is being overwritten); the answer is `true` then.
    pub fn any_since(
        &self,
        since: u64,
        head: u64,
        mut covers: impl FnMut(&Invalidation) -> bool,
    ) -> bool {
        if head.wrapping_sub(since) >= Self::RECORDS {
            return true;
        }
        for number in since..head {
            let place = &self.ring[(number % Self::RECORDS) as usize];
            let words = [
                place[0].load(Ordering::Acquire),
                place[1].load(Ordering::Acquire),
            ];
            if covers(&Invalidation::decode(words)) {
                return true;
            }
        }
        // Record `since`, the oldest that was read, begins to be overwritten when the head is
        // since + RECORDS. Reading a word of the new record has shown us that head.
        since != head && self.head().wrapping_sub(since) >= Self::RECORDS
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn page(domain: u16, start: u64) -> Invalidation {
        Invalidation {
            domain: Some(domain),
            pasid: None,
            range: InvalidationRange::decode(start, false),
        }
    }

    #[test]
    fn records_are_encoded_without_loss() {
        for domain in [None, Some(0), Some(0xffff)] {
            for pasid in [None, Some(0), Some(0xf_ffff)] {
                for range in [
                    InvalidationRange::All,
                    InvalidationRange::decode(0, false),
                    InvalidationRange::decode(!0xfff, false),
                    InvalidationRange::decode(0x3fff_ffff_ffff_f000, true),
                    InvalidationRange::decode(0x12_3451_f000, true),
                ] {
                    let invalidation = Invalidation {
                        domain,
                        pasid,
                        range,
                    };
                    assert_eq!(Invalidation::decode(invalidation.encode()), invalidation);
                }
            }
        }
    }

    #[test]
    fn only_what_came_after_is_looked_at() {
        let journal = Journal::new();
        journal.append(page(1, 0x1000));
        let since = journal.head();
        journal.append(page(1, 0x2000));
        let known = journal.head();
        journal.append(page(1, 0x3000));
        let covers = |address| move |i: &Invalidation| i.covers(1, None, address, address | 0xfff);
        assert!(!journal.any_since(since, known, covers(0x1000)));
        assert!(journal.any_since(since, known, covers(0x2000)));
        assert!(!journal.any_since(since, known, covers(0x3000)));
        assert!(journal.any_since(since, journal.head(), covers(0x3000)));
        assert!(!journal.any_since(known, known, |_| true));
    }

    #[test]
    fn what_is_no_longer_remembered_counts_as_invalidated() {
        let journal = Journal::new();
        for _ in 0..Journal::RECORDS - 1 {
            journal.append(page(1, 0x1000));
        }
        assert!(!journal.any_since(0, journal.head(), |_| false));
        journal.append(page(1, 0x1000));
        assert!(journal.any_since(0, journal.head(), |_| false));
        assert!(!journal.any_since(1, journal.head(), |_| false));
        // The place of record 0 was taken while the reader looked at the records that it knew of.
        assert!(journal.any_since(0, 8, |_| false));
    }

    #[test]
    fn a_pasid_limits_an_invalidation_and_its_absence_does_not() {
        let of_pasid = Invalidation {
            pasid: Some(5),
            ..Invalidation::domain(1)
        };
        assert!(of_pasid.covers(1, Some(5), 0, 0xfff));
        assert!(!of_pasid.covers(1, Some(6), 0, 0xfff));
        assert!(!of_pasid.covers(1, None, 0, 0xfff));
        assert!(!of_pasid.covers(2, Some(5), 0, 0xfff));
        assert!(Invalidation::domain(1).covers(1, Some(5), 0, 0xfff));
        // A range of the host's addresses says nothing of those in a process.
        assert!(page(1, 0x1000).covers(1, Some(5), 0x7000, 0x7fff));
        assert!(!page(1, 0x1000).covers(1, None, 0x7000, 0x7fff));
        assert!(!page(2, 0x1000).covers(1, Some(5), 0x1000, 0x1fff));
        assert!(Invalidation::ALL.covers(9, Some(5), 0, 0xfff));
    }
}
