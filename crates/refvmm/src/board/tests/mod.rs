//! The board as its CPUs see it, with an IOMMU that is not enabled: requests pass unchanged.

mod endpoint;
mod rig;
mod sharing;
mod snapshot;
mod topology;
mod waits;

use std::sync::atomic::{AtomicBool, Ordering};

use amdvi_guest::endpoint::Record;
use amdvi_guest::endpoint::{ID_VALUE, outcome, reg, vmm};
use amdvi_irt::Trigger;
use amdvi_regs::mmio::offset;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use rig::{ENDPOINT_BAR0, ENDPOINT_BAR2, ENDPOINT_BAR4, MSIX_CONTROL, Machine, eventually};

#[test]
fn the_endpoint_says_who_it_is() {
    let m = Machine::new();
    assert_eq!(m.endpoint(reg::ID), ID_VALUE);
    assert_eq!(m.read(layout::ECAM_BASE + (5 << 15)), 0x2048_1af5);
    // MSI-X: table of 2048 vectors in BAR 2, pending bits in BAR 4.
    assert_eq!(m.read(MSIX_CONTROL - 2) >> 16, 2047);
    assert_eq!((m.read(MSIX_CONTROL + 2), m.read(MSIX_CONTROL + 6)), (2, 4));
}

#[test]
fn what_nobody_decodes_reads_as_all_ones() {
    let m = Machine::new();
    assert_eq!(m.read(0xd000_0000), u32::MAX);
    assert_eq!(m.read(0xfed0_0000), u32::MAX);
    let mut data = [0; 2];
    m.board.port_read(0x1234, &mut data);
    assert_eq!(data, [0xff; 2]);
}

#[test]
fn fire_sends_the_vector_s_message_and_records_it() {
    let m = Machine::new();
    m.program(2047, 0x41);
    m.tell(reg::FIRE, 2047);
    assert_eq!(
        m.endpoint(reg::OUTCOME),
        outcome::MASKED,
        "MSI-X is disabled"
    );
    m.msix(0x8000);
    m.tell(reg::FIRE, 2047);
    assert_eq!(m.endpoint(reg::OUTCOME), outcome::DELIVERED);
    assert_eq!(m.log.vectors(), [0x41]);
    assert_eq!(
        (m.endpoint64(reg::DELIVERED), m.endpoint64(reg::RECORDED)),
        (1, 1)
    );
    let record = Record::from_bits(m.endpoint64(reg::RECORD_0)).unwrap();
    assert_eq!((record.vector, record.dest), (0x41, 0));
    m.tell(reg::RESET_STATS, 1);
    assert_eq!(
        (m.endpoint64(reg::DELIVERED), m.endpoint64(reg::RECORD_0)),
        (0, 0)
    );
}

#[test]
fn a_range_is_sent_in_order_and_ends_with_the_table() {
    let m = Machine::new();
    m.msix(0x8000);
    for n in 0..4 {
        m.program(2044 + n, 0x50 + n as u32);
    }
    m.tell(reg::FIRE_START, 2044);
    m.tell(reg::FIRE_COUNT, u32::MAX);
    assert_eq!(m.log.vectors(), [0x50, 0x51, 0x52, 0x53]);
    assert_eq!(
        (m.endpoint(reg::FIRE_START), m.endpoint(reg::FIRE_COUNT)),
        (2044, u32::MAX)
    );
}

#[test]
fn unmasking_sends_what_is_pending() {
    let m = Machine::new();
    m.msix(0xc000);
    m.program(7, 0x47);
    m.tell(reg::FIRE, 7);
    assert_eq!(m.endpoint(reg::OUTCOME), outcome::MASKED);
    assert_eq!(m.read(ENDPOINT_BAR4), 1 << 7);
    m.msix(0x8000);
    assert_eq!(m.log.vectors(), [0x47]);
    assert_eq!(m.read(ENDPOINT_BAR4), 0);
}

