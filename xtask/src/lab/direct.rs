//! The reference VMM on this machine's own KVM: one process after the other, or side by side, as the
//! machine travels.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use amdvi_lab_init::Profile;
use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::emulator::{Console, Watch, read};
use super::journey::Leg;
use super::nested::{Job, Ran};

/// How long a reference VMM may take until it listens.
const LISTENS: Duration = Duration::from_secs(60);

/// A reference VMM that runs. It is ended when this is dropped.
struct Process {
    name: String,
    child: Child,
    console: Console,
    log: PathBuf,
    errors: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is none.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the reference VMM, or all those that the machine comes by, to the end of the last.
pub(super) fn travel(
    refvmm: &Path,
    job: &Job,
    folder: &Path,
    watch: &mut Watch<'_>,
) -> Result<Ran> {
    // Sockets have short names, and folders may have long ones.
    let sockets = Folder::new()?;
    let legs = job
        .journey
        .legs(if has_sockets(job) { &sockets.0 } else { folder });
    let until = Instant::now() + job.limits.total;
    let mut waiting = Vec::new();
    let mut ran: Option<Ran> = None;
    for leg in legs {
        let saved = |ran: &Ran| ended(ran) == Some("saved");
        if leg.after.is_some() && !ran.as_ref().is_some_and(saved) {
            break;
        }
        let process = start(refvmm, job, &leg, folder)?;
        if leg.background {
            wait_for(&leg, process, &mut waiting)?;
        } else {
            ran = Some(process.finish(job, until, ran, watch)?);
        }
    }
    // The last that was started is the first that the machine comes to.
    while let Some(next) = waiting.pop() {
        if ran.as_ref().and_then(ended) != Some("moved") {
            // It did not come so far, and nobody else is to wait for it.
            break;
        }
        ran = Some(next.finish(job, until, ran, watch)?);
    }
    ran.context("a journey without a part")
}

/// How the machine left.
fn ended(ran: &Ran) -> Option<&str> {
    ran.json.as_ref()?.pointer("/ended/how")?.as_str()
}

fn has_sockets(job: &Job) -> bool {
    matches!(job.journey, super::journey::Journey::Moved(_))
}

/// Keeps a process that waits, once it does.
fn wait_for(leg: &Leg, mut process: Process, waiting: &mut Vec<Process>) -> Result<()> {
    let until = Instant::now() + LISTENS;
    while !leg
        .socket
        .as_ref()
        .is_none_or(|path| Path::new(path).exists())
    {
        if process.child.try_wait()?.is_some() || Instant::now() > until {
            bail!(
                "{} does not wait for the machine, see {}",
                leg.name,
                process.errors.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    waiting.push(process);
    Ok(())
}

fn start(refvmm: &Path, job: &Job, leg: &Leg, folder: &Path) -> Result<Process> {
    let log = folder.join(format!("console.{}.log", leg.name));
    let errors = folder.join(format!("stderr.{}.log", leg.name));
    let mut child = Command::new(refvmm)
        .args(job.args_with(|_, here| here.to_owned()))
        .args(&leg.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&errors)?)
        .spawn()
        .with_context(|| format!("cannot start {}", refvmm.display()))?;
    let console = Console::new(read(&mut child, &log)?, job.limits.silence);
    Ok(Process {
        name: leg.name.clone(),
        child,
        console,
        log,
        errors,
    })
}

impl Process {
    /// Runs it to its end; `before` is where the machine was before.
    fn finish(
        mut self,
        job: &Job,
        until: Instant,
        before: Option<Ran>,
        watch: &mut Watch<'_>,
    ) -> Result<Ran> {
        let mut json: Option<Value> = None;
        let ended = self.console.follow(until, false, &mut |line| {
            if line.starts_with('{') {
                json = serde_json::from_str(line).ok().or(json.take());
            }
            watch(line);
        });
        if !ended {
            bail!(
                "{} hung (nothing for {} s, or no end in {} s), see {}",
                self.name,
                job.limits.silence.as_secs(),
                job.limits.total.as_secs(),
                self.log.display()
            );
        }
        let status: ExitStatus = self.child.wait()?;
        let errors = fs::read_to_string(&self.errors).unwrap_or_default();
        let (mut console, mut legs) = (String::new(), Vec::new());
        if let Some(before) = before {
            (console, legs) = (before.console, before.legs);
            legs.push((format!("leg {}", legs.len() + 1), before.json));
        }
        console += &self.console.text;
        console += &errors;
        Ok(Ran {
            code: status.code(),
            json,
            legs,
            console,
            remarks: Vec::new(),
            marks: BTreeMap::new(),
            profile: Profile::new(),
        })
    }
}

/// A folder for sockets, which goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("amdvi-lab.{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::lab::journey::Journey;

    /// A program that says what the reference VMM would: where the machine is from and where it goes.
    /// One that waits makes its socket a file, and waits until it is gone.
    const VMM: &str = r#"#!/bin/sh
n=0 how=power-off
while [ $# -gt 0 ]; do
  case $1 in
    --restore) n=$(cat $2) ;;
    --incoming) : > $2; while [ -e $2 ]; do sleep 0.02; done; n=$(cat $2.n) ;;
    --after) to=${2##* }; case $2 in *suspend*) how=saved ;; *) how=moved ;; esac ;;
  esac
  shift
done
[ $n -lt STOP ] || how=power-off
n=$((n + 1))
echo "guest in process $n"
case $how in
  saved) echo $n > $to ;;
  moved) echo $n > $to.n; rm $to ;;
esac
echo "{\"ended\":{\"how\":\"$how\"}}"
"#;

    fn travelled(journey: Journey, stop: &str) -> (Ran, PathBuf) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!(
            "amdvi-xtask-direct.{}.{number}",
            std::process::id()
        ));
        fs::create_dir_all(&folder).unwrap();
        let vmm = folder.join("vmm");
        fs::write(&vmm, VMM.replace("STOP", stop)).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        let job = Job {
            journey,
            limits: crate::lab::nested::limits(1),
            ..Job::default()
        };
        (travel(&vmm, &job, &folder, &mut |_| ()).unwrap(), folder)
    }

    fn guests(ran: &Ran) -> usize {
        ran.console.matches("guest in process").count()
    }

    #[test]
    fn a_machine_goes_from_file_to_file_until_the_guest_is_done() {
        let journey = Journey::Saved { least: 1, most: 9 };
        let (ran, folder) = travelled(journey, "3");
        assert_eq!((guests(&ran), ran.legs.len(), ran.code), (4, 3, Some(0)));
        assert_eq!(ended(&ran), Some("power-off"));
        assert!(ran.console.contains("process 4"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_machine_moves_between_processes_that_run_side_by_side() {
        let (ran, folder) = travelled(Journey::Moved(2), "9");
        assert_eq!((guests(&ran), ran.legs.len()), (3, 2));
        assert_eq!(ended(&ran), Some("power-off"));
        fs::remove_dir_all(folder).unwrap();
        // A guest that is done early leaves nobody who waits for it.
        let (ran, folder) = travelled(Journey::Moved(2), "1");
        assert_eq!((guests(&ran), ran.legs.len()), (2, 1));
        fs::remove_dir_all(folder).unwrap();
    }
}
