//! One run of one contender.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use amdvi_lab_guest::plan::{
    Check, Cpus, Disk, Interrupts, MeasureDisk, MeasureMap, MeasureMsi, MeasureNet,
    MeasureRetarget, Repeats, Step,
};
use amdvi_lab_guest::{MARKER, PLAN, Plan, Report, reports_in};
use amdvi_lab_init::PciId;
use amdvi_lab_init::names::Names;
use anyhow::{Context, Result, bail, ensure};

use super::contenders::{Contender, ECHO, Monitor, PEER, tap};
use super::results::{Results, Sample};
use super::{lines, profile, qemu};
use crate::lab::emulator::{Limits, STALLS};
use crate::lab::journey::Journey;
use crate::lab::kernels::Kernel;
use crate::lab::matrix::run::{initrd, read};
use crate::lab::matrix::{Version, folder};
use crate::lab::nested::{DISK, Job, Nested, Ran, Vmm, limits};
use crate::lab::programs::{self, Programs};

/// Bytes of the disk, which is in the emulated machine's memory.
const DISK_BYTES: u64 = 64 << 20;
/// What all guests are told. The console is no part of what is compared.
const CMDLINE: &str = "console=ttyS0 panic=-1";
/// What the emulated machine's kernel is told. It measures its TSC exactly some seconds after KVM has
/// taken a rough value. QEMU, unlike the reference VMM, gives that to its CPUs; KVM finds it too far
/// off to run without scaling, can't scale, and their timers never fire.
const HOST_CMDLINE: &str = "kvm.tsc_tolerance_ppm=100000";
/// What to look for in what the guest says: the first word of its first process, and its report.
/// The names are not the texts, which must not be in what the emulated machine says.
const USERSPACE: &str = "userspace";
const END: &str = "end";
const MARKS: [(&str, &str); 2] = [(USERSPACE, "amdvi-lab-guest: "), (END, MARKER)];
/// The function whose mappings are measured: the virtio source of entropy.
const RNG: PciId = PciId {
    vendor: 0x1af4,
    device: 0x1044,
};
/// How long nothing may be said.
const SILENCE: Duration = Duration::from_secs(300);
/// Seconds that a step may take, on a busy machine.
const PATIENCE: u64 = 240;

/// What all runs have in common.
pub(super) struct Laboratory {
    nested: Nested,
    version: Version,
    kernel: Kernel,
    guest: PathBuf,
    qemu: Vmm,
    cpus: u32,
    cmdline: String,
    profile: bool,
}

impl Laboratory {
    /// Builds and fetches what runs need.
    pub(super) fn open(version: Version, cpus: u32, cmdline: &str, profile: bool) -> Result<Self> {
        let why = "all contenders run on the same machine".to_owned();
        let nested = Nested::prepare(Programs::build()?, why)?;
        let qemu = qemu::vmm(nested.qemu())?;
        Ok(Self {
            nested,
            version,
            kernel: version.kernel()?,
            guest: programs::guest()?,
            qemu,
            cpus,
            // Functions are then where the guest's kernel says at its end that they are.
            cmdline: if profile {
                format!("{cmdline} nokaslr")
            } else {
                cmdline.to_owned()
            },
            profile,
        })
    }

    /// Boots a contender, checks its processors and its disk, and switches it off. Says what was
    /// seen.
    pub(super) fn boot(&self, contender: &Contender, round: u32) -> Result<String> {
        let mut plan = self.plan(contender);
        plan.checks.push(patient(Check::Disk(Disk::default())));
        let (report, _) = self.run(contender, round, "loglevel=7", plan)?;
        Ok(format!("userspace after {} ms", report.boot_ms))
    }