#[test]
fn a_raw_message_and_a_dma_write_to_the_window_are_interrupts() {
    let m = Machine::new();
    m.tell(reg::RAW_ADDRESS, 0xfee0_1000);
    m.tell(reg::RAW_DATA, 0x61);
    assert_eq!(m.endpoint(reg::OUTCOME), outcome::DELIVERED);
    m.tell(reg::DMA_BUFFER, 0x62);
    m.tell(reg::DMA_IOVA, 0xfee0_0000);
    m.tell(reg::DMA_LENGTH, 4);
    m.tell(reg::DMA_COMMAND, 2);
    assert_eq!(m.endpoint(reg::DMA_STATUS), 1);
    let sent = m.log.take();
    assert_eq!((sent[0].vector, sent[0].dest), (0x61, 1));
    assert_eq!((sent[1].vector, sent[1].dest), (0x62, 0));
}

#[test]
fn dma_copies_in_both_directions_and_aborts_where_there_is_no_memory() {
    let m = Machine::new();
    let at = layout::HEAP_START;
    m.memory
        .write_obj(0x1122_3344_5566_7788u64, GuestAddress(at))
        .unwrap();
    m.tell(reg::DMA_IOVA, at as u32);
    m.tell(reg::DMA_LENGTH, 8);
    m.tell(reg::DMA_COMMAND, 1);
    assert_eq!(m.endpoint(reg::DMA_STATUS), 1);
    assert_eq!(m.endpoint64(reg::DMA_BUFFER), 0x1122_3344_5566_7788);
    m.tell(reg::DMA_IOVA, at as u32 + 0x100);
    m.tell(reg::DMA_COMMAND, 2);
    assert_eq!(
        m.memory.read_obj::<u64>(GuestAddress(at + 0x100)).unwrap(),
        0x1122_3344_5566_7788
    );
    m.tell(reg::DMA_IOVA, 0xb000_0000);
    m.tell(reg::DMA_COMMAND, 1);
    assert_eq!(m.endpoint(reg::DMA_STATUS), 2);
}

#[test]
fn a_level_pin_fires_again_after_its_eoi_while_it_is_asserted() {
    let m = Machine::new();
    m.ioapic(0x10 + 2 * 9, 0x8071);
    m.tell(reg::PIN, 9 << 8 | 1);
    m.tell(reg::PIN, 9 << 8 | 1);
    let sent = m.log.take();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].vector, sent[0].trigger), (0x71, Trigger::Level));
    assert!(
        m.log.routes.lock().unwrap().contains(&(9, true)),
        "the EOI has a way back"
    );
    m.board.eoi(0x71);
    assert_eq!(m.log.vectors(), [0x71]);
    m.tell(reg::PIN, 9 << 8);
    m.board.eoi(0x71);
    assert!(m.log.vectors().is_empty());
}

#[test]
fn a_pin_that_does_not_exist_is_ignored() {
    let m = Machine::new();
    m.tell(reg::PIN, 0xff << 8 | 1);
    assert!(m.log.vectors().is_empty());
}

#[test]
fn the_stream_sends_round_robin_until_it_is_stopped() {
    let m = Machine::new();
    m.msix(0x8000);
    m.program(0, 0x80);
    m.program(1, 0x81);
    m.tell(reg::FIRE_START, 0);
    m.tell(reg::FIRE_COUNT, 2);
    assert_eq!(m.log.vectors(), [0x80, 0x81]);
    m.tell(reg::STORM, 1);
    assert_eq!(m.endpoint(reg::STORM), 1);
    eventually("the fourth message", || m.endpoint64(reg::STORM_SENT) >= 4);
    m.tell(reg::STORM, 0);
    assert_eq!(m.endpoint(reg::STORM), 0);
    let sent = m.endpoint64(reg::STORM_SENT);
    let vectors = m.log.vectors();
    assert_eq!(
        vectors.len() as u64,
        sent,
        "the last one is delivered when the stop returns"
    );
    assert!(
        vectors
            .iter()
            .zip([0x80, 0x81].iter().cycle())
            .all(|(a, b)| a == b)
    );
}

