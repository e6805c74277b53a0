//! The device's state as a whole: saved and restored, and reset.

use amdvi_regs::event::IoPageFault;
use amdvi_regs::mmio::{Control, offset};

use super::done;
use super::own::Own;
use super::remap::{ADDRESS, ADDRESS_DM};
use crate::endpoint::vmm;
use crate::failure::{During, Result, ensure};
use crate::iommu::irt::{Irte, LEN_2K, LEN_512};
use crate::iommu::{Config, Iommu};
use crate::machine::Machine;
use crate::pci::MsiCapability;
use crate::platform::Platform;
use crate::report::Report;

/// Registers that hold state, and those that state what is offered.
const REGISTERS: [u64; 24] = [
    offset::DEVICE_TABLE_BASE,
    offset::COMMAND_BUFFER_BASE,
    offset::EVENT_LOG_BASE,
    offset::CONTROL,
    offset::EXCLUSION_BASE,
    offset::EXCLUSION_LIMIT,
    offset::EXTENDED_FEATURE,
    offset::EXTENDED_FEATURE_2,
    offset::GA_LOG_BASE,
    offset::GA_LOG_TAIL_ADDRESS,
    offset::MSI_VECTOR_0,
    offset::MSI_CAPABILITY,
    offset::MSI_ADDRESS_HIGH,
    offset::XT_GENERAL_INTERRUPT,
    offset::XT_PPR_INTERRUPT,
    offset::XT_GA_INTERRUPT,
    offset::COMMAND_HEAD,
    offset::COMMAND_TAIL,
    offset::EVENT_HEAD,
    offset::EVENT_TAIL,
    offset::STATUS,
    offset::GA_HEAD,
    offset::GA_TAIL,
    offset::MSI_MAPPING,
];

fn snapshot<P: Platform + ?Sized>(iommu: &Iommu, p: &mut P) -> [u64; REGISTERS.len()] {
    REGISTERS.map(|register| iommu.read(p, register))
}

/// Entries in use.
const USED: u16 = 96;
/// First of the vectors in use; they end below A0h.
const FIRST: u8 = 0x40;

fn fault<P: Platform + ?Sized>(m: &Machine<'_, P>) -> IoPageFault {
    IoPageFault::new()
        .with_device_id(m.dev.id.0)
        .with_i(true)
        .with_address(ADDRESS)
}

/// `save-restore`.
pub(super) fn save_restore<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let two_k = m.iommu.config.two_k;
    let (len, address) = if two_k {
        (LEN_2K, ADDRESS_DM)
    } else {
        (LEN_512, ADDRESS)
    };
    let irt = m.new_table(len)?;
    let top = irt.entries() - USED;
    let cpus = m.cpus();
    for n in 0..USED {
        let cpu = usize::from(n) % cpus;
        irt.write(m.p, top + n, Irte::fixed(m.apic(cpu), FIRST + n as u8));
    }
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    let deliver = |m: &mut Machine<'_, P>, range: core::ops::Range<u16>| -> Result<()> {
        for n in range {
            let cpu = usize::from(n) % cpus;
            m.delivered(address, u32::from(top + n), cpu, FIRST + n as u8)?;
        }
        Ok(())
    };
    deliver(&mut m, 0..USED / 2)?;

    // State of every kind: a log that is not empty, whose pointers are not 0; status bits; own
    // interrupts programmed both ways; registers that nothing uses yet.
    for _ in 0..3 {
        m.blocked(ADDRESS, 1)?;
    }
    let expected = fault(&m);
    m.expect_event(expected)?;
    let cpu = m.low_cpu()?;
    let own = Own::by_msi(&mut m, cpu, 0xa7)?;
    if m.iommu.config.xt {
        m.iommu
            .write(m.p, offset::XT_GA_INTERRUPT, 0x0000_00a8_0000_0100);
    }
    m.iommu.write(m.p, offset::EXCLUSION_LIMIT, 0x1234_5000);
    let before = snapshot(&m.iommu, m.p);
    let msi = MsiCapability::find(m.p, m.pci, m.found.iommu)?;
    let msi_before = msi.state(m.p);

    m.dev.vmm(m.p, vmm::SAVE_RESTORE)?;

    let after = snapshot(&m.iommu, m.p);
    for (n, register) in REGISTERS.iter().enumerate() {
        ensure!(
            before[n] == after[n],
            "register {register:#x} was {:#x} when saved and is {:#x} when restored",
            before[n],
            after[n]
        );
    }
    let msi_after = msi.state(m.p);
    ensure!(
        msi_before == msi_after,
        "the MSI capability was {msi_before:x?} when saved and is {msi_after:x?} when restored"
    );
    // It goes on without a word from the driver.
    deliver(&mut m, USED / 2..USED).during("after the restore")?;
    for _ in 0..2 {
        let expected = fault(&m);
        m.expect_event(expected).during("events logged before")?;
    }
    m.expect_no_event()?;
    m.iommu.wait(m.p).during("after the restore")?;
    irt.write(m.p, top, Irte::fixed(m.apic(0), 0xa9));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(address, u32::from(top), 0, 0xa9)
        .during("an entry rewritten after the restore")?;
    m.iommu.clear_status(
        m.p,
        amdvi_regs::mmio::Status::new().with_event_log_int(true),
    );
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_event_int_en(true));
    m.dev.raw(m.p, ADDRESS, 1);
    own.one(&mut m).during("own interrupt after the restore")?;
    let expected = fault(&m);
    m.expect_event(expected)?;
    m.blocked += 1;
    done(
        &m,
        report,
        format_args!(
            "{} registers and the MSI capability read the same after restoring into a new device; \
             interrupts, commands, the event log with its unread entries, and own interrupts go on",
            REGISTERS.len()
        ),
    )
}

