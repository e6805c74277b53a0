//! The test endpoint as a PCI Express function: capabilities, resets, interrupts, DMA channels.

use amdvi_guest::endpoint::dma::{
    CHANNELS, Checksum, EQUAL, INTERRUPT_ON, LIMIT, STRIDE, channel, fill, op, pasid, reason,
    status,
};
use amdvi_guest::endpoint::{outcome, reg};
use amdvi_irt::Trigger;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{ENDPOINT_BAR0, Machine, eventually};
use crate::board::{Config, EndpointConfig};
use crate::layout;

/// The endpoint's configuration space.
const CONFIG: u64 = layout::ECAM_BASE + (5 << 15);
/// Where nothing of the machine is.
const NOWHERE: u64 = 0xb000_0000;

impl Machine {
    fn endpoint_with(endpoint: EndpointConfig) -> Self {
        let mut config = Config::scenario("amd-iommu,numint2k=on".parse().unwrap());
        config.endpoints = vec![endpoint];
        Self::with(&config)
    }

    fn word(&self, at: u64) -> u16 {
        let mut data = [0; 2];
        self.board.mmio_read(at, &mut data);
        u16::from_le_bytes(data)
    }

    /// The capabilities: offset of each ID.
    fn capability(&self, wanted: u8) -> Option<u64> {
        let mut at = u64::from(self.word(CONFIG + 0x34) & 0xff);
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let header = self.word(CONFIG + at);
            if header as u8 == wanted {
                return Some(CONFIG + at);
            }
            at = u64::from(header >> 8);
        }
        panic!("a list without end");
    }

    fn extended(&self, wanted: u16) -> Option<u64> {
        let mut at = 0x100;
        for _ in 0..960 {
            let header = self.read(CONFIG + at);
            if header == 0 {
                return None;
            }
            if header as u16 == wanted {
                return Some(CONFIG + at);
            }
            at = u64::from(header >> 20);
            if at == 0 {
                return None;
            }
        }
        panic!("a list without end");
    }

    fn channel(&self, n: u32, register: u64) -> u64 {
        let at = reg::DMA_CHANNEL_0 + u64::from(n) * STRIDE + register;
        if register.is_multiple_of(8) {
            self.endpoint64(at)
        } else {
            self.endpoint(at).into()
        }
    }

    fn program_channel(&self, n: u32, register: u64, value: u64) {
        let at = ENDPOINT_BAR0 + reg::DMA_CHANNEL_0 + u64::from(n) * STRIDE + register;
        match register {
            channel::LENGTH | channel::OPERATION | channel::INTERRUPT | channel::PASID => {
                self.write(at, value as u32);
            }
            _ => self.board.mmio_write(at, &value.to_le_bytes()),
        }
    }

    /// Runs an operation on channel 0 and returns its status, reason and result.
    fn operate(&self, operation: u32, program: &[(u64, u64)]) -> (u32, u32, u64) {
        for &(register, value) in program {
            self.program_channel(0, register, value);
        }
        self.program_channel(0, channel::OPERATION, (operation | op::SYNC).into());
        let state = self.channel(0, channel::STATUS);
        (
            state as u32,
            (state >> 32) as u32,
            self.channel(0, channel::RESULT),
        )
    }

    fn memory_at(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(gpa))
            .unwrap();
        bytes
    }

    /// Programs IOAPIC pin `pin`: level-triggered, active low, not masked.
    fn level_pin(&self, pin: u8, vector: u32) {
        self.ioapic(0x10 + 2 * u32::from(pin), 0xa000 | vector);
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(seed, 0, &mut bytes);
    bytes
}

#[test]
fn it_is_an_integrated_endpoint_with_msi_and_msix_and_no_driver_s_class() {
    let m = Machine::new();
    let express = m.capability(0x10).expect("PCI Express");
    assert_eq!(m.word(express + 2) >> 4 & 0xf, 9);
    assert_eq!(m.read(express + 4) >> 28 & 1, 1, "Function Level Reset");
    assert!(m.capability(0x05).is_some() && m.capability(0x11).is_some());
    assert_eq!(m.read(CONFIG + 8) >> 8, 0xff_0000);
    assert_eq!(m.read(CONFIG + 0x3c) >> 8 & 0xff, 1, "INTA#");
    assert_eq!(m.extended(0x1b), None);
}

