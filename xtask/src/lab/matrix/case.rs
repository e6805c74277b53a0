//! A case: a row of the matrix on one kernel.

use amdvi_lab_guest::plan::Kexec;
use amdvi_lab_guest::plan::{
    Check, Console, Cpus, Disk, Interrupts, IommuGroups, Log, Net, Rng, Step, SysfsIvhd,
};
use amdvi_lab_guest::{Plan, Then};

use super::expect::{Expect, equal};
use crate::lab::journey::Journey;
use crate::lab::kernels::{Debian, Kernel, debian};
use crate::lab::{build, cache};

/// Where the kernel that is to be started by kexec is in the guest.
const NEXT_KERNEL: &str = "/next-kernel";

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lab) enum Version {
    /// Debian's stable one.
    V6_12,
    /// Debian's newest, from backports.
    V7,
    /// The one that the lab builds: with iommufd and the driver's debugfs.
    Built,
}

impl Version {
    /// The name, in those of tests and folders.
    pub(in crate::lab) const fn name(self) -> &'static str {
        match self {
            Self::V6_12 => Debian::V6_12.name(),
            Self::V7 => Debian::V7.name(),
            Self::Built => "built",
        }
    }

    /// The kernel of a name.
    pub(in crate::lab) fn named(name: &str) -> Result<Self, String> {
        let all = [Self::V6_12, Self::V7, Self::Built];
        let found = all.into_iter().find(|version| version.name() == name);
        found.ok_or_else(|| format!("known: {}", all.map(Self::name).join(", ")))
    }

    /// The kernel from the cache; fetched or built if necessary.
    pub(in crate::lab) fn kernel(self) -> anyhow::Result<Kernel> {
        let cache = cache()?;
        match self {
            Self::V6_12 => debian(&cache, Debian::V6_12),
            Self::V7 => debian(&cache, Debian::V7),
            Self::Built => build::built(&cache),
        }
    }

    /// The modules that the usual machine needs, with their parameters.
    pub(in crate::lab) const fn modules(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::V6_12 | Self::V7 => &[
                ("virtio_blk", ""),
                ("virtio_net", ""),
                ("virtio_rng", ""),
                ("vfio_iommu_type1", ""),
                ("vfio_pci", ""),
            ],
            Self::Built => &[],
        }
    }

    /// Whether there is debugfs of the driver, and iommufd.
    pub(in crate::lab) const fn is_built(self) -> bool {
        matches!(self, Self::Built)
    }
}

/// A row on a kernel: the machine, what the guest is to do, and what must come of it.
#[derive(Clone, Debug)]
pub(in crate::lab) struct Case {
    pub(in crate::lab) version: Version,
    pub(in crate::lab) cpus: u32,
    pub(in crate::lab) memory: String,
    /// The IOMMUs: values of `--device`.
    pub(in crate::lab) iommus: Vec<String>,
    /// Values of `--endpoint`.
    pub(in crate::lab) endpoints: Vec<String>,
    /// What is in the value of `--disk` after the path, of each disk.
    pub(in crate::lab) disks: Vec<String>,
    /// Values of `--net`.
    pub(in crate::lab) nets: Vec<String>,
    /// `--rng` and `--console`.
    pub(in crate::lab) small: bool,
    /// Other arguments of the reference VMM.
    pub(in crate::lab) args: Vec<String>,
    /// More of the kernel's command line.
    pub(in crate::lab) cmdline: Vec<String>,
    pub(in crate::lab) plan: Plan,
    /// What must hold of the reference VMM's own report.
    pub(in crate::lab) machine: Vec<Expect>,
    /// What the CPU must have besides the usual, by its names in /proc/cpuinfo.
    pub(in crate::lab) cpu: &'static [&'static str],
    /// How many kernels report.
    pub(in crate::lab) reports: usize,
    /// The exit status of the reference VMM.
    pub(in crate::lab) status: i32,
    /// How long it takes on an idle machine, in seconds.
    pub(in crate::lab) seconds: u64,
    /// Where the machine goes meanwhile.
    pub(in crate::lab) journey: Journey,
}

impl Case {
    /// What every row has unless it says otherwise: two processors, one IOMMU with interrupt and
    /// DMA remapping, a device of each kind, and checks of all of it.
    pub(in crate::lab) fn usual(version: Version) -> Self {
        let checks = vec![
            Check::Log(Log::default()).into(),
            Check::Interrupts(Interrupts::default()).into(),
            Check::IommuGroups(IommuGroups::default()).into(),
            Check::SysfsIvhd(SysfsIvhd::default()).into(),
            Check::Cpus(Cpus::default()).into(),
            Check::Disk(Disk::default()).into(),
            Check::Net(Net::default()).into(),
            Check::Rng(Rng::default()).into(),
            Check::Console(Console::default()).into(),
        ];
        Self {
            version,
            cpus: 2,
            memory: "1G".to_owned(),
            iommus: vec!["amd-iommu,dma-remap=on,intremap=on,xtsup=on".to_owned()],
            endpoints: vec![String::new()],
            disks: vec![String::new()],
            nets: vec!["loopback".to_owned()],
            small: true,
            args: Vec::new(),
            cmdline: Vec::new(),
            plan: Plan {
                checks,
                ..Plan::default()
            },
            machine: Vec::new(),
            cpu: &[],
            reports: 1,
            status: 0,
            seconds: 40,
            journey: Journey::Stays,
        }
    }

