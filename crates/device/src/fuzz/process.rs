//! DMA with PASIDs over guest tables, host tables and both, which change while they are walked and
//! while their accessed and dirty bits are set.

use std::sync::Arc;

use amdvi_dma::{Access, MAX_EXCHANGES, MAX_LOADS, Pasid};
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{Control, offset};

use super::translate::{DTE_LOADS, EVENT_STORES, Shifting};
use super::{Input, RAM};
use crate::testing::TestHost;
use crate::{Endpoint, Iommu, Options};

const DEVICE: DeviceId = DeviceId(1);
const COMMANDS: u64 = 0x1000;
const EVENTS: u64 = 0x2000;
/// Exchanges of one translation.
pub(super) const EXCHANGES: u64 = MAX_EXCHANGES as u64;

/// A word of a table: mostly one that leads on inside RAM, in whichever format it is read.
fn entry(input: &mut Input<'_>) -> u64 {
    let choice = input.byte();
    let word = input.word();
    let inside = word & 0x1_f000;
    match choice & 7 {
        0 => word,
        1 => 0,
        // Of a GCR3 table.
        2 => inside | 1,
        // Of a guest table, and with the upper bits of a host's leaf.
        3 | 4 => inside | 7 | word & 0xe0,
        5 => inside | 7 | 3 << 61,
        _ => inside | 1 | word & (7 << 9) | 3 << 61,
    }
}

/// Fills the beginning of each page behind the rings, so that walks get somewhere: every third page is
/// a GCR3 table, the others are guest tables that a host's table can be as well.
fn fill(memory: &Shifting, seed: u64) {
    let mut state = seed;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for page in 3..RAM >> 12 {
        for n in 0..4 {
            // Never a GCR3 table.
            let next = 3 + random() % ((RAM >> 12) - 3) / 3 * 3 + 1 + random() % 2;
            let next = (next % (RAM >> 12)) << 12;
            let word = match random() % 16 {
                0 => 0,
                1 => entry(&mut Input(&[random() as u8; 9])),
                _ if page % 3 == 0 => next | 1,
                _ => next | 7 | 3 << 61,
            };
            memory.memory.write(page << 12 | n << 3, word);
        }
    }
}

/// An address: mostly one whose indices are small, at each level.
fn address(input: &mut Input<'_>) -> u64 {
    let word = input.word();
    match input.byte() & 3 {
        0 => word >> (input.byte() & 63),
        _ => {
            (0..5).fold(word & 0xfff, |iova, n| {
                iova | (word >> (16 + 8 * n) & 3) << (12 + 9 * n)
            }) & 0x7fff_ffff_ffff
        }
    }
}

fn pasid(input: &mut Input<'_>) -> Option<Pasid> {
    let choice = input.byte();
    let value = match choice & 3 {
        0 => return None,
        1 => 0,
        2 => u32::from(input.byte() & 3),
        _ if choice & 0xf0 != 0 => 1,
        _ => input.word() as u32 & Pasid::MAX,
    };
    let pasid = Pasid::new(value)?;
    Some(
        pasid
            .with_execute(choice & 4 != 0)
            .with_privileged(choice & 8 != 0),
    )
}

