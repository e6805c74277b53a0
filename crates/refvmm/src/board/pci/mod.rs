//! PCI: type-0 functions behind CF8/CFC and ECAM.

mod config;
pub mod express;
mod fixed;
mod msi;
mod msix;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use amdvi_regs::{DeviceId, Segment};

use super::snapshot::Snapshot;

pub use config::{Bar, ConfigSpace};
pub use fixed::{Fixed, IommuFunction};
pub use msi::MsiCapability;
pub(crate) use msix::MsixState;
pub use msix::{Msix, Place, Request};

/// Bytes of one function's configuration space.
pub const CONFIG_SIZE: u64 = 4096;
/// Header Type, and the bit in it that says that a device has more functions than this one.
const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;
/// CONFIG_ADDRESS.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// CONFIG_DATA, four ports.
pub const CONFIG_DATA: u16 = 0xcfc;

/// One PCI function.
///
/// Offsets are those of the configuration space or of a BAR; `data` has the access' width. A read
/// fills `data` completely.
pub trait Function: Snapshot + Send + Sync {
    /// Reads configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// Which BAR decodes `gpa` now, and the offset in it.
    fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        let _ = gpa;
        None
    }
    /// Reads a register of a BAR.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }
    /// Writes a register of a BAR.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }
}

/// A place in configuration space.
pub type Address = (Segment, DeviceId);

/// The functions of all segments, and the ways to them.
#[derive(Default)]
pub struct PciBus {
    functions: Vec<(Address, Arc<dyn Function>)>,
    ecams: Vec<(Segment, Range<u64>)>,
    config_address: AtomicU32,
}

impl PciBus {
    /// No functions, no ECAM windows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the ECAM window of a segment.
    pub fn add_ecam(&mut self, segment: Segment, window: Range<u64>) {
        self.ecams.push((segment, window));
    }

    /// Plugs in a function.
    pub fn add(&mut self, segment: Segment, id: DeviceId, function: Arc<dyn Function>) {
        self.functions.push(((segment, id), function));
    }

    /// The functions, and their places as `0000:00:05.0`.
    pub(super) fn functions(&self) -> impl Iterator<Item = (String, &dyn Function)> {
        self.functions
            .iter()
            .map(|((segment, id), function)| (format!("{segment}:{id}"), &**function))
    }

    /// CONFIG_ADDRESS.
    pub(super) fn config_address(&self) -> u32 {
        self.config_address.load(Ordering::Acquire)
    }

    /// Sets CONFIG_ADDRESS, as a write of it does.
    pub(super) fn set_config_address(&self, value: u32) {
        // Bits [30:24] and [1:0] are reserved and read as zero.
        self.config_address
            .store(value & 0x80ff_fffc, Ordering::Release);
    }

    /// Gives each device a function 0: a scan of the bus looks no further where there is none.
    pub fn complete_devices(&mut self) {
        let places: Vec<Address> = self.functions.iter().map(|(place, _)| *place).collect();
        for (segment, id) in places {
            let first = (segment, DeviceId(id.0 & !7));
            if self.function(first).is_none() {
                self.add(first.0, first.1, Arc::new(Fixed::host_bridge()));
            }
        }
    }

    /// Whether the device of function 0 has other functions, which are looked for only then.
    fn has_more(&self, (segment, id): Address) -> bool {
        let same = |at: &Address| at.0 == segment && at.1.0 & !7 == id.0 && at.1 != id;
        self.functions.iter().any(|(at, _)| same(at))
    }

    fn function(&self, place: Address) -> Option<&dyn Function> {
        self.functions
            .iter()
            .find(|(at, _)| *at == place)
            .map(|(_, function)| &**function)
    }

    /// The segment, function and register of an access to an ECAM window.
    fn ecam(&self, gpa: u64, len: usize) -> Option<(Address, u16)> {
        self.ecams.iter().find_map(|(segment, window)| {
            let end = gpa.checked_add(len as u64)?;
            let inside = window.start <= gpa && end <= window.end;
            let offset = inside.then(|| gpa - window.start)?;
            let id = DeviceId((offset >> 12) as u16);
            Some(((*segment, id), offset as u16 & 0xfff))
        })
    }

