//! The function itself: configuration space, interrupt logic, and what the queues share.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use amdvi_guest::endpoint::{BAR0_SIZE, BAR4_SIZE, DEVICE_ID, DMA_BUFFER_SIZE, VENDOR_ID, feature};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::Msi;
use serde::{Deserialize, Serialize};

use super::channels::Owner;
use super::dma::{Dma, Shared};
use super::lock;
use super::sender::{Sender, StatsState};
use super::tlb::{Enabled, TlbState};
use crate::board::config::EndpointConfig;
use crate::board::pci::express::{Express, Sharing};
use crate::board::pci::{Bar, ConfigSpace, MsiCapability, Msix, MsixState, Place, Request};
use crate::board::slot::{Line, Slot};
use crate::board::snapshot::{Hex, StateError, ensure};

/// Bytes of an MSI-X table entry.
const MSIX_ENTRY: u32 = 16;
/// The least that a BAR with the table has: a page of its own.
const PAGE: u32 = 0x1000;

/// Registers of BAR 0 that hold what was written to them.
pub(super) struct Registers {
    pub(super) start: u32,
    pub(super) count: u32,
    pub(super) raw_address: u64,
    pub(super) dma_iova: u64,
    pub(super) dma_length: u32,
    pub(super) dma_status: u32,
    pub(super) storm_bytes: u32,
    pub(super) vmm_status: u32,
    pub(super) buffer: Box<[u8; DMA_BUFFER_SIZE as usize]>,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            start: 0,
            count: 0,
            raw_address: 0,
            dma_iova: 0,
            dma_length: 0,
            dma_status: 0,
            storm_bytes: 0,
            vmm_status: 0,
            buffer: Box::new([0; DMA_BUFFER_SIZE as usize]),
        }
    }
}

/// [`Registers`] as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RegistersState {
    start: u32,
    count: u32,
    raw_address: u64,
    dma_iova: u64,
    dma_length: u32,
    dma_status: u32,
    storm_bytes: u32,
    vmm_status: u32,
    buffer: Hex,
}

/// The function as it is saved; what is enabled, and the line, follow from configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoreState {
    config: Hex,
    msix: MsixState,
    msi_pending: u32,
    registers: RegistersState,
    condition: bool,
    requester: u16,
    stats: StatsState,
    tlb: TlbState,
}

/// What one lock guards.
pub(super) struct State {
    pub(super) config: ConfigSpace,
    pub(super) msix: Msix,
    pub(super) registers: Registers,
    msix_control: u16,
    express: Express,
    sharing: Sharing,
    /// What `sharing` said last.
    enabled: Enabled,
    msi: Option<MsiCapability>,
    /// The interrupt condition of INTA#.
    condition: bool,
    /// INTA# is asserted.
    asserted: bool,
}

impl State {
    /// The function wants to send `vector`.
    fn request(&mut self, vector: u32) -> Request {
        if !self.config.bus_master() {
            Request::Masked
        } else if self.msix.enabled() {
            self.msix.request(vector)
        } else if let Some(msi) = self.msi {
            msi.request(&mut self.config, vector)
        } else {
            Request::Masked
        }
    }

    /// What is pending and no longer masked.
    fn take_ready(&mut self) -> Vec<(u16, Msi)> {
        if !self.config.bus_master() {
            return Vec::new();
        }
        let mut ready = self.msix.take_ready_vectors();
        if let Some(msi) = self.msi {
            ready.extend(msi.take_ready(&mut self.config));
        }
        ready
    }

    fn messages_enabled(&self) -> bool {
        self.msix.enabled() || self.msi.is_some_and(|msi| msi.enabled(&self.config))
    }
}

/// The function, for every thread that works for it.
pub(super) struct Core {
    state: Mutex<State>,
    slot: Slot,
    sender: Sender,
    line: Option<Line>,
    shared: Shared,
    options: EndpointConfig,
}

