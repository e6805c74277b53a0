//! The command line, as a user sees it.

use assert_cmd::Command;
use serde_json::Value;

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
        assert!(stderr.contains(part), "{part}: {stderr}");
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
        ("segment=1", "segment 0 only"),
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
    assert!(stderr.contains("PASSED"), "{stderr}");
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
    assert!(stderr.contains("512 interrupts per function"), "{stderr}");
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
    assert!(stderr.contains("FAILED: 1 of 1 scenarios"), "{stderr}");
}

#[test]
fn kvm_without_a_payload_is_refused_with_what_to_do() {
    let (status, _, stderr) = refvmm(&["--accel", "kvm", "--scenario", "discover"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("--accel kvm"), "{stderr}");
}
