//! The kernels of the lab's guests: two of Debian's, and one that is built here.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};

use super::packages::{Filling, Packages, need};
use super::{BACKPORTS, SUITE};

/// A kernel: in the cache, or somebody's own.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    image: PathBuf,
    /// The folder with its modules, if there are any.
    modules: Option<PathBuf>,
    release: String,
}

/// Debian's kernels that the lab knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Debian {
    /// The stable release's.
    V6_12,
    /// The newest in backports.
    V7,
}

impl Debian {
    const ALL: [Self; 2] = [Self::V6_12, Self::V7];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "debian-6.12",
            Self::V7 => "debian-7",
        }
    }

    fn packages(self, packages: &Packages) -> Result<Vec<String>> {
        Ok(match self {
            Self::V6_12 => {
                vec![packages.newest(r"^linux-image-6\.12\.[0-9]+\+deb[0-9]+-amd64$")?]
            }
            // From 6.18 on the image and its modules are packages of their own.
            Self::V7 => {
                let modules = packages.newest(r"^linux-modules-7[0-9.]+\+deb[0-9]+-amd64$")?;
                vec![modules.replace("-modules-", "-binary-"), modules]
            }
        })
    }
}

impl Kernel {
    /// The kernel in a folder of the cache, when it is complete.
    pub(super) fn cached(folder: &Path) -> Option<Self> {
        let image = folder.join("vmlinuz");
        let release = fs::read_to_string(folder.join("release")).unwrap_or_default();
        image.exists().then(|| Self {
            image,
            modules: Some(folder.join("modules")),
            release: release.trim().to_owned(),
        })
    }

    /// A kernel from outside of the cache.
    pub(crate) fn of(image: &Path, modules: Option<&Path>) -> Result<Self> {
        let mut file =
            fs::File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
        let mut header = [0; 0x8000];
        let mut length = 0;
        while let Ok(more @ 1..) = file.read(&mut header[length..]) {
            length += more;
        }
        Ok(Self {
            image: image.to_owned(),
            modules: modules.map(Path::to_owned),
            release: release_in(&header[..length]).unwrap_or_else(|| "unknown".to_owned()),
        })
    }

    /// The compressed image that a boot loader takes.
    pub(crate) fn image(&self) -> PathBuf {
        self.image.clone()
    }

    /// The kernel's release, such as `7.3.4+deb13-amd64`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// Whether the driver enables 2048 interrupts: from Linux 6.15 on.
    pub(crate) fn has_2k(&self) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
        (number(), number()) >= (Some(6), Some(15))
    }

    #[cfg(test)]
    pub(super) fn named(release: &str) -> Self {
        Self {
            image: PathBuf::new(),
            modules: None,
            release: release.to_owned(),
        }
    }

    /// Modules with all that they depend on, in the order to load them: name and contents.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        let mut loaded = Vec::new();
        let Some(folder) = &self.modules else {
            return Ok(loaded);
        };
        list(folder, &mut files)?;
        for name in names {
            load(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// The release in the header of a bzImage: a string, at the offset that is at 20Eh.
fn release_in(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(usize::from(offset) + 0x200..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    String::from_utf8(text[..end].to_vec()).ok()
}

/// Every file below a folder.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// A module's name, as the kernel spells it, from its file's.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name);
    Some(name.strip_suffix(".ko")?.replace('-', "_"))
}

fn load(name: &str, files: &[PathBuf], loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = name.replace('-', "_");
    if loaded.iter().any(|(other, _)| *other == name) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file).as_deref() == Some(&name))
        .with_context(|| format!("this kernel has no module {name}"))?;
    let module = read_module(file)?;
    for dependency in depends(&module)? {
        load(&dependency, files, loaded)?;
    }
    loaded.push((name, module));
    Ok(())
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(file)?);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .context("cannot start `xz`: install xz-utils")?;
    if !output.status.success() {
        bail!("`xz` can't decompress {}", file.display());
    }
    Ok(output.stdout)
}

/// The modules that a module needs: `depends=` in its section `.modinfo`.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("a kernel module is no ELF file")?;
    let section = file
        .section_by_name(".modinfo")
        .context("a kernel module has no section .modinfo")?;
    Ok(depends_in(section.data()?))
}

fn depends_in(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// One of Debian's kernels, fetched if necessary (both at once: reading the package lists is
/// most of the work).
pub(super) fn debian(cache: &Path, wanted: Debian) -> Result<Kernel> {
    let place = |one: Debian| cache.join("kernels").join(one.name());
    if let Some(kernel) = Kernel::cached(&place(wanted)) {
        return Ok(kernel);
    }
    let start = Instant::now();
    need(&["xz"])?;
    let packages = Packages::open(cache, &[SUITE, BACKPORTS])?;
    for one in Debian::ALL {
        if Kernel::cached(&place(one)).is_some() {
            continue;
        }
        let filling = Filling::of(&place(one))?;
        let names = one.packages(&packages)?;
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let root = filling.new.join("root");
        packages.unpack(&names, &root)?;
        sort_out(&root, &filling.new)
            .with_context(|| format!("{} is not as expected", names.join(" and ")))?;
        fs::remove_dir_all(&root)?;
        filling.done()?;
    }
    println!(
        "lab: Debian's kernels are ready after {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Kernel::cached(&place(wanted)).context("the kernel that was fetched is gone again")
}

/// Finds the image and the modules in an unpacked package.
fn sort_out(root: &Path, folder: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules");
    let release = fs::read_dir(&modules)
        .with_context(|| format!("no {}", modules.display()))?
        .flatten()
        .next()
        .context("no kernel release among the modules")?
        .file_name();
    let release = release.to_string_lossy();
    let of_release = modules.join(&*release);
    let images = [
        root.join(format!("boot/vmlinuz-{release}")),
        of_release.join("vmlinuz"),
    ];
    let image = images
        .iter()
        .find(|image| image.exists())
        .context("no kernel image")?;
    fs::rename(image, folder.join("vmlinuz"))?;
    fs::rename(of_release.join("kernel"), folder.join("modules"))?;
    fs::write(folder.join("release"), format!("{release}\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let modinfo = b"license=GPL\0depends=kvm,irqbypass,ccp\0name=kvm_amd\0";
        assert_eq!(depends_in(modinfo), ["kvm", "irqbypass", "ccp"]);
        assert_eq!(depends_in(b"depends=\0name=x\0"), [""; 0]);
    }

    #[test]
    fn the_release_is_in_the_header_of_an_image() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x110u16.to_le_bytes());
        image[0x310..0x327].copy_from_slice(b"6.14.0-amd64 (lab@lab) ");
        let release = release_in(&image).unwrap();
        assert_eq!(release, "6.14.0-amd64");
        assert_eq!(release_in(b"\x7fELF"), None);
        assert!(!Kernel::named(&release).has_2k());
        assert!(Kernel::named("6.15.1").has_2k() && Kernel::named("7.0").has_2k());
        assert!(!Kernel::named("unknown").has_2k() && !Kernel::named("5.20").has_2k());
    }

    #[test]
    fn module_names_have_underscores_whatever_the_file_is_called() {
        let name = |file: &str| module_name(Path::new(file));
        assert_eq!(name("a/kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(name("b/vfio.ko").as_deref(), Some("vfio"));
        assert_eq!(name("b/modules.order"), None);
    }
}
