//! The machine around the CPUs: PCI functions, IOMMUs, IOAPIC and firmware tables.
//!
//! The board knows nothing of what runs the CPUs. An accelerator forwards MMIO, port accesses and
//! EOIs to it, and gives it an [`Injector`] for the interrupts of the other direction.

mod acpi;
mod chipset;
mod config;
mod doorbells;
mod endpoint;
mod host;
mod hpet;
mod ioapic;
mod ivrs;
pub mod legacy;
mod patience;
pub mod pci;
mod places;
pub(crate) mod properties;
mod recorder;
mod routes;
mod slot;
pub(crate) mod snapshot;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use amdvi_device::Iommu;
use amdvi_irt::Delivery;
use amdvi_regs::dte::Dte;
use amdvi_regs::{DeviceId, Segment};
use amdvi_vmm_glue::RemapSource;
use amdvi_vmm_glue::kvm::IrqfdCounters;
use vmm_sys_util::eventfd::EventFd;

use crate::layout;
use crate::ram::Memory;
use chipset::Chipset;
use endpoint::TestEndpoint;
use host::BoardHost;
use hpet::Hpet;
use ioapic::BoardIoapic;
use legacy::SerialPort;
use patience::Patience;
use pci::{Fixed, IommuFunction, PciBus};
use places::Place;
use recorder::Recorder;
use routes::RouteKeeper;
use slot::BarAllocator;
use socket::Socket;
use worker::{Bell, Worker};

pub use acpi::AcpiError;
pub use config::{
    AcpiHardware, BuildError, Config, DeviceError, ENDPOINT_PROPERTIES, EndpointConfig,
    FixedBuilder, FixedDevice, FunctionBuilder, FunctionConfig, IommuConfig, RootBridge,
};
pub use doorbells::{Doorbell, Doorbells};
pub use endpoint::{EndpointCounts, TlbCounts};
pub use ivrs::{Alias, IvrsVariant, PROPERTIES as IVRS_PROPERTIES, Southbridge};
pub use properties::PropertyError;
pub use routes::{VectorRoutes, Vectors};
pub use slot::{Line, Lines, Slot};
pub use snapshot::{Snapshot, StateError};
pub use socket::{Handle, Space};

/// The IOAPIC's DeviceID unless the IVRS says otherwise, which is the SMBus function's: 00:14.0.
pub const IOAPIC: DeviceId = DeviceId::new(0, 0x14, 0);

/// How interrupts reach the CPUs.
pub trait Injector: Send + Sync {
    /// Sends an interrupt to the local APICs.
    ///
    /// Called while the request is in flight through the IOMMU: it must not wait for the guest and
    /// must not call back into the board.
    fn inject(&self, delivery: &Delivery);

    /// The EOI of this level-triggered interrupt must reach [`Board::eoi`] from now on; `None`: IOAPIC
    /// pin `pin` waits for no EOI. Always called before the interrupt is injected.
    fn route_pin(&self, pin: u8, delivery: Option<&Delivery>) {
        let _ = (pin, delivery);
    }

    /// A series of [`route_pin`](Self::route_pin) calls has ended; they must take effect now.
    fn commit_routes(&self) {}

    /// Routes for the vectors of the function that is `requester` behind IOMMU number `iommu`, if this
    /// machine can deliver past the IOMMU. `source` says what they must be.
    fn vectors(
        &self,
        iommu: u32,
        requester: DeviceId,
        source: Arc<dyn RemapSource + Send + Sync>,
        count: u16,
    ) -> Option<Arc<dyn VectorRoutes>> {
        let _ = (iommu, requester, source, count);
        None
    }

    /// The guest's interrupt tables changed for those functions behind IOMMU number `iommu` that
    /// `touches` says yes to: from the return on, no vector may go by an old route. `pins` does the same
    /// for the IOAPIC, and calls [`commit_routes`](Self::commit_routes).
    fn tables_changed(
        &self,
        iommu: u32,
        touches: &dyn Fn(DeviceId) -> bool,
        pins: &mut dyn FnMut(),
    ) {
        let _ = (iommu, touches);
        pins();
    }

    /// From now on a write of the guest to `gpa`, of any width, writes 1 to `bell` and does not come to
    /// the board. Whether the machine can do that.
    fn add_doorbell(&self, gpa: u64, bell: &EventFd) -> bool {
        let _ = (gpa, bell);
        false
    }

    /// Ends what [`add_doorbell`](Self::add_doorbell) has begun.
    fn remove_doorbell(&self, gpa: u64, bell: &EventFd) {
        let _ = (gpa, bell);
    }

    /// Nobody sends any more: returns when all that was sent before is at the local APICs.
    fn settle(&self) {}

    /// What routes of vectors have cost, where there are some.
    fn route_counters(&self) -> Option<IrqfdCounters> {
        None
    }
}

