//! DMA over page tables that change while they are walked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use amdvi_dma::{Access, HOST_LOADS};
use amdvi_regs::mmio::{Control, offset};
use amdvi_regs::{DeviceId, MemoryError, PhysMemory};

use super::{Input, RAM};
use crate::testing::{TestHost, TestMemory};
use crate::{Iommu, Options};

const DEVICE: DeviceId = DeviceId(1);
const COMMANDS: u64 = 0x1000;
const EVENTS: u64 = 0x2000;
/// Loads of a DTE: two words, and both again as often as the guest changes the first meanwhile.
pub(super) const DTE_LOADS: u64 = 2 + 2 * 8;
/// Stores of an event.
pub(super) const EVENT_STORES: u64 = 2;
/// Loads that one enumeration of the mappings may make.
const LOOK_BUDGET: u64 = 200;

/// Memory that another CPU writes to between any two loads.
pub(super) struct Shifting {
    pub(super) memory: TestMemory,
    writes: Mutex<VecDeque<(u64, u64)>>,
}

impl Shifting {
    pub(super) fn new() -> Self {
        Self {
            memory: TestMemory::new(RAM),
            writes: Mutex::default(),
        }
    }

    /// A word that the other CPU will write.
    pub(super) fn plan(&self, gpa: u64, word: u64) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.push_back((gpa, word));
    }

    fn shift(&self) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((gpa, word)) = writes.pop_front() {
            self.memory.write(gpa, word);
        }
    }

    /// The guest's other CPU is done.
    pub(super) fn settle(&self) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.clear();
    }
}

impl PhysMemory for Shifting {
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        self.shift();
        self.memory.load_u32(gpa)
    }
    fn load_u64(&self, gpa: u64) -> Result<u64, MemoryError> {
        self.shift();
        self.memory.load_u64(gpa)
    }
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        self.memory.store_u32(gpa, value)
    }
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.memory.store_u64(gpa, value)
    }
    fn fetch_or_u32(&self, gpa: u64, bits: u32) -> Result<u32, MemoryError> {
        self.memory.fetch_or_u32(gpa, bits)
    }
    fn compare_exchange_u64(
        &self,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.shift();
        self.memory.compare_exchange_u64(gpa, current, new)
    }
}

/// A table word: mostly an entry that leads on inside RAM.
fn entry(input: &mut Input<'_>) -> u64 {
    let choice = input.byte();
    let word = input.word();
    match choice & 7 {
        0 => word,
        1 => 0,
        2 => word & !(0x1ff << 52) | 3 << 61 | 1,
        _ => word & (7 << 9 | 0x1_f000) | 3 << 61 | 1,
    }
}

/// Page tables with any content, which another CPU changes while they are walked: by requests of any
/// length, by invalidations, and by somebody who lists what is mapped.
///
/// No translation loads more than its DTE and [`HOST_LOADS`] words. When the guest stands still and
/// has invalidated everything, a handle with caches answers as one without.
pub fn translate(data: &[u8]) {
    let mut input = Input(data);
    let memory = Arc::new(Shifting::new());
    let options: Options = "amd-iommu,np-cache=on"
        .parse()
        .expect("the target's options");
    let host = Arc::new(TestHost::default());
    let iommu = Iommu::new(&options, memory.clone(), host.clone());
    let mode = u64::from(input.byte()) % 7;
    let root = (u64::from(input.byte()) << 12) & 0x1_f000;
    let dte = 1 | 2 | mode << 9 | root | 3 << 61;
    memory.memory.write_all(u64::from(DEVICE.0) * 32, &[dte, 7]);
    let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
    write(offset::DEVICE_TABLE_BASE, 0);
    write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
    write(offset::EVENT_LOG_BASE, EVENTS | 8 << 56);
    let control = Control::RESET
        .with_iommu_en(true)
        .with_cmd_buf_en(true)
        .with_event_log_en(true);
    write(offset::CONTROL, control.into_bits());
    let mut device = iommu.endpoint(DEVICE);
    let mut tail = 0;
    let mut addresses = vec![0];
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => {
                let gpa = (input.word() % RAM) & !7;
                let word = entry(&mut input);
                memory.memory.write(gpa, word);
            }
            1 => {
                let gpa = (input.word() % RAM) & !7;
                let word = entry(&mut input);
                memory.plan(gpa, word);
            }
            2 => {
                // INVALIDATE_IOMMU_PAGES of some domain and range.
                let domain = 7 ^ u64::from(input.byte() & 1);
                let words = [3 << 60 | domain << 32, input.word() & !0xffc];
                memory.memory.write_all(COMMANDS + tail, &words);
                tail = (tail + 16) % 0x1000;
                write(offset::COMMAND_TAIL, tail);
            }
            3 => {
                let (first, last) = (input.word(), input.word());
                let before = memory.memory.loads();
                let mut mappings = device.mappings(first..=last, LOOK_BUDGET);
                for mapping in mappings.by_ref() {
                    assert!(!mapping.permissions.is_empty() && mapping.last() <= last);
                }
                let used = memory.memory.loads() - before;
                let bound = LOOK_BUDGET + 2 * HOST_LOADS as u64 + DTE_LOADS;
                assert!(used <= bound, "{used} loads to list mappings");
            }
            choice => {
                let iova = input.word() >> (input.byte() & 63);
                let len = input.word() >> (input.byte() & 63);
                let access = [Access::Read, Access::Write, Access::Atomic][usize::from(choice) % 3];
                addresses.push(iova);
                let before = memory.memory.accesses();
                let span = device.translate(iova, len, access).map(|mapped| mapped.len);
                let used = memory.memory.accesses() - before;
                let bound = HOST_LOADS as u64 + DTE_LOADS + EVENT_STORES;
                assert!(used <= bound, "{used} accesses for one translation");
                assert!(span.is_err() || span.is_ok_and(|n| n <= len && (n > 0 || len == 0)));
            }
        }
    }
    memory.settle();
    // INVALIDATE_IOMMU_ALL, whatever became of the ring. No events: they may be written into tables.
    let control = control.with_event_log_en(false);
    write(offset::CONTROL, control.with_cmd_buf_en(false).into_bits());
    write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
    write(offset::CONTROL, control.into_bits());
    memory.memory.write_all(COMMANDS, &[8 << 60, 0]);
    write(offset::COMMAND_TAIL, 16);
    let mut fresh = iommu.endpoint(DEVICE);
    for iova in addresses {
        for access in [Access::Read, Access::Write] {
            let answer = |endpoint: &mut crate::Endpoint| {
                let piece = endpoint.translate(iova, u64::MAX - iova, access);
                piece.map(|mapped| (mapped.gpa, mapped.permissions))
            };
            let kept = answer(&mut device);
            assert_eq!(kept, answer(&mut device), "{iova:#x}");
            assert_eq!(kept, answer(&mut fresh), "{iova:#x}");
        }
    }
}
