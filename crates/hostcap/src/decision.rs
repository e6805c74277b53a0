//! What became of one feature.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::feature::{Feature, Setting};
use crate::shown::Shown;

/// What became of one feature.
///
/// In JSON `{"feature", "requested", "granted", "reason"}`, values as [`Shown`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct Decision {
    /// The feature.
    pub feature: Feature,
    /// What was requested.
    pub requested: Setting,
    /// What the guest is offered, never more than requested.
    pub granted: Setting,
    /// One sentence why, which names who says so and what can be done.
    pub reason: String,
}

/// The JSON form of a [`Decision`].
#[derive(Serialize, Deserialize)]
struct Wire {
    feature: Feature,
    requested: Shown,
    granted: Shown,
    reason: String,
}

impl From<Wire> for Decision {
    fn from(wire: Wire) -> Self {
        Self {
            feature: wire.feature,
            requested: wire.feature.read_shown(wire.requested),
            granted: wire.feature.read_shown(wire.granted),
            reason: wire.reason,
        }
    }
}

impl From<Decision> for Wire {
    fn from(decision: Decision) -> Self {
        Self {
            feature: decision.feature,
            requested: decision.feature.shown(decision.requested),
            granted: decision.feature.shown(decision.granted),
            reason: decision.reason,
        }
    }
}

impl Decision {
    /// Whether the guest gets anything of it.
    pub const fn is_granted(&self) -> bool {
        self.granted.is_on()
    }

    /// Whether the guest gets less than was requested.
    pub const fn is_withheld(&self) -> bool {
        self.granted.level() < self.requested.level()
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            feature,
            requested,
            granted,
            reason,
        } = self;
        write!(
            f,
            "{feature}: requested {}, granted {}: {reason}",
            feature.spell(*requested),
            feature.spell(*granted)
        )
    }
}
