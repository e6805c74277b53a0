//! The table of options: one row each. Parsing, errors, printing and `--help` all read it.

use amdvi_regs::DeviceId;

use super::Options;

/// What kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// `on` or `off`.
    Switch,
    /// One of a few numbers.
    OneOf(&'static [u64]),
    /// One of a few words.
    Word(&'static [&'static str]),
    /// A number from 0 to this.
    UpTo(u64),
    /// A number between two, inclusive.
    Between(u64, u64),
    /// A power of two between two, inclusive.
    PowerOfTwo(u64, u64),
    /// Performance counters: `off`, or banks and counters per bank as in `2x4`.
    Counters,
    /// A guest physical address.
    Address,
    /// A PCI function, `[bus:]device.function` in hexadecimal.
    Function,
}

impl OptionKind {
    /// The kind's short name for a help text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "bool",
            Self::Word(_) => "word",
            Self::OneOf(_) | Self::UpTo(_) | Self::Between(..) | Self::PowerOfTwo(..) => "number",
            Self::Counters => "counters",
            Self::Address => "address",
            Self::Function => "function",
        }
    }

    /// What the option accepts, for errors and help.
    pub fn accepts(self) -> String {
        match self {
            Self::Switch => "on or off".into(),
            Self::OneOf(list) => either(list.iter().map(u64::to_string)),
            Self::Word(list) => either(list.iter().map(ToString::to_string)),
            Self::UpTo(max) => format!("0 to {max:#x}"),
            Self::Between(min, max) => format!("{min} to {max}"),
            Self::PowerOfTwo(min, max) => format!("a power of two from {min} to {max}"),
            Self::Counters => format!(
                "off, or banks x counters per bank, 1x1 to {MAX_BANKS}x{MAX_COUNTERS}, such as 2x4"
            ),
            Self::Address => "an address, a multiple of 0x4000 (0x80000 with perf-counters) below \
                              2^52 outside 0xfec00000–0xfeefffff, such as 0xfeb80000"
                .into(),
            Self::Function => "[bus:]device.function in hexadecimal, such as 00.2".into(),
        }
    }
}

fn either(values: impl Iterator<Item = String>) -> String {
    let list: Vec<_> = values.collect();
    let (last, rest) = list.split_last().expect("a choice has values");
    format!("{} or {last}", rest.join(", "))
}

/// The most counter banks that the IVHD's PNBanks can name.
pub(crate) const MAX_BANKS: u8 = 63;
/// The most counters of a bank that the IVHD's PNCounters can name.
pub(crate) const MAX_COUNTERS: u8 = 15;

/// The widest PASID in bits: Linux stops at boot if EFR.PASmax is above 15.
pub(crate) const MAX_PASID_BITS: u8 = 16;
/// The choices of `dirty-tracking`, by what is maintained.
pub(crate) const DIRTY_TRACKING: &[&str] = &["off", "accessed", "on"];

/// A parsed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Switch(bool),
    Number(u64),
    /// Place in the list of words.
    Word(usize),
    Function(DeviceId),
    /// Banks and counters per bank; 0 and 0 for none.
    Counters(u8, u8),
}

impl Value {
    fn on(self) -> bool {
        matches!(self, Self::Switch(true))
    }

    fn number(self) -> u64 {
        match self {
            Self::Number(n) => n,
            Self::Switch(on) => u64::from(on),
            Self::Word(place) => place as u64,
            Self::Function(id) => id.0.into(),
            Self::Counters(banks, counters) => u64::from(banks) * u64::from(counters),
        }
    }
}

/// One option of the property string.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: OptionKind,
    /// The value that it has when it is not given.
    pub default: &'static str,
    /// One sentence for `--help`.
    pub help: &'static str,
    pub(crate) set: fn(&mut Options, Value),
    pub(crate) get: fn(&Options) -> Value,
}

macro_rules! switch {
    ($name:literal, $default:literal, $field:ident, $help:literal) => {
        OptionSpec {
            name: $name,
            kind: OptionKind::Switch,
            default: $default,
            help: $help,
            set: |options, value| options.$field = value.on(),
            get: |options| Value::Switch(options.$field),
        }
    };
}

