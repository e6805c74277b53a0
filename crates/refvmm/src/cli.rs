//! The command line.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use amdvi_device::options::OptionError;
use amdvi_guest::boot::MAX_CPUS;
use amdvi_guest::scenarios;
use amdvi_hostcap::HostCapSpec;
use clap::{Parser, ValueEnum};

use crate::kvm::Payload;
use crate::report::{Human, Summary, json};
use crate::run::host::HostKvm;
use crate::run::machine::{Device, Machine};
use crate::run::plan::{self, Plan, Wishes};
use crate::run::{self, Accel};

/// The device when `--device` is not given.
pub const DEFAULT_DEVICE: &str = "amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on";

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
    #[arg(long, value_name = "STRING", value_parser = str::parse::<Device>)]
    device: Option<Device>,

    /// What the host can do: `none`, `legacy-vfio`, or `mock:NAME=VALUE,…`, such as
    /// `mock:numint2k=off`.
    ///
    /// `none`: no function is passed through, so that nothing depends on the host. Without the
    /// option each scenario brings its own host; with it, the rules of --device hold.
    #[arg(long, value_name = "SPEC", value_parser = str::parse::<HostCapSpec>)]
    host_caps: Option<HostCapSpec>,

    /// What runs the guest; `auto` takes KVM where it is usable and says so where it is not
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,

    /// Runs only this scenario; can be given several times
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,

    /// CPUs of the machine; a scenario that needs more gets more
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

    /// Seconds after which a scenario that gave no result has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,
}

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
    text.push_str("\nScenarios:\n");
    for scenario in scenarios::ALL {
        text.push_str(&format!("  {:<20} {}\n", scenario.name, scenario.about));
    }
    text.push_str(
        "\nExit status: 0 all scenarios passed, 1 one failed, 2 the run could not start.",
    );
    text
}

fn parse_cpus(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!("accepted: 1 to {MAX_CPUS}")),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        return list();
    }
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

/// Chooses what runs the guest, or says why it can't be what was asked for.
fn choose(cli: &Cli, probe: impl FnOnce() -> HostKvm) -> Result<(Accel, String), String> {
    let in_process = |why: String| Ok((Accel::InProcess, why));
    let usable = match cli.accel {
        AccelChoice::InProcess => return in_process("as --accel asks".into()),
        AccelChoice::Auto | AccelChoice::Kvm => probe().usable,
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
            Ok((Accel::Kvm(payload), offers))
        }
    }
}

/// `Ok(true)` when every scenario passed.
fn execute(cli: Cli) -> Result<bool, String> {
    let (accel, why) = choose(&cli, HostKvm::probe)?;
    let wishes = Wishes {
        device: cli.device.clone(),
        host_caps: cli.host_caps.clone(),
        scenarios: cli.scenario.clone(),
        cpus: cli.cpus,
    };
    let Plan { jobs, left_out } = plan::plan(&wishes).map_err(|error| error.to_string())?;
    let device = match cli.device {
        Some(device) => device,
        None => DEFAULT_DEVICE
            .parse()
            .map_err(|error: OptionError| error.to_string())?,
    };
    let machine = Machine::new(&device, &cli.host_caps.unwrap_or(HostCapSpec::None));

    // With --json stdout belongs to the program that reads it.
    let mut human = if cli.json {
        Human::new(Box::new(std::io::stderr()), std::io::stderr().is_terminal())
    } else {
        Human::new(Box::new(std::io::stdout()), std::io::stdout().is_terminal())
    };
    human.header(&accel, &why, &machine);
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for job in &jobs {
        let progress = human.start(job, outcomes.len() + 1, jobs.len());
        let outcome = run::run(job, &accel, Duration::from_secs(cli.timeout));
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
    Ok(summary.passed())
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
        };
        let (accel, why) = choose(&cli, || kvm).unwrap();
        assert!(matches!(accel, Accel::InProcess));
        assert!(why.contains("--payload"), "{why}");
    }

    #[test]
    fn auto_without_kvm_is_in_process_and_says_why() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--payload", "/dev/null"]);
        let kvm = HostKvm {
            usable: Err("no /dev/kvm".into()),
        };
        let (accel, why) = choose(&cli, || kvm).unwrap();
        assert!(matches!(accel, Accel::InProcess));
        assert_eq!(why, "no /dev/kvm");
    }

    #[test]
    fn kvm_that_was_asked_for_and_is_not_usable_is_an_error() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--accel", "kvm"]);
        let none = HostKvm {
            usable: Err("no /dev/kvm".into()),
        };
        assert!(choose(&cli, || none).unwrap_err().contains("no /dev/kvm"));
        let usable = HostKvm {
            usable: Ok("everything".into()),
        };
        assert!(choose(&cli, || usable).unwrap_err().contains("--payload"));
    }

    #[test]
    fn a_payload_that_is_not_there_is_an_error() {
        let cli = Cli::parse_from(["amdvi-refvmm", "--payload", "/nowhere/payload"]);
        let usable = HostKvm {
            usable: Ok("everything".into()),
        };
        assert!(
            choose(&cli, || usable)
                .unwrap_err()
                .contains("/nowhere/payload")
        );
    }
}
