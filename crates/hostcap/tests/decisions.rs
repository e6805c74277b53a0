//! The rules of `negotiate`, one named test each.

use amdvi_hostcap::source::{Emulated, Fixed, LegacyVfio};
use amdvi_hostcap::{
    Answer, Aspect, Decision, Early, EarlyFacts, Fact, Facts, Feature, Gap, HostCapSource,
    HostCapSpec, HostRegisters, Late, Note, PciFunction, Request, Scope, Served, Setting,
    Situation, SourceError, negotiate,
};
use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2};

const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);
const DISK: PciFunction = PciFunction::new(0, 0x41, 0, 0);

fn facts(spec: &str) -> Facts {
    let source = spec.parse::<HostCapSpec>().unwrap().build();
    Facts::collect([source.as_ref()], &[])
}

fn decide(request: &str, facts: &Facts, feature: Feature) -> Decision {
    negotiate(&request.parse().unwrap(), facts).decision(feature)
}

fn two_k(facts: &Facts) -> Decision {
    decide("numint2k=on", facts, Feature::NumInt2K)
}

#[track_caller]
fn denied(decision: &Decision, said: &[&str]) {
    assert!(!decision.is_granted(), "{decision}");
    assert!(decision.is_withheld(), "{decision}");
    for part in said {
        assert!(
            decision.reason.contains(part),
            "no `{part}` in: {}",
            decision.reason
        );
    }
}

fn hw_info(efr2: u64, control: Option<Control>) -> HostRegisters {
    HostRegisters {
        efr: Some(ExtendedFeature::from(0x2465_77EF_A225_4AFA)),
        efr2: Some(ExtendedFeature2::from(efr2)),
        control,
    }
}

fn kernel_2k(scope: Scope, on: bool) -> Fact<Late> {
    Fact::new(
        Feature::NumInt2K,
        on,
        Aspect::Kernel,
        scope,
        "debugfs",
        "CONTROL",
    )
}

fn hardware_2k(scope: Scope) -> Fact<Early> {
    Fact::new(
        Feature::NumInt2K,
        true,
        Aspect::Hardware,
        scope,
        "sysfs:/sys",
        "EFR2[9:8]=01b",
    )
}

#[test]
fn mock_without_2k_takes_it_away_and_says_who_and_why() {
    let decision = two_k(&facts("mock:numint2k=off"));
    denied(
        &decision,
        &[
            "mock:numint2k=off",
            "does not support numint2k",
            "drop numint2k",
        ],
    );
    assert_eq!(decision.requested, Setting::ON);
}

#[test]
fn mock_with_2k_grants_it() {
    let decision = two_k(&facts("mock:numint2k=on"));
    assert!(
        decision.is_granted() && !decision.is_withheld(),
        "{decision}"
    );
    assert!(
        decision
            .reason
            .contains("host kernel can use it, says mock:numint2k=on")
    );
}

#[test]
fn hardware_2k_alone_is_not_enough() {
    let decision = two_k(&facts("mock:numint2k.hw=on"));
    denied(
        &decision,
        &[
            "the host kernel can use numint2k",
            "unknown is not yes",
            "is not enough",
            "CONTROL[44:43]=01b",
        ],
    );
}

#[test]
fn kernel_2k_alone_is_not_enough() {
    denied(
        &two_k(&facts("mock:numint2k.kernel=on")),
        &["hardware supports numint2k", "unknown is not yes"],
    );
}

#[test]
fn hw_info_of_16_bytes_does_not_prove_2k_and_the_extended_one_does() {
    let on = Control::new().with_num_int_remap_mode(Control::NUM_INT_REMAP_2K);
    for (control, granted) in [
        (None, false),
        (Some(Control::new()), false),
        (Some(on), true),
    ] {
        let answer = hw_info(0x110, control).hw_info_facts(&Scope::Function(NIC), "iommufd");
        let source = Fixed::new("iommufd").with_late(answer);
        let facts = Facts::collect([&source as &dyn HostCapSource], &[NIC]);
        assert_eq!(two_k(&facts).is_granted(), granted, "{control:?}");
    }
}

#[test]
fn no_passthrough_means_nothing_depends_on_the_host() {
    let facts = facts("none");
    assert_eq!(facts.situation(), Situation::Emulated);
    for feature in Feature::ALL {
        let request = Request::new().with(feature, feature.setting(u8::MAX));
        let decision = negotiate(&request, &facts).decision(feature);
        assert_eq!(decision.granted, decision.requested, "{decision}");
        assert!(decision.reason.contains("(none)"), "{decision}");
        assert!(
            decision.reason.contains("does not depend on the host"),
            "{decision}"
        );
    }
}

