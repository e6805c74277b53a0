//! What the sources that read files share: bounded reads, errors with a remedy, the kernel's version.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::source::SourceError;

/// More than any attribute file holds; whatever it is that has more is no attribute.
const LONGEST: u64 = 64 << 10;

/// Reads a small text file, without the white space around it. `missing` says what to do when
/// there is no such file.
pub(crate) fn read(path: &Path, missing: &str) -> Result<String, SourceError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
        .map_err(|error| file_error(path, &error, missing))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(unexpected(path, "it is not text", missing)),
    }
}

/// The names in a directory, sorted; those that are no UTF-8 are none that the kernel makes.
pub(crate) fn names(path: &Path, missing: &str) -> Result<Vec<String>, SourceError> {
    let wrap = |error: io::Error| file_error(path, &error, missing);
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(wrap)? {
        names.extend(entry.map_err(wrap)?.file_name().into_string());
    }
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

/// An I/O error with what to do about it.
pub(crate) fn file_error(path: &Path, error: &io::Error, missing: &str) -> SourceError {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as a user who may open it (often only root), or give this user access"
        }
        _ => missing,
    };
    unexpected(path, &error.to_string(), remedy)
}

/// A file that is not what it should be.
pub(crate) fn unexpected(path: &Path, problem: &str, remedy: &str) -> SourceError {
    SourceError::File {
        path: path.to_owned(),
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// The first two numbers of a Linux release, `6.12` of `6.12.41+deb13-amd64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl KernelVersion {
    /// A version.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Reads what `uname -r` prints; `None` when it does not begin with two numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|digits| digits.parse().ok());
        Some(Self::new(numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_their_first_two_numbers() {
        let parse = KernelVersion::parse;
        assert_eq!(
            parse("6.12.41+deb13-amd64"),
            Some(KernelVersion::new(6, 12))
        );
        assert_eq!(parse("7.3-rc1"), Some(KernelVersion::new(7, 3)));
        assert!(parse("6.7.0") < parse("6.15"));
        for other in ["", "6", "v6.7", "rolling", "99999999999.1"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_missing_file_and_a_directory_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nothing");
        let error = read(&path, "load the module").unwrap_err().to_string();
        assert!(error.contains("nothing: No such file") && error.ends_with("; load the module"));
        assert!(read(dir.path(), "x").is_err());
        assert!(names(&path, "x").is_err());
    }
}
