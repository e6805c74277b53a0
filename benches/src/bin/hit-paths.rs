//! Runs one hit path a given number of times: `hit-paths PATH TIMES`.
//!
//! For counting instructions, not time: `cargo xtask instructions` runs it under callgrind twice
//! with different numbers of times, and the difference is the cost of the hits alone.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use amdvi_benches::{Commands, Format, Rig};
use amdvi_core::test_utils::TestMemory;
use amdvi_core::{Barrier, Fabric, View};
use amdvi_dma::{Access, Iotlb, Mapper, Pasid};
use amdvi_irt::Outcome;
use amdvi_regs::command::InvalidateIommuPages;
use amdvi_regs::dte::{Dte, DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};
use amdvi_regs::{DeviceId, PhysMemory};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_default();
    let Some(times) = args.next().and_then(|text| text.parse().ok()) else {
        eprintln!("usage: hit-paths PATH TIMES");
        return ExitCode::from(2);
    };
    match path.as_str() {
        "remap/hit/irte32" => interrupts(Format::Irte32, times),
        "remap/hit/irte128" => interrupts(Format::Irte128, times),
        "translate/hit/4k" => dma(12, Mapper::DEFAULT_ENTRIES, times),
        "translate/hit/2m" => dma(21, Mapper::DEFAULT_ENTRIES, times),
        // No two pages in a row have the same place in the smallest cache, and each is thrown out.
        "translate/miss/4k" => dma(12, 16, times),
        "translate/hit/pasid" => process(times),
        "commands/unmap" => unmap(times),
        _ => {
            eprintln!(
                "PATH is remap/hit/irte32, remap/hit/irte128, translate/hit/4k, translate/hit/2m, \
                 translate/miss/4k, translate/hit/pasid or commands/unmap"
            );
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Every message of a full table in random order, over and over.
fn interrupts(format: Format, times: usize) {
    let mut rig = Rig::new(format);
    let messages = rig.shuffled();
    for msi in &messages {
        black_box(rig.device.remap(&rig.memory, *msi).outcome);
    }
    for msi in messages.iter().cycle().take(times) {
        let remapped = rig.device.remap(&rig.memory, *msi);
        black_box(match remapped.outcome {
            Outcome::Deliver(delivery) => delivery.dest ^ u32::from(delivery.vector),
            _ => panic!("a hit of a filled table delivers"),
        });
    }
}

const DEVICE_TABLE: u64 = 0x1000;
const ROOT: u64 = 0x4000;
const LEVEL_1: u64 = 0x6000;
const PAGES: u64 = 64;
/// PR, IR and IW.
const PRESENT: u64 = 1 | 3 << 61;

/// 64 pages of 2^`shift` bytes in random order, over and over, with a cache of this many entries.
fn dma(shift: u32, entries: usize, times: usize) {
    let view = View::new(ExtendedFeature::new(), ExtendedFeature2::new());
    let fabric = Arc::new(Fabric::new(view, Barrier::best()));
    fabric.view.set_control(Control::RESET.with_iommu_en(true));
    let table = DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12);
    fabric.view.set_device_table(0, table);
    let memory = TestMemory::new(0x1_0000);
    let set = |gpa, word| memory.store_u64(gpa, word).expect("the tables are backed");
    // Two levels: the root has pages of 2 MiB, or one table of pages of 4 KiB.
    let device = DeviceId(8);
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_mode(2)
        .with_ir(true)
        .with_iw(true)
        .with_host_pt_root(ROOT >> 12);
    set(DEVICE_TABLE + u64::from(device.0) * 32, q0.into_bits());
    let q1 = DteQ1::new().with_domain_id(7);
    set(DEVICE_TABLE + u64::from(device.0) * 32 + 8, q1.into_bits());
    if shift == 12 {
        set(ROOT, PRESENT | 1 << 9 | LEVEL_1);
    }
    for page in 0..PAGES {
        let entry = if shift == 12 { LEVEL_1 } else { ROOT } + page * 8;
        set(entry, PRESENT | (page ^ 1) << shift);
    }
    let iotlb = Arc::new(Iotlb::new(1024));
    let mut mapper = Mapper::new(fabric, iotlb, device, entries, 64);
    let mut iova = 0u64;
    let mut hit = |mapper: &mut Mapper| {
        iova = (iova + (37 << shift)) & ((PAGES << shift) - 1);
        match mapper.translate(&memory, iova | 0x40, 64, Access::Read) {
            Ok(mapped) => black_box(mapped.gpa),
            Err(failed) => panic!("a mapped page fails: {:?}", failed.cause),
        }
    };
    for _ in 0..PAGES {
        hit(&mut mapper);
    }
    for _ in 0..times {
        hit(&mut mapper);
    }
}

const GCR3: u64 = 0x8000;
const GUEST_ROOT: u64 = 0x9000;
/// P, RW, US, A and D.
const GUEST: u64 = 7 | 3 << 5;

/// As [`dma`] with pages of 4 KiB, in a process: guest tables without a host's.
fn process(times: usize) {
    let efr = ExtendedFeature::new().with_gt_sup(true).with_pas_max(15);
    let view = View::new(efr, ExtendedFeature2::new());
    let fabric = Arc::new(Fabric::new(view, Barrier::best()));
    let control = Control::RESET.with_iommu_en(true).with_gt_en(true);
    fabric.view.set_control(control);
    let table = DeviceTableBase::new().with_base_page(DEVICE_TABLE >> 12);
    fabric.view.set_device_table(0, table);
    let memory = TestMemory::new(0x1_0000);
    let set = |gpa, word| memory.store_u64(gpa, word).expect("the tables are backed");
    let device = DeviceId(8);
    let dte = Dte {
        q0: DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_gv(true)
            .with_ir(true)
            .with_iw(true),
        q1: DteQ1::new().with_domain_id(7),
        ..Dte::default()
    }
    .with_gcr3_address(GCR3);
    for (n, word) in (0..).zip(dte.words()) {
        set(DEVICE_TABLE + u64::from(device.0) * 32 + n * 8, word);
    }
    set(GCR3 + 5 * 8, GUEST_ROOT | 1);
    for table in 0..3 {
        let at = GUEST_ROOT + table * 0x1000;
        set(at, (at + 0x1000) | GUEST);
    }
    for page in 0..PAGES {
        set(GUEST_ROOT + 0x3000 + page * 8, (page ^ 1) << 12 | GUEST);
    }
    let iotlb = Arc::new(Iotlb::new(1024));
    let mut mapper = Mapper::new(fabric, iotlb, device, Mapper::DEFAULT_ENTRIES, 64);
    let pasid = Pasid::new(5);
    let mut iova = 0u64;
    let mut hit = |mapper: &mut Mapper| {
        iova = (iova + (37 << 12)) & ((PAGES << 12) - 1);
        match mapper.translate_for(&memory, pasid, iova | 0x40, 64, Access::Read) {
            Ok(mapped) => black_box(mapped.gpa),
            Err(failed) => panic!("a mapped page fails: {:?}", failed.cause),
        }
    };
    for _ in 0..PAGES {
        hit(&mut mapper);
    }
    for _ in 0..times {
        hit(&mut mapper);
    }
}

/// What Linux's driver does to take a mapping away: an INVALIDATE_IOMMU_PAGES and a COMPLETION_WAIT, and
/// the tail is written after each.
fn unmap(times: usize) {
    let invalidate = InvalidateIommuPages::new()
        .with_domain_id(7)
        .with_pde(true)
        .with_address_page(0x1234);
    let mut commands = Commands::new(&[invalidate.into(), Commands::wait()]);
    for _ in 0..2 * times {
        commands.run(1);
    }
    assert!(commands.is_done());
}
