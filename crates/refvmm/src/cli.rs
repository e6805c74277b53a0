//! The command line.

mod board;
mod devices;
mod linux;
mod saving;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_guest::boot::MAX_CPUS;
use amdvi_guest::scenarios;
use amdvi_hostcap::HostCapSpec;
use clap::{Parser, ValueEnum};

use board::BoardArgs;
use linux::LinuxArgs;
use saving::SavingArgs;

use crate::board::DeviceError;
use crate::kvm::Payload;
use crate::linux::json as json_of_linux;
use crate::ram::{Heap, RamSize, RamWish};
use crate::report::{Human, Summary, json};
use crate::run::host::{HostIommu, HostKvm};
use crate::run::machine::{Device, Machine};
use crate::run::plan::{self, Plan, Wishes};
use crate::run::{self, Accel, Interrupts, Saving};

/// The device when `--device` is not given.
pub const DEFAULT_DEVICE: &str = "amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on";

/// What KVM has room for; the host's may have less.
const MOST_CPUS: usize = 1024;
/// Seconds that a scenario may take.
const SCENARIO_TIMEOUT: u64 = 60;
/// Exit status when a scenario failed.
const FAILED: u8 = 1;
/// Exit status when the run could not start; clap's own for a bad command line, too.
const UNUSABLE: u8 = 2;

/// Runs a guest on an emulated AMD IOMMU and reports what it saw.
///
/// The guest finds the IOMMU through PCI and ACPI, programs it and receives interrupts through its
/// Interrupt Remapping Table: 2048 of them where that is offered, else 512.
#[derive(Debug, Parser)]
#[command(name = "amdvi-refvmm", version, after_help = after_help())]
pub struct Cli {
    /// The IOMMU, as a property string; see below.
    ///
    /// Without it each scenario brings its own device. With it they run on this one, but for those
    /// that it can't stand in for: a scenario about a feature that it does not have, or about the
    /// absence of one that it has, keeps its own and says so. A scenario that --scenario names and
    /// that needs a feature is run without it, and fails.
    ///
    /// With --kernel it can be given several times, for several IOMMUs.
    #[arg(long, value_name = "STRING", value_parser = str::parse::<Device>)]
    device: Vec<Device>,

    /// Where it is known from what the host's IOMMU can do, such as `auto` or `mock:numint2k=off`;
    /// see below.
    ///
    /// The guest is offered what the host is shown to keep up for functions that are passed
    /// through; what a source can't tell counts as no, and the report says which could not tell
    /// and why. Without the option each scenario brings its own host; with it, the rules of
    /// --device hold.
    #[arg(long, value_name = "SPEC", value_parser = str::parse::<HostCapSpec>)]
    host_caps: Option<HostCapSpec>,

    /// RAM: bytes, or with K, M, G or T; 64M to 4T [default: 64M, for Linux 1G]
    ///
    /// What does not fit below the BARs at 3 GiB lies from 4 GiB on; or, where the host may have
    /// the HyperTransport range below 1 TiB and is not shown to ignore it, from 1 TiB on. The
    /// host's memory is taken only for what the guest writes.
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<RamSize>)]
    memory: Option<RamSize>,

    /// Where the guest has its tables, rings and DMA buffers
    #[arg(long, value_enum, default_value_t = Heap::Low)]
    heap: Heap,

    /// What runs the guest; `auto` takes KVM where it is usable and says so where it is not
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,

    /// How the MSI-X vectors of devices reach the CPUs of a virtual machine
    #[arg(long, value_enum, default_value_t)]
    interrupts: Interrupts,

    /// Runs only this scenario; can be given several times
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,

    /// CPUs of the machine; a scenario that needs more gets more, and none has more than 16
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<usize>,

    /// Prints one JSON object as the last line of stdout; what is for people goes to stderr
    #[arg(long)]
    json: bool,

    /// The guest's program for KVM, an ELF file
    #[arg(long, value_name = "PATH")]
    payload: Option<PathBuf>,

    /// Lists the scenarios and ends
    #[arg(long)]
    list: bool,

    /// Seconds after which a scenario that gave no result, or a Linux guest that did not end, has
    /// failed [default: 60, for Linux none]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: Option<u64>,

    #[command(flatten)]
    linux: LinuxArgs,

    #[command(flatten)]
    board: BoardArgs,

    #[command(flatten)]
    saving: SavingArgs,
}

