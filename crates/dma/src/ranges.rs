//! Addresses that mean something else than memory (48882 §2.1.2, tables 2 and 3).

use amdvi_regs::msi::{MSI_WINDOW_BASE, MSI_WINDOW_END};

use crate::context::{Exclusion, WalkContext};

/// First address of the HyperTransport special ranges.
pub const HT_HOLE_BASE: u64 = 0xfd_0000_0000;
/// Last address of the HyperTransport special ranges.
pub const HT_HOLE_END: u64 = 0xff_ffff_ffff;
/// First address of the system management range, FD_F910_0000h–FD_F91F_FFFFh.
pub const SYSTEM_MANAGEMENT_BASE: u64 = 0xfd_f910_0000;

/// A HyperTransport special range (48882 §2.1.2, table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HtRange {
    /// FD_0000_0000h: reserved interrupt address space.
    ReservedInterrupt,
    /// FD_F800_0000h: interrupts and EOI.
    InterruptEoi,
    /// FD_F900_0000h: legacy PIC interrupt acknowledge.
    PicAcknowledge,
    /// FD_F910_0000h: system management; DTE.SysMgt decides.
    SystemManagement,
    /// FD_F920_0000h: reserved page tables.
    ReservedPageTables,
    /// FD_FB00_0000h: address translation.
    AddressTranslation,
    /// FD_FC00_0000h: port I/O; DTE.IoCtl decides.
    PortIo,
    /// FD_FE00_0000h: configuration space.
    Configuration,
    /// FE_0000_0000h: extended configuration and device messages.
    ExtendedConfiguration,
    /// FE_2000_0000h: reserved.
    Reserved,
}

/// Where each range ends, in ascending order; each begins where the one before it ends.
const HT_RANGES: [(u64, HtRange); 10] = [
    (0xfd_f7ff_ffff, HtRange::ReservedInterrupt),
    (0xfd_f8ff_ffff, HtRange::InterruptEoi),
    (0xfd_f90f_ffff, HtRange::PicAcknowledge),
    (0xfd_f91f_ffff, HtRange::SystemManagement),
    (0xfd_faff_ffff, HtRange::ReservedPageTables),
    (0xfd_fbff_ffff, HtRange::AddressTranslation),
    (0xfd_fdff_ffff, HtRange::PortIo),
    (0xfd_ffff_ffff, HtRange::Configuration),
    (0xfe_1fff_ffff, HtRange::ExtendedConfiguration),
    (HT_HOLE_END, HtRange::Reserved),
];

/// What an address means to a device's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// Memory: subject to translation.
    Memory,
    /// FEE0_0000h–FEEF_FFFFh: a write is an interrupt request and never DMA, a read is an error.
    MsiWindow,
    /// A HyperTransport special range.
    HyperTransport(HtRange),
    /// The exclusion range, for a device that may use it.
    Excluded,
}

/// What `address` means to a device whose DTE has V=1, and the last address up to which that holds.
///
/// `ex` is the DTE's EX bit. The MSI window precedes everything, the HyperTransport ranges precede
/// the exclusion range. For a device that is not translated (IommuEn=0 or V=0) only the MSI window
/// matters.
pub fn classify(context: &WalkContext, ex: bool, address: u64) -> (AddressClass, u64) {
    let (class, mut last) = classify_untranslated(address);
    if class == AddressClass::MsiWindow {
        return (class, last);
    }
    if !context.ht_range_ignore {
        if (HT_HOLE_BASE..=HT_HOLE_END).contains(&address) {
            // The last entry ends at HT_HOLE_END, so one always matches.
            let (end, range) = HT_RANGES
                .into_iter()
                .find(|(end, _)| address <= *end)
                .unwrap_or((HT_HOLE_END, HtRange::Reserved));
            return (AddressClass::HyperTransport(range), end);
        }
        if address < HT_HOLE_BASE {
            last = last.min(HT_HOLE_BASE - 1);
        }
    }
    if let Some(exclusion) = usable_exclusion(context, ex) {
        if (exclusion.first..=exclusion.last).contains(&address) {
            return (AddressClass::Excluded, last.min(exclusion.last));
        }
        if address < exclusion.first {
            last = last.min(exclusion.first - 1);
        }
    }
    (AddressClass::Memory, last)
}

/// [`classify`] for a device that is not translated: only the MSI window is special.
pub(crate) const fn classify_untranslated(address: u64) -> (AddressClass, u64) {
    if address < MSI_WINDOW_BASE {
        (AddressClass::Memory, MSI_WINDOW_BASE - 1)
    } else if address <= MSI_WINDOW_END {
        (AddressClass::MsiWindow, MSI_WINDOW_END)
    } else {
        (AddressClass::Memory, u64::MAX)
    }
}

/// The exclusion range if it is not empty and the device may use it.
fn usable_exclusion(context: &WalkContext, ex: bool) -> Option<Exclusion> {
    context
        .exclusion
        .filter(|exclusion| (exclusion.allow_all || ex) && exclusion.first <= exclusion.last)
}
