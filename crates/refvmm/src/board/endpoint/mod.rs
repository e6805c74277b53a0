//! The test endpoint: sends any interrupt it is told to, and does DMA.
//!
//! Its registers are specified in [`amdvi_guest::endpoint`]. Everything that it sends takes the
//! way of a real function: its own DeviceID, through the IOMMU.

mod dma;
mod dma_storm;
mod sender;
mod stream;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amdvi_dma::Access;
use amdvi_guest::endpoint::{
    BAR0_SIZE, BAR2_SIZE, BAR4_SIZE, DEVICE_ID, DMA_BUFFER_SIZE, ID_VALUE, RECORDS, VECTORS,
    VENDOR_ID, outcome, reg,
};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;

use super::pci::{Bar, ConfigSpace, Function, Msix, Place, Request};
use super::recorder::Recorder;
use super::slot::Slot;
use dma::Dma;
use dma_storm::DmaStorm;
use sender::{Sender, Storm};

/// What the endpoint asks of the board it is plugged into.
pub(crate) trait Services: Send + Sync {
    /// Sets the level of an IOAPIC pin.
    fn set_pin(&self, pin: u8, level: bool);
    /// Does a VMM command; `false` when it failed.
    fn vmm_command(&self, command: u32) -> bool;
}

struct State {
    config: ConfigSpace,
    msix_control: u16,
    msix: Msix,
    start: u32,
    count: u32,
    raw_address: u64,
    dma_iova: u64,
    dma_length: u32,
    dma_status: u32,
    storm_bytes: u32,
    vmm_status: u32,
    buffer: Box<[u8; DMA_BUFFER_SIZE as usize]>,
}

