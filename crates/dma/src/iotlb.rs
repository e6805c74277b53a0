//! The translations that all requesters of one IOMMU share: those whose walk is long, by guest tables or
//! with accessed bits to set. Others are found faster by a walk ([`crate::plain`]).
//!
//! A set-associative cache of fixed size. Reading it is wait-free: a set is read under a sequence
//! check, and after a few disturbed attempts the answer is a miss. Writing is optional, so a writer
//! who finds another one at work goes away. An entry is tagged with its domain, its table and its
//! PASID, holds the permissions of the table's levels (every device adds those of its DTE), and
//! carries the journal's head at which it was last known to be good.

use alloc::boxed::Box;

use amdvi_core::Journal;

use crate::cache::each_bit;
use crate::guest::GuestTable;
use crate::request::{GuestLeaf, Leaf, Permissions};
use crate::sync::{AtomicU64, Ordering};
use crate::walk::{Need, Table, Walked};

/// Entries of a set.
#[cfg(not(loom))]
const WAYS: usize = 4;
#[cfg(loom)]
const WAYS: usize = 1;

/// How often a lookup looks at one set before it gives up.
const ATTEMPTS: usize = 2;

/// How many page sizes a lookup tries, the smallest first: a guest that uses more of them at a time
/// is better off with a walk.
const MAX_SIZES: usize = 6;

/// Bits of an entry's words; see [`Key`] and [`Iotlb::fill`].
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const UNTRANSLATED_ONLY: u64 = 1 << 2;
const FORCE_COHERENT: u64 = 1 << 3;
const PASID_LOW: u32 = 4; // [11:4], PASID[7:0]
const PASID_HIGH: u32 = 52; // [63:52], PASID[19:8]

/// What a guest table adds to an entry, in the bits of its second word that have another meaning
/// without one: executable, for users, level of the guest's leaf − 1.
const EXECUTE: u64 = 1 << 8;
const USER: u64 = 1 << 9;
const GUEST_LEVEL: u32 = 10; // [11:10]
const GUEST: u64 = 0xf00;

/// Whose translation: what an entry must match in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Root \[51:12\]; Mode \[2:0\]; bit 3: there is a PASID; DomainID\[3:0\] in \[7:4\] and
    /// DomainID\[15:4\] in \[63:52\]; without a PASID, HAD in \[9:8\].
    table: u64,
    /// Which bits of that word are compared.
    mask: u64,
    /// The PASID in its place in the value word; 0 without one.
    pasid_bits: u64,
    domain: u16,
    pasid: Option<u32>,
}

impl Key {
    /// A translation by a host page table alone.
    #[inline(always)]
    pub(crate) const fn host(table: Table) -> Self {
        let had = (table.had as u64 & 3) << 8;
        Self {
            table: Self::word(table.root, table.mode, table.domain) | had,
            mask: !0,
            pasid_bits: 0,
            domain: table.domain,
            pasid: None,
        }
    }

    /// A translation by a guest page table, and by the host's below it.
    ///
    /// What tells two of them apart is more than there is room for, so all but the domain and the
    /// PASID is mixed into the root's place. A guest that gives one DomainID and one PASID to two
    /// tables breaks a rule; it takes a chosen pair of roots for it to meet its own other table.
    pub(crate) const fn guest(table: &GuestTable) -> Self {
        let (mode, below) = match table.host {
            Some(host) => (host.mode, host.root >> 12 | (host.had as u64) << 40),
            None => (0, 0),
        };
        let rest = below
            | (table.gcr3_levels as u64) << 44
            | (table.levels as u64) << 48
            | (table.gcr3_is_gpa as u64) << 52;
        let root = table.gcr3 ^ (rest.wrapping_mul(FACTOR) >> 8);
        let pasid = table.pasid as u64;
        Self {
            table: Self::word(root, mode, table.domain) | 1 << 3,
            mask: !GUEST,
            pasid_bits: (pasid & 0xff) << PASID_LOW | (pasid >> 8 & 0xfff) << PASID_HIGH,
            domain: table.domain,
            pasid: Some(table.pasid),
        }
    }

    const fn word(root: u64, mode: u8, domain: u16) -> u64 {
        let domain = domain as u64;
        root & ADDRESS | mode as u64 & 7 | (domain & 0xf) << 4 | (domain >> 4) << 52
    }

    /// Whether an entry's second and third word are those of this.
    #[inline(always)]
    const fn matches(&self, table: u64, value: u64) -> bool {
        table & self.mask == self.table && value & Self::PASID_BITS == self.pasid_bits
    }

    const PASID_BITS: u64 = 0xff << PASID_LOW | 0xfff << PASID_HIGH;
}

/// What spreads every bit upwards: Fibonacci hashing.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// One cached leaf, as its words: IOVA with the size bit (a one at log2(size) − 1); whose it is and what
/// a guest table adds; GPA, flags and PASID; the journal's head at which it was good.
#[derive(Debug)]
struct Way {
    tag: AtomicU64,
    table: AtomicU64,
    value: AtomicU64,
    stamp: AtomicU64,
}

