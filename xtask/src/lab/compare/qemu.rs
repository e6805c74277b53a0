//! QEMU as a virtual machine monitor inside of the emulated machine: its program with all that it
//! loads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{Dyn as _, FileHeader as _};

use crate::lab::nested::Vmm;
use crate::lab::{LIBRARIES, QEMU_VARIABLE};

/// Where it is in the emulated machine.
const FOLDER: &str = "/qemu";
/// The program in the unpacked packages.
const PROGRAM: &str = "root/usr/bin/qemu-system-x86_64";
/// Starts programs that have libraries.
const LOADER: &str = "ld-linux-x86-64.so.2";
/// What a q35 machine with `-kernel` loads besides: its firmware, and what starts a kernel. The
/// options that a firmware of more than these would need are left out on the command line.
const FIRMWARE: [&str; 3] = [
    "root/usr/share/seabios/bios-256k.bin",
    "root/usr/share/qemu/linuxboot_dma.bin",
    "root/usr/share/qemu/kvmvapic.bin",
];

/// The lab's QEMU, given its launcher.
pub(super) fn vmm(launcher: &Path) -> Result<Vmm> {
    let folder = launcher.parent().unwrap_or(Path::new("."));
    let program = folder.join(PROGRAM);
    if !program.exists() {
        bail!(
            "{} is no QEMU that the lab has unpacked, which the comparison needs with all its \
             libraries: unset {QEMU_VARIABLE}",
            launcher.display()
        );
    }
    let mut files = vec![(format!("{FOLDER}/bin/qemu-system-x86_64"), program.clone())];
    let libraries = folder.join(LIBRARIES);
    for (name, path) in closure(&program, &libraries)? {
        files.push((format!("{FOLDER}/lib/{name}"), path));
    }
    for firmware in FIRMWARE {
        let path = folder.join(firmware);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.push((format!("{FOLDER}/share/{name}"), path.clone()));
    }
    let argv = [
        format!("{FOLDER}/lib/{LOADER}"),
        "--library-path".to_owned(),
        format!("{FOLDER}/lib"),
        format!("{FOLDER}/bin/qemu-system-x86_64"),
        "-L".to_owned(),
        format!("{FOLDER}/share"),
    ];
    Ok(Vmm {
        argv: argv.to_vec(),
        files,
    })
}

/// The libraries that a program needs, those that they need, and the loader: by name, where each is.
fn closure(program: &Path, libraries: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut wanted: BTreeSet<_> = needed(program)?;
    wanted.insert(LOADER.to_owned());
    while let Some(name) = wanted.pop_first() {
        // A link, as a rule: what counts is the name by which it is asked for.
        let path = libraries.join(&name);
        let more = needed(&path)?;
        found.insert(name, path);
        wanted.extend(more.into_iter().filter(|name| !found.contains_key(name)));
    }
    Ok(found)
}

/// The libraries that a file names itself: its `DT_NEEDED`.
fn needed(path: &Path) -> Result<BTreeSet<String>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    needed_in(&bytes).with_context(|| format!("{} is no usual ELF file", path.display()))
}

fn needed_in(bytes: &[u8]) -> Result<BTreeSet<String>> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let mut names = BTreeSet::new();
    let Some((entries, link)) = sections.dynamic(endian, bytes)? else {
        return Ok(names);
    };
    let strings = sections.strings(endian, bytes, link)?;
    for entry in entries {
        if entry.tag32(endian) == Some(object::elf::DT_NEEDED) {
            let name = entry.string(endian, strings)?;
            names.insert(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_libraries() {
        let own = std::env::current_exe().unwrap();
        let names = needed(&own).unwrap();
        assert!(names.contains("libc.so.6"), "{names:?}");
        assert!(needed_in(b"#!/bin/sh\n").is_err());
    }
}
