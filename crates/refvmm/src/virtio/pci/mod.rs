//! The virtio-pci transport, virtio 1.2 section 4.1, without the legacy interface: a function of PCI
//! Express with MSI-X and Function Level Reset.

mod common;
mod layout;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::interrupts::{Interrupts, InterruptsState};
use super::lane::{BROKEN, Core, FROZEN, LIVE, Lane, LaneState, MASTER};
use super::{Backend, COMMON_FEATURES, Identity, Model, Registers, lock};
use crate::board::pci::{ConfigSpace, Function, Msix};
use crate::board::snapshot::{Hex, Snapshot, StateError, ensure, typed};
use crate::board::{Doorbell, Doorbells, Handle, Slot};
use common::Effect;
use layout::{
    BAR, COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_MULTIPLIER, Offsets, WINDOW,
};

pub(super) use common::{Common, QueueRegisters};

/// A virtio device on the PCI bus.
pub(crate) struct VirtioFunction {
    identity: Identity,
    registers: Box<dyn Registers>,
    backend: Option<Box<dyn Backend>>,
    config: Mutex<(ConfigSpace, Offsets)>,
    core: Arc<Core>,
    lanes: Vec<Arc<Lane>>,
    threads: Vec<JoinHandle<()>>,
    /// For what the CPUs' threads send: what was pending.
    handle: Arc<Handle>,
    doorbells: Doorbells,
    /// Those that there are, one for each queue, and where the BAR is that they are in.
    placed: Mutex<(Option<u64>, Vec<Doorbell>)>,
    /// What register writes lead to happens in their order. Taken before everything else, and never
    /// by the queues' threads.
    control: Mutex<()>,
}