impl Way {
    #[cfg(not(loom))]
    const fn new() -> Self {
        Self {
            tag: AtomicU64::new(0),
            table: AtomicU64::new(0),
            value: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
        }
    }
    #[cfg(loom)]
    fn new() -> Self {
        let [tag, table, value, stamp] = core::array::from_fn(|_| AtomicU64::new(0));
        Self {
            tag,
            table,
            value,
            stamp,
        }
    }
}

/// Sets that are made at once: an IOTLB has thousands, and a VMM starts in no time.
#[cfg(not(loom))]
const BLOCK: usize = 64;
#[cfg(loom)]
const BLOCK: usize = 1;

#[derive(Debug)]
#[repr(align(128))]
struct Block {
    sets: [[Way; WAYS]; BLOCK],
    /// Of each set: odd while it is written; otherwise twice the number of writes.
    sequences: [AtomicU64; BLOCK],
}

impl Block {
    #[cfg(not(loom))]
    const fn new() -> Self {
        Self {
            sets: [const { [const { Way::new() }; WAYS] }; BLOCK],
            sequences: [const { AtomicU64::new(0) }; BLOCK],
        }
    }
    #[cfg(loom)]
    fn new() -> Self {
        Self {
            sets: [[Way::new()]],
            sequences: [AtomicU64::new(0)],
        }
    }
}

/// The shared IOTLB. Its memory is taken when it is made.
#[derive(Debug)]
pub struct Iotlb {
    blocks: Box<[Block]>,
    /// Number of sets − 1; it may be less than what the blocks hold.
    mask: usize,
    /// Page sizes (bit n: 2^n bytes) that were ever put here. Changes a few times in a guest's life.
    sizes: AtomicU64,
}

/// A way's words, read without being disturbed.
#[derive(Clone, Copy)]
struct Found {
    way: usize,
    sequence: u64,
    table: u64,
    value: u64,
    stamp: u64,
}

impl Iotlb {
    /// The size that suits most guests: 2.5 MiB.
    pub const DEFAULT_ENTRIES: usize = 65_536;

    /// An IOTLB of `entries` leaves (40 bytes each), rounded up to a power of two; at least one set,
    /// at most 2^24 entries.
    pub fn new(entries: usize) -> Self {
        let sets = entries.clamp(WAYS, 1 << 24).next_power_of_two() / WAYS;
        Self {
            blocks: (0..sets.div_ceil(BLOCK)).map(|_| Block::new()).collect(),
            mask: sets - 1,
            sizes: AtomicU64::new(0),
        }
    }

    /// How many leaves fit.
    pub fn entries(&self) -> usize {
        (self.mask + 1) * WAYS
    }

    #[inline(always)]
    fn ways(&self, set: usize) -> &[Way; WAYS] {
        &self.blocks[set / BLOCK].sets[set % BLOCK]
    }

    #[inline(always)]
    fn sequence(&self, set: usize) -> &AtomicU64 {
        &self.blocks[set / BLOCK].sequences[set % BLOCK]
    }

    const fn tag(iova: u64, shift: u8) -> u64 {
        (iova >> shift << shift) | 1 << (shift - 1)
    }

    #[inline]
    fn set(&self, key: &Key, tag: u64) -> usize {
        // The upper bits choose. Tags of neighbouring pages land far apart, but evenly.
        let mixed = (tag >> 11 ^ key.table.rotate_left(24) ^ key.pasid_bits).wrapping_mul(FACTOR);
        // At most 2^24 sets.
        (mixed >> 32) as usize & self.mask
    }

    /// Looks for `tag` in `set`; `None` if it isn't there, or the set was being written throughout.
    #[inline(always)]
    fn find(&self, set: usize, key: &Key, tag: u64) -> Option<Found> {
        for _ in 0..ATTEMPTS {
            let sequence = self.sequence(set).load(Ordering::Acquire);
            if sequence & 1 == 1 {
                continue;
            }
            // Acquire: a word of a write in progress brings that write's odd sequence with it.
            let found = self.ways(set).iter().enumerate().find_map(|(n, way)| {
                if way.tag.load(Ordering::Acquire) != tag {
                    return None;
                }
                let table = way.table.load(Ordering::Acquire);
                if table & key.mask != key.table {
                    return None;
                }
                let value = way.value.load(Ordering::Acquire);
                let stamp = way.stamp.load(Ordering::Acquire);
                key.matches(table, value).then_some(Found {
                    way: n,
                    sequence,
                    table,
                    value,
                    stamp,
                })
            });
            if self.sequence(set).load(Ordering::Relaxed) == sequence {
                return found;
            }
        }
        None
    }

