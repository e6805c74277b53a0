//! The program, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amdvi-hostcap"))
        .args(args)
        .output()
        .unwrap()
}

fn text(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).unwrap()
}

fn fails(args: &[&str], code: i32) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// `sysfs:` and `debugfs:` of a tree.
fn host(name: &str) -> [String; 2] {
    let root = fixture(name);
    ["sys", "debug"].map(|part| format!("{part}fs:{}", root.join(part).display()))
}

/// Records a tree into a file.
fn record(name: &str, dir: &Path) -> String {
    let [sysfs, debugfs] = host(name);
    let path = dir.join(format!("{name}.json"));
    let recording = text(&[
        "probe",
        "--json",
        "--host-caps",
        &sysfs,
        "--host-caps",
        &debugfs,
    ]);
    std::fs::write(&path, recording).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn probe_of_this_machine_always_answers_and_says_what_was_not_asked() {
    let recording = json(&["probe", "--json"]);
    assert_eq!(recording["amdvi-hostcap"], 1);
    let not_asked = recording["not_asked"].as_array().unwrap();
    for source in ["iommufd", "kvm", "kernel-inference", "legacy-vfio"] {
        let entry = not_asked
            .iter()
            .find(|n| n["source"].as_str().unwrap().starts_with(source));
        assert!(!entry.unwrap()["why"].as_str().unwrap().is_empty());
    }
    assert!(text(&["probe"]).contains("Not asked:"));
}

#[test]
fn probe_shows_every_iommu_with_its_registers() {
    let [sysfs, debugfs] = host("server-2k-6.17");
    let table = text(&["probe", "--host-caps", &sysfs, "--host-caps", &debugfs]);
    for part in [
        "EFR=0x246577efa2254afa, EFR2=0x910",
        "CONTROL=0x000c2a000003f48d",
        "EFR2[9:8]=01b",
        "CONTROL[44:43]=01b",
        "ivhd1: 1 PCI functions",
        "hats ",
    ] {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }
    let hats = table
        .lines()
        .find(|line| line.starts_with("hats "))
        .unwrap();
    assert!(hats.contains(" 6 "), "{hats}");
}

#[test]
fn probe_reports_iommus_that_differ() {
    let [sysfs, debugfs] = host("server-2k-off-on-one-6.17");
    let args = ["probe", "--host-caps", &sysfs, "--host-caps", &debugfs];
    let table = text(&args);
    let at = table
        .find("Contradictions (the safe side counts):")
        .expect("no contradictions");
    assert!(
        table[at..].contains("numint2k kernel: off says debugfs:"),
        "{table}"
    );
    let recording = json(&[&args[..], &["--json"]].concat());
    let conflicts = recording["conflicts"].as_array().unwrap();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(
        (&conflicts[0]["subject"], &conflicts[0]["aspect"]),
        (&"numint2k".into(), &"kernel".into())
    );
}

/// On a machine that lets this user open KVM the real one is asked for a capability that nobody
/// has assigned, and elsewhere the error says what is missing.
#[test]
fn kvm_is_asked_for_real() {
    const UNASSIGNED: &str = "kvm:1000000";
    let output = run(&["probe", "--host-caps", UNASSIGNED]);
    let table = String::from_utf8(output.stdout).unwrap();
    let openable = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    assert_eq!(output.status.success(), openable, "{table}");
    let said = if openable {
        "KVM_CHECK_EXTENSION(1000000)=0, not supported"
    } else {
        "/dev/kvm: "
    };
    assert!(table.contains(said), "{table}");
}

#[test]
fn explain_decides_with_reasons() {
    let offer = json(&[
        "explain",
        "--json",
        "--request",
        "numint2k=on,hats=6",
        "--host-caps",
        "mock:numint2k=off,hats=5",
    ]);
    let decisions = offer["decisions"].as_array().unwrap();
    let find = |name: &str| decisions.iter().find(|d| d["feature"] == name).unwrap();
    let two_k = find("numint2k");
    assert_eq!(
        (&two_k["requested"], &two_k["granted"]),
        (&true.into(), &false.into())
    );
    assert!(
        two_k["reason"]
            .as_str()
            .unwrap()
            .contains("mock:numint2k=off")
    );
    // Levels are counted in full, as the option counts them.
    assert_eq!(
        (&find("hats")["requested"], &find("hats")["granted"]),
        (&6.into(), &5.into())
    );

    let table = text(&[
        "explain",
        "--request",
        "numint2k=on",
        "--host-caps",
        "legacy-vfio",
    ]);
    assert!(table.contains("always has 512 interrupts"), "{table}");
}

#[test]
fn a_recording_is_explained_as_the_host_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("file:{}", record("server-2k-6.17", dir.path()));
    let args = [
        "explain",
        "--json",
        "--request",
        "numint2k=on",
        "--host-caps",
    ];
    let of_file = json(&[&args[..], &[&file]].concat());
    let [sysfs, debugfs] = host("server-2k-6.17");
    let of_host = json(&[&args[..], &[&sysfs, "--host-caps", &debugfs]].concat());
    assert_eq!(of_file["decisions"][0]["granted"], true);
    assert_eq!(of_host["decisions"][0]["granted"], true);
    let reason = of_file["decisions"][0]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("in {file}")), "{reason}");
}

