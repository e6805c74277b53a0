//! Output for a person.

use std::fmt::Write as _;

use amdvi_hostcap::{Baseline, Fact, Offer, Outcome, Phase, Recording};

/// Lines of columns, each as wide as its widest cell; the last one is not padded.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// Rows that say the same of several IOMMUs or functions become one.
fn merge(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    const OF: usize = 3;
    let mut merged: Vec<Vec<String>> = Vec::new();
    for row in rows {
        let alike = |other: &&mut Vec<String>| {
            (0..row.len()).all(|cell| cell == OF || other[cell] == row[cell])
        };
        match merged.iter_mut().find(alike) {
            Some(other) => other[OF] = format!("{}, {}", other[OF], row[OF]),
            None => merged.push(row),
        }
    }
    merged
}

fn fact<P: Phase>(fact: &Fact<P>) -> Vec<String> {
    let value = fact.spelled();
    let (subject, aspect) = (fact.subject().to_string(), fact.aspect().to_string());
    let (scope, phase) = (fact.scope().to_string(), fact.phase().to_string());
    row([
        &subject,
        &aspect,
        &value,
        &scope,
        &phase,
        fact.source(),
        fact.detail(),
    ])
}

/// What each source said, and what was not learnt.
pub(crate) fn recording(recording: &Recording) -> String {
    let mut facts = vec![row([
        "SUBJECT",
        "SPEAKS FOR",
        "VALUE",
        "OF",
        "KNOWN",
        "SOURCE",
        "SEEN",
    ])];
    let mut seen = Vec::new();
    let mut gaps = Vec::new();
    let mut served = Vec::new();
    for asked in &recording.sources {
        match &asked.early {
            Outcome::Answer(answer) => {
                facts.extend(answer.facts.iter().map(fact));
                seen.extend(answer.notes.iter().map(ToString::to_string));
                gaps.extend(answer.gaps.iter().map(ToString::to_string));
                served.extend(&answer.served);
            }
            Outcome::Error(error) => gaps.push(format!("{}: {error}", asked.source)),
        }
        for (function, late) in &asked.late {
            match late {
                Outcome::Answer(answer) => {
                    facts.extend(answer.facts.iter().map(fact));
                    seen.extend(answer.notes.iter().map(ToString::to_string));
                    gaps.extend(answer.gaps.iter().map(ToString::to_string));
                    served.extend(&answer.served);
                }
                Outcome::Error(error) => {
                    gaps.push(format!("{} on {function}: {error}", asked.source));
                }
            }
        }
    }
    seen.dedup();
    gaps.dedup();
    served.sort();
    served.dedup();
    let mut text = match facts.len() {
        1 => "Nothing is known about this host's IOMMUs.\n".to_owned(),
        _ => columns(&merge(facts)),
    };
    let mut section = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            let _ = write!(text, "\n{title}:\n");
            lines.iter().for_each(|line| {
                let _ = writeln!(text, "  {line}");
            });
        }
    };
    section("Seen", &seen);
    let conflicts = recording.conflicts.iter();
    let conflicts: Vec<_> = conflicts.map(ToString::to_string).collect();
    section("Contradictions (the safe side counts)", &conflicts);
    section("Not learnt", &gaps);
    let not_asked = recording.not_asked.iter();
    let not_asked: Vec<_> = not_asked
        .map(|n| format!("{}: {}", n.source, n.why))
        .collect();
    section("Not asked", &not_asked);
    let mut by_iommu: Vec<(&str, usize)> = Vec::new();
    for one in served {
        match by_iommu.iter_mut().find(|(iommu, _)| *iommu == one.iommu) {
            Some((_, count)) => *count += 1,
            None => by_iommu.push((&one.iommu, 1)),
        }
    }
    let served = by_iommu.iter();
    let served: Vec<_> = served
        .map(|(iommu, n)| format!("{iommu}: {n} PCI functions"))
        .collect();
    section("Serves", &served);
    text
}

/// The decisions on what was requested; on everything, when nothing was.
pub(crate) fn offer(offer: &Offer) -> String {
    let nothing = !offer.decisions.iter().any(|d| d.requested.is_on());
    let mut rows = vec![row(["FEATURE", "REQUESTED", "GRANTED", "WHY"])];
    for decision in &offer.decisions {
        if nothing || decision.requested.is_on() {
            let feature = decision.feature;
            let requested = feature.spell(decision.requested);
            let granted = feature.spell(decision.granted);
            rows.push(row([
                feature.name(),
                &requested,
                &granted,
                &decision.reason,
            ]));
        }
    }
    columns(&rows)
}

/// The pool's features, and below them who takes what away.
pub(crate) fn baseline(pool: &Baseline) -> String {
    let mut rows = vec![row(["FEATURE", "REQUESTED", "OFFERED", "TAKEN AWAY BY"])];
    let mut why = String::new();
    for feature in &pool.features {
        let hosts: Vec<_> = feature
            .taken_by
            .iter()
            .map(|taken| taken.host.as_str())
            .collect();
        rows.push(row([
            feature.feature.name(),
            &feature.requested.to_string(),
            &feature.offered.to_string(),
            &hosts.join(", "),
        ]));
        for taken in &feature.taken_by {
            let _ = writeln!(why, "{} {}: {}", taken.host, feature.feature, taken.reason);
        }
    }
    match why.is_empty() {
        true => columns(&rows),
        false => format!("{}\n{why}", columns(&rows)),
    }
}
