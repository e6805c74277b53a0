//! Commands (48882 §2.4): 128 bits, opcode in bits \[63:60\].
//!
//! Every bit that a layout does not name is reserved; a command with a reserved bit set is
//! illegal, see [`Command::reserved_bits_set`].

mod display;
mod formats;
mod range;

pub use formats::{
    CompletePprRequest, CompletionWait, InsertGuestEvent, InvalidateDevtabEntry,
    InvalidateInterruptTable, InvalidateIommuAll, InvalidateIommuPages, InvalidateIotlbPages,
    PrefetchIommuPages, ResetVmmio,
};
pub use range::InvalidationRange;

/// Size of a command in bytes.
pub const COMMAND_SIZE: u64 = 16;

/// A decoded command. Open: an unknown opcode is kept as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Command {
    /// COMPLETION_WAIT.
    CompletionWait(CompletionWait),
    /// INVALIDATE_DEVTAB_ENTRY.
    InvalidateDevtabEntry(InvalidateDevtabEntry),
    /// INVALIDATE_IOMMU_PAGES.
    InvalidateIommuPages(InvalidateIommuPages),
    /// INVALIDATE_IOTLB_PAGES.
    InvalidateIotlbPages(InvalidateIotlbPages),
    /// INVALIDATE_INTERRUPT_TABLE.
    InvalidateInterruptTable(InvalidateInterruptTable),
    /// PREFETCH_IOMMU_PAGES.
    PrefetchIommuPages(PrefetchIommuPages),
    /// COMPLETE_PPR_REQUEST.
    CompletePprRequest(CompletePprRequest),
    /// INVALIDATE_IOMMU_ALL.
    InvalidateIommuAll(InvalidateIommuAll),
    /// INSERT_GUEST_EVENT.
    InsertGuestEvent(InsertGuestEvent),
    /// RESET_VMMIO.
    ResetVmmio(ResetVmmio),
    /// An opcode that the specification does not define.
    Unknown(u128),
}

impl Command {
    /// Decodes the two words of an entry as they stand in memory, low word first. Never fails.
    pub const fn decode(words: [u64; 2]) -> Self {
        let bits = words[0] as u128 | (words[1] as u128) << 64;
        match (words[0] >> 60) as u8 {
            CompletionWait::OPCODE => Self::CompletionWait(CompletionWait::from_bits(bits)),
            InvalidateDevtabEntry::OPCODE => {
                Self::InvalidateDevtabEntry(InvalidateDevtabEntry::from_bits(bits))
            }
            InvalidateIommuPages::OPCODE => {
                Self::InvalidateIommuPages(InvalidateIommuPages::from_bits(bits))
            }
            InvalidateIotlbPages::OPCODE => {
                Self::InvalidateIotlbPages(InvalidateIotlbPages::from_bits(bits))
            }
            InvalidateInterruptTable::OPCODE => {
                Self::InvalidateInterruptTable(InvalidateInterruptTable::from_bits(bits))
            }
            PrefetchIommuPages::OPCODE => {
                Self::PrefetchIommuPages(PrefetchIommuPages::from_bits(bits))
            }
            CompletePprRequest::OPCODE => {
                Self::CompletePprRequest(CompletePprRequest::from_bits(bits))
            }
            InvalidateIommuAll::OPCODE => {
                Self::InvalidateIommuAll(InvalidateIommuAll::from_bits(bits))
            }
            InsertGuestEvent::OPCODE => Self::InsertGuestEvent(InsertGuestEvent::from_bits(bits)),
            ResetVmmio::OPCODE => Self::ResetVmmio(ResetVmmio::from_bits(bits)),
            _ => Self::Unknown(bits),
        }
    }

    /// All 128 bits.
    pub const fn bits(&self) -> u128 {
        match self {
            Self::CompletionWait(entry) => entry.into_bits(),
            Self::InvalidateDevtabEntry(entry) => entry.into_bits(),
            Self::InvalidateIommuPages(entry) => entry.into_bits(),
            Self::InvalidateIotlbPages(entry) => entry.into_bits(),
            Self::InvalidateInterruptTable(entry) => entry.into_bits(),
            Self::PrefetchIommuPages(entry) => entry.into_bits(),
            Self::CompletePprRequest(entry) => entry.into_bits(),
            Self::InvalidateIommuAll(entry) => entry.into_bits(),
            Self::InsertGuestEvent(entry) => entry.into_bits(),
            Self::ResetVmmio(entry) => entry.into_bits(),
            Self::Unknown(bits) => *bits,
        }
    }

    /// The two words as they stand in memory, low word first.
    pub const fn words(&self) -> [u64; 2] {
        let bits = self.bits();
        [bits as u64, (bits >> 64) as u64]
    }

    /// The bits that are set although the command's layout reserves them.
    pub const fn reserved_bits_set(&self) -> u128 {
        match self {
            Self::CompletionWait(c) => c.into_bits() & CompletionWait::RESERVED,
            Self::InvalidateDevtabEntry(c) => c.into_bits() & InvalidateDevtabEntry::RESERVED,
            Self::InvalidateIommuPages(c) => c.into_bits() & InvalidateIommuPages::RESERVED,
            Self::InvalidateIotlbPages(c) => c.into_bits() & InvalidateIotlbPages::RESERVED,
            Self::InvalidateInterruptTable(c) => c.into_bits() & InvalidateInterruptTable::RESERVED,
            Self::PrefetchIommuPages(c) => c.into_bits() & PrefetchIommuPages::RESERVED,
            Self::CompletePprRequest(c) => c.into_bits() & CompletePprRequest::RESERVED,
            Self::InvalidateIommuAll(c) => c.into_bits() & InvalidateIommuAll::RESERVED,
            Self::InsertGuestEvent(c) => c.into_bits() & InsertGuestEvent::RESERVED,
            Self::ResetVmmio(c) => c.into_bits() & ResetVmmio::RESERVED,
            Self::Unknown(_) => 0,
        }
    }
}

macro_rules! from_command {
    ($($name:ident),* $(,)?) => {
        $(
            impl From<$name> for Command {
                fn from(entry: $name) -> Self {
                    Self::$name(entry)
                }
            }
        )*
    };
}

from_command!(
    CompletionWait,
    InvalidateDevtabEntry,
    InvalidateIommuPages,
    InvalidateIotlbPages,
    InvalidateInterruptTable,
    PrefetchIommuPages,
    CompletePprRequest,
    InvalidateIommuAll,
    InsertGuestEvent,
    ResetVmmio,
);
