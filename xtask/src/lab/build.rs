//! The kernel that the lab builds: Debian's source, with what no kernel of theirs has (iommufd,
//! VFIO device files, debugfs of the AMD driver) and little else, so that it is soon built.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernels::Kernel;
use super::packages::{Filling, Packages, has, need};
use super::{BACKPORTS, SUITE};

/// The options on top of `make tinyconfig`.
const OPTIONS: &str = include_str!("kernel.config");
/// How often the build says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);
/// About how many lines the build prints.
const LINES: usize = 2300;
/// What the build needs and the lab can fetch by itself, unpacked like everything else.
const TOOLS: [&str; 4] = ["flex", "bison", "bc", "libelf-dev"];
/// Of those and their dependencies, the packages that are unpacked: the C library is the
/// machine's.
const UNPACKED: [&str; 8] = [
    "flex_",
    "bison_",
    "bc_",
    "m4_",
    "libelf",
    "libsigsegv",
    "zlib1g",
    "libzstd",
];
/// Parts of the source that this configuration never compiles, and that are half of it.
const LEFT_OUT: [&str; 6] = [
    "*/Documentation/*/*",
    "*/drivers/gpu/drm/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/testing/*",
    "*/arch/arm*/boot/*",
];

/// The kernel with these options, when it has been built.
pub(super) fn cached(cache: &Path) -> Option<Kernel> {
    Kernel::cached(&place(cache))
}

fn place(cache: &Path) -> PathBuf {
    cache.join(format!("kernels/built-{:016x}", hash(OPTIONS.as_bytes())))
}

/// FNV-1a: other options are another kernel.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The kernel with these options, built if necessary.
pub(super) fn built(cache: &Path) -> Result<Kernel> {
    if let Some(kernel) = cached(cache) {
        return Ok(kernel);
    }
    let start = Instant::now();
    need(&["gcc", "ld", "make", "tar", "xz"])
        .context("a kernel can't be built here (Debian: install build-essential and xz-utils)")?;
    println!("lab: building a kernel, once: 5 minutes on two idle cores");
    let filling = Filling::of(&place(cache))?;
    let work = filling.new.join("work");
    let tools = Tools::find(cache, &work)?;
    let source = fetch(cache, &work)?;
    let build = Build { source, tools };
    build.configure()?;
    build.run(&filling.new.join("build.log"))?;

    let image = build.source.join("arch/x86/boot/bzImage");
    fs::rename(image, filling.new.join("vmlinuz")).context("the build made no bzImage")?;
    for (from, to) in [
        (".config", "config"),
        ("include/config/kernel.release", "release"),
    ] {
        fs::rename(build.source.join(from), filling.new.join(to))
            .with_context(|| format!("the build made no {from}"))?;
    }
    fs::create_dir(filling.new.join("modules"))?;
    fs::remove_dir_all(&work)?;
    filling.done()?;
    let kernel = cached(cache).context("the kernel that was built is gone again")?;
    println!(
        "lab: Linux {} is ready after {:.0} s",
        kernel.release(),
        start.elapsed().as_secs_f64()
    );
    Ok(kernel)
}

/// Fetches the newest source of Linux 7 and unpacks it.
fn fetch(cache: &Path, work: &Path) -> Result<PathBuf> {
    let packages = Packages::open(cache, &[SUITE, BACKPORTS])?;
    let name = packages.newest(r"^linux-source-7\.[0-9]+$")?;
    let root = work.join("package");
    packages.unpack(&[&name], &root)?;
    let source = work.join("source");
    fs::create_dir_all(&source)?;
    println!("lab: unpacking the source");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(root.join(format!("usr/src/{name}.tar.xz")))
        .arg("--directory")
        .arg(&source);
    for pattern in LEFT_OUT {
        tar.arg(format!("--exclude={pattern}"));
    }
    if !tar.stdin(Stdio::null()).status()?.success() {
        bail!("`tar` can't unpack {name}");
    }
    Ok(source)
}

/// Where the programs and libraries are that a build needs besides a compiler.
struct Tools {
    /// Unpacked packages; none when the machine has everything.
    root: Option<PathBuf>,
}