#[test]
fn capabilities_of_shared_virtual_addressing_are_there_when_asked_for() {
    let m = Machine::endpoint_with(EndpointConfig {
        pasid: true,
        ats: true,
        pri: true,
        ..EndpointConfig::default()
    });
    let pasid = m.extended(0x1b).expect("PASID");
    assert_eq!(m.read(pasid + 4), 16 << 8 | 0b110);
    let ats = m.extended(0x0f).expect("ATS");
    m.write(ats + 4, 0x8000_0000);
    assert_eq!(m.read(ats + 4), 0x8000_0020);
    let pri = m.extended(0x13).expect("PRI");
    assert_eq!(m.read(pri + 8), 32);
    let express = m.capability(0x10).unwrap();
    assert_eq!(m.read(express + 0x24) >> 21 & 1, 1, "end-end prefixes");
}

#[test]
fn a_smaller_msix_table_has_a_smaller_bar_and_no_vector_behind_its_end() {
    let m = Machine::endpoint_with(EndpointConfig {
        vectors: 3,
        ..EndpointConfig::default()
    });
    assert_eq!(m.endpoint(reg::VECTORS), 3);
    let msix = m.capability(0x11).unwrap();
    assert_eq!(m.word(msix + 2), 2);
    m.write(CONFIG + 0x18, u32::MAX);
    assert_eq!(m.read(CONFIG + 0x18), 0xffff_f000);
    m.write(CONFIG + 0x18, 0xc001_0000);
    m.msix(0x8000);
    m.program(2, 0x42);
    m.tell(reg::FIRE_START, 1);
    m.tell(reg::FIRE_COUNT, u32::MAX);
    assert_eq!(m.log.vectors(), [0x42]);
}

#[test]
fn bars_of_64_bits_work_above_4_gib() {
    let m = Machine::endpoint_with(EndpointConfig {
        bar64: true,
        ..EndpointConfig::default()
    });
    assert_eq!(m.read(CONFIG + 0x10) & 0xf, 0xc);
    let id = m.endpoint(reg::ID);
    m.board
        .mmio_write(CONFIG + 0x10, &0x80_1234_0000u64.to_le_bytes());
    assert_eq!(m.read(0x80_1234_0000), id);
    assert_eq!(m.read(ENDPOINT_BAR0), u32::MAX);
}

#[test]
fn without_bus_mastering_nothing_is_sent_or_moved() {
    let m = Machine::new();
    m.msix(0x8000);
    m.program(0, 0x40);
    m.board.mmio_write(CONFIG + 4, &[2]);
    m.tell(reg::FIRE, 0);
    assert_eq!(m.endpoint(reg::OUTCOME), outcome::MASKED);
    m.tell(reg::RAW_ADDRESS, 0xfee0_0000);
    m.tell(reg::RAW_DATA, 0x41);
    assert!(m.log.vectors().is_empty());
    assert_eq!(m.endpoint64(reg::HELD_BACK), 2);
    let target = (channel::TARGET, layout::HEAP_START);
    let (state, why, _) = m.operate(op::FILL, &[target, (channel::LENGTH, 8)]);
    assert_eq!((state, why), (status::ABORTED, reason::NO_BUS_MASTER));
    m.board.mmio_write(CONFIG + 4, &[6]);
    m.tell(reg::FIRE, 0);
    assert_eq!(m.log.vectors(), [0x40]);
}

#[test]
fn every_message_is_counted_by_its_vector() {
    let m = Machine::new();
    m.msix(0x8000);
    for n in [0, 1, 2047] {
        m.program(n, 0x40 + n as u32 % 16);
    }
    for vector in [2047, 1, 2047, 5] {
        m.tell(reg::FIRE, vector);
    }
    let counts = |table: u64| [0, 1, 5, 2047].map(|n| m.endpoint(table + 4 * n));
    assert_eq!(counts(reg::VECTOR_SENT), [0, 1, 0, 2]);
    assert_eq!(counts(reg::VECTOR_DELIVERED), [0, 1, 0, 2]);
    assert_eq!(m.endpoint64(reg::SENT), 3);
    assert_eq!(m.endpoint64(reg::HELD_BACK), 1, "vector 5 is masked");
    let counted = m.board.endpoint_counts();
    assert_eq!((counted[0].sent, counted[0].vectors_delivered), (3, 2));
    assert_eq!(counted[0].at, "0000:00:05.0");
    m.tell(reg::RESET_STATS, 1);
    assert_eq!(counts(reg::VECTOR_SENT), [0; 4]);
}

