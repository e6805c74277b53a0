//! Random cases: well-formed tables with, now and then, one thing wrong.

use std::collections::BTreeMap;

use amdvi_regs::command::{CompletionWait, InvalidateInterruptTable, InvalidateIommuPages};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2, DteQ3};
use amdvi_regs::irte::{Irte32, Irte128Hi, Irte128Lo};
use amdvi_regs::pte::{HostPte, level_shift};

use crate::case::{Case, Step};
use crate::layout::{Device, EMPTY_TABLE, HIGH_RAM, IRT, NOWHERE, STORE, STORE_WORDS, TABLES};
use crate::rng::Rng;
use crate::setup::{control, invalidate_everything, words};

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

/// A mapped page: an IOVA in it and where that leads.
#[derive(Clone, Copy)]
struct Mapping {
    iova: u64,
    target: u64,
    /// GPA of the leaf.
    leaf: u64,
    mode: u8,
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

    // ---- DMA ----

    fn dma(&mut self) {
        let mut mapped = Vec::new();
        let shared = self.rng.percent(30);
        let mut first: Option<(Dte, Vec<Mapping>)> = None;
        for device in [Device::Testdev, Device::Edu] {
            let (dte, mappings) = match &first {
                Some(first) if shared => first.clone(),
                _ => {
                    let mode = self.mode();
                    let domain = self.rng.below(4) as u16;
                    self.translated(mode, domain)
                }
            };
            first = Some((dte, mappings.clone()));
            let dte = self.disturb_dte(dte);
            self.put_dte(device, dte);
            mapped.push((device, mappings));
        }
        let flush = self.rng.percent(70);
        for _ in 0..1 + self.rng.below(4) {
            let (device, mappings) = mapped[self.rng.below(2) as usize].clone();
            let step = self.request(device, &mappings);
            self.case.steps.push(step);
            if flush {
                self.case
                    .steps
                    .push(Step::Commands(invalidate_everything()));
            }
        }
    }

    fn mode(&mut self) -> u8 {
        match self.rng.below(100) {
            0..6 => 0,
            6..8 => 7,
            n => 1 + (n % 6) as u8,
        }
    }

    /// A DTE with tables, and what they map.
    fn translated(&mut self, mode: u8, domain: u16) -> (Dte, Vec<Mapping>) {
        let root = self.table_page();
        let mut q0 = DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(mode)
            .with_host_pt_root(root >> 12)
            .with_ir(true)
            .with_iw(true);
        let rng = &mut self.rng;
        if rng.percent(12) {
            q0.set_ir(rng.percent(50));
            q0.set_iw(rng.percent(30));
        }
        let q1 = DteQ1::new()
            .with_domain_id(domain)
            .with_sa(rng.percent(4))
            .with_se(rng.percent(4))
            .with_cache(rng.percent(10))
            .with_sd(rng.percent(10))
            .with_ex(rng.percent(10))
            .with_i(rng.percent(5))
            .with_io_ctl(rng.below(3) as u8)
            .with_sys_mgt(rng.below(4) as u8);
        let mut mappings = Vec::new();
        if matches!(mode, 1..=6) {
            for _ in 0..1 + self.rng.below(2) {
                mappings.push(self.map(root, mode));
            }
        } else {
            let target = self.target();
            mappings.push(Mapping {
                iova: target,
                target,
                leaf: root,
                mode,
            });
        }
        (
            Dte {
                q0,
                q1,
                ..Dte::default()
            },
            mappings,
        )
    }

    /// Maps one page at random under `root`; entries that exist already are followed.
    fn map(&mut self, root: u64, mode: u8) -> Mapping {
        let mut iova = 0;
        let mut table = root;
        let mut level = mode;
        let target = self.target();
        loop {
            // `level` is 1–6 here, so it has a shift.
            let shift = level_shift(level).unwrap_or(12);
            let entries = if level == 6 { 128 } else { 512 };
            let mut index = self.rng.below(entries);
            if self.rng.percent(20) {
                index = self.rng.pick(&[0, entries - 1]);
            }
            let gpa = table + index * 8;
            let below = target & ((1 << shift) - 1);
            if self.case.memory.contains_key(&gpa) {
                // An earlier mapping of this case: leave it alone, this one ends here.
                return Mapping {
                    iova: iova | index << shift | below,
                    target,
                    leaf: gpa,
                    mode,
                };
            }
            let leaf = level == 1 || self.rng.percent(if level > 4 { 10 } else { 25 });
            if leaf {
                let (entry, page_shift) = self.leaf(level, shift, target);
                // Below the level's reach the index is part of the offset in the page.
                let offset = target & ((1u64 << page_shift) - 1);
                let upper = (index << shift) & !((1u64 << page_shift) - 1);
                let iova = iova | upper | offset;
                let gpa = table + ((iova >> shift) & (entries - 1)) * 8;
                let entry = self.disturb_leaf(entry);
                self.put(gpa, entry);
                return Mapping {
                    iova,
                    target,
                    leaf: gpa,
                    mode,
                };
            }
            iova |= index << shift;
            let next = if level > 2 && self.rng.percent(20) {
                1 + self.rng.below(u64::from(level) - 1) as u8
            } else {
                level - 1
            };
            let page = self.table_page();
            let entry = HostPte::table(page, next).unwrap_or_default();
            let entry = self.disturb_directory(entry.with_ir(true).with_iw(true), level);
            self.put(gpa, entry);
            table = page;
            level = next;
        }
    }

