//! Fixed interrupts through the table: 512, 2048, and 32-bit destinations.
//!
//! The reports count the interrupts of the table as a whole, once, and not those of further checks.

use amdvi_regs::command::InvalidateDevtabEntry;
use amdvi_regs::event::IoPageFault;
use amdvi_regs::mmio::Control;

use super::done;
use crate::endpoint::{RECORDS, outcome, reg};
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irt, Irte, LEN_2K, LEN_512};
use crate::machine::{Machine, fixed, name};
use crate::platform::Platform;
use crate::report::Report;

/// MSI address of a remapped interrupt with destination mode 0.
pub(super) const ADDRESS: u64 = 0xfee0_0000;
/// MSI address with DM = 1, as Linux writes it once EFR2 offers 2K.
pub(super) const ADDRESS_DM: u64 = 0xfee0_0004;

/// First vector that interrupts are sent to: above exceptions and what a payload uses itself.
const FIRST_VECTOR: u8 = 0x30;
/// Usable vectors: 30h–EDh.
const VECTORS: usize = 190;
/// Most messages in flight at once.
const BATCH: usize = 512;

/// CPU and vector of entry `n`: any `cpus × VECTORS` neighbours are distinct.
fn target(n: u16, cpus: usize) -> (usize, u8) {
    let n = usize::from(n);
    (n % cpus, FIRST_VECTOR + (n / cpus % VECTORS) as u8)
}

/// Points entry and MSI-X vector n at `target(n)`, for each n below `count`.
fn program<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    count: u16,
    address: u64,
) -> Result<()> {
    let cpus = m.cpus();
    for n in 0..count {
        let (cpu, vector) = target(n, cpus);
        let apic = m.apic(cpu);
        irt.write(m.p, n, Irte::fixed(apic, vector));
        m.dev.msix_entry(m.p, n, address as u32, u32::from(n));
    }
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.dev.msix_enable(m.p, true);
    m.dev.msix_mask_function(m.p, false);
    Ok(())
}

/// Fires `size` neighbours at once and waits until each was handled once, where its entry says.
/// Returns the time from request to the last handler.
fn fire_batch<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    first: u16,
    size: u16,
    compare: bool,
) -> Result<u64> {
    let cpus = m.cpus();
    let mut before = [0; BATCH];
    for n in 0..size {
        let (cpu, vector) = target(first + n, cpus);
        before[usize::from(n)] = m.p.interrupts(cpu, vector);
    }
    let recorded = if compare { m.dev.recorded(m.p) } else { 0 };
    let start = m.p.now_ns();
    m.dev.fire_range(m.p, first, size);
    for n in 0..size {
        let (cpu, vector) = target(first + n, cpus);
        m.await_count(cpu, vector, before[usize::from(n)] + 1)?;
    }
    let took = m.p.now_ns().wrapping_sub(start);
    if compare {
        for n in 0..size {
            let (cpu, vector) = target(first + n, cpus);
            let expected = fixed(m.apic(cpu), vector);
            let seen = m.dev.record(m.p, recorded + u64::from(n));
            ensure!(
                seen == Some(expected),
                "vector {}: {seen:?} left the IOMMU, not {expected:?}",
                first + n
            );
        }
    }
    Ok(took)
}

/// Fires vectors 0 to `count` − 1 and checks that each arrives exactly once at the CPU and vector
/// that its entry names: by the handlers' counters in large batches, then message by message.
/// Returns the time from request to handler in the large batches, summed up.
pub(super) fn every_entry<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    irt: &Irt,
    count: u16,
    address: u64,
) -> Result<u64> {
    program(m, irt, count, address)?;
    m.dev.reset_stats(m.p);
    let handled = m.handled();
    let mut total = 0;
    for (limit, compare) in [(BATCH, false), (RECORDS as usize, true)] {
        let batch = limit.min(m.cpus() * VECTORS) as u16;
        let mut first = 0;
        let mut took = 0;
        while first < count {
            let size = batch.min(count - first);
            took += fire_batch(m, first, size, compare)?;
            first += size;
        }
        if !compare {
            total = took;
        }
    }
    let sent = 2 * u64::from(count);
    let counters = [
        ("left the IOMMU", m.dev.read64(m.p, reg::DELIVERED), sent),
        ("were blocked", m.dev.read64(m.p, reg::BLOCKED), 0),
        ("were recorded", m.dev.recorded(m.p), sent),
        ("were handled", m.handled() - handled, sent),
    ];
    for (what, seen, expected) in counters {
        ensure!(
            seen == expected,
            "{sent} messages were sent: {seen} {what}, not {expected}"
        );
    }
    m.delivered = u64::from(count);
    Ok(total)
}

