//! IOAPIC pins: the redirection entry is the message, and the table says where it goes.

use super::done;
use super::remap::{ADDRESS, ADDRESS_DM};
use crate::endpoint::Record;
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irte, LEN_512};
use crate::machine::Machine;
use crate::platform::{Platform, Width};
use crate::report::Report;
use crate::wait;

/// Driver of the IOAPIC.
pub(super) struct IoApicDriver {
    base: u64,
    pins: u8,
}

impl IoApicDriver {
    const SELECT: u64 = 0x00;
    const WINDOW: u64 = 0x10;
    const MASKED: u32 = 1 << 16;

    /// Finds it and masks all pins.
    pub(super) fn new<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<Self> {
        let base = m.found.ioapic_registers.address;
        let mut ioapic = Self { base, pins: 0 };
        let version = ioapic.read(m, 1);
        ioapic.pins = (version >> 16) as u8 + 1;
        ensure!(
            (24..=240).contains(&ioapic.pins),
            "IOAPIC version register {version:#x}: {} pins",
            ioapic.pins
        );
        for pin in 0..ioapic.pins {
            ioapic.mask(m, pin);
        }
        Ok(ioapic)
    }

    /// A pin for edge-triggered tests.
    pub(super) fn edge_pin(&self) -> u8 {
        self.pins - 4
    }

    /// A pin for level-triggered tests.
    pub(super) fn level_pin(&self) -> u8 {
        self.pins - 3
    }

    fn read<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, register: u8) -> u32 {
        m.p.mmio_write(self.base + Self::SELECT, Width::Dword, u64::from(register));
        m.p.mmio_read(self.base + Self::WINDOW, Width::Dword) as u32
    }

    fn write<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, register: u8, value: u32) {
        m.p.mmio_write(self.base + Self::SELECT, Width::Dword, u64::from(register));
        m.p.mmio_write(self.base + Self::WINDOW, Width::Dword, u64::from(value));
    }

    /// Masks a pin.
    pub(super) fn mask<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, pin: u8) {
        self.write(m, 0x10 + 2 * pin, Self::MASKED);
    }

    /// Programs a pin for entry `index` of the table and unmasks it: vector = index\[7:0\],
    /// delivery mode = index\[10:8\].
    pub(super) fn program<P: Platform + ?Sized>(
        &self,
        m: &mut Machine<'_, P>,
        pin: u8,
        index: u16,
        logical: bool,
        level: bool,
    ) {
        let entry = u32::from(index & 0x7ff) | u32::from(logical) << 11 | u32::from(level) << 15;
        self.mask(m, pin);
        self.write(m, 0x11 + 2 * pin, 0);
        self.write(m, 0x10 + 2 * pin, entry);
    }

    /// Whether a level-triggered interrupt of the pin waits for its EOI.
    fn remote_irr<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>, pin: u8) -> bool {
        self.read(m, 0x10 + 2 * pin) & 1 << 14 != 0
    }
}

