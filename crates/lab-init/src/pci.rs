//! PCI functions through sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Bound, PciId};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Binds the first function with these IDs to vfio-pci.
pub fn bind_to_vfio(id: PciId) -> Bound {
    let Some(function) = find(id).into_iter().next() else {
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

/// The addresses of the functions with these IDs, such as `0000:00:05.0`, in order.
pub fn find(id: PciId) -> Vec<String> {
    let attribute = |folder: &Path, name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let entries = fs::read_dir(DEVICES).into_iter().flatten();
    let mut functions: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let folder = entry.path();
            let same = attribute(&folder, "vendor")? == id.vendor
                && attribute(&folder, "device")? == id.device;
            same.then(|| entry.file_name().into_string().ok())?
        })
        .collect();
    // The folder is in no order.
    functions.sort_unstable();
    functions
}

/// Takes the function away from its driver and gives it to vfio-pci.
///
/// # Errors
/// The sysfs file that refused, or which driver took the function instead.
pub fn bind(function: &str) -> io::Result<()> {
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
