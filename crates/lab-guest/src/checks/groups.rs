//! IOMMU groups.

use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::IommuGroups;
use anyhow::{Result, bail};

use crate::context::{names, text};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Class codes without the programming interface: host bridge, IOMMU. Neither is behind the IOMMU.
const WITHOUT: [&str; 2] = ["0x0600", "0x0806"];

pub(super) fn check(want: &IommuGroups) -> Result<String> {
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    let functions = names(DEVICES)?;
    for function in &functions {
        let folder = format!("{DEVICES}/{function}");
        let class = text(format!("{folder}/class"))?;
        let kind = text(format!("{folder}/iommu_group/type")).ok();
        let exempt = WITHOUT.iter().any(|without| class.starts_with(without))
            || want.without.contains(function);
        match &kind {
            None if exempt => continue,
            None => wrong.push(format!("{function} (class {class}) has no IOMMU group")),
            Some(_) if want.without.contains(function) => {
                wrong.push(format!(
                    "{function} has an IOMMU group and should have none"
                ));
            }
            Some(kind) => {
                let asked = want.functions.get(function);
                let fits = match asked {
                    Some(asked) => asked == kind,
                    None => exempt || want.types.is_empty() || want.types.contains(kind),
                };
                if !fits {
                    wrong.push(format!("the group of {function} is of type {kind}"));
                }
                seen.push(format!("{function} {kind}"));
            }
        }
    }
    for function in want.functions.keys().chain(want.reserved.keys()) {
        if !functions.contains(function) {
            wrong.push(format!("there is no function {function}"));
        }
    }
    for (function, patterns) in &want.reserved {
        let regions = text(format!("{DEVICES}/{function}/iommu_group/reserved_regions"));
        let regions = regions.unwrap_or_default();
        for pattern in patterns {
            if !regions.lines().any(|line| matches(pattern, line)) {
                wrong.push(format!(
                    "no reserved region of {function} matches `{pattern}`: {regions:?}"
                ));
            }
        }
    }
    if seen.len() < want.at_least {
        wrong.push(format!("{} functions have a group", seen.len()));
    }
    if !wrong.is_empty() {
        bail!("{}; the groups are {seen:?}", wrong.join("; "));
    }
    Ok(seen.join(", "))
}
