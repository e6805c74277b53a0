//! The driver of one AMD IOMMU.
//!
//! Follows the order in which Linux brings the device up, because that is what must work.

pub mod irt;
mod rings;

use amdvi_regs::DeviceId;
use amdvi_regs::command::{InvalidateDevtabEntry, InvalidateInterruptTable, InvalidateIommuAll};
use amdvi_regs::dte::{DTE_SIZE, Dte, DteQ2};
use amdvi_regs::event::EVENT_SIZE;
use amdvi_regs::log::PPR_LOG_ENTRY_SIZE;
use amdvi_regs::mmio::{
    Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2, Status, offset,
};

pub use rings::Ring;

use crate::failure::{Result, bail, ensure};
use crate::platform::{Platform, Width};
use crate::wait;

/// How the driver sets the IOMMU up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Devices that the device table covers: DeviceIDs below this, a multiple of 128.
    pub devices: u32,
    /// log2 of the entries of the command ring, 8–15.
    pub command_len: u8,
    /// log2 of the entries of the event log, 8–15.
    pub event_len: u8,
    /// GAEn: 128-bit IRTEs.
    pub ga: bool,
    /// XTEn: 32-bit destinations; needs `ga`.
    pub xt: bool,
    /// NumIntRemapMode = 1: 2048 interrupts per function.
    pub two_k: bool,
    /// GAMEn = 1 and the GA log.
    pub guest_apic: bool,
    /// GTEn: guest page tables and PASIDs.
    pub guest_tables: bool,
    /// PPREn, and a PPR log of 2^n entries, 8–15; 0 for neither.
    pub ppr_len: u8,
    /// Write 64-bit registers as two 32-bit halves, low first.
    pub halves: bool,
}

impl Config {
    /// The simplest setup: 32-bit IRTEs, 512 interrupts, bus 0.
    pub const fn basic() -> Self {
        Self {
            devices: 256,
            command_len: 9,
            event_len: 9,
            ga: false,
            xt: false,
            two_k: false,
            guest_apic: false,
            guest_tables: false,
            ppr_len: 0,
            halves: true,
        }
    }

    /// What Linux enables of what an IOMMU offers.
    pub const fn offered(iommu: &Iommu) -> Self {
        let ga = iommu.efr.ga_sup();
        Self {
            ga,
            xt: ga && iommu.efr.xt_sup(),
            two_k: iommu.efr2.num_int_remap_sup() == ExtendedFeature2::NUM_INT_REMAP_2K,
            guest_tables: iommu.efr.gt_sup(),
            ..Self::basic()
        }
    }
}

/// Bytes of the GA log: Linux's 512 entries, whose length field says 8.
const GA_LOG_BYTES: u64 = 4096;
const GA_LOG_LEN: u8 = 8;

/// An IOMMU and what the driver knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Iommu {
    /// Address of its registers.
    pub mmio: u64,
    /// Its features, as its registers state them.
    pub efr: ExtendedFeature,
    /// More of its features.
    pub efr2: ExtendedFeature2,
    /// What was last written to CONTROL.
    pub control: Control,
    /// The setup in force.
    pub config: Config,
    /// The device table.
    pub device_table: u64,
    /// The command ring.
    pub commands: Ring,
    /// The event log.
    pub events: Ring,
    /// The GA log.
    pub ga_log: Ring,
    /// The PPR log.
    pub ppr_log: Ring,
    command_head: u64,
    semaphore: u64,
    sequence: u64,
}

/// How Linux leaves devices that nobody has claimed: IV without V, IntCtl = abort.
const UNCLAIMED: DteQ2 = DteQ2::new().with_iv(true);

impl Iommu {
    /// The IOMMU whose registers stand at `mmio`, turned off.
    pub fn new<P: Platform + ?Sized>(p: &mut P, mmio: u64) -> Self {
        let mut iommu = Self {
            mmio,
            efr: ExtendedFeature::new(),
            efr2: ExtendedFeature2::new(),
            control: Control::new(),
            config: Config::basic(),
            device_table: 0,
            commands: Ring::default(),
            events: Ring::default(),
            ga_log: Ring::default(),
            ppr_log: Ring::default(),
            command_head: 0,
            semaphore: 0,
            sequence: 0,
        };
        iommu.efr = ExtendedFeature::from_bits(iommu.read(p, offset::EXTENDED_FEATURE));
        iommu.efr2 = ExtendedFeature2::from_bits(iommu.read(p, offset::EXTENDED_FEATURE_2));
        iommu.disable(p);
        iommu
    }

    /// Reads a 64-bit register.
    pub fn read<P: Platform + ?Sized>(&self, p: &mut P, register: u64) -> u64 {
        p.mmio_read(self.mmio + register, Width::Qword)
    }

    /// Reads the low half of a register.
    pub fn read32<P: Platform + ?Sized>(&self, p: &mut P, register: u64) -> u64 {
        p.mmio_read(self.mmio + register, Width::Dword)
    }

