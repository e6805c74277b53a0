//! The kernel, its initial ramdisk and its command line in guest memory.
//!
//! Two ways in: a bzImage by the 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst),
//! and an ELF file (a `vmlinux`, or another kernel) by the PVH protocol, if it has a PVH note.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress};

use super::place;
use crate::layout;
use crate::ram::{Memory, Ram};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// `setup_header.type_of_loader`: a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `setup_header.xloadflags`: the kernel has a 64-bit entry point, 200h behind its start.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
/// The boot protocol that brought `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// `hvm_start_info.magic`.
const START_MAGIC: u32 = 0x336e_c578;
const PAGE: u64 = 4096;

/// What the guest is made of.
#[derive(Clone, Debug)]
pub struct Files {
    /// The kernel: a bzImage, or an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub cmdline: String,
}

impl Files {
    /// Whether the files can be read: early, before anything is built for them.
    ///
    /// # Errors
    /// One can't; the error names its option.
    pub fn check(&self) -> Result<(), LoadError> {
        open("--kernel", &self.kernel)?;
        if let Some(initrd) = &self.initrd {
            open("--initrd", initrd)?;
        }
        Ok(())
    }
}

/// How the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// In 64-bit mode at `rip`, with the address of `boot_params` in RSI.
    Long {
        /// The kernel's 64-bit entry point.
        rip: u64,
    },
    /// In 32-bit mode without paging at `eip`, with the address of `hvm_start_info` in EBX.
    Pvh {
        /// What the PVH note says.
        eip: u32,
    },
}

/// Why a kernel can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{option} {}: {source}", path.display())]
    File {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a kernel that can be booted.
    #[error(
        "--kernel {}: {why}; accepted: a bzImage for x86-64 (such as Debian's vmlinuz), or an ELF \
         file with a PVH note (a vmlinux built with CONFIG_PVH)",
        path.display()
    )]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is not enough RAM.
    #[error(
        "--initrd {}: {size} bytes do not fit between the kernel's end at {kernel_end:#x} and \
         {limit:#x}; give more --memory",
        path.display()
    )]
    Room {
        /// The initial ramdisk.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What the kernel needs of RAM.
        kernel_end: u64,
        /// Where RAM ends, or what the kernel can reach.
        limit: u64,
    },
    /// The command line is too long.
    #[error("--cmdline: {length} bytes; this kernel takes up to {limit}, printable ASCII")]
    Cmdline {
        /// Its length.
        length: usize,
        /// The most.
        limit: usize,
    },
    /// Guest memory can't be written.
    #[error("--memory: {0}")]
    Memory(String),
}

/// An initial ramdisk in guest memory.
#[derive(Clone, Copy)]
struct Initrd {
    at: u64,
    size: u64,
}

/// Puts everything in place.
///
/// # Errors
/// A file is missing or not what it should be, or RAM is too small; the error names the option.
pub(super) fn load(files: &Files, ram: &Ram, memory: &Memory) -> Result<Entry, LoadError> {
    let mut kernel = open("--kernel", &files.kernel)?;
    let mut magic = [0; 4];
    let read = kernel.read_exact(&mut magic);
    read.map_err(|_| bad_kernel(files, "it is too short"))?;
    if magic == ELF_MAGIC {
        load_elf(files, kernel, ram, memory)
    } else {
        load_bzimage(files, kernel, ram, memory)
    }
}

