//! Guests of the lab: a kernel, an initial ramdisk with our init and what it is to do, under
//! QEMU's software emulation.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use amdvi_lab_init::cpio::Cpio;
use amdvi_lab_init::{BEGIN, END, PLAN, Plan, Report, report_in};
use anyhow::{Context, Result, bail};

use super::kernels::Kernel;
use crate::step::target_dir;

/// How long a guest may say nothing: it takes seconds in all on an idle machine.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a guest may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long it may take to power off once it has reported.
const POWER_OFF: Duration = Duration::from_secs(10);
/// AMD's virtualization for a /dev/kvm of the guest's own; none of the extensions that need
/// XSAVE, which nested guests do not get right under emulation.
const CPU: &str = "qemu64,+svm,+npt,+x2apic,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+rdrand";

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
    /// All that came over the serial console.
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
        let mut remarks = Vec::new();
        for attempt in 1..=2 {
            let log = folder.join(format!("{}.{attempt}.log", self.name));
            let console = self.boot(&initrd, &log, &mut remarks)?;
            if let Some(console) = console {
                let report = report_in(&console)
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("its console is in {}", log.display()))?;
                return Ok(Ended {
                    report,
                    log,
                    remarks,
                });
            }
            remarks.push(format!(
                "it hung in attempt {attempt} (nothing for {} s, or no report in {} s), see {}",
                SILENCE.as_secs(),
                TIMEOUT.as_secs(),
                log.display()
            ));
        }
        bail!("{}", remarks.join("; "))
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

    /// The console's text; none when there was no report in time.
    fn boot(&self, initrd: &Path, log: &Path, remarks: &mut Vec<String>) -> Result<Option<String>> {
        let mut qemu = Command::new(self.qemu);
        qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .args(["-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi"])
            // One processor: there is nothing that hangs when a second one is started.
            .args(["-cpu", CPU, "-smp", "1", "-m", "1024"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(format!(
                // The kernel must not give up because a busy machine emulates its timer late.
                "console=ttyS0 panic=-1 no_timer_check rdinit=/init loglevel=6 {}",
                self.cmdline
            ));
        for device in self.devices {
            qemu.args(["-device", device]);
        }
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.qemu.display()))?;
        let output = read(&mut child, log)?;
        let mut console = Vec::new();
        let reported = follow(&output, &mut console, Instant::now() + TIMEOUT, true);
        let ended = follow(&output, &mut console, Instant::now() + POWER_OFF, false);
        if !ended {
            child.kill().context("cannot end QEMU")?;
            if reported {
                remarks.push("it did not power off by itself".to_owned());
            }
        }
        let status = child.wait()?;
        let text = String::from_utf8_lossy(&console).into_owned();
        if !reported && !ended {
            return Ok(None);
        }
        if !reported {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            let text = text.trim_end().replace(BEGIN, "");
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!(
                "QEMU ended ({status}) before the guest reported; its last words:\n{last}\n{said}\
                 all of it is in {}",
                log.display()
            );
        }
        Ok(Some(text))
    }
}

/// Copies QEMU's output to a file and into a channel, which closes when QEMU ends.
fn read(child: &mut Child, log: &Path) -> Result<Receiver<Vec<u8>>> {
    let mut stdout = child.stdout.take().context("QEMU has no output")?;
    let mut file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut chunk) {
            // The log is for people: what can't be written is missing there only.
            let _ = file.write_all(&chunk[..length]);
            if sender.send(chunk[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Collects output until the report's end (then true), the output's end (then true unless a
/// report is waited for), a long silence or a point in time.
fn follow(output: &Receiver<Vec<u8>>, console: &mut Vec<u8>, until: Instant, report: bool) -> bool {
    // QEMU writes a byte at a time: each is looked at once, with what the marker began before it.
    let complete = |console: &[u8], seen: usize| {
        let from = seen.saturating_sub(END.len());
        console[from..]
            .windows(END.len())
            .any(|window| window == END.as_bytes())
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let seen = console.len();
        match output.recv_timeout(left.min(SILENCE)) {
            Ok(chunk) => console.extend_from_slice(&chunk),
            Err(RecvTimeoutError::Timeout) => return false,
            // A report that was complete has been found before.
            Err(RecvTimeoutError::Disconnected) => return !report,
        }
        if report && complete(console, seen) {
            return true;
        }
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

    #[test]
    fn output_that_ends_without_a_report_is_told_from_one_that_hangs() {
        let (sender, output) = channel();
        // In pieces, the first of which ends within the marker.
        for piece in format!("x\r\n{END}\r\n").as_bytes().chunks(9) {
            sender.send(piece.to_vec()).unwrap();
        }
        let mut console = Vec::new();
        let soon = || Instant::now() + Duration::from_millis(1);
        assert!(follow(&output, &mut console, soon(), true));
        assert!(!follow(&output, &mut console, soon(), false), "it runs on");
        drop(sender);
        assert!(follow(&output, &mut console, soon(), false), "it ended");
        assert!(!follow(&output, &mut Vec::new(), soon(), true));
    }
}
