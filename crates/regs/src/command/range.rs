//! The address and size of an invalidation (48882 §2.4.3): one 64-bit word and the S bit.

use core::fmt;

use super::{InvalidateIommuPages, InvalidateIotlbPages, PrefetchIommuPages};

/// What the Address and S fields of INVALIDATE_IOMMU_PAGES, INVALIDATE_IOTLB_PAGES and
/// PREFETCH_IOMMU_PAGES stand for.
///
/// With S=0 the range is the 4 KiB page at Address. With S=1 the lowest zero bit k at or above bit
/// 12 gives the size, 2^(k+1) bytes, and the range is the naturally aligned block of that size
/// around Address; the bits below k are ones. All ones up to bit 62 stands for everything, with
/// bit 63 clear. With bit 63 set as well there is no zero bit, which the specification does not
/// define; it decodes as everything, because a driver that writes it means that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum InvalidationRange {
    /// A naturally aligned block of 2^`size_log2` bytes.
    Block {
        /// First byte address; a multiple of the size.
        start: u64,
        /// log2 of the size in bytes, 12–63.
        size_log2: u8,
    },
    /// The whole 64-bit address space.
    All,
}

impl InvalidationRange {
    /// The address word that stands for everything, with S=1.
    pub const ALL_ADDRESS: u64 = 0x7fff_ffff_ffff_f000;

    /// Decodes Address\[63:12\] (bits \[11:0\] of `address` are ignored) and S. Never fails.
    pub const fn decode(address: u64, s: bool) -> Self {
        let address = address & !0xfff;
        if !s {
            return Self::Block {
                start: address,
                size_log2: 12,
            };
        }
        // Bits [11:0] count as ones, so that the search starts at bit 12.
        let lowest_zero = (address | 0xfff).trailing_ones();
        if lowest_zero >= 63 {
            return Self::All;
        }
        let size_log2 = lowest_zero + 1;
        Self::Block {
            start: address & !((1 << size_log2) - 1),
            size_log2: size_log2 as u8,
        }
    }

    /// The address word (bits \[11:0\] zero) and the S bit that stand for this range.
    ///
    /// A `size_log2` below 12 counts as 12 and one above 63 as [`InvalidationRange::All`]; bits of
    /// `start` below the size are dropped.
    pub const fn encode(self) -> (u64, bool) {
        match self {
            Self::Block { start, size_log2 } if size_log2 <= 12 => (start & !0xfff, false),
            Self::Block { start, size_log2 } if size_log2 <= 63 => {
                let below_k = (1u64 << (size_log2 - 1)) - 1;
                let aligned = start & !((1u64 << size_log2) - 1);
                ((aligned | below_k) & !0xfff, true)
            }
            _ => (Self::ALL_ADDRESS, true),
        }
    }

    /// The smallest range that covers all bytes from `first` to `last` inclusive; the two may come
    /// in either order.
    pub const fn covering(first: u64, last: u64) -> Self {
        let differing = 64 - (first ^ last).leading_zeros();
        if differing > 63 {
            return Self::All;
        }
        let size_log2 = if differing < 12 { 12 } else { differing };
        Self::Block {
            start: first & !((1 << size_log2) - 1),
            size_log2: size_log2 as u8,
        }
    }

    /// The first byte of the range.
    pub const fn first(self) -> u64 {
        match self {
            Self::Block { start, .. } => start,
            Self::All => 0,
        }
    }

    /// The last byte of the range, inclusive: a range may end at the top of the address space.
    pub const fn last(self) -> u64 {
        match self {
            Self::Block { start, size_log2 } if size_log2 < 64 => start | ((1u64 << size_log2) - 1),
            _ => u64::MAX,
        }
    }

    /// Whether `address` lies in the range.
    pub const fn contains(self, address: u64) -> bool {
        self.first() <= address && address <= self.last()
    }

    /// Whether the range and the bytes from `first` to `last` inclusive have one in common.
    pub const fn overlaps(self, first: u64, last: u64) -> bool {
        self.first() <= last && first <= self.last()
    }
}

impl fmt::Display for InvalidationRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { start, size_log2 } => write!(f, "{start:#x}+2^{size_log2}"),
            Self::All => f.write_str("all"),
        }
    }
}

macro_rules! impl_range {
    ($($name:ident),*) => {
        $(
            impl $name {
                /// What Address and S stand for.
                pub const fn range(self) -> InvalidationRange {
                    InvalidationRange::decode(self.address_page() << 12, self.s())
                }

                /// Sets Address and S so that they stand for `range`.
                #[must_use]
                pub const fn with_range(self, range: InvalidationRange) -> Self {
                    let (address, s) = range.encode();
                    self.with_address_page(address >> 12).with_s(s)
                }
            }
        )*
    };
}

impl_range!(
    InvalidateIommuPages,
    InvalidateIotlbPages,
    PrefetchIommuPages
);
