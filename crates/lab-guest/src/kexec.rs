//! Starting the next kernel without a reset.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use amdvi_lab_guest::plan::{Kexec, PLAN};
use amdvi_lab_init::cpio::Cpio;
use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::context::text;
use crate::sys;

/// What is mounted over the initramfs, or of no use to the next kernel.
const LEFT_OUT: [&str; 3] = ["/proc", "/sys", "/dev"];
/// What a kernel says that was started so and no other: where the one before it has put things, and
/// a timer of that one that was still armed.
const LINES: [&str; 3] = [
    "extended physical RAM map:",
    "reserve setup_data: [mem <x>-<x>] <w>",
    "Spurious LAPIC timer interrupt on cpu <n>",
];

/// Loads the kernel, with an initramfs like the one of now but for the plan.
pub(crate) fn load(kexec: &Kexec) -> Result<()> {
    let mut cpio = Cpio::default();
    for folder in LEFT_OUT {
        cpio.directory(folder.trim_start_matches('/'));
    }
    // The kernel opens it for init before there is a devtmpfs.
    cpio.device("dev/console", 5, 1);
    let again = kexec.plan.kexec.is_some();
    add(&mut cpio, Path::new("/"), &|path: &str| {
        path != PLAN && !LEFT_OUT.contains(&path) && (again || path != kexec.kernel)
    })?;
    let mut plan = kexec.plan.clone();
    plan.log_allow.extend(LINES.map(str::to_owned));
    cpio.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);

    let memfd = memfd_create("initrd", MFdFlags::empty()).context("memfd_create")?;
    let mut initrd = File::from(memfd);
    initrd
        .write_all(&cpio.finish())
        .context("write the initramfs")?;
    let kernel = File::open(&kexec.kernel).with_context(|| format!("open {}", kexec.kernel))?;
    let cmdline = match &kexec.cmdline {
        Some(cmdline) => cmdline.clone(),
        None => text("/proc/cmdline")?,
    };
    sys::kexec_file_load(&kernel, &initrd, &CString::new(cmdline)?)
        .context("kexec_file_load: the kernel needs CONFIG_KEXEC_FILE")
}

fn add(cpio: &mut Cpio, folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = path.to_string_lossy();
        if !wanted(&name) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            cpio.directory(name.trim_start_matches('/'));
            add(cpio, &path, wanted)?;
        } else if kind.is_file() {
            let contents = fs::read(&path).with_context(|| format!("read {name}"))?;
            cpio.file(name.trim_start_matches('/'), &contents);
        }
    }
    Ok(())
}
