//! Builds the bare-metal payload.
//!
//! The payload is an ordinary static Linux executable as far as the toolchain knows, so that no
//! bare-metal target has to be installed; what makes it run on a bare machine is below. The same as
//! a command, from the workspace's root:
//!
//! ```text
//! RUSTFLAGS="<CODEGEN> -Clink-arg=<LINK>… -Clink-arg=-T -Clink-arg=$PWD/crates/guest/link.ld" \
//! cargo build --package amdvi-guest --bin payload --features bare --profile payload \
//!     --target x86_64-unknown-linux-gnu --target-dir target/payload
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::scan;

/// The target, named even where it is the host: flags then don't reach build scripts and procedural
/// macros.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Flags of the compiler.
pub(crate) const CODEGEN: &[&str] = &[
    // It is linked to run where it is loaded.
    "-Crelocation-model=static",
    // Nothing saves the area below the stack pointer. (The precompiled `core` uses it all the same,
    // so handlers have stacks of their own.)
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    // The machine starts with SSE off, and some KVMs run the guest through an emulator that lacks it.
    "-Ctarget-feature=-sse,-sse2",
    // The compiler warns that calls which pass floats have no ABI now; there are none, and `scan`
    // would find them. The code itself is linted by its ordinary builds.
    "-Awarnings",
];

/// Flags of the linker, next to the linker script.
pub(crate) const LINK: &[&str] = &[
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-z,norelro",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
];

/// Why there is no payload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Cargo can't be started.
    #[error("cargo can't be started to build the payload: {0}")]
    Start(std::io::Error),
    /// The build failed.
    #[error("building the payload failed, see above")]
    Build,
    /// The result can't be read.
    #[error("the payload {} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It can't be scanned, or holds instructions that would not run.
    #[error("the payload {}: {source}", path.display())]
    Scan {
        /// The file.
        path: PathBuf,
        /// Why.
        source: scan::Error,
    },
}

/// Builds the payload of the workspace at `root` under `target_dir` (which becomes a target
/// directory of its own, so that its flags don't throw other builds away), checks it, and returns
/// its path.
///
/// # Errors
///
/// The build failed, or the result holds an instruction that an emulating KVM can't run.
pub(crate) fn build(root: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--package", "amdvi-guest"])
        .args(["--bin", "payload", "--features", "bare"])
        .args(["--profile", "payload", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        // This form wins over every other source of flags and keeps paths with spaces whole.
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root).join("\x1f"))
        // Set when this program itself runs under clippy or a coverage tool.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .stdin(Stdio::null())
        .status()
        .map_err(Error::Start)?;
    if !status.success() {
        return Err(Error::Build);
    }
    let path = target_dir.join(TARGET).join("payload").join("payload");
    let image = match std::fs::read(&path) {
        Ok(image) => image,
        Err(source) => return Err(Error::Read { path, source }),
    };
    match scan::check(&image) {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::Scan { path, source }),
    }
}

/// All flags, for `CARGO_ENCODED_RUSTFLAGS`.
fn rustflags(root: &Path) -> Vec<String> {
    let script = root.join("crates/guest/link.ld");
    CODEGEN
        .iter()
        .map(|flag| (*flag).to_owned())
        .chain(LINK.iter().map(|flag| format!("-Clink-arg={flag}")))
        .chain(["-Clink-arg=-T".to_owned()])
        .chain([format!("-Clink-arg={}", script.display())])
        .collect()
}
