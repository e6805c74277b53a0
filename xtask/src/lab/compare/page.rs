//! The table, and the page around it.

use std::fmt::Write as _;

use super::contenders::MEMORY;
use super::lines::{self, Better, Line};
use super::results::{Results, Spread};

/// The contender that stands for this project where it is judged, and its rivals.
const OURS: &str = "ours-lazy";
const OURS_OFF: &str = "ours-off";
const RIVALS: [&str; 2] = ["qemu-amd", "qemu-intel"];
/// The goal for disk throughput: what part of that without an IOMMU is left, at least.
const GOAL: f64 = 0.95;

/// The table: a row for each line and contender.
pub(super) fn table(results: &Results) -> String {
    let mut text = String::from(
        "| | contender | median | least – most | of no IOMMU |\n|---|---|--:|--:|--:|\n",
    );
    for line in &lines::ALL {
        let less = match line.better {
            Better::More => "",
            Better::Less => "; less is better",
        };
        let mut title = format!("**{}**, {}{less}", line.title, line.unit);
        for contender in results.contenders() {
            let ratio = match results.ratio(contender, line) {
                Some(ratio) => format!("{:.0} %", 100.0 * ratio),
                None => "".to_owned(),
            };
            let row = match results.spread(contender.name, line) {
                Some(spread) => format!(
                    "{} | {} – {} | {ratio}",
                    number(spread.median),
                    number(spread.least),
                    number(spread.most)
                ),
                None => "– | – |".to_owned(),
            };
            let _ = writeln!(text, "| {title} | {} | {row} |", contender.name);
            title.clear();
        }
    }
    text
}

/// With three digits that count, at most.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..10_000.0 => format!("{value:.0}"),
        _ => {
            let digits = format!("{value:.0}");
            let head = digits.len() % 3;
            let (head, rest) = digits.split_at(head);
            let mut parts: Vec<&str> = (!head.is_empty()).then_some(head).into_iter().collect();
            parts.extend((0..rest.len()).step_by(3).map(|at| &rest[at..at + 3]));
            parts.join(",")
        }
    }
}

/// The whole page.
pub(super) fn page(results: &Results, plot: &str) -> String {
    let mut text = String::new();
    let add = |text: &mut String, more: &str| {
        text.push_str(more);
        text.push('\n');
    };
    add(
        &mut text,
        "<!-- Written by `cargo xtask lab compare`: change xtask/src/lab/compare/page.rs instead. -->\n\
         \n\
         # The comparison\n\
         \n\
         What an IOMMU costs a Linux guest, on the reference VMM and on QEMU. `cargo xtask lab compare` \
         measures it and writes this page.\n",
    );
    add(&mut text, &circumstances(results));
    let _ = writeln!(text, "![the comparison as a plot]({plot})\n");
    add(&mut text, &verdict(results));
    add(&mut text, "## The numbers\n");
    add(&mut text, &table(results));
    add(&mut text, METHOD);
    if !results.remarks.is_empty() {
        add(
            &mut text,
            "## Runs that were repeated\n\n\
             A run that did not give all its numbers counts for nothing and is tried again.\n",
        );
        for remark in &results.remarks {
            let _ = writeln!(text, "- {}", place_free(remark));
        }
    }
    text
}

/// Without the paths of the machine that it was measured on.
fn place_free(remark: &str) -> String {
    let words = remark.split(' ');
    let words: Vec<_> = words
        .map(|word| match word.rsplit_once('/') {
            Some((_, name)) if word.starts_with('/') => name,
            _ => word,
        })
        .collect();
    words.join(" ")
}

fn circumstances(results: &Results) -> String {
    let mut text = format!(
        "Linux {} on {} CPUs with {MEMORY} of RAM; {}; {} rounds, interleaved, on {}.",
        results.kernel,
        results.cpus,
        results.qemu,
        results.rounds(),
        results.host
    );
    if let Some(load) = results.load() {
        let _ = write!(
            text,
            " While it ran, {:.1} tasks ran or waited to on that machine ({:.1} – {:.1}).",
            load.median, load.least, load.most
        );
    }
    text.push_str("\n\n| contender | what it is |\n|---|---|\n");
    for contender in results.contenders() {
        let _ = writeln!(text, "| `{}` | {} |", contender.name, contender.about);
    }
    text
}

/// How a line compares for two contenders.
fn compared(line: &Line, ours: &Spread, theirs: &Spread) -> (f64, String) {
    let advantage = line.advantage(ours.median, theirs.median);
    let overlap = if ours.overlaps(theirs) {
        ", and the spreads overlap"
    } else {
        ""
    };
    let unit = line.unit;
    let said = format!(
        "{} {unit} beside {} {unit}{overlap}",
        number(ours.median),
        number(theirs.median)
    );
    (advantage, said)
}

