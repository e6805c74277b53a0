//! Whole machines, saved, restored and moved between processes while the bare-metal guest runs.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amdvi_refvmm::kvm::probe;
use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

/// Names the payload's ELF file.
const PAYLOAD: &str = "AMDVI_PAYLOAD";
/// Long, and busy with DMA and invalidations.
const BUSY: &str = "dma-invalidate";
/// A tenth as long, and busy with interrupts and invalidations, for what only needs a machine that runs.
const SHORT: &str = "msi-retarget";

/// What runs machines, and where their files are.
struct Lab {
    payload: PathBuf,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Option<Self> {
        if let Err(why) = probe() {
            eprintln!("skipped: {why}");
            return None;
        }
        let Some(payload) = std::env::var_os(PAYLOAD) else {
            eprintln!(
                "skipped: {PAYLOAD} does not name the payload's file; `cargo xtask test` sets it"
            );
            return None;
        };
        Some(Self {
            payload: payload.into(),
            folder: tempfile::tempdir().expect("a folder"),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A reference VMM for a scenario.
    fn command(&self, scenario: &str, args: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin("amdvi-refvmm"));
        command
            .args(["--accel", "kvm", "--json", "--scenario", scenario])
            .args(["--timeout", "120", "--payload"])
            .arg(&self.payload)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, scenario: &str, args: &[&str]) -> Ran {
        Ran::of(self.command(scenario, args).output().expect("it starts"))
    }

    fn start(&self, scenario: &str, args: &[&str]) -> Child {
        self.command(scenario, args).spawn().expect("it starts")
    }

    /// A machine that was saved while it was busy.
    fn saved(&self) -> PathBuf {
        let path = self.path("saved");
        let order = format!("40:suspend {}", path.display());
        let ran = self.run(SHORT, &["--at", &order]);
        assert_eq!(ran.gone(), Some("saved"), "{ran:?}");
        path
    }
}

/// How a reference VMM ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    scenario: Value,
    errors: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last = stdout.lines().last().unwrap_or_default();
        let report: Value = serde_json::from_str(last).unwrap_or_default();
        Self {
            code: output.status.code(),
            scenario: report["scenarios"][0].clone(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn passed(&self) -> bool {
        self.scenario["passed"] == true && self.code == Some(0)
    }

    fn gone(&self) -> Option<&str> {
        self.scenario["gone"].as_str()
    }

    /// The answer to a command that was due at a time.
    fn answer(&self) -> Value {
        let line = self
            .errors
            .lines()
            .find(|line| line.starts_with("{\"error\"") || line.contains("\"ok\":"));
        serde_json::from_str(line.unwrap_or_else(|| panic!("no answer: {}", self.errors)))
            .expect("JSON")
    }
}

fn wait(child: Child) -> Ran {
    Ran::of(child.wait_with_output().expect("it ends"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Numbers that differ from run to run; the first is printed, for who wants them again.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = now.map_or(1, |now| now.subsec_nanos().into()) | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn machines_saved_at_random_moments_come_to_a_good_end_in_other_processes() {
    let Some(lab) = Lab::new() else { return };
    let mut random = Random::new();
    let path = lab.path("vm");
    let mut saves = 0;
    for scenario in [
        BUSY,
        "msi-retarget",
        "intremap-2k",
        "save-restore-dma",
        "ioapic",
        "pri",
        "ats",
        "dma-nested",
    ] {
        let mut here = 0;
        loop {
            let order = format!("{}:suspend {}", 5 + random.below(150), path.display());
            let mut args = Vec::new();
            if here > 0 {
                args.extend(["--restore", path.to_str().expect("UTF-8")]);
            }
            if here < 6 {
                args.extend(["--at", &order]);
            }
            let ran = lab.run(scenario, &args);
            if ran.gone() != Some("saved") {
                assert!(ran.passed(), "{scenario}, saved {here} times: {ran:?}");
                break;
            }
            here += 1;
        }
        saves += here;
    }
    eprintln!("saved and restored {saves} times");
    assert!(saves >= 12, "{saves}: the moments were badly chosen");
}

#[test]
fn vectors_may_come_another_way_after_a_restore() {
    let Some(lab) = Lab::new() else { return };
    let mut random = Random::new();
    let path = lab.path("vm");
    let name = path.to_str().expect("UTF-8");
    // In the end by irqfds, however far the guest came before.
    let ways = ["irqfd", "signal", "irqfd", "irqfd"];
    for first in ["signal", "irqfd"] {
        let mut by_irqfd = Vec::new();
        for here in 0.. {
            let way = if here == 0 { first } else { ways[here - 1] };
            let order = format!("{}:suspend {name}", 60 + random.below(60));
            let mut args = vec!["--interrupts", way];
            if here > 0 {
                args.extend(["--restore", name]);
            }
            if here < 4 {
                args.extend(["--at", &order]);
            }
            let ran = lab.run(SHORT, &args);
            by_irqfd.push((way, ran.scenario["routes"]["by_irqfd"].as_u64()));
            if ran.gone() != Some("saved") {
                assert!(ran.passed(), "saved {here} times: {ran:?}");
                assert!(here >= 1, "{ran:?}");
                break;
            }
        }
        eprintln!("interrupts by irqfds: {by_irqfd:?}");
        for (way, count) in &by_irqfd {
            assert_eq!(count.is_some(), *way == "irqfd");
        }
        // Routes are made again from the guest's tables.
        let count = |(_, count): &(&str, Option<u64>)| count.unwrap_or(0) > 0;
        assert!(by_irqfd[1..].iter().any(count), "{by_irqfd:?}");
    }
}

#[test]
fn a_machine_moves_live_and_both_sides_say_so() {
    let Some(lab) = Lab::new() else { return };
    let socket = lab.path("socket");
    let name = socket.to_str().expect("UTF-8");
    let there = lab.start(BUSY, &["--incoming", name]);
    until("a listener", || socket.exists());
    let here = lab.run(BUSY, &["--at", &format!("200:migrate {name}")]);
    assert_eq!(here.gone(), Some("moved"), "{here:?}");
    let moved = &here.answer()["migrated"];
    assert!(
        moved["downtime_us"].as_u64().is_some_and(|us| us > 0),
        "{moved}"
    );
    assert!(moved["rounds"].as_u64() >= Some(1), "{moved}");
    eprintln!("{moved}");
    let there = wait(there);
    assert!(there.passed(), "{there:?}");
}

#[test]
fn a_saved_machine_and_one_that_goes_on_are_the_same() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("vm");
    let name = path.to_str().expect("UTF-8");
    let ran = lab.run(
        SHORT,
        &[
            "--at",
            &format!("20:save {name}"),
            "--at",
            &format!("40:save {name}"),
        ],
    );
    assert!(ran.passed(), "{ran:?}");
    assert_eq!(ran.answer()["ok"], true, "{ran:?}");
    let restored = lab.run(SHORT, &["--restore", name]);
    assert!(restored.passed(), "{restored:?}");
}

#[test]
fn files_that_are_no_saved_machine_or_a_damaged_one_are_refused_and_stay() {
    let Some(lab) = Lab::new() else { return };
    let whole = fs::read(lab.saved()).unwrap();
    let mut random = Random::new();
    let path = lab.path("bad");
    let name = path.to_str().expect("UTF-8");
    let mut newer = whole.clone();
    newer[12] += 1;
    let mut damaged = whole.clone();
    let at = 16 + random.below(whole.len() as u64 - 16) as usize;
    damaged[at] ^= 1 << random.below(8);
    let cut = 17 + random.below(whole.len() as u64 - 17) as usize;
    for (what, bytes, part) in [
        ("cut off", whole[..cut].to_vec(), "it ends in the middle"),
        ("damaged", damaged, "earlier save"),
        ("newer", newer, "or with a newer one"),
        (
            "foreign",
            b"\x7fELF and so on".to_vec(),
            "not a saved machine",
        ),
        ("empty", Vec::new(), "not a saved machine"),
        ("longer", [&whole[..], b"x"].concat(), "something follows"),
    ] {
        fs::write(&path, &bytes).unwrap();
        let ran = lab.run(SHORT, &["--restore", name]);
        let detail = ran.scenario["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains(part) && detail.contains(name),
            "{what}: {ran:?}"
        );
        assert_eq!(ran.code, Some(1), "{what}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}");
    }
    let ran = lab.run(SHORT, &["--restore", "/nowhere/vm"]);
    assert!(
        ran.scenario["detail"].to_string().contains("/nowhere/vm"),
        "{ran:?}"
    );
}

#[test]
fn another_machine_is_refused_with_the_option_that_differs() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.saved();
    let name = path.to_str().expect("UTF-8");
    for (scenario, args, option) in [
        (SHORT, &["--cpus", "7"][..], "--cpus"),
        (SHORT, &["--memory", "128M"], "--memory"),
        ("save-restore-dma", &["--cpus", "3"], "--scenario"),
        (
            SHORT,
            &["--device", "amd-iommu,dma-remap=on,hats=5"],
            "--device",
        ),
    ] {
        let ran = lab.run(scenario, &[&["--restore", name], args].concat());
        let detail = ran.scenario["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains(&format!("{option}: the saved machine has")),
            "{option}: {ran:?}"
        );
    }
    let ran = lab.run(SHORT, &["--restore", name]);
    assert!(ran.passed(), "{ran:?}");
}

#[test]
fn a_process_that_is_killed_while_it_saves_leaves_the_earlier_save() {
    let Some(lab) = Lab::new() else { return };
    let mut random = Random::new();
    let path = lab.saved();
    let name = path.to_str().expect("UTF-8");
    // Saves without a pause between them.
    let orders: Vec<_> = (0..400)
        .map(|n| format!("{}:save {name}", 10 + n))
        .collect();
    let args: Vec<_> = orders.iter().flat_map(|order| ["--at", order]).collect();
    let mut partial = 0;
    for _ in 0..4 {
        let mut child = lab.start(SHORT, &args);
        let unfinished = lab.path("saved.partial");
        until("a save", || unfinished.exists());
        std::thread::sleep(Duration::from_millis(random.below(150)));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        partial += u32::from(unfinished.exists());
        let ran = lab.run(SHORT, &["--restore", name]);
        assert!(ran.passed(), "{ran:?}");
    }
    eprintln!("killed in the middle of a save {partial} times of 4");
    // What is left behind is in nobody's way.
    let ran = lab.run(SHORT, &["--at", &format!("20:suspend {name}")]);
    assert_eq!(ran.gone(), Some("saved"), "{ran:?}");
}

#[test]
fn a_save_that_fails_leaves_the_machine_running_and_says_why() {
    let Some(lab) = Lab::new() else { return };
    let disk = lab.path("disk.img");
    fs::write(&disk, [7; 512]).unwrap();
    for (target, part) in [
        (disk.to_str().expect("UTF-8"), "not a saved machine"),
        ("/nowhere/vm", "No such file"),
        ("/dev/full", "no regular file"),
    ] {
        let ran = lab.run(SHORT, &["--at", &format!("20:suspend {target}")]);
        assert!(ran.passed(), "{ran:?}");
        let error = ran.answer()["error"].to_string();
        assert!(error.contains(part) && error.contains(target), "{error}");
    }
    assert_eq!(fs::read(&disk).unwrap(), [7; 512]);
}

#[test]
fn a_full_disk_costs_the_save_and_neither_the_machine_nor_the_earlier_save() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.saved();
    let earlier = fs::read(&path).unwrap();
    for order in ["save", "suspend"] {
        let at = format!("20:{order} {}", path.display());
        let command = lab.command(SHORT, &["--at", &at]);
        // Files of this process may have 50 KiB, which makes of writing more an error as that of a full disk.
        let ran = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .output();
        let ran = Ran::of(ran.expect("it starts"));
        assert!(ran.passed(), "{order}: {ran:?}");
        let error = ran.answer()["error"].to_string();
        assert!(
            error.contains("File too large") && error.contains("saved"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), earlier, "{order}");
        assert!(!lab.path("saved.partial").exists(), "{order}");
    }
}

#[test]
fn until_it_is_handed_over_the_machine_is_the_source_s() {
    let Some(lab) = Lab::new() else { return };
    let socket = lab.path("socket");
    let name = socket.to_str().expect("UTF-8");
    let order = format!("20:migrate {name}");

    // Nobody is there.
    let ran = lab.run(SHORT, &["--at", &order]);
    assert!(ran.passed(), "{ran:?}");
    assert!(
        ran.answer()["error"].to_string().contains("--incoming"),
        "{ran:?}"
    );

    // Another machine is there.
    let there = lab.start(SHORT, &["--incoming", name, "--cpus", "7"]);
    until("a listener", || socket.exists());
    let ran = lab.run(SHORT, &["--at", &order]);
    assert!(ran.passed(), "{ran:?}");
    assert!(
        ran.answer()["error"].to_string().contains("--cpus"),
        "{ran:?}"
    );
    let there = wait(there);
    assert!(!there.passed() && there.scenario["detail"].to_string().contains("--cpus"));

    // Somebody who agrees to everything and goes before it is handed over: in the middle, and when
    // all has been sent.
    for bytes in [100_000, u64::MAX] {
        let listener = UnixListener::bind(&socket).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"ok\":true}\n").unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            let mut seen = Vec::new();
            let _ = (&mut stream).take(bytes).read_to_end(&mut seen);
            let text = String::from_utf8_lossy(&seen[seen.len().saturating_sub(3)..]).into_owned();
            assert_ne!(text, "go\n");
        });
        let ran = lab.run(SHORT, &["--at", &order]);
        assert!(ran.passed(), "{ran:?}");
        assert!(
            ran.answer()["error"].to_string().contains("goes on here"),
            "{ran:?}"
        );
        peer.join().unwrap();
        fs::remove_file(&socket).unwrap();
    }
}

