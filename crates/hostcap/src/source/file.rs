//! The source `file`: what `probe --json` printed, here or on another host.

use std::path::{Path, PathBuf};

use crate::answer::{Answer, Situation};
use crate::fact::{Early, Late};
use crate::recording::{Recorded, Recording};
use crate::scope::PciFunction;
use crate::source::os;
use crate::source::{HostCapSource, SourceError};

/// Replays a recording from a file. The file is read each time it is asked. Named `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFile {
    path: PathBuf,
}

const REMEDY: &str = "give a file with what `amdvi-hostcap probe --json` printed";

impl RecordedFile {
    /// Will read the file when it is asked.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// The file can't be read, or is no recording.
    pub fn read(path: &Path) -> Result<Recording, SourceError> {
        let bytes = std::fs::read(path).map_err(|e| os::file_error(path, &e, REMEDY))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| os::unexpected(path, &error.to_string(), REMEDY))
    }

    fn recorded(&self) -> Result<Recorded, SourceError> {
        Ok(Recorded::new(self.name(), Self::read(&self.path)?))
    }
}

impl HostCapSource for RecordedFile {
    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn situation(&self) -> Situation {
        // What can't be read is unknown, and facts that don't exist decide.
        self.recorded()
            .map_or(Situation::Passthrough, |recorded| recorded.situation())
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        self.recorded()?.early_facts()
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        self.recorded()?.late_facts(function)
    }
}
