//! The command line, as a user sees it.

use amdvi_hostcap::Recording;
use amdvi_hostcap::source::{Debugfs, HostCapSource, Sysfs};
use assert_cmd::Command;
use serde_json::Value;

/// Trees of hosts.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hostcap/tests/fixtures");

fn refvmm(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("amdvi-refvmm")
        .expect("the binary is built")
        .args(arguments)
        .output()
        .expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("an exit status"),
        text(output.stdout),
        text(output.stderr),
    )
}

fn last_line(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON")
}

/// A bad command line ends with status 2 and a message with all of `parts`.
fn assert_usage(arguments: &[&str], parts: &[&str]) {
    let (status, stdout, stderr) = refvmm(arguments);
    assert_eq!(status, 2, "{stderr}");
    assert_eq!(stdout, "", "{stderr}");
    for part in parts {
        assert!(says(&stderr, part), "{part}: {stderr}");
    }
}

#[test]
fn an_unknown_device_option_is_named_with_what_is_accepted() {
    assert_usage(
        &["--device", "amd-iommu,numint3k=on"],
        &["--device", "numint3k", "numint2k"],
    );
}

#[test]
fn a_bad_device_value_is_named_with_what_is_accepted() {
    assert_usage(
        &["--device", "amd-iommu,numint2k=yes"],
        &["numint2k", "yes", "on or off"],
    );
    assert_usage(
        &["--device", "amd-iommu,intremap=off,numint2k=on"],
        &["numint2k=on", "intremap=off"],
    );
}

#[test]
fn a_kernel_or_ramdisk_that_is_not_there_is_named_with_its_option() {
    assert_usage(
        &["--kernel", "/nowhere/vmlinuz"],
        &["--kernel /nowhere/vmlinuz", "No such file"],
    );
    let this = env!("CARGO_BIN_EXE_amdvi-refvmm");
    assert_usage(
        &["--kernel", this, "--initrd", "/nowhere/initrd"],
        &["--initrd /nowhere/initrd", "No such file"],
    );
}

#[test]
fn what_only_linux_has_needs_a_kernel() {
    for option in ["--initrd=x", "--disk=path=x", "--endpoint", "--rng"] {
        assert_usage(&[option], &["--kernel"]);
    }
    assert_usage(
        &["--kernel", "/nowhere", "--disk", "queues=2"],
        &["--disk", "path accepts a file"],
    );
    assert_usage(&["--cpus", "17"], &["--cpus 17", "1 to 16"]);
    assert_usage(
        &["--device", "amd-iommu", "--device", "amd-iommu"],
        &["--device", "--kernel"],
    );
}

#[test]
fn an_unknown_host_caps_source_is_named_with_what_is_accepted() {
    assert_usage(
        &["--host-caps", "crystal-ball"],
        &["--host-caps", "crystal-ball", "mock:"],
    );
}

#[test]
fn an_unknown_scenario_is_named_with_those_that_exist() {
    let arguments = ["--accel", "in-process", "--scenario", "intremap-3k"];
    assert_usage(&arguments, &["--scenario", "intremap-3k", "intremap-2k"]);
}

#[test]
fn a_bad_number_of_cpus_is_named_with_what_is_accepted() {
    assert_usage(&["--cpus", "0"], &["--cpus", "1 to 16"]);
    assert_usage(&["--cpus", "17"], &["--cpus", "1 to 16"]);
}

#[test]
fn a_device_that_has_no_place_on_the_board_is_refused_with_what_is_in_the_way() {
    for (option, part) in [
        ("mmio-base=0x100000", "0xf0000000"),
        ("mmio-base=0xe0000000", "0xf0000000"),
        ("addr=05.0", "taken"),
        ("addr=01:00.2", "bus 0 only"),
        ("segment=1", "no IOMMU serves it"),
    ] {
        let device = format!("amd-iommu,{option}");
        let (name, _) = option.split_once('=').expect("an option with a value");
        assert_usage(
            &["--accel", "in-process", "--device", &device],
            &[name, part],
        );
    }
}

#[test]
fn help_lists_the_device_s_options_and_the_scenarios() {
    let (status, stdout, _) = refvmm(&["--help"]);
    assert_eq!(status, 0);
    for word in [
        "--host-caps",
        "numint2k",
        "xtsup",
        "dma-remap",
        "intremap-2k-off",
        "Exit status",
        "--memory",
        "auto",
        "sysfs[:ROOT]",
        "debugfs[:ROOT]",
        "iommufd[:PATH]",
        "kvm:NUMBER",
        "legacy-vfio",
        "kernel-inference[:ROOT]",
        "file:PATH",
        "mock:NAME=VALUE",
    ] {
        assert!(stdout.contains(word), "{word}");
    }
}

#[test]
fn list_names_every_scenario_and_its_device() {
    let (status, stdout, _) = refvmm(&["--list"]);
    assert_eq!(status, 0);
    for scenario in amdvi_guest::scenarios::ALL {
        assert!(stdout.contains(scenario.name) && stdout.contains(scenario.needs.device));
    }
}

