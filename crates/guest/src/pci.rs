//! PCI configuration space: by ports CF8/CFC and by ECAM, with bounded searches.

use amdvi_regs::DeviceId;

use crate::acpi::Ecam;
use crate::failure::{Result, bail, ensure};
use crate::platform::{Platform, Width};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Command register.
pub const COMMAND: u16 = 0x04;
/// COMMAND bits: memory decoding and bus mastering.
pub const COMMAND_MEMORY_MASTER: u32 = 0x6;
/// Class code, with the revision in bits \[7:0\].
pub const CLASS: u16 = 0x08;
/// First BAR.
pub const BAR0: u16 = 0x10;
/// Class code of an IOMMU: base class 08h, subclass 06h, interface 00h.
pub const CLASS_IOMMU: u32 = 0x08_0600;
/// Class and subclass of an SMBus controller.
pub const CLASS_SMBUS: u32 = 0x0c05;
/// Class and subclass of an ISA bridge.
pub const CLASS_ISA: u32 = 0x0601;
/// Capability ID: secure device (the IOMMU's own block).
pub const CAP_IOMMU: u8 = 0x0f;
/// Capability ID: MSI.
pub const CAP_MSI: u8 = 0x05;
/// Capability ID: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

/// Extended capability ID: Address Translation Services.
pub const EXTENDED_ATS: u16 = 0x0f;
/// Extended capability ID: Page Request Interface.
pub const EXTENDED_PRI: u16 = 0x13;
/// Extended capability ID: PASID.
pub const EXTENDED_PASID: u16 = 0x1b;

/// More capabilities than this do not fit: 192 bytes, at least 4 each.
const MAX_CAPABILITIES: usize = 48;
/// More extended capabilities than this do not fit: 3840 bytes, at least 8 each.
const MAX_EXTENDED: usize = 480;
/// Where BARs go that nobody placed.
const BAR_WINDOW: u32 = 0xd000_0000;

/// A way into configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pci {
    /// Use this window; without one, ports CF8/CFC.
    pub ecam: Option<Ecam>,
}

impl Pci {
    /// Access by ports.
    pub const PORTS: Self = Self { ecam: None };

