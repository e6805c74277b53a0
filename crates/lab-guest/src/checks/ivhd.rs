//! What the driver shows of an IOMMU in sysfs.

use amdvi_lab_guest::plan::SysfsIvhd;
use anyhow::{Context, Result, ensure};

use crate::context::text;

pub(super) fn check(want: &SysfsIvhd) -> Result<String> {
    let folder = format!("/sys/class/iommu/ivhd{}/amd-iommu", want.index);
    let cap = text(format!("{folder}/cap"))?;
    let features = text(format!("{folder}/features"))?;
    let seen =
        parse(&cap, &features).with_context(|| format!("cap is `{cap}`, features `{features}`"))?;
    let mut wrong = Vec::new();
    let mut compare = |what: &str, seen: u64, want: Option<u64>| {
        if let Some(want) = want.filter(|want| *want != seen) {
            wrong.push(format!("{what} is {seen:#x}, offered was {want:#x}"));
        }
    };
    compare("cap", seen.0, want.cap.map(u64::from));
    compare("EFR", seen.1, want.efr);
    compare("EFR2", seen.2, want.efr2);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let (cap, efr, efr2) = seen;
    Ok(format!("cap {cap:#x}, EFR {efr:#x}, EFR2 {efr2:#x}"))
}

/// The capability header, EFR and EFR2: `features` is `<EFR>:<EFR2>`.
fn parse(cap: &str, features: &str) -> Result<(u64, u64, u64)> {
    let hex = |text: &str| u64::from_str_radix(text, 16);
    let (efr, efr2) = features.split_once(':').context("one register only")?;
    Ok((hex(cap)?, hex(efr)?, hex(efr2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_the_two_registers_in_order() {
        let seen = parse("1ff", "29d7:100").unwrap();
        assert_eq!(seen, (0x1ff, 0x29d7, 0x100));
        assert!(parse("1ff", "29d7").is_err());
        assert!(parse("", "29d7").is_err());
    }
}
