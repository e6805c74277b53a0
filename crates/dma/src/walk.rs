//! The walk of a host (v1) page table (48882 §2.2.3), and what all walks share.

use amdvi_core::Journal;
use amdvi_regs::PhysMemory;
use amdvi_regs::pte::{HostPte, MAX_LEVEL, TABLE_ENTRIES, level_shift};

use crate::count::Tally;
use crate::dte::DteDefect;
use crate::fault::Reason;
use crate::iotlb::{Iotlb, Key};
use crate::request::{Leaf, Permissions};

/// The most guest words that the walk of a host page table loads: one per level of the deepest.
pub const HOST_LOADS: usize = 6;

/// How often accessed and dirty bits may meet an entry that somebody else has just changed, in one
/// translation: CPUs and other devices set such bits once, and only a guest that plays with its entries
/// gets further.
pub(crate) const PATIENCE: u8 = 8;

/// log2 of the largest page that the address field can encode: its top bit, 51, ends the run of
/// ones. With all of them one there is no end, and the page would be larger than memory can be.
const MAX_ENCODED_SHIFT: u32 = 52;

/// A host page table, as a DTE names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// GPA of the root.
    pub(crate) root: u64,
    /// Number of levels, 1–6.
    pub(crate) mode: u8,
    /// The domain whose invalidations concern it.
    pub(crate) domain: u16,
    /// HAD: bit 0, accessed bits are maintained; bit 1, dirty bits too.
    pub(crate) had: u8,
}

/// What a request needs of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Without these the walk stops at the first entry that denies one. None for a translation
    /// request, which goes on to the leaf and reports.
    pub(crate) needed: Permissions,
    /// The page is about to be written, if all permit it: it gets dirty.
    pub(crate) writes: bool,
    /// The request has user privilege. It matters to guest tables, as does the next one.
    pub(crate) user: bool,
    /// What is read is to be executed, and entries can deny that.
    pub(crate) execute: bool,
}

impl Need {
    /// What the IOMMU needs itself, for its own access to an entry of the guest's tables.
    pub(crate) const fn of_table(needed: Permissions) -> Self {
        Self {
            needed,
            writes: needed.contains(Permissions::WRITE),
            user: false,
            execute: false,
        }
    }

    /// What a cached translation must allow to be good enough: a page that is to get dirty and isn't
    /// lacks WRITE there.
    pub(crate) fn of_cached(&self) -> Permissions {
        if self.writes {
            self.needed | Permissions::WRITE
        } else {
            self.needed
        }
    }
}

/// What the walk of one address found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The page.
    pub(crate) leaf: Leaf,
    /// The AND of the permissions of every entry on the way, without the DTE's; without WRITE as long
    /// as a dirty bit that is maintained is not set.
    pub(crate) permissions: Permissions,
}

/// The translations that requesters share, as one operation sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a> {
    pub(crate) iotlb: &'a Iotlb,
    pub(crate) journal: &'a Journal,
    /// The journal's, loaded before anything else.
    pub(crate) head: u64,
}

/// Walks tables for one translation.
#[derive(Debug)]
pub(crate) struct Walker<'a, M: ?Sized> {
    pub(crate) memory: &'a M,
    pub(crate) shared: Option<Shared<'a>>,
    /// How many more exchanges of accessed and dirty bits may fail.
    patience: u8,
    /// What it took.
    pub(crate) tally: Tally,
}

impl<'a, M: PhysMemory + ?Sized> Walker<'a, M> {
    #[inline(always)]
    pub(crate) const fn new(memory: &'a M, shared: Option<Shared<'a>>) -> Self {
        Self {
            memory,
            shared,
            patience: PATIENCE,
            tally: Tally {
                hits: 0,
                misses: 0,
                table_hits: 0,
                table_misses: 0,
                host_reads: 0,
                guest_reads: 0,
            },
        }
    }

    /// Translates `address` by `table`, or by what is shared of it.
    // Inlined, like all that a miss does: what one part hands to the next stays in registers, where
    // copying it through memory cost more than the loads of the walk.
    #[inline(always)]
    pub(crate) fn host(
        &mut self,
        table: Table,
        address: u64,
        need: Need,
    ) -> Result<Walked, Reason> {
        let Some(Shared {
            iotlb,
            journal,
            head,
        }) = self.shared
        else {
            return self.walk_host(table, address, need);
        };
        let key = Key::host(table);
        if let Some(walked) = iotlb.lookup(journal, head, &key, address, need) {
            self.tally.hits += 1;
            return Ok(walked);
        }
        self.tally.misses += 1;
        let walked = self.walk_host(table, address, need)?;
        iotlb.fill(head, &key, &walked);
        Ok(walked)
    }

