//! What the device offers its guest: one property string, with QEMU's names where QEMU has one.
//!
//! ```
//! use amdvi_device::options::Options;
//! let options: Options = "amd-iommu,numint2k=on,segments=4".parse()?;
//! assert_eq!(options.efr2().num_int_remap_sup(), 1);
//! assert!("amd-iommu,numint2k=on,intremap=off".parse::<Options>().is_err());
//! # Ok::<(), amdvi_device::options::OptionError>(())
//! ```

mod error;
mod table;

use std::fmt;
use std::str::FromStr;

use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2, offset};
use amdvi_regs::{DeviceId, Segment};

pub use error::OptionError;
use table::Value;
pub use table::{OPTIONS, OptionKind, OptionSpec, help};

/// The device's name, which starts a property string.
pub const DEVICE_NAME: &str = "amd-iommu";

/// EFR.HATS value "no host translation" (48882 §3.4.2).
const HATS_NONE: u8 = 3;

/// What one emulated IOMMU is and offers.
///
/// Parsed from a property string, or [`default`](Self::default) and adjusted by
/// [`limit`](Self::limit); always free of contradictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    intremap: bool,
    dma_remap: bool,
    xtsup: bool,
    ga: bool,
    vapic: bool,
    numint2k: bool,
    ia: bool,
    hats: u8,
    segments: u8,
    msi_cap_mmio: bool,
    np_cache: bool,
    mmio_base: u64,
    device_id: DeviceId,
    segment: Segment,
}

impl Default for Options {
    fn default() -> Self {
        let mut options = Self {
            intremap: false,
            dma_remap: false,
            xtsup: false,
            ga: false,
            vapic: false,
            numint2k: false,
            ia: false,
            hats: 4,
            segments: 1,
            msi_cap_mmio: false,
            np_cache: false,
            mmio_base: 0,
            device_id: DeviceId(0),
            segment: Segment(0),
        };
        for spec in OPTIONS {
            let value = parse_value(spec, spec.default).expect("defaults of the table parse");
            (spec.set)(&mut options, value);
        }
        options
    }
}

/// A feature that [`Options::limit`] has taken away or lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// The option's name.
    pub option: &'static str,
    /// The option that it depends on, if it went only because that one did.
    pub because_of: Option<&'static str>,
}

