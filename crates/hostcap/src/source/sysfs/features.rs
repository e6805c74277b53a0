//! The three historical formats of `amd-iommu/features`.

use std::fmt;

use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};

use crate::registers::HostRegisters;
use crate::source::KernelVersion;

/// How `features` was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeaturesFormat {
    /// `EFR`, Linux 3.17 to 5.19.
    Efr,
    /// `EFR2:EFR`, Linux 6.0 to 6.6.
    Efr2Efr,
    /// `EFR:EFR2`, Linux 6.7 and later.
    EfrEfr2,
    /// Two equal values, for which the order does not matter.
    Either,
}

impl fmt::Display for FeaturesFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Efr => "EFR alone, as before Linux 6.0",
            Self::Efr2Efr => "EFR2:EFR, as Linux 6.0 to 6.6 print it",
            Self::EfrEfr2 => "EFR:EFR2, as Linux 6.7 and later print it",
            Self::Either => "two equal values, EFR and EFR2 in either order",
        })
    }
}

/// What decided between the two orders of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderBy {
    /// There was nothing to decide.
    Nothing,
    /// Only one order gives registers that make sense.
    Values,
    /// Only one order makes sense, and it is not that of the kernel's version (a distribution's
    /// kernel, perhaps).
    ValuesAgainstVersion,
    /// Both orders make sense; the kernel's version tells which it is.
    Version,
}

/// `features`, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The registers; EFR2 is absent in the oldest format.
    pub registers: HostRegisters,
    /// The format.
    pub format: FeaturesFormat,
    /// What decided.
    pub by: OrderBy,
}

/// `features` that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeaturesError {
    /// Not one or two hexadecimal numbers.
    #[error("`{0}` is neither `EFR` nor two registers separated by a colon, in hexadecimal")]
    Malformed(String),
    /// Both orders of the two values make sense, and there is no version to tell them apart.
    #[error(
        "`{0}` could be EFR2:EFR (Linux 6.0 to 6.6) or EFR:EFR2 (6.7 and later), and without the \
         kernel's version the order can't be told"
    )]
    Ambiguous(String),
    /// Neither order makes sense.
    #[error("`{0}` makes no sense as EFR and EFR2 in either order, so the order can't be told")]
    Implausible(String),
}

/// EFR2 bits with a known meaning, and all the lower half: beyond that a value is no EFR2 that
/// any hardware is known to have.
const EFR2_MASKS: [u64; 2] = [0x2bfe, 0xffff_ffff];

/// Whether the value can be the EFR of an IOMMU that Linux drives: something is there, reserved
/// bits are clear, and fields hold values with a meaning.
fn is_efr(value: u64) -> bool {
    const RESERVED: u64 = 1 << 26 | 1 << 27 | 1 << 30;
    let efr = ExtendedFeature::from(value);
    value != 0
        && value & RESERVED == 0
        && efr.glx_sup() <= 2
        && efr.gats() <= 2
        && efr.gam_sup() <= 1
        && (value >> 16) & 3 <= 1
}