/// IO_PAGE_FAULT of an index behind the table: the entry was not read, so PR = 0.
fn index_fault<P: Platform + ?Sized>(m: &Machine<'_, P>, address: u64) -> IoPageFault {
    IoPageFault::new()
        .with_device_id(m.dev.id.0)
        .with_i(true)
        .with_address(address)
}

/// Uses a table as one of 2^`len` entries.
fn shorten<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt, len: u8) -> Result<()> {
    m.iommu
        .set_interrupts(m.p, irt.device, irt.dte().with_int_tab_len(len))
}

/// Each command that ends the use of old tables does so alone.
fn flushes<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let id = m.dev.id;
    let apic = m.apic(0);
    let [one, two] = [0x41, 0x42].map(|vector| Irte::fixed(apic, vector));
    let first = m.new_table(LEN_512)?;
    first.write(m.p, 1, one);
    m.iommu.invalidate_interrupts(m.p, id)?;
    m.delivered(ADDRESS, 1, 0, one.vector)?;
    let what = "entry rewritten, everything flushed";
    first.write(m.p, 1, two);
    m.iommu.flush_everything(m.p)?;
    m.delivered(ADDRESS, 1, 0, two.vector).during(what)?;

    let second = Irt::new(m.p, id, LEN_512, first.wide)?;
    second.write(m.p, 1, one);
    let interrupts = m.iommu.dte(id) + 16;
    let what = "another table, INVALIDATE_DEVTAB_ENTRY";
    m.p.write_u64(interrupts, second.dte().into_bits());
    let flush = InvalidateDevtabEntry::new().with_device_id(id.0);
    m.iommu.command(m.p, flush)?;
    m.delivered(ADDRESS, 1, 0, one.vector).during(what)?;

    let what = "DTE made valid, everything flushed";
    m.iommu
        .set_interrupts(m.p, id, first.dte().with_iv(false))?;
    let unmapped = ADDRESS | u64::from(apic & 0xff) << 12;
    m.delivered(unmapped, 0x43, 0, 0x43).during("IV=0")?;
    m.p.write_u64(interrupts, first.dte().into_bits());
    m.iommu.flush_everything(m.p)?;
    m.delivered(ADDRESS, 1, 0, two.vector).during(what)
}

/// The 512 behaviour, whatever the entries' size.
fn five_hundred_twelve<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<u64> {
    let irt = m.new_table(LEN_512)?;
    let total = every_entry(m, &irt, 512, ADDRESS)?;
    // With DM = 1 an index above 511 is no type that may be logical: nothing reads it as an index.
    for data in 512..2048 {
        m.blocked(ADDRESS_DM, data)
            .during("index above 511, DM=1")?;
        m.expect_no_event()?;
    }
    // With DM = 0 they are message types: 512–767 is SMI; the pass bits of the others are 0.
    for data in 768..2048 {
        m.blocked(ADDRESS, data).during("data above 767, DM=0")?;
    }
    m.expect_no_event()?;
    // A longer table changes nothing.
    let long = m.new_table(LEN_2K)?;
    let apic = m.apic(0);
    for n in [511, 512, 1536, 2047] {
        long.write(m.p, n, Irte::fixed(apic, 0x40));
    }
    m.iommu.invalidate_interrupts(m.p, long.device)?;
    m.delivered(ADDRESS, 511, 0, 0x40)?;
    m.delivered(ADDRESS_DM, 511, 0, 0x40)?;
    for data in [512, 1536, 2047] {
        m.blocked(ADDRESS_DM, data)
            .during("IntTabLen=11 without 2K")?;
    }
    m.expect_no_event()?;
    // A shorter length hides the entries behind it, valid as they are, and that is logged.
    shorten(m, &irt, 8)?;
    m.delivered(
        ADDRESS,
        255,
        target(255, m.cpus()).0,
        target(255, m.cpus()).1,
    )?;
    for data in 256..512 {
        m.blocked(ADDRESS, data).during("IntTabLen=8")?;
        let fault = index_fault(m, ADDRESS);
        m.expect_event(fault).during("IntTabLen=8")?;
    }
    Ok(total)
}

