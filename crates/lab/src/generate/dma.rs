//! Cases about DMA: device table entries, page tables, requests, changes and invalidations.

use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2, DteQ3};
use amdvi_regs::pte::{HostPte, level_shift};

use super::Generator;
use super::commands::pages;
use crate::case::Step;
use crate::layout::{Device, EMPTY_TABLE, NOWHERE};
use crate::setup::invalidate_everything;

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
    pub(super) fn dma(&mut self) {
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
                let index = (iova >> shift) & (entries - 1);
                self.put_leaf(table, index, level, entry);
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

    /// Writes a leaf to each slot that its page covers, as section 2.2.3 asks of software: an IOMMU
    /// may use any of them for the whole page. Where that is impossible the page shrinks.
    fn put_leaf(&mut self, table: u64, index: u64, level: u8, entry: u64) {
        let default = level_shift(level).unwrap_or(12);
        let pte = HostPte::from_bits(entry);
        let slots = match pte.page_shift(level) {
            Some(shift) if pte.pr() => 1 << (shift - default),
            _ => 1,
        };
        let first = index & !(slots - 1);
        let gpas = (first..first + slots).map(|slot| table + slot * 8);
        if gpas
            .clone()
            .any(|gpa| self.case.memory.contains_key(&gpa) || gpa >= table + 0x1000)
        {
            let small = pte.with_next_level(HostPte::NEXT_LEVEL_LEAF);
            self.put(table + index * 8, small.into_bits());
            return;
        }
        for gpa in gpas {
            self.put(gpa, entry);
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
    pub(super) fn remapping_changes(&mut self) {
        let mode = 1 + self.rng.below(6) as u8;
        let domain = 1 + self.rng.below(2) as u16;
        let (dte, mappings) = self.translated(mode, domain);
        for device in [Device::Testdev, Device::Edu] {
            self.put_dte(device, dte);
        }
        let mapping = self.rng.pick(&mappings);
        // Both functions are in the domain: what one of them caches the other may find.
        let mut accesses = Vec::new();
        for _ in 0..1 + self.rng.below(3) {
            let device = self.rng.pick(&[Device::Testdev, Device::Edu]);
            accesses.push(Step::Dma {
                device,
                iova: mapping.iova,
                write: device == Device::Testdev || self.rng.percent(50),
                target: mapping.target,
            });
        }
        let device = match accesses[0] {
            Step::Dma { device, .. } => device,
            _ => Device::Edu,
        };
        let mut steps = accesses.clone();
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
            match rng.below(8) {
                0 => pages(domain, 0, true),
                1 => pages(domain, mapping.iova & !0xfff, false),
                2 => pages(domain, 0x7fff_ffff_ffff_f000, true),
                // Another domain.
                3 => pages(domain + 1, 0x7fff_ffff_ffff_f000, true),
                4 => invalidate_everything(),
                // A range of any size, near the page.
                _ => {
                    let shift = 13 + rng.below(40);
                    let other = 1 << rng.below(52);
                    let near = mapping.iova ^ rng.pick(&[0, other]);
                    let start = near & !((1 << shift) - 1);
                    pages(domain, start | ((1 << (shift - 1)) - 1), true)
                }
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
        steps.extend(accesses);
        self.case.steps = steps;
    }
}
