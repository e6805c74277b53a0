//! What a description must not say.

use std::collections::BTreeSet;

use amdvi_regs::ivrs::{BuildError, IvhdKind, IvmdKind, SpecialVariety};
use amdvi_regs::{DeviceId, Segment};
use thiserror::Error;

use super::{AcpiUid, IommuUnit, IvrsConfig};

/// A page that Linux uses for AMD's FCH whatever the ACPI tables say.
const FCH_PAGE: u64 = 0xfed8_0000;

/// Why no table is built. `unit` is the IOMMU's DeviceID.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// There is no IOMMU.
    #[error("IVRS: `units` is empty; leave the table out when there is no IOMMU")]
    NoUnit,
    /// A field has an impossible value.
    #[error("IVRS: `{field}` is {value}; accepted: {accepted}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        accepted: &'static str,
    },
    /// A field of a unit has an impossible value.
    #[error("IVRS, IOMMU {unit}: `{field}` is {value:#x}; accepted: {accepted}")]
    UnitField {
        /// The IOMMU.
        unit: DeviceId,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        accepted: &'static str,
    },
    /// A combination that a guest driver is known to stumble over.
    #[error("IVRS, IOMMU {unit}: {problem}")]
    Unit {
        /// The IOMMU.
        unit: DeviceId,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A range that ends before it starts.
    #[error("IVRS, IOMMU {unit}: the range of devices {first} to {last} ends before it starts")]
    Range {
        /// The IOMMU.
        unit: DeviceId,
        /// The range's first device.
        first: DeviceId,
        /// The range's last device.
        last: DeviceId,
    },
    /// A DeviceID beyond those that the device entries cover: Linux ignores such an entry.
    #[error(
        "IVRS, IOMMU {unit}: {what} uses DeviceID {device}, beyond the last device that a device \
         entry of the segment covers ({last}); cover it as well"
    )]
    NotCovered {
        /// The IOMMU.
        unit: DeviceId,
        /// Which kind of entry.
        what: &'static str,
        /// The DeviceID.
        device: DeviceId,
        /// The highest DeviceID covered.
        last: DeviceId,
    },
    /// The same IOAPIC or HPET twice.
    #[error("IVRS: {variety} with handle {handle} is listed twice")]
    DuplicateSpecial {
        /// What it is.
        variety: SpecialVariety,
        /// Its handle.
        handle: u8,
    },
    /// Two units have the same identity.
    #[error("IVRS: two IOMMUs have DeviceID {unit} in segment {segment}")]
    DuplicateUnit {
        /// The DeviceID.
        unit: DeviceId,
        /// The segment.
        segment: Segment,
    },
    /// A memory range that Linux would mistake for an IOMMU, or an empty one.
    #[error("IVRS, memory range at {start:#x}: {problem}")]
    Memory {
        /// The range's first byte.
        start: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The layout's own limits.
    #[error("IVRS: {0}")]
    Build(BuildError),
}

impl IvrsConfig {
    /// Finds what would make a guest crash, or ignore the table or a part of it.
    ///
    /// # Errors
    /// The first problem found.
    pub fn check(&self) -> Result<(), ConfigError> {
        let first = self.units.first().ok_or(ConfigError::NoUnit)?;
        let field = |field, value: u8, good: bool, accepted| {
            let value = u64::from(value);
            if good {
                Ok(())
            } else {
                Err(ConfigError::Field {
                    field,
                    value,
                    accepted,
                })
            }
        };
        field(
            "pa_bits",
            self.pa_bits,
            (32..=52).contains(&self.pa_bits),
            "32 to 52",
        )?;
        let va_good = matches!(self.va_bits, 32 | 40 | 48 | 64);
        field("va_bits", self.va_bits, va_good, "32, 40, 48, 64")?;

        let mut identities = BTreeSet::new();
        let mut specials = BTreeSet::new();
        for unit in &self.units {
            unit.check()?;
            let (device_id, segment) = (unit.device_id, unit.segment);
            if !identities.insert((segment, device_id)) {
                return Err(ConfigError::DuplicateUnit {
                    unit: device_id,
                    segment,
                });
            }
            if unit.kinds.iter().max() != first.kinds.iter().max() {
                return Err(ConfigError::Unit {
                    unit: device_id,
                    problem: "its highest block type is not that of the first IOMMU; Linux reads \
                              only blocks of one type, so give all IOMMUs the same `kinds`",
                });
            }
            self.check_coverage(unit)?;
            for special in &unit.specials {
                let (variety, handle) = (special.variety, special.handle);
                if !specials.insert((variety, handle)) {
                    return Err(ConfigError::DuplicateSpecial { variety, handle });
                }
            }
        }
        self.check_memory()
    }

