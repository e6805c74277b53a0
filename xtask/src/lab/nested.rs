//! Where the reference VMM runs: on this machine's KVM, or, where that can't run Linux, on the KVM
//! of an AMD machine that QEMU emulates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use amdvi_lab_guest::PHASE;
use amdvi_lab_init::cpio::Cpio;
use amdvi_lab_init::{Mark, Output, PLAN, Plan, Profile, Profiling, Said, Tap, report_in};
use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::direct;
use super::emulator::{Emulator, Limits, Watch};
use super::journey::{Journey, Leg};
use super::kernels::Kernel;
use super::programs::Programs;
use super::{build, cache, qemu};

/// Where the reference VMM is in the emulated machine.
const REFVMM: &str = "/bin/amdvi-refvmm";
/// The file of a job that is the guest's first disk.
pub(super) const DISK: &str = "disk";
/// Where files of a job are in the emulated machine.
const FOLDER: &str = "/job";
/// Processors of the emulated machine. With two, a processor of the nested guest died in one boot out of
/// ten, whatever it did and however many there were; with one, in none of 48.
const CPUS: u32 = 1;
/// What its kernel is told: a processor that polls for work of a guest that halts keeps others from theirs.
const HOST_CMDLINE: &str = "kvm.halt_poll_ns=0";
/// How a reference VMM that has saved its machine says so, in its report.
const SAVED: &str = r#""how":"saved""#;
/// Its memory in MiB: archives are there twice while they are unpacked.
const MEMORY: u32 = 4096;

/// A run of the reference VMM, or of another one.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    /// Arguments of the VMM. `{NAME}` stands for the path of a file.
    pub(super) args: Vec<String>,
    /// Files: name and where they are here.
    pub(super) files: Vec<(&'static str, PathBuf)>,
    /// What the CPU must have besides the usual, by its names in /proc/cpuinfo.
    pub(super) cpu: &'static [&'static str],
    /// How long all of it may take.
    pub(super) limits: Limits,
    /// Where the machine goes meanwhile.
    pub(super) journey: Journey,
    /// Another VMM; needs an emulated machine.
    pub(super) vmm: Option<Vmm>,
    /// More of the command line of the emulated machine's kernel.
    pub(super) host_cmdline: &'static str,
    /// Interfaces of the emulated machine that the virtual one is connected to.
    pub(super) taps: Vec<Tap>,
    /// What to look for in what the VMM prints, see [`amdvi_lab_init::Command::marks`].
    pub(super) marks: BTreeMap<String, String>,
    /// Whether to look where the emulated machine's processors are. The guest leaves the names of its
    /// kernel on the file [`DISK`].
    pub(super) profile: bool,
}

/// Another VMM than the reference VMM.
#[derive(Clone, Debug)]
pub(super) struct Vmm {
    /// The program, and the arguments before those of the job.
    pub(super) argv: Vec<String>,
    /// The files that it is made of: where in the emulated machine, and where here.
    pub(super) files: Vec<(String, PathBuf)>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    /// The reference VMM's exit code; none when it was ended by a signal.
    pub(super) code: Option<i32>,
    /// What it said last as JSON.
    pub(super) json: Option<Value>,
    /// Of a machine that travelled, the same of the processes before, by name.
    pub(super) legs: Vec<(String, Option<Value>)>,
    /// All that came over the console, of the emulated machine too.
    pub(super) console: String,
    /// What went wrong with the emulator and was overcome.
    pub(super) remarks: Vec<String>,
    /// The job's marks that came; none where there is no emulated machine.
    pub(super) marks: BTreeMap<String, Mark>,
    /// Where the emulated machine's processors were, if that was asked for.
    pub(super) profile: Profile,
}

/// What runs the reference VMM.
pub(super) enum Runner {
    /// This machine's KVM.
    Host {
        /// The reference VMM.
        refvmm: PathBuf,
    },
    /// An emulated machine's.
    Nested(Box<Nested>),
}

