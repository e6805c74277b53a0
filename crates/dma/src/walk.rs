//! The walk of a host (v1) page table (48882 §2.2.3).

use amdvi_regs::PhysMemory;
use amdvi_regs::pte::{HostPte, MAX_LEVEL, TABLE_ENTRIES, level_shift};

use crate::dte::DteDefect;
use crate::fault::Reason;
use crate::request::{Leaf, Permissions};

/// The most guest words that one translation loads: one per level of the deepest table.
pub const MAX_LOADS: usize = 6;

/// log2 of the largest page that the address field can encode: its top bit, 51, ends the run of
/// ones. With all of them one there is no end, and the page would be larger than memory can be.
const MAX_ENCODED_SHIFT: u32 = 52;

/// A page table, as a DTE names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// GPA of the root.
    pub(crate) root: u64,
    /// Number of levels, 1–6.
    pub(crate) mode: u8,
    /// The domain whose invalidations concern it.
    pub(crate) domain: u16,
}

/// What the walk of one IOVA found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The page.
    pub(crate) leaf: Leaf,
    /// The AND of the permissions of every entry on the way, without the DTE's.
    pub(crate) permissions: Permissions,
}

/// Walks `table` for `iova`.
///
/// The walk stops at the first entry that denies one of `needed`; with nothing needed (a
/// translation request) it goes on to the leaf and reports.
// Inlined, like all that a miss does: what one part hands to the next stays in registers, where
// copying it through memory cost more than the loads of the walk.
#[inline(always)]
pub(crate) fn walk<M: PhysMemory + ?Sized>(
    memory: &M,
    Table { root, mode, .. }: Table,
    iova: u64,
    needed: Permissions,
) -> Result<Walked, Reason> {
    let Some(mut shift) = level_shift(mode) else {
        return Err(Reason::IllegalDte(DteDefect::Mode {
            mode,
            max: MAX_LEVEL,
        }));
    };
    let mut table = root;
    let mut level = mode;
    let mut permissions = Permissions::all();
    // Terminates: each turn either returns or continues at a lower level, and level 1 has none
    // below it.
    loop {
        // Level 6 leaves seven bits after the shift, so the mask is right for every level.
        let gpa = table + ((iova >> shift) & (TABLE_ENTRIES - 1)) * 8;
        let entry = memory
            .load_u64(gpa)
            .map_err(|_| Reason::TableUnreadable { gpa })?;
        let entry = HostPte::from_bits(entry);
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
        let page_shift = match next_shift {
            Some(next_shift) => {
                if next >= level {
                    return Err(Reason::NextLevel { level, next });
                }
                // The bits that the levels between this one and the next would have used.
                let skipped = (1u64 << shift) - (1u64 << (next_shift + 9));
                if iova & skipped != 0 {
                    return Err(Reason::SkippedBits { level, next });
                }
                None
            }
            None => Some(leaf_shift(entry, level).ok_or(Reason::PageSize { level })?),
        };
        permissions &= Permissions::from_entry(entry.into_bits());
        if !permissions.contains(needed) {
            return Err(Reason::Permission { level: Some(level) });
        }
        if let Some(page_shift) = page_shift {
            let offset = (1u64 << page_shift) - 1;
            return Ok(Walked {
                leaf: Leaf {
                    iova: iova & !offset,
                    gpa: entry.address() & !offset,
                    shift: page_shift as u8,
                    untranslated_only: entry.u(),
                    force_coherent: entry.fc(),
                    guest: None,
                },
                permissions,
            });
        }
        table = entry.address();
        level = next;
        shift = next_shift.unwrap_or(shift);
    }
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