/// `intremap-512`.
pub(super) fn plain<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, |iommu| Config {
        two_k: false,
        ..Config::offered(iommu)
    })?;
    report.total_ns = five_hundred_twelve(&mut m)?;
    flushes(&mut m).during("128-bit entries")?;
    m.iommu.start(m.p, Config::basic())?;
    let irt = m.new_table(LEN_512)?;
    every_entry(&mut m, &irt, 512, ADDRESS).during("32-bit entries")?;
    flushes(&mut m).during("32-bit entries")?;
    m.delivered = 512;
    let cpus = m.cpus();
    done(
        &m,
        report,
        format_args!(
            "512 interrupts through tables of 128-bit and of 32-bit entries to {cpus} CPUs, each \
             handled once where its entry says; data above 511 blocked; indexes behind a table of \
             256 blocked and logged; each invalidation command works alone"
        ),
    )
}

/// `intremap-2k`.
pub(super) fn two_k<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    ensure!(
        m.iommu.config.two_k,
        "EFR2 is {:#x}: 2048 interrupts per function are not offered",
        m.iommu.efr2.into_bits()
    );
    let irt = m.new_table(LEN_2K)?;
    report.total_ns = every_entry(&mut m, &irt, 2048, ADDRESS_DM)?;

    // Xen's pattern: DM = 0, in a table of the same length.
    for n in [0, 255, 256, 511] {
        let (cpu, vector) = target(n, m.cpus());
        m.delivered(ADDRESS, u32::from(n), cpu, vector)
            .during("DM=0")?;
    }
    // A shorter length hides the entries behind it, valid as they are. 512 stays possible: Linux's
    // IOAPIC table does in 2K mode.
    for len in [10, LEN_512] {
        let what = if len == LEN_512 {
            "IntTabLen=9 in 2K mode"
        } else {
            "IntTabLen=10 in 2K mode"
        };
        shorten(&mut m, &irt, len)?;
        let entries = 1u16 << len;
        for n in [511, entries - 1] {
            let (cpu, vector) = target(n, m.cpus());
            m.delivered(ADDRESS_DM, u32::from(n), cpu, vector)
                .during(what)?;
        }
        let (cpu, vector) = target(511, m.cpus());
        m.delivered(ADDRESS, 511, cpu, vector).during(what)?;
        let behind = u32::from(entries);
        for data in (behind..2048).step_by(64).chain([behind + 1, 2047]) {
            m.blocked(ADDRESS_DM, data).during(what)?;
            let fault = index_fault(&m, ADDRESS_DM);
            m.expect_event(fault).during(what)?;
        }
    }

    m.iommu.start(
        m.p,
        Config {
            two_k: true,
            ..Config::basic()
        },
    )?;
    let irt = m.new_table(LEN_2K)?;
    program(&mut m, &irt, 2048, ADDRESS_DM)?;
    for n in [0, 511, 512, 1024, 2047] {
        let (cpu, vector) = target(n, m.cpus());
        m.delivered(ADDRESS_DM, u32::from(n), cpu, vector)
            .during("32-bit entries")?;
    }
    m.delivered = 2048;
    let cpus = m.cpus();
    done(
        &m,
        report,
        format_args!(
            "2048 interrupts through one table to {cpus} CPUs, each handled exactly once at the CPU \
             and vector that its entry names; the messages compared one by one in a second pass; \
             DM=0 works below 512; indexes behind shorter tables blocked and logged"
        ),
    )
}

