//! The source `mock:…`: a host described by hand.

use crate::answer::{Answer, Situation};
use crate::fact::{Early, Late};
use crate::scope::{PciFunction, Scope};
use crate::source::{HostCapSource, SourceError};
use crate::spec::MockHost;

/// Says what a [`MockHost`] says. What it says about a bound function it says of that function
/// only: with one description per function, hosts with unlike IOMMUs are described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described(MockHost);

impl Described {
    pub(crate) const fn new(host: MockHost) -> Self {
        Self(host)
    }
}

impl HostCapSource for Described {
    fn name(&self) -> String {
        format!("mock:{}", self.0.text())
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(self.0.facts(&Scope::Host).into())
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(self.0.facts(&Scope::Function(function)).into())
    }
}
