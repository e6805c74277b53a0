//! What all sources said, with early and late kept apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::answer::{Gap, Note, Served, Situation};
use crate::aspect::Aspect;
use crate::decide::{View, decide};
use crate::decision::Decision;
use crate::fact::{Early, Fact, Late, Subject};
use crate::feature::{Feature, Setting};
use crate::scope::{PciFunction, Scope};
use crate::shown::Shown;
use crate::source::HostCapSource;

/// Statements about the same thing that differ, between sources or between IOMMUs of one host.
///
/// Not an error: a decision takes the safe side, and its reason says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// What they are about.
    pub subject: Subject,
    /// What they are evidence of.
    pub aspect: Aspect,
    /// Each value, the least first, with who states it.
    pub said: Vec<(Shown, String)>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:", self.subject, self.aspect)?;
        for (index, (value, by)) in self.said.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {value} says {by}")?;
        }
        Ok(())
    }
}

/// Everything known before RAM is laid out; the only facts that RAM layout may be given.
///
/// There is no conversion from [`Facts`] or from late facts. Sets are kept, not lists: the order
/// in which sources are asked can't matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyFacts {
    sources: BTreeMap<String, Situation>,
    facts: BTreeSet<Fact<Early>>,
    gaps: BTreeSet<Gap>,
    served: BTreeSet<Served>,
    #[serde(default)]
    notes: BTreeSet<Note>,
    forced: Option<Situation>,
}

impl EarlyFacts {
    /// Asks each source what it knows now. A source that fails becomes a [`Gap`].
    pub fn collect<'a>(sources: impl IntoIterator<Item = &'a dyn HostCapSource>) -> Self {
        let mut early = Self::default();
        for source in sources {
            early.ask(source);
        }
        early
    }

    /// Asks one more source.
    pub fn ask(&mut self, source: &dyn HostCapSource) {
        let name = source.name();
        self.sources.insert(name.clone(), source.situation());
        match source.early_facts() {
            Ok(answer) => {
                answer.facts.into_iter().for_each(|fact| self.insert(fact));
                self.gaps.extend(answer.gaps);
                self.served.extend(answer.served);
                self.notes.extend(answer.notes);
            }
            Err(error) => {
                let gap = Gap {
                    source: name,
                    scope: Scope::Host,
                    problem: error.to_string(),
                };
                self.gaps.insert(gap);
            }
        }
    }

    /// Adds a fact. A source not seen before counts as one about [`Situation::Passthrough`].
    pub fn insert(&mut self, fact: Fact<Early>) {
        name_source(&mut self.sources, fact.source());
        self.facts.insert(fact);
    }

    /// States the situation, instead of deriving it from the sources: a VMM knows whether it
    /// passes a function through.
    #[must_use]
    pub fn with_situation(mut self, situation: Situation) -> Self {
        self.forced = Some(situation);
        self
    }

    /// The situation: as stated, or the most restrictive of the sources'. Without any source it
    /// is [`Situation::Passthrough`], where unknown is not yes.
    pub fn situation(&self) -> Situation {
        self.forced
            .or_else(|| self.sources.values().copied().max())
            .unwrap_or(Situation::Passthrough)
    }

    /// The facts, each once, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = &Fact<Early>> {
        self.facts.iter()
    }

    /// What could not be learnt.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// What sources saw besides.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter()
    }

    /// Which IOMMU serves which function, as far as it is known.
    pub fn served(&self) -> impl Iterator<Item = &Served> {
        self.served.iter()
    }

    /// The sources that were asked.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// Decides one feature from early facts alone.
    pub fn decide(&self, feature: Feature, requested: impl Into<Setting>) -> Decision {
        decide(&self.view(), feature, requested.into())
    }

    fn view(&self) -> View<'_> {
        View {
            situation: self.situation(),
            sources: self
                .sources
                .iter()
                .map(|(name, s)| (name.as_str(), *s))
                .collect(),
            statements: self
                .facts
                .iter()
                .map(|fact| (&fact.statement, false))
                .collect(),
            gaps: self.gaps.iter().collect(),
            functions: Vec::new(),
            served: self.served.iter().collect(),
        }
    }
}

/// What is known of one bound function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    sources: BTreeMap<String, Situation>,
    facts: BTreeSet<Fact<Late>>,
    gaps: BTreeSet<Gap>,
    served: BTreeSet<Served>,
    #[serde(default)]
    notes: BTreeSet<Note>,
}

impl Bound {
    fn insert(&mut self, fact: Fact<Late>) {
        name_source(&mut self.sources, fact.source());
        self.facts.insert(fact);
    }
}

/// Everything known, early and late: what [`negotiate`](crate::negotiate) decides from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    early: EarlyFacts,
    late: BTreeMap<PciFunction, Bound>,
}

