//! Single instructions.

use core::arch::asm;

/// Takes interrupts from now on.
pub(super) fn enable_interrupts() {
    // SAFETY: the caller has loaded an IDT whose handlers keep every register; see `descriptors`.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Sleeps until the next interrupt was handled. Returns at once when interrupts arrive steadily.
pub(super) fn halt() {
    // SAFETY: ring 0; it changes no state but the instruction pointer's progress.
    unsafe { asm!("hlt", options(nomem, nostack)) };
}

/// Raises #UD.
pub(super) fn undefined_instruction() -> ! {
    // SAFETY: the exception's handler does not return.
    unsafe { asm!("ud2", options(noreturn)) };
}

/// Reads the time stamp counter.
pub(super) fn timestamp() -> u64 {
    let low: u32;
    let high: u32;
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads a model-specific register.
///
/// # Safety
///
/// The register must exist, and reading it must have no effect on memory safety.
pub(super) unsafe fn read_msr(msr: u32) -> u64 {
    let low: u32;
    let high: u32;
    // SAFETY: the caller vouches for the register.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The register must exist, and `value` must have no effect on memory safety.
pub(super) unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for register and value. Not `nomem`: what was written to memory
    // before stays before it.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack),
        );
    }
}

/// Writes bytes to a port, in order.
pub(super) fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes` only; a port write of this machine has no effect on memory that Rust
    // knows of. DF is clear by the ABI.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, readonly),
        );
    }
}
