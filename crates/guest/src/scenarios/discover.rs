use core::fmt::Write;

use super::{Outcome, fail};
use crate::platform::Platform;
use crate::report::Report;

pub(super) fn run<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Outcome {
    let rsdp = p.rsdp();
    for (n, &expected) in b"RSD PTR ".iter().enumerate() {
        let seen = p.read_u8(rsdp + n as u64);
        if seen != expected {
            return fail(
                report,
                format_args!("RSDP at {rsdp:#x}: byte {n} is {seen:#x}, not {expected:#x}"),
            );
        }
    }
    let _ = write!(report, "RSDP at {rsdp:#x}");
    Ok(())
}