/// Reads the text of `features`.
///
/// Two values are told apart by what they hold: of each order it is asked whether the first (or
/// second) can be an EFR and the other an EFR2, first by the bits that have a known meaning, then
/// leniently. `kernel` is only a hint, for when both make sense.
///
/// # Errors
/// The text is malformed, or its order can't be told.
pub fn read_features(text: &str, kernel: Option<KernelVersion>) -> Result<Features, FeaturesError> {
    let malformed = || FeaturesError::Malformed(text.to_owned());
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
            .ok_or_else(malformed)
    };
    let registers = |efr: u64, efr2: Option<u64>| HostRegisters {
        efr: Some(efr.into()),
        efr2: efr2.map(ExtendedFeature2::from),
        control: None,
    };
    let Some((first, second)) = text.split_once(':') else {
        return Ok(Features {
            registers: registers(number(text)?, None),
            format: FeaturesFormat::Efr,
            by: OrderBy::Nothing,
        });
    };
    let (first, second) = (number(first)?, number(second)?);
    let as_format = |format, by| Features {
        registers: match format {
            FeaturesFormat::Efr2Efr => registers(second, Some(first)),
            _ => registers(first, Some(second)),
        },
        format,
        by,
    };
    if first == second {
        return Ok(as_format(FeaturesFormat::Either, OrderBy::Nothing));
    }
    let of_version = kernel.map(|kernel| match kernel < KernelVersion::new(6, 7) {
        true => FeaturesFormat::Efr2Efr,
        false => FeaturesFormat::EfrEfr2,
    });
    for mask in EFR2_MASKS {
        let fits = |efr: u64, efr2: u64| is_efr(efr) && efr2 & !mask == 0;
        let format = match (fits(first, second), fits(second, first)) {
            (false, false) => continue,
            (true, false) => FeaturesFormat::EfrEfr2,
            (false, true) => FeaturesFormat::Efr2Efr,
            (true, true) => {
                return of_version
                    .map(|format| as_format(format, OrderBy::Version))
                    .ok_or_else(|| FeaturesError::Ambiguous(text.to_owned()));
            }
        };
        let by = match of_version {
            Some(other) if other != format => OrderBy::ValuesAgainstVersion,
            _ => OrderBy::Values,
        };
        return Ok(as_format(format, by));
    }
    Err(FeaturesError::Implausible(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Option<KernelVersion> = Some(KernelVersion::new(6, 1));
    const NEW: Option<KernelVersion> = Some(KernelVersion::new(6, 12));

    fn read(text: &str, kernel: Option<KernelVersion>) -> (u64, Option<u64>, OrderBy) {
        let features = read_features(text, kernel).unwrap();
        let HostRegisters { efr, efr2, .. } = features.registers;
        (efr.unwrap().into(), efr2.map(u64::from), features.by)
    }

    #[test]
    fn one_value_is_the_efr_and_says_nothing_of_efr2() {
        for kernel in [None, OLD, NEW] {
            let expected = (0x2465_77ef_a225_4afa, None, OrderBy::Nothing);
            assert_eq!(read("246577efa2254afa", kernel), expected);
        }
    }

    #[test]
    fn real_registers_are_told_apart_by_what_they_hold_in_both_orders() {
        for efr in [
            0x2465_77ef_a225_4afa,
            0x206d_73ef_2225_4ade,
            0x058f_77ef_2229_4ada,
            0x000f_77ef_2229_4ada,
            0x29d3,
            0x29d7,
        ] {
            // 8000h is a bit that no one knows yet.
            for efr2 in [0, 0x10, 0x110, 0x910, 0x8110] {
                for text in [format!("{efr:x}:{efr2:x}"), format!("{efr2:x}:{efr:x}")] {
                    match read_features(&text, None) {
                        Ok(found) => {
                            assert_eq!(found.registers.efr, Some(efr.into()), "{text}");
                            assert_eq!(found.registers.efr2, Some(efr2.into()), "{text}");
                        }
                        // A small EFR beside an EFR2 with an unknown bit.
                        Err(FeaturesError::Ambiguous(_)) => assert!(efr2 > 0x3fff && efr < 0xffff),
                        Err(error) => panic!("{text}: {error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_version_decides_only_when_both_orders_make_sense() {
        // Either value fits both registers.
        assert_eq!(read("10:110", OLD), (0x110, Some(0x10), OrderBy::Version));
        assert_eq!(read("10:110", NEW), (0x10, Some(0x110), OrderBy::Version));
        let error = read_features("10:110", None).unwrap_err();
        assert!(
            error.to_string().contains("the order can't be told"),
            "{error}"
        );
        // What the registers hold wins over a version that says otherwise.
        assert_eq!(
            read("246577efa2254afa:10", OLD),
            (
                0x2465_77ef_a225_4afa,
                Some(0x10),
                OrderBy::ValuesAgainstVersion
            )
        );
        let agreeing = read("10:246577efa2254afa", OLD);
        assert_eq!(agreeing.2, OrderBy::Values);
    }

    #[test]
    fn equal_values_need_no_order() {
        assert_eq!(read("0:0", None), (0, Some(0), OrderBy::Nothing));
        assert_eq!(read("10:10", None), (0x10, Some(0x10), OrderBy::Nothing));
    }

    #[test]
    fn two_values_that_make_no_sense_have_no_order() {
        for text in [
            "ffffffffffffffff:fffffffffffffffe",
            "246577efa2254afa:206d73ef22254ade",
        ] {
            for kernel in [None, OLD, NEW] {
                let error = read_features(text, kernel).unwrap_err();
                assert_eq!(error, FeaturesError::Implausible(text.to_owned()));
            }
        }
    }

    #[test]
    fn malformed_text_is_quoted() {
        for text in [
            "",
            ":",
            "10:",
            "x",
            "10:20:30",
            "+10",
            "1 2",
            "11111111111111111",
        ] {
            let error = read_features(text, NEW).unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
