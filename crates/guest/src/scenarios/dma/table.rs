//! Host page tables as a driver builds them.

use super::alloc;
use crate::failure::Result;
use crate::machine::Machine;
use crate::platform::Platform;

const PRESENT: u64 = 1;
pub(super) const READ: u64 = 1 << 61;
pub(super) const WRITE: u64 = 1 << 62;
pub(super) const ALL: u64 = READ | WRITE;
/// NextLevel of a leaf whose address encodes its size.
pub(super) const SIZED: u64 = 7;
/// Address bits of an entry.
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A PDE or PTE: present, with NextLevel, address and permissions.
pub(super) const fn entry(gpa: u64, next_level: u64, permissions: u64) -> u64 {
    PRESENT | next_level << 9 | gpa | permissions
}

/// log2 of what an entry of this level covers.
pub(super) const fn level_shift(level: u8) -> u32 {
    3 + 9 * level as u32
}

/// Byte offset of the entry for `iova` in a table of this level.
pub(super) const fn index(iova: u64, level: u8) -> u64 {
    (iova >> level_shift(level) & 0x1ff) * 8
}

/// A leaf at `level` for the page of 2^`shift` bytes around `gpa`.
pub(super) const fn leaf(gpa: u64, level: u8, shift: u32, permissions: u64) -> u64 {
    let page = gpa & ADDRESS & !((1 << shift) - 1);
    if shift == level_shift(level) {
        entry(page, 0, permissions)
    } else {
        // The lowest zero bit, at shift − 1, ends the size.
        let ones = ((1 << (shift - 1)) - 1) & ADDRESS;
        entry(page | ones, SIZED, permissions)
    }
}

/// The way from the root to a leaf: the levels that have a table, and the page's size.
#[derive(Clone, Copy)]
pub(super) struct Path {
    levels: [u8; 6],
    used: usize,
    /// log2 of the page's size.
    pub(super) shift: u32,
}

impl Path {
    /// A table at each level from `mode` down to `leaf`.
    pub(super) const fn down(mode: u8, leaf: u8, shift: u32) -> Self {
        Self::skipping(mode, mode, leaf, 1, shift)
    }

    /// A table at `mode`, then at every `step`-th level from `next` down to `leaf`.
    pub(super) const fn skipping(mode: u8, next: u8, leaf: u8, step: u8, shift: u32) -> Self {
        let mut path = Self {
            levels: [0; 6],
            used: 0,
            shift,
        };
        let mut level = next;
        if mode != next {
            path.levels[0] = mode;
            path.used = 1;
        }
        while level >= leaf && level > 0 {
            path.levels[path.used] = level;
            path.used += 1;
            level = level.saturating_sub(step);
        }
        path
    }

    /// The levels, from the root.
    pub(super) fn levels(&self) -> &[u8] {
        &self.levels[..self.used]
    }

    /// Level of the root: DTE.Mode.
    pub(super) fn mode(&self) -> u8 {
        self.levels[0]
    }

    /// Level of the leaf.
    pub(super) fn leaf(&self) -> u8 {
        self.levels[self.used - 1]
    }

    /// An IOVA for `gpa` that has another index at each level of the path, zeros in what is skipped,
    /// and the offset within its page. Bit 12 is that of `gpa` whatever the size.
    pub(super) fn iova(&self, gpa: u64) -> u64 {
        let below = (1u64 << self.shift.max(13)) - 1;
        let mut iova = 0;
        for &level in self.levels() {
            let number = if level == 6 {
                0x6a
            } else {
                0x100 + 0x11 * u64::from(level)
            };
            iova |= number << level_shift(level);
        }
        iova & !below | gpa & below
    }
}

/// One table for each level: the way to one leaf, or to several in one lowest table.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pages: [u64; 6],
}

impl Tables {
    pub(super) fn new<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<Self> {
        let mut pages = [0; 6];
        for page in &mut pages {
            *page = alloc(m, 4096)?;
        }
        Ok(Self { pages })
    }

    /// The table of a level.
    pub(super) fn table(&self, level: u8) -> u64 {
        self.pages[usize::from(level) - 1]
    }

    /// The address of the entry for `iova` at a level.
    pub(super) fn slot(&self, iova: u64, level: u8) -> u64 {
        self.table(level) + index(iova, level)
    }

    /// Maps the page of `iova` to the one of `gpa`.
    pub(super) fn map<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        path: &Path,
        iova: u64,
        gpa: u64,
    ) {
        for pair in path.levels().windows(2) {
            let (level, next) = (pair[0], pair[1]);
            let pde = entry(self.table(next), u64::from(next), ALL);
            m.p.write_u64(self.slot(iova, level), pde);
        }
        self.write_leaf(m, path, iova, leaf(gpa, path.leaf(), path.shift, ALL));
    }

    /// Takes the page of `iova` out, and the way to it.
    pub(super) fn unmap<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        path: &Path,
        iova: u64,
    ) {
        self.write_leaf(m, path, iova, 0);
        for &level in path.levels() {
            m.p.write_u64(self.slot(iova, level), 0);
        }
    }

    /// Writes the leaf into every slot that its page covers.
    fn write_leaf<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        path: &Path,
        iova: u64,
        leaf: u64,
    ) {
        let level = path.leaf();
        let slots = 1u64 << (path.shift - level_shift(level));
        let first = index(iova, level) & !(8 * slots - 1);
        for n in 0..slots {
            m.p.write_u64(self.table(level) + first + 8 * n, leaf);
        }
    }
}
