//! Packages of the machine's mirror, unpacked into a folder and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Apt, KEYRING, mirror};
use crate::step::describe;

/// A folder in the cache that is filled under a temporary name and appears when it is complete.
///
/// Another process may be filling the same one: whoever is first wins, and nobody sees half.
pub(super) struct Filling {
    place: PathBuf,
    /// The folder to fill.
    pub(super) new: PathBuf,
}

impl Filling {
    pub(super) fn of(place: &Path) -> Result<Self> {
        let mut name = place.file_name().unwrap_or_default().to_os_string();
        name.push(".new.");
        sweep(place, &name.to_string_lossy());
        name.push(std::process::id().to_string());
        let new = place.with_file_name(name);
        fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
        Ok(Self {
            place: place.to_owned(),
            new,
        })
    }

    /// Puts the folder in its place.
    pub(super) fn done(self) -> Result<()> {
        match fs::rename(&self.new, &self.place) {
            Err(_) if self.place.exists() => Ok(()),
            other => other.with_context(|| format!("cannot create {}", self.place.display())),
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // Gone when it was put in its place; what can't be removed does no harm.
        let _ = fs::remove_dir_all(&self.new);
    }
}

/// Removes what processes that were interrupted left beside a place: `PREFIX` and the number of
/// a process that is no more.
fn sweep(place: &Path, prefix: &str) {
    let entries = place.parent().map(fs::read_dir);
    for entry in entries.into_iter().flatten().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The mirror's packages, with an apt state of their own in a folder that goes away with this.
pub(super) struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Reads the package lists of suites.
    pub(super) fn open(cache: &Path, suites: &[&str]) -> Result<Self> {
        need(&["apt-get", "apt-cache", "dpkg-deb"])?;
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package debian-archive-keyring");
        }
        let folder = cache.join(format!("packages.{}", std::process::id()));
        sweep(&folder, "packages.");
        let packages = Self { folder };
        println!("lab: reading the package lists of {}", suites.join(", "));
        Apt::new(&packages.folder, &mirror()?, suites)?
            .run(&["update"])
            .with_context(|| {
                format!(
                    "the package lists can't be read: is there a network, and has the mirror of \
                     this machine's apt sources {}?",
                    suites.join(" and ")
                )
            })?;
        Ok(packages)
    }

    fn apt(&self) -> Apt<'_> {
        Apt {
            folder: &self.folder,
        }
    }

    /// The package with the highest version in its name, of those that match a regular
    /// expression.
    pub(super) fn newest(&self, pattern: &str) -> Result<String> {
        let found = self
            .apt()
            .output("apt-cache", &["search", "--names-only", pattern])?;
        newest_of(found.lines())
            .with_context(|| format!("the mirror has no package that matches {pattern}"))
    }

    /// Downloads packages and unpacks them into `root`.
    pub(super) fn unpack(&self, names: &[&str], root: &Path) -> Result<()> {
        println!("lab: fetching {}", names.join(", "));
        self.apt()
            .run(&[&["download"], names].concat())
            .context("the packages can't be downloaded")?;
        unpack_all(&self.folder, root, |_| true)
    }

    /// Downloads packages with all that they need, of one suite, and unpacks those whose names
    /// begin with one of `wanted`.
    pub(super) fn unpack_with_dependencies(
        &self,
        suite: &str,
        names: &[&str],
        wanted: &[&str],
        root: &Path,
    ) -> Result<()> {
        println!("lab: fetching {}", names.join(", "));
        let options = ["install", "--yes", "--download-only", "-t", suite];
        self.apt()
            .run(&[&options, names].concat())
            .context("the packages can't be downloaded")?;
        let archives = self.folder.join("cache/archives");
        unpack_all(&archives, root, |name| {
            wanted.iter().any(|prefix| name.starts_with(prefix))
        })
    }
}

impl Drop for Packages {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Unpacks the packages in a folder and removes them.
fn unpack_all(folder: &Path, root: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(root)?;
    let mut any = false;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with(".deb") || !wanted(&name) {
            continue;
        }
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&path).arg(root);
        if !unpack.status()?.success() {
            bail!("`{}` failed", describe(&unpack));
        }
        fs::remove_file(&path)?;
        any = true;
    }
    if !any {
        bail!("none of the packages that were wanted has been downloaded");
    }
    Ok(())
}

/// Sees that programs are there.
pub(super) fn need(programs: &[&str]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !has(program))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "not here: {}; install the packages that have them",
        missing.join(", ")
    )
}

/// Whether a program can be started.
pub(super) fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// The name with the highest numbers, of lines that begin with a name.
fn newest_of<'a>(lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    lines
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_told_by_numbers_and_not_by_letters() {
        let found = "linux-modules-7.2.9+deb13-amd64 - Linux\n\
                     linux-modules-7.2.12+deb13-amd64 - Linux\n\
                     linux-modules-7.2.6+deb13-amd64 - Linux\n";
        let newest = newest_of(found.lines());
        assert_eq!(newest.as_deref(), Some("linux-modules-7.2.12+deb13-amd64"));
        assert_eq!(newest_of("".lines()), None);
    }
}
