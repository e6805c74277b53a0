//! What the tests share: a sparse guest memory that keeps a record, builders, and the model.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

pub mod guest_model;
pub mod marks;
pub mod model;
pub mod rig;

use std::collections::BTreeMap;
use std::sync::Mutex;

use amdvi_dma::{Access, DmaEntry, Fault, Request, RequestKind, Span, WalkContext, translate};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};

/// Memory from here on is not backed.
pub const UNBACKED: u64 = 1 << 40;
/// Where the builders put a root table.
pub const ROOT: u64 = 0x10_0000;
/// PR, IR and IW of a table entry.
pub const PRESENT_RW: u64 = 1 | 3 << 61;

/// Guest memory: words that were never written read as zero.
#[derive(Debug, Default)]
pub struct TestMemory {
    pub words: BTreeMap<u64, u64>,
    loads: Mutex<Vec<u64>>,
}

impl TestMemory {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&mut self, gpa: u64, word: u64) {
        assert_eq!(gpa % 8, 0);
        self.words.insert(gpa, word);
    }

    /// What a load returns, without a record.
    pub fn peek(&self, gpa: u64) -> Option<u64> {
        (gpa < UNBACKED && gpa.is_multiple_of(8))
            .then(|| self.words.get(&gpa).copied().unwrap_or(0))
    }

    /// The addresses loaded since the last call.
    pub fn take_loads(&self) -> Vec<u64> {
        std::mem::take(&mut *self.loads.lock().unwrap())
    }
}

impl PhysMemory for TestMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        panic!("32-bit load of {gpa:#x}: a table entry has 64 bits");
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        self.loads.lock().unwrap().push(gpa);
        self.peek(gpa).ok_or(MemoryError { gpa })
    }
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        panic!("the walk stored to {gpa:#x}");
    }
    fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> {
        panic!("the walk stored to {gpa:#x}");
    }
    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        panic!("the walk stored to {gpa:#x}");
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        panic!("the walk stored to {gpa:#x}");
    }
}

/// Memory whose n-th load returns the n-th word of a list, wherever it goes: a guest that rewrites
/// its tables between any two loads.
#[derive(Debug)]
pub struct ShiftingMemory {
    words: Vec<u64>,
    count: Mutex<usize>,
}

impl ShiftingMemory {
    pub fn new(words: Vec<u64>) -> Self {
        Self {
            words,
            count: Mutex::new(0),
        }
    }

    pub fn loads(&self) -> usize {
        *self.count.lock().unwrap()
    }
}

impl PhysMemory for ShiftingMemory {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        let mut count = self.count.lock().unwrap();
        let word = self.words.get(*count).copied();
        *count += 1;
        word.ok_or(MemoryError { gpa })
    }
    fn store_u32(&self, gpa: u64, _: u32) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }
    fn store_u64(&self, gpa: u64, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError { gpa })
    }
    fn fetch_or_u32(&self, gpa: u64, _: u32) -> Result<u32, MemoryError> {
        Err(MemoryError { gpa })
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Err(MemoryError { gpa })
    }
}

/// The device of the tests: bus 0xab, so that an event without the bus is noticed.
pub const DEVICE: DeviceId = DeviceId(0xab1a);
/// Its domain.
pub const DOMAIN: u16 = 0x5eed;

/// A context with everything enabled that the engine knows: six levels, no limits, no exclusion.
pub fn context() -> WalkContext {
    WalkContext {
        iommu_enabled: true,
        host_levels: 6,
        va_bits: 64,
        eph_sup: false,
        ..WalkContext::default()
    }
}

/// V=1, TV=1, IR=IW=1, the given Mode and the root at [`ROOT`].
pub fn q0(mode: u8) -> DteQ0 {
    DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_ir(true)
        .with_iw(true)
        .with_mode(mode)
        .with_host_pt_root(if mode == 0 { 0 } else { ROOT >> 12 })
}

/// DomainID only.
pub fn q1() -> DteQ1 {
    DteQ1::new().with_domain_id(DOMAIN)
}

/// An untranslated request of four bytes.
pub fn request(access: Access, iova: u64) -> Request {
    Request {
        device_id: DEVICE,
        iova,
        len: 4,
        access,
        kind: RequestKind::Untranslated,
        pasid: None,
    }
}

/// Translates four bytes.
pub fn dma(
    context: &WalkContext,
    q0: DteQ0,
    q1: DteQ1,
    access: Access,
    iova: u64,
    memory: &TestMemory,
) -> Result<Span, Fault> {
    translate(
        context,
        &DmaEntry::new(q0, q1),
        &request(access, iova),
        memory,
    )
}

/// A PDE with all permissions.
pub const fn pde(next: u8, table: u64) -> u64 {
    PRESENT_RW | (next as u64) << 9 | table
}

/// A PTE with NextLevel 0 and all permissions.
pub const fn pte(page: u64) -> u64 {
    PRESENT_RW | page
}

/// Bit position where the index of a level begins.
pub const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Address of the entry for `iova` in a table of `level` at `table`.
pub const fn slot(table: u64, level: u8, iova: u64) -> u64 {
    table + ((iova >> shift(level)) & 0x1ff) * 8
}

/// Builds one table a level from `mode` down to `leaf_level`, at ROOT, ROOT+1000h, …, and puts
/// `entry` at the end. Returns the address of each level's entry, from the top.
pub fn map(memory: &mut TestMemory, mode: u8, leaf_level: u8, iova: u64, entry: u64) -> Vec<u64> {
    let mut slots = Vec::new();
    let mut table = ROOT;
    for level in (leaf_level..=mode).rev() {
        let at = slot(table, level, iova);
        slots.push(at);
        if level == leaf_level {
            memory.set(at, entry);
        } else {
            memory.set(at, pde(level - 1, table + 0x1000));
            table += 0x1000;
        }
    }
    slots
}

/// The raw words of an event, built without the crate's types.
pub const fn raw_event(code: u64, flags: u64, domain: u64, address: u64) -> [u64; 2] {
    [
        code << 60 | flags << 48 | domain << 32 | DEVICE.0 as u64,
        address,
    ]
}

/// IO_PAGE_FAULT of the tests' device and domain.
pub const fn page_fault(flags: u64, address: u64) -> [u64; 2] {
    raw_event(2, flags, DOMAIN as u64, address)
}

/// Flag bits of an event, counted from bit 48.
pub mod flag {
    pub const PR: u64 = 1 << 4;
    pub const RW: u64 = 1 << 5;
    pub const PE: u64 = 1 << 6;
    pub const RZ: u64 = 1 << 7;
    pub const TR: u64 = 1 << 8;
    /// Type 1 of a hardware error, bits [58:57].
    pub const MASTER_ABORT: u64 = 1 << 9;
    /// Type of an invalid device request, bits [59:57].
    pub const fn kind(kind: u64) -> u64 {
        kind << 9
    }
}

/// The words of a fault's event.
#[track_caller]
pub fn event(result: Result<Span, Fault>) -> [u64; 2] {
    let fault = result.expect_err("a fault was expected");
    fault
        .event
        .unwrap_or_else(|| panic!("no event for: {fault}"))
        .words()
}
