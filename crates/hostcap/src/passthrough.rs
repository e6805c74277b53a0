//! The life cycle of passed-through functions: what they take from the guest, and until when.

use std::collections::BTreeMap;
use std::fmt;

use crate::answer::Situation;
use crate::decision::Decision;
use crate::facts::{EarlyFacts, Facts};
use crate::feature::Feature;
use crate::negotiate::{Offer, Request, negotiate};
use crate::scope::PciFunction;
use crate::source::HostCapSource;

/// The host IOMMU devices of one guest's functions.
///
/// Before the guest starts, [`set`](Self::set) takes away what a function's host can't keep, with
/// a warning each. [`start`](Self::start) promises the rest to the guest. From then on a function
/// whose host can't keep the promise is refused. [`unset`](Self::unset) gives nothing back: what
/// was taken stays taken, before the start as after it, so that the order in which devices come
/// and go while a guest is put together can't change what it is offered afterwards.
///
/// As long as no function is set, nothing depends on the host.
///
/// ```
/// use amdvi_hostcap::{EarlyFacts, Feature, HostCapSpec, Passthrough, PciFunction};
///
/// let nic: PciFunction = "0000:c1:00.0".parse()?;
/// let host = "mock:numint2k=off".parse::<HostCapSpec>()?.build();
/// let early = EarlyFacts::collect([host.as_ref()]);
/// let mut guest = Passthrough::new("numint2k=on".parse()?, early);
///
/// for warning in guest.set(nic, [host.as_ref()])? {
///     eprintln!("warning: {warning}"); // 0000:c1:00.0 takes numint2k …
/// }
/// assert!(!guest.start().is_granted(Feature::NumInt2K));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Passthrough {
    requested: Request,
    facts: Facts,
    /// What functions took: at most this is left.
    taken: BTreeMap<Feature, Taken>,
    promised: Option<Offer>,
}

#[derive(Clone, Debug)]
struct Taken {
    by: PciFunction,
    left: Decision,
}

/// What a function took from the guest before it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The function.
    pub function: PciFunction,
    /// What is left, and why.
    pub decision: Decision,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision {
            feature,
            granted,
            reason,
            ..
        } = &self.decision;
        write!(
            f,
            "{} takes {feature} from the guest ({feature}={} is left): {reason}",
            self.function,
            feature.spell(*granted)
        )
    }
}

/// A function that can't be passed through, or is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassthroughError {
    /// The guest was promised something that the function's host can't keep. Nothing changed.
    #[error("{function} is refused, for the guest was promised {}", broken(.decisions))]
    Refused {
        /// The function.
        function: PciFunction,
        /// For each promise that it would break: as requested what was promised, as granted
        /// what would be left, and why.
        decisions: Vec<Decision>,
    },
    /// The function is set already.
    #[error("{function} is passed through already; unset it first")]
    AlreadySet {
        /// The function.
        function: PciFunction,
    },
    /// The function is not set.
    #[error("{function} is not passed through")]
    NotSet {
        /// The function.
        function: PciFunction,
    },
}

fn broken(decisions: &[Decision]) -> String {
    let each = decisions.iter().map(|decision| {
        let Decision {
            feature,
            requested,
            granted,
            reason,
        } = decision;
        format!(
            "{feature}={} and with it only {feature}={} could be kept: {reason}",
            feature.spell(*requested),
            feature.spell(*granted)
        )
    });
    each.collect::<Vec<_>>().join(" Also ")
}

impl Passthrough {
    /// A guest that has not started and has no function passed through.
    pub fn new(requested: Request, early: EarlyFacts) -> Self {
        Self {
            requested,
            facts: early.into(),
            taken: BTreeMap::new(),
            promised: None,
        }
    }

    /// What the guest is offered: once it started, what it was promised.
    pub fn offer(&self) -> Offer {
        match &self.promised {
            Some(promised) => promised.clone(),
            None => self.limited(negotiated(&self.requested, &self.facts)),
        }
    }

    /// All that is known.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the guest started.
    pub fn is_started(&self) -> bool {
        self.promised.is_some()
    }

    /// The guest starts: what it is offered now is promised.
    pub fn start(&mut self) -> Offer {
        let offer = self.offer();
        self.promised.get_or_insert(offer).clone()
    }

    /// A function's host IOMMU device is set: asks each source about it.
    ///
    /// # Errors
    /// The guest runs and the function's host can't keep what it was promised, or the function is
    /// set already.
    pub fn set<'a>(
        &mut self,
        function: PciFunction,
        sources: impl IntoIterator<Item = &'a dyn HostCapSource>,
    ) -> Result<Vec<Warning>, PassthroughError> {
        let mut facts = self.facts.clone();
        if facts.functions().any(|set| set == function) {
            return Err(PassthroughError::AlreadySet { function });
        }
        facts.bind(function, sources);
        let before = self.offer();
        let after = negotiated(&self.requested, &facts);
        let less: Vec<Decision> = before
            .decisions
            .iter()
            .filter_map(|before| {
                let after = after.decision(before.feature);
                (after.granted.level() < before.granted.level()).then_some(after)
            })
            .collect();
        if self.is_started() && !less.is_empty() {
            let decisions = less.into_iter().map(|left| Decision {
                requested: before.granted(left.feature),
                ..left
            });
            return Err(PassthroughError::Refused {
                function,
                decisions: decisions.collect(),
            });
        }
        self.facts = facts;
        let warnings = less.into_iter().map(|decision| {
            let left = decision.clone();
            self.taken
                .insert(decision.feature, Taken { by: function, left });
            Warning { function, decision }
        });
        Ok(warnings.collect())
    }

    /// A function's host IOMMU device is unset. Gives nothing back.
    ///
    /// # Errors
    /// The function is not set.
    pub fn unset(&mut self, function: PciFunction) -> Result<(), PassthroughError> {
        if !self.facts.functions().any(|set| set == function) {
            return Err(PassthroughError::NotSet { function });
        }
        self.facts.forget(function);
        Ok(())
    }

    /// No more than what was left when something was taken.
    fn limited(&self, mut offer: Offer) -> Offer {
        for decision in &mut offer.decisions {
            let Some(Taken { by, left }) = self.taken.get(&decision.feature) else {
                continue;
            };
            if left.granted.level() < decision.granted.level() {
                decision.granted = left.granted;
                decision.reason = format!(
                    "{by} took it, and unsetting a device gives nothing back; when it was set: {}",
                    left.reason
                );
            }
        }
        offer
    }
}

/// With no function set nothing depends on the host; with one, the host is asked, whatever the
/// sources make of the situation.
fn negotiated(requested: &Request, facts: &Facts) -> Offer {
    let situation = match facts.functions().next() {
        None => Situation::Emulated,
        Some(_) => facts.situation().max(Situation::Passthrough),
    };
    negotiate(requested, &facts.clone().with_situation(situation))
}
