//! What is wrong with a property string, in words that say what to write instead.

use thiserror::Error;

/// A property string that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionError {
    /// The string does not start with the device's name.
    #[error("`{found}` is not this device; the property string starts with `amd-iommu`")]
    WrongDevice {
        /// What stands in its place.
        found: String,
    },
    /// No option has this name.
    #[error("amd-iommu has no option `{name}`{}; options are: {known}", nearest.as_ref().map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default())]
    Unknown {
        /// The name given.
        name: String,
        /// The option whose name is nearest, if one is near.
        nearest: Option<&'static str>,
        /// All names, separated by commas.
        known: String,
    },
    /// An option stands without a value.
    #[error("option `{name}` has no value; write `{name}=…`, it accepts {accepts}")]
    NoValue {
        /// The option.
        name: &'static str,
        /// What it accepts.
        accepts: String,
    },
    /// An option has a value that it does not accept.
    #[error("option `{name}` can't be `{value}`: {why}; it accepts {accepts}")]
    Value {
        /// The option.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is wrong with it.
        why: String,
        /// What it accepts.
        accepts: String,
    },
    /// An option is given twice.
    #[error("option `{name}` is given twice; keep one of them")]
    Duplicate {
        /// The option.
        name: &'static str,
    },
    /// Two options ask for things that exclude each other.
    #[error("`{this}` can't go with `{that}`: {why}")]
    Contradiction {
        /// The setting that can't be honoured.
        this: String,
        /// The setting that it contradicts.
        that: String,
        /// The reason, and what to write instead.
        why: &'static str,
    },
}
