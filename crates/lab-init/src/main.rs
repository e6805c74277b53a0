//! The first process of a lab guest. It runs the plan that came with the initramfs, prints a
//! report and powers off; whatever goes wrong is part of the report.

mod container;
mod echo;
mod output;
mod profile;

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use amdvi_lab_init::{PLAN, Plan, Ran, Report, kmsg, machine, pci};
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "amdvi-lab-init: this is the first process of a lab guest, and does nothing else"
        );
        std::process::exit(2);
    }
    let mut report = Report {
        problems: machine::mount_all(),
        ..Report::default()
    };
    match plan() {
        Ok(plan) => run(&plan, &mut report),
        Err(error) => report.problems.push(format!("{PLAN}: {error}")),
    }
    report.kernel = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.log = match kmsg::read() {
        Ok(records) => records.into_iter().map(|record| record.text).collect(),
        Err(error) => vec![format!("/dev/kmsg: {error}")],
    };

    // From here on only the report goes to the console.
    let _ = fs::write("/proc/sys/kernel/printk", "1");
    let text = amdvi_lab_init::print(&report);
    let mut console = io::stdout().lock();
    let _ = console.write_all(text.as_bytes());
    let _ = console.flush();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // There is nobody to return to.
    loop {
        std::thread::park();
    }
}

fn plan() -> io::Result<Plan> {
    Ok(serde_json::from_str(&fs::read_to_string(PLAN)?)?)
}

fn run(plan: &Plan, report: &mut Report) {
    for module in &plan.modules {
        if let Err(error) = machine::load_module(&module.path, &module.parameters) {
            report
                .problems
                .push(format!("load {}: {error}", module.path));
        }
    }
    for id in &plan.vfio {
        report.vfio.push(pci::bind_to_vfio(*id));
    }
    let function = report
        .vfio
        .first()
        .map(|bound| bound.function.clone())
        .unwrap_or_default();
    for tap in &plan.taps {
        if let Err(error) = echo::start(tap) {
            report
                .problems
                .push(format!("make the interface {}: {error}", tap.name));
        }
    }
    let mut waited_for = Vec::new();
    for command in &plan.commands {
        let after = command.only_after.as_ref();
        if after.is_some_and(|said| !said.holds(&report.commands)) {
            continue;
        }
        // A sign of life: an emulated machine that says nothing is taken for one that hangs.
        println!("amdvi-lab-init: {}", command.name);
        let mut argv = command
            .argv
            .iter()
            .map(|arg| arg.replace("{function}", &function));
        let mut program = Command::new(argv.next().unwrap_or_default());
        program.args(argv).stdin(Stdio::null());
        if let Some(user) = command.user {
            program.uid(user).gid(user);
        }
        let how = command.clone();
        let mut run = move || {
            output::run(&mut program, &how).unwrap_or_else(|error| Ran {
                stderr: format!("cannot start: {error}"),
                ..Ran::default()
            })
        };
        if command.background {
            waited_for.push((&command.name, thread::spawn(run)));
        } else {
            report.commands.insert(command.name.clone(), run());
        }
    }
    for (name, thread) in waited_for {
        let ran = thread.join().unwrap_or_default();
        report.commands.insert(name.clone(), ran);
    }
    if plan.container {
        report.container = Some(container::ask(&function));
    }
    for path in &plan.files {
        let read = text(path).map_err(|error| error.to_string());
        report.files.insert(path.clone(), read);
    }
}

fn text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}