/// The sources of `--host-caps`: how each is written, and what it knows.
const HOST_CAPS: [(&str, &str); 10] = [
    (
        "none",
        "no function is passed through: nothing depends on the host",
    ),
    ("auto", "sysfs, debugfs, and iommufd for what is bound"),
    (
        "sysfs[:ROOT]",
        "EFR and EFR2 of every IOMMU, below /sys or ROOT",
    ),
    ("debugfs[:ROOT]", "the control registers (root)"),
    (
        "iommufd[:PATH][,FUNCTION[=DEVICE]...]",
        "IOMMU_GET_HW_INFO of functions bound to VFIO",
    ),
    (
        "kvm:NUMBER[,dev=PATH]",
        "a KVM capability that promises 2K; none is assigned upstream",
    ),
    (
        "legacy-vfio",
        "a legacy VFIO container, which knows nothing: 512",
    ),
    (
        "kernel-inference[:ROOT]",
        "a conclusion: Linux 6.15, EFR2 and remapped interrupts mean 2K",
    ),
    (
        "file:PATH",
        "what `amdvi-hostcap probe --json` printed on any host",
    ),
    (
        "mock:NAME=VALUE,...",
        "a host described by hand; unnamed is unknown, which is not yes",
    ),
];

/// `--accel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AccelChoice {
    /// KVM if it is usable, else in-process
    Auto,
    /// A virtual machine
    Kvm,
    /// The same scenarios in this process
    InProcess,
}

fn after_help() -> String {
    let mut text = format!("Devices:\n{}", amdvi_device::options::help());
    text.push_str("\nHost capabilities:\n");
    for (spec, about) in HOST_CAPS {
        text.push_str(&format!("  {spec:<40} {about}\n"));
    }
    text.push_str("\nScenarios:\n");
    for scenario in scenarios::ALL {
        text.push_str(&format!("  {:<20} {}\n", scenario.name, scenario.about));
    }
    text.push_str(
        "\nExit status: 0 all scenarios passed, Linux switched the machine off, or the machine was saved \
         or moved; 1 one failed, or Linux died; 2 the run could not start.",
    );
    text
}

fn parse_cpus(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(cpus) if (1..=MOST_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!(
            "accepted: 1 to {MAX_CPUS}, with --kernel 1 to {MOST_CPUS}"
        )),
    }
}