    /// A leaf whose page holds `target`, and log2 of the page's size.
    fn leaf(&mut self, level: u8, shift: u32, target: u64) -> (HostPte, u32) {
        let largest = (shift + 8).min(51);
        let sized = largest > shift && self.rng.percent(40);
        let page_shift = if sized {
            shift + 1 + self.rng.below(u64::from(largest - shift)) as u32
        } else {
            shift
        };
        let entry = HostPte::leaf(target, level, page_shift)
            // Pages of level 6 are larger than memory can be: only at 0.
            .unwrap_or_else(|| HostPte::new().with_pr(true));
        (entry.with_ir(true).with_iw(true), page_shift)
    }

    fn permissions(&mut self, entry: HostPte) -> HostPte {
        if self.rng.percent(8) {
            let bits = self.rng.below(3);
            entry.with_ir(bits & 1 != 0).with_iw(bits & 2 != 0)
        } else {
            entry
        }
    }

    fn ignored(&mut self, entry: HostPte) -> HostPte {
        if self.rng.percent(85) {
            return entry;
        }
        let noise = self.rng.next();
        entry
            .with_ignored_4_1(noise as u8 & 0xf)
            .with_a(noise & 0x10 != 0)
            .with_d(noise & 0x20 != 0)
            .with_ignored_8_7((noise >> 6) as u8 & 3)
            .with_ignored_63(noise & 0x100 != 0)
    }

    fn disturb_leaf(&mut self, entry: HostPte) -> u64 {
        let entry = self.permissions(entry);
        let entry = self.ignored(entry);
        let rng = &mut self.rng;
        match rng.below(100) {
            0..3 => entry.with_pr(false).into_bits(),
            3..5 => 0,
            5..7 => entry.into_bits() | rng.bit_of(HostPte::PTE_RESERVED_WITHOUT_PMC),
            7..9 => entry.with_u(true).into_bits(),
            9..11 => entry.with_fc(true).into_bits(),
            // Another size, mostly one that the level doesn't have.
            11..13 => entry
                .with_next_level(HostPte::NEXT_LEVEL_SIZED)
                .with_address_page(entry.address_page() & !0xff_ffff | ((1 << rng.below(24)) - 1))
                .into_bits(),
            13..14 => entry
                .with_address_page((NOWHERE >> 12) + rng.below(64))
                .into_bits(),
            14..15 => rng.next() & rng.next(),
            _ => entry.into_bits(),
        }
    }

    fn disturb_directory(&mut self, entry: HostPte, level: u8) -> u64 {
        let entry = self.permissions(entry);
        let entry = self.ignored(entry);
        let rng = &mut self.rng;
        match rng.below(100) {
            0..2 => entry.with_pr(false).into_bits(),
            2..3 => 0,
            3..5 => entry.into_bits() | rng.bit_of(HostPte::PDE_RESERVED),
            5..7 => {
                let next = u64::from(level) + rng.below(7 - u64::from(level));
                entry.with_next_level(next as u8).into_bits()
            }
            7..8 => entry
                .with_address_page((NOWHERE >> 12) + rng.below(64))
                .into_bits(),
            _ => entry.into_bits(),
        }
    }

    fn disturb_dte(&mut self, mut dte: Dte) -> Dte {
        let rng = &mut self.rng;
        match rng.below(100) {
            0..4 => dte.q0.set_v(false),
            4..7 => dte.q0.set_tv(false),
            7..9 => {
                dte.q0 =
                    DteQ0::from_bits(dte.q0.into_bits() | rng.bit_of(!0xfff) | rng.bit_of(0x1fc))
            }
            9..11 => dte.q1 = DteQ1::from_bits(dte.q1.into_bits() | rng.bit_of(!0)),
            11..13 => dte.q2 = DteQ2::from_bits(rng.bit_of(!0)),
            13..14 => dte.q3 = DteQ3::from_bits(rng.bit_of(!0)),
            14..15 => dte.q0.set_host_pt_root(NOWHERE >> 12),
            _ => {}
        }
        dte
    }

