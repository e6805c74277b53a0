//! The command line.

use std::path::PathBuf;

use amdvi_hostcap::{HostCapSpec, PciFunction, Request, ram};
use clap::{Parser, Subcommand, ValueEnum};

const AFTER: &str = "\
Privileges: sysfs and recordings need none. debugfs needs root, iommufd access to /dev/iommu and \
to the function's VFIO device file, kvm access to /dev/kvm; without them the output says what was \
not learnt.

Exit codes: 0 answered (also if the answer is no), 1 failed or every source named with \
--host-caps failed, 2 wrong usage.";

/// Tells what this host's AMD IOMMU can do, where that is known from, and what a guest with an
/// emulated AMD IOMMU and passed-through PCI functions can be offered.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask all sources that this machine has: what each said, what could not be asked, and why.
    Probe(Probe),
    /// Say what a guest can be offered of a request, and why.
    Explain(Explain),
    /// Place a guest's RAM, from what is known before any device is bound.
    Plan(Plan),
    /// Say what every host of a migration pool can offer, and which host takes what away.
    Baseline(Baseline),
}

/// The host to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Host {
    /// A source to ask instead of all that this machine has; can be repeated.
    ///
    /// none, auto, sysfs[:ROOT], debugfs[:ROOT], iommufd[:PATH][,FUNCTION[=DEVICE]…],
    /// kvm:NUMBER[,dev=PATH], legacy-vfio, kernel-inference[:ROOT], file:PATH (what `probe
    /// --json` printed), or mock:NAME=VALUE,… such as mock:numint2k=off.
    #[arg(long, value_name = "SPEC")]
    pub(crate) host_caps: Vec<HostCapSpec>,
    /// A PCI function that is to be passed through, such as 0000:c1:00.0; can be repeated. It is
    /// bound to an iommufd for a moment, and not attached.
    #[arg(long = "function", value_name = "FUNCTION")]
    pub(crate) functions: Vec<PciFunction>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Probe {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print a recording as JSON: for `file:PATH` and `baseline`, here or on another host.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// What the guest's device is to offer, in the device's own spelling: numint2k=on,xtsup=on,….
    #[arg(long, value_name = "NAME=VALUE,…")]
    pub(crate) request: Request,
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print {"decisions": [{"feature", "requested", "granted", "reason"}]}.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// How much RAM the guest has: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) ram: u64,
    /// Where RAM below 4 GiB ends at the latest.
    #[arg(long, value_name = "ADDRESS", value_parser = size, default_value = "3G")]
    pub(crate) low_end: u64,
    /// Bits of a guest physical address.
    #[arg(long, value_name = "BITS", default_value_t = 48)]
    pub(crate) phys_bits: u8,
    /// When RAM moves out of the HyperTransport range's way.
    #[arg(long, value_enum, default_value_t = Moves::Always)]
    pub(crate) moves: Moves,
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print {"regions": [{"base", "size", "kind"}], "placement", "reason"}.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Moves {
    /// All RAM above 4 GiB, however little it is.
    Always,
    /// Only if it would reach into the range.
    WhenReached,
}

impl From<Moves> for ram::Moves {
    fn from(moves: Moves) -> Self {
        match moves {
            Moves::Always => Self::Always,
            Moves::WhenReached => Self::WhenReached,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Baseline {
    /// What `probe --json` printed on each host.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// What is wanted; everything unless given.
    #[arg(long, value_name = "NAME=VALUE,…")]
    pub(crate) request: Option<Request>,
    /// Print {"hosts", "features": [{"feature", "requested", "offered", "taken_by"}]}.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads `10G`, `512MiB`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => 64,
    };
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|n| n.checked_mul(1u64.checked_shl(shift)?))
        .ok_or_else(|| "accepted: a number of bytes, or one with K, M, G or T, such as 10G".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("1TiB"), Ok(1 << 40));
        for wrong in ["", "G", "1.5G", "-1", "+1", "10 G", "10g", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
