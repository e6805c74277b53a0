//! What the lab and the first process of a guest on the reference VMM say to each other: a
//! [`Plan`] goes in with the initramfs, a [`Report`] comes out on the console. With the parsers
//! of what Linux says, so that they are tested outside of a guest.

#![forbid(unsafe_code)]

pub mod allow;
pub mod data;
pub mod debugfs;
pub mod events;
pub mod interrupts;
pub mod pattern;
pub mod perf_format;
pub mod plan;
mod report;

/// A line that begins so, with a word, tells what is measured from now on.
pub const PHASE: &str = "amdvi-lab-guest: measuring ";

pub use plan::{Check, PLAN, Plan, Step, Then};
pub use report::{MARKER, Number, Outcome, Report, reports_in};
