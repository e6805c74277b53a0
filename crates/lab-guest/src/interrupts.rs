//! `/proc/interrupts`.

/// A row that belongs to an interrupt number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Linux' number of the interrupt.
    pub irq: u32,
    /// How often it came, on all processors together.
    pub count: u64,
    /// How many processors it came to.
    pub cpus: usize,
    /// The interrupt chip, such as `IR-PCI-MSIX-0000:00:05.0`.
    pub chip: String,
    /// All after the counts, words separated by one space: chip, hardware number and trigger,
    /// actions.
    pub text: String,
}

impl Row {
    /// What the interrupt is for, such as `virtio0-req.0`.
    pub fn actions(&self) -> &str {
        self.text.splitn(3, ' ').nth(2).unwrap_or_default()
    }

    /// The number that the chip has for it: of `20-fasteoi` the 20, of `5-edge` the 5.
    pub fn hardware(&self) -> Option<u64> {
        let word = self.text.split(' ').nth(1)?;
        word.split('-').next()?.parse().ok()
    }

    /// Whether the chip sits behind interrupt remapping.
    pub fn remapped(&self) -> bool {
        self.chip.starts_with("IR-")
    }

    /// Whether it is the IOMMU's own interrupt, which does not pass through itself: `AMD-Vi`,
    /// `AMD-Vi0-Evt` and the like.
    pub fn of_iommu(&self) -> bool {
        self.actions().starts_with("AMD-Vi") || self.actions().starts_with("dmar")
    }
}

/// The rows of `/proc/interrupts` with a number; those of the processors' own interrupts, which
/// have a name (`NMI`, `LOC`), are left out.
pub fn rows(text: &str) -> Vec<Row> {
    let mut lines = text.lines();
    let cpus = lines
        .next()
        .map_or(0, |head| head.split_whitespace().count());
    lines.filter_map(|line| row(line, cpus)).collect()
}

fn row(line: &str, cpus: usize) -> Option<Row> {
    let (irq, rest) = line.split_once(':')?;
    let irq = irq.trim().parse().ok()?;
    let mut words = rest.split_whitespace();
    let mut count = 0u64;
    let mut seen = 0;
    for _ in 0..cpus {
        let here: u64 = words.next()?.parse().ok()?;
        count += here;
        seen += usize::from(here != 0);
    }
    let words: Vec<_> = words.collect();
    Some(Row {
        irq,
        count,
        cpus: seen,
        chip: (*words.first()?).to_owned(),
        text: words.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "            CPU0       CPU1       \n\
   4:          0        331  IR-IO-APIC    4-edge      ttyS0\n\
   9:          0          0  IR-IO-APIC    9-fasteoi   acpi\n\
  24:          0          0  IOMMU-MSI    0-edge      AMD-Vi0-Evt\n\
  25:         10          1  IR-PCI-MSIX-0000:00:05.0 2047-edge      vfio-msix[2047](0000:00:05.0)\n\
 NMI:          0          0   Non-maskable interrupts\n\
 LOC:       1390       1414   Local timer interrupts\n\
 ERR:          0\n\
  26:          1\n";

    #[test]
    fn a_row_has_a_number_the_sum_of_its_counts_and_a_text() {
        let rows = rows(SAMPLE);
        let numbers: Vec<_> = rows.iter().map(|row| (row.irq, row.count)).collect();
        assert_eq!(numbers, [(4, 331), (9, 0), (24, 0), (25, 11)]);
        assert_eq!(rows[3].chip, "IR-PCI-MSIX-0000:00:05.0");
        assert_eq!(rows[3].hardware(), Some(2047));
        assert_eq!(rows[3].actions(), "vfio-msix[2047](0000:00:05.0)");
        assert_eq!((rows[3].cpus, rows[0].cpus), (2, 1));
        assert_eq!(rows[0].text, "IR-IO-APIC 4-edge ttyS0");
        assert!(rows[0].remapped() && !rows[2].remapped());
        assert!(rows[2].of_iommu() && !rows[0].of_iommu());
    }
}
