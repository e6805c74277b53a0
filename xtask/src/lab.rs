//! `cargo xtask lab`: what needs more than a Rust toolchain, fetched once into a cache.
//!
//! QEMU comes from the package mirror that this machine's apt is configured with, in packages that
//! are unpacked into the cache and run from there with their own libraries: nothing is installed,
//! and root is not needed.

mod build;
mod compare;
mod direct;
mod emulator;
mod guest;
mod host;
mod host_checks;
mod journey;
mod kernels;
pub(crate) mod linux;
pub(crate) mod matrix;
mod nested;
mod packages;
mod programs;
mod stress;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step::{Outcome, Steps, cargo, describe};

/// Where the lab keeps what it fetches; shared by all checkouts.
const CACHE_VARIABLE: &str = "AMDVI_LAB_CACHE";
/// A QEMU to use instead of the lab's own.
const QEMU_VARIABLE: &str = "AMDVI_LAB_QEMU";
/// The suites that have QEMU 11.1 and what it needs.
const SUITE: &str = "trixie";
const BACKPORTS: &str = "trixie-backports";
const PACKAGE: &str = "qemu-system-x86";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The devices and the accelerator that the differential run uses.
const NEEDED_DEVICES: [&str; 3] = ["amd-iommu", "edu", "iommu-testdev"];

/// The step's name.
const SCENARIOS: &str = "scenarios, KVM that runs Linux";

/// Arguments of `cargo xtask lab`.
#[derive(clap::Subcommand)]
pub(crate) enum Args {
    /// Fetch what the lab tier needs into its cache: QEMU and Debian's kernels
    Setup,
    /// Build the lab's own kernel, once: what no kernel of Debian's has
    Kernel,
    /// Run amdvi-hostcap inside guests, on Debian's kernels and on the lab's own
    Host {
        /// Only tests whose names contain this
        filter: Option<String>,
    },
    /// Run the bare-metal scenarios on a KVM that can run Linux, an emulated one if need be
    Scenarios,
    /// List the rows of the acceptance matrix
    List,
    /// Run rows of the acceptance matrix: Linux on the reference VMM
    ///
    /// Exits with 0 when all passed and 1 when one failed or could not be run.
    Run {
        /// Rows: `M4` for all whose names begin so, `M4-2k`, `M4-2k/debian-7`
        #[arg(required_unless_present_any = ["all", "subset"])]
        rows: Vec<String>,
        /// Every row
        #[arg(long, conflicts_with = "rows")]
        all: bool,
        /// The rows that `cargo xtask test --lab` runs
        #[arg(long, conflicts_with_all = ["rows", "all"])]
        subset: bool,
    },
    /// Linux under load: interrupts that fire while they move, processors that leave and come back,
    /// mappings, disks and networks, all at once
    ///
    /// Exits with 0 when nothing was lost, came twice or differed, and 1 otherwise.
    Stress(stress::Args),
    /// Boot the machine of a row to a shell on its serial console
    Shell {
        /// The row, such as `M4-2k/debian-7`
        #[arg(default_value = "M2/debian-7")]
        row: String,
    },
    /// Measure Linux on the reference VMM and on QEMU, with and without an IOMMU
    ///
    /// Exits with 0 when all runs gave all numbers, and with 1 when one did not.
    Compare(compare::Args),
    /// Compare our device with QEMU's amd-iommu on random cases
    #[command(disable_help_flag = true)]
    Diff {
        /// --cases N, --seed SEED, --case NUMBER: see `cargo xtask lab diff --help`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        rest: Vec<String>,
    },
}