#[test]
fn msi_sends_when_msix_is_off_and_holds_masked_vectors_back() {
    let m = Machine::new();
    let msi = m.capability(0x05).unwrap();
    m.write(msi + 4, 0xfee0_0000);
    m.write(msi + 12, 0x60);
    m.board.mmio_write(msi + 2, &(1u16 | 5 << 4).to_le_bytes());
    m.tell(reg::FIRE, 31);
    assert_eq!(m.log.vectors(), [0x7f]);
    m.write(msi + 16, 1 << 4);
    m.tell(reg::FIRE, 4);
    assert_eq!(m.endpoint(reg::OUTCOME), outcome::MASKED);
    assert_eq!(m.read(msi + 20), 1 << 4);
    m.write(msi + 16, 0);
    assert_eq!(m.log.vectors(), [0x64]);
    assert_eq!(m.endpoint(reg::VECTOR_DELIVERED + 4 * 4), 1);
    m.msix(0x8000);
    m.tell(reg::FIRE, 31);
    assert_eq!(
        m.endpoint(reg::OUTCOME),
        outcome::MASKED,
        "MSI-X goes first"
    );
}

#[test]
fn inta_follows_condition_disable_bit_and_messages() {
    let m = Machine::new();
    let pin = layout::intx_pin(5, 0);
    assert_eq!(m.read(CONFIG + 0x3c) as u8, pin);
    m.level_pin(pin, 0x51);
    m.tell(reg::INTX, 1);
    assert_eq!(m.endpoint(reg::INTX), 3);
    assert_eq!(m.word(CONFIG + 6) & 8, 8, "Interrupt Status");
    let sent = m.log.take();
    assert_eq!((sent.len(), sent[0].vector), (1, 0x51));
    assert_eq!(sent[0].trigger, Trigger::Level);
    // Interrupt Disable, as a driver masks it: the EOI finds the line released.
    m.board.mmio_write(CONFIG + 5, &[4]);
    m.board.eoi(0x51);
    assert_eq!((m.endpoint(reg::INTX), m.log.vectors().len()), (1, 0));
    assert_eq!(m.word(CONFIG + 6) & 8, 8);
    m.board.mmio_write(CONFIG + 5, &[0]);
    assert_eq!(m.log.vectors(), [0x51], "still wanted, so it fires again");
    m.msix(0x8000);
    assert_eq!(
        m.endpoint(reg::INTX),
        1,
        "no pin while messages are enabled"
    );
    m.msix(0);
    m.tell(reg::INTX, 0);
    m.board.eoi(0x51);
    assert_eq!(m.endpoint(reg::INTX), 0);
    assert_eq!(m.word(CONFIG + 6) & 8, 0);
}

#[test]
fn two_functions_on_one_pin_keep_it_asserted_until_both_let_go() {
    let mut config = Config::scenario("amd-iommu".parse().unwrap());
    for device in [5, 13] {
        config.endpoints.push(EndpointConfig {
            addr: Some(amdvi_regs::DeviceId::new(0, device, 0)),
            ..EndpointConfig::default()
        });
    }
    config.endpoints.remove(0);
    let m = Machine::with(&config);
    let second = layout::ECAM_BASE + (13 << 15);
    m.board.mmio_write(second + 4, &[6]);
    let other = u64::from(m.read(second + 0x10));
    let pin = layout::intx_pin(5, 0);
    assert_eq!(pin, layout::intx_pin(13, 0));
    m.level_pin(pin, 0x52);
    m.tell(reg::INTX, 1);
    m.write(other + reg::INTX, 1);
    assert_eq!(m.log.vectors(), [0x52]);
    m.tell(reg::INTX, 0);
    m.board.eoi(0x52);
    assert_eq!(m.log.vectors(), [0x52], "the other one still asserts it");
    m.write(other + reg::INTX, 0);
    m.board.eoi(0x52);
    assert!(m.log.vectors().is_empty());
}

