//! GDT, TSS and IDT: one set for each CPU, so that no CPU waits for another.
//!
//! Handlers run on stacks of the interrupt stack table, never on the interrupted one: the
//! precompiled `core` keeps data in the red zone below its stack pointer. Interrupts, NMIs and
//! exceptions have one stack each, because an NMI or exception may come during a handler and a
//! shared stack would be overwritten from its top.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;

use super::interrupts::{Frame, handle};
use crate::boot::MAX_CPUS;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TSS: u16 = 0x18;

/// 64-bit code, ring 0, accessed.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Flat data, writable, accessed.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Type of an available 64-bit TSS, present.
const TSS_AVAILABLE: u64 = 0x89;
/// An interrupt gate, present, ring 0.
const INTERRUPT_GATE: u64 = 0x8e;

const TSS_BYTES: usize = 104;
/// Byte offset of IST1 in a TSS.
const TSS_IST1: usize = 0x24;

const NMI: usize = 2;
const FIRST_INTERRUPT: usize = 32;
const VECTORS: usize = 256;
/// Bytes of the code of one entry stub.
const STUB_BYTES: u64 = 16;

const HANDLER_STACK_BYTES: usize = 8 << 10;

/// A handler stack. What stands at its top tells the handler which CPU it runs on.
#[repr(C, align(16))]
struct HandlerStack {
    bytes: [u8; HANDLER_STACK_BYTES],
    cpu: u64,
}

const _: () = assert!(offset_of!(HandlerStack, cpu) % 16 == 0);

/// What one CPU's descriptor registers point at.
#[repr(C, align(4096))]
struct Tables {
    idt: [[u64; 2]; VECTORS],
    gdt: [u64; 5],
    tss: [u8; TSS_BYTES],
    /// IST1 interrupts, IST2 NMI, IST3 exceptions.
    stacks: [HandlerStack; 3],
}

struct PerCpu(UnsafeCell<Tables>);

// SAFETY: `install` is the only code that forms a reference, each CPU to its own element only.
unsafe impl Sync for PerCpu {}

static PER_CPU: [PerCpu; MAX_CPUS] = [const {
    PerCpu(UnsafeCell::new(Tables {
        idt: [[0; 2]; VECTORS],
        gdt: [0; 5],
        tss: [0; TSS_BYTES],
        stacks: [const {
            HandlerStack {
                bytes: [0; HANDLER_STACK_BYTES],
                cpu: 0,
            }
        }; 3],
    }))
}; MAX_CPUS];

/// The operand of `lgdt` and `lidt`.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Builds this CPU's tables and loads them.
///
/// # Safety
///
/// At most once for each `index`, on the CPU that has it, with interrupts disabled.
pub(super) unsafe fn install(index: usize) {
    // SAFETY: the caller is alone with this index and calls once; no interrupt uses the tables yet.
    let tables = unsafe { &mut *PER_CPU[index].0.get() };
    for (number, stack) in tables.stacks.iter_mut().enumerate() {
        stack.cpu = index as u64;
        let top = (&raw const stack.cpu) as u64;
        let at = TSS_IST1 + 8 * number;
        tables.tss[at..at + 8].copy_from_slice(&top.to_le_bytes());
    }
    let tss = (&raw const tables.tss) as u64;
    tables.gdt = [
        0,
        CODE_DESCRIPTOR,
        DATA_DESCRIPTOR,
        (TSS_BYTES as u64 - 1)
            | (tss & 0xff_ffff) << 16
            | TSS_AVAILABLE << 40
            | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    let stubs = amdvi_interrupt_stubs as *const () as u64;
    for (vector, gate) in tables.idt.iter_mut().enumerate() {
        let stack = match vector {
            NMI => 2,
            FIRST_INTERRUPT.. => 1,
            _ => 3,
        };
        let target = stubs + STUB_BYTES * vector as u64;
        *gate = [
            (target & 0xffff)
                | u64::from(CODE) << 16
                | stack << 32
                | INTERRUPT_GATE << 40
                | (target >> 16 & 0xffff) << 48,
            target >> 32,
        ];
    }

    let gdt = TablePointer {
        limit: size_of_val(&tables.gdt) as u16 - 1,
        base: (&raw const tables.gdt) as u64,
    };
    let idt = TablePointer {
        limit: size_of_val(&tables.idt) as u16 - 1,
        base: (&raw const tables.idt) as u64,
    };
    // SAFETY: both tables are complete and static; the new GDT has the same flat segments at the
    // selectors in use, so code goes on; the far return only reloads CS with the same kind of
    // segment. `ltr` marks the TSS busy, in a table that no reference is formed to again.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "ltr {tss:x}",
            gdt = in(reg) &gdt,
            idt = in(reg) &idt,
            code = const CODE as i32,
            data = in(reg) u64::from(DATA),
            tss = in(reg) u64::from(TSS),
            scratch = out(reg) _,
        );
    }
}

unsafe extern "C" {
    /// The first of 256 entry stubs, `STUB_BYTES` apart. Not a function to call.
    fn amdvi_interrupt_stubs();
}

// Each stub pushes its vector, below an error code of 0 where the CPU pushes none, so that all
// frames look alike.
core::arch::global_asm!(
    ".pushsection .text.amdvi_interrupt_stubs,\"ax\",@progbits",
    ".balign 16",
    ".global amdvi_interrupt_stubs",
    ".type amdvi_interrupt_stubs,@function",
    "amdvi_interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector != 8 && vector != 17 && vector != 21 && vector != 29 && vector != 30 && (vector < 10 || vector > 14)",
    "push 0",
    ".endif",
    "push vector",
    "jmp {common}",
    ".set vector, vector + 1",
    ".endr",
    ".size amdvi_interrupt_stubs, . - amdvi_interrupt_stubs",
    ".popsection",
    common = sym common,
);

const _: () = assert!(Frame::VECTOR_OFFSET == 9 * 8);

/// Saves what a Rust function may change, and calls the handler with the frame.
#[unsafe(naked)]
extern "C" fn common() {
    // The CPU aligned the stack to 16 before its five words; with error code, vector and the nine
    // registers below, 16 words lie on it at the call.
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "mov rdi, rsp",
        "cld",
        "call {handle}",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        handle = sym handle,
    )
}
