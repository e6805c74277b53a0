//! The walk of a guest (v2) page table, from the PASID through the GCR3 table to the page, with the
//! DTE's host page table below it if there is one (48882 §2.2.6).

use amdvi_regs::PhysMemory;
use amdvi_regs::gcr3::{self, Gcr3Entry};
use amdvi_regs::guest_pte::GuestPte;
use amdvi_regs::pte::{iova_bits, table_index};

use crate::context::WalkContext;
use crate::dte::DmaEntry;
use crate::fault::{Reason, Stage, Stop};
use crate::iotlb::Key;
use crate::request::{GuestLeaf, Leaf, Permissions};
use crate::walk::{HOST_LOADS, Need, PATIENCE, Shared, Table, Walked, Walker};

/// The most guest words that one translation loads: three levels of a GCR3 table and five of a guest
/// page table, each entry found by a walk of the host page table; a second such walk for each of the
/// five that gets an accessed or dirty bit, because it is written then; and the walk for the page.
pub const MAX_LOADS: usize = (3 + 5) * (1 + HOST_LOADS) + 5 * HOST_LOADS + HOST_LOADS;

/// The most compare-and-exchanges of accessed and dirty bits that one translation tries: one for each
/// entry of the guest's table and of the fourteen walks of the host's, and those that fail.
pub const MAX_EXCHANGES: usize = 5 + 14 * HOST_LOADS + PATIENCE as usize + 1;

/// A guest translation, as a DTE and a PASID name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestTable {
    /// The GCR3 table.
    pub(crate) gcr3: u64,
    /// Its levels, 1–3.
    pub(crate) gcr3_levels: u8,
    /// Whether `gcr3` is a guest physical address; a system physical one otherwise.
    pub(crate) gcr3_is_gpa: bool,
    /// Levels of the guest page table, 4 or 5.
    pub(crate) levels: u8,
    pub(crate) pasid: u32,
    pub(crate) domain: u16,
    /// From guest to system physical addresses; `None` if they are the same.
    pub(crate) host: Option<Table>,
    /// Bit 63 of an entry denies execution.
    no_execute: bool,
    /// Accessed bits are maintained.
    accessed: bool,
    /// Dirty bits are maintained.
    dirty: bool,
}

impl GuestTable {
    /// The guest translation of a DTE that [`check_dte`](crate::check_dte) has passed and whose guest
    /// tables are in use.
    pub(crate) fn new(
        context: &WalkContext,
        entry: &DmaEntry,
        host: Option<Table>,
        pasid: u32,
    ) -> Self {
        Self {
            gcr3: entry.gcr3_address(),
            gcr3_levels: entry.q0.glx() + 1,
            gcr3_is_gpa: context.guest.gcr3_root_is_gpa,
            levels: entry.guest_paging_mode + 4,
            pasid,
            domain: entry.q1.domain_id(),
            host,
            no_execute: context.guest.no_execute,
            accessed: context.guest.accessed,
            dirty: context.guest.dirty,
        }
    }

    /// What can be refused without a table: the PASID and the form of the address.
    pub(crate) fn check(&self, context: &WalkContext, iova: u64) -> Result<(), Stop> {
        let table_max = gcr3::pasid_bits(self.gcr3_levels).map_or(0, |bits| (1 << bits) - 1);
        let max = context.guest.max_pasid.min(table_max);
        if self.pasid > max {
            return Err(Reason::PasidTooLarge { max }.in_guest_table());
        }
        let bits = iova_bits(self.levels).unwrap_or(0);
        let unused = 64 - bits;
        let extended = ((iova << unused) as i64 >> unused) as u64;
        // PASID 0 serves requests without a PASID too, whose addresses count up to the top.
        let zero_extended = self.pasid == 0 && iova >> bits == 0;
        if extended != iova && !zero_extended {
            return Err(Reason::NotCanonical { bits: bits as u8 }.in_guest_table());
        }
        Ok(())
    }
}

