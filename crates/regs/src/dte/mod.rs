//! Device Table Entry (48882 §2.2.2.1, table 7): 256 bits, 32 bytes.
//!
//! Hardware reads an entry as two 128-bit halves; [`Dte`] keeps it as the four 64-bit words that
//! are loaded one by one, each exactly once.

mod display;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::DomainId;

/// Size of a DTE in bytes.
pub const DTE_SIZE: u64 = 32;

/// DTE bits \[63:0\].
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DteQ0 {
    /// Bit 0, V: bits \[127:1\] are valid. 0: DMA of the device is untranslated.
    pub v: bool,
    /// Bit 1, TV: the host translation fields are valid.
    pub tv: bool,
    /// Bits \[3:2\], reserved.
    #[bits(2)]
    pub rsvd_3_2: u8,
    /// Bits \[6:4\]: CXL memory attribute in the newest revision, reserved in older ones.
    #[bits(3)]
    pub cxl_attr: u8,
    /// Bits \[8:7\], HAD: host access/dirty update. 0 none, 1 A, 3 A and D.
    #[bits(2)]
    pub had: u8,
    /// Bits \[11:9\], Mode: levels of the host page table; 0 none, 7 reserved.
    #[bits(3)]
    pub mode: u8,
    /// Bits \[51:12\] of the host page table root, as a page number.
    #[bits(40)]
    pub host_pt_root: u64,
    /// Bit 52, PPR: the device may issue page requests.
    pub ppr: bool,
    /// Bit 53, GPRP: guest PPR response includes the PASID.
    pub gprp: bool,
    /// Bit 54, GIoV: guest I/O protection valid.
    pub giov: bool,
    /// Bit 55, GV: guest translation valid.
    pub gv: bool,
    /// Bits \[57:56\], GLX: GCR3 table levels minus one.
    #[bits(2)]
    pub glx: u8,
    /// Bits \[60:58\]: GCR3 table root \[14:12\].
    #[bits(3)]
    pub gcr3_lo: u8,
    /// Bit 61, IR: read permission.
    pub ir: bool,
    /// Bit 62, IW: write permission.
    pub iw: bool,
    /// Bit 63, reserved.
    pub rsvd_63: bool,
}

/// DTE bits \[127:64\].
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DteQ1 {
    /// Bits \[79:64\], DomainID.
    pub domain_id: u16,
    /// Bits \[95:80\]: GCR3 table root \[30:15\].
    pub gcr3_mid: u16,
    /// Bit 96, I: the device may use ATS.
    pub i: bool,
    /// Bit 97, SE: suppress IO_PAGE_FAULT events after the first.
    pub se: bool,
    /// Bit 98, SA: suppress all IO_PAGE_FAULT events.
    pub sa: bool,
    /// Bits \[100:99\], IoCtl: port I/O. 0 abort, 1 forward, 2 translate, 3 reserved.
    #[bits(2)]
    pub io_ctl: u8,
    /// Bit 101, Cache: IOTLB cache hint.
    pub cache: bool,
    /// Bit 102, SD: snoop disable.
    pub sd: bool,
    /// Bit 103, EX: the exclusion range applies to the device.
    pub ex: bool,
    /// Bits \[105:104\], SysMgt: see [`SysMgt`].
    #[bits(2)]
    pub sys_mgt: u8,
    /// Bit 106, SATS: secure ATS in the newest revision.
    pub sats: bool,
    /// Bits \[127:107\]: GCR3 table root \[51:31\].
    #[bits(21)]
    pub gcr3_hi: u32,
}

/// DTE bits \[191:128\]: interrupt remapping.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DteQ2 {
    /// Bit 128, IV: the interrupt fields are valid, whatever V says.
    pub iv: bool,
    /// Bits \[132:129\], IntTabLen: log2 of the entries of the interrupt remapping table.
    #[bits(4)]
    pub int_tab_len: u8,
    /// Bit 133, IG: suppress IO_PAGE_FAULT events of interrupt requests.
    pub ig: bool,
    /// Bits \[179:134\]: address bits \[51:6\] of the interrupt remapping table.
    #[bits(46)]
    pub int_tab_root: u64,
    /// Bits \[181:180\], reserved.
    #[bits(2)]
    pub rsvd_181_180: u8,
    /// Bits \[183:182\], GuestPagingMode: 0 four-level, 1 five-level guest tables.
    #[bits(2)]
    pub guest_paging_mode: u8,
    /// Bit 184, InitPass.
    pub init_pass: bool,
    /// Bit 185, EIntPass (ExtINT).
    pub eint_pass: bool,
    /// Bit 186, NMIPass.
    pub nmi_pass: bool,
    /// Bit 187: HPTMode in the newest revision, reserved before.
    pub hpt_mode: bool,
    /// Bits \[189:188\], IntCtl: see [`IntCtl`].
    #[bits(2)]
    pub int_ctl: u8,
    /// Bit 190, Lint0Pass.
    pub lint0_pass: bool,
    /// Bit 191, Lint1Pass.
    pub lint1_pass: bool,
}

impl DteQ2 {
    /// The byte address of the interrupt remapping table.
    pub const fn int_tab_address(self) -> u64 {
        self.int_tab_root() << 6
    }

    /// Sets the table address; bits outside \[51:6\] are dropped.
    #[must_use]
    pub const fn with_int_tab_address(self, address: u64) -> Self {
        self.with_int_tab_root((address >> 6) & ((1 << 46) - 1))
    }
}

