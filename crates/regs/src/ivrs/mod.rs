//! I/O Virtualization Reporting Structure, the ACPI table "IVRS" (48882 §5.2).
//!
//! [`Ivrs::parse`] reads a table from any bytes: iteration is bounded by their number, ends at the
//! first block or entry that makes no sense, and never panics. [`IvrsBuilder`] writes a table with
//! correct lengths and checksum. Neither allocates.
//!
//! ```
//! use amdvi_regs::DeviceId;
//! use amdvi_regs::ivrs::{
//!     Block, DeviceEntry, DteSetting, Ivrs, IvrsBuilder, IvhdHeader, IvhdKind, SpecialVariety,
//!     TableHeader,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut buffer = [0; 256];
//! let mut builder = IvrsBuilder::new(&mut buffer, &TableHeader::default())?;
//! builder.ivhd(&IvhdHeader {
//!     device_id: DeviceId::new(0, 0, 2),
//!     capability_offset: 0x40,
//!     mmio_base: 0xfed8_0000,
//!     ..IvhdHeader::new(IvhdKind::Type11)
//! })?;
//! builder.entry(&DeviceEntry::All { setting: DteSetting::new() })?;
//! builder.entry(&DeviceEntry::Special {
//!     setting: DteSetting::new(),
//!     handle: 0,
//!     device: DeviceId::new(0, 0x14, 0),
//!     variety: SpecialVariety::IoApic,
//! })?;
//! let table = builder.finish();
//!
//! let ivrs = Ivrs::parse(table)?;
//! assert!(ivrs.checksum_is_valid());
//! for block in ivrs.blocks() {
//!     if let Block::Hardware(unit) = block? {
//!         assert_eq!(unit.entries().count(), 2);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod build;
mod bytes;
mod entry;
mod ivhd;
mod ivmd;

use core::fmt;

use bitfield_struct::bitfield;

pub use build::{BuildError, IvrsBuilder};
pub use entry::{DeviceEntries, DeviceEntry, DteSetting, ExtendedSetting, SpecialVariety, Uid};
pub use ivhd::{Ivhd, IvhdAttributes, IvhdFeatures, IvhdFlags, IvhdHeader, IvhdInfo, IvhdKind};
pub use ivmd::{IVMD_SIZE, Ivmd, IvmdFlags, IvmdKind};

use crate::fmt::{Always, display_fields};
use bytes::{array_at, u16_at, u32_at};

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"IVRS";
/// Bytes before the first block: the ACPI header, IVinfo and eight reserved bytes.
pub const HEADER_SIZE: usize = 48;
/// Revision of a table with fixed blocks only (10h, 11h).
pub const REVISION_FIXED: u8 = 1;
/// Revision of a table that may have blocks of type 40h.
pub const REVISION_MIXED: u8 = 2;

/// IVinfo, the 32-bit word at offset 24h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IvInfo {
    /// Bit 0, EFRSup: the blocks carry feature information.
    pub efr_sup: bool,
    /// Bit 1, DMARemapSup: pre-boot DMA protection.
    pub dma_remap_sup: bool,
    /// Bits \[4:2\], reserved.
    #[bits(3)]
    pub rsvd_4_2: u8,
    /// Bits \[7:5\], GVAsize: 2 = 48-bit guest virtual addresses.
    #[bits(3)]
    pub gva_size: u8,
    /// Bits \[14:8\], PAsize: bits of a physical address.
    #[bits(7)]
    pub pa_size: u8,
    /// Bits \[21:15\], VAsize: bits of a virtual address.
    #[bits(7)]
    pub va_size: u8,
    /// Bit 22, HtAtsResv: the ATS range is reserved on HyperTransport.
    pub ht_ats_resv: bool,
    /// Bits \[31:23\], reserved.
    #[bits(9)]
    pub rsvd_31_23: u16,
}

impl IvInfo {
    /// Bits without a defined meaning.
    pub const RESERVED: u32 = 0xff80_001c;
}

display_fields!(IvInfo, reserved IvInfo::RESERVED, {
    "EFRSup": efr_sup,
    "DMARemapSup": dma_remap_sup,
    "GVAsize": gva_size as Always,
    "PAsize": pa_size as Always,
    "VAsize": va_size as Always,
    "HtAtsResv": ht_ats_resv,
});

