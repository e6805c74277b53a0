//! Which scenarios run, and on which machine each.

use amdvi_device::options::OptionError;
use amdvi_guest::boot::MAX_CPUS;
use amdvi_guest::scenarios::{self, Scenario};
use amdvi_hostcap::{HostCapSpec, SpecError};

use super::machine::{Device, Machine, apic_ids};
use crate::board::{self, BoardError};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// `--device`.
    pub device: Option<Device>,
    /// `--host-caps`.
    pub host_caps: Option<HostCapSpec>,
    /// `--scenario`, empty for all.
    pub scenarios: Vec<String>,
    /// `--cpus`.
    pub cpus: Option<usize>,
}

/// One scenario to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its index in [`scenarios::ALL`].
    pub index: usize,
    /// The scenario.
    pub scenario: &'static Scenario,
    /// The machine it runs on.
    pub machine: Machine,
    /// The machine is the scenario's own, although another was wished for.
    pub on_its_own: bool,
    /// Its CPUs.
    pub apic_ids: Vec<u32>,
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
    /// A scenario's own device string is wrong: a mistake in the scenario.
    #[error("scenario `{name}`: {error}")]
    Device {
        /// The scenario.
        name: &'static str,
        /// What is wrong.
        error: OptionError,
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
pub fn plan(wishes: &Wishes) -> Result<Vec<Job>, PlanError> {
    for name in &wishes.scenarios {
        if !scenarios::ALL.iter().any(|scenario| scenario.name == name) {
            return Err(PlanError::NoScenario {
                name: name.clone(),
                known: names(),
            });
        }
    }
    if let Some(device) = &wishes.device {
        board::placement(&device.options)?;
    }
    scenarios::ALL
        .iter()
        .enumerate()
        .filter(|(_, scenario)| {
            wishes.scenarios.is_empty() || wishes.scenarios.iter().any(|n| n == scenario.name)
        })
        .map(|(index, scenario)| job(wishes, index, scenario))
        .collect()
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
fn own(scenario: &'static Scenario) -> Result<Machine, PlanError> {
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
    Ok(Machine::new(&device, &host_caps))
}

fn job(wishes: &Wishes, index: usize, scenario: &'static Scenario) -> Result<Job, PlanError> {
    let own = own(scenario)?;
    let cpus = scenario
        .needs
        .cpus
        .max(wishes.cpus.unwrap_or(1))
        .min(MAX_CPUS);
    let apic_ids = apic_ids(cpus, scenario.needs.high_apic_id);
    let job = |machine, on_its_own| Job {
        index,
        scenario,
        machine,
        on_its_own,
        apic_ids,
    };
    if wishes.device.is_none() && wishes.host_caps.is_none() {
        return Ok(job(own, false));
    }
    let wished = Machine::new(
        wishes.device.as_ref().unwrap_or(&own.requested),
        wishes.host_caps.as_ref().unwrap_or(&own.host_caps),
    );
    let named = wishes.scenarios.iter().any(|name| name == scenario.name);
    Ok(match fit(scenario, &own, &wished) {
        Fit::Suits => job(wished, false),
        // Who asks for exactly this scenario on exactly this machine gets the answer.
        Fit::Lacks if named => job(wished, false),
        Fit::Lacks | Fit::Contradicts => {
            let same = own.requested == wished.requested && own.host_caps == wished.host_caps;
            job(own, !same)
        }
    })
}

/// The scenarios that are about 2048 interrupts. The others use them where they are offered, and do
/// with 512 as well.
const ABOUT_2K: &[&str] = &["intremap-2k"];

/// Whether a scenario makes sense on a machine that was not made for it.
enum Fit {
    /// It does.
    Suits,
    /// The machine does not offer what the scenario is about.
    Lacks,
    /// The machine offers what the scenario is about not being offered.
    Contradicts,
}

fn fit(scenario: &Scenario, own: &Machine, wished: &Machine) -> Fit {
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
    if named.map(|(name, _)| name).any(on) {
        Fit::Lacks
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
            host_caps: host_caps.map(|text| text.parse().unwrap()),
            scenarios: scenarios.iter().map(|name| (*name).to_owned()).collect(),
            cpus: None,
        }
    }

    fn find<'a>(jobs: &'a [Job], name: &str) -> &'a Job {
        jobs.iter()
            .find(|job| job.scenario.name == name)
            .expect("the scenario is planned")
    }

    #[test]
    fn without_wishes_every_scenario_runs_on_its_own_machine() {
        let jobs = plan(&Wishes::default()).unwrap();
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

    #[test]
    fn a_device_that_suits_takes_the_place_of_the_scenario_s_own() {
        let device = "amd-iommu,numint2k=on,segments=4";
        let jobs = plan(&wishes(Some(device), None, &[])).unwrap();
        let job = find(&jobs, "intremap-2k");
        assert_eq!(job.machine.requested, device.parse().unwrap());
        assert!(!job.on_its_own);
    }

    #[test]
    fn a_scenario_about_an_absent_feature_keeps_its_own_machine() {
        for named in [&["intremap-2k-off"][..], &[]] {
            let jobs = plan(&wishes(Some("amd-iommu,numint2k=on"), None, named)).unwrap();
            let job = find(&jobs, "intremap-2k-off");
            assert!(job.on_its_own);
            assert_eq!(job.machine.interrupts_per_function(), 512);
        }
    }

    #[test]
    fn a_scenario_that_needs_more_runs_on_its_own_machine_unless_it_is_named() {
        let host = Some("mock:numint2k=off");
        let jobs = plan(&wishes(None, host, &[])).unwrap();
        assert!(find(&jobs, "intremap-2k").on_its_own);
        assert!(!find(&jobs, "ioapic").on_its_own, "it does with 512, too");
        let jobs = plan(&wishes(None, host, &["intremap-2k"])).unwrap();
        assert_eq!(
            find(&jobs, "intremap-2k").machine.interrupts_per_function(),
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
                .iter()
                .all(|job| job.apic_ids.len() == MAX_CPUS)
        );
        let fewer = Wishes {
            cpus: Some(1),
            ..Wishes::default()
        };
        let jobs = plan(&fewer).unwrap();
        let job = find(&jobs, "intremap-2k");
        assert_eq!(job.apic_ids.len(), job.scenario.needs.cpus);
    }
}
