//! The interrupts that the IOMMU itself sends: by PCI MSI, or by the XT interrupt registers.

use amdvi_regs::mmio::{Status, XtInterruptControl, offset};

use super::done;
use super::remap::ADDRESS;
use crate::endpoint::outcome;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::iommu::irt::LEN_512;
use crate::machine::{Machine, fixed, name};
use crate::pci::MsiCapability;
use crate::platform::Platform;
use crate::report::Report;

/// The IOMMU's own interrupt, watched at one CPU and vector.
pub(super) struct Own {
    capability: MsiCapability,
    cpu: usize,
    vector: u8,
    seen: core::cell::Cell<u64>,
}

impl Own {
    /// Programs the PCI MSI capability.
    pub(super) fn by_msi<P: Platform + ?Sized>(
        m: &mut Machine<'_, P>,
        cpu: usize,
        vector: u8,
    ) -> Result<Self> {
        let capability = MsiCapability::find(m.p, m.pci, m.found.iommu)?;
        let address = ADDRESS | u64::from(m.apic(cpu)) << 12;
        capability.enable(m.p, address, u16::from(vector));
        let seen = capability.state(m.p);
        ensure!(
            seen == (true, address, u16::from(vector)),
            "the MSI capability reads {seen:x?} after address {address:#x}, data {vector:#x}"
        );
        Ok(Self {
            capability,
            cpu,
            vector,
            seen: core::cell::Cell::new(m.p.interrupts(cpu, vector)),
        })
    }

    /// Programs an XT interrupt register instead.
    pub(super) fn by_xt<P: Platform + ?Sized>(
        m: &mut Machine<'_, P>,
        register: u64,
        cpu: usize,
        vector: u8,
    ) -> Result<Self> {
        let apic = m.apic(cpu);
        let control = XtInterruptControl::new()
            .with_destination_lo(apic & 0xff_ffff)
            .with_destination_hi((apic >> 24) as u8)
            .with_vector(vector);
        m.iommu.write(m.p, register, control.into_bits());
        let seen = m.iommu.read(m.p, register);
        ensure!(
            seen == control.into_bits(),
            "XT interrupt register {register:#x} reads {seen:#x} after {:#x}",
            control.into_bits()
        );
        Ok(Self {
            capability: MsiCapability::find(m.p, m.pci, m.found.iommu)?,
            cpu,
            vector,
            seen: core::cell::Cell::new(m.p.interrupts(cpu, vector)),
        })
    }

    /// Exactly one interrupt has come since the last check.
    pub(super) fn one<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) -> Result<()> {
        let expected = self.seen.get() + 1;
        m.await_count(self.cpu, self.vector, expected)?;
        self.seen.set(expected);
        m.expect_record(fixed(m.apic(self.cpu), self.vector))?;
        m.delivered += 1;
        Ok(())
    }

    /// No interrupt has come since the last check. The caller has waited for its cause.
    pub(super) fn none<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) -> Result<()> {
        let seen = m.p.interrupts(self.cpu, self.vector);
        ensure!(
            seen == self.seen.get(),
            "CPU {} handled {} interrupts of the IOMMU, expected none",
            self.cpu,
            seen - self.seen.get()
        );
        Ok(())
    }

    /// Disables the MSI capability.
    pub(super) fn off<P: Platform + ?Sized>(&self, m: &mut Machine<'_, P>) {
        self.capability.disable(m.p);
    }
}

/// Causes one event and takes it out of the log. EventLogInt stays as it is.
fn cause_event<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let seen = m.dev.raw(m.p, ADDRESS, 1);
    ensure!(
        seen == outcome::BLOCKED,
        "a message without an entry had outcome {}",
        name(seen)
    );
    m.blocked += 1;
    if m.iommu.next_event(m.p)?.is_none() {
        bail!("a message without an entry was not logged");
    }
    m.events += 1;
    m.expect_no_event()
}

