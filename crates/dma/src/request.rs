//! What a device asks, and where its bytes are.

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

/// A request of a device, without PASID.
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

/// A leaf of a host page table, whole: what a cache keeps.
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
}

impl Leaf {
    /// The last IOVA of the page.
    pub const fn last(&self) -> u64 {
        self.iova | ((1 << self.shift) - 1)
    }
}
