//! Why a request fails, and the event that tells the guest.

use core::fmt;

use amdvi_regs::dte::DteQ1;
use amdvi_regs::event::{
    Event, IllegalDevTableEntry, InvalidDeviceRequest, InvalidRequestType, IoPageFault,
    PageTabHardwareError,
};

use crate::dte::DteDefect;
use crate::ranges::HtRange;
use crate::request::{Pasid, Request, RequestKind};

/// Why a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The request goes beyond the end of the 64-bit address space.
    AddressOverflow,
    /// A write to FEEx_xxxxh: not DMA but an interrupt request, for the interrupt path to judge.
    /// Never an event from here.
    InterruptWindow,
    /// A request that this device may not send, or not there: INVALID_DEVICE_REQUEST.
    InvalidRequest(InvalidRequestType),
    /// A HyperTransport special range that DMA cannot reach.
    SpecialAddress(HtRange),
    /// The DTE is malformed: ILLEGAL_DEV_TABLE_ENTRY.
    IllegalDte(DteDefect),
    /// The DTE has V=1 and TV=0: blocked.
    TranslationNotValid,
    /// The address has a bit set beyond what the table, or the IOMMU, translates.
    AddressTooWide {
        /// Width in bits of the addresses that can be translated.
        bits: u8,
    },
    /// An entry on the way has PR=0.
    NotPresent {
        /// The level of the entry, 1–6.
        level: u8,
    },
    /// An entry on the way has reserved bits set.
    ReservedEntryBits {
        /// The level of the entry, 1–6.
        level: u8,
        /// The offending bits.
        bits: u64,
    },
    /// A PDE's NextLevel is not below its own level.
    NextLevel {
        /// The level of the entry, 1–6.
        level: u8,
        /// Its NextLevel.
        next: u8,
    },
    /// A PDE skips levels whose address bits are not zero.
    SkippedBits {
        /// The level of the entry, 1–6.
        level: u8,
        /// Its NextLevel.
        next: u8,
    },
    /// The page size that a NextLevel=7 entry encodes is not one for its level.
    PageSize {
        /// The level of the entry, 1–6.
        level: u8,
    },
    /// The access is not allowed.
    Permission {
        /// The level of the entry that denies it, 1–6; `None` for the DTE.
        level: Option<u8>,
    },
    /// A table entry cannot be read from memory, or its accessed and dirty bits can't be written:
    /// PAGE_TAB_HARDWARE_ERROR.
    TableUnreadable {
        /// The address of the entry.
        gpa: u64,
    },
    /// The request has a PASID, and the DTE has no guest translation (GV=0, or Control.GTEn=0).
    PasidNotAllowed,
    /// The PASID is larger than the IOMMU offers or the GCR3 table has entries for.
    PasidTooLarge {
        /// The largest PASID that would do.
        max: u32,
    },
    /// A GCR3 entry has V=0.
    Gcr3NotValid {
        /// The level of the entry, 1–3.
        level: u8,
    },
    /// A GCR3 entry has reserved bits set.
    Gcr3ReservedBits {
        /// The level of the entry, 1–3.
        level: u8,
        /// The offending bits.
        bits: u64,
    },
    /// The address is no sign-extended address of the guest table's width.
    NotCanonical {
        /// Width in bits of the addresses that the table translates.
        bits: u8,
    },
    /// An entry was changed by somebody else each time when its accessed or dirty bit was to be set.
    EntryInMotion {
        /// The address of the entry.
        gpa: u64,
    },
}

/// In which table, or before which, a request failed: whose address and flags the event carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before any table, or in the host page table of a request that has no other: the address is
    /// that of the request.
    Request,
    /// In the GCR3 table or the guest page table: the address is that of the request, GN=1, and the
    /// levels of the [`Reason`] are theirs.
    Guest,
    /// In the host page table, on behalf of the guest's tables: the address is a guest physical one,
    /// GN=0.
    Host {
        /// What was to be translated: the address of an entry of the guest's tables, or of the data.
        gpa: u64,
        /// Whether it was to be written.
        write: bool,
    },
}

/// Why a translation stops, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) reason: Reason,
    pub(crate) stage: Stage,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            stage: Stage::Request,
        }
    }
}

impl Reason {
    pub(crate) const fn in_guest_table(self) -> Stop {
        Stop {
            reason: self,
            stage: Stage::Guest,
        }
    }

