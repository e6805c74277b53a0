//! The test endpoint: sends any interrupt it is told to, and does DMA.
//!
//! Its registers are specified in [`amdvi_guest::endpoint`]. Everything that it sends takes the
//! way of a real function: its own DeviceID, through the IOMMU.

mod channels;
mod core;
mod dma;
mod dma_storm;
mod registers;
mod sender;
mod stream;
mod tlb;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amdvi_regs::dte::Dte;
use amdvi_vmm_glue::kvm::IrqfdCounters;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::core::{Core, CoreState};
use super::config::EndpointConfig;
use super::pci::{Function, Request};
use super::recorder::Recorder;
use super::slot::Slot;
use super::snapshot::{Snapshot, StateError, typed};
use channels::{ChannelState, Channels, Owner};
use dma_storm::{DmaStorm, DmaStormState};
use sender::{Storm, StormState};
pub use tlb::TlbCounts;

/// What the endpoint asks of the board it is plugged into.
pub(crate) trait Services: Send + Sync {
    /// Sets the level of an IOAPIC pin.
    fn set_pin(&self, pin: u8, level: bool);
    /// Does a VMM command; `false` when it failed.
    fn vmm_command(&self, command: u32) -> bool;
    /// What routes of vectors past the IOMMU have cost, where there are some.
    fn route_counters(&self) -> Option<IrqfdCounters>;
}

/// What an endpoint has counted since its counters were cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointCounts {
    /// Its segment and DeviceID, as `0000:00:05.0`.
    pub at: String,
    /// Vectors of its MSI-X table.
    pub vectors: u16,
    /// Messages that went to the IOMMU.
    pub sent: u64,
    /// Those that left it as interrupts.
    pub delivered: u64,
    /// Those that it blocked.
    pub blocked: u64,
    /// Requests that sent nothing: vector masked, or interrupts or bus mastering disabled.
    pub held_back: u64,
    /// Vectors that were delivered at least once.
    pub vectors_delivered: usize,
    /// Its TLB and its page requests.
    pub tlb: TlbCounts,
}

/// The endpoint.
pub(crate) struct TestEndpoint {
    core: Arc<Core>,
    storm: Storm,
    dma_storm: DmaStorm,
    channels: Channels,
    recorder: Arc<Recorder>,
    services: Arc<dyn Services>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestEndpoint {
    /// Plugs the endpoint into `slot`.
    pub(crate) fn new(
        slot: &Slot,
        config: &EndpointConfig,
        recorder: Arc<Recorder>,
        services: Arc<dyn Services>,
    ) -> Self {
        let core = Arc::new(Core::new(slot, config));
        let owner: Arc<dyn Owner> = core.clone();
        Self {
            // The streams have their own handles, as each queue of a real device has.
            storm: Storm::new(core.another_sender()),
            dma_storm: DmaStorm::new(core.dma()),
            channels: Channels::new(&owner),
            core,
            recorder,
            services,
        }
    }

    /// What it has counted.
    pub(crate) fn counts(&self) -> EndpointCounts {
        let stats = self.core.sender().stats();
        let slot = self.core.slot();
        EndpointCounts {
            at: format!("{}:{}", slot.segment(), slot.device_id()),
            vectors: self.core.options().vectors,
            sent: stats.sent(),
            delivered: stats.delivered(),
            blocked: stats.blocked(),
            held_back: stats.held_back(),
            vectors_delivered: stats.vectors_delivered(),
            tlb: self.core.sender().dma().shared().tlb.counters.read(),
        }
    }

    /// The Device Table Entry of its requests, as it is in memory now.
    pub(crate) fn device_table_entry(&self) -> Option<Dte> {
        let slot = self.core.slot();
        let requester = slot.requester();
        slot.socket
            .with(|iommu| iommu.device_table_entry(requester))
    }

    fn stop(&self) {
        self.storm.stop();
        self.dma_storm.stop();
    }
}

/// The endpoint as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndpointState {
    core: CoreState,
    storm: StormState,
    dma_storm: DmaStormState,
    channels: Vec<ChannelState>,
}

impl Snapshot for TestEndpoint {
    fn freeze(&self) {
        self.storm.freeze();
        self.dma_storm.freeze();
        self.channels.freeze();
    }

    fn thaw(&self) {
        let core = Arc::clone(&self.core);
        self.storm.thaw(move |vector| core.request(vector));
        self.dma_storm.thaw();
        self.channels.thaw();
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(serde_json::to_value(EndpointState {
            core: self.core.save(),
            storm: self.storm.save(),
            dma_storm: self.dma_storm.save(),
            channels: self.channels.save(),
        })?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let state: EndpointState = typed(state)?;
        self.core.restore(&state.core)?;
        self.storm
            .restore(&state.storm, self.core.options().vectors.into());
        self.dma_storm.restore(&state.dma_storm);
        self.channels.restore(&state.channels)
    }
}

impl Function for TestEndpoint {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.with(|state| state.config.read(offset, data));
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if self.core.config_write(offset, data) {
            self.stop();
            self.channels.reset();
            self.core.reset();
        }
    }

    fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        self.core.with(|state| state.config.decode(gpa))
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            0 => self.read_bar0(offset, data),
            2 => self.core.with(|state| state.msix.table_read(offset, data)),
            _ => self
                .core
                .with(|state| state.msix.pending_read(offset, data)),
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            0 => self.write_bar0(offset, data),
            2 => {
                self.core.with(|state| state.msix.table_write(offset, data));
                self.core.flush();
            }
            // The pending bits are read-only.
            _ => {}
        }
    }
}

impl Drop for TestEndpoint {
    fn drop(&mut self) {
        self.stop();
    }
}
