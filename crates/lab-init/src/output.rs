//! Running a program, and where its output goes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use amdvi_lab_init::{Output, Ran};

/// How much of a streamed program's standard error goes into the report.
const KEPT: usize = 16 << 10;
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
        Output::Terminal => Ok(Ran {
            code: program.stdin(Stdio::inherit()).status()?.code(),
            ..Ran::default()
        }),
    }
}

fn stream(program: &mut Command) -> io::Result<Ran> {
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().map(|stderr| {
        thread::spawn(move || {
            let mut kept = Vec::new();
            copy(stderr, &mut io::stdout(), |line| {
                kept.extend_from_slice(line);
                kept.drain(..kept.len().saturating_sub(KEPT));
            });
            kept
        })
    });
    let mut object = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        copy(stdout, &mut io::stdout(), |line| {
            if line.starts_with(b"{") && line.trim_ascii_end().ends_with(b"}") {
                object = line.trim_ascii_end().to_vec();
            }
        });
    }
    let kept = stderr.and_then(|thread| thread.join().ok());
    Ok(Ran {
        code: child.wait()?.code(),
        stdout: String::from_utf8_lossy(&object).into_owned(),
        stderr: String::from_utf8_lossy(&kept.unwrap_or_default()).into_owned(),
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
        assert_eq!(ran.stderr, "bad\n");
    }

    #[test]
    fn a_line_without_an_end_gets_one() {
        let mut to = Vec::new();
        copy(&b"one\ntwo"[..], &mut to, |_| ());
        assert_eq!(to, b"one\ntwo\n");
    }
}