    /// Writes a 64-bit register at once.
    pub fn write<P: Platform + ?Sized>(&self, p: &mut P, register: u64, value: u64) {
        p.mmio_write(self.mmio + register, Width::Qword, value);
    }

    /// Writes the low half of a register.
    pub fn write32<P: Platform + ?Sized>(&self, p: &mut P, register: u64, value: u32) {
        p.mmio_write(self.mmio + register, Width::Dword, u64::from(value));
    }

    /// Writes a base register: in halves if the setup says so.
    fn write_base<P: Platform + ?Sized>(&self, p: &mut P, register: u64, value: u64) {
        if self.config.halves {
            self.write32(p, register, value as u32);
            self.write32(p, register + 4, (value >> 32) as u32);
        } else {
            self.write(p, register, value);
        }
    }

    /// Writes CONTROL and remembers the value.
    pub fn set_control<P: Platform + ?Sized>(&mut self, p: &mut P, control: Control) {
        self.control = control;
        self.write(p, offset::CONTROL, control.into_bits());
    }

    /// Reads CONTROL.
    pub fn read_control<P: Platform + ?Sized>(&self, p: &mut P) -> Control {
        Control::from_bits(self.read(p, offset::CONTROL))
    }

    /// Reads STATUS.
    pub fn status<P: Platform + ?Sized>(&self, p: &mut P) -> Status {
        Status::from_bits(self.read32(p, offset::STATUS))
    }

    /// Clears STATUS bits by writing 1.
    pub fn clear_status<P: Platform + ?Sized>(&self, p: &mut P, bits: Status) {
        self.write32(p, offset::STATUS, bits.into_bits() as u32);
    }

    /// Turns everything off, whatever a predecessor left on.
    pub fn disable<P: Platform + ?Sized>(&mut self, p: &mut P) {
        let control = self
            .read_control(p)
            .with_cmd_buf_en(false)
            .with_event_int_en(false)
            .with_event_log_en(false)
            .with_ga_log_en(false)
            .with_ga_int_en(false)
            .with_ppr_log_en(false)
            .with_ppr_int_en(false)
            .with_ppr_en(false)
            .with_iommu_en(false)
            .with_irt_cache_dis(false);
        self.set_control(p, control);
    }

    /// Brings the IOMMU up. Devices start with their interrupts blocked and their DMA untranslated.
    pub fn start<P: Platform + ?Sized>(&mut self, p: &mut P, config: Config) -> Result<()> {
        self.config = config;
        self.disable(p);
        self.alloc(p)?;

        let mut control = self
            .control
            .with_ht_tun_en(false)
            .with_pass_pw(false)
            .with_res_pass_pw(false)
            .with_isoc(false)
            .with_coherent(true)
            .with_inv_time_out(4)
            .with_ga_en(false)
            .with_gam_en(0)
            .with_xt_en(false)
            .with_int_cap_xt_en(false)
            .with_gt_en(config.guest_tables)
            .with_gcr3_trp_mode(false)
            .with_num_int_remap_mode(0);
        self.set_control(p, control);

        let table = DeviceTableBase::new()
            .with_size((config.devices / 128 - 1) as u16)
            .with_base_page(self.device_table >> 12);
        self.write_base(p, offset::DEVICE_TABLE_BASE, table.into_bits());

        let base = self.commands.base(config.command_len);
        self.write_base(p, offset::COMMAND_BUFFER_BASE, base);
        self.write32(p, offset::COMMAND_HEAD, 0);
        self.write32(p, offset::COMMAND_TAIL, 0);
        control = control.with_cmd_buf_en(true);
        self.set_control(p, control);

        if config.ga {
            control = control
                .with_ga_en(true)
                .with_gam_en(u8::from(config.guest_apic));
            self.set_control(p, control);
        }
        if config.xt {
            control = control.with_xt_en(true);
            self.set_control(p, control);
        }
        if config.two_k {
            control = control.with_num_int_remap_mode(Control::NUM_INT_REMAP_2K);
            self.set_control(p, control);
        }
        control = control.with_iommu_en(true);
        self.set_control(p, control);
        self.flush_everything(p)?;

        let base = self.events.base(config.event_len);
        self.write_base(p, offset::EVENT_LOG_BASE, base);
        self.write32(p, offset::EVENT_HEAD, 0);
        self.write32(p, offset::EVENT_TAIL, 0);
        control = control.with_event_log_en(true);
        self.set_control(p, control);

        if config.guest_apic {
            self.start_ga_log(p)?;
        }
        if config.ppr_len != 0 {
            self.start_ppr_log(p)?;
        }
        let seen = self.read_control(p);
        ensure!(
            seen == self.control,
            "CONTROL reads {:#x} after {:#x} was written",
            seen.into_bits(),
            self.control.into_bits()
        );
        let status = self.status(p);
        ensure!(
            status.cmd_buf_run() && status.event_log_run(),
            "STATUS is {:#x}: CmdBufRun and EventLogRun must be 1",
            status.into_bits()
        );
        Ok(())
    }