/// The table header without its length and checksum, which follow from the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TableHeader {
    /// Revision, [`REVISION_FIXED`] or [`REVISION_MIXED`].
    pub revision: u8,
    /// OEM ID.
    pub oem_id: [u8; 6],
    /// OEM table ID.
    pub oem_table_id: [u8; 8],
    /// OEM revision.
    pub oem_revision: u32,
    /// Creator ID.
    pub creator_id: [u8; 4],
    /// Creator revision.
    pub creator_revision: u32,
    /// IVinfo.
    pub iv_info: IvInfo,
}

impl Default for TableHeader {
    /// Revision 2; EFRSup; 48-bit guest virtual and physical addresses, 64-bit virtual ones.
    fn default() -> Self {
        Self {
            revision: REVISION_MIXED,
            oem_id: *b"AMDVI ",
            oem_table_id: *b"AMDVIOMU",
            oem_revision: 1,
            creator_id: *b"AMVI",
            creator_revision: 1,
            iv_info: IvInfo::new()
                .with_efr_sup(true)
                .with_gva_size(2)
                .with_pa_size(48)
                .with_va_size(64),
        }
    }
}

impl fmt::Display for TableHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IVRS revision={} oem=\"{}\" table=\"{}\" {}",
            self.revision,
            self.oem_id.escape_ascii(),
            self.oem_table_id.escape_ascii(),
            self.iv_info
        )
    }
}

/// Why bytes are no IVRS, or where reading one ended early. Offsets count from the table's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvrsError {
    /// Fewer bytes than the header has.
    TooShort {
        /// Bytes given.
        have: usize,
    },
    /// Another signature.
    Signature([u8; 4]),
    /// The length field is below the header size or beyond the bytes given.
    Length {
        /// The length field.
        length: u32,
        /// Bytes given.
        have: usize,
    },
    /// A block whose length is below its type's minimum or beyond the table's end.
    Block {
        /// Where the block starts.
        offset: usize,
        /// Its type.
        kind: u8,
        /// Its length field; 0 if the table ends before it.
        length: usize,
        /// The smallest length that its type allows.
        minimum: usize,
        /// Bytes left in the table.
        left: usize,
    },
    /// A device entry that reaches beyond its block.
    Entry {
        /// Where the entry starts.
        offset: usize,
        /// Its type.
        kind: u8,
        /// Its length.
        length: usize,
        /// Bytes left in the block.
        left: usize,
    },
    /// A device entry of a type whose length is not known, so that what follows can't be read.
    UnknownEntry {
        /// Where the entry starts.
        offset: usize,
        /// Its type.
        kind: u8,
    },
}

impl fmt::Display for IvrsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { have } => {
                write!(
                    f,
                    "IVRS has {have} bytes, its header alone needs {HEADER_SIZE}"
                )
            }
            Self::Signature(found) => {
                write!(f, "signature is \"{}\", not \"IVRS\"", found.escape_ascii())
            }
            Self::Length { length, have } => write!(
                f,
                "IVRS length field is {length}, accepted is {HEADER_SIZE} to {have}"
            ),
            Self::Block {
                offset,
                kind,
                length,
                minimum,
                left,
            } => write!(
                f,
                "IVRS block of type {kind:02x}h at offset {offset:#x} has length {length}, \
                 accepted is {minimum} to {left}"
            ),
            Self::Entry {
                offset,
                kind,
                length,
                left,
            } => write!(
                f,
                "IVHD device entry of type {kind:02x}h at offset {offset:#x} has {length} bytes, \
                 its block has {left} left"
            ),
            Self::UnknownEntry { offset, kind } => write!(
                f,
                "IVHD device entry at offset {offset:#x} has type {kind:02x}h, whose length is \
                 not known"
            ),
        }
    }
}

impl core::error::Error for IvrsError {}

/// An IVRS in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivrs<'a> {
    /// Exactly the bytes that the length field covers, at least a header.
    bytes: &'a [u8],
}

