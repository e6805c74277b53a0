//! Guest virtual APIC (48882 §2.2.5.3): interrupts that no CPU of this machine takes.

use amdvi_regs::log::GaLogEntry;
use amdvi_regs::mmio::{Status, offset};

use super::done;
use super::own::Own;
use super::remap::ADDRESS;
use crate::endpoint::outcome;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{GuestIrte, Irt, Irte, LEN_512};
use crate::machine::{Machine, name};
use crate::platform::Platform;
use crate::report::Report;

/// Offset of the IRR in a virtual APIC page: 32 vectors every 16 bytes.
const IRR: u64 = 0x200;

fn irr_bit<P: Platform + ?Sized>(p: &P, page: u64, vector: u8) -> bool {
    p.read_u32(page + IRR + u64::from(vector / 32) * 16) >> (vector % 32) & 1 == 1
}

/// Vectors whose IRR bit is set.
fn irr_count<P: Platform + ?Sized>(p: &P, page: u64) -> u32 {
    let mut count = 0;
    for vector in 0..=255 {
        count += u32::from(irr_bit(p, page, vector));
    }
    count
}

/// Sends entry `index`'s message, which must be posted and reach no CPU.
fn post<P: Platform + ?Sized>(m: &mut Machine<'_, P>, index: u32) -> Result<()> {
    let handled = m.handled();
    let seen = m.dev.raw(m.p, ADDRESS, index);
    ensure!(
        seen == outcome::POSTED,
        "a message through a guest-mode entry had outcome {}, not posted",
        name(seen)
    );
    let now = m.handled();
    ensure!(
        now == handled,
        "a message through a guest-mode entry was handled by a CPU of this machine"
    );
    m.delivered += 1;
    Ok(())
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::find(p)?;
    ensure!(
        m.iommu.efr.gam_sup() == 1 && m.iommu.efr.ga_sup(),
        "EFR is {:#x}: GASup=1 and GAMSup=1 are needed",
        m.iommu.efr.into_bits()
    );
    let config = Config {
        guest_apic: true,
        ..Config::offered(&m.iommu)
    };
    m.iommu.start(m.p, config)?;
    let irt = m.new_table(LEN_512)?;
    let Some(page) = m.p.alloc(4096, 4096) else {
        bail!("no RAM left for a virtual APIC page");
    };
    let base = GuestIrte {
        ga_log_intr: true,
        is_run: false,
        dest: m.apic(0),
        tag: 0xcafe_0001,
        vector: 0x51,
        backing_page: page,
    };
    not_running(&mut m, &irt, base)?;
    without_log(&mut m, &irt, base)?;
    log_interrupt(&mut m, &irt, base)?;

    // A host-mode entry beside it works as ever.
    let cpu = m.low_cpu()?;
    irt.write(m.p, 4, Irte::fixed(m.apic(cpu), 0x66));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(ADDRESS, 4, cpu, 0x66)
        .during("host-mode entry")?;
    m.expect_no_event()?;
    done(
        &m,
        report,
        format_args!(
            "posted interrupts set their IRR bit in the backing page and nothing else; with \
             IsRun=0 and GALogIntr=1 the GA log names tag and device, GAInt is set and interrupts \
             if enabled; IsRun=1 or GALogIntr=0 logs nothing; a new IsRun or tag counts at once"
        ),
    )
}

fn expect_log<P: Platform + ?Sized>(m: &mut Machine<'_, P>, tag: u32) -> Result<()> {
    let expected = GaLogEntry::new()
        .with_ga_tag(tag)
        .with_device_id(m.dev.id.0)
        .with_code(GaLogEntry::GUEST_NR);
    match m.iommu.next_ga_entry(m.p)? {
        Some(seen) if seen == expected => {
            m.events += 1;
            Ok(())
        }
        Some(seen) => bail!(
            "the GA log says {:#x}, not {:#x}",
            seen.into_bits(),
            expected.into_bits()
        ),
        None => bail!("the GA log is empty, expected {:#x}", expected.into_bits()),
    }
}