    /// Prints where most of the time went, and keeps where all of it did.
    fn tell(&self, contender: &Contender, round: u32, ran: &Ran) -> Result<()> {
        let names = match contender.monitor {
            Monitor::Ours => profile::names(self.nested.refvmm())?,
            Monitor::Qemu => Names::default(),
        };
        let text = |shown| profile::text(&ran.profile, &names, shown);
        println!("{}\n{}", contender.name, text(profile::SHOWN));
        let path = place(contender, round).join("profile.txt");
        fs::write(&path, text(usize::MAX))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Results without any samples: of what they will be.
    pub(super) fn results(&self) -> Result<Results> {
        let said = Command::new(self.nested.qemu())
            .arg("--version")
            .output()
            .context("cannot start QEMU")?;
        let said = String::from_utf8_lossy(&said.stdout);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Results {
            kernel: self.kernel.release().to_owned(),
            cpus: self.cpus,
            qemu: said.lines().next().unwrap_or_default().to_owned(),
            host: host(&cpuinfo),
            ..Results::default()
        })
    }

    /// Boots a contender and measures all there is. With what was to be said of attempts before the one
    /// that is measured.
    pub(super) fn measure(
        &self,
        contender: &Contender,
        round: u32,
    ) -> Result<(Sample, Vec<String>)> {
        let mut plan = self.plan(contender);
        let net = MeasureNet {
            peer: PEER,
            port: ECHO,
            ..MeasureNet::default()
        };
        let retarget = MeasureRetarget {
            peer: PEER,
            port: ECHO,
            arrival: contender.translates,
            ..MeasureRetarget::default()
        };
        plan.checks.extend([
            patient(Check::MeasureDisk(MeasureDisk::default())),
            patient(Check::MeasureNet(net)),
            patient(Check::MeasureRetarget(retarget)),
        ]);
        if contender.translates {
            let map = MeasureMap {
                repeats: Repeats::default(),
                function: RNG,
            };
            plan.checks.extend([
                patient(Check::MeasureMsi(MeasureMsi::default())),
                patient(Check::MeasureMap(map)),
            ]);
        }
        if self.profile {
            plan.checks.push(patient(Check::Names));
        }
        let (report, ran) = self.run(contender, round, "quiet", plan)?;
        if self.profile {
            self.tell(contender, round, &ran)?;
        }
        let mut values: BTreeMap<_, _> = report
            .numbers
            .into_iter()
            .map(|number| (number.name, number.values))
            .collect();
        let mark = |name: &str| {
            let mark = ran.marks.get(name);
            mark.with_context(|| format!("the guest did not come to its {name}"))
        };
        values.insert(
            lines::BOOT.into(),
            vec![mark(USERSPACE)?.micros as f64 / 1e3],
        );
        values.insert(lines::KERNEL.into(), vec![report.boot_ms as f64]);
        let last = mark(END)?;
        let own = last.resident_kib.saturating_sub(last.largest_kib);
        values.insert(lines::MEMORY.into(), vec![own as f64 / 1024.0]);
        for line in &lines::ALL {
            let expected = contender.translates || !line.translated;
            ensure!(
                values.contains_key(line.name) == expected,
                "{} was {}measured",
                line.name,
                if expected { "not " } else { "" }
            );
        }
        let sample = Sample {
            contender: contender.name.to_owned(),
            round,
            load: load(),
            values,
        };
        Ok((sample, ran.remarks))
    }

    /// What must hold in every guest, before anything else.
    fn plan(&self, contender: &Contender) -> Plan {
        let cpus = Cpus {
            online: Some(self.cpus as usize),
            ..Cpus::default()
        };
        let mut plan = Plan {
            checks: vec![Check::Cpus(cpus).into()],
            ..Plan::default()
        };
        if contender.translates {
            // Interrupts are remapped, or it would be compared with something else.
            plan.checks
                .push(Check::Interrupts(Interrupts::default()).into());
        }
        plan
    }

