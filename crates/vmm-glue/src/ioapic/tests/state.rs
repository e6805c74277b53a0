//! Saved state, and what holds after any sequence of accesses.

use super::*;
use proptest::prelude::*;

#[test]
fn restored_state_ends_what_was_in_service_before() {
    let mut old = device();
    program(&mut old, 9, 0x09 | LEVEL);
    old.set_line(9, true).unwrap();
    let state = old.save();

    let mut new = device();
    new.restore(&state).unwrap();
    let at_restore = told(&mut new);
    assert!(at_restore.contains(&Told::Route(9, Some((0x89, 300)))));
    assert_eq!(at_restore.last(), Some(&Told::Settle));
    assert!(
        !at_restore
            .iter()
            .any(|told| matches!(told, Told::Inject(..)))
    );
    assert_eq!(new.save(), state);
    new.eoi(0x89);
    assert_eq!(injected(&mut new), [(9, 0x89)]);
}

#[test]
fn impossible_state_is_refused_and_changes_nothing() {
    let good = device().save();
    let served = InService {
        vector: 1,
        dest: 0,
        logical: false,
        lowest_priority: false,
        rq_eoi: false,
    };
    let level = u64::from(LEVEL);
    let with_pin = |state: PinState| {
        let mut bad = good.clone();
        bad.pins[3] = state;
        bad
    };
    let pin = PinState::RESET;
    let cases = [
        (
            IoapicState {
                version: 2,
                ..good.clone()
            },
            "version 2",
        ),
        (
            IoapicState {
                id: 16,
                ..good.clone()
            },
            "ID 16",
        ),
        (
            with_pin(PinState {
                rte: u64::from(REMOTE_IRR),
                ..pin
            }),
            "pin 3: reserved",
        ),
        (
            with_pin(PinState {
                rte: 1 << 20,
                ..pin
            }),
            "pin 3: reserved",
        ),
        (
            with_pin(PinState {
                in_service: Some(served),
                ..pin
            }),
            "pin 3: an edge",
        ),
        (
            with_pin(PinState {
                rte: level,
                blocked: true,
                ..pin
            }),
            "pin 3: only an asserted",
        ),
        (
            with_pin(PinState {
                rte: level,
                asserted: true,
                blocked: true,
                in_service: Some(served),
            }),
            "pin 3: a pin can't",
        ),
    ];
    for (bad, expected) in cases {
        let mut device = device();
        let error = device.restore(&bad).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(device.save(), good);
        assert_eq!(told(&mut device), []);
    }
}

/// What a guest and its devices can do, in any order.
#[derive(Clone, Debug)]
enum Action {
    Write(u64, Vec<u8>),
    Program(u8, u32),
    Line(usize, bool),
    Eoi(u8),
    Tables(bool, u8),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        (
            prop::sample::select(vec![INDEX, DATA, EOI, 0x11, 0x20, 0xff8]),
            prop::collection::vec(any::<u8>(), 0..9)
        )
            .prop_map(|(offset, data)| Action::Write(offset, data)),
        (0..24u8, 0..4u32, any::<bool>(), any::<bool>()).prop_map(|(pin, vector, level, mask)| {
            Action::Program(
                pin,
                vector | if level { LEVEL } else { 0 } | if mask { MASK } else { 0 },
            )
        }),
        (0..24usize, any::<bool>()).prop_map(|(pin, on)| Action::Line(pin, on)),
        (0x80..0x90u8).prop_map(Action::Eoi),
        (any::<bool>(), 0x80..0x84u8).prop_map(|(block, offset)| Action::Tables(block, offset)),
    ];
    prop::collection::vec(action, 0..200)
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_bounded_consistent_and_saveable(actions in actions()) {
        let mut device = device();
        for action in actions {
            let masked: Vec<bool> =
                (0..PINS).map(|pin| device.rte(pin).unwrap().masked()).collect();
            let touches_rte = matches!(action, Action::Write(..) | Action::Program(..));
            match action {
                Action::Write(offset, data) => device.mmio_write(offset, &data),
                Action::Program(pin, low) => program(&mut device, pin, low),
                Action::Line(pin, on) => device.set_line(pin, on).unwrap(),
                Action::Eoi(vector) => device.eoi(vector),
                Action::Tables(block, offset) => {
                    device.sink_mut().block = block;
                    device.sink_mut().offset = offset;
                    device.tables_changed();
                }
            }
            let told = told(&mut device);
            let requests = told.iter().filter(|told| matches!(told, Told::Request(..))).count();
            prop_assert!(requests <= PINS + 1, "{} requests", requests);
            for told in &told {
                if let Told::Inject(pin, _) = told {
                    prop_assert!(touches_rte || !masked[usize::from(*pin)]);
                }
            }
            // No level interrupt is forgotten: asserted and unmasked means in service or blocked.
            let state = device.save();
            for pin in &state.pins {
                let rte = Rte::from_bits(pin.rte);
                if rte.level() && !rte.masked() && pin.asserted {
                    prop_assert!(pin.in_service.is_some() || pin.blocked);
                }
            }
            let mut restored = super::device();
            prop_assert_eq!(restored.restore(&state), Ok(()));
            prop_assert_eq!(restored.save(), state);
        }
    }
}
