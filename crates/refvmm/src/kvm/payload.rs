//! The payload's image: an ELF file whose segments are copied to their physical addresses.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::ram::Memory;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind, elf};
use vm_memory::{Bytes, GuestAddress};

/// Why an image can't be run.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file can't be read.
    #[error("payload {}: {source} (build it with `cargo xtask payload`)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not an ELF file that this machine can run.
    #[error("payload: {0}; expected a static x86-64 ELF executable")]
    Format(String),
    /// A segment lies outside of RAM, or on the VMM's own pages.
    #[error(
        "payload: segment {:#x}-{:#x} lies outside of the RAM it may use, {:#x}-{:#x}",
        segment.start, segment.end, allowed.start, allowed.end
    )]
    Range {
        /// The segment.
        segment: Range<u64>,
        /// RAM for payloads.
        allowed: Range<u64>,
    },
}

#[derive(Clone, Debug)]
struct Segment {
    gpa: u64,
    bytes: Vec<u8>,
    /// Bytes in memory; those beyond `bytes` are zero, as RAM is at the start.
    size: u64,
}

/// A program for the bare machine.
#[derive(Clone, Debug)]
pub struct Payload {
    entry: u64,
    segments: Vec<Segment>,
    /// Address, size and name of its functions, by address.
    functions: Vec<(u64, u64, String)>,
}

impl Payload {
    /// Reads an ELF file.
    ///
    /// # Errors
    ///
    /// The file can't be read or has not the right form.
    pub fn from_file(path: &Path) -> Result<Self, PayloadError> {
        let bytes = std::fs::read(path).map_err(|source| PayloadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_elf(&bytes)
    }

    /// Reads an ELF image.
    ///
    /// # Errors
    ///
    /// It has not the right form: not x86-64, not static, a segment beyond the file or an entry
    /// point outside of every segment.
    pub fn from_elf(bytes: &[u8]) -> Result<Self, PayloadError> {
        let malformed = |error: object::Error| PayloadError::Format(error.to_string());
        let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(malformed)?;
        let header = file.elf_header();
        let endian = file.endian();
        if header.e_machine(endian) != elf::EM_X86_64 || header.e_type(endian) != elf::ET_EXEC {
            return Err(PayloadError::Format(format!(
                "machine {}, type {}",
                header.e_machine(endian),
                header.e_type(endian)
            )));
        }
        let mut segments = Vec::new();
        for segment in file.elf_program_headers() {
            match segment.p_type(endian) {
                elf::PT_LOAD => {}
                elf::PT_INTERP | elf::PT_DYNAMIC => {
                    return Err(PayloadError::Format("it is dynamically linked".to_owned()));
                }
                _ => continue,
            }
            let data = segment
                .data(endian, bytes)
                .map_err(|()| PayloadError::Format("a segment ends behind the file".to_owned()))?;
            let (gpa, size) = (segment.p_paddr(endian), segment.p_memsz(endian));
            if size < data.len() as u64 || gpa.checked_add(size).is_none() {
                return Err(PayloadError::Format(format!(
                    "a segment has {size:#x} bytes at {gpa:#x}, {:#x} of them in the file",
                    data.len()
                )));
            }
            segments.push(Segment {
                gpa,
                bytes: data.to_vec(),
                size,
            });
        }
        let entry = header.e_entry(endian);
        if !segments
            .iter()
            .any(|s| (s.gpa..s.gpa + s.bytes.len() as u64).contains(&entry))
        {
            return Err(PayloadError::Format(format!(
                "its entry point {entry:#x} is in no segment"
            )));
        }
        let mut functions: Vec<_> = file
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text)
            .filter_map(|s| {
                let name = format!("{:#}", rustc_demangle::demangle(s.name().ok()?));
                Some((s.address(), s.size(), name))
            })
            .collect();
        functions.sort();
        Ok(Self {
            entry,
            segments,
            functions,
        })
    }

    /// Code without a file around it, entered at its first byte.
    pub fn flat(gpa: u64, code: &[u8]) -> Self {
        Self {
            entry: gpa,
            segments: vec![Segment {
                gpa,
                bytes: code.to_vec(),
                size: code.len() as u64,
            }],
            functions: Vec::new(),
        }
    }

