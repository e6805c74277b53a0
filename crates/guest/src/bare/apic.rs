//! The local APIC, in x2APIC mode.

use super::{SPURIOUS_VECTOR, TIMER_VECTOR, cpu};

const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
/// In-service bits of vectors 224–255.
const IN_SERVICE_7: u32 = 0x817;
const LVT_TIMER: u32 = 0x832;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_DIVIDE: u32 = 0x83e;

const SPURIOUS_ENABLE: u64 = 1 << 8;
const TIMER_PERIODIC: u64 = 1 << 17;
const TIMER_DIVIDE_BY_1: u64 = 0b1011;
/// Ticks of the APIC bus clock, 1 GHz under KVM, between two heartbeats: 10 ms. Each one costs an
/// emulated handler, on every CPU, so this is as slow as a scenario's patience allows.
const TIMER_TICKS: u64 = 10_000_000;

/// Enables this CPU's APIC and its heartbeat timer.
pub(super) fn enable() {
    write(TPR, 0);
    write(SPURIOUS, SPURIOUS_ENABLE | SPURIOUS_VECTOR as u64);
    write(TIMER_DIVIDE, TIMER_DIVIDE_BY_1);
    write(LVT_TIMER, TIMER_PERIODIC | TIMER_VECTOR as u64);
    write(TIMER_INITIAL, TIMER_TICKS);
}

/// Ends the handling of the interrupt in service.
pub(super) fn end_of_interrupt() {
    write(EOI, 0);
}

/// Whether the spurious vector is in service, so that it was not spurious: somebody sent it.
pub(super) fn spurious_vector_in_service() -> bool {
    const { assert!(SPURIOUS_VECTOR == 0xff) };
    // SAFETY: an x2APIC register (the VMM enabled the mode); reading it has no effect.
    let bits = unsafe { cpu::read_msr(IN_SERVICE_7) };
    bits >> 31 & 1 == 1
}

fn write(register: u32, value: u64) {
    // SAFETY: an x2APIC register (the VMM enabled the mode). The interrupts that it lets in find
    // the IDT that `descriptors` has loaded.
    unsafe { cpu::write_msr(register, value) };
}
