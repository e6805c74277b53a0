//! The machine as the driver finds it, and the checks that scenarios share.

use amdvi_regs::DeviceId;
use amdvi_regs::event::Event;
use amdvi_regs::ivrs::{IvInfo, IvhdKind, Ivrs, SpecialVariety};
use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};

use crate::acpi::{Ecam, IoApic, Xsdt};
use crate::endpoint::{Record, outcome};
use crate::failure::{Result, bail, ensure};
use crate::iommu::irt::Irt;
use crate::iommu::{Config, Iommu};
use crate::ivrs::{self, Coverage, Special};
use crate::pci::{CAP_IOMMU, CLASS_IOMMU, Pci};
use crate::platform::Platform;
use crate::testdev::TestDevice;
use crate::wait;

/// Longest IVRS that is read.
const MAX_IVRS: usize = 2048;
/// Where the first IOAPIC stands on a machine that has no MADT.
const DEFAULT_IOAPIC: IoApic = IoApic {
    id: 0,
    address: 0xfec0_0000,
};

/// What the tables say about the IOMMU.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// IVHD type that was chosen.
    pub ivhd: IvhdKind,
    /// IVHD blocks of types 10h, 11h and 40h.
    pub ivhd_counts: [u32; 3],
    /// IVinfo.
    pub iv_info: IvInfo,
    /// EFR and EFR2 images of the IVHD; blocks of type 10h have none.
    pub images: Option<(ExtendedFeature, ExtendedFeature2)>,
    /// DeviceID of the IOMMU.
    pub iommu: DeviceId,
    /// Offset of its capability block.
    pub capability: u16,
    /// The IOAPIC as the IVRS knows it.
    pub ioapic: Special,
    /// Its registers.
    pub ioapic_registers: IoApic,
}

/// The machine: platform, IOMMU and test endpoint.
pub struct Machine<'a, P: Platform + ?Sized> {
    /// What the driver runs on.
    pub p: &'a mut P,
    /// What the firmware's tables said.
    pub found: Found,
    /// Configuration space.
    pub pci: Pci,
    /// The IOMMU.
    pub iommu: Iommu,
    /// The test endpoint.
    pub dev: TestDevice,
    /// Events that were taken out of the log.
    pub events: u64,
    /// Requests that were blocked as they had to be.
    pub blocked: u64,
    /// Interrupts that arrived where they had to.
    pub delivered: u64,
    /// Operations of DMA channels so far: each moves data of its own.
    pub operations: u64,
}

/// Looks the IOMMU up in ACPI and in PCI; both must agree.
pub fn find<P: Platform + ?Sized>(p: &mut P) -> Result<(Found, Pci, u64)> {
    let xsdt = Xsdt::find(p)?;
    let Some(table) = xsdt.table(p, b"IVRS")? else {
        bail!("the XSDT lists no IVRS: there is no AMD IOMMU");
    };
    let mut bytes = [0; MAX_IVRS];
    let table = Ivrs::parse(table.copy(p, &mut bytes)?)?;
    let (ivhd_counts, block) = ivrs::first_iommu(&table)?;
    let ivhd = block.header;
    ensure!(
        ivhd.segment.0 == 0,
        "the IOMMU is in PCI segment {}, only 0 can be reached",
        ivhd.segment
    );
    let Some(ioapic) = ivrs::special(&block, SpecialVariety::IoApic)? else {
        bail!("the IVHD names no DeviceID for the IOAPIC");
    };
    let ecam = match xsdt.table(p, b"MCFG")? {
        Some(mcfg) => Some(Ecam::from_mcfg(p, &mcfg)?),
        None => None,
    };
    let madt = match xsdt.table(p, b"APIC")? {
        Some(madt) => IoApic::from_madt(p, &madt)?,
        None => None,
    };
    let found = Found {
        ivhd: ivhd.kind,
        ivhd_counts,
        iv_info: table.header().iv_info,
        images: (ivhd.kind != IvhdKind::Type10).then_some((ivhd.efr, ivhd.efr2)),
        iommu: ivhd.device_id,
        capability: ivhd.capability_offset,
        ioapic,
        ioapic_registers: madt.unwrap_or(DEFAULT_IOAPIC),
    };

    let pci = Pci { ecam };
    let id = found.iommu;
    let class = pci.class(p, id);
    ensure!(
        class == CLASS_IOMMU,
        "the IVHD says that {id} is the IOMMU, but its class is {class:#08x}, not {CLASS_IOMMU:#08x}"
    );
    let Some(capability) = pci.capability(p, id, CAP_IOMMU) else {
        bail!("{id} has no IOMMU capability block (ID 0Fh)");
    };
    ensure!(
        capability == found.capability,
        "the IOMMU capability block stands at {capability:#x}; the IVHD says {:#x}",
        found.capability
    );
    let header = pci.dword(p, id, capability);
    ensure!(
        header >> 16 & 7 == 3,
        "capability block header {header:#x}: type {}, an IOMMU has 3",
        header >> 16 & 7
    );
    let low = pci.dword(p, id, capability + 4);
    let high = pci.dword(p, id, capability + 8);
    let base = u64::from(low & 0xffff_c000) | u64::from(high) << 32;
    ensure!(
        low & 1 == 1,
        "capability block: MMIO base {low:#x} is not enabled"
    );
    ensure!(
        base == ivhd.mmio_base,
        "capability block: MMIO base {base:#x}; the IVHD says {:#x}",
        ivhd.mmio_base
    );
    Ok((found, pci, base))
}

