//! A scenario without an IOMMU: does the machine itself deliver interrupts?
//!
//! It runs before a VMM's devices exist, and tells a broken machine (or a host whose KVM can't run
//! the payload) from a broken IOMMU. The VMM offers one device of two registers at [`BASE`].

use core::fmt::Write;

use crate::endpoint::Record;
use crate::platform::{Platform, Width};
use crate::report::Report;

/// Its name in [`BootInfo::scenario`](crate::boot::BootInfo::scenario). No name of
/// [`scenarios::ALL`](crate::scenarios::ALL) begins like those of this module.
pub const SCENARIO: &str = "smoke";
/// The name that makes the payload panic, for a test of how that is told.
pub const PANIC: &str = "smoke-panic";
/// The name that makes the payload run an undefined instruction, likewise.
pub const EXCEPTION: &str = "smoke-exception";
/// GPA of the device.
pub const BASE: u64 = 0xe000_0000;
/// W, 64 bits: sends the interrupt that a [`Record`] describes.
pub const SEND: u64 = 0;
/// RO, 32 bits: EOIs of level-triggered interrupts that reached the VMM.
pub const EOIS: u64 = 8;

/// Vectors that are sent to each CPU.
pub const VECTORS: core::ops::Range<u8> = 0x20..0xe8;
/// NMIs that are sent to each CPU.
pub const NMIS: u64 = 3;

/// Vector of the level-triggered interrupt, which the last CPU gets.
pub const LEVEL_VECTOR: u8 = VECTORS.end;
/// Vector of an interrupt to each CPU's logical destination.
pub const LOGICAL_VECTOR: u8 = VECTORS.end + 1;
/// Vector of a lowest-priority interrupt to each CPU.
pub const LOWEST_PRIORITY_VECTOR: u8 = VECTORS.end + 2;

/// How long anything may take.
const PATIENCE_NS: u64 = 5_000_000_000;
const FIXED: u8 = 0;
const LOWEST_PRIORITY: u8 = 1;
const NMI: u8 = 4;
const INIT: u8 = 5;
const NMI_VECTOR: u8 = 2;

/// Sends every kind of interrupt that a device can send to every CPU, and counts what arrives where.
pub fn run<P: Platform + ?Sized>(p: &mut P) -> Report {
    let mut report = Report::new();
    let result = send_all(p, &mut report);
    report.passed = u64::from(result.is_ok());
    if let Err(why) = result {
        let _ = report.write_str(why);
    }
    report.magic = Report::MAGIC;
    report
}

fn send_all<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<(), &'static str> {
    let cpus = p.apic_ids().len();
    for cpu in 0..cpus {
        let dest = p.apic_ids()[cpu];
        for vector in VECTORS {
            report.total_ns += send(p, cpu, vector, fixed(dest, vector))?;
            report.delivered += 1;
        }
        let nmi = Record {
            delivery_mode: NMI,
            ..fixed(dest, 0)
        };
        for _ in 0..NMIS {
            send(p, cpu, NMI_VECTOR, nmi)?;
        }
        let logical = Record {
            logical: true,
            ..fixed(logical_id(dest), LOGICAL_VECTOR)
        };
        send(p, cpu, LOGICAL_VECTOR, logical)?;
        let lowest = Record {
            delivery_mode: LOWEST_PRIORITY,
            ..fixed(dest, LOWEST_PRIORITY_VECTOR)
        };
        send(p, cpu, LOWEST_PRIORITY_VECTOR, lowest)?;
        report.delivered += NMIS + 2;
    }

    let last = cpus - 1;
    let level = Record {
        level: true,
        ..fixed(p.apic_ids()[last], LEVEL_VECTOR)
    };
    send(p, last, LEVEL_VECTOR, level)?;
    report.delivered += 1;
    wait(p, |p| p.mmio_read(BASE + EOIS, Width::Dword) == 1)
        .map_err(|()| "the EOI of a level-triggered interrupt did not reach the VMM")?;

    for cpu in 0..cpus {
        let once = VECTORS.chain([LOGICAL_VECTOR, LOWEST_PRIORITY_VECTOR]);
        if !once
            .into_iter()
            .all(|vector| p.interrupts(cpu, vector) == 1)
            || p.interrupts(cpu, LEVEL_VECTOR) != u64::from(cpu == last)
        {
            let _ = write!(report, "CPU {cpu}: ");
            return Err("a vector did not arrive exactly once");
        }
        if p.interrupts(cpu, NMI_VECTOR) != NMIS {
            return Err("an NMI was lost or doubled");
        }
        let all: u64 = (0..=u8::MAX).map(|vector| p.interrupts(cpu, vector)).sum();
        if all != VECTORS.len() as u64 + NMIS + 2 + u64::from(cpu == last) {
            let _ = write!(report, "CPU {cpu} handled {all} interrupts: ");
            return Err("an interrupt arrived that nobody sent");
        }
        let before = p.heartbeat(cpu);
        wait(p, |p| p.heartbeat(cpu) > before).map_err(|()| "a CPU has no heartbeat")?;
    }
    if last > 0 {
        let init = Record {
            delivery_mode: INIT,
            ..fixed(p.apic_ids()[last], 0)
        };
        p.mmio_write(BASE + SEND, Width::Qword, init.into_bits());
        report.delivered += 1;
        settle(p);
        let before = p.heartbeat(last);
        settle(p);
        if p.heartbeat(last) != before {
            return Err("a CPU goes on after INIT");
        }
    }
    let sent = report.delivered;
    let _ = write!(
        report,
        "{sent} interrupts to {cpus} CPUs, each at its vector and CPU"
    );
    Ok(())
}

/// An edge-triggered interrupt to one CPU.
const fn fixed(dest: u32, vector: u8) -> Record {
    Record {
        dest,
        vector,
        delivery_mode: FIXED,
        logical: false,
        level: false,
        rq_eoi: false,
    }
}

/// The logical x2APIC ID of a CPU: the cluster above, a bit for the CPU below.
const fn logical_id(apic_id: u32) -> u32 {
    apic_id >> 4 << 16 | 1 << (apic_id & 15)
}

/// Waits long enough for some heartbeats.
fn settle<P: Platform + ?Sized>(p: &mut P) {
    let end = p.now_ns() + 100_000_000;
    while p.now_ns() < end {
        p.pause();
    }
}

/// Sends one interrupt and waits for its handler; returns how long that took, in nanoseconds.
fn send<P: Platform + ?Sized>(
    p: &mut P,
    cpu: usize,
    vector: u8,
    record: Record,
) -> Result<u64, &'static str> {
    let before = p.interrupts(cpu, vector);
    let start = p.now_ns();
    p.mmio_write(BASE + SEND, Width::Qword, record.into_bits());
    wait(p, |p| p.interrupts(cpu, vector) > before)
        .map_err(|()| "an interrupt did not reach its handler")?;
    Ok(p.now_ns() - start)
}

fn wait<P: Platform + ?Sized>(p: &mut P, done: impl Fn(&mut P) -> bool) -> Result<(), ()> {
    let end = p.now_ns() + PATIENCE_NS;
    while !done(p) {
        if p.now_ns() > end {
            return Err(());
        }
        p.pause();
    }
    Ok(())
}
