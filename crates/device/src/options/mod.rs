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
mod features;
mod table;
mod value;

use std::fmt;
use std::str::FromStr;

use amdvi_regs::mmio::offset;
use amdvi_regs::{DeviceId, Segment};

pub use error::OptionError;
pub use features::Withdrawn;
use table::{DIRTY_TRACKING, Value};
pub use table::{OPTIONS, OptionKind, OptionSpec, help};
use value::{check_mmio_base, parse_value};

/// The device's name, which starts a property string.
pub const DEVICE_NAME: &str = "amd-iommu";

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
    gtsup: bool,
    giosup: bool,
    gats: u8,
    glxsup: u8,
    pasid: u8,
    nxsup: bool,
    gcr3trpmode: bool,
    /// Place in [`DIRTY_TRACKING`].
    dirty_tracking: u8,
    device_iotlb: bool,
    pprsup: bool,
    ephsup: bool,
    ppr_auto_rsp: bool,
    ppr_early: bool,
    dual_ppr_log: bool,
    prefsup: bool,
    snpsup: bool,
    /// Banks and counters per bank.
    counters: (u8, u8),
    iotlb_entries: u32,
    dma_cache_entries: u32,
    mmio_base: u64,
    device_id: DeviceId,
    segment: Segment,
}

impl Default for Options {
    fn default() -> Self {
        let mut options = Self::unsettled();
        options.settle(&[]).expect("defaults contradict nothing");
        options
    }
}