impl<'a, P: Platform + ?Sized> Machine<'a, P> {
    /// Finds everything; the IOMMU is left off.
    pub fn find(p: &'a mut P) -> Result<Self> {
        let (found, pci, base) = find(p)?;
        let iommu = Iommu::new(p, base);
        let dev = TestDevice::find(p, pci)?;
        dev.reset_stats(p);
        Ok(Self {
            p,
            found,
            pci,
            iommu,
            dev,
            events: 0,
            blocked: 0,
            delivered: 0,
            operations: 0,
        })
    }

    /// Finds everything and brings the IOMMU up.
    pub fn start(p: &'a mut P, config: impl FnOnce(&Iommu) -> Config) -> Result<Self> {
        let mut machine = Self::find(p)?;
        let config = config(&machine.iommu);
        machine.iommu.start(machine.p, config)?;
        Ok(machine)
    }

    /// Whether functions may have TLBs of their own (IotlbSup in the IOMMU's capability block).
    pub fn has_ats(&mut self) -> bool {
        let header = self
            .pci
            .dword(self.p, self.found.iommu, self.found.capability);
        header >> 24 & 1 == 1
    }

    /// Number of CPUs.
    pub fn cpus(&self) -> usize {
        self.p.apic_ids().len()
    }

    /// The x2APIC ID of a CPU.
    pub fn apic(&self, cpu: usize) -> u32 {
        self.p.apic_ids()[cpu]
    }

    /// A CPU whose APIC ID fits 8 bits, as a 32-bit IRTE needs; the last such one, so that it is
    /// not CPU 0 if there is a choice.
    pub fn low_cpu(&self) -> Result<usize> {
        match self.p.apic_ids().iter().rposition(|&id| id < 255) {
            Some(cpu) => Ok(cpu),
            None => bail!("every CPU has an APIC ID above 254"),
        }
    }

    /// A new interrupt remapping table for the endpoint, in use.
    pub fn new_table(&mut self, len: u8) -> Result<Irt> {
        self.new_table_for(self.dev.id, len)
    }

    /// A new interrupt remapping table for a device, in use.
    pub fn new_table_for(&mut self, id: DeviceId, len: u8) -> Result<Irt> {
        let irt = Irt::new(self.p, id, len, self.iommu.config.ga)?;
        self.iommu.set_interrupts(self.p, id, irt.dte())?;
        Ok(irt)
    }

    /// How often all CPUs together have handled anything.
    pub fn handled(&self) -> u64 {
        let mut sum = 0;
        for cpu in 0..self.cpus() {
            for vector in 0..=255 {
                sum += self.p.interrupts(cpu, vector);
            }
        }
        sum
    }

    /// Waits until CPU `cpu` has handled `vector` `count` times since start.
    pub fn await_count(&mut self, cpu: usize, vector: u8, count: u64) -> Result<()> {
        if !wait::until(self.p, |p| p.interrupts(cpu, vector) >= count) {
            bail!(
                "CPU {cpu} has handled vector {vector:#x} {} times, not {count}",
                self.p.interrupts(cpu, vector)
            );
        }
        let seen = self.p.interrupts(cpu, vector);
        ensure!(
            seen == count,
            "CPU {cpu} has handled vector {vector:#x} {seen} times, not {count}"
        );
        Ok(())
    }

