//! Every way in which DMA through a v1 table is aborted, and the event that tells of it.

use amdvi_regs::DeviceId;
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use amdvi_regs::event::{DevTabHardwareError, Event, InvalidRequestType, IoPageFault};
use amdvi_regs::mmio::{DeviceTableBase, offset};

use super::super::done;
use super::rig::{BOTH, NOWHERE, Rig, illegal, in_case, invalid, table_error};
use super::table::{ADDRESS, ALL, Path, READ, SIZED, Tables, WRITE, entry, leaf, level_shift};
use super::v1::levels;
use super::{
    ABORTED, DONE, ENCODING, LENGTH, NOT_PERMITTED, NOT_PRESENT, RESERVED, aborted, aborted_with,
    fill, invalidate_domain, load_buffer, page_fault, passthrough, pattern,
};
use crate::endpoint::{DMA_BUFFER_SIZE, reg};
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;

/// `dma-faults`.
pub(in crate::scenarios) fn run<P: Platform + ?Sized>(
    p: &mut P,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let levels = levels(&m)?;
    let rig = Rig::new(&mut m)?;
    entries(&mut m, &rig)?;
    encodings(&mut m, &rig)?;
    unreadable(&mut m, &rig)?;
    device_table_entry(&mut m, &rig, levels)?;
    suppressed(&mut m, &rig)?;
    too_wide(&mut m, &rig, levels)?;
    special_addresses(&mut m, &rig)?;
    many_pieces(&mut m, &rig)?;
    device_table(&mut m, &rig)?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "{blocked} accesses aborted, {events} event records compared bit by bit: not present, \
             IR and IW at each level, reserved bits of PDE, PTE and DTE, NextLevel not below, skipped \
             bits, sizes of no level, Mode, TV, width, unreadable tables and device table, DeviceID \
             behind it, SA, SE, MSI window, and one event for a long transfer"
        ),
    )
}

/// Presence, permissions and reserved bits, at each level.
fn entries<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    for level in 1..=3 {
        rig.entry_case(m, "PR=0, level", level, &BOTH, NOT_PRESENT, |e| e & !1)?;
        for (what, bit, denied) in [("IR=0, level", READ, false), ("IW=0, level", WRITE, true)] {
            rig.entry_case(m, what, level, &[denied], NOT_PERMITTED, |e| e & !bit)?;
            let old = rig.change(m, level, |e| e & !bit)?;
            passes(m, rig.at[usize::from(!denied)], !denied).during("the other access")?;
            rig.restore(m, old)?;
        }
        rig.entry_case(m, "IR=IW=0, level", level, &BOTH, NOT_PERMITTED, |e| {
            e & !ALL
        })?;
        let last = if level == 1 { 58 } else { 60 };
        for bit in 52..=last {
            rig.entry_case(m, "reserved bit, level", level, &BOTH, RESERVED, |e| {
                e | 1 << bit
            })?;
        }
        // A reserved bit tells more than a permission that is missing too.
        rig.entry_case(m, "reserved and IR=IW=0", level, &BOTH, RESERVED, |e| {
            e & !ALL | 1 << 52
        })?;
    }
    let old = rig.change(m, 1, |e| e | 3 << 59)?;
    rig.works(m).during("U and FC of a PTE")?;
    rig.restore(m, old)?;
    // Ignored bits.
    for level in 1..=3 {
        let old = rig.change(m, level, |e| e | 1 << 63 | 0x9e)?;
        in_case("ignored bits, level", level, rig.works(m))?;
        rig.restore(m, old)?;
    }
    rig.works(m)
}

/// NextLevel and sizes that may not stand where they do.
fn encodings<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    for level in 1..=3u8 {
        for next in level..=6 {
            rig.entry_case(m, "NextLevel not below", level, &BOTH, ENCODING, |e| {
                e & !(7 << 9) | u64::from(next) << 9
            })?;
        }
        // Sizes of other levels, and what encodes none.
        let (least, most) = (level_shift(level) + 1, level_shift(level) + 8);
        for shift in 13..=52 {
            if (least..=most).contains(&shift) {
                continue;
            }
            let ones = ((1u64 << (shift - 1)) - 1) & ADDRESS;
            rig.entry_case(m, "size of another level", level, &BOTH, ENCODING, |_| {
                entry(ones, SIZED, ALL)
            })?;
        }
        rig.entry_case(m, "size without an end", level, &BOTH, ENCODING, |_| {
            entry(ADDRESS, SIZED, ALL)
        })?;
    }
    // From level 3 to level 1 although the IOVA has an index at level 2.
    let low = rig.tables.table(1);
    rig.entry_case(m, "skipped bits", 3, &BOTH, ENCODING, |_| {
        entry(low, 1, ALL)
    })?;
    rig.works(m)
}

