//! Cases about interrupts: remapping tables, MSIs and IOAPIC pins.

use amdvi_regs::command::{InvalidateDevtabEntry, InvalidateInterruptTable};
use amdvi_regs::dte::{Dte, DteQ0, DteQ2, DteQ3};
use amdvi_regs::irte::{Irte32, Irte128Hi, Irte128Lo};

use super::Generator;
use crate::case::Step;
use crate::layout::{Device, IRT, NOWHERE};
use crate::setup::{invalidate_everything, words};

impl Generator {
    pub(super) fn interrupts(&mut self) {
        let rng = &mut self.rng;
        self.case.control.set_ga_en(rng.percent(60));
        let ga = self.case.control.ga_en();
        self.case.control.set_xt_en(ga && rng.percent(60));
        let mut dte = Dte {
            q2: DteQ2::new()
                .with_iv(rng.percent(92))
                .with_int_tab_len(match rng.below(100) {
                    0..6 => rng.below(16),
                    6..20 => rng.below(9),
                    _ => 9 + rng.below(3),
                } as u8)
                .with_ig(rng.percent(10))
                .with_int_tab_root(IRT >> 6)
                .with_init_pass(rng.percent(50))
                .with_eint_pass(rng.percent(50))
                .with_nmi_pass(rng.percent(50))
                .with_lint0_pass(rng.percent(20))
                .with_lint1_pass(rng.percent(20))
                .with_int_ctl(match rng.below(100) {
                    0..5 => 0,
                    5..10 => 1,
                    10..14 => 3,
                    _ => 2,
                }),
            ..Dte::default()
        };
        if rng.percent(60) {
            dte.q0 = DteQ0::new().with_v(true).with_tv(rng.percent(50));
        }
        match rng.below(100) {
            0..3 => dte.q2 = DteQ2::from_bits(dte.q2.into_bits() | rng.bit_of(!0)),
            3..4 => dte.q3 = DteQ3::from_bits(rng.bit_of(!0)),
            4..5 => dte.q0 = DteQ0::from_bits(dte.q0.into_bits() | rng.bit_of(!0)),
            5..6 => dte.q2.set_int_tab_root(NOWHERE >> 6),
            _ => {}
        }
        for device in [Device::Edu, Device::Ioapic] {
            self.put_dte(device, dte);
        }
        for _ in 0..1 + self.rng.below(4) {
            let step = self.interrupt(dte.q2.int_tab_len(), ga);
            self.case.steps.push(step);
            if self.rng.percent(30) {
                self.change_route(dte, ga);
            }
            if self.rng.percent(10) {
                let command = InvalidateInterruptTable::new().with_device_id(Device::Edu.id().0);
                let command = words(command.into_bits());
                self.case.steps.push(Step::Commands(vec![command]));
            }
        }
    }

    /// Changes what the last message means, invalidates that or not, and sends it again.
    fn change_route(&mut self, dte: Dte, ga: bool) {
        let Some(message) = self.case.steps.last().cloned() else {
            return;
        };
        let at = self.case.steps.len() - 1;
        let Some((device, msi)) = self.case.message(at) else {
            return;
        };
        let rng = &mut self.rng;
        let id = device.id().0;
        let mut command = words(
            InvalidateInterruptTable::new()
                .with_device_id(id)
                .into_bits(),
        );
        match rng.below(10) {
            0 => {
                let control = self.case.control.with_iommu_en(false);
                self.case.steps.push(Step::Control(control));
                self.case.steps.push(message);
                self.case.steps.push(Step::Control(self.case.control));
                return;
            }
            1..4 => {
                let q2 = match rng.below(3) {
                    0 => dte.q2.with_iv(!dte.q2.iv()),
                    1 => dte.q2.with_int_ctl(rng.below(4) as u8),
                    _ => dte.q2.with_int_tab_root((IRT + 0x40 * rng.below(4)) >> 6),
                };
                self.case.steps.push(Step::Store {
                    gpa: device.dte() + 16,
                    value: q2.into_bits(),
                });
                command = words(InvalidateDevtabEntry::new().with_device_id(id).into_bits());
            }
            _ => {
                let size = if ga { 16 } else { 4 };
                let entry = IRT + u64::from(msi.data & 0x7ff) * size;
                let gpa = (entry & !7) + if ga { 8 * rng.below(2) } else { 0 };
                let value = self.case.word(gpa, at) ^ rng.next() & 0x00ff_ff61_ffff_ff61;
                self.case.steps.push(Step::Store { gpa, value });
            }
        }
        let rng = &mut self.rng;
        match rng.below(10) {
            0..6 => self.case.steps.push(Step::Commands(vec![command])),
            6 => self
                .case
                .steps
                .push(Step::Commands(invalidate_everything())),
            _ => {}
        }
        self.case.steps.push(message);
    }