#[test]
fn a_function_level_reset_stops_everything_and_forgets_what_was_programmed() {
    let m = Machine::new();
    m.level_pin(layout::intx_pin(5, 0), 0x53);
    m.msix(0x8000);
    m.program(0, 0x40);
    m.tell(reg::FIRE_COUNT, 1);
    m.tell(reg::STORM, 1);
    for (register, value) in [
        (channel::TARGET, layout::HEAP_START),
        (channel::LENGTH, LIMIT.into()),
        (channel::OPERATION, op::FILL.into()),
    ] {
        m.program_channel(1, register, value);
    }
    m.tell(reg::INTX, 1);
    let express = m.capability(0x10).unwrap();
    m.board.mmio_write(express + 9, &[0x80]);
    assert_eq!(m.word(CONFIG + 4), 0);
    assert_eq!(m.read(CONFIG + 0x10), 0, "firmware's work is undone, too");
    m.log.take();
    m.write(CONFIG + 0x10, ENDPOINT_BAR0 as u32);
    m.write(CONFIG + 0x18, 0xc001_0000);
    m.board.mmio_write(CONFIG + 4, &[6]);
    assert_eq!(m.endpoint(reg::STORM), 0);
    assert_eq!(m.endpoint(reg::INTX), 0);
    assert_eq!(m.channel(1, channel::STATUS) as u32, status::IDLE);
    m.msix(0x8000);
    m.tell(reg::FIRE, 0);
    assert!(m.log.vectors().is_empty(), "the vector is masked again");
}

#[test]
fn fill_copy_checksum_and_compare_agree_on_the_pattern_at_any_alignment() {
    let m = Machine::new();
    let (from, to, len) = (
        layout::HEAP_START + 0xffb,
        layout::HEAP_START + 0x10_0123,
        20_001,
    );
    let expected = pattern(7, len);
    let length = (channel::LENGTH, len as u64);
    let seed = (channel::OPERAND, 7);
    let filled = m.operate(op::FILL, &[(channel::TARGET, from), length, seed]);
    assert_eq!(filled, (status::DONE, 0, Checksum::of(&expected)));
    assert_eq!(m.memory_at(from, len), expected);
    assert_eq!(m.memory_at(from - 1, 1), [0]);
    assert_eq!(m.memory_at(from + len as u64, 1), [0]);
    let copied = m.operate(op::COPY, &[(channel::SOURCE, from), (channel::TARGET, to)]);
    assert_eq!(copied, filled);
    assert_eq!(m.memory_at(to, len), expected);
    let compared = m.operate(op::COMPARE, &[(channel::SOURCE, to)]);
    assert_eq!(compared, (status::DONE, 0, EQUAL));
    m.memory
        .write_obj(!expected[12_345], GuestAddress(to + 12_345))
        .unwrap();
    assert_eq!(
        m.operate(op::COMPARE, &[]),
        (status::DONE, 0, 12_345),
        "the first difference"
    );
    assert_ne!(m.operate(op::CHECKSUM, &[]).2, filled.2);
    assert_eq!(m.channel(0, channel::DONE), len as u64);
    assert_eq!(m.channel(0, channel::ENDED), 5);
}

#[test]
fn atomic_operations_find_what_was_there_and_replace_it() {
    let m = Machine::new();
    let at = layout::HEAP_START + 0x10;
    let target = (channel::TARGET, at);
    m.memory.write_obj(u64::MAX, GuestAddress(at)).unwrap();
    let program = [target, (channel::LENGTH, 8), (channel::OPERAND, 3)];
    assert_eq!(
        m.operate(op::FETCH_ADD, &program),
        (status::DONE, 0, u64::MAX)
    );
    assert_eq!(m.operate(op::SWAP, &[(channel::OPERAND, 9)]).2, 2);
    let expected = (channel::EXPECTED, 8);
    assert_eq!(m.operate(op::COMPARE_AND_SWAP, &[expected]).2, 9);
    assert_eq!(
        m.memory_at(at, 8),
        9u64.to_le_bytes(),
        "not the expected one"
    );
    let program = [(channel::EXPECTED, 9), (channel::OPERAND, u64::MAX)];
    assert_eq!(m.operate(op::COMPARE_AND_SWAP, &program).2, 9);
    assert_eq!(m.memory_at(at, 8), [0xff; 8]);
    let program = [(channel::LENGTH, 4), (channel::OPERAND, 1)];
    assert_eq!(m.operate(op::FETCH_ADD, &program).2, 0xffff_ffff);
    assert_eq!(m.memory_at(at, 8), 0xffff_ffff_0000_0000u64.to_le_bytes());
}

