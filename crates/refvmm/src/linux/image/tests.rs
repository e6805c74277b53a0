use std::io::Write;

use amdvi_hostcap::{EarlyFacts, HostCapSpec};
use tempfile::NamedTempFile;
use vm_memory::Bytes;

use super::*;
use crate::ram::{Memory, RamWish};

/// A bzImage of one setup sector and this much kernel. Its fields are those of boot.rst.
fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // xloadflags
    put(0x238, &20u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x20_0000u32.to_le_bytes()); // init_size
    image.extend_from_slice(kernel);
    image
}

/// An ELF file with a PVH note, and one segment of "kernel" at 1 MiB.
fn vmlinux(note: bool) -> Vec<u8> {
    let mut elf = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &(1 + u16::from(note)).to_le_bytes());
    let mut segment = |at: usize, kind: u32, offset: u64, paddr: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &paddr.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &size.to_le_bytes());
    };
    segment(64, 1, 0x100, 0x10_0000, 6);
    if note {
        segment(120, 4, 0x140, 0, 20);
    }
    put(0x100, b"kernel");
    // "Xen", type 12h: PHYS32_ENTRY.
    put(0x140, &[4, 0, 0, 0, 4, 0, 0, 0, 0x12, 0, 0, 0]);
    put(0x14c, b"Xen\0");
    put(0x150, &0x10_0040u32.to_le_bytes());
    elf
}

fn file(contents: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(contents).unwrap();
    file
}

struct Loaded {
    entry: Entry,
    memory: Memory,
}

fn boot(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<Loaded, LoadError> {
    boot_in(&Ram::default(), kernel, initrd, cmdline)
}

fn boot_in(
    ram: &Ram,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let kernel = file(kernel);
    let initrd = initrd.map(file);
    let files = Files {
        kernel: kernel.path().to_owned(),
        initrd: initrd.as_ref().map(|file| file.path().to_owned()),
        cmdline: cmdline.to_owned(),
    };
    let memory = ram.map().unwrap();
    let entry = load(&files, ram, &memory)?;
    Ok(Loaded { entry, memory })
}

impl Loaded {
    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        let read = self.memory.read_slice(&mut data, GuestAddress(at));
        read.unwrap();
        data
    }

    fn word(&self, at: u64) -> u64 {
        u32::from_le_bytes(self.read(at)).into()
    }
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry_with_everything_in_the_zero_page() {
    let loaded = boot(&bzimage(b"kernel"), Some(b"ramdisk"), "console=ttyS0").unwrap();
    assert_eq!(loaded.entry, Entry::Long { rip: 0x10_0200 });
    assert_eq!(&loaded.read(0x10_0000), b"kernel");
    let page = place::BOOT_PARAMS;
    assert_eq!(loaded.read(page + 0x210), [LOADER_UNDEFINED]);
    let (at, size) = (loaded.word(page + 0x218), loaded.word(page + 0x21c));
    // The last page of RAM.
    assert_eq!((at, size), ((64 << 20) - 4096, 7));
    assert_eq!(&loaded.read(at), b"ramdisk");
    let cmdline = loaded.word(page + 0x228);
    assert_eq!(&loaded.read(cmdline), b"console=ttyS0\0");
    assert_eq!(loaded.word(page + 0x70), layout::RSDP);
    let map = Ram::default().e820();
    assert_eq!(loaded.read(page + 0x1e8), [map.len() as u8]);
    for (n, (base, size, kind)) in (0..).zip(map) {
        let entry = page + 0x2d0 + 20 * n;
        assert_eq!(u64::from_le_bytes(loaded.read(entry)), base);
        assert_eq!(u64::from_le_bytes(loaded.read(entry + 8)), size);
        assert_eq!(u32::from_le_bytes(loaded.read(entry + 16)), kind);
    }
}

#[test]
fn ram_that_moved_above_1_tib_is_in_the_map_and_the_ramdisk_stays_where_the_kernel_reaches() {
    let wish = RamWish {
        size: "10G".parse().unwrap(),
        phys_bits: 48,
        ..RamWish::default()
    };
    let host = "mock:".parse::<HostCapSpec>().unwrap().build();
    let ram = Ram::plan(&wish, &EarlyFacts::collect([host.as_ref()])).unwrap();
    let loaded = boot_in(&ram, &bzimage(b"kernel"), Some(b"ramdisk"), "").unwrap();
    let page = place::BOOT_PARAMS;
    // initrd_addr_max, not the end of RAM below 4 GiB.
    assert_eq!(loaded.word(page + 0x218), (2 << 30) - 4096);
    let entries = u64::from(u8::from_le_bytes(loaded.read(page + 0x1e8)));
    let last = page + 0x2d0 + 20 * (entries - 1);
    assert_eq!(u64::from_le_bytes(loaded.read(last)), 1 << 40);
    assert_eq!(u64::from_le_bytes(loaded.read(last + 8)), 7 << 30);
}

#[test]
fn an_elf_kernel_starts_at_its_pvh_note_with_everything_in_the_start_info() {
    let loaded = boot(&vmlinux(true), Some(b"ramdisk"), "quiet").unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { eip: 0x10_0040 });
    assert_eq!(&loaded.read(0x10_0000), b"kernel");
    let info = place::START_INFO;
    assert_eq!(loaded.word(info), u64::from(START_MAGIC));
    assert_eq!(loaded.word(info + 12), 1, "modules");
    let modules = loaded.word(info + 16);
    assert_eq!(&loaded.read(loaded.word(modules)), b"ramdisk");
    assert_eq!(loaded.word(modules + 8), 7);
    assert_eq!(&loaded.read(loaded.word(info + 24)), b"quiet\0");
    assert_eq!(loaded.word(info + 32), layout::RSDP);
    let entries = Ram::default().e820();
    assert_eq!(loaded.word(info + 48), entries.len() as u64);
    let map = loaded.word(info + 40);
    assert_eq!(loaded.word(map + 8), entries[0].1);
    assert_eq!(loaded.word(map + 16), u64::from(entries[0].2));
}

