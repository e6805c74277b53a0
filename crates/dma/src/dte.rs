//! Whether the translation half of a Device Table Entry is well formed (48882 §2.2.2.1).

use core::fmt;

use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2, DteQ3};

use amdvi_regs::{MemoryError, PhysMemory};

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
    /// HAD is 2, which is reserved. RZ=0: no reserved *bit* is set.
    Had,
    /// GLX is 3, or asks for more levels than EFR.GLXSup offers. RZ=0.
    Glx {
        /// The GLX field: levels minus one.
        glx: u8,
        /// The most levels offered.
        max: u8,
    },
    /// GuestPagingMode asks for levels that EFR.GATS does not offer, or is reserved. RZ=0.
    GuestPagingMode {
        /// The GuestPagingMode field.
        mode: u8,
        /// The most levels offered.
        max: u8,
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
            Self::Had => f.write_str("DTE HAD 2 is reserved"),
            Self::Glx { glx, max } => {
                write!(
                    f,
                    "DTE GLX {glx}, but GCR3 tables of {max} levels are offered"
                )
            }
            Self::GuestPagingMode { mode, max } => write!(
                f,
                "DTE GuestPagingMode {mode}, but guest tables of {max} levels are offered"
            ),
            Self::IoCtl => f.write_str("DTE IoCtl 3 is reserved"),
        }
    }
}

/// Bits \[6:4\]: a CXL attribute in the newest revision, which no feature bit announces.
const Q0_CXL: u64 = 0x70;
/// HAD\[0\]: accessed bits.
const Q0_HAD_A: u64 = 0x80;
/// HAD\[1\]: dirty bits.
const Q0_HAD_D: u64 = 0x100;
/// The host page table root \[51:12\].
const Q0_ROOT: u64 = 0x000f_ffff_ffff_f000;
/// PPR and GPRP \[53:52\].
const Q0_PPR: u64 = 3 << 52;
/// GIoV.
const Q0_GIOV: u64 = 1 << 54;
/// GV, GLX and GCR3 root \[14:12\]: \[60:55\].
const Q0_GUEST: u64 = 0x3f << 55;
/// GCR3 root \[30:15\] at \[95:80\] and \[51:31\] at \[127:107\].
const Q1_GUEST: u64 = 0xffff << 16 | !0 << 43;
/// SATS, bit 106.
const Q1_SATS: u64 = 1 << 42;

/// What of a Device Table Entry concerns DMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaEntry {
    /// DTE\[63:0\].
    pub q0: DteQ0,
    /// DTE\[127:64\].
    pub q1: DteQ1,
    /// DTE\[183:182\], GuestPagingMode: 0 for guest tables of four levels, 1 for five.
    ///
    /// In the entry's other half, which is read only if the guest translation is in use
    /// ([`WalkContext::uses_guest_tables`]).
    pub guest_paging_mode: u8,
}

impl DmaEntry {
    /// An entry with GuestPagingMode 0.
    pub const fn new(q0: DteQ0, q1: DteQ1) -> Self {
        Self {
            q0,
            q1,
            guest_paging_mode: 0,
        }
    }

    /// The same entry with DTE\[183:182\].
    #[must_use]
    pub const fn with_guest_paging_mode(mut self, mode: u8) -> Self {
        self.guest_paging_mode = mode & 3;
        self
    }

    /// The same entry without accessed and dirty bits (HAD), unless that field is invalid.
    pub(crate) const fn without_marks(mut self) -> Self {
        if self.q0.had() != 2 {
            self.q0 = self.q0.with_had(0);
        }
        self
    }

    /// The byte address of the GCR3 table.
    pub(crate) const fn gcr3_address(&self) -> u64 {
        Dte {
            q0: self.q0,
            q1: self.q1,
            q2: DteQ2::new(),
            q3: DteQ3::new(),
        }
        .gcr3_address()
    }
}

/// Reads the DTE at `gpa`: DTE\[127:0\] at once, and the other half if the guest tables are in use.
pub(crate) fn read_entry<M: PhysMemory + ?Sized>(
    context: &WalkContext,
    memory: &M,
    gpa: u64,
) -> Result<DmaEntry, MemoryError> {
    let [q0, q1] = memory.load_pair(gpa)?;
    let entry = DmaEntry::new(DteQ0::from_bits(q0), DteQ1::from_bits(q1));
    if !context.uses_guest_tables(entry.q0) {
        return Ok(entry);
    }
    let q2 = DteQ2::from_bits(memory.load_u64(gpa.wrapping_add(16))?);
    Ok(entry.with_guest_paging_mode(q2.guest_paging_mode()))
}

/// Checks DTE\[127:0\] and GuestPagingMode for reserved bits and unsupported encodings; only
/// meaningful for V=1.
///
/// HAD and Mode are examined when TV=1, because they belong to the fields that TV validates; GLX and
/// GuestPagingMode when the guest translation is in use besides.
pub const fn check_dte(context: &WalkContext, entry: &DmaEntry) -> Result<(), DteDefect> {
    let (q0, q1) = (entry.q0, entry.q1);
    let mut reserved0 = Dte::Q0_RESERVED | Q0_CXL;
    let mut reserved1 = Q1_SATS;
    if !context.eph_sup {
        reserved0 |= Q0_PPR;
    }
    if context.host_levels == 0 {
        reserved0 |= Q0_ROOT;
    }
    if !context.host_accessed {
        reserved0 |= Q0_HAD_A;
    }
    if !context.host_dirty {
        reserved0 |= Q0_HAD_D;
    }
    if !context.guest.supported {
        reserved0 |= Q0_GUEST;
        reserved1 |= Q1_GUEST;
    }
    if !context.guest.giov {
        reserved0 |= Q0_GIOV;
    }
    let bad0 = q0.into_bits() & reserved0;
    let bad1 = q1.into_bits() & reserved1;
    if bad0 | bad1 != 0 {
        return Err(DteDefect::ReservedBits { q0: bad0, q1: bad1 });
    }
    if !q0.tv() {
        return Ok(());
    }
    if q0.had() == 2 {
        return Err(DteDefect::Had);
    }
    if q0.mode() > max_mode(context) {
        return Err(DteDefect::Mode {
            mode: q0.mode(),
            max: context.host_levels,
        });
    }
    if context.uses_guest_tables(q0) {
        let guest = &context.guest;
        if q0.glx() >= 3 || q0.glx() >= guest.gcr3_levels {
            return Err(DteDefect::Glx {
                glx: q0.glx(),
                max: guest.gcr3_levels,
            });
        }
        let mode = entry.guest_paging_mode;
        if mode > 1 || mode + 4 > guest.levels {
            return Err(DteDefect::GuestPagingMode {
                mode,
                max: guest.levels,
            });
        }
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
