//! Cases about the command processor.

use amdvi_regs::command::{CompletionWait, InvalidateInterruptTable, InvalidateIommuPages};

use super::Generator;
use crate::case::Step;
use crate::layout::{NOWHERE, STORE, STORE_WORDS};
use crate::setup::{invalidate_everything, words};

impl Generator {
    pub(super) fn commands(&mut self) {
        for _ in 0..1 + self.rng.below(3) {
            let list = (0..1 + self.rng.below(16))
                .map(|_| self.command())
                .collect();
            self.case.steps.push(Step::Commands(list));
        }
        if self.rng.percent(20) {
            // Commands that are queued while the processor is off run when it is on again.
            let on = self.case.control;
            let off = match self.rng.below(2) {
                0 => on.with_cmd_buf_en(false),
                _ => on.with_iommu_en(false),
            };
            let at = self.rng.below(self.case.steps.len() as u64) as usize;
            self.case.steps.insert(at, Step::Control(off));
            self.case.steps.push(Step::Control(on));
        }
    }

    fn command(&mut self) -> [u64; 2] {
        let rng = &mut self.rng;
        let mut command = match rng.below(100) {
            0..50 => {
                let address = if rng.percent(98) {
                    STORE + 8 * rng.below(STORE_WORDS)
                } else {
                    NOWHERE
                };
                words(
                    CompletionWait::new()
                        .with_s(rng.percent(90))
                        .with_i(rng.percent(10))
                        .with_f(rng.percent(20))
                        .with_store_address_8(address >> 3)
                        .with_store_data(rng.next())
                        .into_bits(),
                )
            }
            50..65 => pages(rng.below(8) as u16, rng.next() & !0xfff, rng.percent(50))[0],
            65..75 => rng.pick(&invalidate_everything()),
            75..85 => words(
                InvalidateInterruptTable::new()
                    .with_device_id(rng.next() as u16)
                    .into_bits(),
            ),
            // Any opcode.
            85..87 => [rng.below(16) << 60, 0],
            // The end of an empty ring slot that was never written.
            _ => words(CompletionWait::new().into_bits()),
        };
        if rng.percent(1) {
            let word = rng.below(2) as usize;
            command[word] |= rng.bit_of(!0);
        }
        command
    }
}

/// INVALIDATE_IOMMU_PAGES, with directory entries, and a COMPLETION_WAIT.
pub(super) fn pages(domain: u16, address: u64, sized: bool) -> Vec<[u64; 2]> {
    vec![
        words(
            InvalidateIommuPages::new()
                .with_domain_id(domain)
                .with_address_page(address >> 12)
                .with_s(sized)
                .with_pde(true)
                .into_bits(),
        ),
        words(CompletionWait::new().into_bits()),
    ]
}
