//! A shell on the serial console of a row's machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Case;
use super::run::{Ready, job, read};
use crate::lab::kernels::Kernel;
use crate::lab::packages::{Filling, Packages};
use crate::lab::{SUITE, cache};

/// A shell and the usual tools in one static program.
const PACKAGE: &str = "busybox-static";

/// What the machine does before there is a shell, and after it.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug
while read -r module parameters; do
    insmod "$module" $parameters
done < /modules/order
echo "Linux $(uname -r), $(nproc) CPUs; 'exit' or Ctrl-D switches the machine off."
setsid cttyhack sh
poweroff -f
"#;

/// Boots the machine with this terminal as its console.
pub(super) fn shell(ready: &Ready, case: &Case, kernel: &Kernel) -> Result<()> {
    let folder = &super::folder("shell");
    let busybox = busybox(&cache()?)?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let add = |cpio: &mut amdvi_lab_init::cpio::Cpio, modules: &[String]| {
        cpio.directory("bin");
        cpio.file("bin/busybox", &read(&busybox)?);
        cpio.file("modules/order", (modules.join("\n") + "\n").as_bytes());
        cpio.file("init", INIT.as_bytes());
        Ok(())
    };
    let mut job = job(case, kernel, folder, &add)?;
    // What the reference VMM says in the end is for people.
    job.args.retain(|arg| arg != "--json");
    eprintln!("the machine starts; Ctrl-A X ends the emulator");
    ready.runner.shell(&job, folder)
}

/// The program, fetched if necessary.
fn busybox(cache: &Path) -> Result<PathBuf> {
    let place = cache.join("busybox");
    let program = place.join("busybox");
    if !program.exists() {
        let filling = Filling::of(&place)?;
        let root = filling.new.join("root");
        Packages::open(cache, &[SUITE])?.unpack(&[PACKAGE], &root)?;
        let found = ["usr/bin/busybox", "bin/busybox"]
            .map(|path| root.join(path))
            .into_iter()
            .find(|path| path.exists())
            .with_context(|| format!("{PACKAGE} has no busybox"))?;
        std::fs::rename(found, filling.new.join("busybox"))?;
        std::fs::remove_dir_all(&root)?;
        filling.done()?;
    }
    Ok(program)
}
