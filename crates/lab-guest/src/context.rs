//! What the checks share.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amdvi_lab_guest::Number;
use amdvi_lab_guest::interrupts::{Row, rows};
use amdvi_lab_guest::pattern::matches;
use amdvi_lab_init::kmsg::{self, Record};
use anyhow::{Context as _, Result, bail};

/// How long a line of the log may take to come.
const LOG: Duration = Duration::from_secs(10);
/// How often one looks for it.
const LOOK: Duration = Duration::from_millis(20);

/// What the checks of a run have in common. Checks that hang keep theirs.
#[derive(Default)]
pub(crate) struct Context {
    shared: Mutex<Found>,
}

/// What checks found out for others.
#[derive(Default)]
pub(crate) struct Found {
    /// Lines that the log may have, each once.
    pub(crate) once: Vec<String>,
    /// Patterns of lines that the log may have.
    pub(crate) allow: Vec<String>,
    /// What was measured.
    pub(crate) numbers: Vec<Number>,
    /// MSI-X vectors that were fired.
    pub(crate) msix_vectors: u32,
    /// Those that came as often as they were fired.
    pub(crate) msix_received: u32,
    /// Interrupts that came more often than they were fired.
    pub(crate) msix_duplicates: u64,
}

impl Context {
    /// What was found so far, to add to.
    pub(crate) fn found(&self) -> MutexGuard<'_, Found> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the kernel's log, to see what comes after it.
pub(crate) struct Mark(Option<u64>);

impl Mark {
    /// The log's end.
    pub(crate) fn now() -> Result<Self> {
        Ok(Self(kernel_log()?.last().map(|record| record.sequence)))
    }

    /// What the kernel said since.
    pub(crate) fn since(&self) -> Result<Vec<String>> {
        let after = |record: &Record| self.0.is_none_or(|mark| record.sequence > mark);
        let records = kernel_log()?.into_iter().filter(after);
        Ok(records.map(|record| record.text).collect())
    }

    /// Waits until `enough` holds of what the kernel said since.
    pub(crate) fn until(&self, enough: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        let until = Instant::now() + LOG;
        loop {
            let lines = self.since()?;
            if enough(&lines) || Instant::now() > until {
                return Ok(lines);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for a line.
    pub(crate) fn line(&self, pattern: &str) -> Result<String> {
        let find = |lines: &[String]| lines.iter().find(|line| matches(pattern, line)).cloned();
        let lines = self.until(|lines| find(lines).is_some())?;
        let Some(line) = find(&lines) else {
            bail!("the kernel's log has no `{pattern}` within {LOG:?}, but {lines:?}");
        };
        Ok(line)
    }
}

/// The kernel's own records; what programs write there is left out.
pub(crate) fn kernel_log() -> Result<Vec<Record>> {
    let records = kmsg::read().context("read /dev/kmsg")?;
    Ok(records
        .into_iter()
        .filter(|record| record.facility == 0)
        .collect())
}

/// A file's text, without the space at its end.
pub(crate) fn text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a file that is there.
pub(crate) fn put(path: impl AsRef<Path>, what: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, what).with_context(|| format!("write `{what}` to {}", path.display()))
}

/// The names in a folder, in order.
pub(crate) fn names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let entries = fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// `/proc/interrupts`.
pub(crate) fn interrupts() -> Result<Vec<Row>> {
    Ok(rows(&text("/proc/interrupts")?))
}

/// The processors that are online.
pub(crate) fn online_cpus() -> Result<Vec<u32>> {
    list(&text("/sys/devices/system/cpu/online")?)
}

/// The numbers in a list such as `0-3,8` or `0, 1`.
pub(crate) fn list(text: &str) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(numbers)
}

/// Binds this thread to one of the processors that are online, the `n`th modulo their number. One that
/// leaves just now is no fault: then it is the next.
pub(crate) fn pin(n: usize) -> Result<()> {
    const TRIES: usize = 8;
    for n in n..n + TRIES {
        let cpus = online_cpus()?;
        if bind(cpus[n % cpus.len()])? {
            return Ok(());
        }
    }
    bail!("none of {TRIES} processors to bind to was there")
}

/// Binds this thread to a processor, or to another one if that has left.
pub(crate) fn pin_to(cpu: u32) -> Result<()> {
    if bind(cpu)? {
        return Ok(());
    }
    pin(cpu as usize)
}

/// Binds this thread to a processor; `false` when it is not there.
fn bind(cpu: u32) -> Result<bool> {
    use nix::errno::Errno;
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::unistd::Pid;
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    match sched_setaffinity(Pid::from_raw(0), &set) {
        Err(Errno::EINVAL) => Ok(false),
        other => {
            other.with_context(|| format!("bind to processor {cpu}"))?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_has_single_ones_and_ranges() {
        assert_eq!(list("0-3,8").unwrap(), [0, 1, 2, 3, 8]);
        assert_eq!(list("0").unwrap(), [0]);
        assert_eq!(list("0, 7, 8").unwrap(), [0, 7, 8]);
        assert!(list("").is_err());
    }
}