impl Core {
    pub(super) fn new(slot: &Slot, options: &EndpointConfig) -> Self {
        let mut config = ConfigSpace::new(VENDOR_ID, DEVICE_ID, [0xff, 0x00, 0x00]);
        let table = (u32::from(options.vectors) * MSIX_ENTRY)
            .next_power_of_two()
            .max(PAGE);
        for (index, size) in [(0, BAR0_SIZE), (2, table), (4, BAR4_SIZE)] {
            let address = slot.place_bar(size.into());
            if options.bar64 {
                config.add_bar_64(index, size.into(), address);
            } else {
                // The window lies below 4 GiB.
                config.add_bar(Bar { index, size }, address as u32);
            }
        }
        let line = options.intx.then(|| slot.intx(0));
        if let Some(line) = &line {
            config.set_interrupt_pin(1, line.pin());
        }
        let msix = Msix::new(options.vectors);
        let at = |bar| Place { bar, offset: 0 };
        let msix_control = msix.add_capability(&mut config, at(2), at(4));
        let msi = options.msi.then(|| MsiCapability::add(&mut config));
        let express = Express::add(&mut config, options.pasid);
        let sharing = Sharing::add(&mut config, options.pasid, options.ats, options.pri);
        config.enable_memory();
        let shared = Shared::default();
        let sender = Sender::new(
            slot,
            Dma::new(slot, &shared),
            options.vectors.max(amdvi_guest::endpoint::MSI_VECTORS),
        );
        Self {
            state: Mutex::new(State {
                config,
                msix,
                registers: Registers::default(),
                msix_control,
                express,
                sharing,
                enabled: Enabled::default(),
                msi,
                condition: false,
                asserted: false,
            }),
            slot: slot.clone(),
            sender,
            line,
            shared,
            options: options.clone(),
        }
    }

    /// The FEATURES register.
    pub(super) fn features(&self) -> u32 {
        let EndpointConfig {
            msi,
            intx,
            pasid,
            ats,
            pri,
            ..
        } = self.options;
        [
            (msi, feature::MSI),
            (intx, feature::INTX),
            (pasid, feature::PASID),
            (ats, feature::ATS),
            (pri, feature::PRI),
            (self.sender.has_routes(), feature::IRQFD),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |bits, (_, bit)| bits | bit)
    }

