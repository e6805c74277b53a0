//! Writing an IVRS into a caller's buffer.

use core::fmt;

use super::bytes::{put, sum, u16_at};
use super::{
    DeviceEntry, HEADER_SIZE, IVMD_SIZE, IvhdHeader, IvhdKind, Ivmd, REVISION_MIXED, SIGNATURE,
    TableHeader,
};

/// Why a table could not be written. What was written before stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The buffer ends before the table.
    BufferTooSmall {
        /// Bytes that the table needs up to here.
        needed: usize,
        /// Bytes that the buffer has.
        have: usize,
    },
    /// A device entry without an IVHD block before it.
    NoBlock {
        /// Type of the entry.
        kind: u8,
    },
    /// A block would have more than 65535 bytes.
    BlockTooLong {
        /// Its length with the entry.
        length: usize,
    },
    /// A UID has more than 255 bytes.
    UidTooLong {
        /// Its length.
        length: usize,
    },
    /// An ACPI HID entry in a block other than type 40h.
    AcpiHidNotAllowed {
        /// Type of the block.
        kind: IvhdKind,
    },
    /// A type 40h block in a table of revision 1.
    RevisionTooLow {
        /// The table's revision.
        revision: u8,
    },
    /// An unknown device entry whose number of bytes is not what its type says, so that no reader
    /// could skip it.
    UnknownEntry {
        /// Type of the entry.
        kind: u8,
        /// Its bytes.
        length: usize,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferTooSmall { needed, have } => {
                write!(f, "IVRS needs {needed} bytes, the buffer has {have}")
            }
            Self::NoBlock { kind } => write!(
                f,
                "device entry of type {kind:02x}h without an IVHD block before it"
            ),
            Self::BlockTooLong { length } => {
                write!(f, "IVHD block would have {length} bytes, at most 65535 fit")
            }
            Self::UidTooLong { length } => {
                write!(
                    f,
                    "UID of an ACPI HID entry has {length} bytes, at most 255 fit"
                )
            }
            Self::AcpiHidNotAllowed { kind } => write!(
                f,
                "ACPI HID entry in an IVHD block of type {kind}, only 40h may have one"
            ),
            Self::RevisionTooLow { revision } => write!(
                f,
                "IVHD block of type 40h needs table revision {REVISION_MIXED}, not {revision}"
            ),
            Self::UnknownEntry { kind, length } => write!(
                f,
                "device entry of unknown type {kind:02x}h has {length} bytes, which is not the \
                 length that its type implies"
            ),
        }
    }
}

impl core::error::Error for BuildError {}

/// Writes a table block by block; see the [module example](super).
///
/// Lengths are kept right after every call, the checksum comes with [`IvrsBuilder::finish`].
#[derive(Debug)]
pub struct IvrsBuilder<'b> {
    out: &'b mut [u8],
    len: usize,
    revision: u8,
    /// Start and type of the IVHD block that takes entries.
    block: Option<(usize, IvhdKind)>,
}

impl<'b> IvrsBuilder<'b> {
    /// Starts a table at the beginning of `out`.
    pub fn new(out: &'b mut [u8], header: &TableHeader) -> Result<Self, BuildError> {
        let mut builder = Self {
            out,
            len: 0,
            revision: header.revision,
            block: None,
        };
        let out = builder.grow(HEADER_SIZE)?;
        put(out, 0, &SIGNATURE);
        out[8] = header.revision;
        put(out, 10, &header.oem_id);
        put(out, 16, &header.oem_table_id);
        put(out, 24, &header.oem_revision.to_le_bytes());
        put(out, 28, &header.creator_id);
        put(out, 32, &header.creator_revision.to_le_bytes());
        put(out, 36, &header.iv_info.into_bits().to_le_bytes());
        Ok(builder)
    }

    /// Appends `size` zero bytes.
    fn grow(&mut self, size: usize) -> Result<&mut [u8], BuildError> {
        let (start, end) = (self.len, self.len.saturating_add(size));
        let have = self.out.len();
        match self.out.get_mut(start..end) {
            Some(out) => {
                self.len = end;
                out.fill(0);
                Ok(out)
            }
            None => Err(BuildError::BufferTooSmall { needed: end, have }),
        }
    }

    /// Starts an IVHD block; the entries that follow belong to it.
    pub fn ivhd(&mut self, header: &IvhdHeader) -> Result<&mut Self, BuildError> {
        if header.kind == IvhdKind::Type40 && self.revision < REVISION_MIXED {
            return Err(BuildError::RevisionTooLow {
                revision: self.revision,
            });
        }
        let start = self.len;
        header.write(self.grow(header.kind.header_size())?);
        self.block = Some((start, header.kind));
        Ok(self)
    }

    /// Appends a device entry to the IVHD block started last.
    ///
    /// Readers accept 8-byte entries at any multiple of 4; a [`DeviceEntry::Pad4`] aligns them if
    /// that is wanted.
    pub fn entry(&mut self, entry: &DeviceEntry<'_>) -> Result<&mut Self, BuildError> {
        let Some((start, kind)) = self.block else {
            return Err(BuildError::NoBlock { kind: entry.kind() });
        };
        match entry {
            DeviceEntry::AcpiHid { .. } if kind != IvhdKind::Type40 => {
                return Err(BuildError::AcpiHidNotAllowed { kind });
            }
            DeviceEntry::AcpiHid { uid, .. } if uid.len() > 255 => {
                return Err(BuildError::UidTooLong { length: uid.len() });
            }
            DeviceEntry::Unknown { bytes } => {
                let (kind, length) = (entry.kind(), bytes.len());
                if kind > 0x7f || length != 4 << (kind >> 6) {
                    return Err(BuildError::UnknownEntry { kind, length });
                }
            }
            _ => {}
        }
        let size = entry.encoded_len();
        let length = usize::from(u16_at(self.out, start + 2)) + size;
        let Ok(block_length) = u16::try_from(length) else {
            return Err(BuildError::BlockTooLong { length });
        };
        entry.write(self.grow(size)?);
        put(self.out, start + 2, &block_length.to_le_bytes());
        Ok(self)
    }

    /// Appends an IVMD block.
    pub fn ivmd(&mut self, range: &Ivmd) -> Result<&mut Self, BuildError> {
        range.write(self.grow(IVMD_SIZE)?);
        self.block = None;
        Ok(self)
    }

    /// Bytes written so far.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written; never, a table has a header.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the table's length and checksum and returns its bytes.
    pub fn finish(self) -> &'b [u8] {
        let table = &mut self.out[..self.len];
        // ACPI lengths have 32 bits; a table beyond 4 GiB is no use to anyone.
        put(table, 4, &(self.len as u32).to_le_bytes());
        table[9] = 0;
        table[9] = sum(table).wrapping_neg();
        table
    }
}
