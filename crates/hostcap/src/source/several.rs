//! Several sources asked as one: `auto`.

use crate::answer::{Answer, Gap, Situation};
use crate::fact::{Early, Late, Phase};
use crate::scope::{PciFunction, Scope};
use crate::source::{Debugfs, HostCapSource, SourceError, Sysfs};

/// Sources that are asked together. Facts keep the name of the source that stated them; a source
/// that fails is a gap beside the others' answers.
pub struct Several {
    name: String,
    sources: Vec<Box<dyn HostCapSource>>,
}

impl Several {
    /// Asks `sources` under one name.
    pub fn new(name: impl Into<String>, sources: Vec<Box<dyn HostCapSource>>) -> Self {
        Self {
            name: name.into(),
            sources,
        }
    }

    /// `auto`: all that can be asked without being told what to ask, namely sysfs, debugfs (root),
    /// and, for a function that is passed through, iommufd where this build has it. Not KVM, whose
    /// capability has no number, and no conclusions.
    pub fn auto() -> Self {
        Self::new("auto", Self::auto_sources())
    }

    /// The sources of [`Several::auto`], one by one.
    pub fn auto_sources() -> Vec<Box<dyn HostCapSource>> {
        vec![
            Box::new(Sysfs::default()),
            Box::new(Debugfs::default()),
            #[cfg(feature = "iommufd")]
            Box::new(crate::source::Iommufd::default()),
        ]
    }

    fn ask<P: Phase>(
        &self,
        scope: &Scope,
        ask: impl Fn(&dyn HostCapSource) -> Result<Answer<P>, SourceError>,
    ) -> Answer<P> {
        let mut all = Answer::nothing();
        for source in &self.sources {
            match ask(source.as_ref()) {
                Ok(answer) => all.merge(answer),
                Err(error) => all.gaps.push(Gap {
                    source: source.name(),
                    scope: scope.clone(),
                    problem: error.to_string(),
                }),
            }
        }
        all
    }
}

impl HostCapSource for Several {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn situation(&self) -> Situation {
        let situations = self.sources.iter().map(|source| source.situation());
        situations.max().unwrap_or(Situation::Passthrough)
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        Ok(self.ask(&Scope::Host, |source| source.early_facts()))
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        let scope = Scope::Function(function);
        Ok(self.ask(&scope, |source| source.late_facts(function)))
    }
}