impl VirtioFunction {
    /// Puts a device on the bus and starts its threads.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(crate) fn new(slot: &Slot, model: Model) -> io::Result<Arc<Self>> {
        let count = model.queues.len() as u16;
        let sizes = model.queues.iter().map(|queue| queue.max_size);
        let core = Arc::new(Core::new(
            model.identity.name,
            Common::new(model.features | COMMON_FEATURES, sizes),
            Interrupts::new(count, slot.vectors(count + 1)),
        ));
        let address = slot.place_bar(u64::from(layout::BAR_SIZE)) as u32;
        let config = core
            .interrupts
            .with_msix(|msix| layout::config_space(&model.identity, count, msix, address));
        let mut function = Self {
            identity: model.identity,
            registers: model.registers,
            backend: model.backend,
            config: Mutex::new(config),
            core,
            lanes: Vec::new(),
            threads: Vec::new(),
            handle: slot.handle(),
            doorbells: slot.doorbells(),
            placed: Mutex::default(),
            control: Mutex::default(),
        };
        if address != 0 {
            lock(&function.config).0.enable_memory();
        }
        for (n, queue) in model.queues.into_iter().enumerate() {
            let core = Arc::clone(&function.core);
            let lane = Lane::new(n as u16, queue.max_size, core, slot.handle(), queue.handler)?;
            let lane = Arc::new(lane);
            function.lanes.push(Arc::clone(&lane));
            // The names of Linux's threads have 15 bytes.
            let name = format!("{}-{n}", function.identity.name);
            function.threads.push(lane.start(name)?);
        }
        Ok(Arc::new(function))
    }

    /// Notifications of a live device need not come here: each only wakes its queue's thread. To be
    /// called, in the order of register writes, when the device went live or ended, or its BAR may
    /// have moved.
    fn place_doorbells(&self) {
        let live = self.core.gate_is(LIVE);
        let base = lock(&self.config).0.base(BAR).filter(|_| live);
        let mut placed = lock(&self.placed);
        let (at, doorbells) = &mut *placed;
        if *at == base {
            return;
        }
        // First the old ones: the new ones may be in their places.
        doorbells.clear();
        *at = base;
        if let Some(base) = base {
            let lanes = self
                .lanes
                .iter()
                .zip((base + NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize));
            // Where there can't be one, notifications come to `bar_write`.
            doorbells.extend(lanes.filter_map(|(lane, gpa)| self.doorbells.add(gpa, lane.bell())));
        }
    }

    fn kick_all(&self) {
        for lane in &self.lanes {
            lane.kick();
        }
    }

    /// Resets the virtio device (2.4). When this returns it accesses no memory.
    fn reset(&self) {
        self.core.gate(LIVE, false);
        for lane in &self.lanes {
            lane.reset();
        }
        // After the queues, whose threads may have failed until now.
        self.core.gate(BROKEN, false);
        lock(&self.core.common).reset();
        self.core.set_features(0);
        self.core.interrupts.reset();
    }

    fn apply(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Reset => self.reset(),
            Effect::Live => {
                self.core.gate(LIVE, true);
                // What was notified before does not count.
                self.kick_all();
            }
            Effect::Enable(queue, registers) => {
                self.core.set_features(lock(&self.core.common).features());
                let Some(lane) = self.lanes.get(usize::from(queue)) else {
                    return;
                };
                match lane.enable(&registers) {
                    Ok(()) => lane.kick(),
                    Err(broken) => self.core.fail(broken, &self.handle),
                }
            }
            Effect::ResetQueue(queue) => {
                if let Some(lane) = self.lanes.get(usize::from(queue)) {
                    lane.reset();
                }
                self.core.interrupts.assign(Some(queue), u16::MAX);
            }
        }
    }

    fn set_bus_master(&self, may: bool) {
        let before = self.core.gate(MASTER, may);
        self.core.interrupts.set_bus_master(may);
        match (before, may) {
            (false, true) => self.kick_all(),
            // When the write of the command register ends, the function masters no bus any more. It
            // does not start again by itself: the next kernel that a guest boots gives the bus back
            // before it resets the device, and has no mappings for the rings of the one before.
            (true, false) => {
                self.core.gate(LIVE, false);
                lock(&self.core.common).clear_driver_ok();
                self.lanes.iter().for_each(|lane| lane.quiesce());
            }
            _ => {}
        }
    }

    /// Function Level Reset: everything but the place on the bus is as after power-on, and firmware
    /// does not assign the BARs again.
    fn function_level_reset(&self) {
        self.set_bus_master(false);
        self.reset();
        let count = self.lanes.len() as u16;
        self.core
            .interrupts
            .with_msix(|msix| *msix = Msix::new(count + 1));
        lock(&self.config).0.reset();
    }

    /// The access that the PCI configuration access capability describes now: offset in the BAR and
    /// length. `data` is the offset of pci_cfg_data.
    fn window(&self) -> Option<(u64, usize)> {
        let config = lock(&self.config);
        let (space, offsets) = &*config;
        let mut capability = [0; 16];
        space.read(offsets.window, &mut capability);
        let dword = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&capability[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let (bar, offset, len) = (capability[4], dword(8), dword(12));
        let fits = usize::from(bar) == BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset < layout::BAR_SIZE;
        fits.then_some((u64::from(offset), len as usize))
    }

    /// Where pci_cfg_data is.
    fn window_data(&self) -> u16 {
        lock(&self.config).1.window + 16
    }
}

/// What is saved of a function. Which parts of the gate are open follows from the registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct VirtioState {
    config: Hex,
    common: Common,
    interrupts: InterruptsState,
    queues: Vec<LaneState>,
    backend: Option<Value>,
}

impl Snapshot for VirtioFunction {
    fn freeze(&self) {
        self.core.gate(FROZEN, true);
        self.lanes.iter().for_each(|lane| lane.freeze());
    }

    fn thaw(&self) {
        self.core.gate(FROZEN, false);
        // What was notified meanwhile, or just before, found the gate closed.
        self.kick_all();
    }

