//! What `IOMMU_GET_HW_INFO` returned, read by the length that the kernel says it has.

use std::fmt::Write as _;

use crate::answer::{Answer, Gap, Note};
use crate::aspect::Aspect;
use crate::fact::{Fact, Phase, Subject};
use crate::feature::{Feature, Setting};
use crate::registers::HostRegisters;
use crate::scope::{PciFunction, Scope};

/// `enum iommu_hw_info_type`, the values that are told apart.
mod data_type {
    pub(super) const NONE: u32 = 0;
    pub(super) const INTEL_VTD: u32 = 1;
    pub(super) const AMD: u32 = 4;
}

/// `{efr, efr2}`, all that Linux up to 7.3 has.
const AMD_LEN: usize = 16;
/// `{efr, efr2, control}`, the proposed extension.
const AMD_WITH_CONTROL_LEN: usize = 24;

/// `struct iommu_hw_info` as it came back, with the data that it points to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawHwInfo {
    /// `out_data_type`: whose IOMMU it is.
    pub data_type: u32,
    /// `data_len`: how much data the kernel has, whatever the size of the buffer was.
    pub data_len: u32,
    /// The buffer.
    pub data: Vec<u8>,
    /// `out_capabilities`: generic capabilities.
    pub capabilities: HwCapabilities,
    /// `out_max_pasid_log2`: the width of PASIDs in bits; 0 when there are none, or when the
    /// kernel is older than the field.
    pub max_pasid_log2: u8,
}

/// `out_capabilities`, kept as it came: bits without a known meaning too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HwCapabilities(pub u64);

impl HwCapabilities {
    /// Dirty pages can be tracked.
    pub const DIRTY_TRACKING: u64 = 1;
    /// The function's PASIDs can carry execute permission.
    pub const PASID_EXEC: u64 = 1 << 1;
    /// The function's PASIDs can carry privileged mode.
    pub const PASID_PRIV: u64 = 1 << 2;
    /// ATS is not to be used with the function.
    pub const ATS_NOT_SUPPORTED: u64 = 1 << 3;

    /// Whether a bit is set.
    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
}

/// The answer, by maker and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HwInfo {
    /// Type 0: the driver reports nothing.
    None,
    /// Type 1.
    IntelVtd,
    /// Type 4, with what fits into the length.
    Amd {
        /// EFR and EFR2; CONTROL when the kernel has it.
        registers: HostRegisters,
        /// Bytes that the kernel has and that have no known meaning: a future extension, or a
        /// register cut off.
        unknown: usize,
    },
    /// Type 4, with less than both EFR and EFR2: nothing is taken from it.
    AmdTruncated,
    /// Another maker's.
    Other,
}

impl RawHwInfo {
    /// Reads the data by the returned length: what the kernel did not fill is not there, even
    /// where the buffer has room for it.
    pub fn read(&self) -> HwInfo {
        match self.data_type {
            data_type::NONE => HwInfo::None,
            data_type::INTEL_VTD => HwInfo::IntelVtd,
            data_type::AMD => self.amd(),
            _ => HwInfo::Other,
        }
    }

