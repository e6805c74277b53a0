//! Running a program, and where its output goes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use amdvi_lab_init::{Output, Ran};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// A longer line is passed on in pieces.
const LINE: u64 = 1 << 20;

/// Runs a program to its end.
pub(crate) fn run(program: &mut Command, output: Output) -> io::Result<Ran> {
    match output {
        Output::Report => {
            let output = program.output()?;
            Ok(Ran {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        }
        Output::Console => {
            // What this kernel has to say would end up amid the program's lines.
            let _ = fs::write("/proc/sys/kernel/printk", "1");
            stream(program)
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

fn stream(program: &mut Command) -> io::Result<Ran> {
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || copy(stderr, &mut io::stdout(), |_| ())));
    let mut object = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        copy(stdout, &mut io::stdout(), |line| {
            if line.starts_with(b"{") && line.trim_ascii_end().ends_with(b"}") {
                object = line.trim_ascii_end().to_vec();
            }
        });
    }
    if let Some(thread) = stderr {
        // A thread that panicked has said so on the console.
        let _ = thread.join();
    }
    Ok(Ran {
        code: child.wait()?.code(),
        stdout: String::from_utf8_lossy(&object).into_owned(),
        stderr: String::new(),
    })
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
        let ran = stream(&mut program).unwrap();
        assert_eq!(ran.code, Some(3));
        assert_eq!(ran.stdout, "{\"b\":2}");
        assert_eq!(ran.stderr, "", "the console has it");
    }

    #[test]
    fn a_line_without_an_end_gets_one() {
        let mut to = Vec::new();
        copy(&b"one\ntwo"[..], &mut to, |_| ());
        assert_eq!(to, b"one\ntwo\n");
    }
}
