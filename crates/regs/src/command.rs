//! Commands (48882 §2.4): 128 bits, opcode in bits \[63:60\].
//!
//! Every bit that a layout does not name is reserved; a command with a reserved bit set is
//! illegal, see [`Command::reserved_bits_set`].

use bitfield_struct::bitfield;

/// Size of a command in bytes.
pub const COMMAND_SIZE: u64 = 16;

/// COMPLETION_WAIT (48882 §2.4.1).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct CompletionWait {
    /// Bit 0, s: store StoreData at StoreAddr.
    pub s: bool,
    /// Bit 1, i: set ComWaitInt.
    pub i: bool,
    /// Bit 2, f: flush queue.
    pub f: bool,
    /// Bits \[51:3\], StoreAddr\[51:3\].
    #[bits(49)]
    pub store_address_8: u64,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], StoreData.
    pub store_data: u64,
}

impl CompletionWait {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x1;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000000_0ff00000_00000000;
}

/// INVALIDATE_DEVTAB_ENTRY (48882 §2.4.2).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvalidateDevtabEntry {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:16\], reserved.
    #[bits(44)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateDevtabEntry {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x2;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffff0000;
}

/// INVALIDATE_IOMMU_PAGES (48882 §2.4.3).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvalidateIommuPages {
    /// Bits \[19:0\], PASID, with GN.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[31:20\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[47:32\], DomainID.
    pub domain_id: u16,
    /// Bits \[59:48\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S: the size is encoded in the address.
    pub s: bool,
    /// Bit 65, PDE: cached upper-level entries too.
    pub pde: bool,
    /// Bit 66, GN: a guest virtual address, PASID is valid.
    pub gn: bool,
    /// Bits \[75:67\], reserved.
    #[bits(9)]
    __: u16,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl InvalidateIommuPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x3;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000ff8_0fff0000_fff00000;
}

/// INVALIDATE_IOTLB_PAGES (48882 §2.4.4).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvalidateIotlbPages {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[23:16\], PASID\[15:8\].
    pub pasid_15_8: u8,
    /// Bits \[31:24\], MaxPend.
    pub max_pend: u8,
    /// Bits \[47:32\], QueueID.
    pub queue_id: u16,
    /// Bits \[55:48\], PASID\[7:0\].
    pub pasid_7_0: u8,
    /// Bits \[59:56\], PASID\[19:16\].
    #[bits(4)]
    pub pasid_19_16: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S.
    pub s: bool,
    /// Bit 65, reserved.
    __: bool,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bit 67, reserved.
    __: bool,
    /// Bits \[69:68\], Type, with InvIotlbTypeSup.
    #[bits(2)]
    pub kind: u8,
    /// Bits \[75:70\], reserved.
    #[bits(6)]
    __: u8,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl InvalidateIotlbPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x4;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000fca_00000000_00000000;
}

/// INVALIDATE_INTERRUPT_TABLE (48882 §2.4.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvalidateInterruptTable {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[59:16\], reserved.
    #[bits(44)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateInterruptTable {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x5;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffff0000;
}

/// PREFETCH_IOMMU_PAGES (48882 §2.4.6).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PrefetchIommuPages {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[23:16\], reserved.
    __: u8,
    /// Bits \[31:24\], PFCount.
    pub pf_count: u8,
    /// Bits \[51:32\], PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bit 64, S.
    pub s: bool,
    /// Bit 65, reserved.
    __: bool,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bit 67, reserved.
    __: bool,
    /// Bit 68, Inval: invalidate first.
    pub inval: bool,
    /// Bits \[75:69\], reserved.
    #[bits(7)]
    __: u8,
    /// Bits \[127:76\], Address\[63:12\].
    #[bits(52)]
    pub address_page: u64,
}

impl PrefetchIommuPages {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x6;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0x00000000_00000fea_0ff00000_00ff0000;
}

