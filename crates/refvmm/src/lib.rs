//! The amdvi reference VMM