/// What can keep a board from being built.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// RAM could not be mapped.
    #[error("--memory: can't map guest RAM: {0}; use less, or allow this process more addresses")]
    Memory(#[from] vm_memory::mmap::FromRangesError),
    /// The firmware tables can't be built.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The IOMMU can't be where its options put it.
    #[error("--device: {option}={value} is not possible on this board: {why}")]
    Placement {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is in the way, and what is possible.
        why: String,
    },
    /// A function can't be where it was put.
    #[error("{name}: addr={addr} in segment {segment} is not possible on this board: {why}")]
    Slot {
        /// What asked for the function.
        name: String,
        /// The segment.
        segment: Segment,
        /// The place.
        addr: DeviceId,
        /// What is in the way.
        why: &'static str,
    },
    /// There is no free device for a function.
    #[error(
        "{name}: every device of bus 0 from 05 on is taken; give fewer functions, or addr=… for several functions of one device"
    )]
    Full {
        /// What asked for the function.
        name: String,
    },
    /// Too many PCI segments.
    #[error(
        "segment=…: {count} PCI segments; this board has room for {}, segment 0 included",
        layout::MAX_SEGMENTS
    )]
    Segments {
        /// How many there would be.
        count: usize,
    },
    /// A function or device could not be made.
    #[error("{name}: {error}")]
    Function {
        /// What asked for it.
        name: String,
        /// Why not.
        error: BuildError,
    },
    /// A thread could not be started.
    #[error("can't start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The board.
pub struct Board {
    bus: PciBus,
    sockets: Vec<Arc<Socket>>,
    ioapic: Arc<BoardIoapic>,
    #[cfg(test)]
    lines: Arc<Lines>,
    endpoints: Vec<Arc<TestEndpoint>>,
    fixed: Vec<Arc<dyn FixedDevice>>,
    serial: Option<Arc<SerialPort>>,
    injector: Arc<dyn Injector>,
    recorder: Arc<Recorder>,
    // Ends before the devices that it works for.
    worker: Worker,
}

impl Board {
    /// Builds the board around `memory`, puts the firmware tables there, and connects it to the
    /// CPUs with these x2APIC IDs.
    ///
    /// # Errors
    /// The first thing of `config` that is not possible, see [`Config::check`].
    pub fn new(
        config: &Config,
        memory: &Arc<Memory>,
        apic_ids: &[u32],
        injector: Arc<dyn Injector>,
    ) -> Result<Self, BoardError> {
        let places = config.places()?;
        let recorder = Arc::new(Recorder::default());
        let bell = Arc::new(Bell::default());
        let socket = |iommu: &IommuConfig| {
            let patience = Arc::new(Patience::default());
            let host = BoardHost::new(
                Arc::clone(&injector),
                Arc::clone(&recorder),
                Arc::clone(&bell),
                Arc::clone(&patience),
            );
            let (options, memory) = (iommu.options.clone(), Arc::clone(memory));
            Arc::new(Socket::new(options, memory, Arc::new(host), patience))
        };
        let sockets: Vec<_> = config.iommus.iter().map(socket).collect();
        let requester = config.ivrs.ioapic;
        let pins = Arc::clone(&injector);
        let ioapic = BoardIoapic::new(&sockets[places.ioapic], requester, pins);
        let keeper = |n| {
            let ioapic = (n == places.ioapic).then_some((&ioapic, requester));
            RouteKeeper::new(Arc::clone(&injector), n, ioapic)
        };
        let keepers: Vec<_> = (0..sockets.len()).map(keeper).collect();
        for (socket, keeper) in sockets.iter().zip(&keepers) {
            socket.observe(keeper.clone());
        }
        let lines = Lines::new(&ioapic);

        let mut bus = PciBus::new();
        let mut bars = Vec::new();
        for bridge in config.root_bridges() {
            bus.add_ecam(bridge.segment, bridge.ecam);
            let host_bridge = Arc::new(Fixed::host_bridge());
            bus.add(bridge.segment, DeviceId::new(0, 0, 0), host_bridge);
            bars.push((bridge.segment, Arc::new(BarAllocator::new(bridge.bars))));
        }
        for socket in &sockets {
            let (segment, id) = socket.place();
            bus.add(
                segment,
                id,
                Arc::new(IommuFunction::new(Arc::clone(socket))),
            );
        }
        match config.ivrs.southbridge {
            Southbridge::Smbus => {
                bus.add(Segment(0), config.ivrs.ioapic, Arc::new(Fixed::smbus()));
            }
            Southbridge::Isa => {
                bus.add(
                    Segment(0),
                    config.ivrs.ioapic,
                    Arc::new(Fixed::isa_bridge()),
                );
            }
            Southbridge::Absent => {}
        }
        let slot = |place: &Place| Slot {
            segment: place.segment,
            device_id: place.addr,
            requester: place.requester,
            socket: Arc::clone(&sockets[place.iommu]),
            memory: Arc::clone(memory),
            bars: Arc::clone(
                bars.iter()
                    .find(|(segment, _)| *segment == place.segment)
                    .map(|(_, bars)| bars)
                    .expect("each segment has a root bridge"),
            ),
            lines: Arc::clone(&lines),
            iommu: place.iommu,
            injector: Arc::clone(&injector),
            recorder: Arc::clone(&recorder),
        };
        let mut endpoints = Vec::new();
        for (place, config) in places.endpoints.iter().zip(&config.endpoints) {
            let slot = slot(place);
            let chipset = Chipset::new(
                Arc::clone(slot.socket()),
                Arc::clone(&ioapic),
                Arc::clone(&keepers[place.iommu]),
                Arc::clone(&injector),
                Arc::clone(&bell),
            );
            let endpoint = Arc::new(TestEndpoint::new(
                &slot,
                config,
                Arc::clone(&recorder),
                Arc::new(chipset),
            ));
            bus.add(place.segment, place.addr, endpoint.clone());
            endpoints.push(endpoint);
        }
        for (place, function) in places.functions.iter().zip(&config.functions) {
            let built = (function.build)(&slot(place)).map_err(|error| BoardError::Function {
                name: function.name.clone(),
                error,
            })?;
            bus.add(place.segment, place.addr, built);
        }
        let (mut fixed, mut serial) = (Vec::new(), None);
        if let Some((requester, iommu)) = places.hpet {
            let hpet = Hpet::new(sockets[iommu].handle(requester))?;
            fixed.push(Arc::new(hpet) as Arc<dyn FixedDevice>);
        }
        if let Some(legacy) = &config.legacy {
            let (port, devices) = legacy.build(&lines);
            serial = Some(port);
            fixed.extend(devices);
        }
        for (name, build) in &config.fixed {
            let built = build(&lines).map_err(|error| BoardError::Function {
                name: name.clone(),
                error,
            })?;
            fixed.push(built);
        }

        bus.complete_devices();
        acpi::write(memory, config, apic_ids)?;
        let worker = Worker::start(bell, sockets.clone())?;
        Ok(Self {
            bus,
            sockets,
            ioapic,
            #[cfg(test)]
            lines,
            endpoints,
            fixed,
            serial,
            injector,
            recorder,
            worker,
        })
    }

