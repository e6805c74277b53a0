//! Guests of the lab: a kernel, an initial ramdisk with our init and what it is to do, under
//! QEMU's software emulation.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use amdvi_lab_init::cpio::Cpio;
use amdvi_lab_init::{PLAN, Plan, Report, report_in};
use anyhow::{Context, Result};

use super::emulator::{Emulator, Limits};
use super::kernels::Kernel;
use crate::step::target_dir;

/// It takes seconds in all on an idle machine.
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(60),
    total: Duration::from_secs(300),
};

/// A guest.
pub(super) struct Guest<'a> {
    /// Its name, and that of its log.
    pub(super) name: &'a str,
    pub(super) qemu: &'a Path,
    pub(super) kernel: &'a Kernel,
    /// Devices, each an argument of `-device`.
    pub(super) devices: &'a [&'a str],
    /// More of the kernel's command line.
    pub(super) cmdline: &'a str,
    /// What init is to do; its modules are filled in from `modules`.
    pub(super) plan: Plan,
    /// Modules to load, and their parameters.
    pub(super) modules: &'a [(&'a str, &'a str)],
    /// Programs: where they are in the guest, and here.
    pub(super) programs: &'a [(&'a str, &'a Path)],
}

/// What came of it.
pub(super) struct Ended {
    pub(super) report: Report,
    /// What came over the serial console is in this file with `.N.log`, N being the attempt.
    pub(super) log: PathBuf,
    /// What went wrong with the emulator and was overcome.
    pub(super) remarks: Vec<String>,
}

impl Guest<'_> {
    /// Boots the guest until it has reported. An emulator that hangs is started once more.
    pub(super) fn run(&self) -> Result<Ended> {
        let folder = target_dir().join("lab");
        fs::create_dir_all(&folder)?;
        let initrd = folder.join(format!("{}.cpio", self.name));
        fs::write(&initrd, self.initrd()?)?;
        let emulator = Emulator {
            qemu: self.qemu,
            kernel: &self.kernel.image(),
            initrd: &initrd,
            cmdline: self.cmdline,
            // One processor: there is nothing that hangs when a second one is started.
            cpus: 1,
            memory: 1024,
            devices: self.devices,
            cpu: "",
            limits: LIMITS,
        };
        let log = folder.join(self.name);
        let mut remarks = Vec::new();
        let console = emulator.run(&log, &mut remarks, &mut |_| ())?;
        let report = report_in(&console)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("its console is in {}.*.log", log.display()))?;
        Ok(Ended {
            report,
            log,
            remarks,
        })
    }

    fn initrd(&self) -> Result<Vec<u8>> {
        let mut cpio = Cpio::default();
        for folder in ["bin", "dev", "lab", "lab/modules"] {
            cpio.directory(folder);
        }
        // The kernel opens it for init before there is a devtmpfs.
        cpio.device("dev/console", 5, 1);
        let mut plan = self.plan.clone();
        let names: Vec<_> = self.modules.iter().map(|(name, _)| *name).collect();
        for (name, contents) in self.kernel.modules(&names)? {
            let path = format!("lab/modules/{name}.ko");
            cpio.file(&path, &contents);
            let parameters = self
                .modules
                .iter()
                .find(|(module, _)| *module == name)
                .map_or("", |(_, parameters)| parameters);
            plan.modules.push(amdvi_lab_init::Module {
                path: format!("/{path}"),
                parameters: parameters.to_owned(),
            });
        }
        for (path, program) in self.programs {
            let contents =
                fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
            cpio.file(path.trim_start_matches('/'), &contents);
        }
        cpio.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);
        Ok(cpio.finish())
    }
}

/// A 64-bit register of a machine that has not started yet, read through QEMU's monitor.
pub(super) fn physical(qemu: &Path, devices: &[&str], address: u64) -> Result<u64> {
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-display", "none", "-S", "-M", "q35"]);
    command.args(["-monitor", "stdio"]);
    for device in devices {
        command.args(["-device", device]);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", qemu.display()))?;
    let mut stdin = child.stdin.take().context("QEMU's monitor has no input")?;
    writeln!(stdin, "xp /1gx {address:#x}\nquit")?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    value_in(&text, address).with_context(|| format!("QEMU's monitor did not show {address:#x}"))
}

/// Reads `00000000fed80030: 0x00000000000029d7`.
fn value_in(monitor: &str, address: u64) -> Option<u64> {
    monitor.lines().find_map(|line| {
        let (at, value) = line.split_once(": 0x")?;
        (u64::from_str_radix(at.trim(), 16) == Ok(address)).then_some(())?;
        u64::from_str_radix(value.trim(), 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_found_among_what_the_monitor_echoes() {
        let shown = "QEMU 11.1 monitor\r\n(qemu) xp /1gx 0xfed80030\r\n\
                     fed80030: 0x00000000000029d7\r\n(qemu) quit\r\n";
        assert_eq!(value_in(shown, 0xfed8_0030), Some(0x29d7));
        assert_eq!(value_in(shown, 0xfed8_0038), None);
    }
}
