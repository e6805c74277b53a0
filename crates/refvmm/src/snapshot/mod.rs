//! Saving a whole machine and restoring it, to and from a file or another process.

pub mod file;
pub mod format;