    pub(super) fn options(&self) -> &EndpointConfig {
        &self.options
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn sender(&self) -> &Sender {
        &self.sender
    }

    /// A sender for another thread, with the same counters.
    pub(super) fn another_sender(&self) -> Sender {
        self.sender.for_another_thread(&self.slot, self.dma())
    }

    pub(super) fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut lock(&self.state))
    }

    /// What is to be sent for `vector` now.
    pub(super) fn request(&self, vector: u32) -> Request {
        self.with(|state| state.request(vector))
    }

    /// Sends one vector, as FIRE does.
    pub(super) fn fire(&self, vector: u32) {
        self.sender.request(vector, self.request(vector));
    }

    /// Sends what is pending and no longer masked.
    pub(super) fn flush(&self) {
        for (vector, msi) in self.with(State::take_ready) {
            self.sender.send(Some(vector), msi);
        }
    }

    /// The INTX register.
    pub(super) fn intx(&self) -> u32 {
        self.with(|state| u32::from(state.condition) | u32::from(state.asserted) << 1)
    }

    /// Raises or clears the interrupt condition of INTA#.
    pub(super) fn set_intx(&self, condition: bool) {
        self.with(|state| {
            state.condition = condition && self.line.is_some();
            self.follow(state);
        });
    }

    /// Lets everything follow what stands in configuration space.
    fn follow(&self, state: &mut State) {
        let control = state.config.word(state.msix_control);
        state.msix.set_control(control);
        self.shared
            .bus_master
            .store(state.config.bus_master(), Ordering::Release);
        let (sharing, config) = (&state.sharing, &state.config);
        let (pasid, execute, privileged) = sharing.pasid(config);
        let enabled = Enabled {
            pasid,
            execute,
            privileged,
            ats: sharing.ats(config),
            pri: sharing.pri(config),
        };
        if enabled != state.enabled {
            state.enabled = enabled;
            self.shared.tlb.set_enabled(enabled);
        }
        let enabled = state.config.set_interrupt_status(state.condition);
        state.asserted = enabled && !state.messages_enabled();
        // Under the state's lock, so that the line follows the last change.
        if let Some(line) = &self.line {
            line.set(state.asserted);
        }
    }

    /// Writes configuration space; `true` when that asks for a Function Level Reset.
    pub(super) fn config_write(&self, offset: u16, data: &[u8]) -> bool {
        let reset = self.with(|state| {
            state.config.write(offset, data);
            self.follow(state);
            state.express.is_reset(offset, data)
        });
        self.flush();
        reset
    }

    pub(super) fn save(&self) -> CoreState {
        self.with(|state| {
            let registers = &state.registers;
            CoreState {
                config: state.config.save(),
                msix: state.msix.save(),
                msi_pending: state.msi.map_or(0, |msi| msi.pending(&state.config)),
                registers: RegistersState {
                    start: registers.start,
                    count: registers.count,
                    raw_address: registers.raw_address,
                    dma_iova: registers.dma_iova,
                    dma_length: registers.dma_length,
                    dma_status: registers.dma_status,
                    storm_bytes: registers.storm_bytes,
                    vmm_status: registers.vmm_status,
                    buffer: Hex(registers.buffer.to_vec()),
                },
                condition: state.condition,
                requester: self.sender.dma().requester().0,
                stats: self.sender.stats().save(),
                tlb: self.shared.tlb.save(),
            }
        })
    }

    /// Puts a saved state into a function whose queues stand still. Sends nothing.
    pub(super) fn restore(&self, saved: &CoreState) -> Result<(), StateError> {
        let registers = &saved.registers;
        let buffer: &[u8; DMA_BUFFER_SIZE as usize] = registers
            .buffer
            .0
            .as_slice()
            .try_into()
            .map_err(|_| StateError("a DMA buffer of another size".into()))?;
        ensure(
            registers.dma_length <= DMA_BUFFER_SIZE,
            "a transfer longer than the DMA buffer",
        )?;
        self.with(|state| {
            state.config.restore(&saved.config)?;
            let control = state.config.word(state.msix_control);
            state.msix.restore(&saved.msix, control)?;
            if let Some(msi) = state.msi {
                msi.set_pending(&mut state.config, saved.msi_pending);
            }
            state.registers = Registers {
                start: registers.start,
                count: registers.count,
                raw_address: registers.raw_address,
                dma_iova: registers.dma_iova,
                dma_length: registers.dma_length,
                dma_status: registers.dma_status,
                storm_bytes: registers.storm_bytes & !0xfff,
                vmm_status: registers.vmm_status,
                buffer: Box::new(*buffer),
            };
            state.condition = saved.condition && self.line.is_some();
            self.follow(state);
            Ok::<(), StateError>(())
        })?;
        self.sender.dma().set_requester(DeviceId(saved.requester));
        self.sender.stats().restore(&saved.stats);
        self.shared.tlb.restore(&saved.tlb)
    }

    /// Resets the function. Its queues must have been stopped.
    pub(super) fn reset(&self) {
        self.with(|state| {
            state.config.reset();
            state.msix = Msix::new(self.options.vectors);
            state.registers = Registers::default();
            state.condition = false;
            self.follow(state);
        });
        self.sender.dma().set_requester(self.slot.requester());
    }
}

impl Owner for Core {
    fn dma(&self) -> Dma {
        Dma::new(&self.slot, &self.shared)
    }

    fn interrupt(&self, vector: u32) {
        if self.with(|state| state.messages_enabled()) {
            self.fire(vector);
        } else {
            self.set_intx(true);
        }
    }
}