    /// Checks the newest recorded interrupt.
    pub fn expect_record(&mut self, expected: Record) -> Result<()> {
        match self.dev.last_record(self.p) {
            Some(seen) if seen == expected => Ok(()),
            Some(seen) => bail!("{seen:?} left the IOMMU instead of {expected:?}"),
            None => bail!("no interrupt left the IOMMU; expected {expected:?}"),
        }
    }

    /// Sends a raw message that must reach CPU `cpu` as a fixed, edge-triggered `vector`.
    pub fn delivered(&mut self, address: u64, data: u32, cpu: usize, vector: u8) -> Result<()> {
        let before = self.p.interrupts(cpu, vector);
        let recorded = self.dev.recorded(self.p);
        let seen = self.dev.raw(self.p, address, data);
        ensure!(
            seen == outcome::DELIVERED,
            "message {address:#x}/{data:#x} had outcome {}, not delivered",
            name(seen)
        );
        let now = self.dev.recorded(self.p);
        ensure!(
            now == recorded + 1,
            "message {address:#x}/{data:#x} caused {} interrupts",
            now.wrapping_sub(recorded)
        );
        self.expect_record(fixed(self.apic(cpu), vector))?;
        self.await_count(cpu, vector, before + 1)?;
        self.delivered += 1;
        Ok(())
    }

    /// Sends a raw message that must be blocked: a target abort, and no interrupt anywhere.
    pub fn blocked(&mut self, address: u64, data: u32) -> Result<()> {
        let recorded = self.dev.recorded(self.p);
        let seen = self.dev.raw(self.p, address, data);
        ensure!(
            seen == outcome::BLOCKED,
            "message {address:#x}/{data:#x} had outcome {}, not blocked",
            name(seen)
        );
        let now = self.dev.recorded(self.p);
        ensure!(
            now == recorded,
            "message {address:#x}/{data:#x} was blocked, yet {} interrupts left the IOMMU",
            now.wrapping_sub(recorded)
        );
        self.blocked += 1;
        Ok(())
    }

    /// The oldest event in the log must be this one, bit by bit.
    pub fn expect_event(&mut self, expected: impl Into<Event>) -> Result<()> {
        let expected = expected.into();
        match self.iommu.next_event(self.p)? {
            Some(seen) if seen == expected => {
                self.events += 1;
                Ok(())
            }
            Some(seen) => {
                let ([a, b], [c, d]) = (seen.words(), expected.words());
                bail!("event {a:#018x} {b:#018x} was logged, expected {c:#018x} {d:#018x}")
            }
            None => {
                let [c, d] = expected.words();
                bail!("no event was logged, expected {c:#018x} {d:#018x}")
            }
        }
    }

    /// The event log must be empty.
    pub fn expect_no_event(&mut self) -> Result<()> {
        match self.iommu.next_event(self.p)? {
            None => Ok(()),
            Some(seen) => {
                let [a, b] = seen.words();
                bail!("event {a:#018x} {b:#018x} was logged, expected none")
            }
        }
    }
}

/// The record of a fixed, edge-triggered interrupt with physical destination.
pub const fn fixed(dest: u32, vector: u8) -> Record {
    Record {
        dest,
        vector,
        delivery_mode: 0,
        logical: false,
        level: false,
        rq_eoi: false,
    }
}

/// An outcome in words.
pub const fn name(value: u32) -> &'static str {
    match value {
        outcome::NONE => "none",
        outcome::DELIVERED => "delivered",
        outcome::BLOCKED => "blocked",
        outcome::MASKED => "masked",
        outcome::POSTED => "posted",
        _ => "unknown",
    }
}

/// What the IVRS says about requests of `device`.
pub fn coverage<P: Platform + ?Sized>(p: &P, device: DeviceId) -> Result<Option<Coverage>> {
    let Some(table) = Xsdt::find(p)?.table(p, b"IVRS")? else {
        bail!("the XSDT lists no IVRS: there is no AMD IOMMU");
    };
    let mut bytes = [0; MAX_IVRS];
    let table = Ivrs::parse(table.copy(p, &mut bytes)?)?;
    let (_, block) = ivrs::first_iommu(&table)?;
    ivrs::coverage(&block, device)
}
