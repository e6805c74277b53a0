//! Every way in which the interrupt path blocks a request, and the event that tells of it.
//!
//! Also what is *not* a fault: IV=0, IntCtl=1, IommuEn=0.

use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2, DteQ3};
use amdvi_regs::event::{
    DevTabHardwareError, Event, IllegalDevTableEntry, IoPageFault, PageTabHardwareError,
};
use amdvi_regs::mmio::{DeviceTableBase, offset};

use super::done;
use super::ioapic::IoApicDriver;
use super::remap::{ADDRESS, ADDRESS_DM};
use crate::endpoint::Record;
use crate::failure::{During, Failure, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{GuestIrte, Irt, Irte, LEN_512};
use crate::machine::{Machine, fixed};
use crate::platform::Platform;
use crate::report::Report;

/// DomainID of the endpoint's DTE, so that events can be told to carry it.
const DOMAIN: u16 = 0x1234;
/// No RAM stands here: below 2^52, and above what a machine may have.
const NOWHERE: u64 = 1 << 50;
/// Index of an entry that works.
const GOOD: u16 = 5;
/// Index of the entry that a case spoils.
const BAD: u16 = 6;
/// Vector of the good entry.
const VECTOR: u8 = 0x61;

/// What the event log must say.
#[derive(Clone, Copy)]
enum Logged {
    Nothing,
    /// IO_PAGE_FAULT with these flags.
    PageFault {
        pr: bool,
        rz: bool,
    },
    /// ILLEGAL_DEV_TABLE_ENTRY.
    IllegalDte {
        rz: bool,
    },
    /// PAGE_TAB_HARDWARE_ERROR at this address.
    TableError(u64),
}

const BLOCKED_ENTRY: Logged = Logged::PageFault {
    pr: false,
    rz: false,
};
const RESERVED_ENTRY: Logged = Logged::PageFault { pr: true, rz: true };

impl Logged {
    fn event<P: Platform + ?Sized>(self, m: &Machine<'_, P>, address: u64) -> Option<Event> {
        let id = m.dev.id.0;
        match self {
            Self::Nothing => None,
            Self::PageFault { pr, rz } => Some(
                IoPageFault::new()
                    .with_device_id(id)
                    .with_pasid_domain_id(DOMAIN)
                    .with_i(true)
                    .with_pr(pr)
                    .with_rz(rz)
                    .with_address(address)
                    .into(),
            ),
            Self::IllegalDte { rz } => Some(
                IllegalDevTableEntry::new()
                    .with_device_id(id)
                    .with_i(true)
                    .with_rz(rz)
                    .with_address_4(address >> 2)
                    .into(),
            ),
            Self::TableError(gpa) => Some(
                PageTabHardwareError::new()
                    .with_device_id(id)
                    .with_pasid_domain_id(DOMAIN)
                    .with_i(true)
                    .with_kind(1)
                    .with_address_8(gpa >> 3)
                    .into(),
            ),
        }
    }
}

/// The DTE that every case starts from.
fn base(irt: &Irt) -> Dte {
    Dte {
        q0: DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_ir(true)
            .with_iw(true),
        q1: DteQ1::new().with_domain_id(DOMAIN),
        q2: irt.dte(),
        q3: DteQ3::new(),
    }
}

/// One message that must be blocked, and what must be logged; the event log is empty after it.
fn blocked<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    what: &str,
    address: u64,
    data: u32,
    logged: Logged,
) -> Result<()> {
    m.blocked(address, data).during(what)?;
    if let Some(event) = logged.event(m, address) {
        m.expect_event(event).during(what)?;
    }
    m.expect_no_event().during(what)
}

