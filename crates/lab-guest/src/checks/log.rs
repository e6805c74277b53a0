//! The whole of the kernel's log.

use amdvi_lab_guest::allow::Allowed;
use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::Log;
use amdvi_lab_init::kmsg::Record;
use anyhow::{Result, bail};

use crate::context::{Context, kernel_log};

/// The log's lines that nothing allows.
pub(crate) fn unexpected(release: &str, more: &[String], context: &Context) -> Result<Vec<String>> {
    let mut allowed = Allowed::of(release);
    allowed.allow(more.iter().cloned());
    let found = context.found();
    allowed.allow(found.allow.iter().cloned());
    for line in &found.once {
        allowed.once(line.clone());
    }
    let log = kernel_log()?;
    Ok(allowed.unexpected(log.iter().map(|record| record.text.as_str())))
}

/// That each line is allowed, all that must be there is, and nothing else that must not.
pub(crate) fn check(want: &Log, unexpected: &[String]) -> Result<String> {
    let log = kernel_log()?;
    let mut wrong = Vec::new();
    // The buffer is a ring: what is not there was not looked at.
    let lost = lost(&log);
    if lost > 0 {
        wrong.push(format!(
            "{lost} lines were overwritten before they were read: boot with log_buf_len=4M"
        ));
    }
    for pattern in &want.require {
        if !log.iter().any(|record| matches(pattern, &record.text)) {
            wrong.push(format!("no line matches `{pattern}`"));
        }
    }
    for pattern in &want.forbid {
        let lines = log.iter().filter(|record| matches(pattern, &record.text));
        wrong.extend(lines.map(|record| format!("`{}` must not be", record.text)));
    }
    if !unexpected.is_empty() {
        wrong.push(format!(
            "{} lines that nothing allows, the first of them: `{}`",
            unexpected.len(),
            unexpected[0]
        ));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(format!(
        "{} lines, each allowed; {} that must be there",
        log.len(),
        want.require.len()
    ))
}

/// Records that were there once: numbers that are missing before the first one. Between others
/// there may be a program's.
fn lost(log: &[Record]) -> u64 {
    log.first().map_or(0, |first| first.sequence)
}