fn expect_no_log<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    match m.iommu.next_ga_entry(m.p)? {
        None => Ok(()),
        Some(seen) => bail!("the GA log says {:#x}, expected nothing", seen.into_bits()),
    }
}

fn not_running<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    base: GuestIrte,
) -> Result<()> {
    irt.write_guest(m.p, 1, base);
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    post(m, 1)?;
    let page = base.backing_page;
    ensure!(
        irr_bit(m.p, page, base.vector) && irr_count(m.p, page) == 1,
        "{} IRR bits are set, vector {:#x} among them: {}",
        irr_count(m.p, page),
        base.vector,
        irr_bit(m.p, page, base.vector)
    );
    expect_log(m, base.tag).during("IsRun=0")?;
    ensure!(
        m.iommu.status(m.p).ga_int(),
        "GAInt stays 0 after a GA log entry"
    );
    // The highest and the lowest vector of the IRR's words.
    for (index, vector) in [(2, 0xff), (3, 0x20)] {
        let entry = GuestIrte {
            vector,
            tag: u32::from(vector),
            ..base
        };
        irt.write_guest(m.p, index, entry);
        m.iommu.invalidate_interrupts(m.p, irt.device)?;
        post(m, u32::from(index))?;
        ensure!(
            irr_bit(m.p, page, vector),
            "the IRR bit of vector {vector:#x} stays 0"
        );
        expect_log(m, u32::from(vector))?;
    }
    expect_no_log(m)
}

fn without_log<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    base: GuestIrte,
) -> Result<()> {
    for (what, ga_log_intr, is_run, vector) in [
        ("IsRun=1", true, true, 0x52),
        ("GALogIntr=0", false, false, 0x53),
    ] {
        // Software changes IsRun and the tag without an invalidation.
        let entry = GuestIrte {
            ga_log_intr,
            is_run,
            vector,
            ..base
        };
        irt.write_guest(m.p, 1, entry);
        post(m, 1).during(what)?;
        ensure!(
            irr_bit(m.p, base.backing_page, vector),
            "{what}: the IRR bit of vector {vector:#x} stays 0"
        );
        expect_no_log(m).during(what)?;
    }
    let stopped = GuestIrte {
        tag: 0xcafe_0002,
        ..base
    };
    irt.write_guest(m.p, 1, stopped);
    post(m, 1)?;
    expect_log(m, stopped.tag).during("IsRun 1 → 0")
}

fn log_interrupt<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    base: GuestIrte,
) -> Result<()> {
    let bit = Status::new().with_ga_int(true);
    irt.write_guest(m.p, 1, base);
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    // Its own interrupt: by the XT register if there is one, as Linux does, else by MSI.
    let last = m.cpus() - 1;
    let own = if m.iommu.config.xt {
        let control = m.iommu.control.with_int_cap_xt_en(true);
        m.iommu.set_control(m.p, control);
        Own::by_xt(m, offset::XT_GA_INTERRUPT, last, 0x96)?
    } else {
        let cpu = m.low_cpu()?;
        Own::by_msi(m, cpu, 0x96)?
    };
    for _ in 0..2 {
        m.iommu.clear_status(m.p, bit);
        let seen = m.dev.raw(m.p, ADDRESS, 1);
        ensure!(
            seen == outcome::POSTED,
            "outcome {}, not posted",
            name(seen)
        );
        own.one(m).during("GA log interrupt")?;
        expect_log(m, base.tag)?;
    }
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_ga_int_en(false));
    m.iommu.clear_status(m.p, bit);
    m.dev.raw(m.p, ADDRESS, 1);
    expect_log(m, base.tag).during("GAIntEn=0")?;
    own.none(m).during("GAIntEn=0")?;
    m.iommu.clear_status(m.p, bit);
    m.iommu.set_control(m.p, control);
    Ok(())
}
