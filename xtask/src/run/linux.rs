//! `cargo xtask run --linux`: an unmodified Linux on the reference VMM, checked from inside.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use serde_json::{Value, json};

use crate::lab::linux::{self as lab, Finished, Wish};

/// Boots Linux on the reference VMM and checks everything from inside
///
/// The userspace is ours: it reads the kernel's log (every line must be one that is known),
/// interrupts, sysfs and debugfs, moves data over disk and network, and owns the test endpoint
/// through vfio-pci: DMA through mappings of many sizes, faults after unmapping, and every MSI-X
/// vector received exactly once.
///
/// Exits with 0 when everything passed, 1 when something failed, 2 when it could not be run.
#[derive(Parser)]
#[command(name = "cargo xtask run --linux", bin_name = "cargo xtask run --linux")]
struct Args {
    /// A bzImage instead of the newest kernel of this machine's package mirror
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// With --kernel: the folder with its modules, such as /lib/modules/6.12.0; without it the
    /// kernel must have virtio_blk, virtio_net, virtio_rng and vfio-pci built in
    #[arg(long, value_name = "PATH", requires = "kernel")]
    modules: Option<PathBuf>,

    /// An initial ramdisk of your own, which is booted and shown, and not checked
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,

    /// More of the kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,

    /// Virtual CPUs; 2048 interrupts need 12, an x86 CPU has some 200 vectors
    #[arg(long, value_name = "N", default_value_t = 12,
          value_parser = clap::value_parser!(u32).range(1..=512))]
    cpus: u32,

    /// RAM, with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: String,

    /// The IOMMU, as a property string; several for several IOMMUs
    #[arg(
        long,
        value_name = "STRING",
        default_value = "amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on"
    )]
    device: Vec<String>,

    /// Where it is known from what the host's IOMMU can do, as the reference VMM takes it
    #[arg(long, value_name = "SPEC")]
    host_caps: Option<String>,

    /// Prints one JSON object as the last line of stdout; what is for people goes to stderr
    #[arg(long)]
    json: bool,

    /// More options of the reference VMM, after `--`
    #[arg(last = true, value_name = "OPTIONS")]
    rest: Vec<String>,
}

/// The options after `--linux`, if it is among them.
pub(super) fn asked_for(options: &[String]) -> Option<Vec<String>> {
    let own = options.iter().take_while(|option| *option != "--").count();
    let at = options[..own]
        .iter()
        .position(|option| option == "--linux")?;
    let mut options = options.to_vec();
    options.remove(at);
    Some(options)
}

/// Boots Linux.
pub(super) fn run(options: Vec<String>) -> Result<ExitCode> {
    let name = "cargo xtask run --linux".to_owned();
    let args = Args::parse_from(std::iter::once(name).chain(options));
    if args.device.is_empty() {
        bail!("--device: at least one IOMMU is needed");
    }
    let started = Instant::now();
    let wish = Wish {
        kernel: args.kernel,
        modules: args.modules,
        initrd: args.initrd,
        cmdline: args.cmdline,
        cpus: args.cpus,
        memory: args.memory,
        devices: args.device,
        host_caps: args.host_caps,
        rest: args.rest,
    };
    // With --json stdout belongs to the program that reads it.
    let say = |line: &str| {
        if args.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    };
    let finished = lab::boot(&wish, &say)?;
    say(&format!(
        "{} after {:.0} s",
        if finished.verdict.passed {
            "everything passed"
        } else {
            "FAILED"
        },
        started.elapsed().as_secs_f64()
    ));
    if args.json {
        println!("{}", object(&finished));
    }
    Ok(ExitCode::from(u8::from(!finished.verdict.passed)))
}

/// The result for programs, in one line.
fn object(finished: &Finished) -> Value {
    let verdict = &finished.verdict;
    let report = &verdict.report;
    let machine = verdict.machine.as_ref();
    let part = |name: &str| machine.and_then(|machine| machine.get(name)).cloned();
    json!({
        "kernel": if report.kernel.is_empty() { &finished.kernel } else { &report.kernel },
        "accel": finished.accel,
        "why": finished.why,
        "cpus": report.cpus,
        "offered": part("offered").unwrap_or_default(),
        "decisions": part("decisions").unwrap_or_default(),
        "boot_ms": report.boot_ms,
        "msix_vectors": report.msix_vectors,
        "msix_received": report.msix_received,
        "msix_duplicates": report.msix_duplicates,
        "unexpected_log_lines": report.unexpected_log_lines,
        "passed": verdict.passed,
        "checks": verdict.checks,
        "remarks": verdict.remarks,
        "logs": finished.logs,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn linux_is_asked_for_among_the_options_and_not_behind_them() {
        let options =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let left = asked_for(&options("--json --linux --cpus 4"));
        assert_eq!(left, Some(options("--json --cpus 4")));
        assert_eq!(asked_for(&options("--json")), None);
        assert_eq!(asked_for(&options("--json -- --linux")), None);
    }
}