/// Requests of processes.
///
/// No translation loads more than its DTE and [`MAX_LOADS`] words, nor exchanges more than
/// [`MAX_EXCHANGES`]. When the guest stands still and has invalidated everything, a handle with caches answers as
/// one without.
pub fn process(data: &[u8]) {
    let mut input = Input(data);
    let memory = Arc::new(Shifting::new());
    let options: Options =
        "amd-iommu,gtsup=on,gats=5,glxsup=2,gcr3trpmode=on,pasid=16,dirty-tracking=on,device-iotlb=on"
            .parse()
            .expect("the target's options");
    let iommu = Iommu::new(&options, memory.clone(), Arc::new(TestHost::default()));
    let shape = input.byte();
    let mode = u64::from(shape & 7) % 7;
    let had = [0, 1, 3, 3][usize::from(shape >> 3 & 3)];
    let giov = u64::from(shape >> 5 & 1);
    let glx = u64::from(shape >> 6 == 3);
    let root = u64::from(4 + input.byte() % 27) << 12;
    let gcr3 = match input.byte() {
        page @ 0..32 => u64::from(page),
        page => 3 + u64::from(page) % 9 * 3,
    };
    let q0 = 3 | had << 7 | mode << 9 | root | giov << 54 | 1 << 55 | glx << 56 | 3 << 61;
    // GCR3[14:12] and [30:15], in pages.
    let q0 = q0 | (gcr3 & 7) << 58;
    let q1 = 7 | (gcr3 >> 3) << 16 | 1 << 32;
    let q2 = u64::from(input.byte() & 1) << 54;
    memory
        .memory
        .write_all(u64::from(DEVICE.0) * 32, &[q0, q1, q2]);
    let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
    write(offset::DEVICE_TABLE_BASE, 0);
    write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
    write(offset::EVENT_LOG_BASE, EVENTS | 8 << 56);
    let control = Control::RESET
        .with_iommu_en(true)
        .with_cmd_buf_en(true)
        .with_event_log_en(true)
        .with_gt_en(true)
        .with_gcr3_trp_mode(input.byte() & 1 != 0);
    write(offset::CONTROL, control.into_bits());
    fill(&memory, input.word());
    let mut device = iommu.endpoint(DEVICE);
    let mut tail = 0;
    let mut asked = vec![(None, 0)];
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => {
                let gpa = (input.word() % RAM) & !7;
                let word = entry(&mut input);
                memory.memory.write(gpa, word);
            }
            1 => {
                let gpa = (input.word() % RAM) & !7;
                memory.plan(gpa, entry(&mut input));
            }
            2 => {
                // INVALIDATE_IOMMU_PAGES, of the host's table or of a PASID.
                let pasid = u64::from(input.byte() & 3);
                let gn = u64::from(input.byte() & 1);
                let words = [3 << 60 | 7 << 32 | pasid, input.word() & !0xffc | gn << 2];
                memory.memory.write_all(COMMANDS + tail, &words);
                tail = (tail + 16) % 0x1000;
                write(offset::COMMAND_TAIL, tail);
            }
            choice => {
                let pasid = pasid(&mut input);
                let iova = address(&mut input);
                let len = input.word() >> (input.byte() & 63);
                let access = [Access::Read, Access::Write, Access::Atomic][usize::from(choice) % 3];
                asked.push((pasid, iova));
                let before = memory.memory.accesses();
                match input.byte() & 3 {
                    0 => drop(device.translation_request(pasid, iova, access)),
                    1 => drop(device.translated(pasid, iova, len, access)),
                    _ => {
                        let span = device.translate_for(pasid, iova, len, access);
                        if let Ok(mapped) = span {
                            assert!(mapped.len <= len && (mapped.len > 0 || len == 0));
                            assert!(mapped.permissions.contains(access.needs()));
                        }
                    }
                }
                let used = memory.memory.accesses() - before;
                let bound = MAX_LOADS as u64 + EXCHANGES + 1 + DTE_LOADS + EVENT_STORES;
                assert!(used <= bound, "{used} accesses for one translation");
            }
        }
    }
    memory.settle();
    // A ring from the beginning, whatever became of it. No events: they may be written into tables.
    let control = control.with_event_log_en(false);
    write(offset::CONTROL, control.with_cmd_buf_en(false).into_bits());
    write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
    write(offset::CONTROL, control.into_bits());
    let mut tail = 0;
    let mut invalidate_all = || {
        memory.memory.write_all(COMMANDS + tail, &[8 << 60, 0]);
        tail = (tail + 16) % 0x1000;
        write(offset::COMMAND_TAIL, tail);
    };
    let mut fresh = iommu.endpoint(DEVICE);
    let ask = |endpoint: &mut Endpoint, pasid, iova, access| {
        let piece = endpoint.translate_for(pasid, iova, 1, access);
        piece.map(|mapped| (mapped.gpa, mapped.permissions))
    };
    for (pasid, iova) in asked {
        for access in [Access::Read, Access::Write] {
            // Marks may be written into tables and change what they say, but each bit only once.
            for _ in 0..MAX_LOADS {
                invalidate_all();
                let before = memory.memory.stores();
                let first = ask(&mut device, pasid, iova, access);
                if memory.memory.stores() == before {
                    assert_eq!(first, ask(&mut device, pasid, iova, access), "{iova:#x}");
                    assert_eq!(first, ask(&mut fresh, pasid, iova, access), "{iova:#x}");
                    break;
                }
            }
        }
    }
}