    /// No device but the IOMMU, and nothing to check of one.
    pub(super) fn bare(mut self) -> Self {
        self.endpoints.clear();
        self.disks.clear();
        self.nets.clear();
        self.small = false;
        self.without(&["disk", "net", "rng", "console"])
    }

    /// So many processors.
    pub(in crate::lab) fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self.seconds += u64::from(cpus) * 2;
        self
    }

    /// Another IOMMU instead of the usual one.
    pub(super) fn iommu(mut self, device: &str) -> Self {
        self.iommus = vec![format!("amd-iommu,{device}")];
        self
    }

    /// One more IOMMU.
    pub(super) fn more_iommu(mut self, device: &str) -> Self {
        self.iommus.push(format!("amd-iommu,{device}"));
        self
    }

    /// Other test endpoints instead of the usual one.
    pub(super) fn endpoints(mut self, endpoints: &[&str]) -> Self {
        self.endpoints = owned(endpoints);
        self
    }

    /// The CPU must have these features besides the usual.
    pub(super) fn cpu(mut self, features: &'static [&'static str]) -> Self {
        self.cpu = features;
        self
    }

    /// More arguments of the reference VMM.
    pub(super) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(owned(args));
        self
    }

    /// More of the kernel's command line.
    pub(super) fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(words.to_owned());
        self
    }

    /// One more check.
    pub(in crate::lab) fn check(mut self, check: Check) -> Self {
        self.plan.checks.push(check.into());
        self
    }

    /// One more check, with a name and a time of its own.
    pub(in crate::lab) fn check_as(mut self, label: &str, seconds: u64, check: Check) -> Self {
        self.plan.checks.push(Step {
            label: Some(label.to_owned()),
            timeout_s: Some(seconds),
            check,
        });
        self.seconds += seconds / 4;
        self
    }

    /// One more check, on kernels that are made for it.
    pub(super) fn check_if(self, condition: bool, check: Check) -> Self {
        if condition { self.check(check) } else { self }
    }

    /// The usual checks of this name are not among those of this row.
    pub(super) fn without(mut self, names: &[&str]) -> Self {
        self.plan
            .checks
            .retain(|step| !names.contains(&step.check.name()));
        self
    }

    /// The log must have lines that match.
    pub(super) fn log(mut self, patterns: &[&str]) -> Self {
        self.log_check().require.extend(owned(patterns));
        self
    }

    /// The log must have no line that matches.
    pub(super) fn no_log(mut self, patterns: &[&str]) -> Self {
        self.log_check().forbid.extend(owned(patterns));
        self
    }

    /// The log may have lines that match.
    pub(in crate::lab) fn log_allow(mut self, patterns: &[&str]) -> Self {
        self.plan.log_allow.extend(owned(patterns));
        self
    }

    /// Changes what is checked of interrupts.
    pub(super) fn interrupts(mut self, change: impl Fn(&mut Interrupts)) -> Self {
        for step in &mut self.plan.checks {
            if let Check::Interrupts(interrupts) = &mut step.check {
                change(interrupts);
            }
        }
        self
    }

    /// Changes what is checked of IOMMU groups.
    pub(super) fn groups(mut self, change: impl Fn(&mut IommuGroups)) -> Self {
        for step in &mut self.plan.checks {
            if let Check::IommuGroups(groups) = &mut step.check {
                change(groups);
            }
        }
        self
    }

    /// The machine goes elsewhere while it runs.
    pub(super) fn journey(mut self, journey: Journey) -> Self {
        self.journey = journey;
        self
    }

    /// Something must hold of the machine's own report.
    pub(super) fn machine(mut self, expect: Expect) -> Self {
        self.machine.push(expect);
        self
    }

    /// The guest starts the same kernel again by kexec, which checks the same and what is added.
    pub(super) fn kexec(mut self, change: impl Fn(Self) -> Self) -> Self {
        let next = change(self.clone());
        self.plan.then = Then::Kexec;
        self.plan.kexec = Some(Box::new(Kexec {
            kernel: NEXT_KERNEL.to_owned(),
            cmdline: None,
            plan: next.plan,
        }));
        self.reports = 2;
        self.seconds += 30;
        self
    }

    /// The guest resets the machine in the end, which ends the run.
    pub(super) fn reset(mut self) -> Self {
        self.plan.then = Then::Reboot;
        self.status = 1;
        self.args(&["--no-reboot"])
            .machine(equal("/ended/how", "reset"))
    }

    fn log_check(&mut self) -> &mut Log {
        // A row that left the check out wants it back.
        let is_log = |step: &Step| matches!(step.check, Check::Log(_));
        if !self.plan.checks.iter().any(is_log) {
            self.plan.checks.push(Check::Log(Log::default()).into());
        }
        let logs = self.plan.checks.iter_mut();
        let mut logs = logs.filter_map(|step| match &mut step.check {
            Check::Log(log) => Some(log),
            _ => None,
        });
        logs.next().expect("there is one")
    }

    /// Where the kernel goes that is started by kexec.
    pub(in crate::lab) fn next_kernel(&self) -> Option<&str> {
        self.plan.kexec.as_ref().map(|kexec| kexec.kernel.as_str())
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