    /// Reads configuration space; an absent function reads as all ones (master abort).
    pub fn config_read(&self, place: Address, offset: u16, data: &mut [u8]) {
        match self.function(place) {
            Some(function) if fits(offset.into(), data.len()) => {
                function.config_read(offset, data);
                let header_type = HEADER_TYPE.checked_sub(offset).map(usize::from);
                if let Some(byte) = header_type.and_then(|at| data.get_mut(at))
                    && self.has_more(place)
                {
                    *byte |= MULTI_FUNCTION;
                }
            }
            _ => data.fill(0xff),
        }
    }

    /// Writes configuration space.
    pub fn config_write(&self, place: Address, offset: u16, data: &[u8]) {
        if let Some(function) = self.function(place)
            && fits(offset.into(), data.len())
        {
            function.config_write(offset, data);
        }
    }

    /// Reads an ECAM window; `false` when none decodes `gpa`.
    pub fn ecam_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        match self.ecam(gpa, data.len()) {
            Some((place, offset)) => {
                self.config_read(place, offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes an ECAM window; `false` when none decodes `gpa`.
    pub fn ecam_write(&self, gpa: u64, data: &[u8]) -> bool {
        match self.ecam(gpa, data.len()) {
            Some((place, offset)) => {
                self.config_write(place, offset, data);
                true
            }
            None => false,
        }
    }

    /// Reads a memory BAR; `false` when no function decodes `gpa`.
    pub fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        for (_, function) in &self.functions {
            if let Some((bar, offset)) = function.decode(gpa) {
                function.bar_read(bar, offset, data);
                return true;
            }
        }
        false
    }

    /// Writes a memory BAR; `false` when no function decodes `gpa`.
    pub fn memory_write(&self, gpa: u64, data: &[u8]) -> bool {
        for (_, function) in &self.functions {
            if let Some((bar, offset)) = function.decode(gpa) {
                function.bar_write(bar, offset, data);
                return true;
            }
        }
        false
    }

    /// What of segment 0 CONFIG_DATA addresses now: `None` while CONFIG_ADDRESS.Enable is 0.
    fn selected(&self, port: u16) -> Option<(Address, u16)> {
        let address = self.config_address.load(Ordering::Acquire);
        (address >> 31 == 1).then(|| {
            (
                (Segment(0), DeviceId((address >> 8) as u16)),
                (address as u16 & 0xfc) + port - CONFIG_DATA,
            )
        })
    }

    /// Reads one of the ports CF8h–CFFh; `false` when the access is not the bus'.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        if port == CONFIG_ADDRESS && data.len() == 4 {
            let address = self.config_address.load(Ordering::Acquire);
            data.copy_from_slice(&address.to_le_bytes());
            return true;
        }
        if !in_data_ports(port, data.len()) {
            return false;
        }
        match self.selected(port) {
            Some((place, offset)) => self.config_read(place, offset, data),
            None => data.fill(0xff),
        }
        true
    }

    /// Writes one of the ports CF8h–CFFh; `false` when the access is not the bus'. Only a dword
    /// reaches CONFIG_ADDRESS: CF9h is the reset control port.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        if port == CONFIG_ADDRESS
            && let Ok(bytes) = <[u8; 4]>::try_from(data)
        {
            self.set_config_address(u32::from_le_bytes(bytes));
            return true;
        }
        if !in_data_ports(port, data.len()) {
            return false;
        }
        if let Some((place, offset)) = self.selected(port) {
            self.config_write(place, offset, data);
        }
        true
    }
}

fn in_data_ports(port: u16, len: usize) -> bool {
    port >= CONFIG_DATA && usize::from(port - CONFIG_DATA) + len <= 4
}

