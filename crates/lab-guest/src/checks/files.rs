//! Contents of files, for what no other check looks at.

use amdvi_lab_guest::pattern::matches;
use amdvi_lab_guest::plan::Files;
use anyhow::{Result, ensure};

use crate::context::text;

pub(super) fn check(want: &Files) -> Result<String> {
    let mut wrong = Vec::new();
    for (path, pattern) in &want.files {
        match (text(path), pattern) {
            (Ok(_), None) => wrong.push(format!("{path} must not be there")),
            (Err(_), None) => {}
            (Err(error), Some(_)) => wrong.push(format!("{error:#}")),
            (Ok(text), Some(pattern)) => {
                if !text.lines().any(|line| matches(pattern, line)) {
                    wrong.push(format!("no line of {path} matches `{pattern}`: {text:?}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(format!("{} files", want.files.len()))
}