/// A message that leaves as it came.
fn unmapped<P: Platform + ?Sized>(m: &mut Machine<'_, P>, what: &str) -> Result<()> {
    let cpu = m.low_cpu()?;
    let address = ADDRESS | u64::from(m.apic(cpu)) << 12;
    m.delivered(address, 0x62, cpu, 0x62).during(what)?;
    m.expect_no_event().during(what)
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::find(p)?;
    for ga in [false, true] {
        let layout = if ga {
            "128-bit entries"
        } else {
            "32-bit entries"
        };
        m.iommu.start(
            m.p,
            Config {
                ga,
                ..Config::basic()
            },
        )?;
        let irt = m.new_table(LEN_512)?;
        entries(&mut m, &irt).during(layout)?;
        device_table_entry(&mut m, &irt).during(layout)?;
        message_types(&mut m, &irt).during(layout)?;
        not_remapped(&mut m, &irt).during(layout)?;
    }
    device_table(&mut m)?;
    behind_the_device_table(&mut m)?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "{blocked} requests blocked, {events} event records compared bit by bit: RemapEn, \
             IntType, guest mode, index, SupIOPF, IG, IntCtl, IntTabLen, reserved DTE bits, \
             unreadable IRT and device table, DeviceID behind the table, message types; IV=0, \
             IntCtl=1 and IommuEn=0 pass"
        ),
    )
}

/// Faults of the interrupt remapping table and its entries.
fn entries<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    let id = m.dev.id;
    let cpu = m.low_cpu()?;
    let good = Irte::fixed(m.apic(cpu), VECTOR);
    irt.write(m.p, GOOD, good);
    m.iommu.set_dte(m.p, id, &base(irt))?;
    m.delivered(ADDRESS, u32::from(GOOD), cpu, VECTOR)?;

    let off = Irte {
        remap_en: false,
        ..good
    };
    let mut case = |what: &str, irte: Irte, logged: Logged| {
        irt.write(m.p, BAD, irte);
        m.iommu.invalidate_interrupts(m.p, id)?;
        blocked(m, what, ADDRESS, u32::from(BAD), logged)
    };
    case("RemapEn=0", off, BLOCKED_ENTRY)?;
    let quiet = Irte {
        sup_iopf: true,
        ..off
    };
    case("RemapEn=0, SupIOPF=1", quiet, Logged::Nothing)?;
    for int_type in 2..8 {
        let reserved = Irte { int_type, ..good };
        case("reserved IntType", reserved, RESERVED_ENTRY)?;
        let quiet = Irte {
            sup_iopf: true,
            ..reserved
        };
        case("reserved IntType, SupIOPF=1", quiet, Logged::Nothing)?;
    }
    guest_mode_is_off(m, irt)?;

    let above = Logged::PageFault {
        pr: false,
        rz: false,
    };
    // The entries behind the shorter table are valid: only its length keeps them out.
    irt.write(m.p, 8, good);
    irt.write(m.p, irt.entries() - 1, good);
    let mut short = base(irt);
    short.q2 = short.q2.with_int_tab_len(3);
    m.iommu.set_dte(m.p, id, &short)?;
    m.delivered(ADDRESS, u32::from(GOOD), cpu, VECTOR)?;
    blocked(m, "index 8 of 8", ADDRESS, 8, above)?;
    let last = u32::from(irt.entries()) - 1;
    blocked(m, "last index of 512, table of 8", ADDRESS, last, above)?;
    short.q2 = short.q2.with_ig(true);
    m.iommu.set_dte(m.p, id, &short)?;
    blocked(m, "index 8 of 8, IG=1", ADDRESS, 8, Logged::Nothing)?;
    let mut ignoring = base(irt);
    ignoring.q2 = ignoring.q2.with_ig(true);
    irt.write(m.p, BAD, off);
    m.iommu.set_dte(m.p, id, &ignoring)?;
    blocked(
        m,
        "RemapEn=0, IG=1",
        ADDRESS,
        u32::from(BAD),
        Logged::Nothing,
    )?;

    let nowhere = Irt {
        gpa: NOWHERE,
        ..*irt
    };
    m.iommu.set_dte(m.p, id, &base(&nowhere))?;
    let error = Logged::TableError(nowhere.entry(BAD));
    blocked(m, "table outside of RAM", ADDRESS, u32::from(BAD), error)
}

