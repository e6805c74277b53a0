//! Performance counters, MMIO 4000h and 40000h–7FFFFh (48882 §3.4, with EFR.PCSup).

use core::fmt;

use bitfield_struct::bitfield;

use super::offset;
use crate::fmt::{Always, Hex, display_fields};

/// Performance Counter Configuration, MMIO 4000h (RO).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CounterConfig {
    /// Bits \[6:0\], reserved.
    #[bits(7)]
    pub rsvd_6_0: u8,
    /// Bits \[10:7\], NCounter: counters per bank.
    #[bits(4)]
    pub n_counter: u8,
    /// Bit 11, reserved.
    pub rsvd_11: bool,
    /// Bits \[17:12\], NCounterBanks.
    #[bits(6)]
    pub n_counter_banks: u8,
    /// Bits \[63:18\], reserved.
    #[bits(46)]
    pub rsvd_63_18: u64,
}

impl CounterConfig {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_fffc_087f;
}

display_fields!(CounterConfig, reserved CounterConfig::RESERVED, {
    "NCounter": n_counter,
    "NCounterBanks": n_counter_banks,
});

/// One of the registers that each counter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum CounterFunction {
    /// +00h, [`CounterValue`].
    Value,
    /// +08h, [`CounterSource`].
    Source,
    /// +10h, [`PasidMatch`].
    PasidMatch,
    /// +18h, [`DomainMatch`].
    DomainMatch,
    /// +20h, [`DeviceIdMatch`].
    DeviceIdMatch,
    /// +28h, [`CounterReport`].
    Report,
}

impl CounterFunction {
    /// Byte offset from the counter's first register.
    pub const fn offset(self) -> u64 {
        match self {
            Self::Value => 0x00,
            Self::Source => 0x08,
            Self::PasidMatch => 0x10,
            Self::DomainMatch => 0x18,
            Self::DeviceIdMatch => 0x20,
            Self::Report => 0x28,
        }
    }

    /// The register at a byte offset, `None` where there is none.
    pub const fn from_offset(offset: u64) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Value,
            0x08 => Self::Source,
            0x10 => Self::PasidMatch,
            0x18 => Self::DomainMatch,
            0x20 => Self::DeviceIdMatch,
            0x28 => Self::Report,
            _ => return None,
        })
    }
}

impl fmt::Display for CounterFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value => "value",
            Self::Source => "source",
            Self::PasidMatch => "PASID match",
            Self::DomainMatch => "domain match",
            Self::DeviceIdMatch => "DeviceID match",
            Self::Report => "report",
        })
    }
}

/// Which counter register an MMIO offset names: 40000h + bank·1000h + counter·100h + function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CounterAddress {
    /// Bank, 0–63.
    pub bank: u8,
    /// Counter in the bank, 0–15.
    pub counter: u8,
    /// Register of the counter.
    pub function: CounterFunction,
}

impl CounterAddress {
    /// The MMIO offset; `bank` is taken modulo 64, `counter` modulo 16.
    pub const fn offset(self) -> u64 {
        offset::COUNTER_BANKS
            + ((self.bank as u64 & 0x3f) << 12)
            + ((self.counter as u64 & 0xf) << 8)
            + self.function.offset()
    }

    /// Decodes an 8-byte-aligned MMIO offset, `None` where there is no counter register.
    pub const fn from_offset(mmio: u64) -> Option<Self> {
        if mmio < offset::COUNTER_BANKS || mmio >= offset::REGION_SIZE_WITH_COUNTERS {
            return None;
        }
        let relative = mmio - offset::COUNTER_BANKS;
        match CounterFunction::from_offset(relative & 0xff) {
            Some(function) => Some(Self {
                bank: (relative >> 12) as u8,
                counter: (relative >> 8) as u8 & 0xf,
                function,
            }),
            None => None,
        }
    }
}

impl fmt::Display for CounterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bank {} counter {} {}",
            self.bank, self.counter, self.function
        )
    }
}

