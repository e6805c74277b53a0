//! The short way through a host page table.
//!
//! A guest whose drivers map each buffer for one request, as Linux's do, makes its devices miss all the
//! time: what they translate is new, and what they knew has been invalidated. Nearly all of these misses
//! are of one kind: a request without a PASID, to an ordinary address, by an entry with host tables
//! that maintain no bits. For them, what the entry says is worked out once, and the walk is made without
//! asking the shared IOTLB. Whatever is not like that, every fault among it, goes the long way
//! ([`crate::translate`]), which decides all over again.

use amdvi_regs::PhysMemory;
use amdvi_regs::msi::MSI_WINDOW_END;
use amdvi_regs::pte::{HostPte, TABLE_ENTRIES, level_shift};

use crate::context::WalkContext;
use crate::dte::{DmaEntry, check_dte};
use crate::ranges::{AddressClass, classify};
use crate::request::Permissions;
use crate::translate::check_width;
use crate::walk::{Next, examine};

/// Addresses of which each is translated like any other; none if the first is above the last.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: u64,
    last: u64,
}

const EMPTY: Window = Window { first: 1, last: 0 };

/// What a Device Table Entry says of such requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    root: u64,
    level: u8,
    shift: u32,
    granted: Permissions,
    /// Below and above the MSI window.
    windows: [Window; 2],
}

/// A page, as large as it may be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// log2 of its size.
    pub(crate) shift: u8,
    /// Where it begins.
    pub(crate) gpa: u64,
    pub(crate) permissions: Permissions,
}

impl Page {
    /// The GPA of an IOVA in it.
    pub(crate) const fn gpa(self, iova: u64) -> u64 {
        self.gpa | iova & ((1 << self.shift) - 1)
    }

    /// Bytes from an IOVA in it to its end.
    pub(crate) const fn reach(self, iova: u64) -> u64 {
        (1 << self.shift) - (iova & ((1 << self.shift) - 1))
    }
}

impl Plain {
    /// An entry by which nothing goes the short way.
    pub(crate) const NOTHING: Self = Self {
        root: 0,
        level: 0,
        shift: 0,
        granted: Permissions::empty(),
        windows: [EMPTY; 2],
    };

    /// What an entry says.
    pub(crate) fn new(context: &WalkContext, entry: &DmaEntry) -> Self {
        let (q0, q1) = (entry.q0, entry.q1);
        let level = q0.mode();
        let Some(shift) = level_shift(level) else {
            return Self::NOTHING;
        };
        if !(context.iommu_enabled && q0.v() && q0.tv())
            || q0.had() != 0
            || context.uses_guest_tables(q0)
            || check_dte(context, entry).is_err()
        {
            return Self::NOTHING;
        }
        let windows = [0, MSI_WINDOW_END + 1].map(|first| {
            match (
                classify(context, q1.ex(), first),
                check_width(context, level, first),
            ) {
                ((AddressClass::Memory, last), Ok(widest)) => Window {
                    first,
                    last: last.min(widest),
                },
                _ => EMPTY,
            }
        });
        Self {
            root: q0.host_pt_root() << 12,
            level,
            shift,
            granted: Permissions::from_entry(q0.into_bits()),
            windows,
        }
    }

    /// Walks to the page around `iova` that allows `needed`. `None` is no fault: it says that the long way
    /// must be gone.
    pub(crate) fn walk<M: PhysMemory + ?Sized>(
        &self,
        memory: &M,
        iova: u64,
        needed: Permissions,
    ) -> Option<Page> {
        let contains = |window: &&Window| window.first <= iova && iova <= window.last;
        let window = self.windows.iter().find(contains)?;
        let (mut table, mut level, mut shift, mut above) =
            (self.root, self.level, self.shift, self.granted);
        // Ends: each turn returns, or goes on at a lower level.
        loop {
            let gpa = table + ((iova >> shift) & (TABLE_ENTRIES - 1)) * 8;
            let entry = HostPte::from_bits(memory.load_u64(gpa).ok()?);
            let next = examine(entry, level, shift, iova).ok()?;
            let permissions = above & Permissions::from_entry(entry.into_bits());
            if !permissions.contains(needed) {
                return None;
            }
            match next {
                Next::Table(next, next_shift) => {
                    (table, level, shift) = (entry.address(), next, next_shift);
                    above = permissions;
                }
                Next::Leaf(page_shift) => {
                    let offset = (1u64 << page_shift) - 1;
                    if iova & !offset < window.first || iova | offset > window.last {
                        return None;
                    }
                    return Some(Page {
                        shift: page_shift as u8,
                        gpa: entry.address() & !offset,
                        permissions,
                    });
                }
            }
        }
    }
}