impl<'a> Ivrs<'a> {
    /// Checks signature and length; `bytes` may be longer than the table. The checksum does not
    /// count, see [`Ivrs::checksum_is_valid`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, IvrsError> {
        let have = bytes.len();
        if have < HEADER_SIZE {
            return Err(IvrsError::TooShort { have });
        }
        let signature = array_at(bytes, 0);
        if signature != SIGNATURE {
            return Err(IvrsError::Signature(signature));
        }
        let length = u32_at(bytes, 4);
        let error = IvrsError::Length { length, have };
        let length = usize::try_from(length).map_err(|_| error)?;
        match bytes.get(..length) {
            Some(bytes) if length >= HEADER_SIZE => Ok(Self { bytes }),
            _ => Err(error),
        }
    }

    /// The bytes of the table.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether all bytes add up to zero, as ACPI demands.
    pub fn checksum_is_valid(&self) -> bool {
        bytes::sum(self.bytes) == 0
    }

    /// The header.
    pub fn header(&self) -> TableHeader {
        TableHeader {
            revision: self.bytes[8],
            oem_id: array_at(self.bytes, 10),
            oem_table_id: array_at(self.bytes, 16),
            oem_revision: u32_at(self.bytes, 24),
            creator_id: array_at(self.bytes, 28),
            creator_revision: u32_at(self.bytes, 32),
            iv_info: IvInfo::from_bits(u32_at(self.bytes, 36)),
        }
    }

    /// The blocks in table order.
    pub fn blocks(&self) -> Blocks<'a> {
        Blocks {
            bytes: self.bytes,
            offset: HEADER_SIZE,
        }
    }
}

impl fmt::Display for Ivrs<'_> {
    /// One line for the header, one per block and, indented, one per device entry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.header())?;
        if !self.checksum_is_valid() {
            f.write_str(" checksum=bad")?;
        }
        for block in self.blocks() {
            match block {
                Ok(Block::Hardware(unit)) => {
                    write!(f, "\n{unit}")?;
                    for entry in unit.entries() {
                        match entry {
                            Ok(entry) => write!(f, "\n  {entry}")?,
                            Err(error) => write!(f, "\n  error: {error}")?,
                        }
                    }
                }
                Ok(block) => write!(f, "\n{block}")?,
                Err(error) => write!(f, "\nerror: {error}")?,
            }
        }
        Ok(())
    }
}

/// One block of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// An IOMMU: IVHD of type 10h, 11h or 40h.
    Hardware(Ivhd<'a>),
    /// A memory range: IVMD of type 20h, 21h or 22h.
    Memory(Ivmd),
    /// A type that the specification does not define, header included.
    Unknown {
        /// The type.
        kind: u8,
        /// All bytes of the block.
        bytes: &'a [u8],
    },
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(unit) => unit.fmt(f),
            Self::Memory(range) => range.fmt(f),
            Self::Unknown { kind, bytes } => {
                write!(f, "block {kind:02x}h, {} bytes", bytes.len())
            }
        }
    }
}

/// Iterator over the blocks of a table. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, IvrsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let kind = rest[0];
        let hardware = IvhdKind::from_bits(kind);
        let memory = IvmdKind::from_bits(kind);
        let minimum = match (hardware, memory) {
            (Some(kind), _) => kind.header_size(),
            (_, Some(_)) => IVMD_SIZE,
            // Type, flags and length.
            _ => 4,
        };
        let length = if rest.len() < 4 {
            0
        } else {
            usize::from(u16_at(rest, 2))
        };
        let Some(bytes) = rest.get(..length).filter(|_| length >= minimum) else {
            self.offset = self.bytes.len();
            return Some(Err(IvrsError::Block {
                offset,
                kind,
                length,
                minimum,
                left: rest.len(),
            }));
        };
        self.offset = offset + length;
        Some(Ok(match (hardware, memory) {
            (Some(kind), _) => Block::Hardware(Ivhd::from_block(kind, bytes, offset)),
            (_, Some(kind)) => Block::Memory(Ivmd::from_block(kind, bytes)),
            _ => Block::Unknown { kind, bytes },
        }))
    }
}

impl core::iter::FusedIterator for Blocks<'_> {}
