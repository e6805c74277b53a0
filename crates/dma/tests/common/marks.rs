//! Guest memory whose entries can be marked, and a builder of guest tables in it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use amdvi_regs::{MemoryError, PhysMemory};

use super::{UNBACKED, pde, shift, slot};

/// Guest memory with compare-exchange: what was exchanged is on record.
#[derive(Debug, Default)]
pub struct MarkMemory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    words: BTreeMap<u64, u64>,
    loads: Vec<u64>,
    /// Address, word before, word after.
    marks: Vec<(u64, u64, u64)>,
    attempts: usize,
    /// XORed to a word just before it is to be exchanged.
    flip: u64,
    /// How often that still happens.
    flips: usize,
}

impl MarkMemory {
    pub fn new(words: BTreeMap<u64, u64>) -> Self {
        Self {
            state: Mutex::new(State {
                words,
                ..State::default()
            }),
        }
    }

    pub fn set(&self, gpa: u64, word: u64) {
        self.state.lock().unwrap().words.insert(gpa, word);
    }

    pub fn get(&self, gpa: u64) -> u64 {
        let state = self.state.lock().unwrap();
        state.words.get(&gpa).copied().unwrap_or(0)
    }

    pub fn words(&self) -> BTreeMap<u64, u64> {
        self.state.lock().unwrap().words.clone()
    }

    /// From now on the guest changes `times` words just before they are marked, by XOR.
    pub fn race(&self, flip: u64, times: usize) {
        let mut state = self.state.lock().unwrap();
        (state.flip, state.flips) = (flip, times);
    }

    pub fn take_loads(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().unwrap().loads)
    }

    pub fn take_marks(&self) -> Vec<(u64, u64, u64)> {
        std::mem::take(&mut self.state.lock().unwrap().marks)
    }

    /// Exchanges that were tried since the last call.
    pub fn take_attempts(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().attempts)
    }
}

impl PhysMemory for MarkMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        panic!("32-bit load of {gpa:#x}: a table entry has 64 bits");
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        let mut state = self.state.lock().unwrap();
        state.loads.push(gpa);
        if gpa >= UNBACKED || !gpa.is_multiple_of(8) {
            return Err(MemoryError { gpa });
        }
        Ok(state.words.get(&gpa).copied().unwrap_or(0))
    }
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        panic!("the walk stored to {gpa:#x}");
    }
    fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> {
        panic!("the walk stored to {gpa:#x}, not by an exchange");
    }
    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        panic!("the walk stored to {gpa:#x}, not by an exchange");
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        let mut state = self.state.lock().unwrap();
        state.attempts += 1;
        if gpa >= UNBACKED || !gpa.is_multiple_of(8) {
            return Err(MemoryError { gpa });
        }
        if state.flips > 0 {
            state.flips -= 1;
            let flip = state.flip;
            *state.words.entry(gpa).or_default() ^= flip;
        }
        let word = state.words.get(&gpa).copied().unwrap_or(0);
        if word != current {
            return Ok(Err(word));
        }
        assert_ne!(current, new, "an exchange that changes nothing");
        state.marks.push((gpa, current, new));
        state.words.insert(gpa, new);
        Ok(Ok(current))
    }
}

/// P, RW and US of a guest entry.
pub const GUEST_RWU: u64 = 7;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const LARGE: u64 = 1 << 7;
pub const NX: u64 = 1 << 63;

/// Where the builders put what the guest's kernel owns, as guest physical addresses.
pub const GCR3: u64 = 0x40_0000;
pub const GUEST_TABLES: u64 = 0x50_0000;
/// Where the builders put the host's tables, and how far system physical addresses are from guest
/// physical ones under them.
pub const HOST_ROOT: u64 = 0x10_0000;
pub const DISTANCE: u64 = 0x100_0000;

/// Builds tables word by word.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    pub words: BTreeMap<u64, u64>,
    /// Mode of the host's table; 0 for none.
    pub mode: u8,
    host_tables: u64,
    guest_tables: u64,
}

impl Builder {
    pub fn new(mode: u8) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Where a guest physical address is.
    pub fn spa(&self, gpa: u64) -> u64 {
        if self.mode == 0 { gpa } else { gpa + DISTANCE }
    }

    pub fn set_guest(&mut self, gpa: u64, word: u64) {
        self.words.insert(self.spa(gpa), word);
    }

    pub fn guest(&self, gpa: u64) -> u64 {
        self.words.get(&self.spa(gpa)).copied().unwrap_or(0)
    }

    /// Enters a leaf of `level` into the host's table for `address`. Returns where it stands.
    pub fn host_map(&mut self, address: u64, level: u8, leaf: u64) -> u64 {
        let mut table = HOST_ROOT;
        let mut current = self.mode;
        while current > level {
            let at = slot(table, current, address);
            let word = self.words.get(&at).copied().unwrap_or(0);
            table = if word & 1 == 1 {
                word & 0x000f_ffff_ffff_f000
            } else {
                self.host_tables += 0x1000;
                let next = HOST_ROOT + self.host_tables;
                self.words.insert(at, pde(current - 1, next));
                next
            };
            current -= 1;
        }
        let at = slot(table, level, address);
        self.words.insert(at, leaf);
        at
    }

    /// Maps 4 KiB of guest physical memory, with all permissions.
    pub fn host_page(&mut self, gpa: u64) {
        if self.mode != 0 {
            self.host_map(gpa, 1, super::pte((gpa & !0xfff) + DISTANCE));
        }
    }

    /// A new page for a table of the guest, mapped by the host.
    pub fn guest_table(&mut self) -> u64 {
        let gpa = GUEST_TABLES + self.guest_tables;
        self.guest_tables += 0x1000;
        self.host_page(gpa);
        gpa
    }

    /// Enters a guest table's root for a PASID. Returns the address of the last entry.
    pub fn set_gcr3(&mut self, levels: u8, pasid: u64, root: u64) -> u64 {
        let mut table = GCR3;
        self.host_page(table);
        for level in (1..=levels).rev() {
            let index = pasid >> (9 * (level - 1)) & if level == 3 { 3 } else { 0x1ff };
            let at = table + index * 8;
            if level == 1 {
                self.set_guest(at, root | 1);
                return at;
            }
            let word = self.guest(at);
            table = if word & 1 == 1 {
                word & 0x000f_ffff_ffff_f000
            } else {
                let next = self.guest_table();
                self.set_guest(at, next | 1);
                next
            };
        }
        unreachable!("a GCR3 table has a level");
    }

    /// Enters a leaf of `level` into the guest's table at `root`. Returns the guest physical addresses
    /// of the entries, from the top.
    pub fn guest_map(
        &mut self,
        root: u64,
        levels: u8,
        iova: u64,
        level: u8,
        leaf: u64,
    ) -> Vec<u64> {
        let mut table = root;
        let mut entries = Vec::new();
        for current in (level..=levels).rev() {
            let at = table + (iova >> shift(current) & 0x1ff) * 8;
            entries.push(at);
            if current == level {
                self.set_guest(at, leaf);
                break;
            }
            let word = self.guest(at);
            table = if word & 1 == 1 {
                word & 0x000f_ffff_ffff_f000
            } else {
                let next = self.guest_table();
                self.set_guest(at, next | GUEST_RWU);
                next
            };
        }
        entries
    }
}
