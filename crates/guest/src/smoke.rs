//! A scenario without an IOMMU: does the machine itself deliver interrupts?
//!
//! It runs before a VMM's devices exist, and tells a broken machine (or a host whose KVM can't run
//! the payload) from a broken IOMMU. The VMM offers one device of two registers at [`BASE`].

use core::fmt::Write;

use crate::endpoint::Record;
use crate::platform::{Platform, Width};
use crate::report::Report;

/// What stands in [`BootInfo::scenario`](crate::boot::BootInfo::scenario) to run it.
pub const SCENARIO: u64 = u64::MAX;
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

/// How long anything may take.
const PATIENCE_NS: u64 = 5_000_000_000;
const FIXED: u8 = 0;
const NMI: u8 = 4;
const NMI_VECTOR: u8 = 2;

/// Sends [`VECTORS`] and [`NMIS`] to every CPU, and one level-triggered interrupt to the last;
/// counts what arrives where.
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
            let record = Record {
                dest,
                vector,
                delivery_mode: FIXED,
                logical: false,
                level: false,
                rq_eoi: false,
            };
            report.total_ns += send(p, cpu, vector, record)?;
            report.delivered += 1;
        }
    }
    for cpu in 0..cpus {
        let record = Record {
            dest: p.apic_ids()[cpu],
            vector: 0,
            delivery_mode: NMI,
            logical: false,
            level: false,
            rq_eoi: false,
        };
        for _ in 0..NMIS {
            send(p, cpu, NMI_VECTOR, record)?;
            report.delivered += 1;
        }
    }

    let last = cpus - 1;
    let record = Record {
        dest: p.apic_ids()[last],
        vector: VECTORS.end,
        delivery_mode: FIXED,
        logical: false,
        level: true,
        rq_eoi: false,
    };
    send(p, last, VECTORS.end, record)?;
    report.delivered += 1;
    wait(p, |p| p.mmio_read(BASE + EOIS, Width::Dword) == 1)
        .map_err(|()| "the EOI of a level-triggered interrupt did not reach the VMM")?;

    for cpu in 0..cpus {
        for vector in VECTORS {
            if p.interrupts(cpu, vector) != 1 {
                let _ = write!(
                    report,
                    "CPU {cpu} handled vector {vector:#x} {} times: ",
                    p.interrupts(cpu, vector)
                );
                return Err("a vector did not arrive exactly once");
            }
        }
        if p.interrupts(cpu, NMI_VECTOR) != NMIS {
            return Err("an NMI was lost or doubled");
        }
        let before = p.heartbeat(cpu);
        wait(p, |p| p.heartbeat(cpu) > before).map_err(|()| "a CPU has no heartbeat")?;
    }
    let sent = report.delivered;
    let _ = write!(
        report,
        "{sent} interrupts to {cpus} CPUs, each at its vector and CPU"
    );
    Ok(())
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