impl Facts {
    /// Asks each source for its early facts and for its late facts on each passed-through
    /// function. A source that fails becomes a [`Gap`].
    pub fn collect<'a>(
        sources: impl IntoIterator<Item = &'a dyn HostCapSource>,
        functions: &[PciFunction],
    ) -> Self {
        let sources: Vec<_> = sources.into_iter().collect();
        let mut facts = Self::from(EarlyFacts::collect(sources.iter().copied()));
        for function in functions {
            facts.bind(*function, sources.iter().copied());
        }
        facts
    }

    /// A function was bound: asks each source about it. From now on a feature must be proven for
    /// this function too.
    pub fn bind<'a>(
        &mut self,
        function: PciFunction,
        sources: impl IntoIterator<Item = &'a dyn HostCapSource>,
    ) {
        let bound = self.late.entry(function).or_default();
        for source in sources {
            let name = source.name();
            bound.sources.insert(name.clone(), source.situation());
            match source.late_facts(function) {
                Ok(answer) => {
                    bound.gaps.extend(answer.gaps);
                    bound.served.extend(answer.served);
                    bound.notes.extend(answer.notes);
                    answer.facts.into_iter().for_each(|fact| bound.insert(fact));
                }
                Err(error) => {
                    let scope = Scope::Function(function);
                    let problem = error.to_string();
                    bound.gaps.insert(Gap {
                        source: name,
                        scope,
                        problem,
                    });
                }
            }
        }
    }

    /// Adds a fact learnt by binding `function`.
    pub fn insert(&mut self, function: PciFunction, fact: Fact<Late>) {
        self.late.entry(function).or_default().insert(fact);
    }

    /// Adds an early fact.
    pub fn insert_early(&mut self, fact: Fact<Early>) {
        self.early.insert(fact);
    }

    /// A function was unbound: drops what binding it taught, and the situation that its binding
    /// brought. Taking back what a running guest was promised, or giving it more, is not decided
    /// here.
    pub fn forget(&mut self, function: PciFunction) {
        self.late.remove(&function);
    }

    /// See [`EarlyFacts::with_situation`].
    #[must_use]
    pub fn with_situation(mut self, situation: Situation) -> Self {
        self.early.forced = Some(situation);
        self
    }

    /// See [`EarlyFacts::situation`]; sources that were asked late count as well.
    pub fn situation(&self) -> Situation {
        let late = self.late.values().flat_map(|bound| bound.sources.values());
        self.early
            .forced
            .or_else(|| self.early.sources.values().chain(late).copied().max())
            .unwrap_or(Situation::Passthrough)
    }

    /// The early part, which RAM layout may be given.
    pub fn early(&self) -> &EarlyFacts {
        &self.early
    }

    /// The late facts, by the function whose binding taught them.
    pub fn late(&self) -> impl Iterator<Item = (PciFunction, &Fact<Late>)> {
        self.late
            .iter()
            .flat_map(|(function, bound)| bound.facts.iter().map(|f| (*function, f)))
    }

    /// The passed-through functions.
    pub fn functions(&self) -> impl Iterator<Item = PciFunction> {
        self.late.keys().copied()
    }

    /// What could not be learnt.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.early
            .gaps()
            .chain(self.late.values().flat_map(|bound| &bound.gaps))
    }

    /// What sources saw besides.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.early
            .notes()
            .chain(self.late.values().flat_map(|bound| &bound.notes))
    }

    /// Where statements differ. Firmware's are left out: they prove nothing.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut about: BTreeMap<_, BTreeSet<(Shown, String)>> = BTreeMap::new();
        for (s, _) in self.view().statements {
            if s.aspect != Aspect::Firmware {
                let said = about.entry((s.subject, s.aspect)).or_default();
                said.insert((s.subject.shown(s.value), s.to_string()));
            }
        }
        about
            .into_iter()
            .map(|((subject, aspect), said)| Conflict {
                subject,
                aspect,
                said: said.into_iter().collect(),
            })
            .filter(|conflict| conflict.said.windows(2).any(|pair| pair[0].0 != pair[1].0))
            .collect()
    }

    /// Decides one feature; [`negotiate`](crate::negotiate) is this for all of them.
    pub fn decide(&self, feature: Feature, requested: impl Into<Setting>) -> Decision {
        decide(&self.view(), feature, requested.into())
    }

    pub(crate) fn view(&self) -> View<'_> {
        let mut view = self.early.view();
        view.situation = self.situation();
        for (function, bound) in &self.late {
            for (name, situation) in &bound.sources {
                let known = view.sources.entry(name).or_insert(*situation);
                *known = (*known).max(*situation);
            }
            view.functions.push(*function);
            view.statements
                .extend(bound.facts.iter().map(|fact| (&fact.statement, true)));
            view.gaps.extend(&bound.gaps);
            view.served.extend(&bound.served);
        }
        view
    }
}

impl From<EarlyFacts> for Facts {
    fn from(early: EarlyFacts) -> Self {
        Self {
            early,
            ..Self::default()
        }
    }
}

fn name_source(sources: &mut BTreeMap<String, Situation>, name: &str) {
    if !sources.contains_key(name) {
        sources.insert(name.to_owned(), Situation::Passthrough);
    }
}
