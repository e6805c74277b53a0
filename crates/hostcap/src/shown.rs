//! Values as people and reports see them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::feature::{Feature, Setting};

/// The value of a feature as it stands in options, sentences and JSON: a boolean, or a number in
/// the unit in which people speak of the feature. Page tables (`hats`, `gats`) are counted by all
/// their levels, 4 to 6, and not as the register counts them (levels above four).
///
/// Kept apart from [`Setting`], which has no JSON form of its own: only together with its feature
/// can a number be shown in the right unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Shown {
    /// On or off.
    Switch(bool),
    /// A number.
    Number(u64),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(true) => f.pad("on"),
            Self::Switch(false) => f.pad("off"),
            Self::Number(n) => f.pad(&n.to_string()),
        }
    }
}

impl Feature {
    /// A value in the unit that people use.
    pub fn shown(self, value: Setting) -> Shown {
        match self.normalize(value) {
            Setting::Switch(on) => Shown::Switch(on),
            Setting::Level(level) => Shown::Number(u64::from(level + self.base())),
        }
    }

    /// The value that was [`shown`](Self::shown), never reading more into it than it says: a
    /// number below the unit's base is nothing, one above the maximum the maximum, and a number
    /// other than 0 and 1 for a switch is off.
    pub fn read_shown(self, shown: Shown) -> Setting {
        self.normalize(match shown {
            Shown::Switch(on) => Setting::Switch(on),
            Shown::Number(n) => {
                let above = n.saturating_sub(u64::from(self.base()));
                Setting::Level(u8::try_from(above).unwrap_or(u8::MAX))
            }
        })
    }

    /// A value as options and reasons spell it: `on`, `off`, a number.
    pub fn spell(self, value: Setting) -> String {
        self.shown(value).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_are_shown_by_all_their_levels() {
        for (feature, level, json) in [
            (Feature::Hats, 0, "4"),
            (Feature::Hats, 2, "6"),
            (Feature::Gats, 1, "5"),
            (Feature::PasidMax, 15, "15"),
            (Feature::NumInt2K, 1, "true"),
        ] {
            let shown = feature.shown(feature.setting(level));
            assert_eq!(serde_json::to_string(&shown).unwrap(), json);
            let read: Shown = serde_json::from_str(json).unwrap();
            assert_eq!(feature.read_shown(read), feature.setting(level));
        }
    }

    #[test]
    fn a_shown_value_that_makes_no_sense_is_not_a_yes() {
        assert_eq!(
            Feature::Hats.read_shown(Shown::Number(2)),
            Setting::Level(0)
        );
        assert_eq!(
            Feature::Hats.read_shown(Shown::Number(u64::MAX)),
            Setting::Level(2)
        );
        assert_eq!(Feature::NumInt2K.read_shown(Shown::Number(4)), Setting::OFF);
    }
}
