//! The machine around the CPUs: PCI bus, IOMMU, IOAPIC, test endpoint and firmware tables.
//!
//! The board knows nothing of what runs the CPUs. An accelerator forwards MMIO, port accesses and
//! EOIs to it, and gives it an [`Injector`] for the interrupts of the other direction.

mod acpi;
mod chipset;
mod endpoint;
mod host;
mod ioapic;
pub mod pci;
mod recorder;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use amdvi_device::Options;
use amdvi_irt::Delivery;
use amdvi_regs::mmio::offset;
use amdvi_regs::{DeviceId, PhysMemory};
use amdvi_vmm_glue::ram::GuestRam;
use vm_memory::GuestMemoryMmap;

use crate::layout;
use chipset::Chipset;
use endpoint::TestEndpoint;
use host::BoardHost;
use ioapic::BoardIoapic;
use pci::{Fixed, IommuFunction, PciBus};
use recorder::Recorder;
use socket::Socket;
use worker::{Bell, Worker};

pub use acpi::AcpiError;

/// The IOAPIC's DeviceID, which is the SMBus function's: 00:14.0.
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
        why: &'static str,
    },
    /// A thread could not be started.
    #[error("can't start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The board.
pub struct Board {
    bus: PciBus,
    socket: Arc<Socket>,
    ioapic: Arc<BoardIoapic>,
    // Ends before the devices that it works for.
    _worker: Worker,
}

impl Board {
    /// Builds the board around `memory`, puts the firmware tables there, and connects it to the
    /// CPUs with these x2APIC IDs.
    pub fn new(
        options: &Options,
        memory: &Arc<GuestMemoryMmap>,
        apic_ids: &[u32],
        injector: Arc<dyn Injector>,
    ) -> Result<Self, BoardError> {
        placement(options)?;
        let recorder = Arc::new(Recorder::default());
        let bell = Arc::new(Bell::default());
        let physical: Arc<dyn PhysMemory> = Arc::new(GuestRam::new(Arc::clone(memory)));
        let host = BoardHost::new(
            Arc::clone(&injector),
            Arc::clone(&recorder),
            Arc::clone(&bell),
        );
        let socket = Arc::new(Socket::new(options.clone(), physical, Arc::new(host)));
        let ioapic = BoardIoapic::new(&socket, injector);
        let chipset = Chipset::new(Arc::clone(&socket), Arc::clone(&ioapic), Arc::clone(&bell));
        let endpoint = TestEndpoint::new(&socket, Arc::clone(memory), recorder, Arc::new(chipset));

        let mut bus = PciBus::new();
        bus.add(DeviceId::new(0, 0, 0), Arc::new(Fixed::host_bridge()));
        bus.add(
            options.device_id(),
            Arc::new(IommuFunction::new(Arc::clone(&socket))),
        );
        bus.add(endpoint::REQUESTER, Arc::new(endpoint));
        bus.add(IOAPIC, Arc::new(Fixed::smbus()));

        acpi::write(memory, options, apic_ids)?;
        let worker = Worker::start(bell, Arc::clone(&socket))?;
        Ok(Self {
            bus,
            socket,
            ioapic,
            _worker: worker,
        })
    }

    /// Reads device memory; what nobody decodes reads as all ones.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        if let Some(offset) = within(gpa, data.len(), layout::IOAPIC_BASE, layout::IOAPIC_SIZE) {
            self.ioapic.mmio_read(offset, data);
        } else if let Some(offset) =
            within(gpa, data.len(), layout::ECAM_BASE, layout::ECAM_BUSES << 20)
        {
            self.bus.ecam_read(offset, data);
        } else if !self.socket.mmio_read(gpa, data) && !self.bus.memory_read(gpa, data) {
            data.fill(0xff);
        }
    }

    /// Writes device memory; what nobody decodes is dropped.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let Some(offset) = within(gpa, data.len(), layout::IOAPIC_BASE, layout::IOAPIC_SIZE) {
            self.ioapic.mmio_write(offset, data);
        } else if let Some(offset) =
            within(gpa, data.len(), layout::ECAM_BASE, layout::ECAM_BUSES << 20)
        {
            self.bus.ecam_write(offset, data);
        } else if !self.socket.mmio_write(gpa, data) {
            self.bus.memory_write(gpa, data);
        }
    }

    /// Reads a port; what nobody decodes reads as all ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        if !self.bus.port_read(port, data) {
            data.fill(0xff);
        }
    }

    /// Writes a port; what nobody decodes is dropped.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        self.bus.port_write(port, data);
    }

    /// A local APIC ended the level-triggered interrupt of `vector`.
    pub fn eoi(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }
}

/// Whether the IOMMU can be where its options put it: BAR windows, ECAM and other functions are
/// in the way.
pub fn placement(options: &Options) -> Result<(), BoardError> {
    let error = |option, value: String, why| Err(BoardError::Placement { option, value, why });
    let base = options.mmio_base();
    let end = base.saturating_add(offset::REGION_SIZE);
    if base < layout::PCI_MEMORY_END
        || end > layout::IOAPIC_BASE && base < layout::ABOVE_INTERRUPTS
        || end > 1 << 32
    {
        let why = "0xf0000000 to 0xfebfc000 is free for it";
        return error("mmio-base", format!("{base:#x}"), why);
    }
    let id = options.device_id();
    let taken = [DeviceId::new(0, 0, 0), endpoint::REQUESTER, IOAPIC];
    if id.bus() != 0 || taken.contains(&id) {
        let why = "00.2 is its usual place; 00.0, 05.0 and 14.0 are taken, and there is bus 0 only";
        return error("addr", id.to_string(), why);
    }
    if options.segment().0 != 0 {
        return error(
            "segment",
            options.segment().to_string(),
            "there is segment 0 only",
        );
    }
    Ok(())
}

/// The offset of an access that lies completely in a window.
fn within(gpa: u64, len: usize, base: u64, size: u64) -> Option<u64> {
    let offset = gpa.checked_sub(base)?;
    (offset.checked_add(len as u64)? <= size).then_some(offset)
}
