//! What a handle answers: where the bytes are, what an ATS answer says, or why not.

use alloc::boxed::Box;
use core::fmt;
use core::ops::Deref;

use amdvi_core::InFlight;
use amdvi_regs::DeviceId;
use amdvi_regs::event::Event;

use crate::fault::Reason;
use crate::request::Permissions;

/// The beginning of a DMA request, translated: `len` bytes at `gpa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The guest physical address of the first byte.
    pub gpa: u64,
    /// How many bytes from there on belong to the request and are contiguous. Up to the end of the
    /// request or of the page; a page that contains addresses which are no DMA (the MSI window) or
    /// lie beyond the IOMMU's width may take several pieces.
    pub len: u64,
    /// What the device may do here without asking again, at least what it asked for. A page whose
    /// dirty bit is maintained and not yet set lacks WRITE until a write is asked for.
    pub permissions: Permissions,
}

/// A [`Piece`], and the guard that keeps COMPLETION_WAIT waiting while memory is accessed.
#[derive(Debug)]
pub struct Mapped<'a> {
    pub(crate) piece: Piece,
    pub(crate) _in_flight: InFlight<'a>,
}

impl Deref for Mapped<'_> {
    type Target = Piece;

    #[inline(always)]
    fn deref(&self) -> &Piece {
        &self.piece
    }
}

/// The answer to an ATS translation request: what its completion says of one page.
///
/// An address that tables or permissions deny is an answer too, with no permissions: ATS reports it
/// as a successful completion, and the device may follow it with a page request. Global is never
/// granted: no command would take such a translation back from a device for all its PASIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// First address of the page, aligned to its size.
    pub iova: u64,
    /// First guest physical address of the page, aligned to its size; 0 without permissions.
    pub gpa: u64,
    /// log2 of the page's size in bytes, 12–63: every address in it has this answer.
    pub shift: u8,
    /// R and W: what translated requests may do. W is missing if the dirty bit of the page is
    /// maintained and the request did not ask to write.
    pub permissions: Permissions,
    /// Exe: code may be fetched. Only if the request asked for it.
    pub execute: bool,
    /// Priv: the permissions are those of privileged mode, as the request asked for.
    pub privileged: bool,
    /// N or U of the completion: the device must use untranslated requests (PTE.U).
    pub untranslated_only: bool,
}

/// An [`Answer`], and the guard under which the device puts it into its TLB: an
/// INVALIDATE_IOTLB_PAGES or COMPLETION_WAIT that comes later finds it there.
#[derive(Debug)]
pub struct Answered<'a> {
    pub(crate) answer: Answer,
    pub(crate) _in_flight: InFlight<'a>,
}

impl Deref for Answered<'_> {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.answer
    }
}

/// Why a DMA request is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The DeviceID lies behind the end of its device table.
    DeviceIdOutOfRange(DeviceId),
    /// Nothing answers where the DTE should be.
    DteUnreadable(u64),
    /// The translation failed.
    Translation(Reason),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceIdOutOfRange(device_id) => {
                write!(f, "DeviceID {device_id} is outside the device table")
            }
            Self::DteUnreadable(gpa) => write!(f, "no memory behind the DTE at GPA {gpa:#x}"),
            Self::Translation(reason) => reason.fmt(f),
        }
    }
}

impl core::error::Error for Cause {}

/// A DMA request that must not happen, and what to log of it.
///
/// Log while this lives: after a COMPLETION_WAIT no event of an older translation appears.
#[derive(Debug)]
pub struct Failed<'a> {
    pub(crate) failure: Box<Failure>,
    pub(crate) in_flight: InFlight<'a>,
}

/// Why a DMA request fails, and its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// What to log; `None` where the specification logs nothing.
    pub event: Option<Event>,
    /// Only the first event of this device is logged (DTE.SE), see
    /// [`Fault::suppress_after_first`](crate::Fault::suppress_after_first).
    pub suppress_after_first: bool,
}

impl Failed<'_> {
    /// Whose request it was.
    pub fn device_id(&self) -> DeviceId {
        self.in_flight.device_id()
    }
}

impl Deref for Failed<'_> {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.failure
    }
}
