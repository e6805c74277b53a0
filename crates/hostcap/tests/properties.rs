//! What holds for every request and every set of facts.

use amdvi_hostcap::source::{KernelVersion, OrderBy, read_features};
use amdvi_hostcap::{
    Aspect, Fact, Facts, Feature, Offer, PciFunction, Request, Scope, Setting, Situation, Subject,
    negotiate,
};
use amdvi_hostcap::{HwCapabilities, HwInfo, RawHwInfo};
use proptest::prelude::*;

const FUNCTIONS: [PciFunction; 2] = [
    PciFunction::new(0, 0xc1, 0, 0),
    PciFunction::new(0, 0x41, 0, 0),
];

/// A fact before its phase is fixed: `late` is the function whose binding taught it.
#[derive(Clone, Debug)]
struct Said {
    feature: Feature,
    aspect: Aspect,
    scope: Scope,
    level: u8,
    source: &'static str,
    late: Option<PciFunction>,
}

impl Said {
    fn add_to(&self, facts: &mut Facts) {
        let Self {
            feature,
            aspect,
            scope,
            level,
            source,
            late,
        } = self.clone();
        let value = feature.setting(level);
        match late {
            Some(function) => {
                facts.insert(
                    function,
                    Fact::new(feature, value, aspect, scope, source, "seen"),
                );
            }
            None => facts.insert_early(Fact::new(feature, value, aspect, scope, source, "seen")),
        }
    }

    /// Whether this rules out `level` of `feature`: it, or what it is built on, is not there.
    fn forbids(&self, feature: Feature, level: u8) -> bool {
        let mut chain = std::iter::successors(Some(feature), |f| f.on_top_of());
        let wanted = if self.feature == feature { level } else { 1 };
        self.aspect != Aspect::Firmware
            && (self.aspect == Aspect::Kernel || !self.feature.needs().is_empty())
            && chain.any(|link| link == self.feature)
            && self.feature.setting(self.level).level() < wanted
    }
}

fn feature() -> impl Strategy<Value = Feature> {
    prop::sample::select(Feature::ALL.to_vec())
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        4 => Just(Scope::Host),
        1 => prop::sample::select(vec!["ivhd0", "ivhd1"]).prop_map(|n| Scope::Iommu(n.to_owned())),
        1 => prop::sample::select(FUNCTIONS.to_vec()).prop_map(Scope::Function),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    let aspect = prop::sample::select(vec![Aspect::Hardware, Aspect::Firmware, Aspect::Kernel]);
    // Mostly yes: otherwise nearly everything is forbidden and little is tested.
    let level = prop_oneof![1 => Just(0u8), 6 => 1..=2u8];
    let source = prop::sample::select(vec!["sysfs:/sys", "debugfs", "iommufd:/dev/iommu"]);
    let late = prop::option::weighted(0.3, prop::sample::select(FUNCTIONS.to_vec()));
    (feature(), aspect, scope(), level, source, late).prop_map(
        |(feature, aspect, scope, level, source, late)| Said {
            feature,
            aspect,
            scope,
            level,
            source,
            late,
        },
    )
}

/// Arbitrary facts, often on top of a host that can do everything.
fn many() -> impl Strategy<Value = Vec<Said>> {
    let able: Vec<_> = Feature::ALL
        .into_iter()
        .flat_map(|feature| feature.needs().iter().map(move |aspect| (feature, *aspect)))
        .map(|(feature, aspect)| Said {
            feature,
            aspect,
            scope: Scope::Host,
            level: 19,
            source: "able",
            late: None,
        })
        .collect();
    let base = prop_oneof![Just(able), Just(Vec::new())];
    (base, prop::collection::vec(said(), 0..24)).prop_map(|(mut base, more)| {
        base.extend(more);
        base
    })
}

fn request() -> impl Strategy<Value = Request> {
    let setting = (feature(), 0..=2u8).prop_map(|(feature, n)| (feature, feature.setting(n)));
    prop::collection::vec(setting, 0..24).prop_map(Request::from_iter)
}

fn build(said: &[Said]) -> Facts {
    let mut facts = Facts::default();
    said.iter().for_each(|s| s.add_to(&mut facts));
    facts
}

fn ask(request: &Request, said: &[Said]) -> Offer {
    negotiate(request, &build(said))
}