/// The endpoint.
pub(crate) struct TestEndpoint {
    state: Arc<Mutex<State>>,
    sender: Arc<Sender>,
    storm: Storm,
    dma_storm: DmaStorm,
    recorder: Arc<Recorder>,
    services: Arc<dyn Services>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestEndpoint {
    /// Plugs the endpoint into `slot`.
    pub(crate) fn new(slot: &Slot, recorder: Arc<Recorder>, services: Arc<dyn Services>) -> Self {
        let mut config = ConfigSpace::new(VENDOR_ID, DEVICE_ID, [0xff, 0x00, 0x00]);
        for (index, size) in [(0, BAR0_SIZE), (2, BAR2_SIZE), (4, BAR4_SIZE)] {
            // The window lies below 4 GiB.
            config.add_bar(Bar { index, size }, slot.place_bar(size.into()) as u32);
        }
        let msix = Msix::new(VECTORS);
        let at = |bar| Place { bar, offset: 0 };
        let msix_control = msix.add_capability(&mut config, at(2), at(4));
        config.enable_memory();
        let state = Arc::new(Mutex::new(State {
            config,
            msix_control,
            msix,
            start: 0,
            count: 0,
            raw_address: 0,
            dma_iova: 0,
            dma_length: 0,
            dma_status: 0,
            storm_bytes: 0,
            vmm_status: 0,
            buffer: Box::new([0; DMA_BUFFER_SIZE as usize]),
        }));
        let dma = || Dma::new(slot.handle(), Arc::clone(slot.memory()));
        let sender = Arc::new(Sender::new(slot.handle(), dma()));
        // The streams have their own handles, as each queue of a real device has.
        let dma_storm = DmaStorm::new(dma());
        let storm = Storm::new(sender.for_another_thread(slot.handle(), dma()));
        Self {
            state,
            sender,
            storm,
            dma_storm,
            recorder,
            services,
        }
    }

    /// Sends one vector, as FIRE does.
    fn fire(&self, vector: u32) {
        let request = lock(&self.state).msix.request(vector);
        self.sender.request(request);
    }

    /// Sends what is pending and no longer masked.
    fn flush(&self) {
        let ready = lock(&self.state).msix.take_ready();
        for msi in ready {
            self.sender.send(msi);
        }
    }

    fn register(&self, offset: u64) -> u64 {
        let stats = self.sender.stats();
        match offset {
            reg::ID => return u64::from(ID_VALUE),
            reg::DELIVERED => return stats.delivered(),
            reg::BLOCKED => return stats.blocked(),
            reg::NANOS => return stats.nanos(),
            reg::STORM => return u64::from(self.storm.running()),
            reg::STORM_SENT => return self.storm.sent(),
            reg::DMA_STORM_SENT => return self.dma_storm.sent(),
            reg::DMA_STORM_ABORTED => return self.dma_storm.aborted(),
            reg::RECORDED => return self.recorder.count(),
            reg::RECORD_0..=RECORD_LAST => {
                return self.recorder.record((offset - reg::RECORD_0) / 8);
            }
            _ => {}
        }
        let state = lock(&self.state);
        // Two 32-bit registers share an aligned 64-bit word.
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        match offset {
            FIRE_START_WORD => pair(state.start, state.count),
            reg::RAW_ADDRESS => state.raw_address,
            OUTCOME_WORD => pair(0, stats.outcome()),
            reg::DMA_IOVA => state.dma_iova,
            DMA_LENGTH_WORD => pair(state.dma_length, 0),
            reg::DMA_STATUS => pair(state.dma_status, u32::from(self.sender.dma().requester().0)),
            reg::DMA_STORM => pair(u32::from(self.dma_storm.running()), state.storm_bytes),
            VMM_WORD => pair(0, state.vmm_status),
            _ => 0,
        }
    }

    fn set_register(&self, offset: u64, value: u32) {
        match offset {
            reg::FIRE => self.fire(value),
            reg::FIRE_START => lock(&self.state).start = value,
            reg::FIRE_COUNT => self.fire_range(value),
            reg::RAW_ADDRESS => {
                let mut state = lock(&self.state);
                state.raw_address = state.raw_address & !0xffff_ffff | u64::from(value);
            }
            RAW_ADDRESS_HIGH => {
                let mut state = lock(&self.state);
                state.raw_address = state.raw_address & 0xffff_ffff | u64::from(value) << 32;
            }
            reg::RAW_DATA => {
                let address = lock(&self.state).raw_address;
                self.sender.send(Msi {
                    address,
                    data: value,
                });
            }
            reg::RESET_STATS => {
                self.sender.stats().reset();
                self.recorder.reset();
            }
            reg::STORM if value & 1 == 1 => {
                let (start, end) = self.range();
                let state = Arc::clone(&self.state);
                self.storm
                    .start(start..end, move |vector| lock(&state).msix.request(vector));
            }
            reg::STORM => self.storm.stop(),
            reg::DMA_IOVA => {
                let mut state = lock(&self.state);
                state.dma_iova = state.dma_iova & !0xffff_ffff | u64::from(value);
            }
            DMA_IOVA_HIGH => {
                let mut state = lock(&self.state);
                state.dma_iova = state.dma_iova & 0xffff_ffff | u64::from(value) << 32;
            }
            reg::DMA_LENGTH => lock(&self.state).dma_length = value.min(DMA_BUFFER_SIZE),
            reg::DMA_COMMAND => self.transfer(value),
            reg::DMA_REQUESTER => self.sender.dma().set_requester(DeviceId(value as u16)),
            reg::DMA_STORM if value & 1 == 1 => {
                let (iova, bytes) = {
                    let state = lock(&self.state);
                    (state.dma_iova, state.storm_bytes)
                };
                self.dma_storm.start(iova, u64::from(bytes));
            }
            reg::DMA_STORM => self.dma_storm.stop(),
            reg::DMA_STORM_BYTES => lock(&self.state).storm_bytes = value & !0xfff,
            reg::PIN => self.services.set_pin((value >> 8) as u8, value & 1 == 1),
            reg::VMM_COMMAND => {
                let done = self.services.vmm_command(value);
                lock(&self.state).vmm_status = u32::from(!done);
            }
            _ => {}
        }
    }

    /// The vectors of the range, cut at the end of the table: that bounds the work of one write.
    fn range(&self) -> (u32, u32) {
        let state = lock(&self.state);
        let start = state.start.min(u32::from(VECTORS));
        (
            start,
            start.saturating_add(state.count).min(u32::from(VECTORS)),
        )
    }

    fn fire_range(&self, count: u32) {
        lock(&self.state).count = count;
        let (start, end) = self.range();
        for vector in start..end {
            self.fire(vector);
        }
    }

    fn transfer(&self, command: u32) {
        let mut state = lock(&self.state);
        let iova = state.dma_iova;
        let len = state.dma_length as usize;
        let buffer = &mut state.buffer[..len];
        let done = match command {
            1 => self.sender.dma().transfer(iova, buffer, Access::Read),
            2 => self.sender.write(iova, buffer),
            _ => return,
        };
        state.dma_status = if done { 1 } else { 2 };
    }

    fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            let at = offset + n as u64;
            *byte = match at.checked_sub(reg::DMA_BUFFER) {
                Some(at) => lock(&self.state)
                    .buffer
                    .get(at as usize)
                    .copied()
                    .unwrap_or(0xff),
                None => 0,
            };
        }
        if offset < reg::DMA_BUFFER {
            let word = self.register(offset & !7).to_le_bytes();
            let first = (offset & 7) as usize;
            for (byte, value) in data.iter_mut().zip(&word[first..]) {
                *byte = *value;
            }
        }
    }

    fn write_bar0(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(reg::DMA_BUFFER) {
            let mut state = lock(&self.state);
            for (n, &value) in data.iter().enumerate() {
                if let Some(byte) = state.buffer.get_mut(at as usize + n) {
                    *byte = value;
                }
            }
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

const FIRE_START_WORD: u64 = reg::FIRE_START;
const OUTCOME_WORD: u64 = reg::OUTCOME - 4;
const DMA_LENGTH_WORD: u64 = reg::DMA_LENGTH;
const VMM_WORD: u64 = reg::VMM_COMMAND;
const RAW_ADDRESS_HIGH: u64 = reg::RAW_ADDRESS + 4;
const DMA_IOVA_HIGH: u64 = reg::DMA_IOVA + 4;
const RECORD_LAST: u64 = reg::RECORD_0 + 8 * (RECORDS - 1);

impl Function for TestEndpoint {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.state).config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        {
            let mut state = lock(&self.state);
            state.config.write(offset, data);
            let control = state.config.word(state.msix_control);
            state.msix.set_control(control);
        }
        self.flush();
    }

    fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        lock(&self.state).config.decode(gpa)
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            0 => self.read_bar0(offset, data),
            2 => lock(&self.state).msix.table_read(offset, data),
            _ => lock(&self.state).msix.pending_read(offset, data),
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            0 => self.write_bar0(offset, data),
            2 => {
                lock(&self.state).msix.table_write(offset, data);
                self.flush();
            }
            // The pending bits are read-only.
            _ => {}
        }
    }
}

impl Drop for TestEndpoint {
    fn drop(&mut self) {
        self.storm.stop();
        self.dma_storm.stop();
    }
}

/// The OUTCOME register's value for a vector that was held back.
const MASKED: u32 = outcome::MASKED;