    fn alloc<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        let config = self.config;
        ensure!(
            config.devices.is_multiple_of(128) && (128..=65536).contains(&config.devices),
            "a device table cannot have {} entries",
            config.devices
        );
        let bytes = u64::from(config.devices) * DTE_SIZE;
        let Some(table) = p.alloc(bytes, 4096) else {
            bail!("no RAM left for a device table of {bytes:#x} bytes");
        };
        self.device_table = table;
        // Only the first bus is filled: it is what a test machine has, and a payload is slow.
        for id in 0..config.devices.min(256) {
            let id = DeviceId(id as u16);
            p.write_u64(self.dte(id) + 16, UNCLAIMED.into_bits());
        }
        self.commands = Ring::alloc(p, 16 << config.command_len)?;
        self.command_head = 0;
        self.events = Ring::alloc(p, EVENT_SIZE << config.event_len)?;
        if self.semaphore == 0 {
            let Some(semaphore) = p.alloc(64, 64) else {
                bail!("no RAM left for the completion word");
            };
            self.semaphore = semaphore;
        }
        Ok(())
    }

    fn start_ga_log<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        self.ga_log = Ring::alloc(p, GA_LOG_BYTES)?;
        let Some(tail) = p.alloc(64, 64) else {
            bail!("no RAM left for the GA log tail");
        };
        let base = self.ga_log.base(GA_LOG_LEN);
        self.write(p, offset::GA_LOG_BASE, base);
        self.write(p, offset::GA_LOG_TAIL_ADDRESS, tail);
        self.write32(p, offset::GA_HEAD, 0);
        self.write32(p, offset::GA_TAIL, 0);
        self.set_control(p, self.control.with_ga_int_en(true).with_ga_log_en(true));
        ensure!(
            wait::until(p, |p| self.status(p).ga_log_run()),
            "GALogRun stays 0 after GALogEn = 1"
        );
        Ok(())
    }

    fn start_ppr_log<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        let len = self.config.ppr_len;
        self.ppr_log = Ring::alloc(p, PPR_LOG_ENTRY_SIZE << len)?;
        let base = self.ppr_log.base(len);
        self.write_base(p, offset::PPR_LOG_BASE, base);
        self.write32(p, offset::PPR_HEAD, 0);
        self.write32(p, offset::PPR_TAIL, 0);
        self.set_control(p, self.control.with_ppr_log_en(true).with_ppr_en(true));
        ensure!(
            wait::until(p, |p| self.status(p).ppr_log_run()),
            "PPRLogRun stays 0 after PPRLogEn = 1"
        );
        Ok(())
    }

    /// Ends the use of all old table contents: INVALIDATE_IOMMU_ALL, or device by device where it is
    /// not offered.
    pub fn flush_everything<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        if self.efr.ia_sup() {
            return self.command(p, InvalidateIommuAll::new());
        }
        for id in 0..self.config.devices.min(256) as u16 {
            self.submit(p, InvalidateDevtabEntry::new().with_device_id(id).into())?;
            self.submit(p, InvalidateInterruptTable::new().with_device_id(id).into())?;
        }
        self.wait(p)
    }

    /// The address of a device's DTE, whether or not the table covers it.
    pub const fn dte(&self, id: DeviceId) -> u64 {
        self.device_table + DTE_SIZE * id.0 as u64
    }

    /// Reads a DTE.
    pub fn read_dte<P: Platform + ?Sized>(&self, p: &P, id: DeviceId) -> Dte {
        let gpa = self.dte(id);
        Dte::from_words([0, 8, 16, 24].map(|n| p.read_u64(gpa + n)))
    }

    /// Writes a DTE and waits until the IOMMU uses it: interrupts and DMA.
    pub fn set_dte<P: Platform + ?Sized>(
        &mut self,
        p: &mut P,
        id: DeviceId,
        dte: &Dte,
    ) -> Result<()> {
        let gpa = self.dte(id);
        let words = dte.words();
        // Upper half first: IV and V of the lower half never see a half-written entry.
        for n in [2, 3, 1, 0] {
            p.write_u64(gpa + 8 * n, words[n as usize]);
        }
        self.submit(p, InvalidateDevtabEntry::new().with_device_id(id.0).into())?;
        self.invalidate_interrupts(p, id)
    }

    /// Changes only the interrupt half of a DTE and waits until the IOMMU uses it.
    pub fn set_interrupts<P: Platform + ?Sized>(
        &mut self,
        p: &mut P,
        id: DeviceId,
        interrupts: DteQ2,
    ) -> Result<()> {
        let mut dte = self.read_dte(p, id);
        dte.q2 = interrupts;
        self.set_dte(p, id, &dte)
    }

    /// INVALIDATE_INTERRUPT_TABLE and its completion.
    pub fn invalidate_interrupts<P: Platform + ?Sized>(
        &mut self,
        p: &mut P,
        id: DeviceId,
    ) -> Result<()> {
        self.command(p, InvalidateInterruptTable::new().with_device_id(id.0))
    }
}