fn load_bzimage(
    files: &Files,
    mut kernel: File,
    ram: &Ram,
    memory: &Memory,
) -> Result<Entry, LoadError> {
    let above_low_memory = Some(GuestAddress(layout::FIRMWARE_END));
    let loaded = BzImage::load(memory, None, &mut kernel, above_low_memory)
        .map_err(|error| bad_kernel(files, &error.to_string()))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| bad_kernel(files, "it has no setup header"))?;
    if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(bad_kernel(files, "it has no 64-bit entry point"));
    }
    // What it takes once it has unpacked itself, which it does at the address it prefers.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    let kernel_end = loaded.kernel_end.max(unpacked);
    let reach = u64::from(header.initrd_addr_max) + 1;
    let initrd = load_initrd(files, kernel_end, ram.low_end().min(reach), memory)?;
    write_cmdline(files, header.cmdline_size as usize, memory)?;

    let params = zero_page(header, initrd, ram);
    let params = BootParams::new(&params, GuestAddress(place::BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(unwritable)?;
    Ok(Entry::Long {
        rip: loaded.kernel_load.0 + ENTRY_64,
    })
}

/// `boot_params`, which boot.rst calls the zero page.
fn zero_page(mut header: setup_header, initrd: Option<Initrd>, ram: &Ram) -> boot_params {
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = place::CMDLINE as u32;
    if let Some(initrd) = initrd {
        // Both are below 4 GiB, where the initial ramdisk was put.
        header.ramdisk_image = initrd.at as u32;
        header.ramdisk_size = initrd.size as u32;
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: layout::RSDP,
        ..boot_params::default()
    };
    let map = ram.e820();
    params.e820_entries = map.len() as u8;
    let mut table = [boot_e820_entry::default(); 128];
    for (entry, (addr, size, kind)) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: kind,
        };
    }
    params.e820_table = table;
    params
}

fn load_elf(
    files: &Files,
    mut kernel: File,
    ram: &Ram,
    memory: &Memory,
) -> Result<Entry, LoadError> {
    let loaded = Elf::load(memory, None, &mut kernel, None)
        .map_err(|error| bad_kernel(files, &error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(bad_kernel(files, "it is an ELF file without a PVH note"));
    };
    let eip = u32::try_from(entry.0)
        .map_err(|_| bad_kernel(files, "its PVH entry point is above 4 GiB"))?;
    let initrd = load_initrd(files, loaded.kernel_end, ram.low_end(), memory)?;
    write_cmdline(files, place::CMDLINE_SIZE - 1, memory)?;

    let map: Vec<_> = ram
        .e820()
        .into_iter()
        .map(|(addr, size, kind)| hvm_memmap_table_entry {
            addr,
            size,
            type_: kind,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .iter()
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.at,
            size: initrd.size,
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: place::CMDLINE,
        rsdp_paddr: layout::RSDP,
        memmap_paddr: place::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        nr_modules: modules.len() as u32,
        modlist_paddr: place::MODULES,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(place::START_INFO));
    params.set_sections(&map, GuestAddress(place::MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(place::MODULES));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(unwritable)?;
    Ok(Entry::Pvh { eip })
}

/// Puts the initial ramdisk as high as possible: what is below is the kernel's to unpack into.
fn load_initrd(
    files: &Files,
    kernel_end: u64,
    limit: u64,
    memory: &Memory,
) -> Result<Option<Initrd>, LoadError> {
    let Some(path) = &files.initrd else {
        return Ok(None);
    };
    let mut file = open("--initrd", path)?;
    let failed = |source| LoadError::File {
        option: "--initrd",
        path: path.clone(),
        source,
    };
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let at = limit.checked_sub(size).map_or(0, |at| at & !(PAGE - 1));
    if at < kernel_end {
        return Err(LoadError::Room {
            path: path.clone(),
            size,
            kernel_end,
            limit,
        });
    }
    memory
        .read_exact_volatile_from(GuestAddress(at), &mut file, size as usize)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(Some(Initrd { at, size }))
}

fn write_cmdline(files: &Files, limit: usize, memory: &Memory) -> Result<(), LoadError> {
    let limit = limit.min(place::CMDLINE_SIZE - 1);
    let text = &files.cmdline;
    let refused = || LoadError::Cmdline {
        length: text.len(),
        limit,
    };
    if text.len() > limit {
        return Err(refused());
    }
    let mut cmdline = Cmdline::new(place::CMDLINE_SIZE).map_err(|_| refused())?;
    if !text.is_empty() {
        cmdline.insert_str(text).map_err(|_| refused())?;
    }
    load_cmdline(memory, GuestAddress(place::CMDLINE), &cmdline).map_err(unwritable)
}

fn open(option: &'static str, path: &Path) -> Result<File, LoadError> {
    let failed = |source| LoadError::File {
        option,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // A folder can be opened, but not read.
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

fn bad_kernel(files: &Files, why: &str) -> LoadError {
    LoadError::Kernel {
        path: files.kernel.clone(),
        why: why.to_owned(),
    }
}

fn unwritable(error: impl std::fmt::Display) -> LoadError {
    LoadError::Memory(error.to_string())
}

#[cfg(test)]
mod tests;
