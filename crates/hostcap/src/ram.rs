//! Where RAM goes, from early facts only.
//!
//! The HyperTransport range fd_0000_0000–ff_ffff_ffff of an AMD host's physical addresses is not
//! memory: its IOMMU does not translate what a passed-through function sends there. RAM of a
//! guest must not lie there, unless every IOMMU ignores the range (EFR2.HTRangeIgnore). This is
//! decided before any device is bound, which is why [`plan`] takes [`EarlyFacts`] and nothing
//! else.

use std::fmt;

use serde::Serialize;

use crate::answer::Situation;
use crate::fact::{Early, Fact, Subject};
use crate::facts::EarlyFacts;
use crate::feature::Feature;
use crate::scope::Scope;

/// First address of the HyperTransport range.
pub const HT_HOLE_BASE: u64 = 0xfd_0000_0000;
/// First address above it: 1 TiB.
pub const HT_HOLE_END: u64 = 1 << 40;
/// 4 GiB.
pub const FOUR_GIB: u64 = 1 << 32;
const PAGE: u64 = 4096;

/// What RAM is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRequest {
    /// Bytes of RAM; a multiple of 4 KiB.
    pub size: u64,
    /// Where RAM below 4 GiB ends at the latest: what follows up to 4 GiB is devices'.
    pub low_end: u64,
    /// Bits of a guest physical address (CPUID 8000_0008h).
    pub phys_bits: u8,
    /// When RAM above 4 GiB moves.
    pub moves: Moves,
}

/// When RAM above 4 GiB moves above 1 TiB, given that the HyperTransport range counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moves {
    /// Always: the space between 4 GiB and the range is left to 64-bit BARs and hot-plugged RAM,
    /// and where RAM lies does not depend on how much there is.
    #[default]
    Always,
    /// Only if it would reach into the range: for guests with few physical address bits.
    WhenReached,
}

impl RamRequest {
    /// `size` bytes, up to 3 GiB of them below 4 GiB, 48 address bits.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            low_end: 3 << 30,
            phys_bits: 48,
            moves: Moves::Always,
        }
    }
}

/// What a region of the guest's memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RegionKind {
    /// RAM.
    Ram,
    /// Addresses that must not be used.
    Reserved,
}

impl RegionKind {
    /// The type in an e820 map: 1 or 2.
    pub const fn e820(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// A region of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Region {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// The first address behind it.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RegionKind::Ram => "RAM",
            RegionKind::Reserved => "reserved",
        };
        let last = self.end() - 1;
        write!(
            f,
            "{:#014x}-{last:#014x} {kind:8} {:>12} KiB",
            self.base,
            self.size >> 10
        )
    }
}

/// Where the RAM that does not fit below 4 GiB lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// All fits below 4 GiB.
    #[serde(rename = "below-4-gib")]
    BelowFourGib,
    /// From 4 GiB on.
    #[serde(rename = "above-4-gib")]
    AboveFourGib,
    /// From 1 TiB on.
    #[serde(rename = "above-1-tib")]
    AboveOneTib,
}

/// A plan: what a VMM maps, and what its guest's memory map (e820) says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RamLayout {
    /// The regions, in ascending order, none overlapping another.
    pub regions: Vec<Region>,
    /// Where the upper part lies.
    pub placement: Placement,
    /// One sentence why.
    pub reason: String,
}

impl RamLayout {
    /// The regions that are RAM.
    pub fn ram(&self) -> impl Iterator<Item = &Region> {
        self.regions
            .iter()
            .filter(|region| region.kind == RegionKind::Ram)
    }
}

/// RAM that can't be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// Nothing, or not whole pages.
    #[error("{size} bytes of RAM can't be placed; accepted: a multiple of 4096 above 0")]
    Size {
        /// The size.
        size: u64,
    },
    /// RAM below 4 GiB would end at no page, or above 4 GiB.
    #[error(
        "RAM below 4 GiB can't end at {low_end:#x}; accepted: a multiple of 4096 above 0 and up \
         to 0x100000000"
    )]
    LowEnd {
        /// The address.
        low_end: u64,
    },
    /// A guest physical address has fewer bits than RAM needs.
    #[error(
        "RAM would end at {end:#x}, but a guest physical address has {phys_bits} bits; use less \
         RAM, a CPU model with more bits, or a host where it need not move ({reason})"
    )]
    Bits {
        /// The first address behind RAM.
        end: u128,
        /// The bits.
        phys_bits: u8,
        /// Why RAM lies there.
        reason: String,
    },
}