/// What the numbers say, in words.
fn verdict(results: &Results) -> String {
    let mut text = String::from("## What they say\n\n");
    for name in lines::THROUGHPUT {
        let line = lines::ALL.iter().find(|line| line.name == name);
        let ours = super::contenders::named(OURS);
        if let (Some(line), Ok(ours)) = (line, ours)
            && let Some(ratio) = results.ratio(ours, line)
        {
            let met = if ratio >= GOAL { "met" } else { "**missed**" };
            let why = lines::reason(line, None).filter(|_| ratio < GOAL);
            let why = why.map_or_else(String::new, |why| format!(" Why: {why}."));
            let _ = writeln!(
                text,
                "- The goal of {:.0} % of the throughput of no IOMMU, {}: {met}, {:.1} % \
                 (`{OURS}` beside `{OURS_OFF}`).{why}",
                100.0 * GOAL,
                line.title,
                100.0 * ratio
            );
        }
    }
    for rival in RIVALS {
        let (mut ahead, mut behind) = (Vec::new(), Vec::new());
        for line in lines::ALL.iter().filter(|line| line.judged) {
            let both = (results.spread(OURS, line), results.spread(rival, line));
            if let (Some(ours), Some(theirs)) = both {
                let (advantage, said) = compared(line, &ours, &theirs);
                if advantage >= 1.0 {
                    ahead.push((line, advantage));
                } else {
                    let why = lines::reason(line, Some(rival));
                    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                    behind.push(format!("{}: {said}{why}", line.title));
                }
            }
        }
        if ahead.is_empty() && behind.is_empty() {
            continue;
        }
        let best = ahead.iter().map(|(_, advantage)| *advantage);
        let best = best.fold(1.0, f64::max);
        let _ = writeln!(
            text,
            "- `{OURS}` is ahead of `{rival}` on {} of {} lines, by a factor of {best:.1} at most.",
            ahead.len(),
            ahead.len() + behind.len()
        );
        if !behind.is_empty() {
            let _ = writeln!(text, "- **Behind `{rival}`**: {}.", behind.join("; "));
        }
    }
    text
}

const METHOD: &str = "\
## How it is measured

Every run boots an AMD machine that QEMU emulates in software (`-accel tcg`, one CPU), and in it, on its
KVM, one of the contenders. So all times are several times longer than on hardware, exits above all, and it
is the comparison that counts. All contenders get the same kernel and initial ramdisk, as many CPUs, as much
RAM, one virtio disk with a queue for each CPU on a file in memory, one virtio network card without offloads
on a tap interface, and a virtio source of entropy; no device has a cache of translations of its own (ATS).
QEMU has no iothread: its amd-iommu does not survive one. The percentage is of the same VMM without an IOMMU,
in the same round; a line that has none needs an IOMMU. `ours-off` is the reference VMM with an IOMMU that
the guest does not switch on: it always has one.

- *boot*: from the start of the VMM until the guest's first process prints its first line. QEMU's firmware
  is part of it.
- *disk*: direct access in order by one thread on each CPU, or at random by four. *Scattered pages* are 4 KiB
  each, anywhere in memory: 32 mappings for a request. *One piece* is a part of a page of 2 MiB.
- *network*: each CPU has 16 datagrams on their way to a socket outside of the guest that sends them back.
- *interrupts*: those of the disk's queues, while each CPU reads one sector after the other.
- *MSIs*: a register of the test endpoint or of QEMU's edu is written, and the next time when the interrupt
  has come. Both send the MSI in the thread of the CPU that wrote, and are to be had with VFIO only.
- *moving an interrupt*: the affinity of the network card's interrupt is written. Without interrupt
  remapping the write does nothing to the hardware: Linux moves the interrupt when the next one comes. And with the
  function that sends MSIs when told: from before the write until one has come to the other CPU.
- *map and unmap*: mappings of a container of VFIO type 1 with the source of entropy in it.
- *memory*: resident memory of the VMM but for its largest mapping, which is the guest's RAM, at the end.

Each line of a run is the median of three measurements of 0.7 s; the table has median, least and most over
the rounds.
";

#[cfg(test)]
mod tests {
    use super::super::results::Sample;
    use super::*;

    fn results() -> Results {
        let sample = |contender: &str, round, read: f64| Sample {
            contender: contender.into(),
            round,
            load: 2.0,
            values: [
                ("disk-read".to_owned(), vec![read]),
                ("boot".to_owned(), vec![12_345.0 / read]),
            ]
            .into(),
        };
        Results {
            kernel: "7.3.4".into(),
            cpus: 2,
            qemu: "QEMU 11".into(),
            host: "2 × x".into(),
            samples: vec![
                sample("ours-off", 1, 100.0),
                sample("ours-lazy", 1, 90.0),
                sample("qemu-amd", 1, 50.0),
                sample("qemu-intel", 1, 95.0),
            ],
            remarks: vec!["ours-off, round 1: logs in /a/b/ours-off.1: it hung".into()],
        }
    }

    #[test]
    fn where_ours_is_behind_the_page_says_so() {
        let page = page(&results(), "x.svg");
        assert!(page.contains("**missed**, 90.0 %"), "{page}");
        assert!(
            page.contains("Why: more than half is the guest's own kernel"),
            "{page}"
        );
        assert!(page.contains("ahead of `qemu-amd` on 2 of 2 lines"));
        assert!(page.contains("ahead of `qemu-intel` on 0 of 2 lines"));
        assert!(page.contains("**Behind `qemu-intel`**"));
        assert!(page.contains("](x.svg)"));
        assert!(page.contains("logs in ours-off.1: it hung"));
        assert!(!page.contains("/a/b"));
    }

    #[test]
    fn what_was_not_measured_has_no_number() {
        let table = table(&results());
        assert!(
            table.contains("| ours-lazy | 90.0 | 90.0 – 90.0 | 90 % |"),
            "{table}"
        );
        let map = table.lines().find(|line| line.contains("unmap 4 KiB"));
        assert!(
            map.is_some_and(|line| line.ends_with("| ours-off | – | – | |")),
            "{table}"
        );
    }

    #[test]
    fn numbers_have_three_digits_or_groups_of_them() {
        let all = [1.234, 12.34, 123.4, 1234.0, 12_345.0, 1_234_567.0].map(number);
        assert_eq!(all, ["1.23", "12.3", "123", "1234", "12,345", "1,234,567"]);
    }
}
