//! Sources that read files, on trees of hosts: see `fixtures/README.md`.

use std::path::{Path, PathBuf};

use amdvi_hostcap::source::{Debugfs, KernelInference, OrderBy, Several, Sysfs};
use amdvi_hostcap::{
    Aspect, EarlyFacts, Facts, Feature, HostCapSource, PciFunction, Recorded, Recording, Scope,
    Setting, Subject,
};

const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);
const DISK: PciFunction = PciFunction::new(0, 0x01, 0, 0);
const OTHER_DISK: PciFunction = PciFunction::new(0, 0x41, 0, 0);

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn sysfs(name: &str) -> Sysfs {
    Sysfs::new(tree(name).join("sys"))
}

fn early(sources: &[&dyn HostCapSource]) -> EarlyFacts {
    EarlyFacts::collect(sources.iter().copied())
}

fn value(facts: &EarlyFacts, iommu: &str, feature: Feature) -> Option<Setting> {
    let scope = Scope::Iommu(iommu.to_owned());
    let of = |f: &&amdvi_hostcap::Fact<_>| {
        f.subject() == Subject::Feature(feature)
            && f.aspect() == Aspect::Hardware
            && *f.scope() == scope
    };
    facts.iter().find(of).map(|fact| fact.value())
}

#[test]
fn every_iommu_of_the_host_is_read_in_both_orders_of_the_two_registers() {
    for (name, by) in [
        ("server-6.12", OrderBy::Values),
        ("server-6.1", OrderBy::Values),
    ] {
        let sysfs = sysfs(name);
        assert_eq!(sysfs.features("ivhd2").unwrap().by, by);
        let facts = early(&[&sysfs]);
        assert_eq!(facts.gaps().count(), 0, "{name}");
        for iommu in ["ivhd0", "ivhd1", "ivhd2", "ivhd3"] {
            for (feature, expected) in [
                (Feature::NumInt2K, Setting::OFF),
                (Feature::Ga, Setting::ON),
                (Feature::Gt, Setting::ON),
                (Feature::Hats, Setting::Level(2)),
                (Feature::PasidMax, Setting::Level(15)),
                (Feature::HtRangeIgnore, Setting::OFF),
            ] {
                assert_eq!(
                    value(&facts, iommu, feature),
                    Some(expected),
                    "{name} {iommu}"
                );
            }
        }
    }
}

#[test]
fn the_oldest_format_says_nothing_of_efr2() {
    let facts = early(&[&sysfs("server-5.10")]);
    assert_eq!(value(&facts, "ivhd0", Feature::Xt), Some(Setting::ON));
    assert_eq!(value(&facts, "ivhd0", Feature::NumInt2K), None);
    let decision = facts.decide(Feature::NumInt2K, true);
    assert!(decision.reason.contains("unknown is not yes"), "{decision}");
}

#[test]
fn an_order_that_cannot_be_told_is_an_answer_and_not_a_guess() {
    let facts = early(&[&sysfs("unreadable-order")]);
    assert_eq!(value(&facts, "ivhd0", Feature::Ga), None);
    let gap = facts.gaps().next().unwrap();
    assert!(gap.problem.contains("amd-iommu/features"), "{gap}");
    assert!(gap.problem.contains("the order can't be told"), "{gap}");
    // The version, where it is known, is a hint that decides.
    let dir = tempfile::tempdir().unwrap();
    let release = dir.path().join("osrelease");
    std::fs::write(&release, "6.1.0-38-amd64\n").unwrap();
    let hinted = sysfs("unreadable-order").with_osrelease(release);
    let features = hinted.features("ivhd0").unwrap();
    assert_eq!(features.by, OrderBy::Version);
    assert_eq!(features.registers.efr, Some(0x110.into()));
}

#[test]
fn the_device_that_qemu_emulates_is_read() {
    let facts = early(&[&sysfs("qemu-6.12")]);
    assert_eq!(facts.gaps().count(), 0);
    assert_eq!(value(&facts, "ivhd0", Feature::Ga), Some(Setting::ON));
    assert_eq!(
        value(&facts, "ivhd0", Feature::NumInt2K),
        Some(Setting::OFF)
    );
    // GATS = 2 has no meaning any more.
    assert_eq!(value(&facts, "ivhd0", Feature::Gats), None);
}