#[test]
fn json_is_the_last_line_of_stdout_and_text_for_people_goes_to_stderr() {
    let arguments = ["--json", "--accel", "in-process", "--scenario", "discover"];
    let (status, stdout, stderr) = refvmm(&arguments);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 1);
    let object = last_line(&stdout);
    assert_eq!(object["accel"], "in-process");
    assert_eq!(object["passed"], true);
    assert_eq!(object["offered"]["numint2k"], true);
    assert_eq!(object["scenarios"][0]["name"], "discover");
    assert!(says(&stderr, "PASSED"), "{stderr}");
}

#[test]
fn a_host_without_2k_takes_it_from_the_guest_and_the_report_says_why() {
    let arguments = [
        "--json",
        "--accel",
        "in-process",
        "--host-caps",
        "mock:numint2k=off",
        "--scenario",
        "intremap-512",
    ];
    let (status, stdout, stderr) = refvmm(&arguments);
    assert_eq!(status, 0, "{stderr}");
    let object = last_line(&stdout);
    assert_eq!(object["offered"]["numint2k"], false);
    let decisions = object["decisions"].as_array().expect("an array");
    let decision = decisions
        .iter()
        .find(|d| d["feature"] == "numint2k")
        .expect("a decision");
    assert_eq!(
        (&decision["requested"], &decision["granted"]),
        (&true.into(), &false.into())
    );
    assert!(
        decision["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty())
    );
    assert!(says(&stderr, "512 interrupts per function"), "{stderr}");
}

#[test]
fn a_scenario_that_fails_on_the_named_machine_fails_the_run() {
    let arguments = [
        "--json",
        "--accel",
        "in-process",
        "--device",
        "amd-iommu,intremap=on",
        "--scenario",
        "intremap-2k",
    ];
    let (status, stdout, stderr) = refvmm(&arguments);
    assert_eq!(status, 1, "{stderr}");
    let object = last_line(&stdout);
    assert_eq!(object["passed"], false);
    assert_eq!(object["offered"]["numint2k"], false);
    assert!(says(&stderr, "FAILED: 1 of 1 scenarios"), "{stderr}");
}

#[test]
fn kvm_without_a_payload_is_refused_with_what_to_do() {
    let (status, _, stderr) = refvmm(&["--accel", "kvm", "--scenario", "discover"]);
    assert_eq!(status, 2);
    assert!(says(&stderr, "--accel kvm"), "{stderr}");
}

/// The report of a short run on that host, and what was printed for people.
/// Whether a report for people says this. Where its lines end depends on the words, and some of
/// these are paths of the checkout.
fn says(text: &str, words: &str) -> bool {
    let words: Vec<&str> = words.split_whitespace().collect();
    let text: Vec<&str> = text.split_whitespace().collect();
    text.join(" ").contains(&words.join(" "))
}

fn on_host(spec: &str, more: &[&str]) -> (Value, String) {
    let mut arguments = vec!["--json", "--accel", "in-process", "--scenario", "discover"];
    arguments.extend(["--host-caps", spec]);
    arguments.extend(more);
    let (status, stdout, stderr) = refvmm(&arguments);
    assert_eq!(status, 0, "{stderr}");
    (last_line(&stdout), stderr)
}

fn decision<'a>(report: &'a Value, feature: &str) -> &'a Value {
    let decisions = report["decisions"].as_array().expect("an array");
    let mut decisions = decisions.iter();
    decisions
        .find(|decision| decision["feature"] == feature)
        .expect("a decision")
}

fn reason<'a>(report: &'a Value, feature: &str) -> &'a str {
    let reason = &decision(report, feature)["reason"];
    reason.as_str().expect("a sentence")
}

/// What the sources say of a tree, as a file.
fn recorded(tree: &str) -> tempfile::NamedTempFile {
    let sysfs = Sysfs::new(format!("{FIXTURES}/{tree}/sys"));
    let debugfs = Debugfs::new(format!("{FIXTURES}/{tree}/debug"));
    let sources: [&dyn HostCapSource; 2] = [&sysfs, &debugfs];
    let file = tempfile::NamedTempFile::new().expect("a file");
    serde_json::to_writer(&file, &Recording::of(sources, &[])).expect("it is written");
    file
}

#[test]
fn sysfs_of_a_server_without_2k_takes_it_from_the_guest() {
    let spec = format!("sysfs:{FIXTURES}/server-6.12/sys");
    let (report, stderr) = on_host(&spec, &[]);
    assert_eq!(report["host_caps"], spec.as_str());
    assert_eq!(report["offered"]["numint2k"], false);
    assert_eq!(decision(&report, "numint2k")["granted"], false);
    assert!(reason(&report, "numint2k").contains("sysfs"), "{report}");
    let facts = report["host_facts"].as_array().expect("an array");
    assert!(
        facts.iter().any(|fact| fact["subject"] == "numint2k"),
        "{report}"
    );
    assert!(says(&stderr, &format!("{spec} states")), "{stderr}");
}

