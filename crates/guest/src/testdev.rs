//! Driver of the test endpoint.

mod channel;

use amdvi_regs::DeviceId;

pub use channel::{Ended, Operation};

use crate::endpoint::{
    BAR0_SIZE, BAR2_SIZE, DEVICE_ID, ID_VALUE, RECORDS, Record, VECTORS, VENDOR_ID, reg,
};
use crate::failure::{Result, bail, ensure};
use crate::pci::{
    CAP_MSIX, COMMAND, COMMAND_MEMORY_MASTER, EXTENDED_ATS, EXTENDED_PASID, EXTENDED_PRI, Pci,
};
use crate::platform::{Platform, Width};

/// The endpoint, found and enabled.
#[derive(Clone, Copy, Debug)]
pub struct TestDevice {
    /// Its DeviceID.
    pub id: DeviceId,
    pci: Pci,
    registers: u64,
    table: u64,
    msix: u16,
}

impl TestDevice {
    /// Finds the endpoint, places its BARs if need be and turns memory and bus mastering on.
    /// MSI-X is left disabled, every vector masked by the device's reset.
    pub fn find<P: Platform + ?Sized>(p: &mut P, pci: Pci) -> Result<Self> {
        let wanted = u32::from(DEVICE_ID) << 16 | u32::from(VENDOR_ID);
        let Some(id) = pci.find(p, |ids, _| ids == wanted) else {
            bail!("no PCI function {VENDOR_ID:04x}:{DEVICE_ID:04x} (the test endpoint)");
        };
        let registers = pci.bar(p, id, 0, BAR0_SIZE)?;
        let table_bar = pci.bar(p, id, 2, BAR2_SIZE)?;
        let command = pci.dword(p, id, COMMAND) & 0xffff;
        pci.write(p, id, COMMAND, Width::Word, command | COMMAND_MEMORY_MASTER);
        let Some(msix) = pci.capability(p, id, CAP_MSIX) else {
            bail!("{id} has no MSI-X capability");
        };
        let vectors = (pci.dword(p, id, msix) >> 16 & 0x7ff) + 1;
        ensure!(
            vectors == u32::from(VECTORS),
            "MSI-X of {id} has {vectors} vectors, not {VECTORS}"
        );
        let table = pci.dword(p, id, msix + 4);
        ensure!(
            table & 7 == 2,
            "MSI-X table of {id} stands in BAR {}, not 2",
            table & 7
        );
        let device = Self {
            id,
            pci,
            registers,
            table: table_bar + u64::from(table & !7),
            msix,
        };
        let seen = device.read(p, reg::ID);
        ensure!(
            seen == ID_VALUE,
            "ID register of {id} reads {seen:#x}, not {ID_VALUE:#x}"
        );
        Ok(device)
    }

    /// Reads a 32-bit register.
    pub fn read<P: Platform + ?Sized>(&self, p: &mut P, register: u64) -> u32 {
        p.mmio_read(self.registers + register, Width::Dword) as u32
    }

    /// Reads a 64-bit register.
    pub fn read64<P: Platform + ?Sized>(&self, p: &mut P, register: u64) -> u64 {
        p.mmio_read(self.registers + register, Width::Qword)
    }

    /// Writes a 32-bit register.
    pub fn write<P: Platform + ?Sized>(&self, p: &mut P, register: u64, value: u32) {
        p.mmio_write(self.registers + register, Width::Dword, u64::from(value));
    }

    /// Writes a 64-bit register.
    pub fn write64<P: Platform + ?Sized>(&self, p: &mut P, register: u64, value: u64) {
        p.mmio_write(self.registers + register, Width::Qword, value);
    }

    /// Turns MSI-X on or off.
    pub fn msix_enable<P: Platform + ?Sized>(&self, p: &mut P, on: bool) {
        self.msix_control(p, 1 << 15, on);
    }

    /// Masks or unmasks all vectors at once.
    pub fn msix_mask_function<P: Platform + ?Sized>(&self, p: &mut P, on: bool) {
        self.msix_control(p, 1 << 14, on);
    }

    fn msix_control<P: Platform + ?Sized>(&self, p: &mut P, bit: u32, on: bool) {
        let old = self.pci.read(p, self.id, self.msix + 2, Width::Word);
        let new = if on { old | bit } else { old & !bit };
        self.pci.write(p, self.id, self.msix + 2, Width::Word, new);
    }

