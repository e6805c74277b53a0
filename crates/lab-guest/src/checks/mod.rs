//! The checks. Each returns what it saw, or an error that says what does not hold.

mod affinity;
mod console;
mod counters;
mod cpus;
mod debugfs;
mod dirty;
mod disk;
mod dma;
mod events;
mod files;
mod groups;
mod interrupts;
mod ivhd;
mod limit;
pub(crate) mod log;
mod measure;
mod msix;
mod net;
mod pins;
mod rng;
mod stress;
mod sva;
mod timers;

use std::sync::Arc;

use amdvi_lab_guest::Check;
use anyhow::Result;

use crate::context::Context;

/// Runs a check, all but that of the log.
pub(crate) fn run(check: &Check, context: &Arc<Context>) -> Result<String> {
    match check {
        Check::Log(_) => anyhow::bail!("the log is checked last"),
        Check::Interrupts(want) => interrupts::check(want),
        Check::IommuGroups(want) => groups::check(want),
        Check::SysfsIvhd(want) => ivhd::check(want),
        Check::Debugfs(want) => debugfs::check(want),
        Check::Cpus(want) => cpus::check(want),
        Check::Files(want) => files::check(want),
        Check::Disk(want) => disk::check(want),
        Check::Net(want) => net::check(want),
        Check::Rng(want) => rng::check(want),
        Check::Console(want) => console::check(want),
        Check::Timers(want) => timers::check(want),
        Check::VfioDma(want) => dma::check(want),
        Check::UnmapFault(want) => dma::check_fault(want, context),
        Check::Msix(want) => msix::check(want, context),
        Check::Msi(want) => pins::check_msi(want),
        Check::Intx(want) => pins::check_intx(want),
        Check::Limit(want) => limit::check(want, context),
        Check::Affinity(want) => affinity::check(want),
        Check::Events(want) => events::check(want, context),
        Check::CpuHotplug(want) => cpus::check_hotplug(want),
        Check::Sva(want) => sva::check(want),
        Check::Dirty(want) => dirty::check(want),
        Check::Counters(want) => counters::check(want, context),
        Check::Stress(want) => stress::check(want, context),
        Check::MeasureDisk(want) => measure::check_disk(want, context),
        Check::MeasureNet(want) => measure::check_net(want, context),
        Check::MeasureMap(want) => measure::check_map(want, context),
        Check::Names => measure::check_names(),
        Check::MeasureMsi(want) => measure::check_msi(want.repeats, context),
        Check::MeasureRetarget(want) => measure::check_retarget(want, context),
    }
}
