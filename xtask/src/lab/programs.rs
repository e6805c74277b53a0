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
        let mut build = cargo();
        build
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .args(["-p", "amdvi-hostcap", "--bin", "amdvi-hostcap"])
            .args(["-p", "amdvi-lab-init", "--bin", "amdvi-lab-init"])
            .args(["-p", "amdvi-refvmm", "--bin", "amdvi-refvmm"])
            // By this name alone: cargo does not count `package/feature` as what a program needs.
            .args(["--features", "cli"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // The archives that they go into need not have what debuggers want.
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        if !succeeded(&mut build)? {
            bail!("`{}` failed, see above", describe(&build));
        }
        let folder = target_dir().join(TARGET).join("release");
        let program = |name: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            check_static(&path)?;
            Ok(path)
        };
        Ok(Self {
            init: program("amdvi-lab-init")?,
            tool: program("amdvi-hostcap")?,
            refvmm: program("amdvi-refvmm")?,
        })
    }
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
