//! The log, and the end of a run.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use super::{EXIT_PANIC, cpu};
use crate::boot::{EXIT_PORT, LOG_PORT};

const LINE_BYTES: usize = 512;

/// A line of the log; what does not fit is cut.
pub(super) struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        }
    }

    /// Sends it to the VMM.
    pub(super) fn send(&self) {
        cpu::out_bytes(LOG_PORT, &self.bytes[..self.len]);
        cpu::out_bytes(LOG_PORT, b"\n");
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut take = text.len().min(LINE_BYTES - self.len);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

/// Ends the run with `code`.
pub(super) fn exit(code: u32) -> ! {
    // SAFETY: a port write; the VMM does not come back from it. If it does, the CPU sleeps below.
    unsafe { asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") code, options(nostack)) };
    loop {
        cpu::halt();
    }
}

/// What the payload's panic handler does: says where and why, and ends the run.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let mut line = Line::new();
    let _ = match info.location() {
        Some(at) => write!(
            line,
            "panic at {}:{}: {}",
            at.file(),
            at.line(),
            info.message()
        ),
        None => write!(line, "panic: {}", info.message()),
    };
    line.send();
    exit(EXIT_PANIC)
}