    /// Linux sizes its tables by the highest DeviceID of entries 02h, 04h, 42h and 46h in the
    /// segment, and drops what lies beyond.
    fn check_coverage(&self, unit: &IommuUnit) -> Result<(), ConfigError> {
        let last = self
            .units
            .iter()
            .filter(|other| other.segment == unit.segment)
            .flat_map(|other| &other.devices)
            .map(|coverage| coverage.bounds().1)
            .max()
            .unwrap_or_default();
        let aliases = unit.devices.iter().filter_map(|coverage| coverage.source());
        let specials = unit.specials.iter().map(|special| special.device);
        let acpi = unit.acpi.iter().map(|device| device.device);
        let uses = aliases
            .map(|device| ("an alias", device))
            .chain(specials.map(|device| ("a special device", device)))
            .chain(acpi.map(|device| ("an ACPI device", device)));
        for (what, device) in uses {
            if device > last {
                return Err(ConfigError::NotCovered {
                    unit: unit.device_id,
                    what,
                    device,
                    last,
                });
            }
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), ConfigError> {
        for range in &self.memory {
            let is_unit = self
                .units
                .iter()
                .any(|unit| unit.device_id == range.device_id);
            let problem = if is_unit {
                "its DeviceID is an IOMMU's; Linux would take the block's type for the IOMMU's"
            } else if range.length == 0 || range.start.checked_add(range.length - 1).is_none() {
                "its length is 0 or reaches beyond the address space"
            } else if (range.start | range.length) & 0xfff != 0 {
                "start and length must be multiples of 4 KiB"
            } else if range.kind == IvmdKind::Range && range.last_device_id < range.device_id {
                "its range of devices ends before it starts"
            } else {
                continue;
            };
            return Err(ConfigError::Memory {
                start: range.start,
                problem,
            });
        }
        Ok(())
    }
}

impl IommuUnit {
    fn check(&self) -> Result<(), ConfigError> {
        let unit = self.device_id;
        let field = |field, value, good: bool, accepted| {
            if good {
                Ok(())
            } else {
                Err(ConfigError::UnitField {
                    unit,
                    field,
                    value,
                    accepted,
                })
            }
        };
        let id = u64::from(unit.0);
        field("device_id", id, id != 0, "any but 00:00.0 (Xen refuses it)")?;
        let offset = self.capability_offset;
        let good = (0x40..=0xfc).contains(&offset) && offset.is_multiple_of(4);
        field(
            "capability_offset",
            offset.into(),
            good,
            "multiples of 4 from 0x40 to 0xfc",
        )?;
        let base = self.mmio_base;
        // 16 KiB of registers, 512 KiB with performance counters.
        let (size, accepted) = if self.efr.pc_sup() {
            (0x8_0000, "non-zero multiples of 512 KiB (EFR.PCSup is 1)")
        } else {
            (0x4000, "non-zero multiples of 16 KiB")
        };
        field(
            "mmio_base",
            base,
            base != 0 && base.is_multiple_of(size),
            accepted,
        )?;
        let fch = "any window without 0xfed80000 (Linux writes to the FCH there)";
        field("mmio_base", base, FCH_PAGE & !(size - 1) != base, fch)?;
        field("msi_num", self.msi_num.into(), self.msi_num < 32, "0 to 31")?;
        field(
            "msi_num_ppr",
            self.msi_num_ppr.into(),
            self.msi_num_ppr < 32,
            "0 to 31",
        )?;
        field(
            "pn_counters",
            self.pn_counters.into(),
            self.pn_counters < 16,
            "0 to 15",
        )?;
        field(
            "pn_banks",
            self.pn_banks.into(),
            self.pn_banks < 64,
            "0 to 63",
        )?;
        let pas_max = self.efr.pas_max();
        field(
            "efr.PASmax",
            pas_max.into(),
            pas_max <= 15,
            "0 to 15 (Linux stops at more)",
        )?;

        if let Some(problem) = self.problem() {
            return Err(ConfigError::Unit { unit, problem });
        }
        for coverage in &self.devices {
            let (first, last) = coverage.bounds();
            if last < first {
                return Err(ConfigError::Range { unit, first, last });
            }
        }
        Ok(())
    }

    /// Combinations.
    fn problem(&self) -> Option<&'static str> {
        let counters = self.pn_counters != 0 && self.pn_banks != 0;
        let any_counter = self.pn_counters != 0 || self.pn_banks != 0;
        let images = self.kinds.iter().any(|&kind| kind != IvhdKind::Type10);
        let unique: BTreeSet<_> = self.kinds.iter().collect();
        let long_uid = |uid: &AcpiUid| matches!(uid, AcpiUid::String(text) if text.len() > 255);
        if self.kinds.is_empty() || unique.len() != self.kinds.len() {
            Some("`kinds` must name each block type to emit once, and at least one")
        } else if self.efr.pc_sup() && !counters || !self.efr.pc_sup() && any_counter {
            Some(
                "EFR.PCSup, `pn_counters` and `pn_banks` must be all zero or all non-zero; \
                 otherwise Linux maps too little of the register space and crashes",
            )
        } else if self.efr2.num_int_remap_sup() != 0 && !(images && self.efr.ga_sup()) {
            Some(
                "EFR2 offers 2048 interrupts, which Linux uses rightly only if it knows EFR2 \
                 early: that takes a block of type 11h or 40h and EFR.GASup",
            )
        } else if self.devices.is_empty() {
            Some("`devices` is empty: the IOMMU would serve no device")
        } else if !self.acpi.is_empty() && !self.kinds.contains(&IvhdKind::Type40) {
            Some("`acpi` devices need a block of type 40h in `kinds`")
        } else if self.acpi.iter().any(|device| long_uid(&device.uid)) {
            Some("the UID of an ACPI device has more than 255 bytes")
        } else {
            None
        }
    }
}
