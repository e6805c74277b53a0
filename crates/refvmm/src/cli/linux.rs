//! The options that make a Linux guest, and running it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amdvi_hostcap::HostCapSpec;
use clap::Args;

use super::board::BoardArgs;
use super::devices::{self, Console, Disk, Net};
use super::saving::SavingArgs;
use crate::board::{self, FunctionConfig};
use crate::kvm::Vm;
use crate::linux::{Files, Guest, Outcome};
use crate::ram::{Ram, RamSize, RamWish};
use crate::run::Interrupts;
use crate::run::host::HostIommu;
use crate::run::machine::{Device, Machine};
use crate::snapshot::Configuration;

/// RAM of a Linux guest when `--memory` is not given.
const DEFAULT_MEMORY: &str = "1G";

/// What only a Linux guest has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Linux")]
pub(super) struct LinuxArgs {
    /// Boots this kernel: a bzImage, or an ELF file with a PVH note
    ///
    /// Needs KVM that can run it. The serial console is standard input and output; on a terminal,
    /// Ctrl-A x ends the machine.
    #[arg(long, value_name = "PATH")]
    pub(super) kernel: Option<PathBuf>,

    /// Its initial ramdisk
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<PathBuf>,

    /// Its command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "console=ttyS0",
        requires = "kernel"
    )]
    cmdline: String,

    /// Gives the last CPU an x2APIC ID above 255
    #[arg(long, requires = "kernel")]
    high_apic_id: bool,

    /// Hides the CPUID leaves that tell the guest it runs on KVM; the guest may then need
    /// tsc_early_khz=…
    #[arg(long, requires = "kernel")]
    hide_kvm: bool,

    /// A disk; can be given several times
    #[arg(long, value_name = "STRING", requires = "kernel", value_parser = str::parse::<Disk>,
          long_help = devices::help("--disk", "A disk; can be given several times."))]
    disk: Vec<Disk>,

    /// A network card; can be given several times
    #[arg(long, value_name = "STRING", requires = "kernel", value_parser = str::parse::<Net>,
          long_help = devices::help("--net", "A network card; can be given several times."))]
    net: Vec<Net>,

    /// A source of entropy
    #[arg(long, requires = "kernel")]
    rng: bool,

    /// A console besides the serial port
    #[arg(long, value_name = "STRING", requires = "kernel", num_args = 0..=1,
          default_missing_value = "stdout", value_parser = str::parse::<Console>,
          long_help = devices::help("--console", "A console besides the serial port."))]
    console: Option<Console>,

    /// Ends when the guest resets the machine, instead of starting it again
    #[arg(long, requires = "kernel")]
    no_reboot: bool,
}

impl LinuxArgs {
    fn functions(&self) -> Vec<FunctionConfig> {
        let mut functions: Vec<_> = self.disk.iter().map(Disk::function).collect();
        functions.extend(self.net.iter().map(Net::function));
        functions.extend(self.console.iter().map(Console::function));
        if self.rng {
            functions.push(devices::rng());
        }
        functions
    }

    /// What a saved machine must have, too.
    fn describe(&self, configuration: &mut Configuration) {
        configuration.push("--hide-kvm", self.hide_kvm);
        let disks = self.disk.iter().map(|disk| ("--disk", disk.describe()));
        let nets = self.net.iter().map(|net| ("--net", net.describe()));
        let consoles = self.console.iter();
        let consoles = consoles.map(|console| ("--console", console.describe()));
        for (option, value) in disks.chain(nets).chain(consoles) {
            configuration.push(option, value);
        }
        configuration.push("--rng", self.rng);
    }
}

/// What a Linux guest and the scenarios share.
pub(super) struct Common<'a> {
    pub(super) devices: &'a [Device],
    pub(super) host_caps: Option<&'a HostCapSpec>,
    pub(super) memory: Option<RamSize>,
    pub(super) cpus: usize,
    pub(super) timeout: Option<Duration>,
    pub(super) interrupts: Interrupts,
    pub(super) board: &'a BoardArgs,
    pub(super) saving: &'a SavingArgs,
}

/// Runs the guest of these options; what it is made of is for the report.
pub(super) fn run(
    kernel: PathBuf,
    args: &LinuxArgs,
    common: &Common<'_>,
) -> Result<(Vec<Machine>, Outcome), String> {
    let files = Files {
        kernel,
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone(),
    };
    files.check().map_err(|error| error.to_string())?;
    let none = HostCapSpec::None;
    let host = HostIommu::ask(common.host_caps.unwrap_or(&none));
    let memory = match common.memory {
        Some(size) => size,
        None => DEFAULT_MEMORY.parse().map_err(|error| format!("{error}"))?,
    };
    let ram = RamWish {
        size: memory,
        phys_bits: Vm::phys_bits().map_err(|error| format!("--kernel needs KVM: {error}"))?,
        ..RamWish::default()
    };
    let machines: Vec<_> = common
        .devices
        .iter()
        .map(|device| Machine::new(device, &Arc::clone(&host), &ram))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let mut board = board::Config {
        iommus: machines.iter().map(Machine::iommu).collect(),
        functions: args.functions(),
        ..board::Config::default()
    };
    common.board.apply(&mut board)?;
    let first = machines.first().ok_or("--device: one IOMMU at least")?;
    let apic_ids = apic_ids(common.cpus, args.high_apic_id);
    let mut configuration = machine_of(&apic_ids, &first.ram);
    for machine in &machines {
        let serves = machine.requested.serves;
        let serves = serves.map_or(String::new(), |(from, to)| format!(",serves={from}-{to}"));
        configuration.push("--device", format!("{}{serves}", machine.options));
    }
    common.board.describe(&mut configuration);
    args.describe(&mut configuration);
    let guest = Guest {
        files,
        apic_ids,
        hide_kvm: args.hide_kvm,
        ram: first.ram.clone(),
        interrupts: common.interrupts,
        board,
        timeout: common.timeout,
        no_reboot: args.no_reboot,
        configuration,
        origin: common.saving.origin(),
        orders: common.saving.orders()?,
        started: None,
    };
    let outcome = guest.run().map_err(|error| error.to_string())?;
    Ok((machines, outcome))
}

/// CPUs and RAM, as a saved machine must have them, too.
pub(super) fn machine_of(apic_ids: &[u32], ram: &Ram) -> Configuration {
    let mut configuration = Configuration::default();
    configuration.push("--cpus", apic_ids.len());
    let ids: Vec<_> = apic_ids.iter().map(u32::to_string).collect();
    configuration.push("--high-apic-id", format!("APIC IDs {}", ids.join(" ")));
    configuration.push("--memory", ram);
    configuration
}

/// One x2APIC ID after the other; with `high`, the last is above 255.
fn apic_ids(cpus: usize, high: bool) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..cpus as u32).collect();
    if high && let Some(last) = ids.last_mut() {
        *last = (*last).max(crate::layout::HIGH_APIC_ID);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_any_number_of_cpus_can_have_a_high_id() {
        assert_eq!(apic_ids(1, false), [0]);
        assert_eq!(apic_ids(3, true), [0, 1, 300]);
        let many = apic_ids(400, true);
        assert_eq!((many.len(), many[399]), (400, 399));
    }
}