/// DTE bits \[255:192\].
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DteQ3 {
    /// Bits \[206:192\], reserved.
    #[bits(15)]
    pub rsvd_206_192: u16,
    /// Bit 207, vImuEn: hardware vIOMMU enabled for the device.
    pub vimu_en: bool,
    /// Bits \[223:208\], GDeviceID.
    pub g_device_id: u16,
    /// Bits \[239:224\], GuestID.
    pub guest_id: u16,
    /// Bits \[244:240\], reserved.
    #[bits(5)]
    pub rsvd_244_240: u8,
    /// Bit 245: software-usable in one source, reserved in another; must be written 0.
    pub rsvd_245: bool,
    /// Bit 246, AttrV: attribute override valid.
    pub attr_v: bool,
    /// Bit 247, Mode0FC.
    pub mode0_fc: bool,
    /// Bits \[255:248\], SnoopAttribute.
    pub snoop_attribute: u8,
}

/// IntCtl, DTE\[189:188\]: what happens to fixed and arbitrated interrupts when IV=1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum IntCtl {
    /// 00b: target abort.
    Abort,
    /// 01b: forwarded unmapped.
    Forward,
    /// 10b: remapped through the interrupt remapping table.
    Remap,
    /// 11b: reserved; ILLEGAL_DEV_TABLE_ENTRY.
    Reserved,
}

impl IntCtl {
    /// Decodes the low two bits.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Abort,
            1 => Self::Forward,
            2 => Self::Remap,
            _ => Self::Reserved,
        }
    }
}

/// SysMgt, DTE\[105:104\]: requests to the system management range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SysMgt {
    /// 00b: DMA to the range is aborted.
    Abort,
    /// 01b: all messages are forwarded.
    ForwardAll,
    /// 10b: only INTx messages are forwarded.
    ForwardIntx,
    /// 11b: translated like DMA.
    Translate,
}

impl SysMgt {
    /// Decodes the low two bits.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Abort,
            1 => Self::ForwardAll,
            2 => Self::ForwardIntx,
            _ => Self::Translate,
        }
    }
}

/// A whole Device Table Entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Dte {
    /// Bits \[63:0\].
    pub q0: DteQ0,
    /// Bits \[127:64\].
    pub q1: DteQ1,
    /// Bits \[191:128\].
    pub q2: DteQ2,
    /// Bits \[255:192\].
    pub q3: DteQ3,
}

impl Dte {
    /// Bits of word 0 that are reserved in every revision: \[3:2\] and 63.
    pub const Q0_RESERVED: u64 = 0x8000_0000_0000_000c;
    /// Bits of word 1 that are reserved in every revision: none.
    pub const Q1_RESERVED: u64 = 0;
    /// Bits of word 2 that are reserved in every revision: \[181:180\].
    pub const Q2_RESERVED: u64 = 0x0030_0000_0000_0000;
    /// Bits of word 3 that are reserved in every revision: \[206:192\] and \[245:240\].
    pub const Q3_RESERVED: u64 = 0x003f_0000_0000_7fff;

    /// The entry from its four words.
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self {
            q0: DteQ0::from_bits(words[0]),
            q1: DteQ1::from_bits(words[1]),
            q2: DteQ2::from_bits(words[2]),
            q3: DteQ3::from_bits(words[3]),
        }
    }

    /// The four words.
    pub const fn words(&self) -> [u64; 4] {
        [
            self.q0.into_bits(),
            self.q1.into_bits(),
            self.q2.into_bits(),
            self.q3.into_bits(),
        ]
    }

    /// The DomainID.
    pub const fn domain_id(&self) -> DomainId {
        DomainId(self.q1.domain_id())
    }

    /// The byte address of the host page table root.
    pub const fn host_pt_address(&self) -> u64 {
        self.q0.host_pt_root() << 12
    }

    /// The byte address of the GCR3 table, assembled from its three fields.
    pub const fn gcr3_address(&self) -> u64 {
        (self.q0.gcr3_lo() as u64) << 12
            | (self.q1.gcr3_mid() as u64) << 15
            | (self.q1.gcr3_hi() as u64) << 31
    }

    /// Sets the three GCR3 fields from a byte address; bits outside \[51:12\] are dropped.
    #[must_use]
    pub const fn with_gcr3_address(mut self, address: u64) -> Self {
        self.q0 = self.q0.with_gcr3_lo((address >> 12) as u8 & 7);
        self.q1 = self
            .q1
            .with_gcr3_mid((address >> 15) as u16)
            .with_gcr3_hi((address >> 31) as u32 & 0x1f_ffff);
        self
    }
}

impl Dte {
    /// The bits that are set although every revision reserves them, word by word.
    pub const fn reserved_bits_set(&self) -> [u64; 4] {
        let words = self.words();
        [
            words[0] & Self::Q0_RESERVED,
            words[1] & Self::Q1_RESERVED,
            words[2] & Self::Q2_RESERVED,
            words[3] & Self::Q3_RESERVED,
        ]
    }

    /// Sets the host page table root; bits outside \[51:12\] are dropped.
    #[must_use]
    pub const fn with_host_pt_address(mut self, address: u64) -> Self {
        self.q0 = self.q0.with_host_pt_root((address >> 12) & ((1 << 40) - 1));
        self
    }
}