/// The rule as a reader of the documentation would write it, for facts about the whole host that
/// were known early.
fn literal_model(request: &Request, said: &[Said], feature: Feature) -> u8 {
    let mut level = request.get(feature).level();
    let mut link = Some(feature);
    while let Some(this) = link {
        for aspect in [Aspect::Hardware, Aspect::Kernel] {
            if aspect == Aspect::Hardware && this.needs().is_empty() {
                continue;
            }
            let mut lowest = None;
            for s in said
                .iter()
                .filter(|s| s.feature == this && s.aspect == aspect)
            {
                let stated = this.setting(s.level).level();
                lowest = Some(lowest.map_or(stated, |low: u8| low.min(stated)));
            }
            let allowed = match lowest {
                Some(lowest) if this == feature => lowest,
                Some(0) => 0,
                Some(_) => u8::MAX,
                None if this.needs().contains(&aspect) => 0,
                None => u8::MAX,
            };
            level = level.min(allowed);
        }
        link = this.on_top_of();
    }
    level
}

proptest! {
    #[test]
    fn agrees_with_a_literal_model_of_the_rule(request in request(), mut said in many()) {
        for s in &mut said {
            s.scope = Scope::Host;
            s.late = None;
        }
        let offer = ask(&request, &said);
        for feature in Feature::ALL {
            let expected = literal_model(&request, &said, feature);
            prop_assert_eq!(offer.granted(feature).level(), expected, "{}", offer.decision(feature));
        }
    }

    #[test]
    fn unknown_never_grants(request in request(), said in many(), pick in any::<prop::sample::Index>()) {
        let needing: Vec<_> = Feature::ALL.into_iter().filter(|f| !f.needs().is_empty()).collect();
        let feature = *pick.get(&needing);
        for aspect in feature.needs() {
            let mut without = said.clone();
            without.retain(|s| s.feature != feature || s.aspect != *aspect);
            let offer = ask(&request, &without);
            for dependent in Feature::ALL {
                let mut chain = std::iter::successors(Some(dependent), |f| f.on_top_of());
                if chain.any(|link| link == feature) {
                    prop_assert!(!offer.is_granted(dependent), "{}", offer.decision(dependent));
                }
            }
        }
    }

    #[test]
    fn a_function_or_iommu_of_which_nothing_is_known_never_grants(
        request in request(),
        mut said in many(),
    ) {
        // One function is bound, and all that was said is about the other, and later than RAM.
        for s in &mut said {
            s.scope = Scope::Function(FUNCTIONS[0]);
            s.late = Some(FUNCTIONS[0]);
        }
        let mut facts = build(&said);
        facts.bind(FUNCTIONS[1], []);
        let offer = negotiate(&request, &facts);
        for feature in Feature::ALL.into_iter().filter(|f| !f.needs().is_empty()) {
            prop_assert!(!offer.is_granted(feature), "{}", offer.decision(feature));
        }
    }

    #[test]
    fn adding_a_fact_never_grants_what_another_forbids(
        request in request(),
        said in many(),
        added in said(),
    ) {
        let mut more = said.clone();
        more.push(added);
        let offer = ask(&request, &more);
        for decision in &offer.decisions {
            let level = decision.granted.level();
            let forbids = |s: &&Said| level > 0 && s.forbids(decision.feature, level);
            prop_assert!(!said.iter().any(|s| forbids(&s)), "{decision}");
        }
    }

    #[test]
    fn the_order_and_repetition_of_facts_do_not_matter(
        request in request(),
        (said, shuffled) in many().prop_flat_map(|said| {
            let mut twice = said.clone();
            twice.extend(said.iter().take(3).cloned());
            (Just(said), Just(twice).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(ask(&request, &said), ask(&request, &shuffled));
    }

    #[test]
    fn never_more_than_requested_and_nothing_unrequested(request in request(), said in many()) {
        for situation in [Situation::Emulated, Situation::Passthrough, Situation::LegacyVfio] {
            let offer = negotiate(&request, &build(&said).with_situation(situation));
            prop_assert_eq!(offer.decisions.len(), Feature::ALL.len());
            for decision in &offer.decisions {
                prop_assert!(decision.granted.level() <= decision.requested.level());
                prop_assert_eq!(decision.requested, request.get(decision.feature));
            }
        }
    }

    #[test]
    fn legacy_vfio_never_grants_2k(said in many()) {
        let facts = build(&said).with_situation(Situation::LegacyVfio);
        let request = Request::new().with(Feature::NumInt2K, true);
        prop_assert!(!negotiate(&request, &facts).is_granted(Feature::NumInt2K));
    }

    #[test]
    fn every_reason_is_one_line_that_names_a_source(request in request(), said in many()) {
        for situation in [Situation::Emulated, Situation::Passthrough, Situation::LegacyVfio] {
            let facts = build(&said).with_situation(situation);
            for decision in negotiate(&request, &facts).decisions {
                let reason = &decision.reason;
                prop_assert!(reason.ends_with('.') && !reason.contains('\n'), "{reason}");
                prop_assert!(reason.contains(decision.feature.name()), "{reason}");
                let named = said.iter().any(|s| reason.contains(s.source))
                    || (said.is_empty() && reason.contains("no source"))
                    || (situation == Situation::LegacyVfio && reason.contains("legacy-vfio"));
                prop_assert!(named, "{reason}");
                prop_assert!(reason.len() < 1500, "{reason}");
            }
        }
    }

    #[test]
    fn early_facts_decide_as_all_facts_do_when_there_are_no_late_ones(
        mut said in many(),
        feature in feature(),
        level in 0..=2u8,
    ) {
        said.iter_mut().for_each(|s| s.late = None);
        let facts = build(&said);
        let wanted = feature.setting(level);
        prop_assert_eq!(facts.early().decide(feature, wanted), facts.decide(feature, wanted));
    }

    #[test]
    fn what_sysfs_shows_is_read_as_its_numbers_or_not_at_all(
        (first, second) in prop_oneof![
            (any::<u64>(), any::<u64>()),
            (any::<u64>(), 0..0x4000u64),
            (0..0x4000u64, 0..0x4000u64),
        ],
        text in ".{0,40}",
        major in 3..8u32,
        minor in 0..20u32,
    ) {
        let kernel = Some(KernelVersion::new(major, minor));
        let _ = read_features(&text, kernel);
        for kernel in [None, kernel] {
            if let Ok(found) = read_features(&format!("{first:x}:{second:x}"), kernel) {
                let efr = u64::from(found.registers.efr.unwrap());
                let efr2 = u64::from(found.registers.efr2.unwrap());
                prop_assert!([(first, second), (second, first)].contains(&(efr, efr2)));
                // Swapping the text swaps the reading, unless only the version decided.
                if found.by != OrderBy::Version {
                    let swapped = read_features(&format!("{second:x}:{first:x}"), kernel).unwrap();
                    prop_assert_eq!(swapped.registers, found.registers);
                }
            }
        }
    }

    #[test]
    fn an_answer_of_any_shape_never_shows_more_than_its_length(
        data_type in 0..6u32,
        data_len in prop_oneof![0..40u32, any::<u32>()],
        data in prop::collection::vec(any::<u8>(), 0..64),
        capabilities in any::<u64>(),
        max_pasid_log2 in any::<u8>(),
    ) {
        let raw = RawHwInfo {
            data_type,
            data_len,
            data: data.clone(),
            capabilities: HwCapabilities(capabilities),
            max_pasid_log2,
        };
        let filled = data.len().min(data_len as usize);
        let answer = raw.answer::<amdvi_hostcap::Late>(FUNCTIONS[0], None, "iommufd");
        match raw.read() {
            HwInfo::Amd { registers, .. } => {
                prop_assert!(data_type == 4 && filled >= 16);
                prop_assert_eq!(registers.control.is_some(), filled >= 24);
                prop_assert!(answer.gaps.is_empty());
            }
            other => {
                prop_assert_eq!(other == HwInfo::AmdTruncated, data_type == 4);
                prop_assert!(answer.facts.iter().all(|fact| !fact.value().is_on()));
                prop_assert_eq!(answer.gaps.len(), 1);
            }
        }
    }

    #[test]
    fn facts_survive_a_recording(request in request(), said in many()) {
        let facts = build(&said);
        let json = serde_json::to_string(&facts).unwrap();
        let read: Facts = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &facts);
        prop_assert_eq!(negotiate(&request, &read), negotiate(&request, &facts));
    }

    #[test]
    fn no_value_of_the_wrong_kind_is_a_yes(feature in feature(), level in any::<u8>()) {
        let fact = Fact::<amdvi_hostcap::Early>::new(
            feature, Setting::Level(level), Aspect::Hardware, Scope::Host, "s", "",
        );
        prop_assert_eq!(fact.subject(), Subject::Feature(feature));
        prop_assert!(fact.value().level() <= level);
        prop_assert_eq!(feature.normalize(fact.value()), fact.value());
    }
}