#[test]
fn legacy_vfio_is_always_512() {
    let decision = two_k(&facts("legacy-vfio"));
    denied(
        &decision,
        &["always has 512 interrupts", "(legacy-vfio)", "/dev/iommu"],
    );
}

#[test]
fn legacy_vfio_is_512_whatever_another_source_says() {
    let all_yes = "mock:numint2k=on".parse::<HostCapSpec>().unwrap().build();
    let facts = Facts::collect(
        [&LegacyVfio as &dyn HostCapSource, all_yes.as_ref()],
        &[NIC],
    );
    denied(
        &two_k(&facts),
        &["always has 512 interrupts", "(legacy-vfio)"],
    );
}

#[test]
fn legacy_vfio_leaves_what_the_device_emulates_itself() {
    let facts = facts("legacy-vfio");
    for name in ["xtsup=on", "ga=on", "vapic=on"] {
        let feature = name.split('=').next().unwrap().parse().unwrap();
        let decision = decide(name, &facts, feature);
        assert!(decision.is_granted(), "{decision}");
        assert!(decision.reason.contains("legacy-vfio"), "{decision}");
    }
}

#[test]
fn an_emulated_format_is_granted_unless_the_host_says_no() {
    assert!(decide("xtsup=on", &facts("mock:"), Feature::Xt).is_granted());
    assert!(decide("xtsup=on", &facts("mock:xtsup=on"), Feature::Xt).is_granted());
    denied(
        &decide("xtsup=on", &facts("mock:xtsup=off"), Feature::Xt),
        &["mock:xtsup=off"],
    );
}

#[test]
fn the_registers_of_the_host_do_not_take_what_the_device_emulates_itself() {
    // A server whose IOMMU has no XTSup and 4-level tables.
    let registers = HostRegisters {
        efr: Some(0x0465_77ef_a225_42fa.into()),
        efr2: Some(0.into()),
        control: None,
    };
    let mut facts = Facts::default();
    let stated: Vec<Fact<Early>> = registers.facts(&Scope::Host, "sysfs:/sys");
    stated.into_iter().for_each(|fact| facts.insert_early(fact));
    facts.bind(NIC, []);
    for (request, feature) in [("xtsup=on", Feature::Xt), ("hats=6", Feature::Hats)] {
        let decision = decide(request, &facts, feature);
        assert_eq!(decision.granted, decision.requested, "{decision}");
        assert!(
            decision.reason.contains("whatever the host's IOMMU has"),
            "{decision}"
        );
    }
    denied(&two_k(&facts), &["hardware does not support numint2k"]);
}

#[test]
fn a_feature_falls_with_the_one_it_is_built_on() {
    let decision = decide("xtsup=on", &facts("mock:ga=off,xtsup=on"), Feature::Xt);
    denied(
        &decision,
        &["xtsup is built on ga, and the host kernel has not enabled ga"],
    );
    let decision = decide("gats=5", &facts("mock:gats=5"), Feature::Gats);
    denied(&decision, &["gats is built on gtsup, and nothing shows"]);
}

#[test]
fn what_was_not_requested_is_not_granted_and_the_reason_says_how_to_ask() {
    let offer = negotiate(&Request::new(), &facts("mock:numint2k=on"));
    assert_eq!(offer.decisions.len(), Feature::ALL.len());
    for decision in &offer.decisions {
        assert!(
            !decision.is_granted() && !decision.is_withheld(),
            "{decision}"
        );
        let ask = format!("give {}=", decision.feature);
        assert!(decision.reason.contains(&ask), "{decision}");
    }
    assert_eq!(offer.withheld().count(), 0);
}

#[test]
fn without_any_source_nothing_that_needs_the_host_is_granted() {
    let facts = Facts::default();
    assert_eq!(facts.situation(), Situation::Passthrough);
    denied(&two_k(&facts), &["asked: no source", "unknown is not yes"]);
}

#[test]
fn sources_that_disagree_resolve_to_the_safe_side_and_are_both_named() {
    let mut facts = facts("mock:numint2k=on");
    let no = kernel_2k(Scope::Host, false);
    facts.insert(NIC, no);
    denied(
        &two_k(&facts),
        &[
            "has not enabled numint2k, says debugfs",
            "mock:numint2k=on",
            "disagrees",
            "safe side",
        ],
    );
}

#[test]
fn one_iommu_without_it_takes_it_from_the_host() {
    let mut facts = Facts::default();
    for (name, on) in [("ivhd0", true), ("ivhd1", false)] {
        let scope = Scope::Iommu(name.to_owned());
        facts.insert_early(hardware_2k(scope.clone()));
        facts.insert_early(Fact::new(
            Feature::NumInt2K,
            on,
            Aspect::Kernel,
            scope,
            "debugfs",
            "",
        ));
    }
    denied(
        &two_k(&facts),
        &[
            "has not enabled numint2k, says debugfs (ivhd1)",
            "debugfs (ivhd0) disagrees",
        ],
    );
}

