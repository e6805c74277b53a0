//! Running a program, and where its output goes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use amdvi_lab_init::{self as lab, Mark, Output, Ran};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::profile::Sampler;

/// How long a process may take to become the program that it is to run.
const EXEC: Duration = Duration::from_millis(50);
/// A longer line is passed on in pieces.
const LINE: u64 = 1 << 20;

/// Runs a program to its end, and looks for marks in what it prints to the console.
pub(crate) fn run(program: &mut Command, command: &lab::Command) -> io::Result<Ran> {
    match command.output {
        Output::Report => {
            let output = program.output()?;
            Ok(Ran {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                ..Ran::default()
            })
        }
        Output::Console => {
            // What this kernel has to say would end up amid the program's lines.
            let _ = fs::write("/proc/sys/kernel/printk", "1");
            stream(program, command)
        }
        Output::Terminal => {
            let _ = fs::write("/proc/sys/kernel/printk", "1");
            raw(io::stdin())?;
            Ok(Ran {
                code: program.stdin(Stdio::inherit()).status()?.code(),
                ..Ran::default()
            })
        }
    }
}

/// Every key goes to the program as it is, and nothing is echoed: its guest does that.
fn raw(terminal: impl AsFd) -> io::Result<()> {
    let mut settings = tcgetattr(&terminal)?;
    cfmakeraw(&mut settings);
    Ok(tcsetattr(&terminal, SetArg::TCSANOW, &settings)?)
}

fn stream(program: &mut Command, command: &lab::Command) -> io::Result<Ran> {
    let start = Instant::now();
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || copy(stderr, &mut io::stdout(), |_| ())));
    let mut object = Vec::new();
    let mut seen = BTreeMap::new();
    let id = child.id();
    let marks = &command.marks;
    let profiling = command.profile.as_ref();
    let sampler = profiling.map(|profiling| {
        thread::sleep(EXEC);
        Sampler::start(id).map(|sampler| (sampler, profiling))
    });
    let sampler = sampler.transpose()?;
    if let Some(stdout) = child.stdout.take() {
        copy(stdout, &mut io::stdout(), |line| {
            if line.starts_with(b"{") && line.trim_ascii_end().ends_with(b"}") {
                object = line.trim_ascii_end().to_vec();
            }
            if let Some((sampler, profiling)) = &sampler
                && line.starts_with(profiling.phase.as_bytes())
            {
                let line = String::from_utf8_lossy(line);
                sampler.phase(line.split_ascii_whitespace().last().unwrap_or_default());
            }
            for (name, text) in marks {
                if !seen.contains_key(name) && contains(line, text.as_bytes()) {
                    let micros = start.elapsed().as_micros() as u64;
                    seen.insert(name.clone(), look(id, micros));
                }
            }
        });
    }
    if let Some(thread) = stderr {
        // A thread that panicked has said so on the console.
        let _ = thread.join();
    }
    let code = child.wait()?.code();
    Ok(Ran {
        code,
        profile: sampler.map_or_else(BTreeMap::new, |(sampler, profiling)| {
            sampler.end(&profiling.names)
        }),
        stdout: String::from_utf8_lossy(&object).into_owned(),
        stderr: String::new(),
        marks: seen,
    })
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len().max(1)).any(|part| part == text)
}

/// Looks at a program that has just printed a mark. What can't be known is 0.
fn look(id: u32, micros: u64) -> Mark {
    let maps = fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
    let (resident_kib, largest_kib) = memory(&maps);
    Mark {
        micros,
        resident_kib,
        largest_kib,
    }
}

/// The resident KiB of all mappings, and those of the largest one: of `/proc/…/smaps`.
fn memory(smaps: &str) -> (u64, u64) {
    let field = |line: &str, name: &str| {
        let value = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
        value.trim().parse::<u64>().ok()
    };
    let (mut all, mut size) = (0, 0);
    let mut largest = (0, 0);
    for line in smaps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if let Some(kib) = field(line, "Rss:") {
            all += kib;
            largest = largest.max((size, kib));
        }
    }
    (all, largest.1)
}

/// Copies lines, each in one piece, and shows them.
fn copy(from: impl Read, to: &mut impl Write, mut show: impl FnMut(&[u8])) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut from).take(LINE).read_until(b'\n', &mut line) {
        show(&line);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        // A console that takes nothing more ends the run by its silence.
        let _ = to.write_all(&line);
        let _ = to.flush();
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passed_on_whole_and_the_last_object_is_kept() {
        let mut program = Command::new("sh");
        program.args([
            "-c",
            "echo boot; echo '{\"a\":1}'; echo '{ no object'; printf '{\"b\":2}'; echo bad >&2; exit 3",
        ]);
        let marks = [("x", "boo"), ("y", "\"b\""), ("z", "never")];
        let marks = marks.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let command = lab::Command {
            name: "sh".into(),
            argv: Vec::new(),
            user: None,
            output: Output::Console,
            marks: marks.into(),
            background: false,
            profile: None,
            only_after: None,
        };
        let ran = stream(&mut program, &command).unwrap();
        assert_eq!(ran.code, Some(3));
        let seen: Vec<_> = ran.marks.keys().collect();
        assert_eq!(seen, ["x", "y"]);
        assert_eq!(ran.stdout, "{\"b\":2}");
        assert_eq!(ran.stderr, "", "the console has it");
    }

    #[test]
    fn the_largest_mapping_is_told_from_all_others() {
        let smaps = "1-2 r--p 0 0:0 0 /x\nSize:   8 kB\nRss:   4 kB\nPss:  1 kB\n\
                     2-9 rw-p 0 0:0 0\nSize:  524288 kB\nRss:  1000 kB\n\
                     9-a rw-p 0 0:0 0\nSize:  1024 kB\nRss:  1024 kB\n";
        assert_eq!(memory(smaps), (2028, 1000));
        assert_eq!(memory(""), (0, 0));
        let own = fs::read_to_string("/proc/self/smaps").unwrap();
        let (all, largest) = memory(&own);
        assert!(all > 0 && largest <= all);
    }

    #[test]
    fn a_line_without_an_end_gets_one() {
        let mut to = Vec::new();
        copy(&b"one\ntwo"[..], &mut to, |_| ());
        assert_eq!(to, b"one\ntwo\n");
    }
}
