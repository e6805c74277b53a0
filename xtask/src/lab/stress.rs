//! Linux under load: everything at once for minutes, or for hours.

use amdvi_lab_guest::plan::{Check, Disk, Net, Stress, Target};
use anyhow::Result;

use super::matrix::run::{self, Ready};
use super::matrix::{Case, Version, folder};
use crate::step::Outcome;

/// The step's name, and that of the folder with its logs.
pub(super) const NAME: &str = "stress";
/// Vectors of a CPU that devices of the usual machine and the kernel itself take.
const OTHER_VECTORS: u32 = 20;
/// Vectors that a CPU has for interrupts of devices, at least.
const VECTORS_PER_CPU: u32 = 180;

/// What to put under load, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How long, in seconds of the guest: twice this, once with all processors there and once with
    /// processors that leave and come back
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Virtual CPUs; 2048 vectors need 14, of which one at a time may leave
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(2..=64))]
    cpus: u32,
    /// MSI-X vectors that fire; as many as the CPUs have room for while one of them is away, unless
    /// given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    vectors: Option<u32>,
}

impl Default for Args {
    /// What the lab tier runs.
    fn default() -> Self {
        Self {
            seconds: 60,
            cpus: 14,
            vectors: None,
        }
    }
}

impl Args {
    fn vectors(&self) -> u32 {
        let room = (self.cpus - 1) * VECTORS_PER_CPU - OTHER_VECTORS * self.cpus;
        self.vectors.unwrap_or_else(|| room.min(2048))
    }

    /// The machine, and what is done in it.
    fn case(&self) -> Case {
        let stress = Stress {
            seconds: self.seconds,
            vectors: self.vectors(),
            mappings: Some(Target {
                endpoint: 1,
                backend: None,
            }),
            disk: Some(Disk {
                queues: 2,
                ..Disk::default()
            }),
            net: Some(Net::default()),
            ..Stress::default()
        };
        let leaving = Stress {
            hotplug: true,
            // A queue whose processor is away has nothing to do.
            disk: Some(Disk::default()),
            ..stress.clone()
        };
        // What one turn of everything has begun is ended after the time is up.
        let most = 2 * self.seconds + 240;
        let mut case = Case::usual(Version::V7).cpus(self.cpus);
        case.iommus = vec!["amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on".to_owned()];
        case.endpoints = vec![String::new(), "vectors=8".to_owned()];
        case.disks = vec!["queues=2".to_owned()];
        case.seconds += 2 * self.seconds;
        // A thread that was bound to a processor that left.
        case.log_allow(&["process <n> (<w>) no longer affine to cpu<n>"])
            .check_as("stress", most, Check::Stress(stress))
            .check_as("stress-hotplug", most, Check::Stress(leaving))
    }
}

/// Runs it.
pub(super) fn step(args: &Args) -> Result<Outcome> {
    let ready = match Ready::prepare() {
        Ok(ready) => ready,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    let kernel = match Version::V7.kernel() {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    println!(
        "{}\n{} CPUs, {} vectors, twice {} s of the guest's time and more, on Linux {}",
        ready.runner.why(),
        args.cpus,
        args.vectors(),
        args.seconds,
        kernel.release()
    );
    run::case_step(&ready, &args.case(), &kernel, &folder(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_leave_room_for_a_cpu_that_is_away() {
        let vectors = |cpus| {
            Args {
                cpus,
                ..Args::default()
            }
            .vectors()
        };
        assert_eq!(vectors(2), 140);
        assert_eq!(vectors(5), 620);
        assert_eq!(vectors(14), 2048);
    }

    #[test]
    fn both_turns_of_the_load_are_in_the_plan() {
        let case = Args::default().case();
        let stress: Vec<_> = case
            .plan
            .checks
            .iter()
            .filter_map(|step| match &step.check {
                Check::Stress(stress) => Some(stress.hotplug),
                _ => None,
            })
            .collect();
        assert_eq!(stress, [false, true]);
    }
}
