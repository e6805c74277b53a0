//! Which scenarios run, and on which machine each.

use std::sync::Arc;

use amdvi_guest::boot::MAX_CPUS;
use amdvi_guest::scenarios::{self, Scenario};
use amdvi_hostcap::{HostCapSpec, SpecError};

use super::host::HostIommu;
use super::machine::{Device, Machine, apic_ids};
use super::{Interrupts, Saving};
use crate::board::{BoardError, Config, DeviceError};
use crate::ram::{RamError, RamWish};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// `--device`.
    pub device: Option<Device>,
    /// `--host-caps`, asked.
    pub host: Option<Arc<HostIommu>>,
    /// `--memory`, `--heap`, and what the CPUs can address.
    pub ram: RamWish,
    /// `--scenario`, empty for all.
    pub scenarios: Vec<String>,
    /// `--cpus`.
    pub cpus: Option<usize>,
    /// `--interrupts`; a scenario that is about irqfds has them in any case.
    pub interrupts: Interrupts,
}

/// One scenario to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// The machine it runs on.
    pub machine: Machine,
    /// The machine is the scenario's own, although another was wished for.
    pub on_its_own: bool,
    /// Its CPUs.
    pub apic_ids: Vec<u32>,
    /// How vectors reach them, in a VM.
    pub interrupts: Interrupts,
    /// The machine is not started anew, or can be saved and moved.
    pub saving: Option<Saving>,
}

/// A scenario that was not asked for by name, and that the wished-for machine can't run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// The scenario's name.
    pub name: &'static str,
    /// What the machine lacks for it.
    pub reason: String,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenarios and their machines, in order.
    pub jobs: Vec<Job>,
    /// What is not run, and why.
    pub left_out: Vec<LeftOut>,
}

/// Wishes that can't be fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No scenario has that name.
    #[error("--scenario: no scenario is called `{name}`; accepted: {known}")]
    NoScenario {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// The device has no place on the board.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// RAM has no place in the machine.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A scenario's own device string is wrong: a mistake in the scenario.
    #[error("scenario `{name}`: {error}")]
    Device {
        /// The scenario.
        name: &'static str,
        /// What is wrong.
        error: DeviceError,
    },
    /// A scenario's own host description is wrong.
    #[error("scenario `{name}`: {error}")]
    HostCaps {
        /// The scenario.
        name: &'static str,
        /// What is wrong.
        error: SpecError,
    },
}

/// Picks the scenarios, in the order of [`scenarios::ALL`], and builds their machines.
///
/// Where a machine is wished for, scenarios that need more than it offers are left out, unless they
/// are asked for by name: then they run on it, and show what is missing. Scenarios *about* a feature
/// that is absent, or about a host of their own, keep their own machine.
pub fn plan(wishes: &Wishes) -> Result<Plan, PlanError> {
    for name in &wishes.scenarios {
        if !scenarios::ALL.iter().any(|scenario| scenario.name == name) {
            return Err(PlanError::NoScenario {
                name: name.clone(),
                known: names(),
            });
        }
    }
    if let Some(device) = &wishes.device {
        Config::scenario(device.options.clone()).check()?;
    }
    let mut plan = Plan {
        jobs: Vec::new(),
        left_out: Vec::new(),
    };
    for scenario in scenarios::ALL {
        let named = wishes.scenarios.iter().any(|name| name == scenario.name);
        if !named && !wishes.scenarios.is_empty() {
            continue;
        }
        match job(wishes, scenario, named)? {
            Ok(job) => plan.jobs.push(job),
            Err(left_out) => plan.left_out.push(left_out),
        }
    }
    Ok(plan)
}