#[test]
fn registers_that_offer_2k_are_not_enough_without_the_kernel_s_word() {
    let spec = format!("sysfs:{FIXTURES}/server-2k-6.17/sys");
    let (report, _) = on_host(&spec, &[]);
    assert_eq!(decision(&report, "numint2k")["granted"], false);
    assert!(reason(&report, "numint2k").contains("kernel"), "{report}");
}

#[test]
fn a_recording_of_a_host_with_2k_grants_it() {
    let file = recorded("server-2k-6.17");
    let (report, _) = on_host(&format!("file:{}", file.path().display()), &[]);
    assert_eq!(report["offered"]["numint2k"], true);
    assert_eq!(decision(&report, "numint2k")["granted"], true, "{report}");
}

#[test]
fn iommus_that_disagree_are_a_conflict_and_the_guest_gets_the_lesser() {
    let file = recorded("server-2k-off-on-one-6.17");
    let (report, stderr) = on_host(&format!("file:{}", file.path().display()), &[]);
    assert_eq!(report["offered"]["numint2k"], false);
    let conflicts = report["host_conflicts"].as_array().expect("an array");
    assert!(
        conflicts
            .iter()
            .any(|conflict| conflict["subject"] == "numint2k"),
        "{report}"
    );
    assert!(says(&stderr, "conflict: numint2k kernel"), "{stderr}");
}

#[test]
fn a_source_that_can_t_be_asked_is_a_gap_with_its_reason_and_never_a_yes() {
    for (spec, part) in [
        ("sysfs:/nowhere/sys", "/nowhere/sys"),
        ("debugfs:/nowhere/debug", "/nowhere/debug"),
        ("kernel-inference:/nowhere/sys", "kernel's version"),
        ("file:/nowhere/host.json", "amdvi-hostcap probe --json"),
        ("iommufd:/nowhere/iommu,c1:00.0=/nowhere/vfio0", "/nowhere/"),
        ("kvm:250,dev=/nowhere/kvm", "/nowhere/kvm"),
    ] {
        let (report, stderr) = on_host(spec, &[]);
        assert_eq!(decision(&report, "numint2k")["granted"], false, "{spec}");
        let gaps = report["host_gaps"].as_array().expect("an array");
        let said = |gap: &Value| gap["problem"].as_str().is_some_and(|p| p.contains(part));
        assert!(gaps.iter().any(said), "{spec}: {report}");
        assert!(says(&stderr, "can't tell about"), "{spec}: {stderr}");
    }
}

#[test]
fn auto_runs_whatever_this_host_lets_it_see() {
    let (report, stderr) = on_host("auto", &[]);
    assert_eq!(report["host_caps"], "auto");
    assert!(report["host_facts"].is_array() && report["host_gaps"].is_array());
    assert!(!reason(&report, "numint2k").is_empty());
    assert!(says(&stderr, "sysfs:/sys"), "{stderr}");
}

#[test]
fn a_bad_size_of_ram_is_named_with_what_is_accepted() {
    assert_usage(&["--memory", "10X"], &["--memory", "10X", "64M to 4T"]);
    assert_usage(&["--memory", "1M"], &["--memory", "1M", "64M to 4T"]);
    assert_usage(
        &["--accel", "in-process", "--heap", "high"],
        &["--heap high", "--memory"],
    );
}

#[test]
fn ram_lies_where_the_host_lets_it_and_the_report_says_why() {
    let (report, stderr) = on_host("none", &[]);
    assert_eq!(report["ram"]["placement"], "below-4-gib");
    assert!(
        stderr.contains("RAM        64 MiB below 4 GiB\n"),
        "{stderr}"
    );

    let more = ["--memory", "10G"];
    let (report, _) = on_host("none", &more);
    assert_eq!(report["ram"]["placement"], "above-4-gib");

    // EFR2 of the one says that the range counts, EFR2 of the other that it does not.
    for (tree, placement, base) in [
        ("server-6.12", "above-1-tib", 1u64 << 40),
        ("server-2k-6.17", "above-4-gib", 1 << 32),
    ] {
        let (report, stderr) = on_host(&format!("sysfs:{FIXTURES}/{tree}/sys"), &more);
        let ram = &report["ram"];
        assert_eq!(ram["placement"], placement, "{tree}: {stderr}");
        assert!(
            ram["reason"]
                .as_str()
                .is_some_and(|r| r.contains("HyperTransport"))
        );
        let regions = ram["regions"].as_array().expect("an array");
        let mut high = regions.iter().filter(|region| region["kind"] == "ram");
        assert_eq!(high.next_back().expect("a region")["base"], base, "{tree}");
        assert_eq!(report["scenarios"][0]["passed"], true);
    }
}