fn fits(offset: u64, len: usize) -> bool {
    offset + len as u64 <= CONFIG_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECAM: u64 = 0xe000_0000;
    const SMBUS: DeviceId = DeviceId::new(0, 0x14, 0);

    fn bus() -> PciBus {
        let mut bus = PciBus::new();
        bus.add_ecam(Segment(0), ECAM..ECAM + (256 << 20));
        bus.add(Segment(0), SMBUS, Arc::new(Fixed::smbus()));
        bus
    }

    fn select(bus: &PciBus, address: u32) {
        assert!(bus.port_write(CONFIG_ADDRESS, &address.to_le_bytes()));
    }

    #[test]
    fn config_mechanism_1_and_ecam_reach_the_same_registers() {
        let bus = bus();
        select(&bus, 0x8000_a000);
        let mut by_port = [0; 4];
        assert!(bus.port_read(CONFIG_DATA, &mut by_port));
        let mut by_ecam = [0; 4];
        assert!(bus.ecam_read(ECAM + (0x14 << 15), &mut by_ecam));
        assert_eq!(by_port, by_ecam);
        assert_eq!(u16::from_le_bytes([by_port[0], by_port[1]]), 0x1022);
    }

    #[test]
    fn words_and_bytes_of_config_data_select_within_the_dword() {
        let bus = bus();
        select(&bus, 0x8000_a008);
        let mut class = [0; 2];
        assert!(bus.port_read(CONFIG_DATA + 2, &mut class));
        assert_eq!(u16::from_le_bytes(class), 0x0c05);
        let mut base_class = [0];
        assert!(bus.port_read(CONFIG_DATA + 3, &mut base_class));
        assert_eq!(base_class, [0x0c]);
        assert!(
            !bus.port_read(CONFIG_DATA + 3, &mut class),
            "crosses the last port"
        );
    }

    #[test]
    fn an_absent_function_reads_as_all_ones() {
        let bus = bus();
        let mut data = [0; 4];
        assert!(bus.ecam_read(ECAM + (0x13 << 15), &mut data));
        assert_eq!(data, [0xff; 4]);
        select(&bus, 0x8001_a000);
        assert!(bus.port_read(CONFIG_DATA, &mut data));
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn segments_have_their_own_functions_and_ports_reach_segment_0_only() {
        let mut bus = bus();
        bus.add_ecam(Segment(1), 0xf000_0000..0xf100_0000);
        bus.add(
            Segment(1),
            DeviceId::new(0, 5, 0),
            Arc::new(Fixed::host_bridge()),
        );
        let mut data = [0; 4];
        let there = |gpa: u64, data: &mut [u8; 4]| {
            assert!(bus.ecam_read(gpa, data));
            *data != [0xff; 4]
        };
        assert!(there(0xf000_0000 + (5 << 15), &mut data));
        assert!(!there(0xf000_0000 + (0x14 << 15), &mut data));
        assert!(!there(ECAM + (5 << 15), &mut data));
        select(&bus, 0x8000_2800);
        assert!(bus.port_read(CONFIG_DATA, &mut data));
        assert_eq!(data, [0xff; 4]);
        let mut across = [0; 8];
        assert!(!bus.ecam_read(0xf0ff_fffc, &mut across), "over the end");
    }

    #[test]
    fn config_data_without_the_enable_bit_reads_as_all_ones() {
        let bus = bus();
        select(&bus, 0x0000_a000);
        let mut data = [0; 4];
        assert!(bus.port_read(CONFIG_DATA, &mut data));
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_byte_at_cf9_is_not_a_config_address() {
        let bus = bus();
        select(&bus, 0x8000_a000);
        assert!(!bus.port_write(CONFIG_ADDRESS + 1, &[6]));
        let mut data = [0; 4];
        assert!(bus.port_read(CONFIG_ADDRESS, &mut data));
        assert_eq!(u32::from_le_bytes(data), 0x8000_a000);
    }
}
