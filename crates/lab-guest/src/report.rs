//! What came of the plan.

use serde::{Deserialize, Serialize};

/// What the line with the report begins with.
pub const MARKER: &str = "AMDVI-REPORT ";
/// Lines of the log that a report takes at most; how many there were is in the log's result.
const LINES: usize = 100;
/// Characters of a detail that a report takes at most.
const DETAIL: usize = 4000;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The check's name or label.
    pub name: String,
    /// Whether all held.
    pub passed: bool,
    /// What was seen, or what did not hold.
    pub detail: String,
}

/// Something that was measured several times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// What it is.
    pub name: String,
    /// Its unit, such as `1/s`.
    pub unit: String,
    /// What it was, each time.
    pub values: Vec<f64>,
}

/// What came of the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// Processors that are online.
    pub cpus: usize,
    /// Milliseconds from the kernel's start to that of the first process.
    pub boot_ms: u64,
    /// Another kernel and another report follow without a reset.
    pub followed: bool,
    /// MSI-X vectors that were asked for and fired.
    pub msix_vectors: u32,
    /// Those that were received exactly as often as they were fired.
    pub msix_received: u32,
    /// Interrupts that came more often than they were fired.
    pub msix_duplicates: u64,
    /// What was measured.
    #[serde(default)]
    pub numbers: Vec<Number>,
    /// Lines of the log that nothing allows.
    pub unexpected_log_lines: Vec<String>,
    /// What the first process could not do that it does before any check.
    pub problems: Vec<String>,
    /// The checks, in the order in which they ended.
    pub checks: Vec<Outcome>,
    /// All of it is as it must be.
    pub passed: bool,
}

impl Report {
    /// Sets `passed` from all else, and shortens what is too long for a line of a console.
    pub fn close(&mut self) {
        self.passed = self.problems.is_empty()
            && self.unexpected_log_lines.is_empty()
            && !self.checks.is_empty()
            && self.checks.iter().all(|check| check.passed);
        self.unexpected_log_lines.truncate(LINES);
        for check in &mut self.checks {
            if let Some((end, _)) = check.detail.char_indices().nth(DETAIL) {
                check.detail.truncate(end);
                check.detail.push('…');
            }
        }
    }

    /// The report as it goes to the console.
    pub fn line(&self) -> String {
        match serde_json::to_string(self) {
            Ok(json) => format!("{MARKER}{}\n", ascii(&json)),
            Err(error) => format!("{MARKER}\"{error}\"\n"),
        }
    }
}

/// JSON with every character outside ASCII escaped: consoles are what they are.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// The reports in what came over the console, one for each kernel that was booted.
///
/// # Errors
/// A line that begins like a report is none.
pub fn reports_in(console: &str) -> Result<Vec<Report>, String> {
    // A marker that is not at a line's start is one too: the line before may lack its end.
    let lines = console.lines().filter_map(|line| line.split_once(MARKER));
    lines
        .map(|(_, json)| {
            serde_json::from_str(json.trim())
                .map_err(|error| format!("the guest's report is damaged ({error}): {json}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(name: &str) -> Outcome {
        Outcome {
            name: name.into(),
            passed: true,
            detail: "ü\n𝄞 \"quoted\"".into(),
        }
    }

    #[test]
    fn a_report_is_one_line_of_ascii_and_is_found_again() {
        let mut report = Report {
            kernel: "7.3".into(),
            checks: vec![passed("log")],
            numbers: vec![Number {
                name: "retarget-write".into(),
                unit: "µs".into(),
                values: vec![1.25, 1e6],
            }],
            ..Report::default()
        };
        report.close();
        assert!(report.passed);
        let line = report.line();
        assert!(line.is_ascii());
        assert_eq!(line.lines().count(), 1);
        let console = format!("[ 0.1] boot\r\n{line}\r[1.0] reboot: Power down\r\n{line}");
        assert_eq!(reports_in(&console), Ok(vec![report.clone(), report]));
        assert_eq!(reports_in("nothing"), Ok(vec![]));
        assert!(reports_in(&line[..line.len() / 2]).is_err());
    }

    #[test]
    fn nothing_checked_is_not_passed() {
        let mut report = Report::default();
        report.close();
        assert!(!report.passed);
        let mut report = Report {
            checks: vec![passed("a")],
            unexpected_log_lines: vec!["x".into(); 2 * LINES],
            ..Report::default()
        };
        report.checks[0].detail = "ü".repeat(2 * DETAIL);
        report.close();
        assert!(!report.passed);
        assert_eq!(report.unexpected_log_lines.len(), LINES);
        assert_eq!(report.checks[0].detail.chars().count(), DETAIL + 1);
    }
}