    /// Reads a naturally aligned value; all ones where no function answers.
    pub fn read<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        id: DeviceId,
        offset: u16,
        width: Width,
    ) -> u32 {
        match self.ecam {
            Some(ecam) if (ecam.first_bus..=ecam.last_bus).contains(&id.bus()) => {
                p.mmio_read(window(&ecam, id, offset), width) as u32
            }
            _ => {
                p.port_write(CONFIG_ADDRESS, Width::Dword, port_address(id, offset));
                p.port_read(CONFIG_DATA + (offset & 3), width)
            }
        }
    }

    /// Writes a naturally aligned value.
    pub fn write<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        id: DeviceId,
        offset: u16,
        width: Width,
        value: u32,
    ) {
        match self.ecam {
            Some(ecam) if (ecam.first_bus..=ecam.last_bus).contains(&id.bus()) => {
                p.mmio_write(window(&ecam, id, offset), width, u64::from(value));
            }
            _ => {
                p.port_write(CONFIG_ADDRESS, Width::Dword, port_address(id, offset));
                p.port_write(CONFIG_DATA + (offset & 3), width, value);
            }
        }
    }

    /// Reads a dword.
    pub fn dword<P: Platform + ?Sized>(&self, p: &mut P, id: DeviceId, offset: u16) -> u32 {
        self.read(p, id, offset, Width::Dword)
    }

    /// Whether a function answers.
    pub fn present<P: Platform + ?Sized>(&self, p: &mut P, id: DeviceId) -> bool {
        self.read(p, id, 0, Width::Word) & 0xffff != 0xffff
    }

    /// The class code: base class \[23:16\], subclass \[15:8\], interface \[7:0\].
    pub fn class<P: Platform + ?Sized>(&self, p: &mut P, id: DeviceId) -> u32 {
        self.dword(p, id, CLASS) >> 8
    }

    /// The first function of bus 0 or of a bus behind a bridge for which `wanted(vendor and device
    /// ID, class code)`.
    pub fn find<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        mut wanted: impl FnMut(u32, u32) -> bool,
    ) -> Option<DeviceId> {
        let mut buses = [0u8; 16];
        let mut known = 1;
        let mut next = 0;
        while next < known {
            let bus = buses[next];
            next += 1;
            for device in 0..32 {
                let mut functions = 1;
                let mut function = 0;
                while function < functions {
                    let id = DeviceId::new(bus, device, function);
                    function += 1;
                    let ids = self.dword(p, id, 0);
                    if ids & 0xffff == 0xffff {
                        continue;
                    }
                    let class = self.class(p, id);
                    if wanted(ids, class) {
                        return Some(id);
                    }
                    let header = self.read(p, id, 0x0e, Width::Byte);
                    if header & 0x80 != 0 {
                        functions = 8;
                    }
                    let secondary = (self.dword(p, id, 0x18) >> 8) as u8;
                    if header & 0x7f == 1
                        && known < buses.len()
                        && !buses[..known].contains(&secondary)
                    {
                        buses[known] = secondary;
                        known += 1;
                    }
                }
            }
        }
        None
    }

    /// The offset of the first capability with this ID. A list that loops or points into the
    /// header ends the search.
    pub fn capability<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        id: DeviceId,
        wanted: u8,
    ) -> Option<u16> {
        const STATUS_CAPABILITIES: u32 = 1 << 20;
        if self.dword(p, id, COMMAND) & STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut offset = self.read(p, id, 0x34, Width::Byte) as u16 & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if offset < 0x40 {
                return None;
            }
            let header = self.dword(p, id, offset);
            if header as u8 == wanted {
                return Some(offset);
            }
            offset = (header >> 8) as u16 & 0xfc;
        }
        None
    }

    /// The offset of the first extended capability with this ID. Such capabilities are only within
    /// reach of the ECAM window. A list that loops or points into the first 256 bytes ends the search.
    pub fn extended_capability<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        id: DeviceId,
        wanted: u16,
    ) -> Option<u16> {
        self.ecam?;
        let mut offset = 0x100;
        for _ in 0..MAX_EXTENDED {
            let header = self.dword(p, id, offset);
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header as u16 == wanted {
                return Some(offset);
            }
            offset = (header >> 20) as u16 & 0xffc;
            if offset < 0x100 {
                return None;
            }
        }
        None
    }

    /// The address of 32-bit memory BAR `n`, placing it first if nobody did. `size` is the size
    /// that the driver expects.
    pub fn bar<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        id: DeviceId,
        n: u16,
        size: u32,
    ) -> Result<u64> {
        let register = BAR0 + 4 * n;
        let old = self.dword(p, id, register);
        ensure!(
            old & 7 == 0,
            "BAR {n} of {id} is {old:#x}: not a 32-bit memory BAR"
        );
        self.write(p, id, register, Width::Dword, !0);
        let sized = self.dword(p, id, register) & !0xf;
        self.write(p, id, register, Width::Dword, old);
        let seen = sized.wrapping_neg();
        ensure!(
            seen == size,
            "BAR {n} of {id} has {seen:#x} bytes, not {size:#x}"
        );
        let placed = old & !0xf;
        if placed != 0 {
            return Ok(u64::from(placed));
        }
        let base = BAR_WINDOW + u32::from(id.0 & 0xff) * 0x10_0000 + u32::from(n) * 0x1_0000;
        self.write(p, id, register, Width::Dword, base);
        let stuck = self.dword(p, id, register);
        ensure!(
            stuck == base,
            "BAR {n} of {id} reads {stuck:#x} after {base:#x} was written"
        );
        Ok(u64::from(base))
    }
}

fn port_address(id: DeviceId, offset: u16) -> u32 {
    0x8000_0000 | u32::from(id.0) << 8 | u32::from(offset & 0xfc)
}

fn window(ecam: &Ecam, id: DeviceId, offset: u16) -> u64 {
    ecam.base + (u64::from(id.0) << 12) + u64::from(offset & 0xfff)
}

/// A PCI MSI capability.
#[derive(Clone, Copy, Debug)]
pub struct MsiCapability {
    pci: Pci,
    id: DeviceId,
    offset: u16,
}

impl MsiCapability {
    /// Finds the one of `id`; 64-bit addresses are required.
    pub fn find<P: Platform + ?Sized>(p: &mut P, pci: Pci, id: DeviceId) -> Result<Self> {
        let Some(offset) = pci.capability(p, id, CAP_MSI) else {
            bail!("{id} has no MSI capability");
        };
        let header = pci.dword(p, id, offset);
        ensure!(
            header & 1 << 23 != 0,
            "MSI capability of {id} is {header:#x}: no 64-bit address"
        );
        Ok(Self { pci, id, offset })
    }