/// Runs a part of the lab.
pub(crate) fn lab(args: &Args) -> Result<ExitCode> {
    match args {
        Args::Setup => {
            let qemu = qemu()?;
            let cache = cache()?;
            kernels::debian(&cache, kernels::Debian::V6_12)?;
            kernels::debian(&cache, kernels::Debian::V7)?;
            println!("the lab is set up; QEMU is {}", qemu.display());
            if build::cached(&cache).is_none() {
                println!("its own kernel is not built yet: `cargo xtask lab kernel`");
            }
            Ok(ExitCode::SUCCESS)
        }
        Args::Kernel => {
            let kernel = build::built(&cache()?)?;
            println!("Linux {} is {}", kernel.release(), kernel.image().display());
            Ok(ExitCode::SUCCESS)
        }
        Args::Host { filter } => {
            let mut steps = Steps::default();
            for set in [host::Set::Debian, host::Set::Built] {
                let filter = filter.as_deref();
                if filter.is_none_or(|filter| host::names(set).any(|name| name.contains(filter))) {
                    steps.run(set.title(), || host::step(set, filter));
                }
            }
            Ok(ExitCode::from(u8::from(!steps.summary())))
        }
        Args::Scenarios => {
            let mut steps = Steps::default();
            steps.run(SCENARIOS, matrix::scenarios_step);
            Ok(ExitCode::from(u8::from(!steps.summary())))
        }
        Args::List => {
            matrix::list();
            Ok(ExitCode::SUCCESS)
        }
        Args::Run { rows, all, subset } => {
            let chosen: Vec<_> = match (all, subset) {
                (true, _) => matrix::all().collect(),
                (_, true) => matrix::subset().collect(),
                _ => matrix::choose(rows)?,
            };
            let mut steps = Steps::default();
            matrix::steps(&mut steps, chosen.into_iter());
            Ok(ExitCode::from(u8::from(!steps.all_passed())))
        }
        Args::Stress(args) => {
            let mut steps = Steps::default();
            steps.run(stress::NAME, || stress::step(args));
            Ok(ExitCode::from(u8::from(!steps.all_passed())))
        }
        Args::Shell { row } => {
            matrix::shell(row)?;
            Ok(ExitCode::SUCCESS)
        }
        Args::Compare(args) => compare::run(args),
        Args::Diff { rest } => {
            let status = diff(&qemu()?, rest)
                .status()
                .context("cannot start cargo")?;
            // cargo passes on the code of what it runs.
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(ExitCode::from(code.unwrap_or(2)))
        }
    }
}

/// The step of the lab tier.
pub(crate) fn diff_step() -> Result<Outcome> {
    let qemu = match qemu() {
        Ok(qemu) => qemu,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    let mut command = diff(&qemu, &[]);
    Ok(if crate::step::succeeded(&mut command)? {
        Outcome::Passed("every difference from QEMU is explained".into())
    } else {
        Outcome::Failed(format!("`{}` failed, see above", describe(&command)))
    })
}

/// The step that runs the scenarios where KVM is real.
pub(crate) fn scenarios_step(steps: &mut Steps) {
    steps.run(SCENARIOS, matrix::scenarios_step);
}

/// The steps that boot Linux on the reference VMM: every row of the matrix, or some of them.
pub(crate) fn matrix_steps(steps: &mut Steps, all: bool) {
    if all {
        matrix::steps(steps, matrix::all());
    } else {
        matrix::steps(steps, matrix::subset());
    }
}

/// The step that puts Linux under load for as long as one likes to wait every day.
pub(crate) fn stress_step(steps: &mut Steps) {
    steps.run(stress::NAME, || stress::step(&stress::Args::default()));
}

/// The steps that run amdvi-hostcap on real kernels, the quick one first.
pub(crate) fn host_steps(steps: &mut Steps) {
    for set in [host::Set::Debian, host::Set::Built] {
        steps.run(set.title(), || host::step(set, None));
    }
}

fn diff(qemu: &Path, rest: &[String]) -> Command {
    let mut command = cargo();
    command
        .args([
            "run",
            "--quiet",
            "--release",
            "-p",
            "amdvi-lab",
            "--",
            "diff",
        ])
        .arg("--qemu")
        .arg(qemu)
        .args(rest);
    command
}

/// The cache folder: it survives `cargo clean`.
fn cache() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = variable(CACHE_VARIABLE)
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("amdvi-lab")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/amdvi-lab")))
        .with_context(|| format!("neither HOME nor {CACHE_VARIABLE} is set"))?;
    fs::create_dir_all(&folder).with_context(|| {
        format!(
            "cannot create {}; {CACHE_VARIABLE} names another folder",
            folder.display()
        )
    })?;
    folder
        .canonicalize()
        .with_context(|| format!("cannot find {}", folder.display()))
}