#[test]
fn what_is_no_kernel_is_refused_with_what_is() {
    let refused = |kernel: &[u8], why: &str| {
        let error = boot(kernel, None, "").err().unwrap().to_string();
        assert!(error.starts_with("--kernel /"), "{error}");
        assert!(error.contains(why) && error.contains("vmlinuz"), "{error}");
    };
    refused(b"", "too short");
    refused(b"#!/bin/sh\nexit\n", "bzImage");
    refused(&[0; 4096], "bzImage");
    refused(&vmlinux(false), "without a PVH note");
    let mut old = bzimage(b"");
    old[0x236] = 0;
    refused(&old, "64-bit entry");
}

#[test]
fn a_file_that_can_not_be_read_is_named_with_its_option() {
    let kernel = file(&bzimage(b"kernel"));
    let ram = Ram::default();
    let memory = ram.map().unwrap();
    let folder = std::env::temp_dir();
    let mut files = Files {
        kernel: "/nowhere/vmlinuz".into(),
        initrd: None,
        cmdline: String::new(),
    };
    let error = |files: &Files| load(files, &ram, &memory).unwrap_err().to_string();
    assert!(error(&files).starts_with("--kernel /nowhere/vmlinuz: No such file"));
    files.kernel = folder.clone();
    assert!(
        error(&files).contains("is a directory"),
        "{}",
        error(&files)
    );
    files.kernel = kernel.path().to_owned();
    files.initrd = Some("/nowhere/initrd".into());
    assert!(error(&files).starts_with("--initrd /nowhere/initrd: No such file"));
}

#[test]
fn what_does_not_fit_is_refused_with_what_helps() {
    let large = vec![0; 60 << 20];
    let error = boot(&bzimage(b""), Some(&large), "").err().unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with("--initrd") && text.contains("--memory"),
        "{text}"
    );
    assert!(
        text.contains("0x1200000"),
        "where the kernel unpacks to: {text}"
    );
    let long = "x".repeat(21);
    let error = boot(&bzimage(b""), None, &long).err().unwrap().to_string();
    assert!(
        error.contains("21 bytes") && error.contains("up to 20"),
        "{error}"
    );
    assert!(boot(&bzimage(b""), None, &long[1..]).is_ok());
}
