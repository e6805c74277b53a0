//! Running a case.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use amdvi_lab_guest::{PLAN, Plan};
use amdvi_lab_init::cpio::Cpio;
use anyhow::{Context, Result, bail};

use super::judge::{Verdict, judge};
use super::{Case, Chosen, Version, folder};
use crate::lab::kernels::Kernel;
use crate::lab::nested::{Job, Runner, limits};
use crate::lab::programs::{self, Programs};
use crate::step::Outcome;

/// Bytes of a disk: they are in memory where the machine is emulated.
const DISK: u64 = 16 << 20;
/// The guest's console: all that its kernel says is in the log of the run.
const CMDLINE: &str = "console=ttyS0 panic=-1 loglevel=7";

/// What all cases need.
pub(in crate::lab) struct Ready {
    pub(in crate::lab) runner: Runner,
    /// The first process of the guest.
    pub(in crate::lab) guest: PathBuf,
}

impl Ready {
    /// Builds and fetches it.
    pub(in crate::lab) fn prepare() -> Result<Self> {
        Ok(Self {
            runner: Runner::choose(Programs::build()?)?,
            guest: programs::guest()?,
        })
    }
}

/// Runs a case, says what came of it and where its logs are.
pub(in crate::lab) fn step(ready: &Ready, (row, version): Chosen) -> Result<Outcome> {
    let kernel = match version.kernel() {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Outcome::NotRun(format!("{error:#}"))),
    };
    let case = row.case(version);
    let folder = folder(row.name).join(version.name());
    println!(
        "{}\non {}; logs in {}",
        row.about,
        kernel.release(),
        folder.display()
    );
    case_step(ready, &case, &kernel, &folder)
}

/// Runs a case and says what came of each check.
pub(in crate::lab) fn case_step(
    ready: &Ready,
    case: &Case,
    kernel: &Kernel,
    folder: &Path,
) -> Result<Outcome> {
    let start = Instant::now();
    let verdict = run(ready, case, kernel, None, folder, &mut |_| ())?;
    for remark in &verdict.remarks {
        println!("  emulator: {remark}");
    }
    for check in &verdict.checks {
        let mark = if check.passed { "ok    " } else { "FAILED" };
        println!(
            "  {mark}  {}: {}",
            check.name,
            short(&check.detail, check.passed)
        );
    }
    let failed = verdict.checks.iter().filter(|check| !check.passed).count();
    let seconds = start.elapsed().as_secs_f64();
    Ok(if verdict.passed {
        Outcome::Passed(format!("{} checks in {seconds:.0} s", verdict.checks.len()))
    } else {
        Outcome::Failed(format!(
            "{failed} of {} checks failed; logs in {}",
            verdict.checks.len(),
            folder.display()
        ))
    })
}

/// What fits on a line, of a detail that nobody needs all of.
fn short(detail: &str, passed: bool) -> String {
    const MOST: usize = 160;
    if !passed || detail.chars().count() <= MOST {
        return detail.to_owned();
    }
    detail.chars().take(MOST).chain(['…']).collect()
}

/// A case whose processors hang or die under emulation is booted so often at most.
const MOST_BOOTS: usize = 3;

/// Runs a case; all that is kept of it goes into `folder`.
pub(in crate::lab) fn run(
    ready: &Ready,
    case: &Case,
    kernel: &Kernel,
    own_initrd: Option<&Path>,
    folder: &Path,
    watch: &mut dyn FnMut(&str),
) -> Result<Verdict> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut remarks = Vec::new();
    let mut verdict = once(ready, case, kernel, own_initrd, folder, watch)?;
    while let Some(line) = &verdict.stalled
        && !verdict.passed
        && ready.runner.is_emulated()
        && remarks.len() < MOST_BOOTS - 1
    {
        let before = folder.with_added_extension(format!("hung.{}", remarks.len() + 1));
        let remark = format!(
            "a processor of the guest hung or died ({line}); it was booted once more, what it said \
             is in {}",
            before.display()
        );
        eprintln!("lab: {remark}");
        remarks.push(remark);
        // Of a run before this one.
        let _ = fs::remove_dir_all(&before);
        fs::rename(folder, &before)?;
        verdict = once(ready, case, kernel, own_initrd, folder, watch)?;
    }
    verdict.remarks.extend(remarks);
    let text = serde_json::to_string_pretty(&verdict)?;
    fs::write(folder.join("result.json"), text)?;
    Ok(verdict)
}

fn once(
    ready: &Ready,
    case: &Case,
    kernel: &Kernel,
    own_initrd: Option<&Path>,
    folder: &Path,
    watch: &mut dyn FnMut(&str),
) -> Result<Verdict> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let contents = |cpio: &mut Cpio, modules: &[String]| checks(ready, case, kernel, cpio, modules);
    let mut job = job(case, kernel, folder, &contents)?;
    if let Some(own) = own_initrd {
        job.replace("initrd", own);
    }
    let ran = ready.runner.run(&job, folder, watch);
    for (_, file) in &job.files {
        if file.starts_with(folder) {
            // Made for this run alone.
            let _ = fs::remove_file(file);
        }
    }
    Ok(judge(case, ran?))
}