/// COMPLETE_PPR_REQUEST (48882 §2.4.7).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct CompletePprRequest {
    /// Bits \[15:0\], DeviceID.
    pub device_id: u16,
    /// Bits \[31:16\], reserved.
    __: u16,
    /// Bits \[51:32\], PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Bits \[59:52\], reserved.
    __: u8,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[65:64\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 66, GN.
    pub gn: bool,
    /// Bits \[95:67\], reserved.
    #[bits(29)]
    __: u32,
    /// Bits \[111:96\], CompletionTag: response code \[15:12\], group index \[8:0\].
    pub completion_tag: u16,
    /// Bits \[127:112\], reserved.
    __: u16,
}

impl CompletePprRequest {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x7;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffff0000_fffffffb_0ff00000_ffff0000;
}

/// INVALIDATE_IOMMU_ALL (48882 §2.4.8).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvalidateIommuAll {
    /// Bits \[59:0\], reserved.
    #[bits(60)]
    __: u64,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InvalidateIommuAll {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x8;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_ffffffff;
}

/// INSERT_GUEST_EVENT (48882 §2.4.9). Where its payload lives is not public.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InsertGuestEvent {
    /// Bits \[31:0\], reserved.
    __: u32,
    /// Bits \[47:32\], GuestID.
    pub guest_id: u16,
    /// Bits \[59:48\], reserved.
    #[bits(12)]
    __: u16,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl InsertGuestEvent {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0x9;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fff0000_ffffffff;
}

/// RESET_VMMIO (48882 §2.4.10).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ResetVmmio {
    /// Bits \[15:0\], GuestID.
    pub guest_id: u16,
    /// Bits \[27:16\], reserved.
    #[bits(12)]
    __: u16,
    /// Bit 28, All.
    pub all: bool,
    /// Bits \[30:29\], reserved.
    #[bits(2)]
    __: u8,
    /// Bit 31, vCmd.
    pub v_cmd: bool,
    /// Bits \[59:32\], reserved.
    #[bits(28)]
    __: u32,
    /// Bits \[63:60\], opcode.
    #[bits(4, default = Self::OPCODE)]
    pub opcode: u8,
    /// Bits \[127:64\], reserved.
    __: u64,
}

impl ResetVmmio {
    /// The value of bits \[63:60\].
    pub const OPCODE: u8 = 0xa;
    /// Bits that must be zero.
    pub const RESERVED: u128 = 0xffffffff_ffffffff_0fffffff_6fff0000;
}

/// A decoded command. Open: an unknown opcode is kept as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl From<CompletionWait> for Command {
    fn from(entry: CompletionWait) -> Self {
        Self::CompletionWait(entry)
    }
}

impl From<InvalidateDevtabEntry> for Command {
    fn from(entry: InvalidateDevtabEntry) -> Self {
        Self::InvalidateDevtabEntry(entry)
    }
}

impl From<InvalidateIommuPages> for Command {
    fn from(entry: InvalidateIommuPages) -> Self {
        Self::InvalidateIommuPages(entry)
    }
}

impl From<InvalidateIotlbPages> for Command {
    fn from(entry: InvalidateIotlbPages) -> Self {
        Self::InvalidateIotlbPages(entry)
    }
}

impl From<InvalidateInterruptTable> for Command {
    fn from(entry: InvalidateInterruptTable) -> Self {
        Self::InvalidateInterruptTable(entry)
    }
}

impl From<PrefetchIommuPages> for Command {
    fn from(entry: PrefetchIommuPages) -> Self {
        Self::PrefetchIommuPages(entry)
    }
}

impl From<CompletePprRequest> for Command {
    fn from(entry: CompletePprRequest) -> Self {
        Self::CompletePprRequest(entry)
    }
}

impl From<InvalidateIommuAll> for Command {
    fn from(entry: InvalidateIommuAll) -> Self {
        Self::InvalidateIommuAll(entry)
    }
}

impl From<InsertGuestEvent> for Command {
    fn from(entry: InsertGuestEvent) -> Self {
        Self::InsertGuestEvent(entry)
    }
}

impl From<ResetVmmio> for Command {
    fn from(entry: ResetVmmio) -> Self {
        Self::ResetVmmio(entry)
    }
}
