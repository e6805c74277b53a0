//! Guest RAM into a stream and out of it.

use std::io::{self, Write};

use amdvi_vmm_glue::dirty::DirtyPages;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_ioctls::VmFd;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::format::{FormatError, Kind, PAGE, RAM_BYTES, Writer, corrupt};
use crate::kvm::{KvmError, map_ram};
use crate::layout;
use crate::ram::Memory;

/// What is read at once, and written as one frame at most.
struct Chunk {
    bytes: Box<[u8]>,
}

/// Pages that went into a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// With their contents.
    pub(crate) pages: u64,
    /// As zeroes.
    pub(crate) zeroes: u64,
}

fn is_zero(page: &[u8]) -> bool {
    // A comparison of memory, which is the fastest look at it there is.
    page == &[0; PAGE][..page.len()]
}

impl Chunk {
    fn new() -> Self {
        Self {
            bytes: vec![0; RAM_BYTES].into(),
        }
    }

    /// Writes pages of RAM from `gpa` on, `len` bytes, in as few frames as they make: the others are
    /// zero, which is said where `tell` asks for it.
    fn write<W: Write>(
        &mut self,
        memory: &Memory,
        gpa: u64,
        len: usize,
        tell: bool,
        to: &mut Writer<W>,
    ) -> io::Result<Sent> {
        let bytes = &mut self.bytes[..len];
        memory
            .read_slice(bytes, GuestAddress(gpa))
            .map_err(io::Error::other)?;
        let mut sent = Sent::default();
        let pages: Vec<bool> = bytes.chunks(PAGE).map(is_zero).collect();
        let mut first = 0;
        for run in pages.chunk_by(|a, b| a == b) {
            let at = gpa + (first * PAGE) as u64;
            if !run[0] {
                let end = ((first + run.len()) * PAGE).min(len);
                to.frame(Kind::Ram, &[&at.to_le_bytes(), &bytes[first * PAGE..end]])?;
                sent.pages += run.len() as u64;
            } else if tell {
                let count = run.len() as u64;
                to.frame(Kind::Zeroes, &[&at.to_le_bytes(), &count.to_le_bytes()])?;
                sent.zeroes += count;
            }
            first += run.len();
        }
        Ok(sent)
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, more: Self) {
        self.pages += more.pages;
        self.zeroes += more.zeroes;
    }
}

/// Writes all of RAM, for a reader whose RAM is zero.
pub(crate) fn write_all<W: Write>(memory: &Memory, to: &mut Writer<W>) -> io::Result<Sent> {
    let mut chunk = Chunk::new();
    let mut sent = Sent::default();
    for region in memory.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        for at in (0..len).step_by(RAM_BYTES) {
            let here = (len - at).min(RAM_BYTES as u64) as usize;
            sent += chunk.write(memory, start + at, here, false, to)?;
        }
    }
    Ok(sent)
}

/// Writes the pages whose bits are set, those that are zero, too.
pub(crate) fn write_dirty<W: Write>(
    memory: &Memory,
    dirty: &Dirty,
    to: &mut Writer<W>,
) -> io::Result<Sent> {
    let mut chunk = Chunk::new();
    let mut sent = Sent::default();
    for (region, words) in memory.iter().zip(&dirty.0) {
        let (start, pages) = (region.start_addr().0, region.len() / PAGE as u64);
        let is_set = |page: u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
        let mut page = 0;
        while page < pages {
            if words[(page / 64) as usize] >> (page % 64) == 0 {
                page = (page / 64 + 1) * 64;
                continue;
            }
            if !is_set(page) {
                page += 1;
                continue;
            }
            let limit = pages.min(page + (RAM_BYTES / PAGE) as u64);
            let end = (page..limit).find(|page| !is_set(*page)).unwrap_or(limit);
            let gpa = start + page * PAGE as u64;
            let len = (end - page) as usize * PAGE;
            sent += chunk.write(memory, gpa, len, true, to)?;
            page = end;
        }
    }
    Ok(sent)
}

/// Makes RAM zero that the board has written to, for contents that come from elsewhere.
pub(crate) fn clear(memory: &Memory) -> Result<(), FormatError> {
    let len = (layout::ACPI_END - layout::RSDP) as usize;
    memory
        .write_slice(&vec![0; len], GuestAddress(layout::RSDP))
        .map_err(|error| corrupt(format!("RAM: {error}")))
}

/// Puts the contents of a frame into RAM.
pub(crate) fn load(memory: &Memory, kind: Kind, contents: &[u8]) -> Result<(), FormatError> {
    let (head, rest) = contents
        .split_at_checked(8)
        .ok_or_else(|| corrupt("RAM without an address"))?;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(head);
    let gpa = u64::from_le_bytes(bytes);
    let outside = |error| {
        corrupt(format!(
            "RAM at {gpa:#x}, where the machine has none: {error}"
        ))
    };
    if !gpa.is_multiple_of(PAGE as u64) {
        return Err(corrupt(format!("RAM at {gpa:#x}, which is no page")));
    }
    if kind == Kind::Ram {
        if rest.is_empty() || !rest.len().is_multiple_of(PAGE) {
            return Err(corrupt(format!("RAM at {gpa:#x}, {} bytes", rest.len())));
        }
        return memory.write_slice(rest, GuestAddress(gpa)).map_err(outside);
    }
    let count: [u8; 8] = rest
        .try_into()
        .map_err(|_| corrupt("zero RAM without a length"))?;
    let count = u64::from_le_bytes(count);
    if count > (RAM_BYTES / PAGE) as u64 {
        return Err(corrupt(format!("{count} zero pages at once")));
    }
    for page in 0..count {
        let at = gpa.saturating_add(page * PAGE as u64);
        memory
            .write_slice(&[0; PAGE], GuestAddress(at))
            .map_err(outside)?;
    }
    Ok(())
}