/// Every option of the device, in the order in which help lists them.
pub static OPTIONS: &[OptionSpec] = &[
    switch!(
        "intremap",
        "on",
        intremap,
        "offer interrupt remapping; off also withdraws ga, xtsup, vapic and numint2k"
    ),
    switch!(
        "dma-remap",
        "on",
        dma_remap,
        "offer DMA remapping by host (v1) page tables; off offers none (EFR.HATS=3, IVHD HATDis)"
    ),
    switch!(
        "xtsup",
        "on",
        xtsup,
        "offer x2APIC: 32-bit interrupt destinations (EFR.XTSup); needs ga, off without it"
    ),
    switch!(
        "ga",
        "on",
        ga,
        "offer 128-bit interrupt remapping entries (EFR.GASup); off without intremap"
    ),
    switch!(
        "vapic",
        "off",
        vapic,
        "offer guest-mode entries and the GA log (EFR.GAMSup=1); needs ga"
    ),
    switch!(
        "numint2k",
        "off",
        numint2k,
        "offer 2048 interrupts per function instead of 512 (EFR2.NumIntRemapSup=1)"
    ),
    switch!(
        "ia",
        "on",
        ia,
        "offer the INVALIDATE_IOMMU_ALL command (EFR.IASup)"
    ),
    OptionSpec {
        name: "hats",
        kind: OptionKind::OneOf(&[4, 5, 6]),
        default: "6",
        help: "the most levels that a host page table may have (EFR.HATS); needs dma-remap",
        set: |options, value| options.hats = value.number() as u8,
        get: |options| Value::Number(options.hats.into()),
    },
    OptionSpec {
        name: "segments",
        kind: OptionKind::OneOf(&[1, 2, 4, 8]),
        default: "1",
        help: "the most device table segments (EFR.DevTblSegSup)",
        set: |options, value| options.segments = value.number() as u8,
        get: |options| Value::Number(options.segments.into()),
    },
    switch!(
        "msi-cap-mmio",
        "on",
        msi_cap_mmio,
        "mirror the MSI capability in MMIO 0x150–0x168 (EFR.MsiCapMmioSup)"
    ),
    switch!(
        "np-cache",
        "off",
        np_cache,
        "tell the guest that not-present entries are cached, so that it invalidates after mapping"
    ),
    switch!(
        "gtsup",
        "off",
        gtsup,
        "offer guest translation: v2 page tables and PASIDs (EFR.GTSup)"
    ),
    switch!(
        "giosup",
        "on",
        giosup,
        "offer guest translation of requests without PASID (EFR.GIoSup); needs gtsup"
    ),
    OptionSpec {
        name: "gats",
        kind: OptionKind::OneOf(&[4, 5]),
        default: "4",
        help: "the most levels that a guest page table may have (EFR.GATS); needs gtsup",
        set: |options, value| options.gats = value.number() as u8,
        get: |options| Value::Number(options.gats.into()),
    },
    OptionSpec {
        name: "glxsup",
        kind: OptionKind::OneOf(&[0, 1, 2]),
        default: "1",
        help: "the most levels of a GCR3 table above one (EFR.GLXSup); one level holds 512 \
               PASIDs, two hold 2^18; needs gtsup",
        set: |options, value| options.glxsup = value.number() as u8,
        get: |options| Value::Number(options.glxsup.into()),
    },
    OptionSpec {
        name: "pasid",
        kind: OptionKind::Between(1, MAX_PASID_BITS as u64),
        default: "16",
        help: "bits of a PASID (EFR.PASmax + 1); more than 9 need glxsup=1, and more than 16 crash \
               Linux; needs gtsup",
        set: |options, value| options.pasid = value.number() as u8,
        get: |options| Value::Number(options.pasid.into()),
    },
    switch!(
        "nxsup",
        "on",
        nxsup,
        "offer no-execute protection in guest page tables (EFR.NXSup); needs gtsup"
    ),
    switch!(
        "gcr3trpmode",
        "off",
        gcr3trpmode,
        "offer GCR3 roots that are guest physical addresses (EFR2.GCR3TRPMode); needs gtsup"
    ),
    OptionSpec {
        name: "dirty-tracking",
        kind: OptionKind::Word(DIRTY_TRACKING),
        default: "off",
        help: "offer accessed bits, or accessed and dirty bits, in host page tables (EFR.HASup, \
               HDSup); needs dma-remap",
        set: |options, value| options.dirty_tracking = value.number() as u8,
        get: |options| Value::Word(options.dirty_tracking.into()),
    },
    switch!(
        "device-iotlb",
        "off",
        device_iotlb,
        "let devices have TLBs of their own: ATS (IotlbSup in capability and IVHD)"
    ),
    switch!(
        "pprsup",
        "off",
        pprsup,
        "offer page requests and their log (EFR.PPRSup)"
    ),
    switch!(
        "ephsup",
        "on",
        ephsup,
        "offer enhanced page request handling: DTE.PPR (EFR.EPHSup); needs pprsup"
    ),
    switch!(
        "ppr-auto-rsp",
        "off",
        ppr_auto_rsp,
        "offer automatic responses to page requests (EFR.PPRAutoRspSup); needs pprsup"
    ),
    switch!(
        "ppr-early",
        "off",
        ppr_early,
        "offer the early indicator of page request log overflow (EFR.PprOvrflwEarlySup); needs \
         pprsup"
    ),
    switch!(
        "dual-ppr-log",
        "off",
        dual_ppr_log,
        "offer a second page request log and automatic change between them (EFR.DualPprLogSup=2); \
         needs pprsup"
    ),
    switch!(
        "prefsup",
        "off",
        prefsup,
        "offer the PREFETCH_IOMMU_PAGES command (EFR.PreFSup)"
    ),
    switch!(
        "snpsup",
        "off",
        snpsup,
        "announce SNP support (EFR.SNPSup): the exclusion registers become the range of completion \
         stores"
    ),
    OptionSpec {
        name: "perf-counters",
        kind: OptionKind::Counters,
        default: "off",
        help: "offer performance counters (EFR.PCSup); the register file grows to 512 KiB",
        set: |options, value| {
            if let Value::Counters(banks, counters) = value {
                options.counters = (banks, counters);
            }
        },
        get: |options| Value::Counters(options.counters.0, options.counters.1),
    },
    OptionSpec {
        name: "iotlb-entries",
        kind: OptionKind::PowerOfTwo(64, 1 << 22),
        default: "65536",
        help: "pages that the IOTLB of all functions holds, whatever their size; about 40 bytes each, \
               taken at once (65536: 2.5 MiB)",
        set: |options, value| options.iotlb_entries = value.number() as u32,
        get: |options| Value::Number(options.iotlb_entries.into()),
    },
    OptionSpec {
        name: "dma-cache-entries",
        kind: OptionKind::PowerOfTwo(16, 1 << 20),
        default: "4096",
        help: "pages that each handle of a function keeps for itself before it asks the IOTLB; 16 \
               bytes each, taken with the handle (4096: 64 KiB)",
        set: |options, value| options.dma_cache_entries = value.number() as u32,
        get: |options| Value::Number(options.dma_cache_entries.into()),
    },
    OptionSpec {
        name: "mmio-base",
        kind: OptionKind::Address,
        default: "0xfeb80000",
        help: "guest physical address of the register file: 16 KiB, or 512 KiB with perf-counters",
        set: |options, value| options.mmio_base = value.number(),
        get: |options| Value::Number(options.mmio_base),
    },
    OptionSpec {
        name: "addr",
        kind: OptionKind::Function,
        default: "00.2",
        help: "the PCI function that the IOMMU itself is",
        set: |options, value| {
            if let Value::Function(id) = value {
                options.device_id = id;
            }
        },
        get: |options| Value::Function(options.device_id),
    },
    OptionSpec {
        name: "segment",
        kind: OptionKind::UpTo(0xffff),
        default: "0",
        help: "the PCI segment group that the IOMMU serves",
        set: |options, value| options.segment.0 = value.number() as u16,
        get: |options| Value::Number(options.segment.0.into()),
    },
];

/// The help text: one line per option with its type, what it accepts, and its default.
pub fn help() -> String {
    let mut text = String::from("amd-iommu[,option=value…]\n");
    for option in OPTIONS {
        text.push_str(&format!(
            "  {:<17} {:<9} {}\n{:30}accepts {}; default {}\n",
            option.name,
            option.kind.name(),
            option.help,
            "",
            option.kind.accepts(),
            option.default,
        ));
    }
    text
}
