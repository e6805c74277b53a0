//! The programs that run inside guests: static, because there is nothing else in there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::payload::TARGET;
use crate::step::{cargo, describe, succeeded, target_dir};

/// The programs, all of one build.
pub(super) struct Programs {
    /// The first process of the emulated machine.
    pub(super) init: PathBuf,
    /// `amdvi-hostcap`.
    pub(super) tool: PathBuf,
    /// `amdvi-refvmm`.
    pub(super) refvmm: PathBuf,
}

impl Programs {
    /// Builds them.
    pub(super) fn build() -> Result<Self> {
        eprintln!("building the guests' programs");
        let build = [
            ["-p", "amdvi-hostcap", "--bin", "amdvi-hostcap"],
            ["-p", "amdvi-lab-init", "--bin", "amdvi-lab-init"],
            ["-p", "amdvi-refvmm", "--bin", "amdvi-refvmm"],
        ];
        // By this name alone: cargo does not count `package/feature` as what a program needs.
        build_static(&[build.as_flattened(), &["--features", "cli"]].concat())?;
        Ok(Self {
            init: program("amdvi-lab-init")?,
            tool: program("amdvi-hostcap")?,
            refvmm: program("amdvi-refvmm")?,
        })
    }
}

/// Builds the first process of a guest of the reference VMM.
pub(super) fn guest() -> Result<PathBuf> {
    build_static(&["-p", "amdvi-lab-guest", "--bin", "amdvi-lab-guest"])?;
    program("amdvi-lab-guest")
}

fn build_static(what: &[&str]) -> Result<()> {
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(what)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The archives that they go into need not have what debuggers want.
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    if !succeeded(&mut build)? {
        bail!("`{}` failed, see above", describe(&build));
    }
    Ok(())
}

fn program(name: &str) -> Result<PathBuf> {
    let path = target_dir().join(TARGET).join("release").join(name);
    check_static(&path)?;
    Ok(path)
}

/// A program that needs a loader or libraries does not start in a guest, which would say nothing
/// but that there is no such file.
fn check_static(path: &Path) -> Result<()> {
    use object::Object as _;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes)?;
    if file.section_by_name(".interp").is_some() {
        bail!("{} is linked dynamically", path.display());
    }
    Ok(())
}