/// `reset`.
pub(super) fn reset<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let cpu = m.low_cpu()?;
    let irt = m.new_table(LEN_512)?;
    irt.write(m.p, 7, Irte::fixed(m.apic(cpu), 0x68));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(ADDRESS, 7, cpu, 0x68)?;
    m.blocked(ADDRESS, 1)?;
    Own::by_msi(&mut m, cpu, 0x69)?;
    if m.iommu.config.xt {
        Own::by_xt(&mut m, offset::XT_GENERAL_INTERRUPT, cpu, 0x6a)?;
    }
    m.iommu.write(m.p, offset::EXCLUSION_BASE, 0x1234_5003);
    let offered = [m.iommu.efr.into_bits(), m.iommu.efr2.into_bits()];

    m.dev.vmm(m.p, vmm::RESET)?;

    // Ring lengths are 8 after reset, Coherent is 1, all else is 0.
    const RING: u64 = 8 << 56;
    for register in REGISTERS {
        let expected = match register {
            offset::CONTROL => Control::RESET.into_bits(),
            offset::COMMAND_BUFFER_BASE | offset::EVENT_LOG_BASE => RING,
            offset::GA_LOG_BASE if m.iommu.efr.ga_sup() => RING,
            offset::EXTENDED_FEATURE => offered[0],
            offset::EXTENDED_FEATURE_2 => offered[1],
            // What the PCI capability shadows is read there.
            offset::MSI_VECTOR_0
            | offset::MSI_CAPABILITY
            | offset::MSI_ADDRESS_HIGH
            | offset::MSI_MAPPING => continue,
            _ => 0,
        };
        let seen = m.iommu.read(m.p, register);
        ensure!(
            seen == expected,
            "register {register:#x} is {seen:#x} after reset, not {expected:#x}"
        );
    }
    let msi = MsiCapability::find(m.p, m.pci, m.found.iommu)?;
    let state = msi.state(m.p);
    ensure!(
        state == (false, 0, 0),
        "the MSI capability is {state:x?} after reset: disabled and 0 is right"
    );
    // IommuEn = 0: messages pass as they are.
    let address = ADDRESS | u64::from(m.apic(cpu)) << 12;
    m.delivered(address, 0x6b, cpu, 0x6b)
        .during("after reset")?;

    let mut again = Machine::start(m.p, Config::offered).during("after reset")?;
    let irt = again.new_table(LEN_512)?;
    irt.write(again.p, 7, Irte::fixed(again.apic(cpu), 0x6c));
    again.iommu.invalidate_interrupts(again.p, irt.device)?;
    again
        .delivered(ADDRESS, 7, cpu, 0x6c)
        .during("started again after reset")?;
    again.blocked(ADDRESS, 1)?;
    let expected = fault(&again);
    again
        .expect_event(expected)
        .during("started again after reset")?;
    again.expect_no_event()?;
    done(
        &again,
        report,
        format_args!(
            "registers and the MSI capability read their reset values, interrupts pass as they are, \
             and the driver finds and starts the IOMMU again"
        ),
    )
}