/// Whether the HyperTransport range counts, and why.
struct Hole {
    counts: bool,
    why: String,
}

fn hole(facts: &EarlyFacts) -> Hole {
    if facts.situation() == Situation::Emulated {
        return Hole {
            counts: false,
            why: "no function is passed through, so no host IOMMU sees the guest's RAM".into(),
        };
    }
    let said = |on: bool| {
        facts.iter().find(|fact: &&Fact<Early>| {
            // That the range is not there is only believed of the whole host.
            fact.subject() == Subject::HtHole
                && fact.value().is_on() == on
                && (on || *fact.scope() == Scope::Host)
        })
    };
    let host = match (said(true), said(false)) {
        (Some(yes), _) => format!(
            "the host's addresses have the HyperTransport range, says {}",
            yes.statement
        ),
        (None, Some(no)) => {
            return Hole {
                counts: false,
                why: format!(
                    "the host's addresses do not have the HyperTransport range, says {}",
                    no.statement
                ),
            };
        }
        (None, None) => "nothing shows that the host is without the HyperTransport range".into(),
    };
    let decision = facts.decide(Feature::HtRangeIgnore, true);
    let reason = decision.reason.trim_end_matches('.');
    // Nobody asked for the feature here, so that nobody can drop it.
    let reason = reason
        .strip_suffix("; drop htrangeignore or use a host that has it")
        .unwrap_or(reason);
    Hole {
        counts: !decision.is_granted(),
        why: format!("{host}; {reason}"),
    }
}

/// Places RAM.
///
/// Up to `low_end` it lies below 4 GiB. The rest lies at 4 GiB, unless the HyperTransport range
/// counts: then it moves above 1 TiB, and the range is listed as reserved. The range counts for a
/// guest with passed-through functions unless the host is shown to be without it, or shown to
/// ignore it.
///
/// # Errors
/// The request makes no sense, or RAM would lie beyond the guest's address bits.
pub fn plan(request: &RamRequest, facts: &EarlyFacts) -> Result<RamLayout, RamError> {
    let RamRequest {
        size,
        low_end,
        phys_bits,
        moves,
    } = *request;
    if size == 0 || size % PAGE != 0 {
        return Err(RamError::Size { size });
    }
    if low_end == 0 || low_end % PAGE != 0 || low_end > FOUR_GIB {
        return Err(RamError::LowEnd { low_end });
    }
    let Hole { counts, why } = hole(facts);
    let low = size.min(low_end);
    let high = size - low;
    // In 128 bits: a size is any number.
    let reaches = u128::from(FOUR_GIB) + u128::from(high) > u128::from(HT_HOLE_BASE);
    let moved = counts && (moves == Moves::Always || reaches);
    let (placement, base, text) = match (high, moved) {
        (0, _) => (Placement::BelowFourGib, 0, "all RAM fits below 4 GiB"),
        (_, true) => (
            Placement::AboveOneTib,
            HT_HOLE_END,
            "RAM above 4 GiB moves above 1 TiB",
        ),
        (_, false) if counts => (
            Placement::AboveFourGib,
            FOUR_GIB,
            "RAM stays at 4 GiB because it ends below the HyperTransport range, though",
        ),
        (_, false) => (Placement::AboveFourGib, FOUR_GIB, "RAM stays at 4 GiB"),
    };
    let reason = match (placement, counts) {
        (Placement::BelowFourGib, _) => format!("{text}."),
        (Placement::AboveFourGib, true) => format!("{text} {why}."),
        _ => format!("{text}: {why}."),
    };
    let end = u128::from(base) + u128::from(high);
    let end = end.max(u128::from(low));
    if end > 1u128.checked_shl(phys_bits.into()).unwrap_or(u128::MAX) || end > 1 << 63 {
        return Err(RamError::Bits {
            end,
            phys_bits,
            reason,
        });
    }
    let region = |base, size, kind| Region { base, size, kind };
    let mut regions = vec![region(0, low, RegionKind::Ram)];
    if high > 0 {
        regions.push(region(base, high, RegionKind::Ram));
    }
    // Below 2^40 bits of address there is no such range in the guest.
    if counts && phys_bits >= 40 {
        let size = HT_HOLE_END - HT_HOLE_BASE;
        regions.push(region(HT_HOLE_BASE, size, RegionKind::Reserved));
    }
    regions.sort_by_key(|region| region.base);
    Ok(RamLayout {
        regions,
        placement,
        reason,
    })
}