#[test]
fn plan_places_ram_and_says_why() {
    let plan = |tree: &str| {
        let [sysfs, _] = host(tree);
        json(&["plan", "--ram", "10G", "--json", "--host-caps", &sysfs])
    };
    let moved = plan("server-6.12");
    assert_eq!(moved["placement"], "above-1-tib");
    let high = moved["regions"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&high["base"], &high["size"]),
        (&(1u64 << 40).into(), &(7u64 << 30).into())
    );
    assert_eq!(plan("server-2k-6.17")["placement"], "above-4-gib");
    assert_eq!(plan("intel-6.12")["placement"], "above-4-gib");
    let table = text(&["plan", "--ram", "1G", "--host-caps", "mock:hthole=on"]);
    assert!(table.contains("all RAM fits below 4 GiB."), "{table}");
}

#[test]
fn baseline_names_the_host_that_takes_a_feature_away() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["server-2k-6.17", "server-6.12"].map(|name| record(name, dir.path()));
    let args = [
        "baseline",
        "--json",
        "--request",
        "numint2k=on,ga=on",
        &files[0],
        &files[1],
    ];
    let pool = json(&args);
    let features = pool["features"].as_array().unwrap();
    let find = |name: &str| features.iter().find(|f| f["feature"] == name).unwrap();
    assert_eq!(find("numint2k")["offered"], false);
    let taken = find("numint2k")["taken_by"].as_array().unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0]["host"], files[1].as_str());
    assert_eq!(find("ga")["offered"], true);
    let alone = json(&["baseline", "--json", &files[0]]);
    let two_k = &alone["features"].as_array().unwrap()[0];
    assert_eq!(two_k["offered"], true);
    let table = text(&["baseline", &files[0], &files[1]]);
    assert!(table.contains("does not support numint2k"), "{table}");
}

#[test]
fn exit_codes_tell_an_answer_a_failure_and_wrong_usage_apart() {
    let said = fails(&["explain", "--request", "numint4k=on"], 2);
    assert!(said.contains("no such feature: `numint4k`"), "{said}");
    let said = fails(&["probe", "--host-caps", "sysfz"], 2);
    assert!(said.contains("no source `sysfz`"), "{said}");
    fails(&["plan", "--ram", "ten"], 2);
    let said = fails(&["plan", "--ram", "1"], 1);
    assert!(said.contains("a multiple of 4096"), "{said}");
    let said = fails(&["probe", "--host-caps", "sysfs:/nonexistent"], 1);
    assert_eq!(said, "");
    let said = fails(
        &[
            "explain",
            "--request",
            "ga=on",
            "--host-caps",
            "sysfs:/nonexistent",
        ],
        1,
    );
    assert!(
        said.contains("/nonexistent/class/iommu: No such file"),
        "{said}"
    );
    let said = fails(&["baseline", "/nonexistent.json"], 1);
    assert!(said.contains("probe --json"), "{said}");
}

#[test]
fn help_names_privileges_and_exit_codes() {
    let help = text(&["--help"]);
    for part in [
        "Privileges:",
        "Exit codes:",
        "probe",
        "explain",
        "plan",
        "baseline",
    ] {
        assert!(help.contains(part), "{help}");
    }
    for command in ["probe", "explain", "plan", "baseline"] {
        assert!(text(&[command, "--help"]).contains("--json"));
    }
}