impl Options {
    /// Parses a property string; the same as [`str::parse`].
    ///
    /// # Errors
    ///
    /// [`OptionError`] for an unknown option, a bad value, or options that contradict each other.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut given: Vec<&'static str> = Vec::new();
        let mut items = text.split(',').map(str::trim);
        let device = items.next().unwrap_or_default();
        if device != DEVICE_NAME {
            return Err(OptionError::WrongDevice {
                found: device.into(),
            });
        }
        for item in items {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (item, None),
            };
            let spec = find(name)?;
            if given.contains(&spec.name) {
                return Err(OptionError::Duplicate { name: spec.name });
            }
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                return Err(OptionError::NoValue {
                    name: spec.name,
                    accepts: spec.kind.accepts(),
                });
            };
            let value = parse_value(spec, value)?;
            (spec.set)(&mut options, value);
            given.push(spec.name);
        }
        options.settle(&given)?;
        Ok(options)
    }

    /// Checks the dependencies. An option that was not given follows what it needs; one that was
    /// given and can't be honoured is an error.
    fn settle(&mut self, given: &[&str]) -> Result<(), OptionError> {
        const REMAP: &str = "it is part of interrupt remapping; write intremap=on, or leave it out";
        const GA: &str =
            "it needs the 128-bit entries that ga=on offers; write ga=on, or turn it off";
        for &(option, needs, why) in &[
            ("ga", "intremap", REMAP),
            ("xtsup", "intremap", REMAP),
            ("vapic", "intremap", REMAP),
            ("numint2k", "intremap", REMAP),
            ("xtsup", "ga", GA),
            ("vapic", "ga", GA),
        ] {
            if self.is_on(option) && !self.is_on(needs) {
                if given.contains(&option) {
                    return Err(OptionError::Contradiction {
                        this: format!("{option}=on"),
                        that: format!("{needs}=off"),
                        why,
                    });
                }
                self.set(option, Value::Switch(false));
            }
        }
        if !self.dma_remap && given.contains(&"hats") {
            return Err(OptionError::Contradiction {
                this: format!("hats={}", self.hats),
                that: "dma-remap=off".into(),
                why: "without DMA remapping there are no host page tables; write dma-remap=on, or \
                      leave hats out",
            });
        }
        Ok(())
    }

    fn is_on(&self, option: &str) -> bool {
        OPTIONS
            .iter()
            .any(|spec| spec.name == option && (spec.get)(self) == Value::Switch(true))
    }

    fn set(&mut self, option: &str, value: Value) {
        if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == option) {
            (spec.set)(self, value);
        }
    }

    /// Takes a feature away, or lowers it, before the device is built: what a negotiation with the
    /// host has granted.
    ///
    /// `name` is an option's name; the names of the EFR fields `gasup`, `gamsup` and `hats` (as a
    /// level above four) are understood too. `level` 0 means off. What is already at or below
    /// `level` stays, and nothing is ever added. Features that need the one taken away go with it,
    /// so EFR and EFR2 stay consistent. Returns what has changed.
    ///
    /// # Errors
    ///
    /// [`OptionError::Unknown`] if no option has that name; [`OptionError::Value`] if the option
    /// is not a feature.
    pub fn limit(&mut self, name: &str, level: u8) -> Result<Vec<Withdrawn>, OptionError> {
        if name == "hats" {
            let levels = 4 + level.min(2);
            let lowered = self.dma_remap && levels < self.hats;
            self.hats = self.hats.min(levels);
            return Ok(lowered
                .then_some(Withdrawn {
                    option: "hats",
                    because_of: None,
                })
                .into_iter()
                .collect());
        }
        let spec = find(match name {
            "gasup" => "ga",
            "gamsup" => "vapic",
            name => name,
        })?;
        if spec.kind != OptionKind::Switch {
            return Err(OptionError::Value {
                name: spec.name,
                value: level.to_string(),
                why: "it is not a feature that can be limited".into(),
                accepts: spec.kind.accepts(),
            });
        }
        if level > 0 || !self.is_on(spec.name) {
            return Ok(Vec::new());
        }
        let before = self.clone();
        self.set(spec.name, Value::Switch(false));
        self.settle(&[])
            .expect("nothing was given, so nothing can contradict");
        Ok(OPTIONS
            .iter()
            .filter(|other| (other.get)(&before) != (other.get)(self))
            .map(|other| Withdrawn {
                option: other.name,
                because_of: (other.name != spec.name).then_some(spec.name),
            })
            .collect())
    }

    /// The features that depend on the host, under the names that [`limit`](Self::limit) takes,
    /// with the level asked for: 1 for a switch that is on, levels above four for `hats`.
    pub fn features(&self) -> Vec<(&'static str, u8)> {
        let mut list: Vec<_> = [
            ("numint2k", self.numint2k),
            ("xtsup", self.xtsup),
            ("gasup", self.ga),
            ("gamsup", self.vapic),
        ]
        .into_iter()
        .filter_map(|(name, on)| on.then_some((name, 1)))
        .collect();
        if self.dma_remap {
            list.push(("hats", self.hats - 4));
        }
        list
    }

    /// The Extended Feature Register that the guest reads (48882 §3.4.2).
    pub fn efr(&self) -> ExtendedFeature {
        ExtendedFeature::new()
            .with_ia_sup(self.ia)
            .with_ga_sup(self.ga)
            .with_xt_sup(self.xtsup)
            .with_gam_sup(u8::from(self.vapic))
            .with_hats(if self.dma_remap {
                self.hats - 4
            } else {
                HATS_NONE
            })
            .with_dev_tbl_seg_sup(self.segments.trailing_zeros() as u8)
            .with_msi_cap_mmio_sup(self.msi_cap_mmio)
    }

    /// The second Extended Feature Register that the guest reads (48882 §3.4.16).
    pub fn efr2(&self) -> ExtendedFeature2 {
        ExtendedFeature2::new().with_num_int_remap_sup(if self.numint2k {
            ExtendedFeature2::NUM_INT_REMAP_2K
        } else {
            0
        })
    }

    /// Whether interrupt remapping is offered. If not, the IVRS must not name an IOAPIC or HPET;
    /// a DTE that a guest programs nevertheless is honoured.
    pub fn intremap(&self) -> bool {
        self.intremap
    }

    /// Whether host page tables are offered; if not, the IVHD must set HATDis.
    pub fn dma_remap(&self) -> bool {
        self.dma_remap
    }

    /// The capability's NpCache bit (48882 §3.1).
    pub fn np_cache(&self) -> bool {
        self.np_cache
    }

    /// Guest physical address of the register file.
    pub fn mmio_base(&self) -> u64 {
        self.mmio_base
    }

    /// The DeviceID of the IOMMU's own PCI function.
    pub fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// The PCI segment group.
    pub fn segment(&self) -> Segment {
        self.segment
    }
}