/// The names of all scenarios.
pub fn names() -> String {
    scenarios::ALL
        .iter()
        .map(|scenario| scenario.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The scenario's own machine.
fn own(scenario: &'static Scenario, ram: &RamWish) -> Result<Machine, PlanError> {
    let name = scenario.name;
    let device: Device = scenario
        .needs
        .device
        .parse()
        .map_err(|error| PlanError::Device { name, error })?;
    let host_caps = match scenario.needs.host_caps {
        "" => HostCapSpec::None,
        spec => spec
            .parse()
            .map_err(|error| PlanError::HostCaps { name, error })?,
    };
    Ok(Machine::new(&device, &HostIommu::ask(&host_caps), ram)?)
}

fn job(
    wishes: &Wishes,
    scenario: &'static Scenario,
    named: bool,
) -> Result<Result<Job, LeftOut>, PlanError> {
    let own = own(scenario, &wishes.ram)?;
    let cpus = scenario
        .needs
        .cpus
        .max(wishes.cpus.unwrap_or(1))
        .min(MAX_CPUS);
    let apic_ids = apic_ids(cpus, scenario.needs.high_apic_id);
    let interrupts = if scenario.needs.irqfds {
        Interrupts::Irqfd
    } else {
        wishes.interrupts
    };
    let job = |machine, on_its_own| Job {
        scenario,
        machine,
        on_its_own,
        apic_ids,
        interrupts,
        saving: None,
    };
    if wishes.device.is_none() && wishes.host.is_none() {
        return Ok(Ok(job(own, false)));
    }
    let wished = Machine::new(
        wishes.device.as_ref().unwrap_or(&own.requested),
        wishes.host.as_ref().unwrap_or(&own.host),
        &wishes.ram,
    )?;
    Ok(match fit(scenario, &own, &wished) {
        Fit::Suits => Ok(job(wished, false)),
        // Who asks for exactly this scenario on exactly this machine gets the answer.
        Fit::Lacks(_) if named => Ok(job(wished, false)),
        Fit::Lacks(features) => Err(LeftOut {
            name: scenario.name,
            reason: format!(
                "needs {}, which this machine does not offer",
                features.join(", ")
            ),
        }),
        Fit::Contradicts => {
            let same = own.requested == wished.requested && own.host.spec == wished.host.spec;
            Ok(job(own, !same))
        }
    })
}

/// The scenarios that are about 2048 interrupts. The others use them where they are offered, and do
/// with 512 as well.
const ABOUT_2K: &[&str] = &["intremap-2k", "retarget-2k"];

/// Whether a scenario makes sense on a machine that was not made for it.
enum Fit {
    /// It does.
    Suits,
    /// The machine does not offer these options, which the scenario is about.
    Lacks(Vec<&'static str>),
    /// The machine offers what the scenario is about not being offered.
    Contradicts,
}

fn fit(scenario: &'static Scenario, own: &Machine, wished: &Machine) -> Fit {
    // A scenario that describes a host is about that host.
    if !scenario.needs.host_caps.is_empty() {
        return Fit::Contradicts;
    }
    let (has, needs) = (wished.offered(), own.offered());
    let on = |name: &str| needs.get(name) == Some(&true.into()) && has.get(name) != needs.get(name);
    let named = scenario
        .needs
        .device
        .split(',')
        .filter_map(|item| item.split_once('='))
        .filter(|(name, _)| *name != "numint2k" || ABOUT_2K.contains(&scenario.name));
    // Not one number, so it is not among what is offered by name.
    let counters = |machine: &Machine| {
        let (banks, per_bank) = machine.options.perf_counters();
        u16::from(banks) * u16::from(per_bank)
    };
    let lacks = |name: &str| match name {
        "perf-counters" => counters(wished) < counters(own),
        name => on(name),
    };
    let lacking: Vec<_> = named
        .map(|(name, _)| name)
        .filter(|name| lacks(name))
        .collect();
    if !lacking.is_empty() {
        Fit::Lacks(lacking)
    } else if wished.interrupts_per_function() > own.interrupts_per_function() {
        Fit::Contradicts
    } else {
        Fit::Suits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(device: Option<&str>, host_caps: Option<&str>, scenarios: &[&str]) -> Wishes {
        Wishes {
            device: device.map(|text| text.parse().unwrap()),
            host: host_caps.map(|text| HostIommu::ask(&text.parse().unwrap())),
            scenarios: scenarios.iter().map(|name| (*name).to_owned()).collect(),
            ..Wishes::default()
        }
    }

    fn find<'a>(jobs: &'a [Job], name: &str) -> &'a Job {
        jobs.iter()
            .find(|job| job.scenario.name == name)
            .expect("the scenario is planned")
    }

    #[test]
    fn without_wishes_every_scenario_runs_on_its_own_machine() {
        let jobs = plan(&Wishes::default()).unwrap().jobs;
        assert_eq!(jobs.len(), scenarios::ALL.len());
        for job in &jobs {
            assert_eq!(
                job.machine.requested,
                job.scenario.needs.device.parse().unwrap()
            );
            assert!(job.apic_ids.len() >= job.scenario.needs.cpus);
            assert!(!job.on_its_own);
        }
        assert_eq!(
            find(&jobs, "host-without-2k")
                .machine
                .interrupts_per_function(),
            512
        );
        assert_eq!(
            find(&jobs, "legacy-vfio").machine.interrupts_per_function(),
            512
        );
        assert_eq!(
            find(&jobs, "intremap-2k").machine.interrupts_per_function(),
            2048
        );
        assert_eq!(find(&jobs, "x2apic-dest").apic_ids.last(), Some(&300));
    }

    /// What is about features that no device has unless it is asked for them.
    const ABOUT_FEATURES: [&str; 9] = [
        "dma-v2",
        "dma-nested",
        "dma-pasid",
        "ats",
        "ats-timeout",
        "pri",
        "dirty",
        "freed-tables",
        "counters",
    ];

    #[test]
    fn a_scenario_about_a_feature_is_left_out_where_the_device_lacks_it() {
        let left_out = |device: &str| -> Vec<_> {
            let plan = plan(&wishes(Some(device), None, &[])).unwrap();
            plan.left_out.iter().map(|left_out| left_out.name).collect()
        };
        assert_eq!(
            left_out("amd-iommu,numint2k=on,vapic=on"),
            ABOUT_FEATURES,
            "none of it is offered"
        );
        let all = "amd-iommu,numint2k=on,vapic=on,gtsup=on,gcr3trpmode=on,device-iotlb=on,pprsup=on,\
                   dirty-tracking=on,perf-counters=4x2";
        assert_eq!(left_out(all), [""; 0], "all of it is");
        assert_eq!(
            left_out(&all.replace("4x2", "7x1")),
            ["counters"],
            "seven counters are fewer than eight"
        );
        assert_eq!(
            left_out(&all.replace("dirty-tracking=on", "dirty-tracking=accessed")),
            ["dirty", "freed-tables"]
        );
    }

    #[test]
    fn a_device_that_suits_takes_the_place_of_the_scenario_s_own() {
        let device = "amd-iommu,numint2k=on,segments=4";
        let jobs = plan(&wishes(Some(device), None, &[])).unwrap().jobs;
        let job = find(&jobs, "intremap-2k");
        assert_eq!(job.machine.requested, device.parse().unwrap());
        assert!(!job.on_its_own);
    }

    #[test]
    fn a_scenario_about_an_absent_feature_keeps_its_own_machine() {
        for named in [&["intremap-2k-off"][..], &[]] {
            let jobs = plan(&wishes(Some("amd-iommu,numint2k=on"), None, named))
                .unwrap()
                .jobs;
            let job = find(&jobs, "intremap-2k-off");
            assert!(job.on_its_own);
            assert_eq!(job.machine.interrupts_per_function(), 512);
        }
    }

    #[test]
    fn a_scenario_that_needs_more_than_the_machine_offers_is_left_out_unless_it_is_named() {
        let host = Some("mock:numint2k=off");
        let all = plan(&wishes(None, host, &[])).unwrap();
        assert_eq!(
            all.left_out[0],
            LeftOut {
                name: "intremap-2k",
                reason: "needs numint2k, which this machine does not offer".to_owned(),
            }
        );
        // Of the others' features such a host says nothing, which is never a yes.
        assert_eq!(all.left_out[1].name, "retarget-2k");
        let others: Vec<_> = all.left_out[2..].iter().map(|one| one.name).collect();
        assert_eq!(others, ABOUT_FEATURES);
        assert_eq!(
            all.jobs.len(),
            scenarios::ALL.len() - 2 - ABOUT_FEATURES.len()
        );
        assert!(
            !find(&all.jobs, "ioapic").on_its_own,
            "it does with 512, too"
        );
        let named = plan(&wishes(None, host, &["intremap-2k"])).unwrap();
        assert!(named.left_out.is_empty());
        assert_eq!(
            find(&named.jobs, "intremap-2k")
                .machine
                .interrupts_per_function(),
            512
        );
    }

    #[test]
    fn an_unknown_scenario_is_an_error_that_lists_the_known_ones() {
        let error = plan(&wishes(None, None, &["intremap-3k"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`intremap-3k`") && error.contains("intremap-2k"),
            "{error}"
        );
    }

    #[test]
    fn cpus_are_added_and_never_taken_away() {
        let more = Wishes {
            cpus: Some(MAX_CPUS),
            ..Wishes::default()
        };
        assert!(
            plan(&more)
                .unwrap()
                .jobs
                .iter()
                .all(|job| job.apic_ids.len() == MAX_CPUS)
        );
        let fewer = Wishes {
            cpus: Some(1),
            ..Wishes::default()
        };
        let jobs = plan(&fewer).unwrap().jobs;
        let job = find(&jobs, "intremap-2k");
        assert_eq!(job.apic_ids.len(), job.scenario.needs.cpus);
    }
}