impl Tools {
    fn find(cache: &Path, work: &Path) -> Result<Self> {
        let installed = ["flex", "bison", "bc"].iter().all(|tool| has(tool))
            && Path::new("/usr/include/libelf.h").exists();
        if installed {
            return Ok(Self { root: None });
        }
        let what = TOOLS.join(", ");
        let suite = suite().with_context(|| format!("install {what}"))?;
        let root = work.join("tools");
        Packages::open(cache, &[&suite])
            .and_then(|packages| {
                packages.unpack_with_dependencies(&suite, &TOOLS, &UNPACKED, &root)
            })
            .with_context(|| format!("{what} are needed and can't be fetched: install them"))?;
        Ok(Self { root: Some(root) })
    }

    /// `make`, which finds them.
    fn make(&self, source: &Path) -> Result<Command> {
        let mut make = Command::new("make");
        make.arg("-C").arg(source).stdin(Stdio::null()).args([
            "KBUILD_BUILD_TIMESTAMP=2026-01-01",
            "KBUILD_BUILD_USER=lab",
            "KBUILD_BUILD_HOST=lab",
        ]);
        // A make or cargo around this one is of no interest to it.
        for name in ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS"] {
            make.env_remove(name);
        }
        let Some(root) = &self.root else {
            return Ok(make);
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = root.join("usr/bin");
        let all = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
        let [usr, lib] = ["usr/lib", "lib"].map(|lib| root.join(lib).join("x86_64-linux-gnu"));
        make.env("PATH", std::env::join_paths(all)?)
            .env("M4", programs.join("m4"))
            .env("BISON_PKGDATADIR", root.join("usr/share/bison"))
            .env("LD_LIBRARY_PATH", std::env::join_paths([&usr, &lib])?)
            .arg(format!(
                "HOSTCFLAGS=-I{}",
                root.join("usr/include").display()
            ))
            .arg(format!(
                "HOSTLDFLAGS=-L{} -Wl,-rpath-link,{}",
                usr.display(),
                lib.display()
            ));
        Ok(make)
    }
}

/// This machine's own release of Debian: its libraries fit the machine's compiler.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    codename(&text).context("/etc/os-release names no release of Debian")
}

fn codename(os_release: &str) -> Option<String> {
    let value = |name: &str| {
        let line = os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

struct Build {
    source: PathBuf,
    tools: Tools,
}

impl Build {
    fn configure(&self) -> Result<()> {
        let name = "amdvi-lab.config";
        fs::write(self.source.join("kernel/configs").join(name), OPTIONS)?;
        for target in ["tinyconfig", name] {
            let output = self.tools.make(&self.source)?.arg(target).output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!("`make {target}` failed:\n{}", said.trim_end());
            }
        }
        let config = fs::read_to_string(self.source.join(".config"))?;
        let lost = lost(OPTIONS, &config);
        if !lost.is_empty() {
            bail!(
                "this source does not take these options as they are in kernel.config: {}",
                lost.join(", ")
            );
        }
        Ok(())
    }

    fn run(&self, log: &Path) -> Result<()> {
        let start = Instant::now();
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let file = fs::File::create(log)?;
        let mut make = self.tools.make(&self.source)?;
        make.arg(format!("-j{}", jobs + 1)).arg("bzImage");
        let mut child = make
            .stdout(Stdio::piped())
            .stderr(file.try_clone()?)
            .spawn()
            .context("cannot start make")?;
        let lines = BufReader::new(child.stdout.take().context("make has no output")?).lines();
        let mut said = Instant::now();
        for (count, line) in lines.enumerate() {
            line?;
            if said.elapsed() >= PROGRESS {
                said = Instant::now();
                println!(
                    "lab: kernel build: {count} of about {LINES} steps after {:.0} s",
                    start.elapsed().as_secs_f64()
                );
            }
        }
        if child.wait()?.success() {
            return Ok(());
        }
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("the kernel's build failed; its last errors:\n{tail}")
    }
}

/// The options that a configuration does not have as they were asked for.
fn lost<'a>(options: &'a str, config: &str) -> Vec<&'a str> {
    options
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => config
                .lines()
                .any(|set| set.strip_prefix(name).is_some_and(|v| v.starts_with('='))),
            None => !config.lines().any(|set| set == *line),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_the_source_did_not_take_is_named() {
        let options = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=\"x\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_DD=y\nCONFIG_E=\"x\"\n";
        assert_eq!(lost(options, config), ["CONFIG_B=y", "CONFIG_C=n"]);
    }

    #[test]
    fn only_debian_has_a_suite() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(codename(debian).as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename("ID=debian\n"), None, "testing has none");
    }

    #[test]
    fn other_options_are_another_kernel() {
        assert_ne!(hash(b"CONFIG_A=y"), hash(b"CONFIG_A=n"));
    }
}