    /// Programs the message of a vector and unmasks it.
    pub fn msix_entry<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        vector: u16,
        address: u32,
        data: u32,
    ) {
        let entry = self.table + 16 * u64::from(vector);
        p.mmio_write(entry, Width::Dword, u64::from(address));
        p.mmio_write(entry + 4, Width::Dword, 0);
        p.mmio_write(entry + 8, Width::Dword, u64::from(data));
        p.mmio_write(entry + 12, Width::Dword, 0);
    }

    /// Masks a vector, or unmasks it.
    pub fn msix_mask<P: Platform + ?Sized>(&self, p: &mut P, vector: u16, on: bool) {
        let entry = self.table + 16 * u64::from(vector);
        p.mmio_write(entry + 12, Width::Dword, u64::from(on));
    }

    /// Sends the message of a vector; returns the outcome, see [`crate::endpoint::outcome`].
    pub fn fire<P: Platform + ?Sized>(&self, p: &mut P, vector: u16) -> u32 {
        self.write(p, reg::FIRE, u32::from(vector));
        self.read(p, reg::OUTCOME)
    }

    /// Sends the messages of `count` vectors from `first` on.
    pub fn fire_range<P: Platform + ?Sized>(&self, p: &mut P, first: u16, count: u16) {
        self.write(p, reg::FIRE_START, u32::from(first));
        self.write(p, reg::FIRE_COUNT, u32::from(count));
    }

    /// Sends a message of the driver's own making; returns the outcome.
    pub fn raw<P: Platform + ?Sized>(&self, p: &mut P, address: u64, data: u32) -> u32 {
        self.write64(p, reg::RAW_ADDRESS, address);
        self.write(p, reg::RAW_DATA, data);
        self.read(p, reg::OUTCOME)
    }

    /// Clears the counters and the recorder.
    pub fn reset_stats<P: Platform + ?Sized>(&self, p: &mut P) {
        self.write(p, reg::RESET_STATS, 1);
    }

    /// Interrupts of every source since [`reset_stats`](Self::reset_stats).
    pub fn recorded<P: Platform + ?Sized>(&self, p: &mut P) -> u64 {
        self.read64(p, reg::RECORDED)
    }

    /// Interrupt `n` since [`reset_stats`](Self::reset_stats), if it is among the last ones kept.
    pub fn record<P: Platform + ?Sized>(&self, p: &mut P, n: u64) -> Option<Record> {
        Record::from_bits(self.read64(p, reg::RECORD_0 + 8 * (n % RECORDS)))
    }

    /// The newest recorded interrupt.
    pub fn last_record<P: Platform + ?Sized>(&self, p: &mut P) -> Option<Record> {
        let recorded = self.recorded(p);
        recorded
            .checked_sub(1)
            .and_then(|newest| self.record(p, newest))
    }

    /// Sets the level of an IOAPIC pin.
    pub fn pin<P: Platform + ?Sized>(&self, p: &mut P, pin: u8, high: bool) {
        self.write(p, reg::PIN, u32::from(pin) << 8 | u32::from(high));
    }

    /// Lets requests carry a PASID, with execute and privilege, or no longer.
    pub fn pasid_enable<P: Platform + ?Sized>(&self, p: &mut P, on: bool) -> Result<()> {
        // Enable, Execute Permission Enable, Privileged Mode Enable.
        self.extended_control(p, EXTENDED_PASID, 6, 0b111, on)
    }

    /// Turns the function's own TLB on or off.
    pub fn ats_enable<P: Platform + ?Sized>(&self, p: &mut P, on: bool) -> Result<()> {
        self.extended_control(p, EXTENDED_ATS, 6, 1 << 15, on)
    }

    /// Turns page requests on or off.
    pub fn pri_enable<P: Platform + ?Sized>(&self, p: &mut P, on: bool) -> Result<()> {
        self.extended_control(p, EXTENDED_PRI, 4, 1, on)
    }

    /// Sets or clears bits of the control register of an extended capability.
    fn extended_control<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        capability: u16,
        register: u16,
        bits: u32,
        on: bool,
    ) -> Result<()> {
        let Some(at) = self.pci.extended_capability(p, self.id, capability) else {
            bail!("{} has no extended capability {capability:#06x}", self.id);
        };
        let old = self.pci.read(p, self.id, at + register, Width::Word) & 0xffff;
        let new = if on { old | bits } else { old & !bits };
        self.pci.write(p, self.id, at + register, Width::Word, new);
        let seen = self.pci.read(p, self.id, at + register, Width::Word) & 0xffff;
        ensure!(
            seen == new,
            "control of extended capability {capability:#06x} of {} reads {seen:#x} after {new:#x}",
            self.id
        );
        Ok(())
    }

    /// Asks the VMM for something, see [`crate::endpoint::vmm`].
    pub fn vmm<P: Platform + ?Sized>(&self, p: &mut P, command: u32) -> Result<()> {
        self.write(p, reg::VMM_COMMAND, command);
        let status = self.read(p, reg::VMM_STATUS);
        ensure!(
            status == 0,
            "the VMM answers command {command} with status {status}"
        );
        Ok(())
    }

    /// Copies `length` bytes of memory to the device's buffer (`to_memory` = false) or back.
    /// Returns DMA_STATUS.
    pub fn dma<P: Platform + ?Sized>(
        &self,
        p: &mut P,
        iova: u64,
        length: u32,
        to_memory: bool,
    ) -> u32 {
        self.write64(p, reg::DMA_IOVA, iova);
        self.write(p, reg::DMA_LENGTH, length);
        self.write(p, reg::DMA_COMMAND, 1 + u32::from(to_memory));
        self.read(p, reg::DMA_STATUS)
    }
}