    fn save(&self) -> Result<Value, StateError> {
        let backend = self.backend.as_ref().map(|backend| backend.save());
        Ok(serde_json::to_value(VirtioState {
            config: lock(&self.config).0.save(),
            common: lock(&self.core.common).clone(),
            interrupts: self.core.interrupts.save(),
            queues: self.lanes.iter().map(|lane| lane.save()).collect(),
            backend: backend.transpose()?,
        })?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let state: VirtioState = typed(state)?;
        ensure(
            state.queues.len() == self.lanes.len(),
            "a device with another number of queues",
        )?;
        match (&self.backend, &state.backend) {
            (Some(backend), Some(saved)) => backend.check(saved)?,
            (None, None) => {}
            _ => return Err(StateError("another kind of device".into())),
        }
        let (bus_master, control) = {
            let mut config = lock(&self.config);
            let (space, offsets) = &mut *config;
            space.restore(&state.config)?;
            (space.bus_master(), space.word(offsets.msix_control))
        };
        let (features, status) = {
            let mut common = lock(&self.core.common);
            common.restore(&state.common)?;
            (common.features(), common.status())
        };
        self.core.interrupts.restore(&state.interrupts, control)?;
        for (lane, state) in self.lanes.iter().zip(&state.queues) {
            lane.restore(state)?;
        }
        self.core.set_features(features);
        self.core.gate(LIVE, status & common::DRIVER_OK != 0);
        self.core.gate(BROKEN, status & common::NEEDS_RESET != 0);
        self.core.gate(MASTER, bus_master);
        self.core.interrupts.set_bus_master(bus_master);
        let _in_order = lock(&self.control);
        self.place_doorbells();
        Ok(())
    }
}

impl Function for VirtioFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).0.read(offset, data);
        let at = self.window_data();
        let end = offset.saturating_add(data.len() as u16);
        if offset < at + 4 && end > at {
            let mut window = [0; 4];
            if let Some((offset, len)) = self.window() {
                self.bar_read(BAR, offset, &mut window[..len]);
            }
            for (n, byte) in data.iter_mut().enumerate() {
                if let Some(value) = (usize::from(offset) + n)
                    .checked_sub(at.into())
                    .and_then(|n| window.get(n))
                {
                    *byte = *value;
                }
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let (bus_master, msix_control, reset) = {
            let mut config = lock(&self.config);
            let (space, offsets) = &mut *config;
            space.write(offset, data);
            (
                space.bus_master(),
                space.word(offsets.msix_control),
                offsets.express.is_reset(offset, data),
            )
        };
        if offset == self.window_data()
            && let Some((offset, len)) = self.window()
            && let Some(data) = data.get(..len)
        {
            self.bar_write(BAR, offset, data);
            return;
        }
        let _in_order = lock(&self.control);
        if reset {
            self.function_level_reset();
            self.place_doorbells();
            return;
        }
        self.set_bus_master(bus_master);
        self.place_doorbells();
        let interrupts = &self.core.interrupts;
        interrupts.with_msix(|msix| msix.set_control(msix_control));
        interrupts.flush(&self.handle);
    }

    fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        lock(&self.config).0.decode(gpa)
    }

    fn bar_read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        let interrupts = &self.core.interrupts;
        let within = offset % WINDOW;
        match offset - within {
            COMMON => lock(&self.core.common).read(within, data, interrupts),
            ISR => {
                data.fill(0);
                if within == 0
                    && let Some(byte) = data.first_mut()
                {
                    *byte = interrupts.take_isr();
                }
            }
            DEVICE => self.registers.read(within, data),
            MSIX_TABLE => interrupts.with_msix(|msix| msix.table_read(within, data)),
            MSIX_PENDING => interrupts.with_msix(|msix| msix.pending_read(within, data)),
            _ => data.fill(0),
        }
    }

    fn bar_write(&self, _bar: usize, offset: u64, data: &[u8]) {
        let interrupts = &self.core.interrupts;
        let within = offset % WINDOW;
        match offset - within {
            COMMON => {
                let _in_order = lock(&self.control);
                let effect = lock(&self.core.common).write(within, data, interrupts);
                self.apply(effect);
                self.place_doorbells();
            }
            // Which queue it is follows from the address; the data says the same.
            NOTIFY => {
                let queue = within / u64::from(NOTIFY_MULTIPLIER);
                if let Some(lane) = self.lanes.get(queue as usize) {
                    lane.kick();
                }
            }
            MSIX_TABLE => {
                interrupts.with_msix(|msix| msix.table_write(within, data));
                interrupts.flush(&self.handle);
            }
            _ => {}
        }
    }
}

impl Drop for VirtioFunction {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.stop();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
