//! What a first process finds undone.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

/// `MODULE_INIT_COMPRESSED_FILE`.
const COMPRESSED: libc::c_uint = 4;

/// Mounts the kernel's own file systems where programs look for them. Returns what could not be
/// done.
pub fn mount_all() -> Vec<String> {
    let places = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
    ];
    let mount = |(kind, place): (&str, &str)| {
        let mounted = fs::create_dir_all(place).and_then(|()| {
            let none = None::<&str>;
            Ok(mount(
                Some(kind),
                place,
                Some(kind),
                MsFlags::empty(),
                none,
            )?)
        });
        match mounted {
            // The kernel may have mounted it before.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
            Err(error) => Some(format!("mount {place}: {error}")),
            Ok(()) => None,
        }
    };
    places.into_iter().filter_map(mount).collect()
}

/// Loads the kernel module in the file at `path`, with parameters as `name=value` separated by
/// spaces. A file that is compressed, `….ko.xz`, is left to the kernel to decompress. A module
/// that is there already is no error.
///
/// # Errors
/// The file can't be read, or the kernel refused the module: its log says why.
pub fn load_module(path: &str, parameters: &str) -> io::Result<()> {
    let flags = if path.ends_with(".ko") {
        ModuleInitFlags::empty()
    } else {
        ModuleInitFlags::from_bits_retain(COMPRESSED)
    };
    match finit_module(File::open(path)?, &CString::new(parameters)?, flags) {
        Err(nix::Error::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}
