//! PCI functions through sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Bound, PciId};

const DEVICES: &str = "/sys/bus/pci/devices";
/// The driver that hands functions to programs.
pub const VFIO: &str = "vfio-pci";

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
    let error = bind(&function, VFIO).err().map(|error| error.to_string());
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

/// The DeviceID of a function by its address, such as 28h of `0000:00:05.0`.
pub fn device_id(function: &str) -> Option<u16> {
    let (_, rest) = function.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let number = |text| u16::from_str_radix(text, 16).ok();
    let (bus, device, function) = (number(bus)?, number(device)?, number(function)?);
    (bus < 0x100 && device < 0x20 && function < 8).then_some(bus << 8 | device << 3 | function)
}

/// Takes the function away from its driver and gives it to another.
///
/// # Errors
/// The sysfs file that refused, or which driver took the function instead.
pub fn bind(function: &str, driver: &str) -> io::Result<()> {
    let folder = PathBuf::from(DEVICES).join(function);
    let put = |path: PathBuf, what: &str| {
        fs::write(&path, what)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    put(folder.join("driver_override"), driver)?;
    if folder.join("driver").exists() {
        put(folder.join("driver/unbind"), function)?;
    }
    put("/sys/bus/pci/drivers_probe".into(), function)?;
    let bound = fs::read_link(folder.join("driver"))
        .map_err(|error| io::Error::other(format!("no driver took the function: {error}")))?;
    if bound.ends_with(driver) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "bound to {} instead",
        bound.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_bus_device_and_function() {
        assert_eq!(device_id("0000:00:05.0"), Some(0x28));
        assert_eq!(device_id("0001:80:1f.7"), Some(0x80ff));
        for bad in ["0000:00:20.0", "00:05.0", "0000:00:05", "0000:00:05.8"] {
            assert_eq!(device_id(bad), None, "{bad}");
        }
    }
}