#[test]
fn an_iommu_that_could_not_be_read_is_not_a_yes() {
    let scope = |name: &str| Scope::Iommu(name.to_owned());
    let yes = |aspect| {
        Fact::<Early>::new(
            Feature::NumInt2K,
            true,
            aspect,
            scope("ivhd0"),
            "sysfs:/sys",
            "",
        )
    };
    let good = Answer::from(vec![yes(Aspect::Hardware), yes(Aspect::Kernel)]);
    let source = Fixed::new("sysfs:/sys").with_early(good.clone());
    assert!(two_k(&Facts::collect([&source as &dyn HostCapSource], &[])).is_granted());

    let problem = "ivhd1/amd-iommu/features: permission denied; run as root".to_owned();
    let gap = Gap {
        source: "sysfs:/sys".to_owned(),
        scope: scope("ivhd1"),
        problem,
    };
    let source = Fixed::new("sysfs:/sys").with_early(Answer {
        gaps: vec![gap],
        ..good
    });
    let facts = Facts::collect([&source as &dyn HostCapSource], &[]);
    denied(
        &two_k(&facts),
        &["nothing shows for ivhd1", "permission denied; run as root"],
    );
}

#[test]
fn every_passed_through_function_must_be_covered() {
    let mut facts = Facts::default();
    facts.insert_early(hardware_2k(Scope::Host));
    facts.insert(NIC, kernel_2k(Scope::Function(NIC), true));
    assert!(two_k(&facts).is_granted());
    facts.bind(DISK, [&Fixed::new("iommufd") as &dyn HostCapSource]);
    denied(
        &two_k(&facts),
        &["nothing shows for 0000:41:00.0 that the host kernel can use numint2k"],
    );
    facts.forget(DISK);
    assert!(two_k(&facts).is_granted());
}

#[test]
fn a_function_is_covered_by_the_iommu_that_serves_it_and_by_no_other() {
    let facts_with = |iommu: &str| {
        let served = vec![Served {
            function: NIC,
            iommu: iommu.to_owned(),
        }];
        let scope = Scope::Iommu("ivhd0".to_owned());
        let kernel = Fact::<Early>::new(
            Feature::NumInt2K,
            true,
            Aspect::Kernel,
            scope.clone(),
            "debugfs",
            "",
        );
        let answer = Answer {
            facts: vec![hardware_2k(scope), kernel],
            gaps: vec![],
            served,
            ..Answer::nothing()
        };
        let source = Fixed::new("sysfs:/sys").with_early(answer);
        Facts::collect([&source as &dyn HostCapSource], &[NIC])
    };
    assert!(two_k(&facts_with("ivhd0")).is_granted());
    denied(
        &two_k(&facts_with("ivhd1")),
        &["nothing shows for 0000:c1:00.0"],
    );
}

#[test]
fn firmware_is_not_the_kernel() {
    // GCR3TRPMode: the hardware has it, firmware set the bit, the kernel does not list it.
    let registers = HostRegisters {
        control: Some(Control::new().with_gcr3_trp_mode(true)),
        ..hw_info(0x8, None)
    };
    let mut facts = Facts::default();
    for fact in registers.hw_info_facts(&Scope::Function(NIC), "iommufd:/dev/iommu") {
        facts.insert(NIC, fact);
    }
    let decision = decide("gcr3trpmode=on", &facts, Feature::Gcr3TrpMode);
    denied(
        &decision,
        &[
            "the host kernel can use gcr3trpmode",
            "that firmware set it",
            "CONTROL[58]=1",
            "proves nothing about the kernel",
        ],
    );
    // What the kernel does list is granted from the same answer.
    assert!(decide("gtsup=on", &facts, Feature::Gt).is_granted());
}

#[test]
fn a_firmware_bit_that_is_clear_forbids_nothing() {
    let facts = facts("mock:gtsup=on,gcr3trpmode=on,gcr3trpmode.firmware=off");
    assert!(decide("gcr3trpmode=on", &facts, Feature::Gcr3TrpMode).is_granted());
}

#[test]
fn a_level_is_lowered_to_what_is_proven() {
    let decision = decide("hats=6", &facts("mock:hats=5"), Feature::Hats);
    assert_eq!(decision.granted, Setting::Level(1));
    assert!(decision.is_withheld());
    assert!(
        decision.reason.contains("hats is lowered from 6 to 5"),
        "{decision}"
    );
    let decision = decide("hats=6", &facts("mock:hats=4"), Feature::Hats);
    assert_eq!(decision.granted, Setting::Level(0));
    assert!(
        decision.reason.contains("hats is lowered from 6 to 4"),
        "{decision}"
    );
    // A lower level that is stated on one side only is not proven.
    let gats = decide("gats=5", &facts("mock:gtsup=on,gats.hw=5"), Feature::Gats);
    denied(&gats, &["unknown is not yes"]);
}