    #[inline(always)]
    fn walk_host(&mut self, host: Table, iova: u64, need: Need) -> Result<Walked, Reason> {
        let Table { root, mode, .. } = host;
        let Some(mut shift) = level_shift(mode) else {
            return Err(Reason::IllegalDte(DteDefect::Mode {
                mode,
                max: MAX_LEVEL,
            }));
        };
        let mut table = root;
        let mut level = mode;
        let mut above = Permissions::all();
        // Terminates: each turn either returns or continues at a lower level, and level 1 has none
        // below it.
        loop {
            // Level 6 leaves seven bits after the shift, so the mask is right for every level.
            let gpa = table + ((iova >> shift) & (TABLE_ENTRIES - 1)) * 8;
            self.tally.host_reads += 1;
            let word = self
                .memory
                .load_u64(gpa)
                .map_err(|_| Reason::TableUnreadable { gpa })?;
            let mut entry = HostPte::from_bits(word);
            // Once, unless marks are made and somebody changes the entry meanwhile.
            let (next, permissions) = loop {
                let next = examine(entry, level, shift, iova)?;
                let permissions = above & Permissions::from_entry(entry.into_bits());
                if !permissions.contains(need.needed) {
                    return Err(Reason::Permission { level: Some(level) });
                }
                if host.had == 0 {
                    break (next, permissions);
                }
                let dirties = matches!(next, Next::Leaf(_))
                    && host.had & 2 != 0
                    && need.writes
                    && permissions.contains(Permissions::WRITE);
                let marked = entry.with_a(true).with_d(entry.d() || dirties);
                match self.mark(gpa, entry.into_bits(), marked.into_bits())? {
                    Ok(()) => {
                        entry = marked;
                        break (next, permissions);
                    }
                    Err(found) => entry = HostPte::from_bits(found),
                }
            };
            match next {
                Next::Table(next, next_shift) => {
                    table = entry.address();
                    level = next;
                    shift = next_shift;
                    above = permissions;
                }
                Next::Leaf(page_shift) => {
                    let offset = (1u64 << page_shift) - 1;
                    let clean = host.had & 2 != 0 && !entry.d();
                    return Ok(Walked {
                        leaf: Leaf {
                            iova: iova & !offset,
                            gpa: entry.address() & !offset,
                            shift: page_shift as u8,
                            untranslated_only: entry.u(),
                            force_coherent: entry.fc(),
                            guest: None,
                        },
                        permissions: if clean {
                            permissions - Permissions::WRITE
                        } else {
                            permissions
                        },
                    });
                }
            }
        }
    }

    /// Replaces the entry at `gpa` by one with more accessed and dirty bits, at once. Says what stands
    /// there instead if it isn't `entry` any more: what was examined is what gets marked.
    pub(crate) fn mark(
        &mut self,
        gpa: u64,
        entry: u64,
        marked: u64,
    ) -> Result<Result<(), u64>, Reason> {
        if marked == entry {
            return Ok(Ok(()));
        }
        match self.memory.compare_exchange_u64(gpa, entry, marked) {
            Err(_) => Err(Reason::TableUnreadable { gpa }),
            Ok(Ok(_)) => Ok(Ok(())),
            Ok(Err(found)) => {
                self.patience = self
                    .patience
                    .checked_sub(1)
                    .ok_or(Reason::EntryInMotion { gpa })?;
                Ok(Err(found))
            }
        }
    }
}

/// What a well-formed entry leads to.
#[derive(Clone, Copy)]
pub(crate) enum Next {
    /// The table of a lower level, and that level's shift.
    Table(u8, u32),
    /// A page, and log2 of its size.
    Leaf(u32),
}

/// Checks one entry for `iova`, but for its permissions.
#[inline(always)]
pub(crate) fn examine(entry: HostPte, level: u8, shift: u32, iova: u64) -> Result<Next, Reason> {
    if !entry.pr() {
        return Err(Reason::NotPresent { level });
    }
    let next = entry.next_level();
    // NextLevel 0 and 7 are no levels: the entry is a leaf.
    let next_shift = level_shift(next);
    let reserved = entry.into_bits()
        & match next_shift {
            Some(_) => HostPte::PDE_RESERVED,
            None => HostPte::PTE_RESERVED_WITHOUT_PMC,
        };
    if reserved != 0 {
        return Err(Reason::ReservedEntryBits {
            level,
            bits: reserved,
        });
    }
    let Some(next_shift) = next_shift else {
        let page_shift = leaf_shift(entry, level).ok_or(Reason::PageSize { level })?;
        return Ok(Next::Leaf(page_shift));
    };
    if next >= level {
        return Err(Reason::NextLevel { level, next });
    }
    // The bits that the levels between this one and the next would have used.
    let skipped = (1u64 << shift) - (1u64 << (next_shift + 9));
    if iova & skipped != 0 {
        return Err(Reason::SkippedBits { level, next });
    }
    Ok(Next::Table(next, next_shift))
}

/// log2 of the page size of a leaf at `level`; `None` for an encoded size that the level has not.
const fn leaf_shift(entry: HostPte, level: u8) -> Option<u32> {
    if entry.next_level() == HostPte::NEXT_LEVEL_SIZED
        && entry.encoded_page_shift() > MAX_ENCODED_SHIFT
    {
        return None;
    }
    entry.page_shift(level)
}