/// Tables where no memory is.
fn unreadable<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    let what = "table outside of RAM, level";
    let nowhere = |iova: u64, level: u8| NOWHERE + super::table::index(iova, level);
    for level in [2, 3] {
        let below = level - 1;
        let old = rig.change(m, level, |_| entry(NOWHERE, u64::from(below), ALL))?;
        let result = rig.both(m, &BOTH, |m, iova, write| {
            Some(table_error(m, nowhere(iova, below), write))
        });
        in_case(what, below, result)?;
        rig.restore(m, old)?;
    }
    // Such an error is no page fault: SA does not hide it.
    for sa in [false, true] {
        let mut dte = rig.dte;
        dte.q0 = dte.q0.with_host_pt_root(NOWHERE >> 12);
        dte.q1 = dte.q1.with_sa(sa);
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &dte)?;
        invalidate_domain(m)?;
        let result = rig.both(m, &BOTH, |m, iova, write| {
            Some(table_error(m, nowhere(iova, 3), write))
        });
        in_case(what, 3, result)?;
    }
    rig.mend(m)
}

/// The lower half of the DTE.
fn device_table_entry<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    rig: &Rig,
    levels: u8,
) -> Result<()> {
    for mode in levels + 1..=7 {
        for sa in [false, true] {
            let mut dte = rig.dte;
            dte.q0 = dte.q0.with_mode(mode);
            dte.q1 = dte.q1.with_sa(sa);
            let result = rig.dte_case(m, "DTE", &dte, |m, iova, write| {
                Some(illegal(m, iova, write, false))
            });
            in_case("Mode", mode, result)?;
        }
    }
    // Bits that are reserved as long as the feature that they belong to is not offered.
    let efr = m.iommu.efr;
    let guest = efr.gt_sup() || efr.gio_sup();
    for bit in (2..=8).chain(52..=60).chain([63]) {
        let defined = match bit {
            4..=6 => true,
            7 | 8 => efr.ha_sup() || efr.hd_sup(),
            52 | 53 => efr.eph_sup(),
            54..=60 => guest,
            _ => false,
        };
        if !defined {
            let mut dte = rig.dte;
            dte.q0 = DteQ0::from_bits(dte.q0.into_bits() | 1 << bit);
            reserved_bit(m, rig, bit, &dte)?;
        }
    }
    if !guest {
        for bit in (16..=31).chain(43..=63) {
            let mut dte = rig.dte;
            dte.q1 = DteQ1::from_bits(dte.q1.into_bits() | 1 << bit);
            reserved_bit(m, rig, 64 + bit, &dte)?;
        }
    }
    let mut dte = rig.dte;
    dte.q0 = dte.q0.with_tv(false);
    rig.dte_case(m, "TV=0", &dte, |m, iova, write| {
        Some(page_fault(m, iova, write, NOT_PRESENT))
    })?;
    dte = rig.dte;
    dte.q0 = dte.q0.with_ir(false).with_iw(false);
    rig.dte_case(m, "IR=IW=0 in the DTE", &dte, |m, iova, write| {
        Some(page_fault(m, iova, write, NOT_PERMITTED))
    })?;
    for write in BOTH {
        let mut dte = rig.dte;
        dte.q0 = dte.q0.with_ir(write).with_iw(!write);
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &dte)?;
        let iova = rig.at[usize::from(write)];
        aborted(m, &rig.pages, iova, write, Some(NOT_PERMITTED)).during("DTE, one permission")?;
        passes(m, rig.at[usize::from(!write)], !write).during("DTE, one permission")?;
    }
    rig.mend(m)
}

fn reserved_bit<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    rig: &Rig,
    bit: u8,
    dte: &Dte,
) -> Result<()> {
    let result = rig.dte_case(m, "DTE", dte, |m, iova, write| {
        Some(illegal(m, iova, write, true))
    });
    in_case("reserved bit", bit, result)
}

