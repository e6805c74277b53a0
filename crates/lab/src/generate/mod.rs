//! Random cases: well-formed tables with, now and then, one thing wrong.

mod commands;
mod dma;
mod interrupts;

use std::collections::BTreeMap;

use amdvi_regs::dte::Dte;

use crate::case::Case;
use crate::layout::{Device, HIGH_RAM, TABLES};
use crate::rng::Rng;
use crate::setup::control;

/// The case of `number` in the run with `seed`.
pub fn case(seed: u64, number: u64) -> Case {
    let rng = Rng::for_case(seed, number);
    let mut generator = Generator {
        rng,
        case: Case {
            number,
            control: control(),
            device_table_size: 1,
            ring_length: 8,
            ring_start: 0,
            memory: BTreeMap::new(),
            steps: Vec::new(),
        },
        tables: 0,
    };
    generator.ring();
    match generator.rng.below(100) {
        0..45 => generator.dma(),
        45..55 => generator.remapping_changes(),
        55..85 => generator.interrupts(),
        _ => generator.commands(),
    }
    generator.case
}

struct Generator {
    rng: Rng,
    case: Case,
    /// Page table pages in use.
    tables: u64,
}

impl Generator {
    fn ring(&mut self) {
        let rng = &mut self.rng;
        self.case.ring_length = if rng.percent(80) { 8 } else { 8 + rng.below(5) };
        let slots = 1 << self.case.ring_length;
        // Near the end often, so that it wraps within the case.
        let slot = if rng.percent(50) {
            slots - 1 - rng.below(24)
        } else {
            rng.below(slots)
        };
        self.case.ring_start = slot * 16;
        if rng.percent(3) {
            self.case.device_table_size = 0;
        }
    }

    fn put(&mut self, gpa: u64, value: u64) {
        self.case.memory.insert(gpa, value);
    }

    fn put_dte(&mut self, device: Device, dte: Dte) {
        for (i, word) in dte.words().into_iter().enumerate() {
            self.put(device.dte() + 8 * i as u64, word);
        }
    }

    fn table_page(&mut self) -> u64 {
        self.tables += 1;
        TABLES + (self.tables - 1) * 0x1000
    }

    /// A multiple of 4 in RAM, away from everything else.
    fn target(&mut self) -> u64 {
        let rng = &mut self.rng;
        if rng.percent(20) {
            HIGH_RAM.start + rng.below(0x2000_0000) * 4
        } else {
            0x1000_0000 + rng.below(0x1800_0000) * 4
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Step;
    use crate::layout::is_ram;

    #[test]
    fn a_case_follows_from_its_seed_and_number() {
        for number in 0..200 {
            assert_eq!(case(5, number).to_string(), case(5, number).to_string());
        }
        assert_ne!(case(5, 1).to_string(), case(6, 1).to_string());
    }

    #[test]
    fn memory_is_words_in_ram_and_dma_is_aligned() {
        for number in 0..5000 {
            let case = case(1, number);
            assert!(!case.steps.is_empty());
            for &gpa in case.memory.keys() {
                assert!(gpa % 8 == 0 && is_ram(gpa), "{gpa:#x}");
            }
            for step in &case.steps {
                if let Step::Dma { iova, target, .. } = step {
                    assert!(iova % 4 == 0 && target % 4 == 0);
                    assert!(is_ram(*target));
                }
            }
        }
    }
}