    /// Programs the message and enables it.
    pub fn enable<P: Platform + ?Sized>(&self, p: &mut P, address: u64, data: u16) {
        let (pci, id) = (self.pci, self.id);
        pci.write(p, id, self.offset + 4, Width::Dword, address as u32);
        pci.write(p, id, self.offset + 8, Width::Dword, (address >> 32) as u32);
        pci.write(p, id, self.offset + 12, Width::Word, u32::from(data));
        self.control(p, |control| control | 1);
    }

    /// Disables it.
    pub fn disable<P: Platform + ?Sized>(&self, p: &mut P) {
        self.control(p, |control| control & !1);
    }

    fn control<P: Platform + ?Sized>(&self, p: &mut P, change: impl FnOnce(u32) -> u32) {
        let old = self.pci.read(p, self.id, self.offset + 2, Width::Word);
        let new = change(old);
        self.pci
            .write(p, self.id, self.offset + 2, Width::Word, new);
    }

    /// Enable bit, address and data as they read back.
    pub fn state<P: Platform + ?Sized>(&self, p: &mut P) -> (bool, u64, u16) {
        let (pci, id) = (self.pci, self.id);
        let enabled = pci.read(p, id, self.offset + 2, Width::Word) & 1 != 0;
        let low = pci.dword(p, id, self.offset + 4);
        let high = pci.dword(p, id, self.offset + 8);
        let data = pci.read(p, id, self.offset + 12, Width::Word);
        (enabled, u64::from(low) | u64::from(high) << 32, data as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const ID: DeviceId = DeviceId::new(0, 3, 0);

    #[test]
    fn a_capability_list_that_loops_ends_the_search() {
        let mut p = Fake::new();
        p.config(ID, 0x04, 1 << 20);
        p.config(ID, 0x34, 0x40);
        p.config(ID, 0x40, 0x5009);
        p.config(ID, 0x50, 0x4009);
        assert_eq!(Pci::PORTS.capability(&mut p, ID, CAP_MSI), None);
        assert!(p.port_accesses < 1000);
    }

    #[test]
    fn a_capability_pointer_into_the_header_ends_the_search() {
        let mut p = Fake::new();
        p.config(ID, 0x04, 1 << 20);
        p.config(ID, 0x34, 0x40);
        p.config(ID, 0x40, 0x0409);
        p.config(ID, 0x04, 1 << 20 | u32::from(CAP_MSI));
        assert_eq!(Pci::PORTS.capability(&mut p, ID, CAP_MSI), None);
    }

    #[test]
    fn a_capability_is_found_behind_others() {
        let mut p = Fake::new();
        p.config(ID, 0x04, 1 << 20);
        p.config(ID, 0x34, 0x40);
        p.config(ID, 0x40, 0x6409);
        p.config(ID, 0x64, 0x0080_0005);
        assert_eq!(Pci::PORTS.capability(&mut p, ID, CAP_MSI), Some(0x64));
        assert!(MsiCapability::find(&mut p, Pci::PORTS, ID).is_ok());
    }

    #[test]
    fn bridges_that_point_at_each_other_do_not_loop_the_scan() {
        let mut p = Fake::new();
        for (bus, behind) in [(0u8, 1u32), (1, 0)] {
            let bridge = DeviceId::new(bus, 1, 0);
            p.config(bridge, 0x00, 0x1234_1022);
            p.config(bridge, 0x08, 0x0604_0000);
            p.config(bridge, 0x0c, 0x0001_0000);
            p.config(bridge, 0x18, behind << 8);
        }
        let target = DeviceId::new(1, 2, 0);
        p.config(target, 0x00, 0x2048_1af5);
        assert_eq!(
            Pci::PORTS.find(&mut p, |ids, _| ids == 0x2048_1af5),
            Some(target)
        );
        assert_eq!(Pci::PORTS.find(&mut p, |ids, _| ids == 1), None);
    }

    #[test]
    fn a_bar_of_the_wrong_size_is_refused_and_restored() {
        let mut p = Fake::new();
        p.config(ID, 0x10, 0xc000_0000);
        let failure = Pci::PORTS.bar(&mut p, ID, 0, 0x1000).unwrap_err();
        assert!(failure.text().contains("0x1000"), "{failure}");
        assert_eq!(Pci::PORTS.dword(&mut p, ID, 0x10), 0xc000_0000);
    }
}
