//! The machine's RAM: how much, where the planner of `amdvi-hostcap` puts it, and what the guest's
//! memory map says of it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use amdvi_device::pci;
use amdvi_hostcap::ram::{
    self, FOUR_GIB, HT_HOLE_BASE, HT_HOLE_END, Moves, RamLayout, RamRequest, Region,
};
use amdvi_hostcap::{EarlyFacts, Situation};
use amdvi_vmm_glue::dirty::DirtyPages;
use clap::ValueEnum;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::layout;

/// Guest RAM, which can log the pages that devices write.
pub type Memory = GuestMemoryMmap<DirtyPages>;

/// Address bits with which RAM can lie above 1 TiB.
const BITS_ABOVE_ONE_TIB: u8 = 41;
/// The most that a heap above 4 GiB takes: what one more page directory maps for the payload.
const HIGH_HEAP: u64 = 1 << 30;

/// Size and alignment of the window for BARs above 4 GiB.
const HIGH_BARS: u64 = 64 << 30;

/// `--memory`: bytes of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSize(u64);

impl RamSize {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for RamSize {
    fn default() -> Self {
        Self(layout::RAM_SIZE)
    }
}

/// A size that RAM can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no size of RAM; accepted: 64M to 4T, whole pages of 4K, as a number of bytes or with \
     K, M, G or T"
)]
pub struct RamSizeError(String);

impl FromStr for RamSize {
    type Err = RamSizeError;

    fn from_str(text: &str) -> Result<Self, RamSizeError> {
        let error = || RamSizeError(text.to_owned());
        let (digits, shift) = match text.char_indices().last().ok_or_else(error)? {
            (at, 'K' | 'k') => (&text[..at], 10),
            (at, 'M' | 'm') => (&text[..at], 20),
            (at, 'G' | 'g') => (&text[..at], 30),
            (at, 'T' | 't') => (&text[..at], 40),
            _ => (text, 0),
        };
        // `parse` alone would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(error)?;
        let possible = (layout::RAM_SIZE..=layout::MAX_RAM_SIZE).contains(&bytes);
        if possible && bytes.is_multiple_of(4096) {
            Ok(Self(bytes))
        } else {
            Err(error())
        }
    }
}

impl fmt::Display for RamSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&size(self.0))
    }
}

/// Bytes in the largest unit that leaves a whole number.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// Where the guest takes memory for its tables, rings and DMA buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Heap {
    /// In RAM below 4 GiB
    #[default]
    Low,
    /// In RAM above 4 GiB, wherever that lies
    High,
}

/// What RAM is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamWish {
    /// How much.
    pub size: RamSize,
    /// Where the guest's heap is.
    pub heap: Heap,
    /// Bits of a guest physical address that the CPUs have.
    pub phys_bits: u8,
}

impl Default for RamWish {
    /// 64 MiB, and CPUs with as many address bits as the IVRS gives the machine.
    fn default() -> Self {
        Self {
            size: RamSize::default(),
            heap: Heap::Low,
            phys_bits: pci::PHYSICAL_ADDRESS_BITS,
        }
    }
}

/// RAM that the machine can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// The planner can't place it.
    #[error("--memory {size}: {error}")]
    Place {
        /// The size.
        size: RamSize,
        /// Why.
        error: ram::RamError,
    },
    /// There is no RAM for the heap.
    #[error(
        "--heap high: all of the {size} of RAM lie below 4 GiB; accepted with a --memory above 3G, \
         such as 10G"
    )]
    NoHighRam {
        /// The size.
        size: RamSize,
    },
}

/// An entry of the guest's memory map: first address, bytes, and the type as e820 numbers it
/// (1 RAM, 2 reserved).
pub type E820Entry = (u64, u64, u32);

/// Where RAM lies, and where in it the guest's heap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    layout: RamLayout,
    heap: Heap,
}

