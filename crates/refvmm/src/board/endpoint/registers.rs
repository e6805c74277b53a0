//! BAR 0: the registers of [`amdvi_guest::endpoint::reg`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use amdvi_guest::endpoint::dma::{CHANNELS, LIMIT};
use amdvi_guest::endpoint::{DMA_BUFFER_SIZE, ID_VALUE, RECORDS, reg};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;

use super::dma::AddressSpace;
use super::{TestEndpoint, channels};

const OUTCOME_WORD: u64 = reg::OUTCOME - 4;
const RAW_ADDRESS_HIGH: u64 = reg::RAW_ADDRESS + 4;
const DMA_IOVA_HIGH: u64 = reg::DMA_IOVA + 4;
const RECORD_LAST: u64 = reg::RECORD_0 + 8 * (RECORDS - 1);
const BUFFER_END: u64 = reg::DMA_BUFFER + DMA_BUFFER_SIZE as u64;
/// Each of the two tables of counters has room for 2048 vectors.
const COUNTERS: u64 = reg::VECTOR_DELIVERED - reg::VECTOR_SENT;
const SENT_END: u64 = reg::VECTOR_SENT + COUNTERS;
const DELIVERED_END: u64 = reg::VECTOR_DELIVERED + COUNTERS;

/// Two 32-bit registers share an aligned 64-bit word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl TestEndpoint {
    /// The aligned 64-bit word at `offset`.
    fn word(&self, offset: u64) -> u64 {
        let stats = self.core.sender().stats();
        match offset {
            reg::ID => u64::from(ID_VALUE),
            reg::FIRE_START
            | reg::RAW_ADDRESS
            | reg::DMA_IOVA
            | reg::DMA_LENGTH
            | reg::VMM_COMMAND => self.held(offset),
            OUTCOME_WORD => pair(0, stats.outcome()),
            reg::DELIVERED => stats.delivered(),
            reg::BLOCKED => stats.blocked(),
            reg::NANOS => stats.nanos(),
            reg::SENT => stats.sent(),
            reg::HELD_BACK => stats.held_back(),
            reg::STORM => u64::from(self.storm.running()),
            reg::STORM_SENT => self.storm.sent(),
            reg::DMA_STATUS => {
                let requester = self.core.sender().dma().requester();
                self.held(offset) | pair(0, requester.0.into())
            }
            reg::DMA_STORM => self.held(offset) | u64::from(self.dma_storm.running()),
            reg::DMA_STORM_SENT => self.dma_storm.sent(),
            reg::DMA_STORM_ABORTED => self.dma_storm.aborted(),
            reg::RECORDED => self.recorder.count(),
            reg::RECORD_0..=RECORD_LAST => self.recorder.record((offset - reg::RECORD_0) / 8),
            reg::VECTORS => pair(self.core.options().vectors.into(), self.core.features()),
            reg::INTX => pair(self.core.intx(), CHANNELS),
            reg::DMA_LIMIT => LIMIT.into(),
            reg::TLB_ENTRIES..=reg::PAGE_RESPONSES | reg::TLB_MUTE => self.tlb_word(offset),
            reg::ROUTE_COMMITS | reg::ROUTE_CHANGES | reg::ROUTED => self.route_word(offset),
            reg::DMA_BUFFER..BUFFER_END => self.held(offset),
            reg::DMA_CHANNEL_0..channels::END => self.channels.word(offset),
            reg::VECTOR_SENT..SENT_END => {
                let first = (offset - reg::VECTOR_SENT) / 4;
                pair(stats.vector(first).0, stats.vector(first + 1).0)
            }
            reg::VECTOR_DELIVERED..DELIVERED_END => {
                let first = (offset - reg::VECTOR_DELIVERED) / 4;
                pair(stats.vector(first).1, stats.vector(first + 1).1)
            }
            _ => 0,
        }
    }

    /// A counter of the TLB.
    fn tlb_word(&self, offset: u64) -> u64 {
        let tlb = &self.core.sender().dma().shared().tlb;
        let counts = tlb.counters.read();
        match offset {
            reg::TLB_ENTRIES => tlb.len() as u64,
            reg::TLB_HITS => counts.hits,
            reg::TLB_INVALIDATIONS => counts.invalidations,
            reg::PAGE_REQUESTS => counts.page_requests,
            reg::PAGE_RESPONSES => counts.page_responses,
            _ => u64::from(tlb.mute.load(Ordering::Acquire)),
        }
    }

    /// A counter of routes past the IOMMU.
    fn route_word(&self, offset: u64) -> u64 {
        let counters = self.services.route_counters().unwrap_or_default();
        match offset {
            reg::ROUTE_COMMITS => counters.commits,
            reg::ROUTE_CHANGES => counters.notifications,
            _ => counters.by_irqfd,
        }
    }

    /// A word of registers that hold what was written.
    fn held(&self, offset: u64) -> u64 {
        self.core.with(|state| {
            let registers = &state.registers;
            match offset {
                reg::FIRE_START => pair(registers.start, registers.count),
                reg::RAW_ADDRESS => registers.raw_address,
                reg::DMA_IOVA => registers.dma_iova,
                reg::DMA_LENGTH => pair(registers.dma_length, 0),
                reg::DMA_STATUS => pair(registers.dma_status, 0),
                reg::DMA_STORM => pair(0, registers.storm_bytes),
                reg::VMM_COMMAND => pair(0, registers.vmm_status),
                reg::DMA_BUFFER..BUFFER_END => {
                    let at = (offset - reg::DMA_BUFFER) as usize;
                    let mut word = [0; 8];
                    word.copy_from_slice(&registers.buffer[at..at + 8]);
                    u64::from_le_bytes(word)
                }
                _ => 0,
            }
        })
    }

    fn set_register(&self, offset: u64, value: u32) {
        let half = |word: u64, upper: bool| match upper {
            true => word & 0xffff_ffff | u64::from(value) << 32,
            false => word & !0xffff_ffff | u64::from(value),
        };
        match offset {
            reg::FIRE => self.core.fire(value),
            reg::FIRE_START => self.core.with(|state| state.registers.start = value),
            reg::FIRE_COUNT => self.fire_range(value),
            reg::RAW_ADDRESS | RAW_ADDRESS_HIGH => self.core.with(|state| {
                let address = &mut state.registers.raw_address;
                *address = half(*address, offset == RAW_ADDRESS_HIGH);
            }),
            reg::RAW_DATA => {
                let address = self.core.with(|state| state.registers.raw_address);
                let msi = Msi {
                    address,
                    data: value,
                };
                self.core.sender().send(None, msi);
            }
            reg::RESET_STATS => {
                self.core.sender().stats().reset();
                self.recorder.reset();
            }
            reg::STORM if value & 1 == 1 => {
                let (start, end) = self.range();
                let core = Arc::clone(&self.core);
                self.storm
                    .start(start..end, move |vector| core.request(vector));
            }
            reg::STORM => self.storm.stop(),
            reg::DMA_IOVA | DMA_IOVA_HIGH => self.core.with(|state| {
                let iova = &mut state.registers.dma_iova;
                *iova = half(*iova, offset == DMA_IOVA_HIGH);
            }),
            reg::DMA_LENGTH => self.core.with(|state| {
                state.registers.dma_length = value.min(DMA_BUFFER_SIZE);
            }),
            reg::DMA_COMMAND => self.transfer(value),
            reg::DMA_REQUESTER => {
                let requester = DeviceId(value as u16);
                self.core.sender().dma().set_requester(requester);
            }
            reg::DMA_STORM if value & 1 == 1 => {
                let (iova, bytes) = self.core.with(|state| {
                    let registers = &state.registers;
                    (registers.dma_iova, registers.storm_bytes)
                });
                self.dma_storm.start(iova, u64::from(bytes));
            }
            reg::DMA_STORM => self.dma_storm.stop(),
            reg::DMA_STORM_BYTES => self.core.with(|state| {
                state.registers.storm_bytes = value & !0xfff;
            }),
            reg::TLB_MUTE => {
                let tlb = &self.core.sender().dma().shared().tlb;
                tlb.mute.store(value & 1 == 1, Ordering::Release);
            }
            reg::PIN => self.services.set_pin((value >> 8) as u8, value & 1 == 1),
            reg::INTX => self.core.set_intx(value & 1 == 1),
            reg::VMM_COMMAND => {
                let done = self.services.vmm_command(value);
                self.core
                    .with(|state| state.registers.vmm_status = u32::from(!done));
            }
            reg::DMA_CHANNEL_0..channels::END => self.channels.set(offset, value),
            _ => {}
        }
    }

    /// The vectors of the range, cut at the end of the table: that bounds the work of one write.
    fn range(&self) -> (u32, u32) {
        let vectors = u32::from(self.core.options().vectors);
        self.core.with(|state| {
            let start = state.registers.start.min(vectors);
            let end = start.saturating_add(state.registers.count).min(vectors);
            (start, end)
        })
    }

    fn fire_range(&self, count: u32) {
        self.core.with(|state| state.registers.count = count);
        let (start, end) = self.range();
        for vector in start..end {
            self.core.fire(vector);
        }
    }

    /// Moves the DMA buffer.
    fn transfer(&self, command: u32) {
        // A copy, so that the function's lock is not held meanwhile.
        let (iova, len, mut buffer) = self.core.with(|state| {
            let registers = &state.registers;
            let len = registers.dma_length as usize;
            (registers.dma_iova, len, *registers.buffer)
        });
        let sender = self.core.sender();
        let done = match command {
            1 => sender
                .dma()
                .read(AddressSpace::PLAIN, iova, &mut buffer[..len])
                .is_ok(),
            2 => sender.write(iova, &buffer[..len]),
            _ => return,
        };
        self.core.with(|state| {
            if command == 1 {
                *state.registers.buffer = buffer;
            }
            state.registers.dma_status = if done { 1 } else { 2 };
        });
    }

    pub(super) fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        // Of unaligned reads, too, each byte is that of its register.
        let mut known = None;
        for (n, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(n as u64);
            let word = match known {
                Some((start, word)) if start == at & !7 => word,
                _ => self.word(at & !7),
            };
            known = Some((at & !7, word));
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
    }

    pub(super) fn write_bar0(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(reg::DMA_BUFFER)
            && offset < BUFFER_END
        {
            self.core.with(|state| {
                for (n, &value) in data.iter().enumerate() {
                    if let Some(byte) = state.registers.buffer.get_mut(at as usize + n) {
                        *byte = value;
                    }
                }
            });
            return;
        }
        // Registers take aligned dwords; a qword is two of them, low half first.
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            return;
        }
        for (n, dword) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
            self.set_register(offset + 4 * n as u64, value);
        }
    }
}
