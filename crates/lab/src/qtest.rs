//! A client of QEMU's qtest protocol: one command a line, one answer a line, over stdin and stdout.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The most lines in one [`Script`]: neither side's pipe fills up while the other is not reading.
pub const MAX_LINES: usize = 400;
/// How long QEMU may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// A sequence of commands.
#[derive(Clone, Debug, Default)]
pub struct Script {
    text: String,
    lines: usize,
}

impl Script {
    /// Adds a command; returns the index of its answer.
    pub fn push(&mut self, command: impl Display) -> usize {
        use std::fmt::Write;
        // Writing to a string can't fail.
        let _ = writeln!(self.text, "{command}");
        self.lines += 1;
        self.lines - 1
    }

    /// Adds a 64-bit store.
    pub fn write64(&mut self, gpa: u64, value: u64) {
        self.push(format_args!("writeq {gpa:#x} {value:#x}"));
    }

    /// Adds a 32-bit store.
    pub fn write32(&mut self, gpa: u64, value: u32) {
        self.push(format_args!("writel {gpa:#x} {value:#x}"));
    }

    /// Adds a 64-bit load; returns the index of its answer.
    pub fn read64(&mut self, gpa: u64) -> usize {
        self.push(format_args!("readq {gpa:#x}"))
    }

    /// Adds a 32-bit load; returns the index of its answer.
    pub fn read32(&mut self, gpa: u64) -> usize {
        self.push(format_args!("readl {gpa:#x}"))
    }

    /// Adds the store of consecutive 64-bit words.
    pub fn write_words(&mut self, gpa: u64, words: &[u64]) {
        use std::fmt::Write;
        let _ = write!(self.text, "write {gpa:#x} {} 0x", words.len() * 8);
        for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
            let _ = write!(self.text, "{byte:02x}");
        }
        let _ = writeln!(self.text);
        self.lines += 1;
    }

    /// Adds the load of `count` consecutive 64-bit words; returns the index of its answer.
    pub fn read_words(&mut self, gpa: u64, count: usize) -> usize {
        self.push(format_args!("read {gpa:#x} {}", count * 8))
    }

    /// Number of commands.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Appends another script.
    pub fn append(&mut self, other: &Self) {
        self.text.push_str(&other.text);
        self.lines += other.lines;
    }
}

/// What a number in an answer is.
pub fn number(answer: &str) -> Result<u64> {
    let digits = answer
        .trim()
        .strip_prefix("0x")
        .with_context(|| format!("`{answer}` is not a number"))?;
    u64::from_str_radix(digits, 16).with_context(|| format!("`{answer}` is not a number"))
}

/// The 64-bit words of an answer to [`Script::read_words`].
pub fn words(answer: &str) -> Result<Vec<u64>> {
    let digits = answer
        .trim()
        .strip_prefix("0x")
        .with_context(|| format!("`{answer}` is not a list of bytes"))?;
    digits
        .as_bytes()
        .chunks(16)
        .map(|chunk| {
            let text = std::str::from_utf8(chunk)?;
            Ok(u64::from_str_radix(text, 16)?.swap_bytes())
        })
        .collect()
}

/// A running QEMU.
pub struct Qtest {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    traces: Receiver<String>,
    /// The last of what QEMU said on stderr, for an error message.
    last_words: VecDeque<String>,
}

impl Qtest {
    /// Starts `program` with `args` and qtest on its standard input and output.
    pub fn spawn(program: &Path, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args([
                "-accel",
                "qtest",
                "-qtest",
                "stdio",
                "-qtest-log",
                "/dev/null",
            ])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("QEMU has no standard streams");
        };
        let (sender, traces) = channel();
        std::thread::spawn(move || {
            // Ends with QEMU, or when nobody listens any more.
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while matches!(stderr.by_ref().read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            traces,
            last_words: VecDeque::new(),
        })
    }

    /// Runs a script; the answers without their `OK `.
    pub fn run(&mut self, script: &Script) -> Result<Vec<String>> {
        if script.len() > MAX_LINES {
            bail!("a script of {} lines could block", script.len());
        }
        if let Err(error) = self.stdin.write_all(script.text.as_bytes()) {
            return Err(self.post_mortem(error));
        }
        let mut answers = Vec::with_capacity(script.len());
        while answers.len() < script.len() {
            let mut line = String::new();
            match self.stdout.read_line(&mut line) {
                Ok(n) if n > 0 => {}
                Ok(_) => return Err(self.post_mortem("it closed its output")),
                Err(error) => return Err(self.post_mortem(error)),
            }
            match line.trim_end().split_once("OK") {
                Some(("", answer)) => answers.push(answer.trim().to_owned()),
                _ => {
                    let command = script.text.lines().nth(answers.len()).unwrap_or_default();
                    bail!("QEMU answered `{}` to `{command}`", line.trim_end());
                }
            }
        }
        Ok(answers)
    }

    /// The next line of QEMU's standard error.
    pub fn trace(&mut self) -> Result<String> {
        match self.traces.recv_timeout(PATIENCE) {
            Ok(line) => {
                if self.last_words.len() == 8 {
                    self.last_words.pop_front();
                }
                self.last_words.push_back(line.clone());
                Ok(line)
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("QEMU traced nothing for {} s", PATIENCE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.post_mortem("it closed its stderr")),
        }
    }

    fn post_mortem(&mut self, why: impl Display) -> anyhow::Error {
        // Give it a moment to say why.
        while let Ok(line) = self.traces.recv_timeout(Duration::from_millis(200)) {
            self.last_words.push_back(line);
        }
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            _ => "still running".into(),
        };
        let skip = self.last_words.len().saturating_sub(8);
        let said: Vec<_> = self.last_words.iter().skip(skip).cloned().collect();
        anyhow::anyhow!(
            "QEMU is gone: {why} ({status}); it said:\n{}",
            said.join("\n")
        )
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        // Closing its input doesn't end it. If it has ended already both calls fail, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_counts_its_lines_and_writes_bytes_in_memory_order() {
        let mut script = Script::default();
        script.write64(0x1000, 0xff);
        script.write_words(0x2000, &[0x0102, 1 << 63]);
        let answer = script.read_words(0x2000, 2);
        assert_eq!((script.len(), answer), (3, 2));
        assert_eq!(
            script.text,
            "writeq 0x1000 0xff\nwrite 0x2000 16 0x02010000000000000000000000000080\nread 0x2000 16\n"
        );
    }

    #[test]
    fn answers_are_read_back() {
        assert_eq!(number("0x0000000000000018").expect("a number"), 0x18);
        assert!(number("").is_err());
        assert_eq!(
            words("0x02010000000000000000000000000080").expect("bytes"),
            [0x0102, 1 << 63]
        );
    }
}