/// A guest-mode entry while GAMEn = 0, or in a table of 32-bit entries, is reserved.
fn guest_mode_is_off<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    if irt.wide {
        let entry = GuestIrte {
            ga_log_intr: false,
            is_run: false,
            dest: 0,
            tag: 1,
            vector: VECTOR,
            backing_page: irt.gpa,
        };
        irt.write_guest(m.p, BAD, entry);
    } else {
        m.p.write_u32(irt.entry(BAD), 0x0061_0081);
    }
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    blocked(m, "GuestMode=1", ADDRESS, u32::from(BAD), RESERVED_ENTRY)
}

/// Faults of the DTE's interrupt half.
fn device_table_entry<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    let id = m.dev.id;
    let index = u32::from(GOOD);
    let mut case = |what: &str, q2: DteQ2, q3: DteQ3, logged: Logged| {
        let dte = Dte {
            q2,
            q3,
            ..base(irt)
        };
        m.iommu.set_dte(m.p, id, &dte)?;
        blocked(m, what, ADDRESS, index, logged)
    };
    let good = irt.dte();
    let none = DteQ3::new();
    case("IntCtl=0", good.with_int_ctl(0), none, Logged::Nothing)?;
    let reserved = Logged::IllegalDte { rz: true };
    case("IntCtl=3", good.with_int_ctl(3), none, reserved)?;
    for len in 12..16 {
        let wrong = Logged::IllegalDte { rz: false };
        case(
            "IntTabLen above 11",
            good.with_int_tab_len(len),
            none,
            wrong,
        )?;
    }
    for bits in 1..4 {
        let q2 = good.with_rsvd_181_180(bits);
        case("reserved DTE[181:180]", q2, none, reserved)?;
    }
    let q3 = DteQ3::new().with_rsvd_206_192(1 << 14);
    case("reserved DTE[206]", good, q3, reserved)?;
    let q3 = DteQ3::new().with_rsvd_244_240(1);
    case("reserved DTE[240]", good, q3, reserved)?;

    // IV decides alone: V=0 leaves interrupts remapped.
    let cpu = m.low_cpu()?;
    let without_v = Dte {
        q2: good,
        ..Dte::default()
    };
    m.iommu.set_dte(m.p, id, &without_v)?;
    m.delivered(ADDRESS, index, cpu, VECTOR)
        .during("V=0, IV=1")?;
    m.iommu.set_dte(m.p, id, &base(irt))?;
    m.delivered(ADDRESS, index, cpu, VECTOR)
        .during("the DTE mended")
}

/// Message types that the table has no say in.
fn message_types<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    m.iommu.set_dte(m.p, m.dev.id, &base(irt))?;
    for (what, kind) in [
        ("NMI, NMIPass=0", 4),
        ("INIT, InitPass=0", 5),
        ("ExtINT, EIntPass=0", 7),
        ("reserved type 3", 3),
        ("reserved type 6", 6),
    ] {
        blocked(m, what, ADDRESS, kind << 8, Logged::Nothing)?;
    }
    let mut passing = base(irt);
    passing.q2 = passing
        .q2
        .with_nmi_pass(true)
        .with_init_pass(true)
        .with_eint_pass(true);
    m.iommu.set_dte(m.p, m.dev.id, &passing)?;
    for (what, kind) in [
        ("SMI, logical destination", 2),
        ("NMI, logical destination", 4),
        ("INIT, logical destination", 5),
        ("ExtINT, logical destination", 7),
    ] {
        blocked(m, what, ADDRESS_DM, kind << 8, Logged::Nothing)?;
    }
    Ok(())
}