/// What an emulated machine needs.
pub(super) struct Nested {
    qemu: PathBuf,
    kernel: Kernel,
    programs: Programs,
    why: String,
}

impl Runner {
    /// This machine where its KVM can run Linux, else an emulated one.
    pub(super) fn choose(programs: Programs) -> Result<Self> {
        let why = match host_runs_linux() {
            Ok(()) => {
                return Ok(Self::Host {
                    refvmm: programs.refvmm,
                });
            }
            Err(why) => why,
        };
        Ok(Self::Nested(Box::new(Nested::prepare(programs, why)?)))
    }

    /// The name of the acceleration, for reports.
    pub(super) const fn accel(&self) -> &'static str {
        match self {
            Self::Host { .. } => "kvm",
            Self::Nested(_) => "kvm-in-qemu-tcg",
        }
    }

    /// Whether the machine underneath is one that QEMU emulates.
    pub(super) const fn is_emulated(&self) -> bool {
        matches!(self, Self::Nested(_))
    }

    /// Why it is this one, for people.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Host { .. } => "this machine's KVM runs Linux".to_owned(),
            Self::Nested(nested) => format!(
                "{}: the reference VMM runs on the KVM of an AMD machine that QEMU emulates",
                nested.why
            ),
        }
    }

    /// Runs the reference VMM to its end; what is kept goes into `folder`.
    pub(super) fn run(&self, job: &Job, folder: &Path, watch: &mut Watch<'_>) -> Result<Ran> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        match self {
            Self::Host { .. } if job.vmm.is_some() || !job.taps.is_empty() => {
                bail!("another VMM, and interfaces of the host, need an emulated machine")
            }
            Self::Host { refvmm } => {
                let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                if let Some(feature) = job.lacks(&cpuinfo) {
                    bail!("this machine's CPU lacks {feature}, which the guest needs");
                }
                direct::travel(refvmm, job, folder, watch)
            }
            Self::Nested(nested) => nested.run(job, folder, watch),
        }
    }

    /// Runs the reference VMM with this terminal as its console.
    pub(super) fn shell(&self, job: &Job, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut command = match self {
            Self::Host { refvmm } => {
                let mut command = Command::new(refvmm);
                command.args(job.args_with(|_, here| here.to_owned()));
                command
            }
            Self::Nested(nested) => {
                let initrd = nested.initrd(job, Output::Terminal, folder)?;
                let cpu = job.cpu_features();
                let emulator = nested.emulator(job, &initrd, "quiet", &cpu);
                let mut command = emulator.command("/init");
                // Ctrl-A X ends it; other keys, Ctrl-C among them, are the guest's.
                command.args(["-chardev", "stdio,id=tty,mux=on,signal=off"]);
                command.args(["-serial", "chardev:tty", "-mon", "chardev=tty"]);
                command
            }
        };
        let status = command.status().context("cannot start the machine")?;
        if !status.success() {
            bail!("the machine ended with {status}");
        }
        Ok(())
    }
}

impl Job {
    /// Another file in the place of one.
    pub(super) fn replace(&mut self, name: &str, path: &Path) {
        for (file, here) in &mut self.files {
            if *file == name {
                *here = path.to_owned();
            }
        }
    }

    /// QEMU's way to say what the CPU has besides.
    fn cpu_features(&self) -> String {
        self.cpu
            .iter()
            .map(|feature| format!(",+{feature}"))
            .collect()
    }

    /// What this machine's CPU lacks of it.
    fn lacks(&self, cpuinfo: &str) -> Option<&'static str> {
        let has = |feature: &&str| flags(cpuinfo).any(|flag| flag == *feature);
        self.cpu.iter().find(|feature| !has(feature)).copied()
    }

    /// The arguments, with paths for the names of files.
    pub(super) fn args_with(&self, path: impl Fn(&str, &str) -> String) -> Vec<String> {
        let replace = |arg: &String| {
            self.files.iter().fold(arg.clone(), |arg, (name, here)| {
                let name_in_braces = format!("{{{name}}}");
                arg.replace(&name_in_braces, &path(name, &here.to_string_lossy()))
            })
        };
        self.args.iter().map(replace).collect()
    }
}

