use bitfield_struct::bitfield;

/// Device Table Base Address, MMIO 0000h and segments 0100h–0130h (48882 §3.4.1, §3.4.9).
///
/// Segment registers have only eight size bits.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTableBase {
    /// Bits \[8:0\], Size: the table has (Size+1)×4096 bytes, (Size+1)×128 entries.
    #[bits(9)]
    pub size: u16,
    /// Bits \[11:9\], reserved.
    #[bits(3)]
    pub rsvd_11_9: u8,
    /// Bits \[51:12\], DevTabBase as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl DeviceTableBase {
    /// The byte address of the table.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }

    /// Number of entries in the table, 128–65536.
    pub const fn entries(self) -> u32 {
        (self.size() as u32 + 1) * 128
    }
}

/// Base register of a ring: command 0008h, event 0010h, PPR 0038h, GA 00E0h, PPR B 00F0h,
/// event B 00F8h (48882 §3.4.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RingBase {
    /// Bits \[11:0\], reserved.
    #[bits(12)]
    pub rsvd_11_0: u16,
    /// Bits \[51:12\], base as a page number.
    #[bits(40)]
    pub base_page: u64,
    /// Bits \[55:52\], reserved.
    #[bits(4)]
    pub rsvd_55_52: u8,
    /// Bits \[59:56\], length: 2^n entries for 8 ≤ n ≤ 15; smaller values are reserved.
    #[bits(4)]
    pub length: u8,
    /// Bits \[63:60\], reserved.
    #[bits(4)]
    pub rsvd_63_60: u8,
}

impl RingBase {
    /// The smallest defined length encoding.
    pub const MIN_LEN: u8 = 8;

    /// The byte address of the ring.
    pub const fn address(self) -> u64 {
        self.base_page() << 12
    }

    /// Bytes of a ring of 16-byte entries, `None` for a reserved length.
    pub const fn bytes(self) -> Option<u64> {
        if self.length() < Self::MIN_LEN {
            None
        } else {
            Some(1 << (self.length() + 4))
        }
    }
}

/// Head or tail pointer of a ring, MMIO 2000h–2078h (48882 §3.4.13): a byte offset.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RingPointer {
    /// Bits \[18:0\]: byte offset; \[3:0\] are reserved (\[2:0\] for the GA log).
    #[bits(19)]
    pub byte_offset: u32,
    /// Bits \[63:19\], reserved.
    #[bits(45)]
    pub rsvd_63_19: u64,
}

impl RingPointer {
    /// Writable bits of a pointer into a ring of 16-byte entries.
    pub const MASK_16: u64 = 0x7_fff0;
    /// Writable bits of a pointer into the GA log, whose entries have 8 bytes.
    pub const MASK_8: u64 = 0x7_fff8;
}
