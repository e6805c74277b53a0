//! Profiles of what needs guest tables and counters.

use super::Row;

pub(super) const ROWS: &[Row] = &[];
