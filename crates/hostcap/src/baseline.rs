//! What every host of a migration pool can offer.

use serde::Serialize;

use crate::facts::Facts;
use crate::feature::Feature;
use crate::negotiate::{Request, negotiate};
use crate::shown::Shown;

/// What a guest can be offered that must run on any of several hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Baseline {
    /// The hosts, as they were named.
    pub hosts: Vec<String>,
    /// One entry for each feature.
    pub features: Vec<BaselineFeature>,
}

/// One feature of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BaselineFeature {
    /// The feature.
    pub feature: Feature,
    /// What was requested.
    pub requested: Shown,
    /// What every host can offer.
    pub offered: Shown,
    /// The hosts that offer less than was requested.
    pub taken_by: Vec<TakenBy>,
}

/// A host that can't offer what was requested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenBy {
    /// The host.
    pub host: String,
    /// What it can offer.
    pub granted: Shown,
    /// Why.
    pub reason: String,
}

/// Negotiates with each host and takes the least. Without any host nothing is offered: unknown
/// is not yes.
pub fn baseline<'a>(
    requested: &Request,
    hosts: impl IntoIterator<Item = (&'a str, &'a Facts)>,
) -> Baseline {
    let offers: Vec<_> = hosts
        .into_iter()
        .map(|(host, facts)| (host.to_owned(), negotiate(requested, facts)))
        .collect();
    let feature = |feature: Feature| {
        let granted = offers
            .iter()
            .map(|(_, offer)| offer.granted(feature).level());
        let taken = offers.iter().filter_map(|(host, offer)| {
            let decision = offer.decision(feature);
            decision.is_withheld().then(|| TakenBy {
                host: host.clone(),
                granted: feature.shown(decision.granted),
                reason: decision.reason,
            })
        });
        BaselineFeature {
            feature,
            requested: feature.shown(requested.get(feature)),
            offered: feature.shown(feature.setting(granted.min().unwrap_or(0))),
            taken_by: taken.collect(),
        }
    };
    Baseline {
        features: Feature::ALL.into_iter().map(feature).collect(),
        hosts: offers.iter().map(|(host, _)| host.clone()).collect(),
    }
}