/// SA and SE.
fn suppressed<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    let mut dte = rig.dte;
    dte.q1 = dte.q1.with_sa(true);
    let silent = |_: &Machine<'_, P>, _: u64, _: bool| None;
    let mut without = dte;
    without.q0 = without.q0.with_tv(false);
    rig.dte_case(m, "TV=0, SA=1", &without, silent)?;
    without.q0 = dte.q0.with_ir(false).with_iw(false);
    rig.dte_case(m, "IR=IW=0, SA=1", &without, silent)?;
    let id = m.dev.id;
    m.iommu.set_dte(m.p, id, &dte)?;
    for (what, change) in [("PR=0, SA=1", 1), ("reserved, SA=1", 1 << 52)] {
        let old = rig.change(m, 1, |e| e ^ change)?;
        rig.both(m, &BOTH, silent).during(what)?;
        rig.restore(m, old)?;
    }
    rig.works(m).during("SA=1")?;

    dte.q1 = rig.dte.q1.with_se(true);
    for round in 0..2 {
        // Invalidating the DTE makes the next fault the first one again.
        m.iommu.set_dte(m.p, id, &dte)?;
        let old = rig.change(m, 1, |e| e & !1)?;
        let (from, to) = (rig.at[0], rig.at[1]);
        let result = aborted(m, &rig.pages, to, true, Some(NOT_PRESENT))
            .and_then(|()| aborted(m, &rig.pages, to, true, None))
            .and_then(|()| aborted(m, &rig.pages, from, false, None));
        in_case("SE=1, round", round, result)?;
        rig.restore(m, old)?;
    }
    rig.mend(m)
}

/// Addresses that the table of a Mode does not reach.
fn too_wide<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig, levels: u8) -> Result<()> {
    let id = m.dev.id;
    for mode in 1..=levels.min(5) {
        let path = Path::down(mode, 1, 12);
        let iova = path.iova(rig.pages.source);
        rig.tables.map(m, &path, iova, rig.pages.source);
        let mut dte = rig.dte;
        let root = rig.tables.table(mode);
        dte.q0 = dte.q0.with_mode(mode).with_host_pt_root(root >> 12);
        m.iommu.set_dte(m.p, id, &dte)?;
        invalidate_domain(m)?;
        passes(m, iova, false).during("within the width")?;
        let width = level_shift(mode) + 9;
        for bit in [width, 63] {
            for write in BOTH {
                // The same page, but for the bit that no level looks at.
                let wide = iova | 1 << bit;
                let result = aborted(m, &rig.pages, wide, write, Some(NOT_PRESENT));
                in_case("above the width of Mode", mode, result)?;
            }
        }
        rig.tables.unmap(m, &path, iova);
    }
    // Those tables were the rig's own.
    for (iova, gpa) in rig.at.into_iter().zip([rig.pages.source, rig.pages.target]) {
        rig.tables.map(m, &rig.path, iova, gpa);
    }
    invalidate_domain(m)?;
    rig.mend(m)
}

/// Addresses that are no memory to a device, whatever a table says.
fn special_addresses<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    use InvalidRequestType::{
        InterruptRange, PortIo, ReadInInterruptRange, ReservedInterruptRange,
        SystemManagementAddress, SystemManagementWrite,
    };
    // Everything below 1 TiB is mapped.
    let tables = Tables::new(m)?;
    for n in 0..2 {
        let all = leaf(0, 4, level_shift(4), ALL);
        m.p.write_u64(tables.table(4) + 8 * n, all);
    }
    let mut mapped = rig.dte;
    let root = tables.table(4);
    mapped.q0 = mapped.q0.with_mode(4).with_host_pt_root(root >> 12);
    let mut unmapped = mapped;
    unmapped.q0 = DteQ0::new();
    let id = m.dev.id;
    for (what, dte) in [
        ("MSI window, mapped", mapped),
        ("MSI window, Mode 0", passthrough()),
        ("MSI window, V=0", unmapped),
    ] {
        m.iommu.set_dte(m.p, id, &dte)?;
        invalidate_domain(m)?;
        for iova in [0xfee0_0000, 0xfee1_2340, 0xfeef_ffc0] {
            let event = invalid(m, iova, ReadInInterruptRange);
            aborted_with(m, &rig.pages, iova, false, Some(event)).during(what)?;
        }
    }
    if !m.iommu.efr2.ht_range_ignore() {
        m.iommu.set_dte(m.p, id, &mapped)?;
        for (iova, read, write) in [
            (
                0xfd_0000_0000,
                Some(ReservedInterruptRange),
                Some(ReservedInterruptRange),
            ),
            (
                0xfd_f800_0000,
                Some(ReadInInterruptRange),
                Some(InterruptRange),
            ),
            (0xfd_f900_0000, None, None),
            (
                0xfd_f910_0000,
                Some(SystemManagementAddress),
                Some(SystemManagementWrite),
            ),
            (0xfd_f920_0000, None, None),
            (0xfd_fc00_0000, Some(PortIo), Some(PortIo)),
            (0xfd_fe00_0000, None, None),
            (0xfe_0000_0000, None, None),
            (0xfe_2000_0000, None, None),
        ] {
            for (is_write, kind) in [(false, read), (true, write)] {
                let event = match kind {
                    Some(kind) => invalid(m, iova, kind),
                    None => page_fault(m, iova, is_write, NOT_PRESENT),
                };
                aborted_with(m, &rig.pages, iova, is_write, Some(event))
                    .during("HyperTransport range")?;
            }
        }
    }
    invalidate_domain(m)?;
    rig.mend(m)
}