/// What passes as it is.
fn not_remapped<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    let id = m.dev.id;
    let mut dte = base(irt);
    dte.q2 = irt.dte().with_int_ctl(1);
    m.iommu.set_dte(m.p, id, &dte)?;
    unmapped(m, "IntCtl=1")?;
    dte.q2 = irt.dte().with_iv(false);
    m.iommu.set_dte(m.p, id, &dte)?;
    unmapped(m, "IV=0")?;
    m.iommu.set_dte(m.p, id, &base(irt))?;
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_iommu_en(false));
    unmapped(m, "IommuEn=0")?;
    m.iommu.set_control(m.p, control);
    let cpu = m.low_cpu()?;
    m.delivered(ADDRESS, u32::from(GOOD), cpu, VECTOR)
        .during("IommuEn 0 → 1")
}

/// A device table that cannot be read. Its base may change while IommuEn = 1: crash kernels do it.
fn device_table<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let what = "device table outside of RAM";
    let base = DeviceTableBase::new()
        .with_size(1)
        .with_base_page(NOWHERE >> 12);
    let old = m.iommu.read(m.p, offset::DEVICE_TABLE_BASE);
    m.iommu
        .write(m.p, offset::DEVICE_TABLE_BASE, base.into_bits());
    let seen = m.iommu.read(m.p, offset::DEVICE_TABLE_BASE);
    ensure!(
        seen == base.into_bits(),
        "device table base reads {seen:#x} after {:#x} was written with IommuEn=1",
        base.into_bits()
    );
    m.iommu.flush_everything(m.p)?;
    let dte = NOWHERE + 32 * u64::from(m.dev.id.0);
    let event = DevTabHardwareError::new()
        .with_device_id(m.dev.id.0)
        .with_i(true)
        .with_kind(1)
        .with_address_16(dte >> 4);
    m.blocked(ADDRESS, u32::from(GOOD)).during(what)?;
    m.expect_event(event).during(what)?;
    m.expect_no_event().during(what)?;
    m.iommu.write(m.p, offset::DEVICE_TABLE_BASE, old);
    m.iommu.flush_everything(m.p)?;
    let cpu = m.low_cpu()?;
    m.delivered(ADDRESS, u32::from(GOOD), cpu, VECTOR)
        .during("the device table mended")
}

/// A requester whose DeviceID is not below the table's size: the IOAPIC, in a table of 128 entries.
fn behind_the_device_table<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let what = "DeviceID behind the device table";
    let id = m.found.ioapic.device_id;
    ensure!(
        id.0 >= 128,
        "the IOAPIC's DeviceID {id} is within the smallest device table"
    );
    let config = Config {
        devices: 128,
        ..Config::basic()
    };
    m.iommu.start(m.p, config)?;
    let ioapic = IoApicDriver::new(m)?;
    m.dev.reset_stats(m.p);
    let pin = ioapic.edge_pin();
    ioapic.program(m, pin, 7, false, false);
    m.dev.pin(m.p, pin, true);
    m.dev.pin(m.p, pin, false);
    ioapic.mask(m, pin);
    let event = IoPageFault::new()
        .with_device_id(id.0)
        .with_i(true)
        .with_address(ADDRESS);
    m.expect_event(event).during(what)?;
    let recorded = m.dev.recorded(m.p);
    if recorded != 0 {
        let seen: Option<Record> = m.dev.last_record(m.p);
        return Err(Failure::new(format_args!(
            "{what}: {recorded} interrupts left the IOMMU, the last {seen:?}"
        )));
    }
    m.blocked += 1;
    // Devices within the table are served as before.
    let irt = m.new_table(LEN_512)?;
    let cpu = m.low_cpu()?;
    irt.write(m.p, GOOD, Irte::fixed(m.apic(cpu), VECTOR));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(ADDRESS, u32::from(GOOD), cpu, VECTOR)?;
    m.expect_record(fixed(m.apic(cpu), VECTOR))
}