#[test]
fn the_levels_of_emulated_tables_do_not_depend_on_a_silent_host() {
    for host in ["mock:", "mock:numint2k=off", "legacy-vfio"] {
        let decision = decide("hats=6", &facts(host), Feature::Hats);
        assert_eq!(decision.granted, Setting::Level(2), "{decision}");
    }
}

#[test]
fn ht_range_ignore_is_proven_by_early_facts_only() {
    let fact = |on: bool| {
        Fact::<Late>::new(
            Feature::HtRangeIgnore,
            on,
            Aspect::Hardware,
            Scope::Host,
            "iommufd",
            "EFR2[11]=1",
        )
    };
    let mut late = Facts::default();
    late.insert(NIC, fact(true));
    let decision = decide("htrangeignore=on", &late, Feature::HtRangeIgnore);
    denied(&decision, &["after RAM was laid out, too late"]);
    assert!(
        !late
            .early()
            .decide(Feature::HtRangeIgnore, true)
            .is_granted()
    );

    let early = facts("mock:htrangeignore=on");
    assert!(
        early
            .early()
            .decide(Feature::HtRangeIgnore, true)
            .is_granted()
    );
    assert!(decide("htrangeignore=on", &early, Feature::HtRangeIgnore).is_granted());
    // A late no still counts.
    let mut contradicted = early;
    contradicted.insert(NIC, fact(false));
    denied(
        &decide("htrangeignore=on", &contradicted, Feature::HtRangeIgnore),
        &["says iommufd", "disagrees"],
    );
}

#[test]
fn a_vmm_that_knows_its_situation_can_state_it() {
    let facts = facts("mock:numint2k=off").with_situation(Situation::Emulated);
    assert!(two_k(&facts).is_granted());
    let facts = Facts::collect([&Emulated as &dyn HostCapSource], &[])
        .with_situation(Situation::Passthrough);
    denied(&two_k(&facts), &["asked: none", "unknown is not yes"]);
}

#[test]
fn the_most_restrictive_situation_of_all_sources_counts() {
    let none = Facts::collect([&Emulated as &dyn HostCapSource, &Fixed::new("x")], &[]);
    assert_eq!(none.situation(), Situation::Passthrough);
    let mut facts = Facts::from(EarlyFacts::collect([&Emulated as &dyn HostCapSource]));
    assert_eq!(facts.situation(), Situation::Emulated);
    facts.bind(NIC, [&LegacyVfio as &dyn HostCapSource]);
    assert_eq!(facts.situation(), Situation::LegacyVfio);
    facts.forget(NIC);
    assert_eq!(facts.situation(), Situation::Emulated);
}

#[test]
fn facts_and_answers_round_trip_through_json() {
    let mut facts = facts("mock:numint2k=on,hats=5,hthole=on");
    facts.insert(NIC, kernel_2k(Scope::Function(NIC), true));
    let json = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);

    let gap = Gap {
        source: "s".to_owned(),
        scope: Scope::Host,
        problem: "p".to_owned(),
    };
    let served = vec![Served {
        function: NIC,
        iommu: "ivhd0".to_owned(),
    }];
    let answer = Answer {
        facts: vec![hardware_2k(Scope::Host)],
        gaps: vec![gap],
        served,
        notes: vec![Note {
            source: "s".to_owned(),
            scope: Scope::Host,
            text: "n".to_owned(),
        }],
    };
    let json = serde_json::to_string(&answer).unwrap();
    assert_eq!(
        serde_json::from_str::<Answer<Early>>(&json).unwrap(),
        answer
    );
    assert!(serde_json::from_str::<Answer<Late>>(&json).is_err());
}

#[test]
fn source_errors_name_the_object_the_problem_and_what_to_do() {
    let error = SourceError::Ioctl {
        path: "/dev/iommu".into(),
        ioctl: "IOMMU_GET_HW_INFO".to_owned(),
        problem: "Permission denied (os error 13)".to_owned(),
        remedy: "give this user access to /dev/iommu".to_owned(),
    };
    assert_eq!(
        error.to_string(),
        "IOMMU_GET_HW_INFO on /dev/iommu: Permission denied (os error 13); give this user access \
         to /dev/iommu"
    );
    let json = serde_json::to_string(&error).unwrap();
    assert_eq!(serde_json::from_str::<SourceError>(&json).unwrap(), error);
}