    /// The serial port, if there is one.
    pub fn serial(&self) -> Option<&Arc<SerialPort>> {
        self.serial.as_ref()
    }

    /// Reads device memory; what nobody decodes reads as all ones.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        if let Some(offset) = within(gpa, data.len(), layout::IOAPIC_BASE, layout::IOAPIC_SIZE) {
            self.ioapic.mmio_read(offset, data);
        } else if !self.sockets.iter().any(|s| s.mmio_read(gpa, data))
            && !self.bus.ecam_read(gpa, data)
            && !self.bus.memory_read(gpa, data)
            && !self.fixed.iter().any(|d| d.mmio_read(gpa, data))
        {
            data.fill(0xff);
        }
    }

    /// Writes device memory; what nobody decodes is dropped.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let Some(offset) = within(gpa, data.len(), layout::IOAPIC_BASE, layout::IOAPIC_SIZE) {
            self.ioapic.mmio_write(offset, data);
        } else {
            let _ = self.sockets.iter().any(|s| s.mmio_write(gpa, data))
                || self.bus.ecam_write(gpa, data)
                || self.bus.memory_write(gpa, data)
                || self.fixed.iter().any(|d| d.mmio_write(gpa, data));
        }
    }

    /// Reads a port; what nobody decodes reads as all ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        if !self.bus.port_read(port, data) && !self.fixed.iter().any(|d| d.port_read(port, data)) {
            data.fill(0xff);
        }
    }

    /// Writes a port; what nobody decodes is dropped.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let _ =
            self.bus.port_write(port, data) || self.fixed.iter().any(|d| d.port_write(port, data));
    }

    /// What each test endpoint has counted.
    pub fn endpoint_counts(&self) -> Vec<EndpointCounts> {
        self.endpoints.iter().map(|e| e.counts()).collect()
    }

    /// The Device Table Entries of the test endpoints, as they are in memory now.
    pub fn endpoint_entries(&self) -> Vec<Option<Dte>> {
        let endpoints = self.endpoints.iter();
        endpoints.map(|e| e.device_table_entry()).collect()
    }

    /// The IOMMUs, in the order of [`Config::iommus`], for a look at their state.
    pub fn with_iommus(&self, mut look: impl FnMut(&Arc<Iommu>)) {
        for socket in &self.sockets {
            socket.with(&mut look);
        }
    }

    /// What routes of vectors past the IOMMU have cost, where there are some.
    pub fn route_counters(&self) -> Option<IrqfdCounters> {
        self.injector.route_counters()
    }

    /// A local APIC ended the level-triggered interrupt of `vector`.
    pub fn eoi(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }
}

/// The offset of an access that lies completely in a window.
fn within(gpa: u64, len: usize, base: u64, size: u64) -> Option<u64> {
    let offset = gpa.checked_sub(base)?;
    (offset.checked_add(len as u64)? <= size).then_some(offset)
}
