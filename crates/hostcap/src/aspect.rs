//! What a fact is evidence of.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a fact is evidence of. The three come from different places and prove different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// The hardware supports it (EFR, EFR2).
    Hardware,
    /// The firmware set it up (a control bit found set). Never a proof: a kernel that does not
    /// know the feature leaves the bit as it is and still can't use it.
    Firmware,
    /// The running kernel enabled or supports it.
    Kernel,
}

impl Aspect {
    /// The aspect as it stands in a specification string: `hw`, `firmware`, `kernel`.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Hardware => "hw",
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hardware => "hardware",
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
        })
    }
}