const EVENT_BIT: Status = Status::new().with_event_log_int(true);

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    m.new_table(LEN_512)?;
    let cpu = m.low_cpu()?;
    by_msi(&mut m, cpu).during("by MSI")?;
    let mirrored = if m.iommu.efr.msi_cap_mmio_sup() {
        mirror(&mut m)?;
        "the MMIO mirror agrees"
    } else {
        "there is no MMIO mirror"
    };
    ensure!(
        m.iommu.config.xt,
        "EFR is {:#x}: XTSup and GASup are needed",
        m.iommu.efr.into_bits()
    );
    by_xt(&mut m).during("by XT register")?;
    done(
        &m,
        report,
        format_args!(
            "event interrupts by PCI MSI and by XT register reach their CPU unremapped, once per \
             EventLogInt 0 → 1; none with EventIntEn=0, MSI disabled or the XT register 0; \
             {mirrored}"
        ),
    )
}

fn by_msi<P: Platform + ?Sized>(m: &mut Machine<'_, P>, cpu: usize) -> Result<()> {
    // The IOMMU's own DTE blocks interrupts, which must not matter to it.
    let dte = m.iommu.read_dte(m.p, m.found.iommu).q2;
    ensure!(
        dte.iv() && dte.int_ctl() == 0,
        "the IOMMU's own DTE does not block interrupts"
    );
    let own = Own::by_msi(m, cpu, 0x92)?;
    m.iommu.clear_status(m.p, EVENT_BIT);
    cause_event(m)?;
    ensure!(
        m.iommu.status(m.p).event_log_int(),
        "EventLogInt stays 0 after an event, EventIntEn=0"
    );
    own.none(m).during("EventIntEn=0")?;
    m.iommu.clear_status(m.p, EVENT_BIT);

    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_event_int_en(true));
    for _ in 0..3 {
        cause_event(m)?;
        own.one(m)?;
        cause_event(m)?;
        own.none(m).during("EventLogInt still 1")?;
        m.iommu.clear_status(m.p, EVENT_BIT);
    }
    own.off(m);
    cause_event(m)?;
    own.none(m).during("MSI disabled")?;
    m.iommu.clear_status(m.p, EVENT_BIT);
    m.iommu.set_control(m.p, control);
    Ok(())
}

/// MMIO 0158h–0164h show the MSI capability and write it.
fn mirror<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let capability = MsiCapability::find(m.p, m.pci, m.found.iommu)?;
    capability.enable(m.p, 0x1_fee0_1000, 0xa5);
    let registers = [
        (offset::MSI_CAPABILITY, 1 << 16, 1 << 16),
        (offset::MSI_ADDRESS_LOW, u64::from(u32::MAX), 0xfee0_1000),
        (offset::MSI_ADDRESS_HIGH, u64::from(u32::MAX), 1),
        (offset::MSI_DATA, 0xffff, 0xa5),
    ];
    for (register, mask, expected) in registers {
        let seen = m.iommu.read32(m.p, register) & mask;
        ensure!(
            seen == expected,
            "MMIO {register:#x} mirrors {seen:#x}, the MSI capability has {expected:#x}"
        );
    }
    m.iommu.write32(m.p, offset::MSI_DATA, 0x5a);
    m.iommu.write32(m.p, offset::MSI_CAPABILITY, 0);
    let (enabled, _, data) = capability.state(m.p);
    ensure!(
        !enabled && data == 0x5a,
        "after writes to the MMIO mirror the MSI capability has enable {enabled}, data {data:#x}"
    );
    Ok(())
}

fn by_xt<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    // The MSI capability stays programmed, and must stay silent.
    let near = Own::by_msi(m, 0, 0x93)?;
    let last = m.cpus() - 1;
    let own = Own::by_xt(m, offset::XT_GENERAL_INTERRUPT, last, 0x94)?;
    m.iommu.clear_status(m.p, EVENT_BIT);
    let control = m.iommu.control;
    m.iommu.set_control(
        m.p,
        control.with_int_cap_xt_en(true).with_event_int_en(true),
    );
    for _ in 0..2 {
        cause_event(m)?;
        own.one(m)?;
        near.none(m).during("IntCapXTEn=1")?;
        m.iommu.clear_status(m.p, EVENT_BIT);
    }
    m.iommu.write(m.p, offset::XT_GENERAL_INTERRUPT, 0);
    cause_event(m)?;
    own.none(m).during("XT register 0")?;
    near.none(m).during("XT register 0")?;
    m.iommu.clear_status(m.p, EVENT_BIT);
    m.iommu.set_control(m.p, control);
    near.off(m);
    Ok(())
}
