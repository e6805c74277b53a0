//! The board's own devices, busy, taken out of one board and put into another.

use amdvi_guest::endpoint::dma::{Checksum, STRIDE, channel, fill, op, status};
use amdvi_guest::endpoint::reg;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{ENDPOINT_BAR0, Machine, eventually};
use crate::board::snapshot::BoardState;

const CHANNEL: u64 = ENDPOINT_BAR0 + reg::DMA_CHANNEL_0 + 3 * STRIDE;
const BYTES: u32 = 4 << 20;
const TARGET: u64 = 0x100_0000;
const SEED: u64 = 0x1234_5678_9abc_def1;

impl Machine {
    /// The state as text, and RAM; the board stays frozen.
    fn save(&self) -> (String, Vec<u8>) {
        self.board.freeze();
        let state = serde_json::to_string(&self.board.save().unwrap()).unwrap();
        let mut ram = vec![0; 64 << 20];
        self.memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
        (state, ram)
    }

    /// A machine of the same kind that has the state, and stands still.
    fn restored((state, ram): &(String, Vec<u8>)) -> Self {
        let machine = Self::new();
        machine.memory.write_slice(ram, GuestAddress(0)).unwrap();
        machine.board.freeze();
        let state: BoardState = serde_json::from_str(state).unwrap();
        machine.board.restore(&state).unwrap();
        let again = serde_json::to_value(machine.board.save().unwrap()).unwrap();
        assert_eq!(again, serde_json::to_value(&state).unwrap());
        machine
    }

    fn moved(&self) -> Self {
        let machine = Self::restored(&self.save());
        machine.board.thaw();
        machine
    }
}

#[test]
fn an_operation_of_a_channel_goes_on_where_it_was_again_and_again() {
    let mut machine = Machine::new();
    for (register, value) in [
        (channel::TARGET, TARGET as u32),
        (channel::TARGET + 4, 0),
        (channel::LENGTH, BYTES),
        (channel::OPERAND, SEED as u32),
        (channel::OPERAND + 4, (SEED >> 32) as u32),
        (channel::OPERATION, op::FILL),
    ] {
        machine.write(CHANNEL + register, value);
    }
    let mut moves = 0;
    while machine.read(CHANNEL + channel::STATUS) == status::RUNNING {
        let before = machine.read64(CHANNEL + channel::DONE);
        machine = machine.moved();
        moves += 1;
        assert!(machine.read64(CHANNEL + channel::DONE) >= before);
        let done = machine.read64(CHANNEL + channel::DONE);
        eventually("progress", || {
            machine.read64(CHANNEL + channel::DONE) > done
                || machine.read(CHANNEL + channel::STATUS) != status::RUNNING
        });
    }
    assert!(moves > 0);
    assert_eq!(machine.read(CHANNEL + channel::STATUS), status::DONE);
    assert_eq!(machine.read(CHANNEL + channel::ENDED), 1);
    let mut expected = vec![0; BYTES as usize];
    fill(SEED, 0, &mut expected);
    let mut checksum = Checksum::default();
    checksum.add(&expected);
    assert_eq!(machine.read64(CHANNEL + channel::RESULT), checksum.value());
    let mut seen = vec![0; BYTES as usize];
    machine
        .memory
        .read_slice(&mut seen, GuestAddress(TARGET))
        .unwrap();
    assert!(seen == expected);
}

