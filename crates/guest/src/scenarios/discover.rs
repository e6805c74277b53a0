//! ACPI and PCI lead to one IOMMU and agree about it.

use amdvi_regs::DeviceId;
use amdvi_regs::ivrs::IvhdKind;
use amdvi_regs::mmio::{Control, ExtendedFeature2, offset};

use super::done;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::machine::{self, Machine};
use crate::pci::{CLASS_IOMMU, CLASS_ISA, CLASS_SMBUS, MsiCapability, Pci};
use crate::platform::{Platform, Width};
use crate::report::Report;

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let (_, _, base) = machine::find(p)?;
    let control = Control::from_bits(p.mmio_read(base + offset::CONTROL, Width::Qword));
    ensure!(
        !control.iommu_en(),
        "CONTROL is {:#x} before the driver has started: IommuEn must be 0",
        control.into_bits()
    );

    let mut m = Machine::find(p)?;
    firmware_agrees_with_registers(&mut m)?;
    ports_and_ecam_agree(&mut m)?;
    any_width_reads_the_same(&mut m)?;

    let config = Config {
        devices: 65536,
        halves: false,
        ..Config::offered(&m.iommu)
    };
    m.iommu
        .start(m.p, config)
        .during("64-bit register writes")?;
    let config = Config {
        halves: true,
        ..Config::offered(&m.iommu)
    };
    m.iommu
        .start(m.p, config)
        .during("32-bit register writes")?;

    let limit = if m.iommu.efr2.num_int_remap_sup() == ExtendedFeature2::NUM_INT_REMAP_2K {
        2048
    } else {
        512
    };
    let (id, ivhd) = (m.found.iommu, m.found.ivhd);
    let (efr, efr2) = (m.iommu.efr.into_bits(), m.iommu.efr2.into_bits());
    let ioapic = m.found.ioapic.device_id;
    done(
        &m,
        report,
        format_args!(
            "IOMMU {id} at {base:#x} (IVHD {ivhd}, EFR {efr:#x}, EFR2 {efr2:#x}): {limit} \
             interrupts per function; IOAPIC is {ioapic}; ACPI, PCI and registers agree; starts by \
             64-bit and by 32-bit writes"
        ),
    )
}

fn firmware_agrees_with_registers<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let found = m.found;
    let best = match found.ivhd_counts {
        [_, _, n] if n > 0 => IvhdKind::Type40,
        [_, n, _] if n > 0 => IvhdKind::Type11,
        _ => IvhdKind::Type10,
    };
    ensure!(
        found.ivhd == best,
        "IVHD {} is last, though {best} is there: Linux takes the last one",
        found.ivhd
    );
    if let Some((efr, efr2)) = found.images {
        let (mmio, mmio2) = (m.iommu.efr, m.iommu.efr2);
        ensure!(
            found.iv_info.efr_sup(),
            "IVinfo {}: EFRSup is 0, so drivers ignore the EFR image",
            found.iv_info
        );
        ensure!(
            efr == mmio && efr2 == mmio2,
            "the IVHD has EFR {:#x}, EFR2 {:#x}; the registers {:#x}, {:#x}",
            efr.into_bits(),
            efr2.into_bits(),
            mmio.into_bits(),
            mmio2.into_bits()
        );
    }
    let endpoint = m.dev.id;
    let Some(coverage) = machine::coverage(m.p, endpoint)? else {
        bail!("the IVHD does not cover the endpoint {endpoint}");
    };
    ensure!(
        coverage.requester == endpoint,
        "the IVHD gives {endpoint} the alias {}",
        coverage.requester
    );
    // Linux refuses interrupt remapping unless the IOAPIC's DeviceID is one of these.
    let ioapic = found.ioapic.device_id;
    let class = Pci::PORTS.class(m.p, ioapic) >> 8;
    ensure!(
        class == CLASS_SMBUS || class == CLASS_ISA,
        "the IOAPIC's DeviceID {ioapic} is a function of class {class:#06x}, not SMBus or ISA"
    );
    ensure!(
        ioapic == DeviceId::new(0, 0x14, 0),
        "the IOAPIC's DeviceID is {ioapic}; older drivers insist on 00:14.0"
    );
    MsiCapability::find(m.p, m.pci, found.iommu)?;
    Ok(())
}

fn ports_and_ecam_agree<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let scanned = m.pci.find(m.p, |_, class| class == CLASS_IOMMU);
    ensure!(
        scanned == Some(m.found.iommu),
        "a scan finds the IOMMU at {scanned:?}, the IVHD says {}",
        m.found.iommu
    );
    for id in [m.found.iommu, m.dev.id, m.found.ioapic.device_id] {
        for offset in (0..0x80).step_by(4) {
            let ports = Pci::PORTS.dword(m.p, id, offset);
            let ecam = m.pci.dword(m.p, id, offset);
            ensure!(
                ports == ecam,
                "{id} register {offset:#x} is {ports:#x} by CF8/CFC and {ecam:#x} by ECAM"
            );
        }
    }
    Ok(())
}

fn any_width_reads_the_same<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let at = m.iommu.mmio + offset::EXTENDED_FEATURE;
    let whole = m.iommu.efr.into_bits();
    for (width, bytes) in [(Width::Byte, 1), (Width::Word, 2), (Width::Dword, 4)] {
        let mut joined = 0;
        for n in (0..8).step_by(bytes) {
            joined |= m.p.mmio_read(at + n as u64, width) << (8 * n);
        }
        ensure!(
            joined == whole,
            "EFR read {bytes} bytes at a time is {joined:#x}, not {whole:#x}"
        );
    }
    Ok(())
}