#[test]
fn which_iommu_serves_a_function_is_known_before_and_after_binding() {
    let sysfs = sysfs("server-6.12");
    assert_eq!(sysfs.iommu_of(NIC).unwrap().as_deref(), Some("ivhd3"));
    let early = sysfs.early_facts().unwrap();
    assert_eq!(early.served.len(), 4);
    let late = sysfs.late_facts(NIC).unwrap();
    assert_eq!(late.served[0].iommu, "ivhd3");
    let missing = PciFunction::new(0, 0xff, 0, 0);
    let error = sysfs.late_facts(missing).unwrap_err().to_string();
    assert!(
        error.contains("devices/0000:ff:00.0: No such file"),
        "{error}"
    );
    assert!(error.contains("lspci -D"), "{error}");
}

#[test]
fn an_intel_host_has_no_hole_and_none_of_the_registers() {
    let facts = early(&[&sysfs("intel-6.12")]);
    let hole = facts
        .iter()
        .find(|f| f.subject() == Subject::HtHole)
        .unwrap();
    assert!(!hole.value().is_on());
    let decision = facts.decide(Feature::NumInt2K, true);
    assert!(!decision.is_granted());
    assert!(decision.reason.contains("Intel VT-d"), "{decision}");
    assert!(decision.reason.contains("use an AMD host"), "{decision}");
}

#[test]
fn a_host_without_an_iommu_says_what_to_enable() {
    let dir = tempfile::tempdir().unwrap();
    let error = || {
        Sysfs::new(dir.path())
            .early_facts()
            .unwrap_err()
            .to_string()
    };
    let said = error();
    assert!(
        said.contains("class/iommu: No such file") && said.contains("mount sysfs"),
        "{said}"
    );
    std::fs::create_dir_all(dir.path().join("class/iommu")).unwrap();
    let said = error();
    assert!(said.contains("the kernel drives no IOMMU"), "{said}");
    assert!(said.contains("amd_iommu=off"), "{said}");
}

#[test]
fn the_control_register_proves_2k_for_the_iommus_that_have_it_on() {
    let sources = |name: &str| (sysfs(name), Debugfs::new(tree(name).join("debug")));
    let (files, debug) = sources("server-2k-6.17");
    assert!(
        early(&[&files, &debug])
            .decide(Feature::NumInt2K, true)
            .is_granted()
    );
    assert!(
        !early(&[&files])
            .decide(Feature::NumInt2K, true)
            .is_granted()
    );
    assert!(
        !early(&[&debug])
            .decide(Feature::NumInt2K, true)
            .is_granted()
    );

    let (files, debug) = sources("server-2k-off-on-one-6.17");
    let sources: [&dyn HostCapSource; 2] = [&files, &debug];
    let all = Facts::collect(sources, &[]).decide(Feature::NumInt2K, true);
    assert!(!all.is_granted());
    assert!(all.reason.contains("(ivhd1: CONTROL[44:43]=00b)"), "{all}");
}

#[test]
fn gcr3trpmode_set_by_firmware_on_a_kernel_that_cannot_use_it_is_not_granted() {
    let name = "gcr3trp-by-firmware-6.17";
    let debug = Debugfs::new(tree(name).join("debug"));
    let mut facts = Facts::from(early(&[&sysfs(name), &debug]));
    // Guest translation itself is not what is missing.
    let gt = amdvi_hostcap::Fact::new(Feature::Gt, true, Aspect::Kernel, Scope::Host, "test", "");
    facts.insert_early(gt);
    assert!(facts.decide(Feature::Gt, true).is_granted());
    let decision = facts.decide(Feature::Gcr3TrpMode, true);
    assert!(!decision.is_granted());
    for part in [
        "nothing shows for ivhd0 that the host kernel can use gcr3trpmode",
        "(ivhd0: EFR2[3]=1)) is not enough",
        "firmware set it",
        "CONTROL[58]=1",
    ] {
        assert!(decision.reason.contains(part), "no `{part}` in {decision}");
    }
}

