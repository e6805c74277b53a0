//! Processors.

use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::{CpuHotplug, Cpus};
use anyhow::{Context, Result, ensure};

use crate::context::{online_cpus, put, text};

/// How long a processor may take to come or go.
const HOTPLUG: Duration = Duration::from_secs(20);

pub(super) fn check(want: &Cpus) -> Result<String> {
    let online = online_cpus()?;
    let ids = apic_ids(&text("/proc/cpuinfo")?);
    let said = format!("{} processors, APIC IDs {ids:?}", online.len());
    if let Some(want) = want.online {
        ensure!(online.len() == want, "{said}; there must be {want}");
    }
    if let Some(above) = want.apic_id_above {
        ensure!(
            ids.iter().any(|id| *id > above),
            "{said}; none is above {above}"
        );
    }
    Ok(said)
}

/// The APIC IDs in `/proc/cpuinfo`; the kernel calls the one that it was told at first initial.
fn apic_ids(cpuinfo: &str) -> Vec<u32> {
    let ids = cpuinfo.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "apicid").then(|| value.trim().parse().ok())?
    });
    ids.collect()
}

/// Takes a processor away or brings it back.
pub(super) fn set_online(cpu: u32, online: bool) -> Result<()> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    put(&path, if online { "1" } else { "0" })?;
    let until = Instant::now() + HOTPLUG;
    while online_cpus()?.contains(&cpu) != online {
        ensure!(
            Instant::now() < until,
            "processor {cpu} does not become {online} in {path}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(super) fn check_hotplug(want: &CpuHotplug) -> Result<String> {
    let before = online_cpus()?;
    for &cpu in &want.cpus {
        set_online(cpu, false).with_context(|| format!("take processor {cpu} away"))?;
        set_online(cpu, true).with_context(|| format!("bring processor {cpu} back"))?;
    }
    let after = online_cpus()?;
    ensure!(before == after, "online were {before:?}, now {after:?}");
    Ok(format!("{:?} left and came back", want.cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_are_not_the_initial_ones() {
        let text = "processor\t: 0\napicid\t\t: 0\ninitial apicid\t: 7\n\nprocessor\t: 1\n\
                    apicid\t\t: 300\ninitial apicid\t: 300\n";
        assert_eq!(apic_ids(text), [0, 300]);
    }
}