#[test]
fn a_destination_that_gets_no_word_never_runs() {
    let Some(lab) = Lab::new() else { return };
    let saved = fs::read(lab.saved()).unwrap();
    let socket = lab.path("socket");
    let name = socket.to_str().expect("UTF-8");
    let there = lab.start(SHORT, &["--incoming", name]);
    until("a listener", || socket.exists());
    let mut stream = UnixStream::connect(&socket).unwrap();
    // A file is such a stream, but for the words.
    stream.write_all(&saved).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"ok\":true}\n");
    }
    drop((stream, answers));
    let there = wait(there);
    assert!(!there.passed(), "{there:?}");
    let detail = there.scenario["detail"].to_string();
    assert!(detail.contains("not handed over"), "{detail}");
}

#[test]
fn commands_on_a_socket_are_answered_by_lines_of_json() {
    let Some(lab) = Lab::new() else { return };
    let (socket, file) = (lab.path("control"), lab.path("vm"));
    let child = lab.start(BUSY, &["--control", socket.to_str().expect("UTF-8")]);
    until("the socket", || UnixStream::connect(&socket).is_ok());
    let stream = UnixStream::connect(&socket).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut ask = |command: &str| -> Value {
        writeln!(&stream, "{command}").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(ask("status")["status"]["running"], true);
    let answer = ask("dance");
    assert_eq!(answer["ok"], false);
    assert!(answer["error"].to_string().contains("known: save FILE"));
    let answer = ask(&format!("save {}", file.display()));
    assert_eq!(
        answer["saved"]["bytes"],
        fs::metadata(&file).unwrap().len(),
        "{answer}"
    );
    assert_eq!(ask("quit")["ok"], true);
    let ran = wait(child);
    assert_eq!(ran.gone(), Some("ended"), "{ran:?}");
    assert!(!Path::new(&socket).exists());
    let restored = lab.run(BUSY, &["--restore", file.to_str().expect("UTF-8")]);
    assert!(restored.passed(), "{restored:?}");
}