impl Ram {
    /// Places RAM: what of it does not fit below the BARs of 32 bits moves above 4 GiB, or above
    /// 1 TiB where the host may have the HyperTransport range.
    ///
    /// # Errors
    /// The CPUs' addresses are too short for it, or the heap is to be where there is no RAM.
    pub fn plan(wish: &RamWish, facts: &EarlyFacts) -> Result<Self, RamError> {
        let size = wish.size;
        let phys_bits = wish.phys_bits.min(pci::PHYSICAL_ADDRESS_BITS);
        let request = RamRequest {
            size: size.0,
            low_end: layout::PCI_MEMORY,
            phys_bits,
            // CPUs that can't reach above 1 TiB may still have what ends below the range.
            moves: if phys_bits < BITS_ABOVE_ONE_TIB {
                Moves::WhenReached
            } else {
                Moves::Always
            },
        };
        let layout = ram::plan(&request, facts).map_err(|error| RamError::Place { size, error })?;
        let ram = Self {
            layout,
            heap: wish.heap,
        };
        if wish.heap == Heap::High && ram.high().is_none() {
            return Err(RamError::NoHighRam { size });
        }
        Ok(ram)
    }

    /// `bytes` of RAM of a machine that has no function passed through, with its heap below 4 GiB.
    ///
    /// # Errors
    /// As [`Ram::plan`].
    pub fn emulated(bytes: u64) -> Result<Self, RamError> {
        let wish = RamWish {
            size: RamSize(bytes),
            ..RamWish::default()
        };
        let nothing = EarlyFacts::default().with_situation(Situation::Emulated);
        Self::plan(&wish, &nothing)
    }

    /// The planner's answer.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Maps it, zeroed. The host's memory is taken only for pages that are written.
    ///
    /// # Errors
    /// The host refuses the mapping: it counts memory that is not used yet, or limits addresses.
    pub fn map(&self) -> Result<Memory, FromRangesError> {
        let ranges: Vec<_> = self
            .layout
            .ram()
            .map(|region| (GuestAddress(region.base), region.size as usize))
            .collect();
        Memory::from_ranges(&ranges)
    }

    /// First address behind RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        // The planner puts RAM at 0 first.
        self.layout.ram().next().map_or(0, Region::end)
    }

    /// First address behind all RAM.
    pub fn end(&self) -> u64 {
        self.layout.ram().map(Region::end).max().unwrap_or(0)
    }

    /// RAM above 4 GiB.
    pub fn high(&self) -> Option<&Region> {
        self.layout.ram().find(|region| region.base >= FOUR_GIB)
    }

    /// What the guest may allocate. `low_start` is what is free from in RAM below 4 GiB. Above it is
    /// at most the GiB that RAM there starts with.
    pub fn heap(&self, low_start: u64) -> Range<u64> {
        match (self.heap, self.high()) {
            (Heap::High, Some(high)) => high.base..high.base + high.size.min(HIGH_HEAP),
            _ => low_start..self.low_end(),
        }
    }

    /// Where the heap is, if that is above 4 GiB.
    pub fn high_heap(&self) -> Option<u64> {
        let start = self.heap(0).start;
        (start >= FOUR_GIB).then_some(start)
    }

    /// A window for BARs above 4 GiB: behind the RAM that is there, or where it would be, and below
    /// the HyperTransport range, which is no place for devices. None where the CPUs' addresses of
    /// `phys_bits` bits don't reach.
    pub fn high_bars(&self, phys_bits: u8) -> Option<Range<u64>> {
        let below = self.layout.ram().filter(|ram| ram.base < HT_HOLE_BASE);
        let ram_end = below.map(Region::end).max().unwrap_or(0);
        let start = ram_end.max(FOUR_GIB).next_multiple_of(HIGH_BARS);
        let reach = HT_HOLE_BASE.min(1u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX));
        (start + HIGH_BARS <= reach).then_some(start..start + HIGH_BARS)
    }

    /// The guest's memory map, ascending and without overlaps: RAM, and as reserved the firmware
    /// tables, the ECAM windows (which a guest uses only if they are listed so) and the HyperTransport
    /// range. What is not listed is devices' or nobody's.
    pub fn e820(&self) -> Vec<E820Entry> {
        const RAM: u32 = ram::RegionKind::Ram.e820();
        const RESERVED: u32 = ram::RegionKind::Reserved.e820();
        // Those of every segment that there could be: they follow each other.
        let ecam_end = layout::ecam(layout::MAX_SEGMENTS - 1).end;
        let mut map = vec![
            (layout::RSDP, layout::FIRMWARE_END - layout::RSDP, RESERVED),
            (layout::ECAM_BASE, ecam_end - layout::ECAM_BASE, RESERVED),
        ];
        for region in &self.layout.regions {
            if region.base > 0 {
                map.push((region.base, region.size, region.kind.e820()));
                continue;
            }
            map.push((0, layout::LEGACY_WINDOWS.min(region.size), RAM));
            if let Some(rest @ 1..) = region.size.checked_sub(layout::FIRMWARE_END) {
                map.push((layout::FIRMWARE_END, rest, RAM));
            }
        }
        map.sort_unstable();
        map
    }
}

