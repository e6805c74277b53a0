//! What was measured, and what follows from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::contenders::{self, Contender};
use super::lines::Line;

/// All that was measured, on one kernel and one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Results {
    /// The release of the guests' kernel.
    pub(super) kernel: String,
    /// CPUs of the guests.
    pub(super) cpus: u32,
    /// What QEMU calls itself.
    pub(super) qemu: String,
    /// This machine: its CPU, and how many of it.
    pub(super) host: String,
    /// One for each run that gave all its numbers.
    pub(super) samples: Vec<Sample>,
    /// Runs that were repeated, and why.
    pub(super) remarks: Vec<String>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Whose it is.
    pub(super) contender: String,
    /// The round that it was part of, from 1 on.
    pub(super) round: u32,
    /// How busy this machine was at its end: tasks that ran or waited to, over the last minute.
    pub(super) load: f64,
    /// Values by the name of their line, each as often as it was measured in this run.
    pub(super) values: BTreeMap<String, Vec<f64>>,
}

/// A value of some runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl Spread {
    /// Of values of which there is one at least.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            least: *values.first()?,
            median: median(&values)?,
            most: *values.last()?,
        })
    }

    /// Whether there is a value that may be one of both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

/// The one in the middle of values in order, or what is between the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}

impl Results {
    /// Reads what an earlier run has kept.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("no results in {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Keeps it.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Refuses to add to results of other circumstances.
    pub(super) fn continues(&self, with: &Self) -> Result<()> {
        let of = |one: &Self| {
            (
                one.kernel.clone(),
                one.cpus,
                one.qemu.clone(),
                one.host.clone(),
            )
        };
        ensure!(
            of(self) == of(with),
            "the results that are there are of {:?}, not of {:?}: leave out --add",
            of(self),
            of(with)
        );
        Ok(())
    }

    /// The round that comes next for a contender.
    pub(super) fn next_round(&self, contender: &Contender) -> u32 {
        let rounds = self.of(contender.name).map(|sample| sample.round);
        rounds.max().unwrap_or(0) + 1
    }

    fn of<'a>(&'a self, contender: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.contender == contender)
    }

    /// The contenders of which there are results, in the order of tables.
    pub(super) fn contenders(&self) -> Vec<&'static Contender> {
        let known = contenders::ALL.iter();
        known
            .filter(|contender| self.of(contender.name).next().is_some())
            .collect()
    }

    /// How many rounds the contender with the fewest has.
    pub(super) fn rounds(&self) -> usize {
        let counts = self.contenders().into_iter();
        counts
            .map(|contender| self.of(contender.name).count())
            .min()
            .unwrap_or(0)
    }

    /// A line's value in each run of a contender, by the round: the median of those of the run.
    fn by_round(&self, contender: &str, line: &Line) -> BTreeMap<u32, f64> {
        let value = |sample: &Sample| {
            let values = sample.values.get(line.name)?.clone();
            Some((sample.round, Spread::of(values)?.median))
        };
        self.of(contender).filter_map(value).collect()
    }

    /// A line's value for a contender.
    pub(super) fn spread(&self, contender: &str, line: &Line) -> Option<Spread> {
        Spread::of(self.by_round(contender, line).into_values().collect())
    }

    /// What part of its baseline's value a contender has: the median of the ratios in each round.
    pub(super) fn ratio(&self, contender: &Contender, line: &Line) -> Option<f64> {
        if contender.name == contender.baseline {
            return None;
        }
        let base = self.by_round(contender.baseline, line);
        let own = self.by_round(contender.name, line);
        let ratios = own
            .iter()
            .filter_map(|(round, value)| Some(value / base.get(round)?));
        Some(Spread::of(ratios.collect())?.median)
    }

    /// The load of this machine over all runs.
    pub(super) fn load(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|sample| sample.load).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;

    fn sample(contender: &str, round: u32, values: &[f64]) -> Sample {
        Sample {
            contender: contender.into(),
            round,
            load: 1.0,
            values: [("disk-iops".to_owned(), values.to_vec())].into(),
        }
    }

    fn results() -> Results {
        Results {
            samples: vec![
                sample("ours-off", 1, &[100.0, 90.0, 200.0]),
                sample("ours-lazy", 1, &[50.0]),
                sample("ours-off", 2, &[10.0]),
                sample("ours-lazy", 2, &[9.0, 9.0]),
                sample("ours-lazy", 3, &[1.0]),
            ],
            ..Results::default()
        }
    }

    fn iops() -> &'static Line {
        let mut lines = lines::ALL.iter();
        lines.find(|line| line.name == "disk-iops").unwrap()
    }

    #[test]
    fn a_run_counts_as_the_median_of_what_it_measured() {
        let spread = results().spread("ours-off", iops()).unwrap();
        assert_eq!((spread.least, spread.most), (10.0, 100.0));
        assert_eq!(spread.median, 55.0);
        assert_eq!(results().spread("qemu-off", iops()), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let lazy = contenders::named("ours-lazy").unwrap();
        assert_eq!(results().ratio(lazy, iops()), Some(0.7));
        let off = contenders::named("ours-off").unwrap();
        assert_eq!(results().ratio(off, iops()), None);
        assert_eq!(results().next_round(lazy), 4);
        assert_eq!(results().rounds(), 2);
    }

    #[test]
    fn spreads_that_touch_overlap() {
        let spread = |values: &[f64]| Spread::of(values.to_vec()).unwrap();
        assert!(spread(&[1.0, 2.0]).overlaps(&spread(&[2.0, 3.0])));
        assert!(!spread(&[1.0, 2.0]).overlaps(&spread(&[2.5, 3.0])));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn results_are_added_to_those_of_the_same_circumstances_only() {
        let here = results();
        assert!(here.continues(&results()).is_ok());
        let other = Results {
            cpus: 4,
            ..results()
        };
        assert!(here.continues(&other).is_err());
        let folder = std::env::temp_dir().join(format!("compare-{}.json", std::process::id()));
        here.write(&folder).unwrap();
        assert_eq!(Results::read(&folder).unwrap(), here);
        fs::remove_file(folder).unwrap();
    }
}