#[test]
fn streams_go_on_with_the_next_vector_and_the_next_page() {
    let machine = Machine::new();
    machine.msix(1 << 15);
    for vector in 0..8 {
        machine.program(vector, 0x40 + vector as u32);
    }
    machine.tell(reg::FIRE_START, 0);
    // Not FIRE_COUNT's effect but the range of the stream.
    machine.tell(reg::FIRE_COUNT, 8);
    machine.tell(reg::DMA_IOVA, TARGET as u32);
    machine.tell(reg::DMA_STORM_BYTES, 0x4000);
    machine.log.take();
    machine.tell(reg::STORM, 1);
    machine.tell(reg::DMA_STORM, 1);
    eventually("messages and writes", || {
        machine.endpoint64(reg::STORM_SENT) > 20 && machine.endpoint64(reg::DMA_STORM_SENT) > 200
    });
    let saved = machine.save();
    let mut vectors = machine.log.vectors();
    let sent = machine.endpoint64(reg::STORM_SENT);
    assert_eq!(vectors.len() as u64, sent, "none is on its way");
    let other = Machine::restored(&saved);
    assert_eq!(other.endpoint64(reg::STORM_SENT), sent);
    assert!(other.log.take().is_empty(), "nothing is sent by a restore");
    other.board.thaw();
    let writes = machine.endpoint64(reg::DMA_STORM_SENT);
    eventually("more of both", || {
        other.endpoint64(reg::STORM_SENT) > sent + 20
            && other.endpoint64(reg::DMA_STORM_SENT) > writes + 200
    });
    other.tell(reg::STORM, 0);
    other.tell(reg::DMA_STORM, 0);
    vectors.extend(other.log.vectors());
    let expected = (0..vectors.len()).map(|n| 0x40 + (n % 8) as u8);
    assert!(
        vectors.iter().copied().eq(expected),
        "none lost, none doubled"
    );
    assert_eq!(
        machine.endpoint64(reg::STORM_SENT),
        sent,
        "the old one stands"
    );
}

#[test]
fn lines_pins_and_pending_bits_come_back_and_nothing_is_sent() {
    let machine = Machine::new();
    // A level-triggered pin that a line of the endpoint asserts, and one that PIN asserts.
    let pin = machine.board.lines.line(0).pin();
    assert_eq!(pin, 0);
    machine.ioapic(0x10 + 2 * 20, 0xa000 | 0x51);
    machine.tell(reg::INTX, 1);
    machine.tell(reg::PIN, 20 << 8 | 1);
    machine.msix(1 << 15);
    machine.tell(reg::FIRE, 5);
    let sent = machine.log.vectors();
    let other = Machine::restored(&machine.save());
    assert!(other.log.take().is_empty());
    other.board.thaw();
    assert!(
        other.log.take().is_empty(),
        "what is in service is not sent again: {sent:x?}"
    );
    assert_eq!(other.endpoint(reg::INTX), machine.endpoint(reg::INTX));
    other.program(5, 0x45);
    assert_eq!(other.log.vectors(), [0x45]);
}

#[test]
fn a_state_of_another_board_is_refused_and_says_what_is_other() {
    let machine = Machine::new();
    let (state, _ram) = machine.save();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed: serde_json::Value = serde_json::from_str(&state).unwrap();
        change(&mut changed);
        let other = Machine::new();
        other.board.freeze();
        let state: BoardState = serde_json::from_value(changed).unwrap();
        other.board.restore(&state).unwrap_err().to_string()
    };
    let endpoint = "/functions/0000:00:05.0";
    for (pointer, value, part) in [
        ("/storm/running", serde_json::json!("x"), "0000:00:05.0"),
        (
            "/core/registers/buffer",
            serde_json::json!("00"),
            "DMA buffer",
        ),
        (
            "/core/registers/dma_length",
            serde_json::json!(1 << 30),
            "DMA buffer",
        ),
        ("/channels", serde_json::json!([]), "DMA channels"),
        (
            "/channels/0/outcome/status",
            serde_json::json!(status::RUNNING),
            "without an operation",
        ),
    ] {
        let error = refused(&|state| {
            *state.pointer_mut(&format!("{endpoint}{pointer}")).unwrap() = value.clone();
        });
        assert!(error.contains(part), "{pointer}: {error}");
    }
    let error = refused(&|state| {
        state["functions"]
            .as_object_mut()
            .unwrap()
            .remove("0000:00:14.0");
    });
    assert!(error.contains("PCI functions"), "{error}");
    let error = refused(&|state| state["iommus"] = serde_json::json!([]));
    assert!(error.contains("IOMMUs"), "{error}");
    let error = refused(&|state| state["ioapic"]["version"] = serde_json::json!(99));
    assert!(error.contains("version 99"), "{error}");
    let error = refused(&|state| state["iommus"][0]["efr"] = serde_json::json!(0));
    assert!(error.contains("amd-iommu options"), "{error}");
}