    /// Runs a contender with a plan. Its console is kept; one that ends before it has reported, or
    /// not by itself, or in whose guest a check failed, is an error.
    fn run(
        &self,
        contender: &Contender,
        round: u32,
        loglevel: &str,
        mut plan: Plan,
    ) -> Result<(Report, Ran)> {
        let folder = place(contender, round);
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let archive = folder.join("initrd.cpio");
        // A guest that boots quietly on a busy machine is silent for long.
        let limits = Limits {
            silence: SILENCE,
            ..limits(60 + 2 * u64::from(self.cpus))
        };
        plan.timeout_s = limits.total.as_secs() * 3 / 4;
        let guest = read(&self.guest)?;
        let contents = initrd(self.version, &self.kernel, &|cpio, modules| {
            let mut plan = plan.clone();
            plan.modules = modules.to_vec();
            cpio.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);
            cpio.file("init", &guest);
            Ok(())
        })?;
        fs::write(&archive, contents)
            .with_context(|| format!("cannot write {}", archive.display()))?;
        let disk = folder.join("disk.img");
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("cannot create {}", disk.display()))?;

        let cmdline = format!("{CMDLINE} {loglevel} {}", self.cmdline);
        let job = Job {
            args: contender.arguments(self.cpus, cmdline.trim()),
            files: vec![
                ("kernel", self.kernel.image()),
                ("initrd", archive.clone()),
                (DISK, disk.clone()),
            ],
            limits,
            journey: Journey::Stays,
            vmm: match contender.monitor {
                Monitor::Ours => None,
                Monitor::Qemu => Some(self.qemu.clone()),
            },
            cpu: &[],
            host_cmdline: HOST_CMDLINE,
            taps: vec![tap()],
            profile: self.profile,
            marks: MARKS
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
        };
        let ran = self.nested.run(&job, &folder, &mut |_| ());
        for file in [archive, disk] {
            // Made for this run alone.
            let _ = fs::remove_file(file);
        }
        let ran = ran?;
        let report = judge(&ran).with_context(|| format!("logs in {}", folder.display()))?;
        Ok((report, ran))
    }
}

/// Where what is kept of a run goes.
fn place(contender: &Contender, round: u32) -> PathBuf {
    folder("compare").join(format!("{}.{round}", contender.name))
}

/// A step that may take long.
fn patient(check: Check) -> Step {
    Step {
        timeout_s: Some(PATIENCE),
        ..check.into()
    }
}

/// Tasks that run or wait to, over the last minute.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// The processors in `/proc/cpuinfo`.
fn host(cpuinfo: &str) -> String {
    let mut names = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim());
    let name = names.next().unwrap_or("an unknown processor");
    format!("{} × {name}", names.count() + 1)
}

/// The guest's report, when all went as it must.
fn judge(ran: &Ran) -> Result<Report> {
    let stall = |line: &&str| STALLS.iter().any(|stall| line.contains(stall));
    if let Some(line) = ran.console.lines().find(stall) {
        bail!("a processor of the guest hung or died: {line}");
    }
    let reports = reports_in(&ran.console).map_err(anyhow::Error::msg)?;
    let ended = || match ran.code {
        Some(code) => format!("the VMM ended with {code}"),
        None => "the VMM was ended by a signal".to_owned(),
    };
    let [report] = &reports[..] else {
        bail!("{} reports came, and {}", reports.len(), ended());
    };
    ensure!(ran.code == Some(0), "{}", ended());
    if let Some(problem) = report.problems.first() {
        bail!("the guest could not {problem}");
    }
    if let Some(check) = report.checks.iter().find(|check| !check.passed) {
        bail!("{}: {}", check.name, check.detail);
    }
    Ok(report.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_and_named() {
        let one = "processor : 0\nmodel name\t: AMD EPYC\nflags : x\n";
        assert_eq!(host(&one.repeat(2)), "2 × AMD EPYC");
        assert!(load() >= 0.0);
    }

    #[test]
    fn a_run_counts_only_when_the_vmm_ended_by_itself_and_all_checks_passed() {
        let mut report = Report {
            kernel: "7.3".into(),
            ..Report::default()
        };
        let ran = |report: &Report, code| Ran {
            legs: Vec::new(),
            code,
            json: None,
            console: report.line(),
            remarks: Vec::new(),
            marks: BTreeMap::new(),
            profile: BTreeMap::new(),
        };
        assert!(judge(&ran(&report, Some(0))).is_ok());
        assert!(judge(&ran(&report, Some(1))).is_err());
        assert!(judge(&ran(&report, None)).is_err());
        let mut stalled = ran(&report, Some(0));
        stalled.console += "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n";
        assert!(judge(&stalled).is_err());
        report.problems.push("mount /proc".into());
        assert!(judge(&ran(&report, Some(0))).is_err());
    }
}
