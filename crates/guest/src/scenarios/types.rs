//! SMI, NMI, INIT and ExtINT: not looked up, but passed or blocked by the DTE.

use amdvi_regs::dte::DteQ2;

use super::done;
use super::remap::ADDRESS;
use crate::endpoint::{Record, outcome};
use crate::failure::{During, Result, ensure};
use crate::iommu::Config;
use crate::iommu::irt::{Irt, Irte, LEN_512};
use crate::machine::{Machine, name};
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

const SMI: u32 = 2;
const NMI: u32 = 4;
const INIT: u32 = 5;
const EXT_INT: u32 = 7;

/// The vector under which NMIs are counted.
const NMI_VECTOR: u8 = 2;

/// Heartbeats that show that a CPU is alive.
const BEATS: u64 = 8;

/// An APIC ID that no CPU has: an SMI would run code that is not there.
const NOBODY: u32 = 0xfd;

/// Sends a message of this type to `dest` and checks that it leaves the IOMMU as it came.
fn passed<P: Platform + ?Sized>(m: &mut Machine<'_, P>, dest: u32, kind: u32) -> Result<()> {
    let address = ADDRESS | u64::from(dest) << 12;
    let seen = m.dev.raw(m.p, address, kind << 8);
    ensure!(
        seen == outcome::DELIVERED,
        "a message of type {kind} had outcome {}, not delivered",
        name(seen)
    );
    m.expect_record(Record {
        dest,
        vector: 0,
        delivery_mode: kind as u8,
        logical: false,
        level: false,
        rq_eoi: false,
    })?;
    m.delivered += 1;
    Ok(())
}

/// Whether the CPU's heart beats: `BEATS` more beats arrive.
fn alive<P: Platform + ?Sized>(m: &mut Machine<'_, P>, cpu: usize) -> bool {
    let beats = m.p.heartbeat(cpu) + BEATS;
    wait::until(m.p, |p| p.heartbeat(cpu) >= beats)
}

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, |iommu| Config {
        two_k: false,
        ..Config::offered(iommu)
    })?;
    let last = m.cpus() - 1;
    ensure!(last > 0, "two CPUs are needed: one is stopped by INIT");
    ensure!(
        m.apic(last) < 255,
        "the last CPU has APIC ID {}: a message that is not remapped cannot reach it",
        m.apic(last)
    );
    let apic = m.apic(last);
    let irt = m.new_table(LEN_512)?;
    let id = m.dev.id;

    // Pass bits off: nothing arrives, nothing is logged.
    let nmis = m.p.interrupts(last, NMI_VECTOR);
    let address = ADDRESS | u64::from(apic) << 12;
    for kind in [NMI, INIT, EXT_INT] {
        m.blocked(address, kind << 8).during("pass bits 0")?;
        m.expect_no_event().during("pass bits 0")?;
    }
    ensure!(alive(&mut m, last), "CPU {last} stopped though InitPass=0");
    ensure!(
        m.p.interrupts(last, NMI_VECTOR) == nmis,
        "an NMI arrived though NMIPass=0"
    );

    // Each bit opens its own type and no other.
    let only = |m: &mut Machine<'_, P>, q2: DteQ2, open: u32| -> Result<()> {
        m.iommu.set_interrupts(m.p, id, q2)?;
        for kind in [NMI, INIT, EXT_INT] {
            if kind != open {
                m.blocked(address, kind << 8)
                    .during("another type's pass bit is 1")?;
            }
        }
        Ok(())
    };
    only(&mut m, irt.dte().with_nmi_pass(true), NMI)?;
    passed(&mut m, apic, NMI).during("NMIPass=1")?;
    m.await_count(last, NMI_VECTOR, nmis + 1)
        .during("NMIPass=1")?;
    only(&mut m, irt.dte().with_eint_pass(true), EXT_INT)?;
    passed(&mut m, NOBODY, EXT_INT).during("EIntPass=1")?;
    passed(&mut m, NOBODY, SMI).during("SMI without a filter")?;

    // IntCtl is for fixed and arbitrated interrupts only.
    m.iommu
        .set_interrupts(m.p, id, irt.dte().with_int_ctl(0).with_nmi_pass(true))?;
    passed(&mut m, apic, NMI).during("NMIPass=1, IntCtl=0")?;
    m.await_count(last, NMI_VECTOR, nmis + 2)
        .during("NMIPass=1, IntCtl=0")?;

    arbitrated(&mut m, &irt)?;

    only(&mut m, irt.dte().with_init_pass(true), INIT)?;
    ensure!(alive(&mut m, last), "CPU {last} stopped before INIT");
    passed(&mut m, apic, INIT).during("InitPass=1")?;
    stops(&mut m, &irt, last)?;
    m.expect_no_event()?;
    done(
        &m,
        report,
        format_args!(
            "NMI counted by CPU {last}'s handler, INIT stops its heart, ExtINT, SMI and arbitrated \
             leave the IOMMU unchanged, each only with its own pass bit and whatever IntCtl says; \
             blocked ones are not logged"
        ),
    )
}

/// IntType 1 in the entry makes the interrupt lowest priority, type 1 in the message does not.
fn arbitrated<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt) -> Result<()> {
    let apic = m.apic(0);
    let fixed = Irte::fixed(apic, 0x63);
    let lowest = Irte {
        int_type: 1,
        vector: 0x64,
        ..fixed
    };
    irt.write(m.p, 0x101, fixed);
    irt.write(m.p, 0x002, lowest);
    m.iommu.set_interrupts(m.p, irt.device, irt.dte())?;
    m.delivered(ADDRESS, 0x101, 0, 0x63)
        .during("message type 1, IntType 0")?;
    let before = m.p.interrupts(0, 0x64);
    m.dev.raw(m.p, ADDRESS, 0x002);
    m.expect_record(Record {
        dest: apic,
        vector: 0x64,
        delivery_mode: 1,
        logical: false,
        level: false,
        rq_eoi: false,
    })
    .during("IntType 1")?;
    m.await_count(0, 0x64, before + 1).during("IntType 1")?;
    m.delivered += 1;
    Ok(())
}

/// Waits until CPU 0's heart has beaten `beats` times without a beat of `cpu`'s.
fn still<P: Platform + ?Sized>(m: &mut Machine<'_, P>, cpu: usize, beats: u64) -> bool {
    let mut last = m.p.heartbeat(cpu);
    let mut since = m.p.heartbeat(0);
    wait::until(m.p, |p| {
        let (now, own) = (p.heartbeat(cpu), p.heartbeat(0));
        if now != last {
            (last, since) = (now, own);
        }
        own - since >= beats
    })
}

/// The CPU waits for a SIPI: its heart does not beat, and it takes no interrupts.
fn stops<P: Platform + ?Sized>(m: &mut Machine<'_, P>, irt: &Irt, cpu: usize) -> Result<()> {
    const VECTOR: u8 = 0x65;
    ensure!(
        still(m, cpu, 30),
        "CPU {cpu} goes on after INIT: its heart has beaten {} times",
        m.p.heartbeat(cpu)
    );
    irt.write(m.p, 3, Irte::fixed(m.apic(cpu), VECTOR));
    m.iommu.invalidate_interrupts(m.p, irt.device)?;
    let before = m.p.interrupts(cpu, VECTOR);
    m.dev.raw(m.p, ADDRESS, 3);
    let quiet = still(m, cpu, 10) && m.p.interrupts(cpu, VECTOR) == before;
    ensure!(quiet, "CPU {cpu} takes interrupts after INIT");
    Ok(())
}