/// As many open files as the system allows: each vector that KVM delivers by a route has one, and 2048
/// are more than the 1024 that a process starts with. What can't be raised is told when it runs out.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        return list();
    }
    raise_file_limit();
    match execute(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

fn list() -> ExitCode {
    for scenario in scenarios::ALL {
        println!("{:<20} {}", scenario.name, scenario.about);
        println!("{:<20} on {}", "", scenario.needs.device);
        if !scenario.needs.host_caps.is_empty() {
            println!("{:<20} host capabilities: {}", "", scenario.needs.host_caps);
        }
    }
    ExitCode::SUCCESS
}

/// What runs the guest.
struct Choice {
    accel: Accel,
    why: String,
    phys_bits: u8,
}

/// Chooses what runs the guest, or says why it can't be what was asked for.
fn choose(cli: &Cli, probe: impl FnOnce() -> HostKvm) -> Result<Choice, String> {
    let in_process = |why: String| {
        Ok(Choice {
            accel: Accel::InProcess,
            why,
            phys_bits: RamWish::default().phys_bits,
        })
    };
    let HostKvm { usable, phys_bits } = match cli.accel {
        AccelChoice::InProcess => return in_process("as --accel asks".into()),
        AccelChoice::Auto | AccelChoice::Kvm => probe(),
    };
    let must = cli.accel == AccelChoice::Kvm;
    match (usable, &cli.payload) {
        (Err(why), _) if must => Err(format!("--accel kvm: {why}")),
        (Err(why), _) => in_process(why),
        (Ok(_), None) if must => Err(
            "--accel kvm: the guest's program is missing; give --payload PATH, or start with \
             `cargo xtask run`, which builds it"
                .into(),
        ),
        (Ok(_), None) => in_process(
            "KVM is usable, but no --payload was given (`cargo xtask run` builds one)".into(),
        ),
        (Ok(offers), Some(payload)) => {
            let payload = Payload::from_file(payload).map_err(|e| format!("--payload: {e}"))?;
            Ok(Choice {
                accel: Accel::Kvm(payload),
                why: offers,
                phys_bits,
            })
        }
    }
}

/// `Ok(true)` when everything went well.
fn execute(cli: Cli) -> Result<bool, String> {
    match cli.linux.kernel.clone() {
        Some(kernel) => execute_linux(kernel, &cli),
        None => execute_scenarios(cli),
    }
}

fn execute_linux(kernel: PathBuf, cli: &Cli) -> Result<bool, String> {
    let default = default_device()?;
    let devices = if cli.device.is_empty() {
        std::slice::from_ref(&default)
    } else {
        &cli.device
    };
    let common = linux::Common {
        devices,
        host_caps: cli.host_caps.as_ref(),
        memory: cli.memory,
        cpus: cli.cpus.unwrap_or(1),
        timeout: cli.timeout.map(Duration::from_secs),
        interrupts: cli.interrupts,
        board: &cli.board,
        saving: &cli.saving,
    };
    let (machines, outcome) = linux::run(kernel, &cli.linux, &common)?;
    for problem in &outcome.problems {
        eprintln!("warning: {problem}");
    }
    eprintln!(
        "{} after {:.1} s",
        outcome.ended,
        outcome.elapsed.as_secs_f64()
    );
    if cli.json {
        // Whoever does not read it does not need it.
        let _ = writeln!(std::io::stdout(), "{}", json_of_linux(&machines, &outcome));
    }
    Ok(outcome.ended.is_good())
}

fn default_device() -> Result<Device, String> {
    DEFAULT_DEVICE
        .parse()
        .map_err(|error: DeviceError| error.to_string())
}

/// `Ok(true)` when every scenario passed.
fn execute_scenarios(mut cli: Cli) -> Result<bool, String> {
    if cli.device.len() > 1 {
        return Err("--device: the scenarios have one IOMMU; several are for --kernel".into());
    }
    if let Some(cpus) = cli.cpus.filter(|cpus| *cpus > MAX_CPUS) {
        return Err(format!("--cpus {cpus}: the scenarios have 1 to {MAX_CPUS}"));
    }
    let device = cli.device.pop();
    if device
        .as_ref()
        .is_some_and(|device| device.serves.is_some())
    {
        return Err("--device: `serves` is for several IOMMUs, which need --kernel".into());
    }
    let Choice {
        accel,
        why,
        phys_bits,
    } = choose(&cli, HostKvm::probe)?;
    let host = cli.host_caps.as_ref().map(HostIommu::ask);
    let ram = RamWish {
        size: cli.memory.unwrap_or_default(),
        heap: cli.heap,
        phys_bits,
    };
    let wishes = Wishes {
        device: device.clone(),
        host: host.clone(),
        ram,
        scenarios: cli.scenario.clone(),
        cpus: cli.cpus,
        interrupts: cli.interrupts,
    };
    let Plan { mut jobs, left_out } = plan::plan(&wishes).map_err(|error| error.to_string())?;
    let device = match device {
        Some(device) => device,
        None => default_device()?,
    };
    let host = host.unwrap_or_else(|| HostIommu::ask(&HostCapSpec::None));
    let machine = Machine::new(&device, &host, &ram).map_err(|error| error.to_string())?;

    if cli.saving.is_used() {
        let kvm = matches!(accel, Accel::Kvm(_));
        let [job] = &mut jobs[..] else {
            return Err("saving and restoring is for one machine: give one --scenario".into());
        };
        if !kvm {
            return Err(format!(
                "saving and restoring needs a virtual machine (--accel kvm): {why}"
            ));
        }
        let mut configuration = linux::machine_of(&job.apic_ids, &job.machine.ram);
        configuration.push("--scenario", job.scenario.name);
        configuration.push("--device", &job.machine.options);
        job.saving = Some(Saving {
            configuration,
            origin: cli.saving.origin(),
            orders: Arc::new(Mutex::new(cli.saving.orders()?)),
        });
    }

    // With --json stdout belongs to the program that reads it.
    let mut human = if cli.json {
        Human::new(Box::new(std::io::stderr()), std::io::stderr().is_terminal())
    } else {
        Human::new(Box::new(std::io::stdout()), std::io::stdout().is_terminal())
    };
    human.header(&accel, &why, &machine);
    let timeout = Duration::from_secs(cli.timeout.unwrap_or(SCENARIO_TIMEOUT));
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for job in &jobs {
        let progress = human.start(job, outcomes.len() + 1, jobs.len());
        let outcome = run::run(job, &accel, timeout);
        human.finish(progress, &outcome);
        outcomes.push(outcome);
    }
    let summary = Summary {
        accel: &accel,
        host: &why,
        machine: &machine,
        outcomes: &outcomes,
        left_out: &left_out,
    };
    human.verdict(&summary, started.elapsed());
    if cli.json {
        // Whoever does not read it does not need it.
        let _ = writeln!(std::io::stdout(), "{}", json(&summary));
    }
    Ok(summary.passed() || summary.gone().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_default_device_parses() {
        assert!(DEFAULT_DEVICE.parse::<Device>().is_ok());
    }

    #[test]
    fn auto_without_a_payload_is_in_process_and_says_why() {
        let cli = Cli::parse_from(["amdvi-refvmm"]);
        let kvm = HostKvm {
            usable: Ok("everything".into()),
            phys_bits: 48,
        };
        let Choice { accel, why, .. } = choose(&cli, || kvm).unwrap();
        assert!(matches!(accel, Accel::InProcess));
        assert!(why.contains("--payload"), "{why}");
    }

    #[test]
    fn auto_without_kvm_is_in_process_and_says_why() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--payload", "/dev/null"]);
        let kvm = HostKvm {
            usable: Err("no /dev/kvm".into()),
            phys_bits: 48,
        };
        let Choice { accel, why, .. } = choose(&cli, || kvm).unwrap();
        assert!(matches!(accel, Accel::InProcess));
        assert_eq!(why, "no /dev/kvm");
    }

    #[test]
    fn kvm_that_was_asked_for_and_is_not_usable_is_an_error() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--accel", "kvm"]);
        let none = HostKvm {
            usable: Err("no /dev/kvm".into()),
            phys_bits: 48,
        };
        assert!(choose(&cli, || none).err().unwrap().contains("no /dev/kvm"));
        let usable = HostKvm {
            usable: Ok("everything".into()),
            phys_bits: 48,
        };
        assert!(choose(&cli, || usable).err().unwrap().contains("--payload"));
    }

    #[test]
    fn a_payload_that_is_not_there_is_an_error() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--payload", "/nowhere/payload"]);
        let usable = HostKvm {
            usable: Ok("everything".into()),
            phys_bits: 48,
        };
        assert!(
            choose(&cli, || usable)
                .err()
                .unwrap()
                .contains("/nowhere/payload")
        );
    }
}
