//! What a device asks, and where its bytes are.

use core::fmt;
use core::num::NonZeroU32;

use amdvi_regs::DeviceId;

bitflags::bitflags! {
    /// What a translation lets a device do.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// IR: read.
        const READ = 1;
        /// IW: write.
        const WRITE = 2;
    }
}

impl Permissions {
    /// The IR and IW bits, which stand at \[62:61\] in a DTE, a PDE and a PTE alike.
    pub(crate) const fn from_entry(word: u64) -> Self {
        Self::from_bits_truncate((word >> 61) as u8)
    }
}

/// What a device does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A read.
    Read,
    /// A posted write.
    Write,
    /// An atomic operation: a non-posted request that both reads and writes.
    Atomic,
}

impl Access {
    /// The permissions that the access needs.
    pub const fn needs(self) -> Permissions {
        match self {
            Self::Read => Permissions::READ,
            Self::Write => Permissions::WRITE,
            Self::Atomic => Permissions::all(),
        }
    }

    /// Whether memory is modified: the RW bit of an event.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// The address type of a request (PCIe AT field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Ordinary DMA.
    Untranslated,
    /// An ATS translation request. It has no permission faults: the answer says what is allowed,
    /// and the access is what the device would like to do.
    TranslationRequest,
    /// DMA with an address that the device got from an ATS translation.
    Translated,
}

/// The process address space that a request belongs to, as PCIe's PASID TLP prefix says it.
///
/// A request without the prefix has none, which is not the same as PASID 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
// Never 0, so that a request that may have one is a word.
pub struct Pasid(NonZeroU32);

impl Pasid {
    /// The largest value: 20 bits.
    pub const MAX: u32 = 0xf_ffff;
    const EXECUTE: u32 = 1 << 20;
    const PRIVILEGED: u32 = 1 << 21;
    /// Always set.
    const MARK: u32 = 1 << 31;

    /// A PASID whose requests neither ask for execution nor for privilege; `None` above
    /// [`MAX`](Self::MAX).
    pub const fn new(value: u32) -> Option<Self> {
        if value > Self::MAX {
            return None;
        }
        match NonZeroU32::new(value | Self::MARK) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// With the prefix's Execute Requested bit: what is read is to be executed. It has a meaning in
    /// reads and translation requests only.
    #[must_use]
    #[inline(always)]
    pub const fn with_execute(self, execute: bool) -> Self {
        self.with(Self::EXECUTE, execute)
    }

    /// With the prefix's Privileged Mode Requested bit: supervisor pages may be accessed.
    #[must_use]
    pub const fn with_privileged(self, privileged: bool) -> Self {
        self.with(Self::PRIVILEGED, privileged)
    }

    #[inline(always)]
    const fn with(self, bit: u32, on: bool) -> Self {
        let bits = self.bits() & !bit | if on { bit } else { 0 };
        match NonZeroU32::new(bits) {
            Some(bits) => Self(bits),
            // The mark is set.
            None => self,
        }
    }

    /// Value, execute at bit 20, privilege at bit 21, and bit 31.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u32 {
        self.0.get()
    }

    /// The value, 0–[`MAX`](Self::MAX).
    pub const fn value(self) -> u32 {
        self.bits() & Self::MAX
    }

    /// Execute Requested.
    pub const fn execute(self) -> bool {
        self.bits() & Self::EXECUTE != 0
    }

    /// Privileged Mode Requested; otherwise the request has user privilege.
    pub const fn privileged(self) -> bool {
        self.bits() & Self::PRIVILEGED != 0
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value())?;
        if self.execute() {
            f.write_str("+execute")?;
        }
        if self.privileged() {
            f.write_str("+privileged")?;
        }
        Ok(())
    }
}

/// A request of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks, with the bus number: goes into events.
    pub device_id: DeviceId,
    /// The first address.
    pub iova: u64,
    /// Length in bytes. A request of length 0 is checked like one byte and yields an empty span.
    pub len: u64,
    /// What is to be done.
    pub access: Access,
    /// The address type.
    pub kind: RequestKind,
    /// The process address space; `None` for a request without a PASID.
    pub pasid: Option<Pasid>,
}

impl Request {
    /// Whether the bytes are to be executed: only what is read can be.
    pub(crate) fn executes(&self) -> bool {
        let reads =
            self.kind == RequestKind::TranslationRequest || matches!(self.access, Access::Read);
        reads && self.pasid.is_some_and(Pasid::execute)
    }

    /// Whether it has user privilege, as every request without a PASID.
    pub(crate) fn is_user(&self) -> bool {
        !self.pasid.is_some_and(Pasid::privileged)
    }
}

/// The beginning of a request, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The IOVA of the first byte, as in the request.
    pub iova: u64,
    /// The guest physical address of the first byte.
    pub gpa: u64,
    /// How many bytes from there on belong to the request and are contiguous: up to the end of the
    /// request, of the page, or of a range of addresses with the same meaning, whichever is first.
    pub len: u64,
    /// What the device may do here: the AND over DTE, PDEs and PTE. Contains what the request
    /// needs, except for a translation request.
    pub permissions: Permissions,
    /// Through what the address went.
    pub target: Target,
}

/// Through what an address went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Not through a page table: the GPA is the IOVA.
    Identity(Bypass),
    /// Through the page that this leaf maps.
    Page(Leaf),
}

/// Why an address was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Control.IommuEn is 0.
    IommuDisabled,
    /// The DTE has V=0.
    DteInvalid,
    /// The exclusion range.
    Excluded,
    /// The DTE has Mode 0; IR and IW were obeyed.
    ModeZero,
    /// The device translated it itself, and may.
    PreTranslated,
    /// A HyperTransport special range whose requests the DTE forwards (SysMgt, IoCtl).
    Forwarded,
}

/// A page, whole: what a cache keeps. A leaf of a host page table, or what it and a leaf of a guest
/// page table have in common.
///
/// The page may contain addresses that are no DMA at all (the MSI window) or that the IOMMU does not
/// translate (beyond [`WalkContext::va_bits`](crate::WalkContext::va_bits)): before using a cached
/// leaf, ask [`classify`](crate::classify) and compare the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First IOVA of the page, aligned to its size.
    pub iova: u64,
    /// First GPA of the page, aligned to its size.
    pub gpa: u64,
    /// log2 of the page size in bytes, 12–57.
    pub shift: u8,
    /// PTE bit 59, U: an ATS completion tells the device to use untranslated requests.
    pub untranslated_only: bool,
    /// PTE bit 60, FC: force coherent. Reported, without an effect on emulated DMA.
    pub force_coherent: bool,
    /// What the guest page table adds; `None` if the host's alone maps the page.
    pub guest: Option<GuestLeaf>,
}

/// What a guest page table says of a page, beyond what [`Permissions`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLeaf {
    /// log2 of the size of the guest's page: 12, 21 or 30. The whole is no larger than that and than
    /// the host's page.
    pub shift: u8,
    /// Code may be fetched from it: no entry has NX.
    pub execute: bool,
    /// User privilege suffices: every entry has U/S=1.
    pub user: bool,
}

impl Leaf {
    /// The last IOVA of the page.
    pub const fn last(&self) -> u64 {
        self.iova | ((1 << self.shift) - 1)
    }
}