#[test]
fn a_restored_device_has_the_registers_and_the_requesters_of_the_saved_one() {
    let m = Machine::new();
    m.msix(0x8000);
    m.program(0, 0x90);
    m.board.mmio_write(
        m.iommu(offset::EVENT_LOG_BASE),
        &0x0800_0000_0020_0000u64.to_le_bytes(),
    );
    let before = m.read64(m.iommu(offset::EVENT_LOG_BASE));
    assert_ne!(before, 0);
    m.tell(reg::STORM, 1);
    m.tell(reg::VMM_COMMAND, vmm::SAVE_RESTORE);
    assert_eq!(m.endpoint(reg::VMM_STATUS), 0);
    assert_eq!(m.read64(m.iommu(offset::EVENT_LOG_BASE)), before);
    m.tell(reg::STORM, 0);
    m.log.take();
    m.tell(reg::FIRE, 0);
    assert_eq!(m.log.vectors(), [0x90]);
}

#[test]
fn a_reset_device_has_its_registers_at_their_reset_values() {
    let m = Machine::new();
    m.board.mmio_write(
        m.iommu(offset::EVENT_LOG_BASE),
        &0x0800_0000_0020_0000u64.to_le_bytes(),
    );
    m.tell(reg::VMM_COMMAND, vmm::RESET);
    assert_eq!(m.endpoint(reg::VMM_STATUS), 0);
    assert_eq!(
        m.read64(m.iommu(offset::EVENT_LOG_BASE)) & 0x000f_ffff_ffff_f000,
        0
    );
    m.tell(reg::VMM_COMMAND, 99);
    assert_eq!(m.endpoint(reg::VMM_STATUS), 1, "no such command");
}

#[test]
fn a_guest_that_pokes_everything_everywhere_harms_nothing() {
    let m = Machine::new();
    // A small generator: the same accesses each time, of all widths and alignments.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let base = match next() % 6 {
            0 => ENDPOINT_BAR0,
            1 => ENDPOINT_BAR2,
            2 => ENDPOINT_BAR4,
            3 => layout::IOAPIC_BASE,
            4 => layout::ECAM_BASE + (next() & 0x1f << 15),
            _ => m.iommu(0),
        };
        let gpa = base + next() % 0x1010;
        let len = 1 + (next() % 8) as usize;
        let mut data = next().to_le_bytes();
        if next() % 2 == 0 {
            // The stream would only cost time.
            if gpa.abs_diff(ENDPOINT_BAR0 + reg::STORM) > 8 {
                m.board.mmio_write(gpa, &data[..len]);
            }
        } else {
            m.board.mmio_read(gpa, &mut data[..len]);
        }
        let port = 0xcf0 + (next() % 0x10) as u16;
        let width = 1 << (next() % 3);
        m.board.port_write(port, &data[..width]);
        m.board.port_read(port, &mut data[..width]);
    }
}

#[test]
fn the_device_can_be_replaced_while_everything_else_uses_it() {
    let m = Machine::new();
    m.msix(0x8000);
    m.program(0, 0x80);
    m.ioapic(0x10 + 2 * 9, 0x8071);
    m.tell(reg::FIRE_COUNT, 1);
    m.tell(reg::STORM, 1);
    let done = AtomicBool::new(false);
    let while_running = |work: &dyn Fn()| {
        while !done.load(Ordering::Acquire) {
            work();
        }
    };
    // A deadlock would hang the test; each thread's work is endless until the last one ends.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Changes what all tables mean, which the IOAPIC hears of.
            while_running(&|| {
                for control in [0u32, 1] {
                    m.write(m.iommu(offset::CONTROL), control);
                }
            });
        });
        scope.spawn(|| {
            while_running(&|| {
                m.tell(reg::PIN, 9 << 8 | 1);
                m.board.eoi(0x71);
                m.tell(reg::PIN, 9 << 8);
            });
        });
        scope.spawn(|| {
            while_running(&|| m.tell(reg::FIRE, 0));
        });
        let all_succeed = (0..200).all(|_| {
            m.tell(reg::VMM_COMMAND, vmm::SAVE_RESTORE);
            m.endpoint(reg::VMM_STATUS) == 0
        });
        // Before the check, or a failure would leave the threads running.
        done.store(true, Ordering::Release);
        assert!(all_succeed);
    });
    m.tell(reg::STORM, 0);
    m.write(m.iommu(offset::CONTROL), 0);
    m.log.take();
    m.tell(reg::FIRE, 0);
    assert_eq!(m.log.vectors(), [0x80]);
}