    fn request(&mut self, device: Device, mappings: &[Mapping]) -> Step {
        let mapping = self.rng.pick(mappings);
        let rng = &mut self.rng;
        let iova = match rng.below(100) {
            // A bit that is above what the table covers, or selects another entry.
            0..8 => mapping.iova ^ 1 << (2 + rng.below(62)),
            8..11 if mapping.mode < 6 => {
                mapping.iova | rng.bit_of(!0 << (12 + 9 * mapping.mode.min(5)))
            }
            11..12 => 0xfee0_0000 | (rng.below(0x4_0000) * 4),
            12..14 => 0xfd_0000_0000 + rng.below(0xc000_0000) * 4,
            14..15 => rng.next() & !3,
            _ => mapping.iova,
        };
        Step::Dma {
            device,
            iova,
            write: device == Device::Testdev || rng.percent(50),
            target: mapping.target,
        }
    }

    /// Access, change of a table or DTE, an invalidation or none, access again.
    fn remapping_changes(&mut self) {
        let mode = 1 + self.rng.below(6) as u8;
        let domain = 1 + self.rng.below(2) as u16;
        let (dte, mappings) = self.translated(mode, domain);
        for device in [Device::Testdev, Device::Edu] {
            self.put_dte(device, dte);
        }
        let mapping = self.rng.pick(&mappings);
        let device = self.rng.pick(&[Device::Testdev, Device::Edu]);
        let write = device == Device::Testdev || self.rng.percent(50);
        let access = |target| Step::Dma {
            device,
            iova: mapping.iova,
            write,
            target,
        };
        let mut steps = vec![access(mapping.target)];
        let rng = &mut self.rng;
        let invalidation = if rng.percent(70) {
            // The leaf changes.
            let old = HostPte::from_bits(self.case.memory.get(&mapping.leaf).copied().unwrap_or(0));
            let other = (0x1000_0000 + (rng.below(0x1_0000) << 12)) | mapping.target & 0xfff;
            let new = match rng.below(4) {
                0 => HostPte::new(),
                1 => old.with_ir(false).with_iw(false),
                2 => old.with_pr(false),
                // To another page, where the size allows it.
                _ if old.next_level() == 0 && mapping.leaf & 0xfff != 0 => {
                    old.with_address_page(other >> 12)
                }
                _ => HostPte::new(),
            };
            steps.push(Step::Store {
                gpa: mapping.leaf,
                value: new.into_bits(),
            });
            match rng.below(5) {
                0 => pages(domain, 0, true),
                1 => pages(domain, mapping.iova & !0xfff, false),
                2 => pages(domain, 0x7fff_ffff_ffff_f000, true),
                // Another domain.
                3 => pages(domain + 1, 0x7fff_ffff_ffff_f000, true),
                _ => invalidate_everything(),
            }
        } else {
            let kind = rng.below(5);
            let q0 = match kind {
                0 => dte.q0.with_v(false),
                1 => dte.q0.with_tv(false),
                2 => dte.q0.with_mode(0),
                _ => dte.q0.with_host_pt_root(EMPTY_TABLE >> 12),
            };
            steps.push(Step::Store {
                gpa: device.dte(),
                value: q0.into_bits(),
            });
            if kind > 2 {
                steps.push(Step::Store {
                    gpa: device.dte() + 8,
                    value: dte.q1.with_domain_id(domain + 1).into_bits(),
                });
            }
            let mut commands = invalidate_everything();
            if rng.percent(60) {
                // The entry, but no translations.
                commands.pop();
            }
            commands
        };
        if rng.percent(80) {
            steps.push(Step::Commands(invalidation));
        }
        steps.push(access(mapping.target));
        self.case.steps = steps;
    }

    // ---- interrupts ----

    fn interrupts(&mut self) {
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
            if self.rng.percent(10) {
                let command = InvalidateInterruptTable::new().with_device_id(Device::Edu.id().0);
                let command = words(command.into_bits());
                self.case.steps.push(Step::Commands(vec![command]));
            }
        }
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

    // ---- commands ----

    fn commands(&mut self) {
        for _ in 0..1 + self.rng.below(3) {
            let list = (0..1 + self.rng.below(16))
                .map(|_| self.command())
                .collect();
            self.case.steps.push(Step::Commands(list));
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
fn pages(domain: u16, address: u64, sized: bool) -> Vec<[u64; 2]> {
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

#[cfg(test)]
mod tests {
    use super::*;
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