/// Counter value (+00h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CounterValue {
    /// Bits \[47:0\], the count; a write sets where it starts.
    #[bits(48)]
    pub value: u64,
    /// Bits \[63:48\], reserved.
    pub rsvd_63_48: u16,
}

impl CounterValue {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_0000_0000_0000;
}

display_fields!(CounterValue, reserved CounterValue::RESERVED, {
    "value": value as Hex,
});

/// Counter source (+08h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CounterSource {
    /// Bits \[7:0\], CSource, see [`CounterEvent`]; 0 is off.
    pub c_source: u8,
    /// Bits \[29:8\], reserved.
    #[bits(22)]
    pub rsvd_29_8: u32,
    /// Bit 30, CUnits: 0 counts events, 1 clocks. No public source confirms it.
    pub c_units: bool,
    /// Bit 31, CAC: 0 CSource is an architectural event, 1 a custom one. No public source confirms
    /// it.
    pub cac: bool,
    /// Bits \[63:32\], reserved.
    pub rsvd_63_32: u32,
}

impl CounterSource {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_ffff_3fff_ff00;

    /// The event that is counted.
    pub const fn event(self) -> CounterEvent {
        CounterEvent::from_bits(self.c_source())
    }
}

display_fields!(CounterSource, reserved CounterSource::RESERVED, {
    "CSource": event as Always,
    "CUnits": c_units,
    "CAC": cac,
});

/// PASID match (+10h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PasidMatch {
    /// Bits \[19:0\], PASID to match.
    #[bits(20)]
    pub value: u32,
    /// Bits \[30:20\], reserved.
    #[bits(11)]
    pub rsvd_30_20: u16,
    /// Bit 31, the match is enabled.
    pub enable: bool,
    /// Bits \[51:32\], mask.
    #[bits(20)]
    pub mask: u32,
    /// Bits \[63:52\], reserved.
    #[bits(12)]
    pub rsvd_63_52: u16,
}

impl PasidMatch {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xfff0_0000_7ff0_0000;
}

display_fields!(PasidMatch, reserved PasidMatch::RESERVED, {
    "enable": enable,
    "value": value,
    "mask": mask,
});

/// Domain match (+18h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DomainMatch {
    /// Bits \[15:0\], DomainID to match.
    pub value: u16,
    /// Bits \[30:16\], reserved.
    #[bits(15)]
    pub rsvd_30_16: u16,
    /// Bit 31, the match is enabled.
    pub enable: bool,
    /// Bits \[47:32\], mask.
    pub mask: u16,
    /// Bits \[63:48\], reserved.
    pub rsvd_63_48: u16,
}

impl DomainMatch {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_0000_7fff_0000;
}

display_fields!(DomainMatch, reserved DomainMatch::RESERVED, {
    "enable": enable,
    "value": value,
    "mask": mask,
});

/// DeviceID match (+20h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceIdMatch {
    /// Bits \[15:0\], DeviceID to match.
    pub value: u16,
    /// Bits \[30:16\], reserved.
    #[bits(15)]
    pub rsvd_30_16: u16,
    /// Bit 31, the match is enabled.
    pub enable: bool,
    /// Bits \[47:32\], mask.
    pub mask: u16,
    /// Bits \[63:48\], reserved.
    pub rsvd_63_48: u16,
}

impl DeviceIdMatch {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0xffff_0000_7fff_0000;
}

display_fields!(DeviceIdMatch, reserved DeviceIdMatch::RESERVED, {
    "enable": enable,
    "value": value,
    "mask": mask,
});

/// Counter report (+28h).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CounterReport {
    /// Bits \[51:0\], CounterNote: goes into EVENT_COUNTER_ZERO.
    #[bits(52)]
    pub counter_note: u64,
    /// Bits \[62:52\], reserved.
    #[bits(11)]
    pub rsvd_62_52: u16,
    /// Bit 63, CERE: log EVENT_COUNTER_ZERO when the counter wraps.
    pub cere: bool,
}

impl CounterReport {
    /// Bits without a defined meaning.
    pub const RESERVED: u64 = 0x7ff0_0000_0000_0000;
}