/// A leaf of the guest's table.
struct GuestPage {
    /// GPA of the page.
    gpa: u64,
    permissions: Permissions,
    leaf: GuestLeaf,
}

impl<M: PhysMemory + ?Sized> Walker<'_, M> {
    /// Translates `iova`, from the process to system physical memory, or by what is shared of it.
    // Not inlined: it would only make the way without PASIDs longer.
    #[inline(never)]
    pub(crate) fn guest(
        &mut self,
        table: &GuestTable,
        iova: u64,
        need: Need,
        write: bool,
    ) -> Result<Walked, Stop> {
        let Some(Shared {
            iotlb,
            journal,
            head,
        }) = self.shared
        else {
            return self.walk_guest(table, iova, need, write);
        };
        let key = Key::guest(table);
        if let Some(walked) = iotlb.lookup(journal, head, &key, iova, need) {
            self.tally.hits += 1;
            return Ok(walked);
        }
        self.tally.misses += 1;
        let before = self.tally;
        let walked = self.walk_guest(table, iova, need, write);
        self.tally.about_tables_since(before);
        let walked = walked?;
        iotlb.fill(head, &key, &walked);
        Ok(walked)
    }

    fn walk_guest(
        &mut self,
        table: &GuestTable,
        iova: u64,
        need: Need,
        write: bool,
    ) -> Result<Walked, Stop> {
        let root = self.guest_root(table)?;
        let page = self.guest_page(table, root, iova, need)?;
        let mut leaf = Leaf {
            iova: iova & !low(page.leaf.shift),
            gpa: page.gpa,
            shift: page.leaf.shift,
            untranslated_only: false,
            force_coherent: false,
            guest: Some(page.leaf),
        };
        let mut permissions = page.permissions;
        if let Some(host) = table.host {
            let gpa = page.gpa | iova & low(page.leaf.shift);
            let below = self.host_of(host, gpa, need, write)?;
            let shift = below.leaf.shift.min(page.leaf.shift);
            let found = below.leaf.gpa | gpa & low(below.leaf.shift);
            leaf = Leaf {
                iova: iova & !low(shift),
                gpa: found & !low(shift),
                shift,
                guest: Some(page.leaf),
                ..below.leaf
            };
            permissions &= below.permissions;
        }
        Ok(Walked { leaf, permissions })
    }

    /// The root of the PASID's page table.
    fn guest_root(&mut self, table: &GuestTable) -> Result<u64, Stop> {
        let mut address = table.gcr3;
        let mut is_gpa = table.gcr3_is_gpa;
        for level in (1..=table.gcr3_levels).rev() {
            // The levels are 1–3, so there is an index.
            let at = address + gcr3::index(table.pasid, level).unwrap_or(0) * gcr3::ENTRY_SIZE;
            let host = table.host.filter(|_| is_gpa);
            let gpa = self.address_of(host, at, Permissions::READ)?;
            self.tally.guest_reads += 1;
            let word = self
                .memory
                .load_u64(gpa)
                .map_err(|_| Reason::TableUnreadable { gpa }.in_guest_table())?;
            let entry = Gcr3Entry::from_bits(word);
            if !entry.v() {
                return Err(Reason::Gcr3NotValid { level }.in_guest_table());
            }
            let bits = entry.reserved_bits_set();
            if bits != 0 {
                return Err(Reason::Gcr3ReservedBits { level, bits }.in_guest_table());
            }
            address = entry.address();
            // Whatever the root is, the guest writes guest physical addresses.
            is_gpa = true;
        }
        Ok(address)
    }

    fn guest_page(
        &mut self,
        table: &GuestTable,
        root: u64,
        iova: u64,
        need: Need,
    ) -> Result<GuestPage, Stop> {
        let mut address = root;
        let mut above = GuestLeaf {
            shift: 0,
            execute: table.no_execute,
            user: true,
        };
        let mut above_permissions = Permissions::all();
        for level in (1..=table.levels).rev() {
            // Five levels at most, so there is an index.
            let at = address + table_index(iova, level).unwrap_or(0) * 8;
            let gpa = self.address_of(table.host, at, Permissions::READ)?;
            self.tally.guest_reads += 1;
            let word = self
                .memory
                .load_u64(gpa)
                .map_err(|_| Reason::TableUnreadable { gpa }.in_guest_table())?;
            let mut entry = GuestPte::from_bits(word);
            // Where it is for the IOMMU to write it, once that is known.
            let mut writable = None;
            let (so_far, permissions) = loop {
                if !entry.p() {
                    return Err(Reason::NotPresent { level }.in_guest_table());
                }
                let bits = entry.reserved_bits_set(level);
                if bits != 0 {
                    return Err(Reason::ReservedEntryBits { level, bits }.in_guest_table());
                }
                let so_far = GuestLeaf {
                    user: above.user && entry.us(),
                    execute: above.execute && !entry.xd(),
                    ..above
                };
                let mut permissions = above_permissions;
                permissions.set(
                    Permissions::WRITE,
                    entry.rw() && permissions.contains(Permissions::WRITE),
                );
                let denied = need.user && !so_far.user
                    || need.execute && !so_far.execute
                    || !permissions.contains(need.needed);
                if denied {
                    return Err(Reason::Permission { level: Some(level) }.in_guest_table());
                }
                let dirties = table.dirty
                    && entry.is_leaf(level)
                    && need.writes
                    && permissions.contains(Permissions::WRITE);
                let marked = entry
                    .with_a(entry.a() || table.accessed)
                    .with_d(entry.d() || dirties);
                if marked == entry {
                    break (so_far, permissions);
                }
                let to = match writable {
                    Some(gpa) => gpa,
                    // The page that holds the entry gets dirty itself.
                    None if table.host.is_some() => {
                        *writable.insert(self.address_of(table.host, at, Permissions::all())?)
                    }
                    None => gpa,
                };
                match self
                    .mark(to, entry.into_bits(), marked.into_bits())
                    .map_err(Reason::in_guest_table)?
                {
                    Ok(()) => {
                        entry = marked;
                        break (so_far, permissions);
                    }
                    Err(found) => entry = GuestPte::from_bits(found),
                }
            };
            address = entry.address(level);
            if let Some(shift) = entry.page_shift(level) {
                let clean = table.dirty && !entry.d();
                return Ok(GuestPage {
                    gpa: address,
                    permissions: if clean {
                        permissions - Permissions::WRITE
                    } else {
                        permissions
                    },
                    leaf: GuestLeaf {
                        shift: shift as u8,
                        ..so_far
                    },
                });
            }
            (above, above_permissions) = (so_far, permissions);
        }
        // An entry of level 1 is always a leaf; there is no table without levels.
        Err(Reason::NotPresent { level: 0 }.in_guest_table())
    }

    /// Where an entry of the guest's tables is, for the IOMMU's own access to it.
    fn address_of(
        &mut self,
        host: Option<Table>,
        gpa: u64,
        needed: Permissions,
    ) -> Result<u64, Stop> {
        let Some(host) = host else {
            return Ok(gpa);
        };
        let write = needed.contains(Permissions::WRITE);
        let Walked { leaf, .. } = self.host_of(host, gpa, Need::of_table(needed), write)?;
        Ok(leaf.gpa | gpa & low(leaf.shift))
    }

    /// [`host`](Self::host) for a guest physical address.
    #[inline(never)]
    fn host_of(&mut self, table: Table, gpa: u64, need: Need, write: bool) -> Result<Walked, Stop> {
        let stop = |reason| Stop {
            reason,
            stage: Stage::Host { gpa, write },
        };
        let bits = iova_bits(table.mode).unwrap_or(0);
        if bits < 64 && gpa >> bits != 0 {
            return Err(stop(Reason::AddressTooWide { bits: bits as u8 }));
        }
        self.host(table, gpa, need).map_err(stop)
    }
}

/// The offset bits of a page of 2^`shift` bytes.
const fn low(shift: u8) -> u64 {
    (1 << shift) - 1
}
