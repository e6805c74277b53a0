//! PCI functions through sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use amdvi_lab_init::{Bound, PciId};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Binds the function with these IDs to vfio-pci.
pub(crate) fn bind_to_vfio(id: PciId) -> Bound {
    let Some(function) = find(id) else {
        return Bound {
            function: String::new(),
            error: Some(format!(
                "no PCI function {:04x}:{:04x}",
                id.vendor, id.device
            )),
        };
    };
    let error = bind(&function).err().map(|error| error.to_string());
    Bound { function, error }
}

fn find(id: PciId) -> Option<String> {
    let attribute = |folder: &Path, name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    fs::read_dir(DEVICES).ok()?.flatten().find_map(|entry| {
        let folder = entry.path();
        let same = attribute(&folder, "vendor")? == id.vendor
            && attribute(&folder, "device")? == id.device;
        same.then(|| entry.file_name().into_string().ok())?
    })
}

fn bind(function: &str) -> io::Result<()> {
    let folder = PathBuf::from(DEVICES).join(function);
    let put = |path: PathBuf, what: &str| {
        fs::write(&path, what)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    put(folder.join("driver_override"), "vfio-pci")?;
    if folder.join("driver").exists() {
        put(folder.join("driver/unbind"), function)?;
    }
    put("/sys/bus/pci/drivers_probe".into(), function)?;
    let driver = fs::read_link(folder.join("driver"))
        .map_err(|error| io::Error::other(format!("no driver took the function: {error}")))?;
    if driver.ends_with("vfio-pci") {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "bound to {} instead",
        driver.display()
    )))
}
