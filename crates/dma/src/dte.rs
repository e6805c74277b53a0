//! Whether the translation half of a Device Table Entry is well formed (48882 §2.2.2.1).

use core::fmt;

use amdvi_regs::dte::{Dte, DteQ0, DteQ1};

use crate::context::WalkContext;

/// What is wrong with a DTE: ILLEGAL_DEV_TABLE_ENTRY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DteDefect {
    /// Reserved bits are set: those that no revision defines, and those of features that are not
    /// offered. Event flag RZ=1.
    ReservedBits {
        /// The offending bits of DTE\[63:0\].
        q0: u64,
        /// The offending bits of DTE\[127:64\].
        q1: u64,
    },
    /// Mode is 7 or above what EFR.HATS offers. Event flag RZ=0, "invalid level encoding".
    Mode {
        /// The Mode field.
        mode: u8,
        /// The most levels offered; 0 if none.
        max: u8,
    },
    /// IoCtl is 3 (reserved) and the port I/O range was accessed. RZ=0: no reserved *bit* is set.
    IoCtl,
}

impl DteDefect {
    /// The RZ flag of the event.
    pub const fn rz(self) -> bool {
        matches!(self, Self::ReservedBits { .. })
    }
}

impl fmt::Display for DteDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReservedBits { q0, q1 } => {
                write!(
                    f,
                    "reserved DTE bits set: {q0:#x} in word 0, {q1:#x} in word 1"
                )
            }
            Self::Mode { mode: 7, .. } => f.write_str("DTE Mode 7 is reserved"),
            Self::Mode { mode, max: 0 } => {
                write!(f, "DTE Mode {mode}, but host translation is not offered")
            }
            Self::Mode { mode, max } => write!(f, "DTE Mode {mode}, but {max} levels are offered"),
            Self::IoCtl => f.write_str("DTE IoCtl 3 is reserved"),
        }
    }
}

/// Bits \[6:4\]: a CXL attribute in the newest revision, which no feature bit announces.
const Q0_CXL: u64 = 0x70;
/// HAD \[8:7\]: accessed and dirty bits are not maintained here, so neither HASup nor HDSup is offered.
const Q0_HAD: u64 = 0x180;
/// The host page table root \[51:12\].
const Q0_ROOT: u64 = 0x000f_ffff_ffff_f000;
/// PPR and GPRP \[53:52\].
const Q0_PPR: u64 = 3 << 52;
/// GIoV, GV, GLX and GCR3 root \[14:12\]: \[60:54\].
const Q0_GUEST: u64 = 0x7f << 54;
/// GCR3 root \[30:15\] at \[95:80\] and \[51:31\] at \[127:107\].
const Q1_GUEST: u64 = 0xffff << 16 | !0 << 43;
/// SATS, bit 106.
const Q1_SATS: u64 = 1 << 42;

/// Checks DTE\[127:0\] for reserved bits and an unsupported Mode; only meaningful for V=1.
///
/// Mode is examined when TV=1, because it belongs to the fields that TV validates.
pub const fn check_dte(context: &WalkContext, q0: DteQ0, q1: DteQ1) -> Result<(), DteDefect> {
    let mut reserved0 = Dte::Q0_RESERVED | Q0_CXL | Q0_HAD | Q0_GUEST;
    if !context.eph_sup {
        reserved0 |= Q0_PPR;
    }
    if context.host_levels == 0 {
        reserved0 |= Q0_ROOT;
    }
    let bad0 = q0.into_bits() & reserved0;
    let bad1 = q1.into_bits() & (Q1_GUEST | Q1_SATS);
    if bad0 | bad1 != 0 {
        return Err(DteDefect::ReservedBits { q0: bad0, q1: bad1 });
    }
    if q0.tv() && q0.mode() > max_mode(context) {
        return Err(DteDefect::Mode {
            mode: q0.mode(),
            max: context.host_levels,
        });
    }
    Ok(())
}

/// The highest Mode in use; 6 is the most that the walker knows, whatever a caller puts in.
const fn max_mode(context: &WalkContext) -> u8 {
    if context.host_levels > 6 {
        6
    } else {
        context.host_levels
    }
}
