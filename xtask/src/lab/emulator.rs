//! A machine under QEMU's software emulation, and what is done when it hangs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use amdvi_lab_init::END;
use anyhow::{Context, Result, bail};

/// How long a guest may take to power off once it has reported.
const POWER_OFF: Duration = Duration::from_secs(10);
/// AMD's virtualization for a /dev/kvm of the guest's own; none of the extensions that need
/// XSAVE, which nested guests do not get right under emulation.
const CPU: &str = "qemu64,+svm,+npt,+x2apic,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+rdrand";

/// What is said of a processor that does not go on. On an emulated AMD machine with two processors a
/// nested guest's died of a triple fault now and then, or waited for ever; with one that has not been
/// seen. A boot that ends so counts only where a second one passes, and every one is reported.
pub(super) const STALLS: [&str; 6] = [
    " had a triple fault at RIP ",
    "rcu: INFO: rcu_preempt detected stalls",
    "rcu: INFO: rcu_sched detected stalls",
    "rcu: INFO: rcu_preempt self-detected stall",
    "watchdog: BUG: soft lockup",
    "watchdog: Watchdog detected hard LOCKUP",
];

/// What a machine whose processor hangs is given to end by itself.
const AFTER_STALL: Duration = Duration::from_secs(30);
/// How often a machine that hangs is started.
const ATTEMPTS: u32 = 3;

/// A machine to boot.
#[derive(Clone, Debug)]
pub(super) struct Emulator<'a> {
    pub(super) qemu: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    /// More of the kernel's command line.
    pub(super) cmdline: &'a str,
    pub(super) cpus: u32,
    /// RAM in MiB.
    pub(super) memory: u32,
    /// Devices, each an argument of `-device`.
    pub(super) devices: &'a [&'a str],
    /// More features of the emulated CPU, such as `,+la57`.
    pub(super) cpu: &'a str,
    pub(super) limits: Limits,
}

/// How long a machine may take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Without a word on its console.
    pub(super) silence: Duration,
    /// Until it has reported.
    pub(super) total: Duration,
}

/// Told every line of the console as it comes.
pub(super) type Watch<'a> = dyn FnMut(&str) + 'a;

impl Emulator<'_> {
    /// Boots the machine until its init has reported. One that hangs is started again, which
    /// `remarks` says. Gives the console's text; its file is `LOG.N.log`, N being the attempt.
    pub(super) fn run(
        &self,
        log: &Path,
        remarks: &mut Vec<String>,
        watch: &mut Watch<'_>,
    ) -> Result<String> {
        for attempt in 1..=ATTEMPTS {
            let log = log.with_added_extension(format!("{attempt}.log"));
            if let Some(text) = self.boot(&log, remarks, watch)? {
                return Ok(text);
            }
            let Limits { silence, total } = self.limits;
            let remark = format!(
                "it hung in attempt {attempt} (nothing for {} s, or no report in {} s), see {}",
                silence.as_secs(),
                total.as_secs(),
                log.display()
            );
            eprintln!("lab: {remark}");
            remarks.push(remark);
        }
        bail!("{}", remarks.join("; "))
    }

    /// QEMU with the machine; its serial port is yet to be said.
    pub(super) fn command(&self, init: &str) -> Command {
        let mut qemu = Command::new(self.qemu);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-M", "q35", "-accel", "tcg,thread=multi"])
            .args(["-cpu", &format!("{CPU}{}", self.cpu)])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory.to_string()])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .arg("-append")
            .arg(format!(
                // The kernel must not give up because a busy machine emulates its timer late.
                "console=ttyS0 panic=-1 no_timer_check rdinit={init} loglevel=6 {}",
                self.cmdline
            ));
        for device in self.devices {
            qemu.args(["-device", device]);
        }
        qemu
    }

    /// The console's text; none when there was no report in time.
    fn boot(
        &self,
        log: &Path,
        remarks: &mut Vec<String>,
        watch: &mut Watch<'_>,
    ) -> Result<Option<String>> {
        let mut child = self
            .command("/init")
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.qemu.display()))?;
        let mut console = Console::new(read(&mut child, log)?, self.limits.silence);
        let reported = console.follow(Instant::now() + self.limits.total, true, watch);
        let ended = console.follow(Instant::now() + POWER_OFF, false, watch);
        if !ended {
            child.kill().context("cannot end QEMU")?;
            if reported {
                remarks.push("it did not power off by itself".to_owned());
            }
        }
        let status = child.wait()?;
        if !reported && !ended {
            return Ok(None);
        }
        let text = console.text;
        if !reported {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            let lines: Vec<_> = text.trim_end().lines().collect();
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

/// Copies a program's output to a file and into a channel, which closes when the program ends.
pub(super) fn read(child: &mut Child, log: &Path) -> Result<Receiver<Vec<u8>>> {
    let mut stdout = child.stdout.take().context("the machine has no output")?;
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

/// What comes over a machine's console.
pub(super) struct Console {
    output: Receiver<Vec<u8>>,
    silence: Duration,
    /// All complete lines.
    pub(super) text: String,
    /// The line that is not complete.
    partial: Vec<u8>,
}

impl Console {
    pub(super) fn new(output: Receiver<Vec<u8>>, silence: Duration) -> Self {
        Self {
            output,
            silence,
            text: String::new(),
            partial: Vec::new(),
        }
    }

    /// Collects output until the report's end (then true), the output's end (then true unless a
    /// report is waited for), a long silence or a point in time.
    pub(super) fn follow(&mut self, until: Instant, report: bool, watch: &mut Watch<'_>) -> bool {
        let mut until = until;
        let mut stalled = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(self.silence)) {
                Ok(chunk) => {
                    let mut found = false;
                    let complete = self.take(&chunk, &mut |line| {
                        found |= STALLS.iter().any(|stall| line.contains(stall));
                        watch(line);
                    });
                    if complete && report {
                        return true;
                    }
                    // It says so again and again, and never ends.
                    if found && !stalled {
                        stalled = true;
                        until = until.min(Instant::now() + AFTER_STALL);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    // A report that was complete has been found before.
                    self.take(b"\n", watch);
                    return !report;
                }
            }
        }
    }

    /// Whether the report's end is among it. QEMU writes a byte at a time.
    fn take(&mut self, chunk: &[u8], watch: &mut Watch<'_>) -> bool {
        let mut complete = false;
        for byte in chunk {
            if *byte != b'\n' {
                self.partial.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial);
            let line = line.trim_end_matches('\r');
            complete |= line.ends_with(END);
            watch(line);
            self.text.push_str(line);
            self.text.push('\n');
            self.partial.clear();
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_ends_without_a_report_is_told_from_one_that_hangs() {
        let (sender, output) = channel();
        let mut console = Console::new(output, Duration::from_secs(60));
        let mut seen = Vec::new();
        // In pieces, the first of which ends within the marker.
        for piece in format!("x\r\n{END}\r\n").as_bytes().chunks(9) {
            sender.send(piece.to_vec()).unwrap();
        }
        let soon = || Instant::now() + Duration::from_millis(1);
        assert!(console.follow(soon(), true, &mut |line| seen.push(line.to_owned())));
        assert_eq!(seen, ["x", END]);
        assert!(!console.follow(soon(), false, &mut |_| ()), "it runs on");
        sender.send(b"its last words".to_vec()).unwrap();
        drop(sender);
        assert!(console.follow(soon(), false, &mut |_| ()), "it ended");
        assert!(console.text.ends_with("its last words\n"));
        let (_, output) = channel();
        assert!(!Console::new(output, Duration::ZERO).follow(soon(), true, &mut |_| ()));
    }
}