    /// Whether this is the answer of tables or of the DTE, IO_PAGE_FAULT, and no violation of a rule
    /// by the device or of the tables' format by the DTE: an ATS translation request succeeds then,
    /// without permissions.
    pub const fn is_page_fault(self) -> bool {
        matches!(self.kind(), Kind::PageFault { .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressOverflow => f.write_str("beyond the end of the address space"),
            Self::InterruptWindow => f.write_str("interrupt request, not DMA"),
            Self::InvalidRequest(kind) => write!(f, "invalid device request: {kind}"),
            Self::SpecialAddress(range) => write!(f, "HyperTransport range {range:?}"),
            Self::IllegalDte(defect) => defect.fmt(f),
            Self::TranslationNotValid => f.write_str("blocked: the DTE has TV=0"),
            Self::AddressTooWide { bits } => write!(f, "address wider than {bits} bits"),
            Self::NotPresent { level } => write!(f, "not present at level {level}"),
            Self::ReservedEntryBits { level, bits } => {
                write!(f, "reserved bits {bits:#x} set at level {level}")
            }
            Self::NextLevel { level, next } => write!(f, "NextLevel {next} at level {level}"),
            Self::SkippedBits { level, next } => {
                write!(
                    f,
                    "address bits set between levels {level} and {next}, which are skipped"
                )
            }
            Self::PageSize { level } => write!(f, "invalid page size at level {level}"),
            Self::Permission { level: None } => f.write_str("not permitted by the DTE"),
            Self::Permission { level: Some(level) } => {
                write!(f, "not permitted at level {level}")
            }
            Self::TableUnreadable { gpa } => write!(f, "page table unreadable at GPA {gpa:#x}"),
            Self::PasidNotAllowed => f.write_str("a PASID, but the DTE has no guest translation"),
            Self::PasidTooLarge { max } => write!(f, "PASID above {max:#x}"),
            Self::Gcr3NotValid { level } => write!(f, "no GCR3 entry at level {level}"),
            Self::Gcr3ReservedBits { level, bits } => {
                write!(
                    f,
                    "reserved bits {bits:#x} set in a GCR3 entry at level {level}"
                )
            }
            Self::NotCanonical { bits } => {
                write!(f, "no sign-extended address of {bits} bits")
            }
            Self::EntryInMotion { gpa } => {
                write!(f, "the table entry at GPA {gpa:#x} does not stand still")
            }
        }
    }
}

/// A request that fails: the access is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub reason: Reason,
    /// Where.
    pub stage: Stage,
    /// What to log; `None` where the specification logs nothing: the DTE's SA bit, a translation
    /// request that would page-fault, an IOMMU that is off, a write to the interrupt window.
    pub event: Option<Event>,
    /// The event is an IO_PAGE_FAULT of a device whose DTE has SE set: only the first is logged.
    /// The engine has no state, so the device remembers and drops the later ones.
    pub suppress_after_first: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl core::error::Error for Fault {}

/// PAGE_TAB_HARDWARE_ERROR.Type: master abort, nothing answers at the address.
pub(crate) const MASTER_ABORT: u8 = 1;

/// The event that a reason leads to, before anything is suppressed.
enum Kind {
    Silent,
    PageFault { pr: bool, pe: bool, rz: bool },
    IllegalDte { rz: bool },
    InvalidRequest(InvalidRequestType),
    TableHardwareError { gpa: u64 },
}

impl Reason {
    /// The one place that maps reasons to events and flags (48882 §2.5.2–2.5.9). PE and RZ have a
    /// meaning only with PR=1; PR=1 with neither is an invalid level encoding.
    const fn kind(self) -> Kind {
        match self {
            Self::InterruptWindow => Kind::Silent,
            Self::InvalidRequest(kind) => Kind::InvalidRequest(kind),
            Self::IllegalDte(defect) => Kind::IllegalDte { rz: defect.rz() },
            Self::AddressOverflow
            | Self::SpecialAddress(_)
            | Self::TranslationNotValid
            | Self::AddressTooWide { .. }
            | Self::NotPresent { .. }
            | Self::PasidNotAllowed
            | Self::PasidTooLarge { .. }
            | Self::Gcr3NotValid { .. }
            | Self::NotCanonical { .. }
            | Self::EntryInMotion { .. } => Kind::PageFault {
                pr: false,
                pe: false,
                rz: false,
            },
            Self::ReservedEntryBits { .. } | Self::Gcr3ReservedBits { .. } => Kind::PageFault {
                pr: true,
                pe: false,
                rz: true,
            },
            Self::NextLevel { .. } | Self::SkippedBits { .. } | Self::PageSize { .. } => {
                Kind::PageFault {
                    pr: true,
                    pe: false,
                    rz: false,
                }
            }
            Self::Permission { .. } => Kind::PageFault {
                pr: true,
                pe: true,
                rz: false,
            },
            Self::TableUnreadable { gpa } => Kind::TableHardwareError { gpa },
        }
    }
}

/// The PASID fields of an event: GN, PASID\[19:16\], PASID\[15:0\]; and what else GN=1 gives a
/// meaning to, NX and US.
#[derive(Clone, Copy, Default)]
struct GuestFields {
    gn: bool,
    high: u8,
    low: u16,
    nx: bool,
    us: bool,
}

impl GuestFields {
    fn of(request: &Request, pasid: Option<u32>) -> Self {
        pasid.map_or_else(Self::default, |pasid| Self {
            gn: true,
            high: (pasid >> 16) as u8 & 0xf,
            low: pasid as u16,
            nx: request.executes(),
            us: request.is_user(),
        })
    }
}

impl Stop {
    /// The fault of a request while the IOMMU is off: aborted, and nobody is told.
    pub(crate) const fn unlogged(self) -> Fault {
        Fault {
            reason: self.reason,
            stage: self.stage,
            event: None,
            suppress_after_first: false,
        }
    }