/// `intremap-2k-off`, `host-without-2k`, `legacy-vfio`.
pub(super) fn not_offered<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::find(p)?;
    let image = m.found.images.map(|(_, efr2)| efr2);
    for efr2 in [Some(m.iommu.efr2), image].into_iter().flatten() {
        ensure!(
            efr2.num_int_remap_sup() == 0,
            "EFR2 is {:#x}: NumIntRemapSup is {}, not 0",
            efr2.into_bits(),
            efr2.num_int_remap_sup()
        );
    }
    modes_do_not_stick(&mut m).during("IOMMU off")?;
    let config = Config::offered(&m.iommu);
    m.iommu.start(m.p, config)?;
    modes_do_not_stick(&mut m).during("IOMMU on")?;
    report.total_ns = five_hundred_twelve(&mut m)?;
    m.delivered = 512;
    done(
        &m,
        report,
        format_args!(
            "EFR2[9:8]=0 in the register and in the IVHD; CONTROL[44:43] stays 0 whatever is \
             written; 512 interrupts delivered, data above 511 blocked, IntTabLen=11 or not"
        ),
    )
}

fn modes_do_not_stick<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let control = m.iommu.read_control(m.p);
    for mode in [Control::NUM_INT_REMAP_2K, 2, 3] {
        m.iommu
            .set_control(m.p, control.with_num_int_remap_mode(mode));
        let seen = m.iommu.read_control(m.p);
        ensure!(
            seen == control,
            "CONTROL reads {:#x} after NumIntRemapMode={mode} was written; {:#x} is right",
            seen.into_bits(),
            control.into_bits()
        );
    }
    m.iommu.set_control(m.p, control);
    Ok(())
}

/// `x2apic-dest`.
pub(super) fn x2apic<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    ensure!(
        m.iommu.config.xt,
        "EFR is {:#x}: XTSup and GASup are needed",
        m.iommu.efr.into_bits()
    );
    let far = m.cpus() - 1;
    let id = m.apic(far);
    ensure!(
        id > 255,
        "the last CPU has APIC ID {id}; one above 255 is needed"
    );
    let irt = m.new_table(LEN_512)?;
    report.total_ns = every_entry(&mut m, &irt, 512, ADDRESS)?;
    irt.write(m.p, 0, Irte::fixed(id, 0x50));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(ADDRESS, 0, far, 0x50)?;

    // Destination bits that no CPU has: all 32 bits leave the IOMMU.
    let nobody = 0x8765_4321;
    irt.write(m.p, 1, Irte::fixed(nobody, 0x51));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.dev.raw(m.p, ADDRESS, 1);
    m.expect_record(fixed(nobody, 0x51))?;

    // Without XTEn only eight bits count.
    m.iommu.start(
        m.p,
        Config {
            ga: true,
            ..Config::basic()
        },
    )?;
    let irt = m.new_table(LEN_512)?;
    let near = m.apic(0);
    irt.write(m.p, 0, Irte::fixed(0x100 | near, 0x52));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    m.delivered(ADDRESS, 0, 0, 0x52).during("XTEn=0")?;
    let seen = m.dev.raw(m.p, ADDRESS, 511);
    ensure!(
        seen == outcome::BLOCKED,
        "an entry with RemapEn=0 had outcome {}",
        name(seen)
    );
    m.blocked += 1;
    m.delivered = 512;
    done(
        &m,
        report,
        format_args!(
            "512 interrupts to all CPUs, APIC ID {id} among them, each handled where its entry \
             says; all 32 destination bits leave the IOMMU; without XTEn only eight count"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_distinct_targets() {
        for cpus in 1..=16 {
            let batch = BATCH.min(cpus * VECTORS) as u16;
            for a in 0..batch {
                for b in a + 1..batch {
                    assert_ne!(target(a, cpus), target(b, cpus));
                }
            }
            let (cpu, vector) = target(2047, cpus);
            assert!(cpu < cpus && (0x30..0xee).contains(&vector));
        }
    }
}