/// Pages that were written, for each region of RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty(Vec<Vec<u64>>);

impl Dirty {
    /// Those of another log, too.
    pub(crate) fn add(&mut self, other: &Self) {
        let words = self.0.iter_mut().flatten().zip(other.0.iter().flatten());
        words.for_each(|(word, other)| *word |= other);
    }

    /// How many.
    pub(crate) fn pages(&self) -> u64 {
        let words = self.0.iter().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }
}

/// The log of written pages: KVM's of what CPUs write, ours of what devices and the IOMMU write. It
/// ends when dropped.
pub(crate) struct DirtyLog<'a> {
    vm: &'a VmFd,
    memory: &'a Memory,
}

/// The log of a region.
fn log_of(region: &GuestRegionMmap<DirtyPages>) -> &DirtyPages {
    MmapRegion::bitmap(region)
}

impl<'a> DirtyLog<'a> {
    /// Begins to log. To be called while the machine stands still.
    pub(crate) fn start(vm: &'a VmFd, memory: &'a Memory) -> Result<Self, KvmError> {
        map_ram(vm, memory, KVM_MEM_LOG_DIRTY_PAGES)?;
        memory.iter().for_each(|region| log_of(region).start());
        Ok(Self { vm, memory })
    }

    /// The pages written since the start or the last call.
    pub(crate) fn take(&self) -> Result<Dirty, KvmError> {
        let mut all = Vec::new();
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let mut words = self
                .vm
                .get_dirty_log(slot, region.len() as usize)
                .map_err(KvmError::call("KVM_GET_DIRTY_LOG"))?;
            for (word, devices) in words.iter_mut().zip(log_of(region).take()) {
                *word |= devices;
            }
            all.push(words);
        }
        Ok(Dirty(all))
    }
}

impl Drop for DirtyLog<'_> {
    fn drop(&mut self) {
        // It costs the guest an exit for each page it writes; that it can't be ended costs no more.
        let _ = map_ram(self.vm, self.memory, 0);
        self.memory.iter().for_each(|region| log_of(region).stop());
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Reader;
    use super::*;
    use crate::ram::Ram;

    fn ram() -> Memory {
        Ram::default().map().unwrap()
    }

    fn put(memory: &Memory, gpa: u64, value: u64) {
        memory.write_obj(value, GuestAddress(gpa)).unwrap();
    }

    fn get(memory: &Memory, gpa: u64) -> u64 {
        memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    fn load_all(stream: &[u8], memory: &Memory) {
        let mut reader = Reader::new(stream).unwrap();
        while let Some((kind, contents)) = reader.next_frame().unwrap() {
            load(memory, kind, contents).unwrap();
        }
    }

    #[test]
    fn all_of_ram_comes_back_and_zero_pages_take_no_room() {
        let memory = ram();
        for gpa in [0, 0x1ff8, 0x10_0000, 0x3ff_fff8] {
            put(&memory, gpa, gpa | 1);
        }
        let mut writer = Writer::new(Vec::new()).unwrap();
        assert_eq!(write_all(&memory, &mut writer).unwrap().pages, 4);
        let stream = writer.finish().unwrap();
        assert!(stream.len() < 5 * PAGE, "{}", stream.len());
        let other = ram();
        load_all(&stream, &other);
        let mut again = Writer::new(Vec::new()).unwrap();
        write_all(&other, &mut again).unwrap();
        assert_eq!(again.finish().unwrap(), stream);
    }

    #[test]
    fn of_dirty_pages_the_zero_ones_are_told_of() {
        let (memory, other) = (ram(), ram());
        for gpa in [0x5000, 0x7000, 0x20_0000] {
            put(&other, gpa, 9);
        }
        put(&memory, 0x6000, 1);
        let mut words = vec![0; 256];
        (words[0], words[8]) = (0b1110_0000, 1);
        let dirty = Dirty(vec![words]);
        assert_eq!(dirty.pages(), 4);
        let mut writer = Writer::new(Vec::new()).unwrap();
        let sent = write_dirty(&memory, &dirty, &mut writer).unwrap();
        assert_eq!((sent.pages, sent.zeroes), (1, 3));
        load_all(&writer.finish().unwrap(), &other);
        let seen = [0x5000, 0x6000, 0x7000, 0x20_0000].map(|gpa| get(&other, gpa));
        assert_eq!(seen, [0, 1, 0, 0]);
    }

    #[test]
    fn frames_that_no_machine_writes_are_refused() {
        let memory = ram();
        let ram_at = |gpa: u64, len: usize| [&gpa.to_le_bytes()[..], &vec![1; len]].concat();
        let zeroes = |gpa: u64, count: u64| [gpa.to_le_bytes(), count.to_le_bytes()].concat();
        for (kind, contents) in [
            (Kind::Ram, vec![]),
            (Kind::Ram, ram_at(0, 0)),
            (Kind::Ram, ram_at(0, 100)),
            (Kind::Ram, ram_at(8, PAGE)),
            (Kind::Ram, ram_at(0x3ff_f000, 2 * PAGE)),
            (Kind::Ram, ram_at(!0xfff, PAGE)),
            (Kind::Zeroes, zeroes(0, u64::MAX)),
            (Kind::Zeroes, zeroes(!0xfff, 2)),
            (Kind::Zeroes, ram_at(0, 4)),
        ] {
            assert!(load(&memory, kind, &contents).is_err(), "{kind:?}");
        }
    }
}
