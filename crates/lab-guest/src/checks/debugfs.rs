//! The driver's debugfs files, in kernels that have them.

use amdvi_lab_guest::debugfs::{Dte, command_buffer, irtes, register};
use amdvi_lab_guest::plan::{Bits, Debugfs, DeviceEntry};
use anyhow::{Context, Result, ensure};

use crate::context::{put, text};
use crate::endpoint;

const FOLDER: &str = "/sys/kernel/debug/iommu/amd";

pub(super) fn check(want: &Debugfs) -> Result<String> {
    let folder = format!("{FOLDER}/iommu{:02}", want.index);
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for (file, registers) in [("mmio", &want.mmio), ("capability", &want.capability)] {
        for bits in registers {
            let value = read(&format!("{folder}/{file}"), bits)?;
            seen.push(format!("{file} {:#x} = {value:#x}", bits.offset));
            if value & bits.mask != bits.value {
                wrong.push(format!(
                    "{file} {:#x} is {value:#x}, of which {:#x} must be {:#x}",
                    bits.offset, bits.mask, bits.value
                ));
            }
        }
    }
    for device in &want.devices {
        judge(device, &mut seen, &mut wrong)?;
    }
    let commands = text(format!("{folder}/cmdbuf"))?;
    let (head, tail) = command_buffer(&commands)
        .with_context(|| format!("cmdbuf begins with {:?}", commands.lines().next()))?;
    seen.push(format!("commands {head}/{tail}"));
    ensure!(wrong.is_empty(), "{}; seen: {seen:?}", wrong.join("; "));
    Ok(seen.join(", "))
}

fn read(path: &str, bits: &Bits) -> Result<u64> {
    put(path, &format!("{:#x}", bits.offset))?;
    let said = text(path)?;
    register(&said).with_context(|| format!("{path} says {said:?}"))
}

fn judge(want: &DeviceEntry, seen: &mut Vec<String>, wrong: &mut Vec<String>) -> Result<()> {
    let function = match want.function.as_str() {
        "endpoint" => endpoint::functions()
            .into_iter()
            .next()
            .context("there is no test endpoint")?,
        other => other.to_owned(),
    };
    let entry = dte(&function)?;
    seen.push(format!("DTE of {function} {:x?}", entry.0));
    let mut compare = |what: &str, seen: u64, want: Option<u64>| {
        if let Some(want) = want.filter(|want| *want != seen) {
            wrong.push(format!("{what} of {function} is {seen}, not {want}"));
        }
    };
    compare(
        "IntTabLen",
        u64::from(entry.int_tab_len()),
        want.int_tab_len.map(u64::from),
    );
    compare("Mode", u64::from(entry.mode()), want.mode.map(u64::from));
    compare("GV", u64::from(entry.guest()), want.guest.map(u64::from));
    compare(
        "GIoV",
        u64::from(entry.guest_io()),
        want.guest_io.map(u64::from),
    );
    if let Some(least) = want.irtes {
        let valid = irtes(&text(format!("{FOLDER}/irqtbl"))?).len();
        seen.push(format!("{valid} IRTEs"));
        if valid < least {
            wrong.push(format!("{function} has {valid} valid IRTEs, not {least}"));
        }
    }
    Ok(())
}

/// The function's device table entry, as it is in memory.
pub(super) fn dte(function: &str) -> Result<Dte> {
    put(format!("{FOLDER}/devid"), function)?;
    let said = text(format!("{FOLDER}/devtbl"))?;
    Dte::parse(&said).with_context(|| format!("devtbl says {said:?}"))
}

/// As [`dte`]; none in a kernel without these files.
pub(super) fn dte_if_shown(function: &str) -> Result<Option<Dte>> {
    if std::path::Path::new(FOLDER).exists() {
        dte(function).map(Some)
    } else {
        Ok(None)
    }
}
