//! The report for people: aligned columns, colour only on a terminal.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use amdvi_hostcap::ram::Placement;
use amdvi_hostcap::{Decision, HostCapSpec};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Summary;
use crate::run::host::HostIommu;
use crate::run::machine::Machine;
use crate::run::plan::Job;
use crate::run::{Accel, Outcome};

/// Width of the scenario names.
const NAME: usize = 20;
/// Width to which sentences are wrapped.
const LINE: usize = 100;

#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Prints the report while the run goes on.
pub struct Human {
    out: Box<dyn Write>,
    terminal: bool,
}

/// The line that shows which scenario is running; gone when it is finished.
pub struct Progress(Option<ProgressBar>);

impl Human {
    /// Prints to `out`; in colour, and with a progress line, if that is a terminal.
    pub fn new(out: Box<dyn Write>, terminal: bool) -> Self {
        Self { out, terminal }
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.terminal {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }

    /// A report that nobody reads any more (a closed pipe) is not the run's failure.
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}", text.trim_end());
        let _ = self.out.flush();
    }

    fn field(&mut self, name: &str, text: &str) {
        let name = self.paint(Colour::Bold, &format!("{name:<11}"));
        for (n, part) in wrap(text, LINE - 11).iter().enumerate() {
            let line = if n == 0 {
                format!("{name}{part}")
            } else {
                format!("{:11}{part}", "")
            };
            self.line(&line);
        }
    }

    /// Host, request and offer.
    pub fn header(&mut self, accel: &Accel, why: &str, machine: &Machine) {
        self.field("Runs on", &format!("{}: {why}", accel.name()));
        self.host(&machine.host);
        self.field("Requested", &machine.requested.text);
        let offered = match machine.interrupts_per_function() {
            0 => "no interrupt remapping".to_owned(),
            n => format!("{n} interrupts per function"),
        };
        let on: Vec<_> = machine
            .offered()
            .into_iter()
            .filter(|(_, value)| *value == true)
            .collect();
        let names: Vec<_> = on.iter().map(|(name, _)| name.as_str()).collect();
        self.field("Offered", &format!("{offered}: {}", names.join(", ")));
        let ram = match machine.ram.layout().placement {
            Placement::BelowFourGib => machine.ram.to_string(),
            _ => format!("{}: {}", machine.ram, machine.ram.layout().reason),
        };
        self.field("RAM", &ram);
        self.line("");
        self.decisions(&machine.offer.decisions);
        self.line("");
        let title = format!(
            "{:<6} {:<NAME$} {:>9} {:>8} {:>7} {:>8} {:>8}",
            "", "Scenario", "delivered", "blocked", "events", "ns/irq", "ms"
        );
        let title = self.paint(Colour::Bold, &title);
        self.line(&title);
    }

    /// What was asked, what each source said, what could not be asked, and what does not agree.
    fn host(&mut self, host: &HostIommu) {
        if host.spec == HostCapSpec::None {
            return self.field(
                "Host IOMMU",
                "does not matter: no function is passed through",
            );
        }
        self.field("Host IOMMU", &host.spec.to_string());
        for (source, facts) in host.asked() {
            let said = match facts {
                0 => "states no fact".to_owned(),
                1 => "states 1 fact".to_owned(),
                n => format!("states {n} facts"),
            };
            self.remark(Colour::Dim, &format!("{source} {said}"));
            for gap in host.facts.gaps().filter(|gap| gap.source == source) {
                let text = format!("  can't tell about {}: {}", gap.scope, gap.problem);
                self.remark(Colour::Yellow, &text);
            }
            for note in host.facts.notes().filter(|note| note.source == source) {
                let text = format!("  saw on {}: {}", note.scope, note.text);
                self.remark(Colour::Dim, &text);
            }
        }
        for conflict in host.facts.conflicts() {
            self.remark(Colour::Yellow, &format!("conflict: {conflict}"));
        }
    }

    /// A sentence below a field.
    fn remark(&mut self, colour: Colour, text: &str) {
        let indent = 11 + text.len() - text.trim_start().len();
        for (n, part) in wrap(text.trim_start(), LINE - indent - 2)
            .iter()
            .enumerate()
        {
            let indent = if n == 0 { indent } else { indent + 2 };
            let part = self.paint(colour, part);
            self.line(&format!("{:indent$}{part}", ""));
        }
    }

    fn decisions(&mut self, decisions: &[Decision]) {
        let title = format!("{:<14} {:<9} {:<8} Why", "Feature", "requested", "granted");
        let title = self.paint(Colour::Bold, &title);
        self.line(&title);
        let (asked, rest): (Vec<_>, Vec<_>) = decisions
            .iter()
            .partition(|decision| decision.requested.is_on());
        for decision in asked {
            let granted = format!("{:<8}", decision.feature.spell(decision.granted));
            let colour = if decision.is_withheld() {
                Colour::Yellow
            } else {
                Colour::Green
            };
            let granted = self.paint(colour, &granted);
            for (n, part) in wrap(&decision.reason, LINE - 34).iter().enumerate() {
                let line = if n == 0 {
                    let requested = decision.feature.spell(decision.requested);
                    format!(
                        "{:<14} {requested:<9} {granted} {part}",
                        decision.feature.name()
                    )
                } else {
                    format!("{:34}{part}", "")
                };
                self.line(&line);
            }
        }
        if !rest.is_empty() {
            let names: Vec<_> = rest
                .iter()
                .map(|decision| decision.feature.name())
                .collect();
            let text = format!("not requested: {}", names.join(", "));
            for part in wrap(&text, LINE) {
                let part = self.paint(Colour::Dim, &part);
                self.line(&part);
            }
        }
    }

    /// A scenario begins: `number` of `total`.
    pub fn start(&mut self, job: &Job, number: usize, total: usize) -> Progress {
        if !self.terminal {
            return Progress(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(format!(
            "{number}/{total} {}: {}",
            job.scenario.name, job.scenario.about
        ));
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(Some(bar))
    }

    /// The scenario is over.
    pub fn finish(&mut self, progress: Progress, outcome: &Outcome) {
        if let Some(bar) = progress.0 {
            bar.finish_and_clear();
        }
        let result = if let Some(gone) = outcome.gone {
            format!("{gone:<6}")
        } else if outcome.passed {
            self.paint(Colour::Green, "ok    ")
        } else {
            self.paint(Colour::Red, "FAILED")
        };
        let time = match outcome.ns_per_interrupt {
            0 => "-".to_owned(),
            ns => ns.to_string(),
        };
        let mut line = String::new();
        let _ = write!(
            line,
            "{result} {:<NAME$} {:>9} {:>8} {:>7} {time:>8} {:>8}",
            outcome.name, outcome.delivered, outcome.blocked, outcome.events, outcome.ms
        );
        self.line(&line);
        for part in wrap(&outcome.detail, LINE - 7) {
            let part = if outcome.passed {
                self.paint(Colour::Dim, &part)
            } else {
                part
            };
            self.line(&format!("{:7}{part}", ""));
        }
        if outcome.on_its_own_machine {
            let text = format!(
                "on its own machine, which what was requested can't stand in for: {}, host {}",
                outcome.device, outcome.host_caps
            );
            for part in wrap(&text, LINE - 7) {
                let part = self.paint(Colour::Dim, &part);
                self.line(&format!("{:7}{part}", ""));
            }
        }
        if !outcome.passed {
            for text in &outcome.log {
                self.line(&format!("{:7}| {text}", ""));
            }
        }
    }

    /// The last line.
    pub fn verdict(&mut self, summary: &Summary<'_>, took: Duration) {
        let total = summary.outcomes.len();
        let failed: Vec<_> = summary
            .outcomes
            .iter()
            .filter(|outcome| !outcome.passed)
            .map(|outcome| outcome.name)
            .collect();
        for left_out in summary.left_out {
            let line = format!("not run {:<NAME$} {}", left_out.name, left_out.reason);
            let line = self.paint(Colour::Dim, &line);
            self.line(&line);
        }
        let accel = format!("{} in {:.1} s", summary.accel.name(), took.as_secs_f64());
        let verdict = if let Some(gone) = summary.gone() {
            format!("NO RESULT: the machine was {gone} before its scenario ended, {accel}")
        } else if summary.passed() {
            self.paint(
                Colour::Green,
                &format!("PASSED: all {total} scenarios, {accel}"),
            )
        } else {
            let names = failed.join(", ");
            let count = failed.len();
            self.paint(
                Colour::Red,
                &format!("FAILED: {count} of {total} scenarios, {accel}: {names}"),
            )
        };
        self.line("");
        self.line(&verdict);
    }
}

/// Breaks text at spaces (and at the commas of a property string) into lines of `width`
/// characters; a longer word stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_inclusive([' ', ',']) {
            if !line.is_empty() && line.chars().count() + word.trim_end().chars().count() > width {
                lines.push(line.trim_end().to_owned());
                line.clear();
            }
            line.push_str(if line.is_empty() {
                word.trim_start()
            } else {
                word
            });
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::RamWish;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn outcome(passed: bool) -> Outcome {
        Outcome {
            name: "intremap-2k",
            passed,
            delivered: 2048,
            blocked: 0,
            events: 0,
            ns_per_interrupt: 321,
            detail: "2048 of 2048".into(),
            accel: "in-process",
            interrupts: None,
            routes: None,
            ms: 12,
            device: "amd-iommu".into(),
            host_caps: "none".into(),
            ram: "64 MiB below 4 GiB".into(),
            gone: None,
            on_its_own_machine: false,
            log: vec!["a line of the guest".into()],
        }
    }

    fn machine(host: &str, memory: &str) -> Machine {
        let device = "amd-iommu,numint2k=on".parse().unwrap();
        let wish = RamWish {
            size: memory.parse().unwrap(),
            ..RamWish::default()
        };
        Machine::new(&device, &HostIommu::ask(&host.parse().unwrap()), &wish).unwrap()
    }

    fn header(host: &str, memory: &str) -> String {
        let buffer = Buffer::default();
        let mut human = Human::new(Box::new(buffer.clone()), false);
        human.header(&Accel::InProcess, "", &machine(host, memory));
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn the_header_says_how_much_ram_is_where_and_why() {
        let text = header("none", "64M");
        assert!(text.contains("RAM        64 MiB below 4 GiB\n"), "{text}");
        let text = header("mock:hthole=on", "10G");
        let ram =
            "RAM        3 GiB below 4 GiB + 7 GiB above 1 TiB: RAM above 4 GiB moves above 1 TiB";
        assert!(
            text.contains(ram) && text.contains("HyperTransport"),
            "{text}"
        );
    }

    #[test]
    fn the_header_says_which_source_was_asked_and_what_could_not_be_learnt() {
        let text = header("mock:numint2k=off", "64M");
        assert!(text.contains("mock:numint2k=off states 2 facts"), "{text}");
        let text = header("file:/nowhere/host.json", "64M");
        assert!(
            text.contains("file:/nowhere/host.json states no fact"),
            "{text}"
        );
        assert!(
            text.contains("can't tell about the host: /nowhere/host.json"),
            "{text}"
        );
        let text = header("none", "64M");
        assert!(
            text.contains("does not matter") && !text.contains("states"),
            "{text}"
        );
    }

    fn printed(terminal: bool, passed: bool) -> String {
        let buffer = Buffer::default();
        let mut human = Human::new(Box::new(buffer.clone()), terminal);
        let machine = machine("mock:numint2k=off", "64M");
        human.header(&Accel::InProcess, "there is no /dev/kvm", &machine);
        let outcomes = [outcome(passed)];
        human.finish(Progress(None), &outcomes[0]);
        let summary = Summary {
            accel: &Accel::InProcess,
            host: "",
            machine: &machine,
            outcomes: &outcomes,
            left_out: &[],
        };
        human.verdict(&summary, Duration::from_millis(1234));
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_report_says_where_it_ran_what_was_offered_and_why_and_the_verdict() {
        let text = printed(false, true);
        assert!(text.contains("in-process: there is no /dev/kvm"), "{text}");
        assert!(text.contains("512 interrupts per function"), "{text}");
        let row = text
            .lines()
            .find(|line| line.starts_with("numint2k "))
            .unwrap();
        let columns: Vec<_> = row.split_whitespace().take(3).collect();
        assert_eq!(columns, ["numint2k", "on", "off"]);
        assert!(
            text.ends_with("PASSED: all 1 scenarios, in-process in 1.2 s\n"),
            "{text}"
        );
        assert!(!text.contains("a line of the guest"));
    }

    #[test]
    fn a_failed_scenario_shows_the_guest_s_log_and_fails_the_verdict() {
        let text = printed(false, false);
        assert!(text.contains("| a line of the guest"), "{text}");
        assert!(
            text.ends_with("FAILED: 1 of 1 scenarios, in-process in 1.2 s: intremap-2k\n"),
            "{text}"
        );
    }

    #[test]
    fn colour_is_only_for_terminals() {
        assert!(!printed(false, true).contains('\x1b'));
        assert!(printed(true, true).contains('\x1b'));
    }

    #[test]
    fn long_sentences_are_wrapped_at_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
        assert_eq!(wrap("one, two", 4), ["one,", "two"]);
        assert_eq!(wrap("", 4), Vec::<String>::new());
    }
}
