//! The table of options: one row each. Parsing, errors, printing and `--help` all read it.

use amdvi_regs::DeviceId;

use super::Options;

/// What kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// `on` or `off`.
    Switch,
    /// `off` only: the feature is not built yet.
    NotBuilt,
    /// One of a few numbers.
    OneOf(&'static [u64]),
    /// A number from 0 to this.
    UpTo(u64),
    /// A guest physical address.
    Address,
    /// A PCI function, `[bus:]device.function` in hexadecimal.
    Function,
}

impl OptionKind {
    /// The kind's short name for a help text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch | Self::NotBuilt => "bool",
            Self::OneOf(_) | Self::UpTo(_) => "number",
            Self::Address => "address",
            Self::Function => "function",
        }
    }

    /// What the option accepts, for errors and help.
    pub fn accepts(self) -> String {
        match self {
            Self::Switch => "on or off".into(),
            Self::NotBuilt => "off".into(),
            Self::OneOf(list) => {
                let list: Vec<_> = list.iter().map(u64::to_string).collect();
                let (last, rest) = list.split_last().expect("a choice has values");
                format!("{} or {last}", rest.join(", "))
            }
            Self::UpTo(max) => format!("0 to {max:#x}"),
            Self::Address => "an address, a multiple of 0x4000 below 2^52 outside \
                              0xfec00000–0xfeefffff, such as 0xfeb80000"
                .into(),
            Self::Function => "[bus:]device.function in hexadecimal, such as 00.2".into(),
        }
    }
}

/// A parsed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Switch(bool),
    Number(u64),
    Function(DeviceId),
}

impl Value {
    fn on(self) -> bool {
        matches!(self, Self::Switch(true))
    }

    fn number(self) -> u64 {
        match self {
            Self::Number(n) => n,
            Self::Switch(on) => u64::from(on),
            Self::Function(id) => id.0.into(),
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
    OptionSpec {
        name: "device-iotlb",
        kind: OptionKind::NotBuilt,
        default: "off",
        help: "remote IOTLBs (ATS); not built yet",
        set: |_, _| {},
        get: |_| Value::Switch(false),
    },
    OptionSpec {
        name: "mmio-base",
        kind: OptionKind::Address,
        default: "0xfeb80000",
        help: "guest physical address of the 16 KiB register file",
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
            "  {:<13} {:<9} {}\n{:26}accepts {}; default {}\n",
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