impl Nested {
    /// An emulated machine; `why` it is one is for people.
    pub(super) fn prepare(programs: Programs, why: String) -> Result<Self> {
        Ok(Self {
            qemu: qemu()?,
            kernel: build::built(&cache()?)?,
            programs,
            why,
        })
    }

    /// The QEMU that emulates it.
    pub(super) fn qemu(&self) -> &Path {
        &self.qemu
    }

    /// The reference VMM that runs in it.
    pub(super) fn refvmm(&self) -> &Path {
        &self.programs.refvmm
    }

    fn emulator<'a>(
        &'a self,
        job: &Job,
        files: &'a Files,
        cmdline: &'a str,
        cpu: &'a str,
    ) -> Emulator<'a> {
        Emulator {
            qemu: &self.qemu,
            kernel: &files.kernel,
            initrd: &files.initrd,
            cmdline,
            cpus: CPUS,
            memory: MEMORY,
            devices: &[],
            cpu,
            limits: job.limits,
        }
    }

    /// The machine's files: an init, the reference VMM, and what the job brings.
    fn initrd(&self, job: &Job, output: Output, folder: &Path) -> Result<Files> {
        let mut cpio = Cpio::default();
        for directory in ["bin", "dev", "lab", FOLDER.trim_start_matches('/')] {
            cpio.directory(directory);
        }
        let (args, vmm_files) = match &job.vmm {
            Some(vmm) => (vmm.argv.clone(), vmm.files.clone()),
            None => (vec![REFVMM.to_owned()], Vec::new()),
        };
        for directory in directories(&vmm_files) {
            cpio.directory(directory.trim_start_matches('/'));
        }
        // The kernel opens it for init before there is a devtmpfs.
        cpio.device("dev/console", 5, 1);
        let place = |name: &str| format!("{FOLDER}/{name}");
        let command = |leg: Leg| {
            let mut argv = args.clone();
            argv.extend(job.args_with(|name, _| place(name)));
            argv.extend(leg.args);
            amdvi_lab_init::Command {
                name: leg.name,
                argv,
                user: None,
                output,
                marks: job.marks.clone(),
                background: leg.background,
                profile: job.profile.then(|| Profiling {
                    phase: PHASE.to_owned(),
                    names: place(DISK),
                }),
                only_after: leg.after.map(|name| Said {
                    name,
                    text: SAVED.to_owned(),
                }),
            }
        };
        let legs = job.journey.legs(Path::new(FOLDER)).into_iter();
        let plan = Plan {
            commands: legs.map(command).collect(),
            taps: job.taps.clone(),
            ..Plan::default()
        };
        let mut files = vec![("/init".to_owned(), &self.programs.init)];
        if job.vmm.is_none() {
            files.push((REFVMM.to_owned(), &self.programs.refvmm));
        }
        files.extend(vmm_files.iter().map(|(path, here)| (path.clone(), here)));
        files.extend(job.files.iter().map(|(name, here)| (place(name), here)));
        for (path, here) in files {
            let contents =
                fs::read(here).with_context(|| format!("cannot read {}", here.display()))?;
            cpio.file(path.trim_start_matches('/'), &contents);
        }
        cpio.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);
        let initrd = folder.join("host.cpio");
        fs::write(&initrd, cpio.finish())
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(Files {
            kernel: self.kernel.image(),
            initrd,
        })
    }

    /// Runs the job's VMM in it to its end.
    pub(super) fn run(&self, job: &Job, folder: &Path, watch: &mut Watch<'_>) -> Result<Ran> {
        let files = self.initrd(job, Output::Console, folder)?;
        let mut remarks = Vec::new();
        let cpu = job.cpu_features();
        let cmdline = format!("{HOST_CMDLINE} {}", job.host_cmdline);
        let emulator = self.emulator(job, &files, &cmdline, &cpu);
        let console = emulator.run(&folder.join("console"), &mut remarks, watch);
        // It is large, and of no interest any more.
        let _ = fs::remove_file(&files.initrd);
        let console = console?;
        let mut report = report_in(&console).map_err(anyhow::Error::msg)?;
        if let Some(problem) = report.problems.first() {
            bail!("the emulated machine could not {problem}");
        }
        // The last in the order of names is that in which the machine ended.
        let (_, ran) = report
            .commands
            .pop_last()
            .context("the emulated machine did not start the reference VMM")?;
        let json = |stdout: &str| serde_json::from_str(stdout).ok();
        let legs = report.commands.iter();
        Ok(Ran {
            code: ran.code,
            json: json(&ran.stdout),
            legs: legs
                .map(|(name, ran)| (name.clone(), json(&ran.stdout)))
                .collect(),
            console,
            remarks,
            marks: ran.marks,
            profile: ran.profile,
        })
    }
}