/// A QEMU that can run the differential test, fetched if necessary.
fn qemu() -> Result<PathBuf> {
    if let Some(qemu) = std::env::var_os(QEMU_VARIABLE).filter(|value| !value.is_empty()) {
        let qemu = PathBuf::from(qemu);
        check(&qemu).with_context(|| format!("{QEMU_VARIABLE}={} is of no use", qemu.display()))?;
        return Ok(qemu);
    }
    let cache = cache()?;
    let launcher = cache.join("qemu/run");
    if launcher.exists() && bundle(&cache.join("qemu")).is_ok() && check(&launcher).is_ok() {
        return Ok(launcher);
    }
    fetch(&cache)?;
    check(&launcher)?;
    Ok(launcher)
}

/// Whether a QEMU has what the lab needs.
///
/// It is asked for each device by name: to list all of them it would load every module that it finds, and
/// on a machine where another QEMU is installed it finds that one's, too, and ends.
fn check(qemu: &Path) -> Result<()> {
    for device in NEEDED_DEVICES {
        let output = Command::new(qemu)
            .args(["-M", "none", "-device", &format!("{device},help")])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", qemu.display()))?;
        // It ends with success whether it knows the device or not.
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains(&format!("{device} options")) {
            bail!("it has no device {device}: QEMU 11.1 or later is needed");
        }
    }
    Ok(())
}

/// Fetches and unpacks QEMU. The result appears in the cache at once, when it is complete.
fn fetch(cache: &Path) -> Result<()> {
    let start = Instant::now();
    for tool in ["apt-get", "dpkg-deb"] {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            bail!(
                "`{tool}` is not here: install QEMU 11.1 or later and name its qemu-system-x86_64 \
                 in {QEMU_VARIABLE}"
            );
        }
    }
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing: install the package debian-archive-keyring");
    }
    let mirror = mirror()?;
    // Folders of this process: another checkout may be setting itself up too.
    let downloads = cache.join(format!("apt.{}", std::process::id()));
    let new = cache.join(format!("qemu.new.{}", std::process::id()));
    let unpacked = unpack(&mirror, &downloads, &new);
    // The packages are in use no more. What can't be removed does no harm.
    let _ = fs::remove_dir_all(&downloads);
    if let Err(error) = unpacked {
        let _ = fs::remove_dir_all(&new);
        return Err(error);
    }
    let place = cache.join("qemu");
    if place.exists() {
        fs::remove_dir_all(&place).context("cannot remove the QEMU of before")?;
    }
    fs::rename(&new, &place).context("cannot put the new QEMU in its place")?;
    println!(
        "lab: QEMU is ready after {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Downloads QEMU into `downloads` and unpacks it in `new`.
fn unpack(mirror: &str, downloads: &Path, new: &Path) -> Result<()> {
    let apt = Apt::new(downloads, mirror, &[SUITE, BACKPORTS])?;
    println!("lab: reading the package lists of {SUITE} (15 MB)");
    apt.run(&["update"]).context(
        "the package lists can't be read: is there a network, and has the mirror of this \
         machine's apt sources the suite?",
    )?;
    println!("lab: fetching {PACKAGE} and its libraries (40 MB)");
    apt.run(&[
        "install",
        "--yes",
        "--download-only",
        "-t",
        BACKPORTS,
        PACKAGE,
    ])?;

    println!("lab: unpacking");
    let root = new.join("root");
    fs::create_dir_all(&root)?;
    for package in fs::read_dir(downloads.join("cache/archives"))? {
        let package = package?.path();
        if package
            .extension()
            .is_none_or(|extension| extension != "deb")
        {
            continue;
        }
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&package).arg(&root);
        if !unpack.status()?.success() {
            bail!("`{}` failed", describe(&unpack));
        }
    }
    let launcher = new.join("run");
    fs::write(&launcher, LAUNCHER)?;
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))?;
    bundle(new)?;
    check(&launcher).context("the unpacked QEMU doesn't run")
}