    /// Takes the right to write `set`, if nobody has it and nothing was written since `sequence`.
    fn begin(&self, set: usize, sequence: u64) -> bool {
        self.sequence(set)
            .compare_exchange(sequence, sequence | 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    fn end(&self, set: usize, sequence: u64) {
        self.sequence(set)
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The leaf that maps `iova`, if it is cached, satisfies `need` and was not invalidated by what
    /// `journal` says up to `head`.
    #[inline(always)]
    pub(crate) fn lookup(
        &self,
        journal: &Journal,
        head: u64,
        key: &Key,
        iova: u64,
        need: Need,
    ) -> Option<Walked> {
        let needed = need.of_cached();
        let sizes = self.sizes.load(Ordering::Relaxed);
        for shift in each_bit(sizes).take(MAX_SIZES) {
            let tag = Self::tag(iova, shift);
            let set = self.set(key, tag);
            let Some(found) = self.find(set, key, tag) else {
                continue;
            };
            let permissions = Permissions::from_bits_truncate(found.value as u8);
            if !permissions.contains(needed) {
                continue;
            }
            let offset_mask = (1u64 << shift) - 1;
            let leaf = Leaf {
                iova: iova & !offset_mask,
                gpa: found.value & ADDRESS & !offset_mask,
                shift,
                untranslated_only: found.value & UNTRANSLATED_ONLY != 0,
                force_coherent: found.value & FORCE_COHERENT != 0,
                guest: key.pasid.map(|_| guest_leaf(found.table)),
            };
            // What goes with the page that the guest knows.
            let (first, last) = match leaf.guest {
                Some(guest) if need.user && !guest.user || need.execute && !guest.execute => {
                    continue;
                }
                Some(guest) => {
                    let offset_mask = (1u64 << guest.shift) - 1;
                    (iova & !offset_mask, iova | offset_mask)
                }
                None => (leaf.iova, leaf.last()),
            };
            // A stamp ahead of our head was written by somebody who knows of more invalidations
            // than we do, so it is good for us too.
            if found.stamp < head {
                if journal.any_since(found.stamp, head, |invalidation| {
                    invalidation.covers(key.domain, key.pasid, first, last)
                }) {
                    continue;
                }
                // Spare the next one the journal.
                if self.begin(set, found.sequence) {
                    let way = &self.ways(set)[found.way];
                    way.stamp.store(head, Ordering::Release);
                    self.end(set, found.sequence);
                }
            }
            return Some(Walked { leaf, permissions });
        }
        None
    }

    /// Keeps what a walk has found; `head` is the journal's, loaded before the walk began. Does
    /// nothing if somebody else writes the same set.
    #[inline(always)]
    pub(crate) fn fill(&self, head: u64, key: &Key, walked: &Walked) {
        let Walked { leaf, permissions } = walked;
        let tag = Self::tag(leaf.iova, leaf.shift);
        let set = self.set(key, tag);
        let size = 1 << leaf.shift;
        if self.sizes.load(Ordering::Relaxed) & size == 0 {
            self.sizes.fetch_or(size, Ordering::Relaxed);
        }
        let sequence = self.sequence(set).load(Ordering::Acquire);
        if sequence & 1 == 1 || !self.begin(set, sequence) {
            return;
        }
        let ways = self.ways(set);
        let same = |way: &Way| {
            way.tag.load(Ordering::Relaxed) == tag
                && key.matches(
                    way.table.load(Ordering::Relaxed),
                    way.value.load(Ordering::Relaxed),
                )
        };
        let free = |way: &Way| way.tag.load(Ordering::Relaxed) == 0;
        // In turn, so that nobody can make one translation throw out itself for ever.
        let victim = (sequence / 2) as usize % WAYS;
        let n = ways
            .iter()
            .position(same)
            .or_else(|| ways.iter().position(free))
            .unwrap_or(victim);
        let way = &ways[n];
        // What another thread has stored here meanwhile may be newer than what we have found.
        if !same(way) || way.stamp.load(Ordering::Relaxed) <= head {
            let value = leaf.gpa & ADDRESS
                | u64::from(permissions.bits())
                | u64::from(leaf.untranslated_only) << UNTRANSLATED_ONLY.trailing_zeros()
                | u64::from(leaf.force_coherent) << FORCE_COHERENT.trailing_zeros()
                | key.pasid_bits;
            way.tag.store(tag, Ordering::Release);
            let guest = leaf.guest.map_or(0, guest_bits);
            way.table.store(key.table | guest, Ordering::Release);
            way.value.store(value, Ordering::Release);
            way.stamp.store(head, Ordering::Release);
        }
        self.end(set, sequence);
    }
}

/// A guest leaf in the bits of [`GUEST`].
const fn guest_bits(leaf: GuestLeaf) -> u64 {
    let level = ((leaf.shift as u64 - 12) / 9) & 3;
    let mut bits = level << GUEST_LEVEL;
    if leaf.execute {
        bits |= EXECUTE;
    }
    if leaf.user {
        bits |= USER;
    }
    bits
}

const fn guest_leaf(table: u64) -> GuestLeaf {
    GuestLeaf {
        shift: 12 + 9 * ((table >> GUEST_LEVEL) as u8 & 3),
        execute: table & EXECUTE != 0,
        user: table & USER != 0,
    }
}

impl Default for Iotlb {
    fn default() -> Self {
        Self::new(Self::DEFAULT_ENTRIES)
    }
}