fn record(dest: u32, vector: u8, level: bool) -> Record {
    Record {
        dest,
        vector,
        delivery_mode: 0,
        logical: false,
        level,
        rq_eoi: false,
    }
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let two_k = m.iommu.config.two_k;
    let ioapic = IoApicDriver::new(&mut m)?;
    let id = m.found.ioapic.device_id;
    // Linux leaves the IOAPIC's table at 512 entries even in 2K mode.
    let irt = m.new_table_for(id, LEN_512)?;
    let cpu = m.low_cpu()?;
    let apic = m.apic(cpu);

    // Edge. The index is the pin's number, and one that needs the delivery mode's bits.
    let pin = ioapic.edge_pin();
    for (index, vector) in [(u16::from(pin), 0x71), (0x1a5, 0x72)] {
        irt.write(m.p, index, Irte::fixed(apic, vector));
        m.iommu.invalidate_interrupts(m.p, id)?;
        ioapic.program(&mut m, pin, index, two_k, false);
        for _ in 0..2 {
            let before = m.p.interrupts(cpu, vector);
            m.dev.pin(m.p, pin, true);
            m.await_count(cpu, vector, before + 1).during("edge")?;
            m.expect_record(record(apic, vector, false))
                .during("edge")?;
            m.dev.pin(m.p, pin, false);
            m.delivered += 1;
        }
        ensure!(
            m.p.interrupts(cpu, vector) == 2,
            "two edges of pin {pin} were handled {} times",
            m.p.interrupts(cpu, vector)
        );
    }
    // Linux programs the pin once and moves the interrupt by its entry alone.
    irt.write(m.p, 0x1a5, Irte::fixed(m.apic(0), 0x73));
    m.iommu.invalidate_interrupts(m.p, id)?;
    m.dev.pin(m.p, pin, true);
    m.await_count(0, 0x73, 1).during("entry rewritten")?;
    m.dev.pin(m.p, pin, false);
    m.delivered += 1;
    ioapic.mask(&mut m, pin);

    level(&mut m, &ioapic, two_k, cpu)?;

    // Blocked pins are logged under the IOAPIC's DeviceID.
    m.dev.reset_stats(m.p);
    ioapic.program(&mut m, pin, 9, two_k, false);
    m.dev.pin(m.p, pin, true);
    m.dev.pin(m.p, pin, false);
    ioapic.mask(&mut m, pin);
    let address = if two_k { ADDRESS_DM } else { ADDRESS };
    m.expect_event(
        amdvi_regs::event::IoPageFault::new()
            .with_device_id(id.0)
            .with_i(true)
            .with_address(address),
    )
    .during("RemapEn=0")?;
    ensure!(
        m.dev.recorded(m.p) == 0,
        "an interrupt of a pin whose entry has RemapEn=0 left the IOMMU"
    );
    m.blocked += 1;
    m.expect_no_event()?;
    done(
        &m,
        report,
        format_args!(
            "pins of {id} reach CPU {cpu} through entries that the redirection entry indexes by \
             vector and delivery mode; level stays pending until EOI, fires again while high, and \
             rests when low; an entry rewritten moves the pin; RemapEn=0 is logged"
        ),
    )
}

fn level<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    ioapic: &IoApicDriver,
    two_k: bool,
    cpu: usize,
) -> Result<()> {
    const VECTOR: u8 = 0x78;
    let pin = ioapic.level_pin();
    let id = m.found.ioapic.device_id;
    let irt = m.new_table_for(id, LEN_512)?;
    let apic = m.apic(cpu);
    irt.write(m.p, u16::from(pin), Irte::fixed(apic, VECTOR));
    m.iommu.invalidate_interrupts(m.p, id)?;
    ioapic.program(m, pin, u16::from(pin), two_k, true);
    for round in 0..2 {
        let before = m.p.interrupts(cpu, VECTOR);
        m.dev.pin(m.p, pin, true);
        // The handler's EOI finds the pin still high: it fires again.
        let again = wait::until(m.p, |p| p.interrupts(cpu, VECTOR) >= before + 2);
        let seen = m.p.interrupts(cpu, VECTOR) - before;
        ensure!(
            again,
            "round {round}: a pin that stays high was handled {seen} times; it must fire again after EOI"
        );
        m.expect_record(record(apic, VECTOR, true))
            .during("level")?;
        m.dev.pin(m.p, pin, false);
        let quiet = rests(m, ioapic, pin);
        ensure!(quiet, "round {round}: Remote IRR stays 1 after EOI");
        m.delivered += 1;
    }
    // Everything is handled: low means silent.
    let (handled, recorded) = (m.p.interrupts(cpu, VECTOR), m.dev.recorded(m.p));
    for _ in 0..100 {
        m.p.pause();
        let now = (m.p.interrupts(cpu, VECTOR), m.dev.recorded(m.p));
        ensure!(
            now == (handled, recorded),
            "a pin that is low goes on firing: {} handled and {} sent, then {} and {}",
            handled,
            recorded,
            now.0,
            now.1
        );
    }
    ioapic.mask(m, pin);
    Ok(())
}

/// Waits until no interrupt of the pin waits for its EOI.
fn rests<P: Platform + ?Sized>(m: &mut Machine<'_, P>, ioapic: &IoApicDriver, pin: u8) -> bool {
    let start = m.p.now_ns();
    loop {
        if !ioapic.remote_irr(m, pin) {
            return true;
        }
        m.p.pause();
        if m.p.now_ns().wrapping_sub(start) > wait::PATIENCE_NS {
            return false;
        }
    }
}