    fn interrupt(&mut self, length: u8, ga: bool) -> Step {
        let rng = &mut self.rng;
        let kind = match rng.below(100) {
            0..60 => 0,
            60..80 => 1,
            _ => rng.below(8),
        };
        // Within the table mostly. The low bit of the type is an index bit too.
        let low = if rng.percent(85) {
            rng.below(1 << length.min(8))
        } else {
            rng.below(256)
        };
        let index = kind << 8 | low;
        self.irte(index, ga);
        let rng = &mut self.rng;
        if rng.percent(25) {
            // Edge-triggered, unmasked; the destination has eight bits. Not ExtINT, for which the
            // IOAPIC asks the 8259 for a vector.
            let index = if kind == 7 { low } else { index };
            let rte = rng.below(256) << 56 | rng.below(2) << 11 | index;
            return Step::Pin {
                // Pin 0 is wired to the timer's.
                pin: 3 + rng.below(21) as u8,
                rte,
            };
        }
        let mut address = 0xfee0_0000 | (rng.below(256) << 12) as u32;
        if rng.percent(20) {
            address |= (rng.below(4) << 2) as u32;
        }
        let trigger = if rng.percent(25) {
            rng.below(4) << 14
        } else {
            0
        };
        Step::Msi {
            address,
            data: (index | trigger) as u16,
        }
    }

    fn irte(&mut self, index: u64, ga: bool) {
        let rng = &mut self.rng;
        let int_type = match rng.below(100) {
            0..60 => 0,
            60..90 => 1,
            _ => rng.below(8),
        } as u8;
        let (remap, quiet, eoi) = (rng.percent(92), rng.percent(15), rng.percent(10));
        let (logical, guest) = (rng.percent(30), rng.percent(3));
        let (vector, noise) = (rng.below(256) as u8, rng.percent(5));
        let destination = rng.next() as u32;
        if ga {
            let mut low = Irte128Lo::new()
                .with_remap_en(remap)
                .with_sup_iopf(quiet)
                .with_int_type(int_type)
                .with_rq_eoi(eoi)
                .with_dm(logical)
                .with_guest_mode(guest)
                .with_destination_lo(destination & 0xff_ffff)
                .into_bits();
            let mut high = Irte128Hi::new()
                .with_vector(vector)
                .with_destination_hi((destination >> 24) as u8)
                .into_bits();
            if noise {
                low |= rng.bit_of(Irte128Lo::RESERVED);
                high |= rng.bit_of(Irte128Hi::RESERVED);
            }
            self.put(IRT + index * 16, low);
            self.put(IRT + index * 16 + 8, high);
        } else {
            let mut entry = Irte32::new()
                .with_remap_en(remap)
                .with_sup_iopf(quiet)
                .with_int_type(int_type)
                .with_rq_eoi(eoi)
                .with_dm(logical)
                .with_guest_mode(guest)
                .with_destination(destination as u8)
                .with_vector(vector)
                .into_bits();
            if noise {
                entry |= rng.bit_of(Irte32::RESERVED.into()) as u32;
            }
            let gpa = IRT + index * 4;
            let shift = 8 * (gpa & 4);
            let word = self.case.memory.get(&(gpa & !7)).copied().unwrap_or(0);
            let word = word & !(0xffff_ffff << shift) | u64::from(entry) << shift;
            self.put(gpa & !7, word);
        }
    }
}
