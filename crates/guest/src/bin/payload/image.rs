//! What only the linked image has: its entry, its stacks, its panic handler, and the symbols that
//! compiled code expects of a C library.

use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;

use amdvi_guest::bare::{self, STACK_BYTES, Stacks};

#[unsafe(link_section = ".bss.stacks")]
static STACKS: Stacks = Stacks::new();

const _: () = assert!(STACK_BYTES.is_power_of_two());

/// Where every CPU starts; see `amdvi_guest::boot` for what it finds.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
extern "C" fn _start() -> ! {
    naked_asm!(
        "cld",
        "xor ebp, ebp",
        "lea rax, [rsi + 1]",
        "shl rax, {shift}",
        "lea rsp, [rip + {stacks}]",
        "add rsp, rax",
        "call {start}",
        shift = const STACK_BYTES.trailing_zeros(),
        stacks = sym STACKS,
        start = sym bare::start,
    )
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    bare::panicked(info)
}

// The four functions below are called by compiled code, so they can't be written with the slice
// functions that they implement: each is one string instruction, which names its memory exactly.

/// C's `memcpy`.
///
/// # Safety
///
/// As in C: both areas are valid for `len` bytes and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both areas. Words first: the instruction's cost is by step.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// C's `memmove`.
///
/// # Safety
///
/// As in C: both areas are valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // A forward copy reads each byte before it is overwritten.
        // SAFETY: the caller vouches for both areas.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
    } else {
        // SAFETY: the caller vouches for both areas, and `len` is not 0 here. DF is cleared again,
        // and handlers clear it for themselves.
        unsafe {
            asm!(
                "std",
                "rep movsb",
                "cld",
                inout("rcx") len => _,
                inout("rdi") to.wrapping_add(len - 1) => _,
                inout("rsi") from.wrapping_add(len - 1) => _,
                options(nostack),
            );
        }
    }
    to
}

/// C's `memset`.
///
/// # Safety
///
/// As in C: the area is valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    let word = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller vouches for the area. Words first: the instruction's cost is by step.
    unsafe {
        asm!(
            "rep stosq",
            "mov ecx, {tail:e}",
            "rep stosb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") to => _,
            in("rax") word,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
///
/// As in C: both areas are valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: `at` is below `len`. Volatile, or the loop would be compiled to a call of itself.
        let a = unsafe { left.add(at).read_volatile() };
        // SAFETY: as above.
        let b = unsafe { right.add(at).read_volatile() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// What compilers make of `memcmp(…) == 0`.
///
/// # Safety
///
/// As `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, len) }
}

/// Named by the precompiled `core`; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by the precompiled `core`; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding")
}