#[test]
fn an_aborted_operation_says_how_far_it_came_and_where() {
    let m = Machine::new();
    let end = 64 << 20;
    let program = [(channel::TARGET, end - 0x1800), (channel::LENGTH, 0x4000)];
    let (state, why, _) = m.operate(op::FILL, &program);
    assert_eq!((state, why), (status::ABORTED, reason::NO_MEMORY));
    assert_eq!(m.channel(0, channel::DONE), 0x1800);
    assert_eq!(m.channel(0, channel::FAULT_IOVA), end);
    let program = [(channel::SOURCE, NOWHERE), (channel::LENGTH, 8)];
    assert_eq!(m.operate(op::CHECKSUM, &program).0, status::ABORTED);
    assert_eq!(m.channel(0, channel::FAULT_IOVA), NOWHERE);
}

#[test]
fn what_is_not_possible_is_not_started() {
    let m = Machine::new();
    let at = layout::HEAP_START;
    for (operation, program) in [
        (op::FILL, [(channel::TARGET, at), (channel::LENGTH, 0)]),
        (
            op::FILL,
            [
                (channel::TARGET, at),
                (channel::LENGTH, u64::from(LIMIT) + 1),
            ],
        ),
        (
            op::FILL,
            [(channel::TARGET, u64::MAX - 3), (channel::LENGTH, 8)],
        ),
        (op::SWAP, [(channel::TARGET, at), (channel::LENGTH, 16)]),
        (op::SWAP, [(channel::TARGET, at + 4), (channel::LENGTH, 8)]),
        (99, [(channel::TARGET, at), (channel::LENGTH, 8)]),
    ] {
        assert_eq!(m.operate(operation, &program).0, status::BAD);
    }
    let program = [
        (channel::TARGET, at),
        (channel::LENGTH, 8),
        (channel::PASID, (pasid::ON | 1).into()),
    ];
    assert_eq!(
        m.operate(op::FILL, &program).0,
        status::BAD,
        "no PASID capability"
    );
    assert_eq!(m.memory_at(at, 32), [0; 32]);
}

#[test]
fn the_end_of_a_background_operation_sends_its_vector_or_raises_inta() {
    let m = Machine::new();
    m.msix(0x8000);
    m.program(2000, 0x45);
    let program = |interrupt: u32| {
        for (register, value) in [
            (channel::TARGET, layout::HEAP_START),
            (channel::LENGTH, 0x1_0000),
            (channel::INTERRUPT, interrupt.into()),
            (channel::OPERATION, op::FILL.into()),
        ] {
            m.program_channel(9, register, value);
        }
        eventually("the end of the operation", || {
            m.channel(9, channel::STATUS) as u32 == status::DONE
        });
    };
    program(INTERRUPT_ON | 2000);
    eventually("its interrupt", || m.log.vectors() == [0x45]);
    m.msix(0);
    program(INTERRUPT_ON);
    eventually("INTA#", || m.endpoint(reg::INTX) == 3);
    m.tell(reg::INTX, 0);
    program(0);
    assert_eq!(m.endpoint(reg::INTX), 0);
}

#[test]
fn a_cancelled_operation_has_stopped_when_the_write_returns() {
    let m = Machine::new();
    for n in 0..CHANNELS {
        for (register, value) in [
            (channel::TARGET, layout::HEAP_START),
            (channel::LENGTH, 0x200_0000),
            (channel::OPERATION, op::FILL.into()),
        ] {
            m.program_channel(n, register, value);
        }
    }
    for n in 0..CHANNELS {
        m.program_channel(n, channel::OPERATION, op::CANCEL.into());
        let state = m.channel(n, channel::STATUS) as u32;
        assert!(matches!(state, status::CANCELLED | status::DONE), "{state}");
    }
    m.memory
        .write_slice(&vec![0; 0x10_0000], GuestAddress(layout::HEAP_START))
        .unwrap();
    assert_eq!(m.memory_at(layout::HEAP_START, 0x1000), vec![0; 0x1000]);
}
