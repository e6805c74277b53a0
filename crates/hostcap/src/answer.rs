//! What one source says, and how the guest's functions relate to the host.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fact::{Fact, Phase};
use crate::scope::{PciFunction, Scope};

/// How the guest's functions relate to the host's IOMMU; ordered by how much it rules out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Situation {
    /// Every function is emulated: nothing that the guest is offered depends on the host.
    Emulated,
    /// Functions are passed through by an interface that can report on the IOMMU: facts decide.
    Passthrough,
    /// Functions are passed through by a legacy VFIO container, which reports nothing and can
    /// carry nothing that needs iommufd: always 512 interrupts per function.
    LegacyVfio,
}

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Emulated => "emulated",
            Self::Passthrough => "passthrough",
            Self::LegacyVfio => "legacy-vfio",
        })
    }
}

/// Something that could not be learnt, and why.
///
/// A gap is not an error of the whole: other sources may know. But the IOMMU or function that it
/// names counts as one that a feature must be proven for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// The source that was asked.
    pub source: String,
    /// What it was asked about.
    pub scope: Scope,
    /// Why it could not tell, and what to do: the text of an error.
    pub problem: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} could not tell about {}: {}",
            self.source, self.scope, self.problem
        )
    }
}

/// Something that a source saw and that proves nothing: shown to a person who asks why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Note {
    /// The source.
    pub source: String,
    /// What it is about.
    pub scope: Scope,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.source, self.scope, self.text)
    }
}

/// "This IOMMU serves this function."
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Served {
    /// The function.
    pub function: PciFunction,
    /// The name of the IOMMU, as in [`Scope::Iommu`].
    pub iommu: String,
}

/// What one source answered in one phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "P: Serialize + Phase",
    deserialize = "P: Deserialize<'de> + Phase"
))]
pub struct Answer<P> {
    /// What it knows.
    pub facts: Vec<Fact<P>>,
    /// What it was asked and could not tell.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// Which IOMMU serves which function, as far as it knows.
    #[serde(default)]
    pub served: Vec<Served>,
    /// What it saw besides, such as raw registers.
    #[serde(default)]
    pub notes: Vec<Note>,
}

impl<P> Answer<P> {
    /// The answer of a source that knows nothing.
    pub const fn nothing() -> Self {
        Self {
            facts: Vec::new(),
            gaps: Vec::new(),
            served: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds what another source answered.
    pub fn merge(&mut self, other: Self) {
        self.facts.extend(other.facts);
        self.gaps.extend(other.gaps);
        self.served.extend(other.served);
        self.notes.extend(other.notes);
    }
}

impl<P> Default for Answer<P> {
    fn default() -> Self {
        Self::nothing()
    }
}

impl<P> From<Vec<Fact<P>>> for Answer<P> {
    fn from(facts: Vec<Fact<P>>) -> Self {
        Self {
            facts,
            ..Self::nothing()
        }
    }
}
