//! What happened, for people and for programs.

mod human;
mod summary;

pub use human::{Human, Progress};
pub use summary::{Summary, json};
