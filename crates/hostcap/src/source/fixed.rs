//! Sources that ask nothing: facts given beforehand, no passthrough, and the legacy container.

use crate::answer::{Answer, Situation};
use crate::fact::{Early, Fact, Late};
use crate::scope::{PciFunction, Scope};
use crate::source::{HostCapSource, SourceError};

/// A host described beforehand: for tests, for `mock:…`, and for answers recorded elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    name: String,
    early: Answer<Early>,
    late: Answer<Late>,
}

impl Fixed {
    /// A host about which nothing is known.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            early: Answer::nothing(),
            late: Answer::nothing(),
        }
    }

    /// Adds what is known early.
    #[must_use]
    pub fn with_early(mut self, answer: impl Into<Answer<Early>>) -> Self {
        self.early.merge(answer.into());
        self
    }

    /// Adds what binding a function teaches. What is scoped to a function is told only when
    /// that function is asked for, everything else whenever any is.
    #[must_use]
    pub fn with_late(mut self, answer: impl Into<Answer<Late>>) -> Self {
        self.late.merge(answer.into());
        self
    }
}

impl HostCapSource for Fixed {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(self.early.clone())
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        let concerns = |scope: &Scope| match scope {
            Scope::Function(about) => *about == function,
            Scope::Host | Scope::Iommu(_) => true,
        };
        let mut answer = self.late.clone();
        answer
            .facts
            .retain(|fact: &Fact<Late>| concerns(fact.scope()));
        answer.gaps.retain(|gap| concerns(&gap.scope));
        answer.served.retain(|served| served.function == function);
        answer.notes.retain(|note| concerns(&note.scope));
        Ok(answer)
    }
}

/// No function is passed through: there is nothing to ask. Named `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulated;

impl HostCapSource for Emulated {
    fn name(&self) -> String {
        "none".to_owned()
    }

    fn situation(&self) -> Situation {
        Situation::Emulated
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(Answer::nothing())
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(Answer::nothing())
    }
}

/// Functions are passed through by a legacy VFIO container, whose interface has no call that
/// tells anything about the IOMMU. Named `legacy-vfio`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegacyVfio;

impl HostCapSource for LegacyVfio {
    fn name(&self) -> String {
        "legacy-vfio".to_owned()
    }

    fn situation(&self) -> Situation {
        Situation::LegacyVfio
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(Answer::nothing())
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(Answer::nothing())
    }
}

/// A source that can't be used as it was told to: it answers every question with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    name: String,
    error: SourceError,
}

impl Unusable {
    /// A source that fails with `error`.
    pub fn new(name: impl Into<String>, error: SourceError) -> Self {
        let name = name.into();
        Self { name, error }
    }
}

impl HostCapSource for Unusable {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Err(self.error.clone())
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Err(self.error.clone())
    }
}