impl Default for Ram {
    /// 64 MiB.
    fn default() -> Self {
        Self::emulated(layout::RAM_SIZE).expect("so little RAM fits everywhere")
    }
}

/// How much is where: `3 GiB below 4 GiB + 7 GiB above 1 TiB`.
impl fmt::Display for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} below 4 GiB", size(self.low_end()))?;
        if let Some(high) = self.high() {
            let border = if high.base < HT_HOLE_END {
                "4 GiB"
            } else {
                "1 TiB"
            };
            write!(f, " + {} above {border}", size(high.size))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_hostcap::HostCapSpec;
    use amdvi_hostcap::ram::Placement;
    use vm_memory::{Bytes, GuestMemoryBackend};

    const GIB: u64 = 1 << 30;

    fn plan(size: &str, host: &str, heap: Heap, phys_bits: u8) -> Result<Ram, RamError> {
        let source = host.parse::<HostCapSpec>().unwrap().build();
        let wish = RamWish {
            size: size.parse().unwrap(),
            heap,
            phys_bits,
        };
        Ram::plan(&wish, &EarlyFacts::collect([source.as_ref()]))
    }

    #[test]
    fn a_size_is_a_number_with_a_unit_and_a_mistake_says_what_is_accepted() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("67108864", 64 << 20),
            ("65536k", 64 << 20),
            ("10G", 10 * GIB),
            ("10g", 10 * GIB),
            ("4T", 4 << 40),
        ] {
            assert_eq!(text.parse(), Ok(RamSize(bytes)), "{text}");
        }
        for text in [
            "",
            "G",
            "0",
            "63M",
            "10",
            "5T",
            "+64M",
            "-1G",
            "10GB",
            "1.5G",
            "67108865",
            "18446744073709551616",
            "18446744073709551615T",
            "64\u{b5}",
        ] {
            let error = text.parse::<RamSize>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
            assert!(error.contains("64M to 4T"), "{error}");
        }
    }

    #[test]
    fn ram_that_fits_stays_below_the_bars_and_the_rest_goes_where_the_host_lets_it() {
        for (size, host, shown, placement) in [
            ("64M", "none", "64 MiB below 4 GiB", Placement::BelowFourGib),
            ("3G", "mock:", "3 GiB below 4 GiB", Placement::BelowFourGib),
            (
                "10G",
                "none",
                "3 GiB below 4 GiB + 7 GiB above 4 GiB",
                Placement::AboveFourGib,
            ),
            (
                "10G",
                "mock:hthole=on,htrangeignore=on",
                "3 GiB below 4 GiB + 7 GiB above 4 GiB",
                Placement::AboveFourGib,
            ),
            (
                "10G",
                "mock:",
                "3 GiB below 4 GiB + 7 GiB above 1 TiB",
                Placement::AboveOneTib,
            ),
            (
                "10G",
                "legacy-vfio",
                "3 GiB below 4 GiB + 7 GiB above 1 TiB",
                Placement::AboveOneTib,
            ),
        ] {
            let ram = plan(size, host, Heap::Low, 48).unwrap();
            assert_eq!(ram.to_string(), shown, "{host}");
            assert_eq!(ram.layout().placement, placement, "{host}");
            assert!(!ram.layout().reason.is_empty());
            assert_eq!(ram.heap(0x200_0000), 0x200_0000..ram.low_end());
        }
    }

    #[test]
    fn cpus_with_short_addresses_get_what_ends_below_the_range_and_no_more() {
        let ram = plan("10G", "mock:", Heap::Low, 40).unwrap();
        assert_eq!(ram.layout().placement, Placement::AboveFourGib);
        let error = plan("2T", "mock:", Heap::Low, 40).unwrap_err().to_string();
        assert!(
            error.contains("--memory 2 TiB") && error.contains("40 bits"),
            "{error}"
        );
        assert!(plan("2T", "mock:", Heap::Low, 41).is_err());
        assert!(plan("2T", "mock:", Heap::Low, 42).is_ok());
    }

    #[test]
    fn a_heap_above_4_gib_needs_ram_there() {
        let error = plan("3G", "none", Heap::High, 48).unwrap_err().to_string();
        assert!(
            error.contains("--heap high") && error.contains("10G"),
            "{error}"
        );
        let above_4_gib = plan("10G", "none", Heap::High, 48).unwrap();
        assert_eq!(above_4_gib.heap(0x200_0000), FOUR_GIB..FOUR_GIB + GIB);
        let above_1_tib = plan("3145732K", "mock:", Heap::High, 48).unwrap();
        assert_eq!(
            above_1_tib.heap(0x200_0000),
            HT_HOLE_END..HT_HOLE_END + 4096
        );
        assert_eq!(above_1_tib.high_heap(), Some(HT_HOLE_END));
        assert_eq!(Ram::default().high_heap(), None);
    }

    #[test]
    fn every_region_is_mapped_and_memory_that_is_not_used_is_not_needed() {
        // More than the machines that run this have.
        let ram = plan("1T", "mock:", Heap::High, 48).unwrap();
        let memory = ram.map().unwrap();
        assert_eq!(memory.num_regions(), 2);
        for gpa in [0, 3 * GIB - 8, HT_HOLE_END, ram.end() - 8] {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(gpa)).unwrap(), 0);
            memory.write_obj(gpa, GuestAddress(gpa)).unwrap();
        }
        for gpa in [3 * GIB, FOUR_GIB, HT_HOLE_BASE, HT_HOLE_END - 8, ram.end()] {
            assert!(
                memory.read_obj::<u64>(GuestAddress(gpa)).is_err(),
                "{gpa:#x}"
            );
        }
    }

    #[test]
    fn the_window_for_high_bars_is_neither_ram_nor_the_hypertransport_range() {
        for (size, host, bits, window) in [
            ("1G", "none", 40, Some(1 << 36)),
            ("70G", "none", 48, Some(2 << 36)),
            ("10G", "mock:", 48, Some(1 << 36)),
            ("800G", "none", 48, Some(13 << 36)),
            ("900G", "none", 48, None),
            ("1G", "none", 36, None),
            ("2T", "mock:hthole=off", 48, None),
        ] {
            let ram = plan(size, host, Heap::Low, bits.max(42)).unwrap();
            let found = ram.high_bars(bits);
            assert_eq!(
                found.as_ref().map(|range| range.start),
                window,
                "{size} {bits}"
            );
            for region in ram.layout().ram() {
                let clear = |w: &Range<u64>| w.end <= region.base || region.end() <= w.start;
                assert!(found.as_ref().is_none_or(clear), "{size}");
            }
        }
    }

    #[test]
    fn the_memory_map_lists_ram_firmware_ecam_and_the_hypertransport_range() {
        let small = Ram::default().e820();
        assert_eq!(
            small,
            [
                (0, 0xa_0000, 1),
                (0xe_0000, 0x2_0000, 2),
                (0x10_0000, (64 << 20) - 0x10_0000, 1),
                (0xe000_0000, 0x1300_0000, 2),
            ]
        );
        let large = plan("10G", "mock:", Heap::Low, 48).unwrap().e820();
        assert_eq!(
            large[2..],
            [
                (0x10_0000, 3 * GIB - 0x10_0000, 1),
                (0xe000_0000, 0x1300_0000, 2),
                (HT_HOLE_BASE, HT_HOLE_END - HT_HOLE_BASE, 2),
                (HT_HOLE_END, 7 * GIB, 1),
            ]
        );
        let ends = large
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(ends, "{large:x?}");
    }
}