impl Options {
    /// The defaults of the table, not yet made to follow from one another.
    fn unsettled() -> Self {
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
            gtsup: false,
            giosup: false,
            gats: 4,
            glxsup: 0,
            pasid: 1,
            nxsup: false,
            gcr3trpmode: false,
            dirty_tracking: 0,
            device_iotlb: false,
            pprsup: false,
            ephsup: false,
            ppr_auto_rsp: false,
            ppr_early: false,
            dual_ppr_log: false,
            prefsup: false,
            snpsup: false,
            counters: (0, 0),
            iotlb_entries: 0,
            dma_cache_entries: 0,
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

    /// Parses a property string; the same as [`str::parse`].
    ///
    /// # Errors
    ///
    /// [`OptionError`] for an unknown option, a bad value, or options that contradict each other.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let mut options = Self::unsettled();
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
        const GT: &str = "it is part of guest translation; write gtsup=on, or leave it out";
        const PPR: &str = "it is about page requests; write pprsup=on, or leave it out";
        for &(option, needs, why) in &[
            ("ga", "intremap", REMAP),
            ("xtsup", "intremap", REMAP),
            ("vapic", "intremap", REMAP),
            ("numint2k", "intremap", REMAP),
            ("xtsup", "ga", GA),
            ("vapic", "ga", GA),
            ("giosup", "gtsup", GT),
            ("nxsup", "gtsup", GT),
            ("gcr3trpmode", "gtsup", GT),
            ("ephsup", "pprsup", PPR),
            ("ppr-auto-rsp", "pprsup", PPR),
            ("ppr-early", "pprsup", PPR),
            ("dual-ppr-log", "pprsup", PPR),
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
        if !self.dma_remap {
            const HOST: &str = "without DMA remapping there are no host page tables; write \
                                dma-remap=on, or leave it out";
            self.need(given, "hats", "dma-remap=off", HOST)?;
            if self.dirty_tracking != 0 {
                self.need(given, "dirty-tracking", "dma-remap=off", HOST)?;
                self.dirty_tracking = 0;
            }
        }
        if self.gtsup {
            self.settle_pasid(given)?;
        } else {
            for option in ["gats", "glxsup", "pasid"] {
                self.need(given, option, "gtsup=off", GT)?;
            }
        }
        check_mmio_base(self.mmio_base, self.mmio_size()).map_err(|why| {
            OptionError::Contradiction {
                this: format!("mmio-base={:#x}", self.mmio_base),
                that: format!("perf-counters={}x{}", self.counters.0, self.counters.1),
                why,
            }
        })
    }

    /// A GCR3 table of GLXSup + 1 levels resolves nine PASID bits with each: offering wider PASIDs
    /// would have a driver program a table that the device must refuse.
    fn settle_pasid(&mut self, given: &[&str]) -> Result<(), OptionError> {
        let widest = 9 * (self.glxsup + 1);
        if self.pasid <= widest {
            return Ok(());
        }
        if !given.contains(&"pasid") {
            self.pasid = widest;
        } else if !given.contains(&"glxsup") {
            self.glxsup = (self.pasid - 1) / 9;
        } else {
            return Err(OptionError::Contradiction {
                this: format!("pasid={}", self.pasid),
                that: format!("glxsup={}", self.glxsup),
                why: "each level of the GCR3 table holds nine bits of a PASID; write glxsup=1, or \
                      pasid=9",
            });
        }
        Ok(())
    }

    /// An error if `option` was given although `that` leaves it without a meaning.
    fn need(
        &self,
        given: &[&str],
        option: &str,
        that: &str,
        why: &'static str,
    ) -> Result<(), OptionError> {
        if !given.contains(&option) {
            return Ok(());
        }
        Err(OptionError::Contradiction {
            this: format!("{option}={}", self.text(option)),
            that: that.into(),
            why,
        })
    }

    fn is_on(&self, option: &str) -> bool {
        OPTIONS
            .iter()
            .any(|spec| spec.name == option && (spec.get)(self) == Value::Switch(true))
    }

    /// The value of `option` as it is written.
    fn text(&self, option: &str) -> String {
        let Some(spec) = OPTIONS.iter().find(|spec| spec.name == option) else {
            return String::new();
        };
        match (spec.get)(self) {
            Value::Switch(true) => "on".into(),
            Value::Switch(false) | Value::Counters(0, 0) => "off".into(),
            Value::Word(place) => DIRTY_TRACKING[place].into(),
            Value::Counters(banks, counters) => format!("{banks}x{counters}"),
            Value::Number(n) if spec.kind == OptionKind::Address => format!("{n:#x}"),
            Value::Number(n) => n.to_string(),
            Value::Function(id) if id.bus() == 0 => {
                format!("{:02x}.{:x}", id.device(), id.function())
            }
            Value::Function(id) => id.to_string(),
        }
    }

    fn set(&mut self, option: &str, value: Value) {
        if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == option) {
            (spec.set)(self, value);
        }
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

    /// Whether devices may have TLBs of their own (ATS): IotlbSup of the capability (48882 §3.1),
    /// which the IVHD's flags must repeat.
    pub fn device_iotlb(&self) -> bool {
        self.device_iotlb
    }

    /// Performance counter banks, and counters in each; 0 and 0 if there are none. The IVHD's PNBanks
    /// and PNCounters must repeat them.
    pub fn perf_counters(&self) -> (u8, u8) {
        self.counters
    }

    /// Bytes of the register file: 16 KiB, or 512 KiB with performance counters.
    pub fn mmio_size(&self) -> u64 {
        if self.counters == (0, 0) {
            offset::REGION_SIZE
        } else {
            offset::REGION_SIZE_WITH_COUNTERS
        }
    }

    /// How many pages, whatever their size, the IOTLB that all functions share holds: a power of two.
    /// Its memory, about 40 bytes each, is taken with the device and never grows.
    pub fn iotlb_entries(&self) -> usize {
        self.iotlb_entries as usize
    }

    /// How many pages each [`Endpoint`](crate::Endpoint) keeps for itself: a power of two, 16 bytes
    /// each. As many as a queue's working set makes nearly every access a hit of the fastest kind.
    pub fn dma_cache_entries(&self) -> usize {
        self.dma_cache_entries as usize
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
            let meaningless = match spec.name {
                "hats" | "dirty-tracking" => !self.dma_remap,
                "gats" | "glxsup" | "pasid" => !self.gtsup,
                _ => false,
            };
            if !meaningless {
                write!(f, ",{}={}", spec.name, self.text(spec.name))?;
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