/// One transfer, several pages: what comes before the fault has happened, and there is one event.
fn many_pieces<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    let length = DMA_BUFFER_SIZE;
    let first = u64::from(length) / 2;
    // The second page of the block ends the table: the one behind it is missing.
    let border = (rig.at[0] | 0x1fff) + 1;
    let start = border - first;
    let landing = rig.pages.target + 0x1000 - first;
    for n in 0..first / 8 {
        m.p.write_u64(landing + 8 * n, 0);
    }
    load_buffer(m, length);
    let status = m.dev.dma(m.p, start, length, true);
    ensure!(
        status == ABORTED,
        "a transfer into a missing page had status {status}"
    );
    for n in 0..first / 4 {
        let seen = u64::from(m.p.read_u32(landing + 4 * n));
        ensure!(
            seen == pattern(n) & 0xffff_ffff,
            "word {n} before the missing page is {seen:#x}"
        );
    }
    let event = page_fault(m, border, true, NOT_PRESENT);
    m.expect_event(event).during("second page missing")?;
    m.expect_no_event().during("second page missing")?;
    // All of it missing: the first address, once.
    for write in BOTH {
        fill(m, &rig.pages);
        let status = m.dev.dma(m.p, border + 0x1000 - first, length, write);
        ensure!(status == ABORTED, "missing pages had status {status}");
        let event = page_fault(m, border + 0x1000 - first, write, NOT_PRESENT);
        m.expect_event(event).during("both pages missing")?;
        m.expect_no_event().during("both pages missing")?;
    }
    m.blocked += 3;
    rig.works(m)
}

/// A device table that is too short, or not there.
fn device_table<P: Platform + ?Sized>(m: &mut Machine<'_, P>, rig: &Rig) -> Result<()> {
    let own = m.dev.id;
    // Another DeviceID within the table has a DTE of its own.
    let other = DeviceId(0x80);
    ensure!(other != own, "the endpoint is {own} itself");
    let fault = |device: DeviceId, domain: u16, iova: u64, write: bool| -> Event {
        IoPageFault::new()
            .with_device_id(device.0)
            .with_pasid_domain_id(domain)
            .with_rw(write)
            .with_address(iova)
            .into()
    };
    let mut blocked = passthrough();
    blocked.q0 = blocked.q0.with_tv(false);
    blocked.q1 = blocked.q1.with_domain_id(3);
    m.iommu.set_dte(m.p, other, &blocked)?;
    m.dev.write(m.p, reg::DMA_REQUESTER, u32::from(other.0));
    rig.both(m, &BOTH, |_, iova, write| {
        Some(fault(other, 3, iova, write))
    })
    .during("another function")?;
    let behind = DeviceId(m.iommu.config.devices as u16);
    ensure!(behind.0 != 0, "the device table covers every DeviceID");
    m.dev.write(m.p, reg::DMA_REQUESTER, u32::from(behind.0));
    rig.both(m, &BOTH, |_, iova, write| {
        Some(fault(behind, 0, iova, write))
    })
    .during("DeviceID behind the device table")?;
    m.dev.write(m.p, reg::DMA_REQUESTER, u32::from(own.0));
    rig.works(m).during("the function's own DeviceID again")?;

    let base = DeviceTableBase::new()
        .with_size(1)
        .with_base_page(NOWHERE >> 12);
    let old = m.iommu.read(m.p, offset::DEVICE_TABLE_BASE);
    m.iommu
        .write(m.p, offset::DEVICE_TABLE_BASE, base.into_bits());
    m.iommu.flush_everything(m.p)?;
    let dte = NOWHERE + 32 * u64::from(own.0);
    rig.both(m, &BOTH, |m, _, write| {
        Some(
            DevTabHardwareError::new()
                .with_device_id(m.dev.id.0)
                .with_rw(write)
                .with_kind(1)
                .with_address_16(dte >> 4)
                .into(),
        )
    })
    .during("device table outside of RAM")?;
    m.iommu.write(m.p, offset::DEVICE_TABLE_BASE, old);
    m.iommu.flush_everything(m.p)?;
    rig.works(m).during("the device table mended")
}

/// A transfer that passes without an event.
fn passes<P: Platform + ?Sized>(m: &mut Machine<'_, P>, iova: u64, write: bool) -> Result<()> {
    let status = m.dev.dma(m.p, iova, LENGTH, write);
    ensure!(status == DONE, "DMA at {iova:#x} had status {status}");
    m.expect_no_event()
}