    /// The fault of `request` with its event. `dte` is DTE\[127:64\] of a valid entry; without one
    /// there is no domain, and no page fault is logged.
    pub(crate) fn fault(self, request: &Request, dte: Option<DteQ1>) -> Fault {
        let device_id = request.device_id.0;
        let domain_id = dte.map_or(0, |q1| q1.domain_id());
        let tr = matches!(request.kind, RequestKind::TranslationRequest);
        let asked = request.pasid.map(Pasid::value);
        let (pasid, address, rw) = match self.stage {
            Stage::Request => (asked, request.iova, request.access.writes()),
            // GIoV gives PASID 0 to a request that has none.
            Stage::Guest => (
                Some(asked.unwrap_or(0)),
                request.iova,
                request.access.writes(),
            ),
            Stage::Host { gpa, write } => (None, gpa, write),
        };
        let guest = GuestFields::of(request, pasid);
        let whose = if guest.gn { guest.low } else { domain_id };
        let mut suppress_after_first = false;
        let event: Option<Event> = match self.reason.kind() {
            Kind::Silent => None,
            Kind::PageFault { pr, pe, rz } => dte.filter(|q1| !tr && !q1.sa()).map(|q1| {
                suppress_after_first = q1.se();
                IoPageFault::new()
                    .with_device_id(device_id)
                    .with_pasid_19_16(guest.high)
                    .with_pasid_domain_id(whose)
                    .with_gn(guest.gn)
                    .with_nx(guest.nx)
                    .with_us(guest.us)
                    .with_pr(pr)
                    .with_rw(rw)
                    .with_pe(pe)
                    .with_rz(rz)
                    .with_address(address)
                    .into()
            }),
            Kind::IllegalDte { rz } => Some(
                IllegalDevTableEntry::new()
                    .with_device_id(device_id)
                    .with_pasid_19_16(guest.high)
                    .with_pasid_15_0(guest.low)
                    .with_gn(guest.gn)
                    .with_rw(rw)
                    .with_rz(rz)
                    .with_tr(tr)
                    .with_address_4(request.iova >> 2)
                    .into(),
            ),
            Kind::InvalidRequest(kind) => {
                let (tr, kind) = kind.bits();
                Some(
                    InvalidDeviceRequest::new()
                        .with_device_id(device_id)
                        .with_pasid_19_16(guest.high)
                        .with_pasid_15_0(guest.low)
                        .with_gn(guest.gn)
                        .with_us(guest.us)
                        .with_tr(tr)
                        .with_kind(kind)
                        .with_address(request.iova)
                        .into(),
                )
            }
            Kind::TableHardwareError { gpa } => Some(
                PageTabHardwareError::new()
                    .with_device_id(device_id)
                    .with_pasid_domain_id(whose)
                    .with_gn(guest.gn)
                    .with_rw(rw)
                    .with_tr(tr)
                    .with_kind(MASTER_ABORT)
                    .with_address_8(gpa >> 3)
                    .into(),
            ),
        };
        Fault {
            reason: self.reason,
            stage: self.stage,
            event,
            suppress_after_first,
        }
    }
}