/// Where QEMU's libraries are in the unpacked packages.
const LIBRARIES: &str = "root/usr/lib/x86_64-linux-gnu";

/// Keeps the unpacked QEMU to itself. Where the machine has a QEMU of its own, this one would load
/// that one's modules besides its own, which end it; unless this folder is beside its program.
fn bundle(qemu: &Path) -> Result<()> {
    // The program is started by the loader among the libraries: to it that is where it is.
    let folder = qemu.join(LIBRARIES).join("qemu-bundle");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Runs the unpacked QEMU with the libraries that were unpacked with it.
const LAUNCHER: &str = r#"#!/bin/sh
root=$(dirname -- "$(readlink -f -- "$0")")/root
libraries=$root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$libraries/qemu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"#;

/// The package mirror of this machine, taken from its apt sources.
fn mirror() -> Result<String> {
    let mut folders = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        folders.extend(parts.flatten().map(|entry| entry.path()));
    }
    folders
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| mirror_in(&text))
        .context(
            "no Debian mirror in this machine's apt sources: install QEMU 11.1 or later and name \
             its qemu-system-x86_64 in AMDVI_LAB_QEMU",
        )
}

/// The first mirror of Debian itself (not of its security updates) in an apt source list of either
/// format.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// An apt with a state of its own: it neither sees nor changes what is installed.
struct Apt<'a> {
    folder: &'a Path,
}

impl<'a> Apt<'a> {
    fn new(folder: &'a Path, mirror: &str, suites: &[&str]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        let source = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        let sources: String = suites.iter().map(source).collect();
        fs::write(folder.join("sources.list"), sources)?;
        Ok(Self { folder })
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        self.output("apt-get", args).map(drop)
    }

    /// What apt-get or apt-cache prints. Packages are downloaded into the folder.
    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(self.folder);
        for (option, value) in [
            ("Dir::State", "state"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Cache", "cache"),
        ] {
            let value = self.folder.join(value);
            command
                .arg("-o")
                .arg(format!("{option}={}", value.display()));
        }
        command
            .args([
                "-o",
                "Dir::Etc::sourceparts=-",
                "-o",
                "Debug::NoLocking=true",
            ])
            .args(["-o", "APT::Install-Recommends=false"])
            // Else an unreachable mirror is a mere warning.
            .args(["-o", "APT::Update::Error-Mode=any"])
            // The user that apt drops to can't read a home directory.
            .args(["-o", "APT::Sandbox::User="])
            .args(["-o", "APT::Architecture=amd64"])
            .args(args)
            .stdin(Stdio::null());
        let output = command
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            bail!(
                "`{program} {}` failed:\n{}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_either_format_of_apt_sources() {
        let expected = Some("http://mirror.example/debian".to_owned());
        let deb822 = "Types: deb\n# URIs: http://old.example/debian\n\
                      URIs: http://mirror.example/debian\nSuites: stable\n";
        assert_eq!(mirror_in(deb822), expected);
        let one_line = "deb https://tools.example/apt stable main\n\
                        deb [arch=amd64] http://mirror.example/debian stable main\n";
        assert_eq!(mirror_in(one_line), expected);
        assert_eq!(
            mirror_in("URIs: http://mirror.example/debian-security\n"),
            None
        );
    }
}
