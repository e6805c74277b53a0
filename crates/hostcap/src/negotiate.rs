//! From what was requested and what is known to what the guest is offered.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::decide::decide;
use crate::decision::Decision;
use crate::facts::Facts;
use crate::feature::{Feature, ParseSettingError, Setting, UnknownFeature};
use crate::shown::Shown;

/// What was requested of the device; what is not named is not requested.
///
/// From text: `numint2k=on,hats=6`. From and to JSON: `{"numint2k": true, "hats": 6}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Feature, Shown>", into = "BTreeMap<Feature, Shown>")]
pub struct Request(BTreeMap<Feature, Setting>);

impl Request {
    /// Requests nothing.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Requests a feature (or no longer does, with `false` or 0). The value is brought into the
    /// feature's kind, see [`Feature::normalize`].
    #[must_use]
    pub fn with(mut self, feature: Feature, value: impl Into<Setting>) -> Self {
        self.set(feature, value);
        self
    }

    /// Requests the most of every feature.
    pub fn everything() -> Self {
        Feature::ALL
            .into_iter()
            .map(|f| (f, f.setting(u8::MAX)))
            .collect()
    }

    /// See [`Request::with`].
    pub fn set(&mut self, feature: Feature, value: impl Into<Setting>) {
        self.0.insert(feature, feature.normalize(value.into()));
    }

    /// What is requested of a feature; its zero when nothing is.
    pub fn get(&self, feature: Feature) -> Setting {
        self.0.get(&feature).copied().unwrap_or(feature.zero())
    }
}

impl From<BTreeMap<Feature, Shown>> for Request {
    fn from(map: BTreeMap<Feature, Shown>) -> Self {
        map.into_iter()
            .map(|(f, shown)| (f, f.read_shown(shown)))
            .collect()
    }
}

impl From<Request> for BTreeMap<Feature, Shown> {
    fn from(request: Request) -> Self {
        request
            .0
            .into_iter()
            .map(|(f, value)| (f, f.shown(value)))
            .collect()
    }
}

impl FromIterator<(Feature, Setting)> for Request {
    fn from_iter<I: IntoIterator<Item = (Feature, Setting)>>(settings: I) -> Self {
        settings
            .into_iter()
            .fold(Self::new(), |request, (f, value)| request.with(f, value))
    }
}

/// A request that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No such feature.
    #[error(transparent)]
    UnknownFeature(#[from] UnknownFeature),
    /// A value that the feature does not take.
    #[error(transparent)]
    Setting(#[from] ParseSettingError),
    /// A name without a value.
    #[error(
        "`{option}` has no value; accepted: NAME=VALUE, separated by commas, such as numint2k=on"
    )]
    NoValue {
        /// What was given.
        option: String,
    },
    /// A feature given twice.
    #[error("`{feature}` is given twice; give it once")]
    Twice {
        /// The feature's name.
        feature: Feature,
    },
}

impl FromStr for Request {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let mut request = Self::new();
        for option in text
            .split(',')
            .map(str::trim)
            .filter(|option| !option.is_empty())
        {
            let Some((name, value)) = option.split_once('=') else {
                return Err(RequestError::NoValue {
                    option: option.to_owned(),
                });
            };
            let feature: Feature = name.trim().parse()?;
            if request.0.contains_key(&feature) {
                return Err(RequestError::Twice { feature });
            }
            request.set(feature, feature.parse_setting(value.trim())?);
        }
        Ok(request)
    }
}

/// One decision for each feature, in the order of [`Feature::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The decisions.
    pub decisions: Vec<Decision>,
}

impl Offer {
    /// The decision on a feature.
    ///
    /// An offer read from a recording that does not have the feature answers with one that
    /// grants nothing and says so.
    pub fn decision(&self, feature: Feature) -> Decision {
        self.decisions
            .iter()
            .find(|d| d.feature == feature)
            .cloned()
            .unwrap_or_else(|| Decision {
                feature,
                requested: feature.zero(),
                granted: feature.zero(),
                reason: format!("{feature} is not part of this recorded offer."),
            })
    }

    /// What the guest is offered of a feature.
    pub fn granted(&self, feature: Feature) -> Setting {
        let decision = self.decisions.iter().find(|d| d.feature == feature);
        decision.map_or(feature.zero(), |d| feature.normalize(d.granted))
    }

    /// Whether the guest gets anything of a feature.
    pub fn is_granted(&self, feature: Feature) -> bool {
        self.granted(feature).is_on()
    }

    /// What was requested and not, or not fully, granted: what a VMM warns about.
    pub fn withheld(&self) -> impl Iterator<Item = &Decision> {
        self.decisions
            .iter()
            .filter(|decision| decision.is_withheld())
    }

    /// Names and values of all that is offered, as JSON reports show it.
    pub fn offered(&self) -> BTreeMap<Feature, Shown> {
        self.decisions
            .iter()
            .map(|d| (d.feature, d.feature.shown(d.granted)))
            .collect()
    }
}

/// Decides every feature. Pure and total: the same request and facts give the same offer, and
/// there is no request and no set of facts without one.
pub fn negotiate(requested: &Request, facts: &Facts) -> Offer {
    let view = facts.view();
    let decisions = Feature::ALL
        .into_iter()
        .map(|f| decide(&view, f, requested.get(f)))
        .collect();
    Offer { decisions }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_names_and_values() {
        let request: Request = "numint2k=on, hats=6,,xtsup=off".parse().unwrap();
        assert_eq!(request.get(Feature::NumInt2K), Setting::ON);
        assert_eq!(request.get(Feature::Hats), Setting::Level(2));
        assert_eq!(request.get(Feature::Xt), Setting::OFF);
        assert_eq!(request.get(Feature::Gats), Setting::Level(0));
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"numint2k":true,"xtsup":false,"hats":6}"#);
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
    }

    #[test]
    fn a_bad_request_names_the_option() {
        for (text, said) in [
            ("numint2k", "`numint2k` has no value"),
            ("numint2k=on,numint2k=off", "`numint2k` is given twice"),
            (
                "numint2k=2",
                "`numint2k` does not take `2`; accepted: on, off",
            ),
            ("foo=on", "no such feature: `foo`; accepted: numint2k"),
        ] {
            let error = text.parse::<Request>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn decisions_in_json_are_feature_requested_granted_reason() {
        let offer = negotiate(
            &"numint2k=on,hats=5,gats=5".parse().unwrap(),
            &Facts::default(),
        );
        let json = serde_json::to_value(&offer).unwrap();
        let first = &json["decisions"][0];
        assert_eq!(first["feature"], "numint2k");
        assert_eq!(first["requested"], true);
        assert_eq!(first["granted"], false);
        assert!(
            first["reason"]
                .as_str()
                .unwrap()
                .contains("unknown is not yes")
        );
        // Levels are counted in full, also where none above the base is granted.
        for (feature, granted) in [(Feature::Hats, 5), (Feature::Gats, 4)] {
            let at = Feature::ALL.iter().position(|f| *f == feature).unwrap();
            assert_eq!(json["decisions"][at]["requested"], 5);
            assert_eq!(json["decisions"][at]["granted"], granted);
        }
        assert_eq!(serde_json::from_value::<Offer>(json).unwrap(), offer);
    }
}