impl FromStr for Options {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        Self::parse(text)
    }
}

impl fmt::Display for Options {
    /// The full property string; parsing it gives equal options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DEVICE_NAME)?;
        for spec in OPTIONS {
            if spec.name == "hats" && !self.dma_remap {
                continue;
            }
            match (spec.get)(self) {
                Value::Switch(on) => write!(f, ",{}={}", spec.name, if on { "on" } else { "off" })?,
                Value::Number(n) if spec.kind == OptionKind::Address => {
                    write!(f, ",{}={n:#x}", spec.name)?
                }
                Value::Number(n) => write!(f, ",{}={n}", spec.name)?,
                Value::Function(id) if id.bus() == 0 => {
                    write!(f, ",{}={:02x}.{:x}", spec.name, id.device(), id.function())?
                }
                Value::Function(id) => write!(f, ",{}={id}", spec.name)?,
            }
        }
        Ok(())
    }
}

fn find(name: &str) -> Result<&'static OptionSpec, OptionError> {
    OPTIONS
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| OptionError::Unknown {
            name: name.into(),
            nearest: OPTIONS
                .iter()
                .map(|spec| (distance(name, spec.name), spec.name))
                .min()
                .filter(|&(distance, nearest)| distance <= 1 + nearest.len() / 3)
                .map(|(_, nearest)| nearest),
            known: OPTIONS
                .iter()
                .map(|spec| spec.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

fn parse_value(spec: &'static OptionSpec, text: &str) -> Result<Value, OptionError> {
    let bad = |why: &str| OptionError::Value {
        name: spec.name,
        value: text.into(),
        why: why.into(),
        accepts: spec.kind.accepts(),
    };
    let number = || {
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| bad("it is not a number"))
    };
    match spec.kind {
        OptionKind::Switch => match text {
            "on" => Ok(Value::Switch(true)),
            "off" => Ok(Value::Switch(false)),
            _ => Err(bad("it is a switch")),
        },
        OptionKind::NotBuilt => match text {
            "off" => Ok(Value::Switch(false)),
            "on" => Err(bad("this is not built yet")),
            _ => Err(bad("it is a switch")),
        },
        OptionKind::OneOf(list) => {
            let n = number()?;
            list.contains(&n)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("no such choice"))
        }
        OptionKind::UpTo(max) => {
            let n = number()?;
            (n <= max)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("it is too large"))
        }
        OptionKind::Address => {
            let n = number()?;
            check_mmio_base(n).map_err(bad)?;
            Ok(Value::Number(n))
        }
        OptionKind::Function => parse_function(text)
            .map(Value::Function)
            .ok_or_else(|| bad("it is not a PCI function")),
    }
}

/// The window is 16 KiB and naturally aligned. IOAPIC, HPET, the southbridge registers that Linux
/// reads at 0xfed803c0 on AMD CPUs, local APIC and MSI window all lie in 0xfec00000–0xfeefffff.
fn check_mmio_base(base: u64) -> Result<(), &'static str> {
    const RESERVED: std::ops::Range<u64> = 0xfec0_0000..0xfef0_0000;
    if base == 0 {
        return Err("at address 0 no driver accepts it");
    }
    if !base.is_multiple_of(offset::REGION_SIZE) {
        return Err("it is not a multiple of 0x4000");
    }
    if base >= 1 << 52 {
        return Err("it is beyond 2^52");
    }
    if base < RESERVED.end && base + offset::REGION_SIZE > RESERVED.start {
        return Err("it lies among the IOAPIC, HPET, southbridge and APIC registers");
    }
    Ok(())
}

fn parse_function(text: &str) -> Option<DeviceId> {
    let (bus, rest) = text.split_once(':').unwrap_or(("0", text));
    let (device, function) = rest.split_once('.')?;
    let bus = u8::from_str_radix(bus, 16).ok()?;
    let device = u8::from_str_radix(device, 16).ok().filter(|&d| d < 32)?;
    let function = u8::from_str_radix(function, 16).ok().filter(|&f| f < 8)?;
    Some(DeviceId::new(bus, device, function))
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
