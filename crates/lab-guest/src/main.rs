//! The first process of a Linux guest on the reference VMM. It runs the plan that came with the
//! initramfs, prints a report and ends the machine; whatever goes wrong is part of the report.

mod checks;
mod context;
mod endpoint;
mod kexec;
mod memory;
mod perf;
mod registers;
mod runner;
mod sys;
mod vfio;

use std::fs;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use amdvi_lab_guest::{PLAN, Plan, Report, Then};
use amdvi_lab_init::machine;
use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};

use runner::Run;

/// Open files that this process may have: an event counter for each of 2048 vectors, and more.
const FILES: u64 = 16 * 1024;

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "amdvi-lab-guest: this is the first process of a guest on the reference VMM, and does \
             nothing else"
        );
        std::process::exit(2);
    }
    let boot_ms = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_or(0, |time| time.as_millis() as u64);
    let mut report = Report {
        boot_ms,
        problems: machine::mount_all(),
        ..Report::default()
    };
    report.kernel = context::text("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.cpus = context::online_cpus().map_or(0, |cpus| cpus.len());
    let mut problem = |what: &str, done: Result<()>| {
        if let Err(error) = done {
            report.problems.push(format!("{what}: {error:#}"));
        }
    };
    problem("limit of open files", files());
    let plan = plan().unwrap_or_else(|error| {
        problem(PLAN, Err(error));
        Plan::default()
    });
    for module in &plan.modules {
        let (path, parameters) = module.split_once(' ').unwrap_or((module, ""));
        let loaded = machine::load_module(path, parameters);
        problem(&format!("load {module}"), loaded.map_err(Into::into));
    }
    let run = Arc::new(Run::new(plan.clone(), report));
    let watched = Arc::clone(&run);
    let limit = Duration::from_secs(plan.timeout_s);
    let (then, next) = (plan.then, plan.kexec);
    thread::spawn(move || {
        thread::sleep(limit);
        // No next kernel after this one.
        end(&watched, then, None);
    });
    run.checks();
    end(&run, then, next.as_deref());
    // The watchdog was first.
    loop {
        thread::park();
    }
}

fn plan() -> Result<Plan> {
    let text = fs::read_to_string(PLAN).context("read it")?;
    Ok(serde_json::from_str(&text)?)
}

fn files() -> Result<()> {
    // Raising it may need the limit of all of them raised.
    let all = context::text("/proc/sys/fs/nr_open").and_then(|text| Ok(text.parse::<u64>()?));
    if all.is_ok_and(|all| all < FILES) {
        context::put("/proc/sys/fs/nr_open", &FILES.to_string())?;
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES)?)
}

/// Prints the report and ends the machine. Returns only when somebody else does that already.
fn end(run: &Run, then: Then, next: Option<&amdvi_lab_guest::plan::Kexec>) {
    let Some(mut report) = run.close() else {
        return;
    };
    let mut mode = match then {
        Then::Poweroff => RebootMode::RB_POWER_OFF,
        Then::Reboot => RebootMode::RB_AUTOBOOT,
        Then::Kexec => {
            let loaded = match next {
                Some(next) => kexec::load(next),
                None => Err(anyhow::anyhow!(
                    "the plan has no `kexec`, or its time is over"
                )),
            };
            match loaded {
                Ok(()) => {
                    report.followed = true;
                    RebootMode::RB_KEXEC
                }
                Err(error) => {
                    report
                        .problems
                        .push(format!("load the next kernel: {error:#}"));
                    report.passed = false;
                    RebootMode::RB_POWER_OFF
                }
            }
        }
    };
    // From here on only the report goes to the console.
    let printk = fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    let _ = fs::write("/proc/sys/kernel/printk", "1");
    let mut console = io::stdout().lock();
    let _ = console.write_all(format!("\n{}", report.line()).as_bytes());
    let _ = console.flush();
    // All of it has left the serial port before the machine ends.
    let _ = nix::sys::termios::tcdrain(io::stdout());
    let _ = fs::write("/proc/sys/kernel/printk", printk);
    loop {
        let _ = reboot(mode);
        mode = RebootMode::RB_POWER_OFF;
        thread::sleep(Duration::from_secs(5));
    }
}