    /// Where CPUs start.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// First GPA behind the image.
    pub fn end(&self) -> u64 {
        self.segments
            .iter()
            .map(|s| s.gpa + s.size)
            .max()
            .unwrap_or(0)
    }

    /// The function at `address` and the distance from its start; `None` when unknown.
    pub fn function(&self, address: u64) -> Option<String> {
        let at = self
            .functions
            .partition_point(|f| f.0 <= address)
            .checked_sub(1)?;
        let (start, size, name) = &self.functions[at];
        (address - start < (*size).max(1)).then(|| format!("{name}+{:#x}", address - start))
    }

    /// Copies the image into fresh (zero) RAM.
    ///
    /// # Errors
    ///
    /// A segment is not inside `allowed`.
    pub fn load(&self, memory: &Memory, allowed: Range<u64>) -> Result<(), PayloadError> {
        for segment in &self.segments {
            let range = segment.gpa..segment.gpa + segment.size;
            let outside = || PayloadError::Range {
                segment: range.clone(),
                allowed: allowed.clone(),
            };
            if range.start < allowed.start || range.end > allowed.end {
                return Err(outside());
            }
            memory
                .write_slice(&segment.bytes, GuestAddress(segment.gpa))
                .map_err(|_| outside())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal executable: header, one program header, four bytes of code at 1 MiB.
    fn image() -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &2u16.to_le_bytes()); // e_type: EXEC
        put(18, &62u16.to_le_bytes()); // e_machine: x86-64
        put(20, &1u32.to_le_bytes()); // e_version
        put(24, &0x10_0000u64.to_le_bytes()); // e_entry
        put(32, &64u64.to_le_bytes()); // e_phoff
        put(52, &64u16.to_le_bytes()); // e_ehsize
        put(54, &56u16.to_le_bytes()); // e_phentsize
        put(56, &1u16.to_le_bytes()); // e_phnum
        put(64, &1u32.to_le_bytes()); // p_type: LOAD
        put(72, &120u64.to_le_bytes()); // p_offset
        put(80, &0x10_0000u64.to_le_bytes()); // p_vaddr
        put(88, &0x10_0000u64.to_le_bytes()); // p_paddr
        put(96, &4u64.to_le_bytes()); // p_filesz
        put(104, &0x2000u64.to_le_bytes()); // p_memsz
        elf.extend_from_slice(&[0xf4; 4]);
        elf
    }

    fn memory(bytes: usize) -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
    }

    #[test]
    fn a_segment_is_copied_to_its_physical_address() {
        let payload = Payload::from_elf(&image()).unwrap();
        assert_eq!((payload.entry(), payload.end()), (0x10_0000, 0x10_2000));
        let memory = memory(0x20_0000);
        payload.load(&memory, 0x10_0000..0x20_0000).unwrap();
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(0x10_0000)).unwrap(),
            0xf4f4_f4f4
        );
        assert_eq!(payload.function(0x10_0000), None);
    }

    #[test]
    fn a_segment_outside_of_ram_is_refused() {
        let payload = Payload::from_elf(&image()).unwrap();
        let memory = memory(0x10_1000);
        let error = payload.load(&memory, 0x10_0000..0x10_1000).unwrap_err();
        assert!(matches!(error, PayloadError::Range { .. }), "{error}");
        let error = payload.load(&memory, 0x10_0001..0x20_0000).unwrap_err();
        assert!(error.to_string().contains("0x100000-0x102000"), "{error}");
    }

    #[test]
    fn a_file_that_lies_about_itself_is_refused() {
        for (at, bytes) in [
            (18, &3u16.to_le_bytes()[..]),       // another machine
            (16, &3u16.to_le_bytes()),           // position independent
            (24, &0x20_0000u64.to_le_bytes()),   // entry point elsewhere
            (96, &0x1000u64.to_le_bytes()),      // longer than the file
            (104, &2u64.to_le_bytes()),          // smaller in memory than in the file
            (88, &(u64::MAX - 1).to_le_bytes()), // wraps around
            (64, &3u32.to_le_bytes()),           // has an interpreter
        ] {
            let mut elf = image();
            elf[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(
                matches!(Payload::from_elf(&elf), Err(PayloadError::Format(_))),
                "byte {at}"
            );
        }
        assert!(Payload::from_elf(b"#!/bin/sh").is_err());
    }
}