display_fields!(CounterReport, reserved CounterReport::RESERVED, {
    "CounterNote": counter_note,
    "CERE": cere,
});

macro_rules! counter_events {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// What a counter counts, CSource (48882 §3.4). Open: other values are
        /// [`CounterEvent::Reserved`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub enum CounterEvent {
            $($(#[$doc])* $variant,)*
            /// A value without a defined meaning.
            Reserved(u8),
        }

        impl CounterEvent {
            /// Every defined event.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Decodes CSource.
            pub const fn from_bits(bits: u8) -> Self {
                match bits {
                    $($code => Self::$variant,)*
                    other => Self::Reserved(other),
                }
            }

            /// The CSource value.
            pub const fn bits(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Reserved(bits) => bits,
                }
            }

            /// The customary short name, `reserved` for an undefined value.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Reserved(_) => "reserved",
                }
            }
        }
    };
}

counter_events! {
    /// 00h: the counter is off.
    Off = 0x00, "off";
    /// 01h: untranslated memory requests that pass.
    MemPassUntrans = 0x01, "mem_pass_untrans";
    /// 02h: pre-translated memory requests that pass.
    MemPassPretrans = 0x02, "mem_pass_pretrans";
    /// 03h: memory requests that pass through the exclusion range.
    MemPassExcl = 0x03, "mem_pass_excl";
    /// 04h: memory requests that end in a target abort.
    MemTargetAbort = 0x04, "mem_target_abort";
    /// 05h: all translated memory requests.
    MemTransTotal = 0x05, "mem_trans_total";
    /// 06h: TLB hits of PTEs.
    MemIommuTlbPteHit = 0x06, "mem_iommu_tlb_pte_hit";
    /// 07h: TLB misses of PTEs.
    MemIommuTlbPteMis = 0x07, "mem_iommu_tlb_pte_mis";
    /// 08h: TLB hits of PDEs.
    MemIommuTlbPdeHit = 0x08, "mem_iommu_tlb_pde_hit";
    /// 09h: TLB misses of PDEs.
    MemIommuTlbPdeMis = 0x09, "mem_iommu_tlb_pde_mis";
    /// 0Ah: DTE cache hits of memory requests.
    MemDteHit = 0x0a, "mem_dte_hit";
    /// 0Bh: DTE cache misses of memory requests.
    MemDteMis = 0x0b, "mem_dte_mis";
    /// 0Ch: page table reads.
    PageTblReadTot = 0x0c, "page_tbl_read_tot";
    /// 0Dh: nested (host) page table reads.
    PageTblReadNst = 0x0d, "page_tbl_read_nst";
    /// 0Eh: guest page table reads.
    PageTblReadGst = 0x0e, "page_tbl_read_gst";
    /// 0Fh: DTE cache hits of interrupt requests.
    IntDteHit = 0x0f, "int_dte_hit";
    /// 10h: DTE cache misses of interrupt requests.
    IntDteMis = 0x10, "int_dte_mis";
    /// 11h: commands processed.
    CmdProcessed = 0x11, "cmd_processed";
    /// 12h: invalidation commands processed.
    CmdProcessedInv = 0x12, "cmd_processed_inv";
    /// 13h: TLB invalidations.
    TlbInv = 0x13, "tlb_inv";
    /// 14h: accesses to MMIO 1FF8h.
    IgnRdWrMmio1ff8h = 0x14, "ign_rd_wr_mmio_1ff8h";
    /// 15h: interrupts remapped by a 128-bit entry with GuestMode = 0.
    VapicIntNonGuest = 0x15, "vapic_int_non_guest";
    /// 16h: interrupts posted to a guest virtual APIC, GuestMode = 1.
    VapicIntGuest = 0x16, "vapic_int_guest";
    /// 17h: SMIs received.
    SmiRecv = 0x17, "smi_recv";
    /// 18h: SMIs blocked by the SMI filter.
    SmiBlk = 0x18, "smi_blk";
}

impl fmt::Display for CounterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved(bits) => write!(f, "reserved({bits:#04x})"),
            known => f.write_str(known.name()),
        }
    }
}
