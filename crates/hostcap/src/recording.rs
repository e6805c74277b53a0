//! What every source of a host answered, as JSON keeps it: the output of `probe --json`, and the
//! source `file`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Gap, Situation};
use crate::fact::{Early, Fact, Late, Phase};
use crate::facts::{Conflict, EarlyFacts, Facts};
use crate::scope::{PciFunction, Scope};
use crate::source::{HostCapSource, SourceError};

/// The version of the format, which [`Recording`] writes and accepts.
const FORMAT: u32 = 1;

/// All that the sources of one host answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// The version of this format: 1.
    #[serde(rename = "amdvi-hostcap")]
    pub format: Format,
    /// What each source said.
    pub sources: Vec<Asked>,
    /// Where they contradict each other, or IOMMUs differ: derived from what they said, and not
    /// read back.
    #[serde(default, skip_deserializing)]
    pub conflicts: Vec<Conflict>,
    /// Sources that were not asked, and why.
    #[serde(default)]
    pub not_asked: Vec<NotAsked>,
}

/// The version of the format; no other than the current one can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Format;

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        match version {
            FORMAT => Ok(Self),
            other => Err(format!(
                "recording of version {other}; this build reads version {FORMAT}"
            )),
        }
    }
}

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        FORMAT
    }
}

/// One source's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its name.
    pub source: String,
    /// The situation that it stands for.
    pub situation: Situation,
    /// What it knew before any device was bound.
    pub early: Outcome<Early>,
    /// What it said about each function.
    #[serde(default)]
    pub late: BTreeMap<PciFunction, Outcome<Late>>,
}

/// An answer, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[serde(bound(
    serialize = "P: Serialize + Phase",
    deserialize = "P: Deserialize<'de> + Phase"
))]
pub enum Outcome<P> {
    /// The answer.
    Answer(Answer<P>),
    /// The error.
    Error(String),
}

impl<P> From<Result<Answer<P>, SourceError>> for Outcome<P> {
    fn from(result: Result<Answer<P>, SourceError>) -> Self {
        match result {
            Ok(answer) => Self::Answer(answer),
            Err(error) => Self::Error(error.to_string()),
        }
    }
}

/// A source that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotAsked {
    /// How it would be named.
    pub source: String,
    /// Why it was left out, and how to ask it.
    pub why: String,
}

impl Recording {
    /// Asks each source, about the host and about each function.
    pub fn of<'a>(
        sources: impl IntoIterator<Item = &'a dyn HostCapSource>,
        functions: &[PciFunction],
    ) -> Self {
        let ask = |source: &dyn HostCapSource| Asked {
            source: source.name(),
            situation: source.situation(),
            early: source.early_facts().into(),
            late: functions
                .iter()
                .map(|function| (*function, source.late_facts(*function).into()))
                .collect(),
        };
        let mut recording = Self {
            format: Format,
            sources: sources.into_iter().map(ask).collect(),
            conflicts: Vec::new(),
            not_asked: Vec::new(),
        };
        recording.conflicts = recording.facts().conflicts();
        recording
    }

    /// The functions that were asked about.
    pub fn functions(&self) -> Vec<PciFunction> {
        let late = self.sources.iter().flat_map(|asked| asked.late.keys());
        let mut functions: Vec<_> = late.copied().collect();
        functions.sort();
        functions.dedup();
        functions
    }

    /// Everything that it says, as if the sources were asked now.
    pub fn facts(&self) -> Facts {
        self.facts_named("")
    }

    /// [`Recording::facts`], with the place of the recording in the name of each source.
    pub(crate) fn facts_named(&self, place: &str) -> Facts {
        let replayed: Vec<_> = self
            .sources
            .iter()
            .map(|a| Replay { asked: a, place })
            .collect();
        let sources = || replayed.iter().map(|replay| replay as &dyn HostCapSource);
        let mut facts = Facts::from(EarlyFacts::collect(sources()));
        for function in self.functions() {
            facts.bind(function, sources());
        }
        facts
    }
}

/// One recorded source that answers again.
struct Replay<'a> {
    asked: &'a Asked,
    place: &'a str,
}

impl Replay<'_> {
    fn named(&self, source: &str) -> String {
        match self.place {
            "" => source.to_owned(),
            place => format!("{source} in {place}"),
        }
    }

    fn replay<P: Phase>(&self, outcome: &Outcome<P>, scope: Scope) -> Answer<P> {
        let mut answer = match outcome {
            Outcome::Answer(answer) => answer.clone(),
            Outcome::Error(problem) => Answer {
                gaps: vec![Gap {
                    source: self.asked.source.clone(),
                    scope,
                    problem: problem.clone(),
                }],
                ..Answer::nothing()
            },
        };
        answer.facts.iter_mut().for_each(|fact: &mut Fact<P>| {
            fact.statement.source = self.named(&fact.statement.source);
        });
        answer
            .gaps
            .iter_mut()
            .for_each(|gap| gap.source = self.named(&gap.source));
        answer
            .notes
            .iter_mut()
            .for_each(|note| note.source = self.named(&note.source));
        answer
    }
}

impl HostCapSource for Replay<'_> {
    fn name(&self) -> String {
        self.named(&self.asked.source)
    }

    fn situation(&self) -> Situation {
        self.asked.situation
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(self.replay(&self.asked.early, Scope::Host))
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        let outcome = self.asked.late.get(&function);
        Ok(outcome.map_or_else(Answer::nothing, |outcome| {
            self.replay(outcome, Scope::Function(function))
        }))
    }
}

/// A recording as one source. Named as it is told.
pub struct Recorded {
    name: String,
    recording: Recording,
}

impl Recorded {
    /// Answers what `recording` says.
    pub fn new(name: impl Into<String>, recording: Recording) -> Self {
        Self {
            name: name.into(),
            recording,
        }
    }

    fn replays(&self) -> impl Iterator<Item = Replay<'_>> {
        let place = &self.name;
        self.recording
            .sources
            .iter()
            .map(|asked| Replay { asked, place })
    }
}

impl HostCapSource for Recorded {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn situation(&self) -> Situation {
        let situations = self.recording.sources.iter().map(|asked| asked.situation);
        situations.max().unwrap_or(Situation::Passthrough)
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let mut all = Answer::nothing();
        for replay in self.replays() {
            all.merge(replay.early_facts()?);
        }
        Ok(all)
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        let mut all = Answer::nothing();
        for replay in self.replays() {
            all.merge(replay.late_facts(function)?);
        }
        Ok(all)
    }
}
