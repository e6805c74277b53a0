//! `/proc/interrupts`.

use amdvi_lab_guest::interrupts::Row;
use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::Interrupts;
use anyhow::{Result, bail};

use crate::context::interrupts;

pub(super) fn check(want: &Interrupts) -> Result<String> {
    judge(&interrupts()?, want)
}

fn judge(rows: &[Row], want: &Interrupts) -> Result<String> {
    let mut wrong = Vec::new();
    if rows.is_empty() {
        wrong.push("there are no interrupts".to_owned());
    }
    if want.remapped {
        let passing = rows.iter().filter(|row| !row.remapped() && !row.of_iommu());
        wrong.extend(passing.map(|row| format!("`{}` is not remapped", row.text)));
    }
    let like = |pattern: &String| -> Vec<_> {
        let rows = rows.iter().filter(|row| matches(pattern, &row.text));
        rows.collect()
    };
    for pattern in want.require.iter().chain(&want.counted) {
        if like(pattern).is_empty() {
            wrong.push(format!("no row matches `{pattern}`"));
        }
    }
    for pattern in &want.counted {
        for row in like(pattern).iter().filter(|row| row.count == 0) {
            wrong.push(format!("`{}` never came", row.text));
        }
    }
    for pattern in &want.forbid {
        for row in like(pattern) {
            wrong.push(format!("`{}` must not be", row.text));
        }
    }
    let texts: Vec<_> = rows.iter().map(|row| row.text.as_str()).collect();
    if !wrong.is_empty() {
        bail!("{}; the rows are {texts:?}", wrong.join("; "));
    }
    let remapped = rows.iter().filter(|row| row.remapped()).count();
    Ok(format!("{remapped} of {} remapped: {texts:?}", rows.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, count: u64) -> Row {
        Row {
            irq: 1,
            count,
            cpus: 1,
            chip: text.split(' ').next().unwrap_or_default().into(),
            text: text.into(),
        }
    }

    #[test]
    fn an_interrupt_that_is_not_remapped_fails_unless_it_is_the_iommus() {
        let want = Interrupts::default();
        let mut rows = vec![
            row("IR-IO-APIC 4-edge ttyS0", 5),
            row("PCI-MSI-0000:00:00.2 0-edge AMD-Vi", 0),
            row("IOMMU-MSI 0-edge AMD-Vi0-Evt", 0),
        ];
        assert!(judge(&rows, &want).is_ok());
        rows.push(row("PCI-MSIX-0000:00:03.0 0-edge virtio0-config", 0));
        let error = judge(&rows, &want).unwrap_err().to_string();
        assert!(error.contains("virtio0-config` is not remapped"), "{error}");
        assert!(judge(&[], &want).is_err());
    }

    #[test]
    fn rows_are_asked_for_by_pattern() {
        let rows = [
            row("IR-IO-APIC 4-edge ttyS0", 5),
            row("IR-IO-APIC 9-fasteoi acpi", 0),
        ];
        let want = |require: &[&str], counted: &[&str], forbid: &[&str]| Interrupts {
            remapped: true,
            require: require.iter().map(ToString::to_string).collect(),
            counted: counted.iter().map(ToString::to_string).collect(),
            forbid: forbid.iter().map(ToString::to_string).collect(),
        };
        assert!(judge(&rows, &want(&["IR-* acpi"], &["* ttyS0"], &["* hpet*"])).is_ok());
        assert!(judge(&rows, &want(&["* timer"], &[], &[])).is_err());
        assert!(judge(&rows, &want(&[], &["* acpi"], &[])).is_err());
        assert!(judge(&rows, &want(&[], &[], &["* acpi"])).is_err());
    }
}
