//! The life cycle of passed-through functions.

use amdvi_hostcap::source::{Emulated, LegacyVfio};
use amdvi_hostcap::{
    EarlyFacts, Feature, HostCapSource, HostCapSpec, Passthrough, PassthroughError, PciFunction,
    Request, Setting,
};
use proptest::prelude::*;

const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);
const DISK: PciFunction = PciFunction::new(0, 0x41, 0, 0);

fn host(spec: &str) -> Box<dyn HostCapSource> {
    spec.parse::<HostCapSpec>().unwrap().build()
}

fn guest(request: &str) -> Passthrough {
    Passthrough::new(request.parse().unwrap(), EarlyFacts::default())
}

fn two_k(guest: &Passthrough) -> bool {
    guest.offer().is_granted(Feature::NumInt2K)
}

#[test]
fn without_a_function_nothing_depends_on_the_host() {
    let mut guest = guest("numint2k=on,hats=6");
    assert!(two_k(&guest));
    assert!(guest.start().is_granted(Feature::NumInt2K));
}

#[test]
fn before_the_start_a_device_whose_host_lacks_2k_takes_it_and_the_warning_names_both() {
    let mut guest = guest("numint2k=on");
    let warnings = guest
        .set(NIC, [host("mock:numint2k=off").as_ref()])
        .unwrap();
    assert_eq!(warnings.len(), 1);
    let text = warnings[0].to_string();
    for part in [
        "0000:c1:00.0 takes numint2k",
        "mock:numint2k=off",
        "does not support",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!two_k(&guest));
    assert!(!guest.start().is_granted(Feature::NumInt2K));
}

#[test]
fn a_device_whose_host_has_2k_takes_nothing() {
    let mut guest = guest("numint2k=on");
    assert_eq!(
        guest.set(NIC, [host("mock:numint2k=on").as_ref()]).unwrap(),
        []
    );
    assert!(two_k(&guest));
}

#[test]
fn after_the_promise_such_a_device_is_refused_with_the_reason_and_nothing_changes() {
    for (spec, said) in [
        ("mock:numint2k=off", "does not support numint2k"),
        ("mock:numint2k.hw=on", "nothing shows"),
        ("mock:", "unknown is not yes"),
        ("legacy-vfio", "always has 512 interrupts"),
    ] {
        let mut guest = guest("numint2k=on");
        guest.start();
        let error = guest.set(NIC, [host(spec).as_ref()]).unwrap_err();
        let text = error.to_string();
        for part in ["0000:c1:00.0 is refused", "promised numint2k=on", said] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        let PassthroughError::Refused { decisions, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(decisions[0].requested, Setting::ON);
        assert!(two_k(&guest));
        assert_eq!(guest.facts().functions().count(), 0);
        // A better one is welcome.
        assert_eq!(
            guest
                .set(DISK, [host("mock:numint2k=on").as_ref()])
                .unwrap(),
            []
        );
    }
}

#[test]
fn a_guest_that_was_promised_512_takes_any_device() {
    let mut guest = guest("numint2k=on");
    guest.set(NIC, [&LegacyVfio as &dyn HostCapSource]).unwrap();
    guest.start();
    assert_eq!(
        guest
            .set(DISK, [&LegacyVfio as &dyn HostCapSource])
            .unwrap(),
        []
    );
}

#[test]
fn unset_gives_nothing_back_before_the_start_or_after_it() {
    let mut guest = guest("numint2k=on");
    guest
        .set(NIC, [host("mock:numint2k=off").as_ref()])
        .unwrap();
    guest.unset(NIC).unwrap();
    let decision = guest.offer().decision(Feature::NumInt2K);
    assert!(!decision.is_granted());
    assert!(
        decision.reason.contains("0000:c1:00.0 took it"),
        "{decision}"
    );
    // Nor does a device that could do it.
    guest
        .set(DISK, [host("mock:numint2k=on").as_ref()])
        .unwrap();
    assert!(!two_k(&guest));
    guest.start();
    guest.unset(DISK).unwrap();
    assert!(!two_k(&guest));
}

#[test]
fn a_device_that_is_set_twice_or_unset_without_being_set_is_an_error() {
    let mut guest = guest("numint2k=on");
    guest.set(NIC, [host("mock:").as_ref()]).unwrap();
    let twice = guest.set(NIC, [host("mock:").as_ref()]);
    assert_eq!(twice, Err(PassthroughError::AlreadySet { function: NIC }));
    assert_eq!(
        guest.unset(DISK),
        Err(PassthroughError::NotSet { function: DISK })
    );
    guest.unset(NIC).unwrap();
}

#[test]
fn a_function_is_passed_through_even_if_its_source_says_that_nothing_is() {
    let mut guest = guest("numint2k=on");
    let warnings = guest.set(NIC, [&Emulated as &dyn HostCapSource]).unwrap();
    assert_eq!(warnings.len(), 1);
}

#[test]
fn what_one_device_showed_proves_nothing_for_another() {
    let mut guest = guest("numint2k=on");
    guest.set(NIC, [host("mock:numint2k=on").as_ref()]).unwrap();
    let warnings = guest.set(DISK, [host("mock:").as_ref()]).unwrap();
    assert!(
        warnings[0].decision.reason.contains("for 0000:41:00.0"),
        "{}",
        warnings[0]
    );
    assert!(!two_k(&guest));
}

#[test]
fn starting_twice_promises_the_same() {
    let mut guest = guest("numint2k=on");
    let first = guest.start();
    assert_eq!(guest.start(), first);
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, &'static str),
    Unset(u8),
    Start,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hosts = vec![
        "mock:numint2k=on,gtsup=on,gats=5",
        "mock:numint2k=off",
        "mock:",
        "legacy-vfio",
    ];
    let step = prop_oneof![
        4 => (0..4u8, prop::sample::select(hosts)).prop_map(|(f, host)| Step::Set(f, host)),
        2 => (0..4u8).prop_map(Step::Unset),
        1 => Just(Step::Start),
    ];
    prop::collection::vec(step, 0..24)
}

proptest! {
    #[test]
    fn an_offer_never_grows_and_a_promise_never_changes(steps in steps()) {
        let mut guest = Passthrough::new(Request::everything(), EarlyFacts::default());
        for step in steps {
            let (before, started) = (guest.offer(), guest.is_started());
            match step {
                Step::Set(f, spec) => {
                    let function = PciFunction::new(0, f, 0, 0);
                    let set = guest.set(function, [host(spec).as_ref()]);
                    if let (Ok(warnings), true) = (set, started) {
                        prop_assert!(warnings.is_empty());
                    }
                }
                Step::Unset(f) => {
                    let _ = guest.unset(PciFunction::new(0, f, 0, 0));
                }
                Step::Start => {
                    guest.start();
                }
            }
            let after = guest.offer();
            for feature in Feature::ALL {
                let (before, after) = (before.granted(feature), after.granted(feature));
                prop_assert!(after.level() <= before.level(), "{feature}");
                prop_assert!(!started || after == before, "{feature}");
            }
        }
    }
}
