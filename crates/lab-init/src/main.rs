//! The first process of a lab guest. It runs the plan that came with the initramfs, prints a
//! report and powers off; whatever goes wrong is part of the report.

mod container;
mod pci;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use amdvi_lab_init::{Module, PLAN, Plan, Ran, Report};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "amdvi-lab-init: this is the first process of a lab guest, and does nothing else"
        );
        std::process::exit(2);
    }
    let mut report = Report::default();
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        let mounted = fs::create_dir_all(place).and_then(|()| {
            mount(
                Some(kind),
                place,
                Some(kind),
                MsFlags::empty(),
                None::<&str>,
            )
            .map_err(io::Error::from)
        });
        match mounted {
            // The kernel may have mounted it before.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => report.problems.push(format!("mount {place}: {error}")),
            Ok(()) => {}
        }
    }
    match plan() {
        Ok(plan) => run(&plan, &mut report),
        Err(error) => report.problems.push(format!("{PLAN}: {error}")),
    }
    report.kernel = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.log = log().unwrap_or_else(|error| vec![format!("/dev/kmsg: {error}")]);

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
        if let Err(error) = load(module) {
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
    for command in &plan.commands {
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
        let ran = match program.output() {
            Ok(output) => Ran {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(error) => Ran {
                stderr: format!("cannot start: {error}"),
                ..Ran::default()
            },
        };
        report.commands.insert(command.name.clone(), ran);
    }
    if plan.container {
        report.container = Some(container::ask(&function));
    }
    for path in &plan.files {
        let read = text(path).map_err(|error| error.to_string());
        report.files.insert(path.clone(), read);
    }
}

fn load(module: &Module) -> io::Result<()> {
    let file = File::open(&module.path)?;
    let parameters = CString::new(module.parameters.as_str())?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Err(nix::Error::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}

fn text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

/// The kernel's log: what follows the `;` of each record of `/dev/kmsg`.
fn log() -> io::Result<Vec<String>> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        let length = match kmsg.read(&mut record) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
            // The record was overwritten before it was read: the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => return Err(error),
        };
        let record = String::from_utf8_lossy(&record[..length]);
        if let Some((_, text)) = record.split_once(';') {
            lines.push(text.lines().next().unwrap_or_default().to_owned());
        }
    }
}