/// The reference VMM's run for a case.
pub(super) fn job(
    case: &Case,
    kernel: &Kernel,
    folder: &Path,
    contents: &Contents<'_>,
) -> Result<Job> {
    let initrd = folder.join("initrd.cpio");
    fs::write(&initrd, self::initrd(case.version, kernel, contents)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    let mut files = vec![("kernel", kernel.image()), ("initrd", initrd)];
    let mut args: Vec<String> = ["--kernel", "{kernel}", "--initrd", "{initrd}", "--json"]
        .map(str::to_owned)
        .to_vec();
    let mut arg = |name: &str, value: String| {
        args.push(name.to_owned());
        args.push(value);
    };
    let cmdline: Vec<_> = std::iter::once(CMDLINE)
        .chain(case.cmdline.iter().map(String::as_str))
        .collect();
    arg("--cmdline", cmdline.join(" "));
    arg("--cpus", case.cpus.to_string());
    arg("--memory", case.memory.clone());
    for iommu in &case.iommus {
        arg("--device", iommu.clone());
    }
    if case.disks.len() > DISKS.len() {
        bail!("a case has {} disks at most", DISKS.len());
    }
    for (name, options) in DISKS.iter().zip(&case.disks) {
        let path = folder.join(format!("{name}.img"));
        File::create(&path)
            .and_then(|file| file.set_len(DISK))
            .with_context(|| format!("cannot create {}", path.display()))?;
        files.push((name, path));
        arg("--disk", with_options(&format!("path={{{name}}}"), options));
    }
    for net in &case.nets {
        arg("--net", net.clone());
    }
    for endpoint in &case.endpoints {
        let endpoint = if endpoint.is_empty() {
            "vectors=2048"
        } else {
            endpoint
        };
        arg("--endpoint", endpoint.to_owned());
    }
    if case.small {
        args.extend(["--rng", "--console"].map(str::to_owned));
    }
    args.extend(case.args.iter().cloned());
    Ok(Job {
        args,
        files,
        cpu: case.cpu,
        limits: limits(case.seconds),
        journey: case.journey,
        ..Job::default()
    })
}

/// Names of disks.
const DISKS: [&str; 4] = ["disk0", "disk1", "disk2", "disk3"];

fn with_options(value: &str, options: &str) -> String {
    if options.is_empty() {
        value.to_owned()
    } else {
        format!("{value},{options}")
    }
}

/// What goes into a guest's initial ramdisk besides modules, of which the paths are given.
pub(in crate::lab) type Contents<'a> = dyn Fn(&mut Cpio, &[String]) -> Result<()> + 'a;

/// The guest's initial ramdisk.
pub(in crate::lab) fn initrd(
    version: Version,
    kernel: &Kernel,
    contents: &Contents<'_>,
) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    cpio.directory("dev");
    // The kernel opens it for init before there is a devtmpfs.
    cpio.device("dev/console", 5, 1);
    cpio.directory("modules");
    let wanted = version.modules();
    let names: Vec<_> = wanted.iter().map(|(name, _)| *name).collect();
    let mut modules = Vec::new();
    for (name, contents) in kernel.modules(&names)? {
        let path = format!("modules/{name}.ko");
        cpio.file(&path, &contents);
        let parameters = wanted.iter().find(|(module, _)| *module == name);
        let parameters = parameters.map_or("", |(_, parameters)| parameters);
        modules.push(format!("/{path} {parameters}").trim_end().to_owned());
    }
    contents(&mut cpio, &modules)?;
    Ok(cpio.finish())
}

/// Our init, and what it is to do.
fn checks(
    ready: &Ready,
    case: &Case,
    kernel: &Kernel,
    cpio: &mut Cpio,
    modules: &[String],
) -> Result<()> {
    let mut plan = with_modules(&case.plan, modules);
    // Before the run's own time is over.
    plan.timeout_s = limits(case.seconds).total.as_secs() * 3 / 4;
    cpio.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);
    cpio.file("init", &read(&ready.guest)?);
    if let Some(next) = case.next_kernel() {
        cpio.file(next.trim_start_matches('/'), &read(&kernel.image())?);
    }
    Ok(())
}

pub(in crate::lab) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The plan, of which every kernel loads these modules.
fn with_modules(plan: &Plan, modules: &[String]) -> Plan {
    let mut plan = plan.clone();
    plan.modules = modules.to_vec();
    if let Some(kexec) = &mut plan.kexec {
        kexec.plan = with_modules(&kexec.plan, modules);
    }
    plan
}