/// Files of an emulated machine.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// The folders that files are in, each after the one that it is in.
fn directories(files: &[(String, PathBuf)]) -> BTreeSet<&str> {
    let above = |path: &str| {
        path.match_indices('/')
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    };
    let folders = files
        .iter()
        .flat_map(|(path, _)| above(path).into_iter().map(|at| &path[..at]));
    folders.filter(|folder| !folder.is_empty()).collect()
}

/// Whether this machine's KVM can run an unmodified Linux, or why not.
fn host_runs_linux() -> Result<(), String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization(&cpuinfo) {
        return Err("this machine's CPU offers no virtualization (no svm or vmx)".to_owned());
    }
    fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(|error| format!("/dev/kvm: {error}"))
}

/// Without it KVM is a software one, which runs its own kind of guests only.
fn has_virtualization(cpuinfo: &str) -> bool {
    flags(cpuinfo).any(|flag| flag == "svm" || flag == "vmx")
}

/// The features of the CPUs.
fn flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
}

/// Limits for a guest that takes about this long on an idle machine.
pub(super) const fn limits(seconds: u64) -> Limits {
    Limits {
        silence: Duration::from_secs(if seconds < 120 { 120 } else { seconds }),
        total: Duration::from_secs(300 + 8 * seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_virtualization_has_a_software_kvm_at_best() {
        assert!(has_virtualization("flags\t\t: fpu svm sse2\n"));
        assert!(has_virtualization("flags : fpu vmx\n"));
        assert!(!has_virtualization(
            "model name : svm vmx\nflags : fpu nosvm\n"
        ));
        assert!(!has_virtualization(""));
    }

    #[test]
    fn a_folder_comes_before_what_is_in_it() {
        let files = ["/q/lib/x", "/q/y", "/z"].map(|path| (path.to_owned(), PathBuf::new()));
        let folders: Vec<_> = directories(&files).into_iter().collect();
        assert_eq!(folders, ["/q", "/q/lib"]);
    }

    #[test]
    fn arguments_name_files_where_they_are() {
        let job = Job {
            args: vec!["--disk".to_owned(), "path={disk},queues=2".to_owned()],
            files: vec![("disk", PathBuf::from("/here/disk.img"))],
            cpu: &["la57", "svm"],
            ..Job::default()
        };
        assert_eq!(job.cpu_features(), ",+la57,+svm");
        assert_eq!(job.lacks("flags : fpu svm\n"), Some("la57"));
        assert_eq!(job.lacks("flags : la57 fpu svm\n"), None);
        assert_eq!(
            job.args_with(|name, _| format!("/job/{name}"))[1],
            "path=/job/disk,queues=2"
        );
        assert_eq!(
            job.args_with(|_, here| here.to_owned())[1],
            "path=/here/disk.img,queues=2"
        );
    }
}