    fn amd(&self) -> HwInfo {
        let len = self.data_len as usize;
        let filled = &self.data[..self.data.len().min(len)];
        let word = |index: usize| {
            let bytes = filled.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let (Some(efr), Some(efr2)) = (word(0), word(1)) else {
            return HwInfo::AmdTruncated;
        };
        let control = word(2);
        let known = control.map_or(AMD_LEN, |_| AMD_WITH_CONTROL_LEN);
        HwInfo::Amd {
            registers: HostRegisters {
                efr: Some(efr.into()),
                efr2: Some(efr2.into()),
                control: control.map(Into::into),
            },
            unknown: len - known,
        }
    }

    /// The facts that follow. `serving` is the IOMMU behind the function where that is known:
    /// registers are the IOMMU's, and speak for all its functions.
    pub fn answer<P: Phase>(
        &self,
        function: PciFunction,
        serving: Option<&str>,
        source: &str,
    ) -> Answer<P> {
        let of_function = Scope::Function(function);
        let scope = serving.map_or(of_function.clone(), |name| Scope::Iommu(name.to_owned()));
        let mut answer = Answer::nothing();
        let mut gap = |problem: &str| {
            answer.gaps.push(Gap {
                source: source.to_owned(),
                scope: scope.clone(),
                problem: format!(
                    "IOMMU_GET_HW_INFO returned type {}, {} bytes: {problem}",
                    self.data_type, self.data_len
                ),
            });
        };
        let hole = |on: bool| {
            let seen = format!("IOMMU_GET_HW_INFO type {}", self.data_type);
            Fact::new(
                Subject::HtHole,
                on,
                Aspect::Hardware,
                Scope::Host,
                source,
                seen,
            )
        };
        match self.read() {
            HwInfo::None => gap(
                "the kernel's driver for this IOMMU reports nothing about it; for AMD-Vi use a \
                 newer kernel with CONFIG_AMD_IOMMU_IOMMUFD",
            ),
            HwInfo::IntelVtd => {
                gap(
                    "this is an Intel VT-d IOMMU, which has none of AMD's registers; use an AMD \
                     host for what depends on them",
                );
                answer.facts.push(hole(false));
            }
            HwInfo::Other => {
                gap("this is neither an AMD nor an Intel IOMMU; use an AMD host");
            }
            HwInfo::AmdTruncated => gap(
                "an AMD IOMMU's answer has 16 bytes or more, so nothing is taken from this one; \
                 report it to the kernel's maintainers",
            ),
            HwInfo::Amd { registers, .. } => {
                answer.facts.push(hole(true));
                answer.facts.extend(registers.hw_info_facts(&scope, source));
                // The kernel's bit says whether dirty tracking works for this function.
                let dirty = self.capabilities.has(HwCapabilities::DIRTY_TRACKING);
                for feature in [Feature::HostAccess, Feature::HostDirty] {
                    let seen = format!("out_capabilities[0]={}", u8::from(dirty));
                    let scope = of_function.clone();
                    let fact = Fact::new(feature, dirty, Aspect::Kernel, scope, source, seen);
                    answer.facts.push(fact);
                }
                // 0 may be a kernel that is older than the field: nothing follows from it.
                if let Some(level) = self.max_pasid_log2.checked_sub(1) {
                    let seen = format!("out_max_pasid_log2={}", self.max_pasid_log2);
                    answer.facts.push(Fact::new(
                        Feature::PasidMax,
                        Setting::Level(level),
                        Aspect::Kernel,
                        of_function.clone(),
                        source,
                        seen,
                    ));
                }
            }
        }
        answer.notes.push(Note {
            source: source.to_owned(),
            scope: of_function,
            text: self.describe(),
        });
        answer
    }

    /// One line for a person: everything that came back.
    fn describe(&self) -> String {
        let mut text = format!(
            "IOMMU_GET_HW_INFO type {}, {} bytes",
            self.data_type, self.data_len
        );
        if let HwInfo::Amd { registers, unknown } = self.read() {
            let _ = write!(
                text,
                ": EFR={:#018x}, EFR2={:#x}",
                registers.efr.map_or(0, u64::from),
                registers.efr2.map_or(0, u64::from)
            );
            match registers.control {
                Some(control) => {
                    let _ = write!(text, ", CONTROL={:#018x}", u64::from(control));
                }
                None => text.push_str(", no CONTROL"),
            }
            if unknown > 0 {
                let _ = write!(text, ", and {unknown} bytes of unknown meaning, not read");
            }
        }
        let _ = write!(
            text,
            "; out_capabilities={:#x}, PASIDs of {} bits",
            self.capabilities.0, self.max_pasid_log2
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Late;

    const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);
    const EFR: u64 = 0x2465_77ef_a225_4afa;
    const CONTROL_2K: u64 = 1 << 43;

    /// What the kernel returns into a buffer of 64 bytes, the rest of which it zeroes.
    fn raw(data_type: u32, data_len: u32, words: &[u64]) -> RawHwInfo {
        let mut data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        data.resize(64, 0);
        RawHwInfo {
            data_type,
            data_len,
            data,
            ..RawHwInfo::default()
        }
    }

    fn answer(raw: &RawHwInfo) -> Answer<Late> {
        raw.answer(NIC, Some("ivhd0"), "iommufd")
    }

    #[test]
    fn sixteen_bytes_are_efr_and_efr2_and_say_nothing_of_control() {
        // The zeroes behind the data are the buffer's, not a CONTROL of 0.
        let HwInfo::Amd { registers, unknown } = raw(4, 16, &[EFR, 0x110]).read() else {
            panic!("not AMD")
        };
        assert_eq!(registers.efr, Some(EFR.into()));
        assert_eq!(registers.efr2, Some(0x110.into()));
        assert_eq!((registers.control, unknown), (None, 0));
        let facts = answer(&raw(4, 16, &[EFR, 0x110])).facts;
        let kernel_2k = |f: &Fact<Late>| {
            f.subject() == Feature::NumInt2K.into() && f.aspect() == Aspect::Kernel
        };
        assert!(!facts.iter().any(kernel_2k));
        let extended = answer(&raw(4, 24, &[EFR, 0x110, CONTROL_2K])).facts;
        let fact = extended.iter().find(|f| kernel_2k(f)).unwrap();
        assert_eq!(fact.value(), Setting::ON);
        assert_eq!(*fact.scope(), Scope::Iommu("ivhd0".to_owned()));
    }

    #[test]
    fn a_future_length_is_read_as_far_as_it_is_known_and_says_so() {
        for (len, control, unknown) in [
            (17, false, 1),
            (23, false, 7),
            (32, true, 8),
            (4096, true, 4072),
        ] {
            let raw = raw(4, len, &[EFR, 0x110, CONTROL_2K]);
            let HwInfo::Amd {
                registers,
                unknown: rest,
            } = raw.read()
            else {
                panic!("{len}")
            };
            assert_eq!(
                (registers.control.is_some(), rest),
                (control, unknown),
                "{len}"
            );
            let note = &answer(&raw).notes[0].text;
            assert!(
                note.contains(&format!("{unknown} bytes of unknown meaning")),
                "{note}"
            );
        }
    }

    #[test]
    fn a_truncated_answer_states_nothing() {
        for len in [0, 1, 8, 15] {
            let answer = answer(&raw(4, len, &[EFR, 0x110, CONTROL_2K]));
            assert_eq!(answer.facts, [], "{len}");
            assert!(
                answer.gaps[0]
                    .problem
                    .contains(&format!("type 4, {len} bytes"))
            );
        }
        // A length that the buffer does not hold is not believed either.
        let mut short = raw(4, 16, &[]);
        short.data.truncate(12);
        assert_eq!(short.read(), HwInfo::AmdTruncated);
    }

    #[test]
    fn other_makers_have_each_their_own_answer_and_none_is_a_yes() {
        for (data_type, len, said, facts) in [
            (0, 0, "reports nothing about it", 0),
            (1, 24, "Intel VT-d", 1),
            (2, 40, "neither an AMD nor an Intel", 0),
            (5, 16, "neither an AMD nor an Intel", 0),
        ] {
            let answer = answer(&raw(data_type, len, &[u64::MAX, u64::MAX, u64::MAX]));
            let problem = &answer.gaps[0].problem;
            assert!(problem.contains(said), "{problem}");
            assert!(
                problem.contains(&format!("type {data_type}, {len} bytes")),
                "{problem}"
            );
            assert_eq!(answer.facts.len(), facts);
            assert!(
                answer.facts.iter().all(|f| !f.value().is_on()),
                "{:?}",
                answer.facts
            );
        }
    }

    #[test]
    fn generic_capabilities_are_kept_and_count_for_what_they_say() {
        let find = |answer: &Answer<Late>, feature: Feature| {
            let mut facts = answer.facts.iter();
            let of_kernel = |f: &&Fact<Late>| {
                f.subject() == feature.into()
                    && f.aspect() == Aspect::Kernel
                    && *f.scope() == Scope::Function(NIC)
            };
            facts.find(of_kernel).map(Fact::value)
        };
        let mut raw = raw(4, 16, &[EFR, 0]);
        let none = answer(&raw);
        assert_eq!(find(&none, Feature::HostDirty), Some(Setting::OFF));
        assert_eq!(find(&none, Feature::PasidMax), None);
        raw.capabilities = HwCapabilities(HwCapabilities::DIRTY_TRACKING | 1 << 40);
        raw.max_pasid_log2 = 16;
        let some = answer(&raw);
        assert_eq!(find(&some, Feature::HostDirty), Some(Setting::ON));
        assert_eq!(find(&some, Feature::PasidMax), Some(Setting::Level(15)));
        let note = &some.notes[0].text;
        assert!(
            note.contains("out_capabilities=0x10000000001, PASIDs of 16 bits"),
            "{note}"
        );
    }
}