#[test]
fn the_conclusion_from_the_version_needs_all_its_premises() {
    let conclude = |name: &str| {
        let root = tree(name).join("sys");
        early(&[&sysfs(name), &KernelInference::new(root)]).decide(Feature::NumInt2K, true)
    };
    let yes = conclude("server-2k-6.17");
    assert!(yes.is_granted());
    assert!(yes.reason.contains("kernel-inference:"), "{yes}");
    // An old kernel, one without remapped interrupts, and hardware without 2K.
    assert!(!conclude("server-6.12").is_granted());
    assert!(conclude("server-6.12").reason.contains("does not support"));
    assert!(!conclude("gcr3trp-by-firmware-6.17").is_granted());
    let unknown = early(&[&KernelInference::new(tree("unreadable-order").join("sys"))]);
    let gap = unknown.gaps().next().unwrap();
    assert!(gap.problem.contains("version can't be read"), "{gap}");
    // It is no part of `auto`.
    assert!(
        Several::auto_sources()
            .iter()
            .all(|s| !s.name().contains("inference"))
    );
}

#[test]
fn what_is_unknown_of_one_iommu_counts_only_for_the_functions_behind_it() {
    let name = "server-2k-6.17";
    let files = sysfs(name);
    let dir = tempfile::tempdir().unwrap();
    let mmio = dir.path().join("iommu/amd/iommu00/mmio");
    std::fs::create_dir_all(mmio.parent().unwrap()).unwrap();
    std::fs::copy(tree(name).join("debug/iommu/amd/iommu00/mmio"), &mmio).unwrap();
    let debug = Debugfs::new(dir.path());
    let sources: [&dyn HostCapSource; 2] = [&files, &debug];
    assert!(
        Facts::collect(sources, &[DISK])
            .decide(Feature::NumInt2K, true)
            .is_granted()
    );
    let other = Facts::collect(sources, &[OTHER_DISK]).decide(Feature::NumInt2K, true);
    assert!(!other.is_granted());
    assert!(other.reason.contains("for 0000:41:00.0"), "{other}");
}

#[test]
fn sources_that_are_asked_as_one_answer_as_each_would_and_failures_are_gaps() {
    let name = "server-2k-6.17";
    let boxed = |debug: &str| -> Several {
        Several::new(
            "auto",
            vec![
                Box::new(sysfs(name)),
                Box::new(Debugfs::new(tree(name).join(debug))),
            ],
        )
    };
    let both = early(&[&boxed("debug")]);
    assert!(both.decide(Feature::NumInt2K, true).is_granted());
    let without = early(&[&boxed("nothing")]);
    assert!(!without.decide(Feature::NumInt2K, true).is_granted());
    assert!(
        without
            .gaps()
            .any(|gap| gap.problem.contains("CONFIG_AMD_IOMMU_DEBUGFS"))
    );
}

#[test]
fn a_recording_answers_as_its_sources_did_and_names_itself() {
    let name = "server-2k-6.17";
    let debug = Debugfs::new(tree(name).join("debug"));
    let files = sysfs(name);
    let nothing = Debugfs::new(tree(name).join("nothing"));
    let sources: [&dyn HostCapSource; 3] = [&files, &debug, &nothing];
    let recording = Recording::of(sources, &[DISK]);
    let json = serde_json::to_string(&recording).unwrap();
    let read: Recording = serde_json::from_str(&json).unwrap();
    assert_eq!(read.sources, recording.sources);
    assert_eq!(read.facts(), Facts::collect(sources, &[DISK]));
    assert_eq!(read.functions(), [DISK]);

    let source = Recorded::new("file:host.json", read);
    let replayed = Facts::collect([&source as &dyn HostCapSource], &[DISK]);
    let decision = replayed.decide(Feature::NumInt2K, true);
    assert!(decision.is_granted(), "{decision}");
    assert!(decision.reason.contains(" in file:host.json"), "{decision}");

    let future = json.replace("\"amdvi-hostcap\":1", "\"amdvi-hostcap\":2");
    let error = serde_json::from_str::<Recording>(&future)
        .unwrap_err()
        .to_string();
    assert!(error.contains("this build reads version 1"), "{error}");
}
