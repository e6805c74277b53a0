//! One request to a disk.

use std::io;
use std::ops::Range;

use amdvi_vmm_glue::dirty::DirtyPages;
use virtio_bindings::virtio_blk as bindings;
use vm_memory::bitmap::BS;
use vm_memory::{Permissions, VolatileSlice};
use vmm_sys_util::write_zeroes::{PunchHole, WriteZeroesAt};

use super::file::Transfer;
use super::{Disk, MAX_CLEARED_SECTORS};
use crate::virtio::Broken;
use crate::virtio::chain::{Buffers, Chain, Fault};
use crate::virtio::lane::{Session, Stop};

/// A piece of guest memory.
type Slice<'m> = VolatileSlice<'m, BS<'m, DirtyPages>>;

/// Bytes of a sector, whatever the disk's block size.
pub(super) const SECTOR: u64 = 512;
/// The most segments of a discard or write-zeroes request.
pub(super) const MAX_SEGMENTS: u32 = 32;
/// Bytes of struct virtio_blk_discard_write_zeroes.
const SEGMENT: usize = 16;
/// Bytes of the header: type, reserved, sector.
const HEADER: u64 = 16;
/// A transfer is done in pieces of this many bytes, and a COMPLETION_WAIT waits for no more than the
/// copying of one.
const PIECE: u64 = 128 << 10;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// VIRTIO_BLK_S_IOERR.
    Io,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported,
    /// It is given up, together with its queue.
    Abandoned,
}

impl From<Fault> for Failure {
    /// The IOMMU, or the absence of memory, stopped the transfer.
    fn from(_: Fault) -> Self {
        Self::Io
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// Where contents are on the way around: as large as the largest so far, which is [`PIECE`] at most.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// So many bytes, of which nothing is known.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

/// Carries out a request. Returns how many bytes were written to the chain for certain.
pub(super) fn carry_out(
    disk: &Disk,
    scratch: &mut Scratch,
    session: &mut Session<'_>,
    mut chain: Chain,
) -> Result<u32, Stop> {
    // How a request is cut into descriptors is the driver's business (2.7.4.3): the status is the
    // last byte of what the device writes.
    let Some(status) = chain.writable.take_last() else {
        return Err(Broken("a block request has no room for its status").into());
    };
    // A chain is at most 4 GiB long.
    let len = chain.writable.len() as u32;
    let result = perform(disk, scratch, session, chain);
    let (code, written) = match result {
        Ok(()) => (bindings::VIRTIO_BLK_S_OK, len + 1),
        Err(Failure::Abandoned) => return Err(Stop::Wanted),
        // What was written before the failure is not known to be all before the status.
        Err(Failure::Io) => (bindings::VIRTIO_BLK_S_IOERR, u32::from(len == 0)),
        Err(Failure::Unsupported) => (bindings::VIRTIO_BLK_S_UNSUPP, u32::from(len == 0)),
    };
    session
        .memory(|memory| status.write(memory, &[code as u8]))
        .map_err(|_| Broken("the status of a block request can't be written"))?;
    Ok(written)
}

fn perform(
    disk: &Disk,
    scratch: &mut Scratch,
    session: &mut Session<'_>,
    mut chain: Chain,
) -> Result<(), Failure> {
    let mut header = [0; HEADER as usize];
    let buffers = chain.readable.take(HEADER);
    if session.memory(|memory| buffers.read(memory, &mut header))? < header.len() {
        return Err(Failure::Io);
    }
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
    let Chain {
        readable, writable, ..
    } = chain;
    let of_the_file = matches!(
        kind,
        bindings::VIRTIO_BLK_T_IN
            | bindings::VIRTIO_BLK_T_OUT
            | bindings::VIRTIO_BLK_T_FLUSH
            | bindings::VIRTIO_BLK_T_DISCARD
            | bindings::VIRTIO_BLK_T_WRITE_ZEROES
    );
    if of_the_file && !disk.works() {
        return Err(Failure::Io);
    }
    match kind {
        bindings::VIRTIO_BLK_T_IN => {
            let at = disk.range(sector, writable.len())?;
            read(disk, scratch, session, writable, at.start)
        }
        bindings::VIRTIO_BLK_T_OUT => {
            disk.check_writable()?;
            let at = disk.range(sector, readable.len())?;
            write(disk, scratch, session, readable, at.start)?;
            write_through(disk, session)
        }
        bindings::VIRTIO_BLK_T_FLUSH => Ok(disk.contents.file.sync_data()?),
        bindings::VIRTIO_BLK_T_GET_ID => {
            session.memory(|memory| writable.write(memory, &disk.serial))?;
            Ok(())
        }
        bindings::VIRTIO_BLK_T_DISCARD | bindings::VIRTIO_BLK_T_WRITE_ZEROES => {
            disk.check_writable()?;
            clear(disk, session, readable, kind)?;
            write_through(disk, session)
        }
        _ => Err(Failure::Unsupported),
    }
}

impl Disk {
    fn check_writable(&self) -> Result<(), Failure> {
        if self.readonly {
            Err(Failure::Io)
        } else {
            Ok(())
        }
    }

    /// The bytes of the disk, if all of them exist.
    fn range(&self, sector: u64, len: u64) -> Result<Range<u64>, Failure> {
        let sectors = len / SECTOR;
        let end = sector.checked_add(sectors).ok_or(Failure::Io)?;
        if !len.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(Failure::Io);
        }
        Ok(sector * SECTOR..end * SECTOR)
    }
}

/// Without VIRTIO_BLK_F_FLUSH a driver takes what was written for stored.
fn write_through(disk: &Disk, session: &Session<'_>) -> Result<(), Failure> {
    if session.features() & 1 << bindings::VIRTIO_BLK_F_FLUSH == 0 {
        disk.contents.file.sync_data()?;
    }
    Ok(())
}

/// From the disk straight to guest memory. What the host would have to wait for takes a way around:
/// the wait must not hold up the guest's invalidations.
fn read(
    disk: &Disk,
    scratch: &mut Scratch,
    session: &Session<'_>,
    mut to: Buffers,
    mut at: u64,
) -> Result<(), Failure> {
    while !to.is_empty() {
        session.go_on().map_err(|_| Failure::Abandoned)?;
        let mut piece = to.take(PIECE);
        let end = at + piece.len();
        let done = directly(disk, session, &piece, Permissions::Write, |slices, done| {
            disk.contents.read_now(slices, done, at + done as u64)
        })?;
        piece.take(done);
        if !piece.is_empty() {
            let waited = scratch.bytes(piece.len() as usize);
            disk.contents.read(waited, at + done)?;
            session.memory(|memory| piece.write(memory, waited))?;
        }
        at = end;
    }
    Ok(())
}

/// From guest memory straight to the disk, or the same way around.
fn write(
    disk: &Disk,
    scratch: &mut Scratch,
    session: &Session<'_>,
    mut from: Buffers,
    mut at: u64,
) -> Result<(), Failure> {
    while !from.is_empty() {
        session.go_on().map_err(|_| Failure::Abandoned)?;
        let mut piece = from.take(PIECE);
        let end = at + piece.len();
        let done = directly(disk, session, &piece, Permissions::Read, |slices, done| {
            disk.contents.write_now(slices, done, at + done as u64)
        })?;
        piece.take(done);
        if !piece.is_empty() {
            let rest = scratch.bytes(piece.len() as usize);
            session.memory(|memory| piece.read(memory, rest))?;
            disk.contents.write(rest, at + done)?;
        }
        at = end;
    }
    Ok(())
}

/// Lets `transfer` go on until all of the piece is done, or it would wait. How much is done.
fn directly(
    disk: &Disk,
    session: &Session<'_>,
    piece: &Buffers,
    access: Permissions,
    transfer: impl Fn(&[Slice<'_>], usize) -> io::Result<Transfer>,
) -> Result<u64, Failure> {
    // Else all would be translated twice.
    if !disk.contents.may_be_direct() {
        return Ok(0);
    }
    session.memory(|memory| {
        let slices = piece.slices(memory, access)?;
        let mut done = 0;
        while (done as u64) < piece.len() {
            match transfer(&slices, done)? {
                Transfer::Done(count) => done += count,
                Transfer::WouldWait => break,
            }
        }
        Ok(done as u64)
    })
}

/// Discards sectors, or makes them zero.
fn clear(disk: &Disk, session: &Session<'_>, segments: Buffers, kind: u32) -> Result<(), Failure> {
    let len = segments.len() as usize;
    if len == 0 || !len.is_multiple_of(SEGMENT) || len > MAX_SEGMENTS as usize * SEGMENT {
        return Err(Failure::Unsupported);
    }
    let mut bytes = vec![0; len];
    session.memory(|memory| segments.read(memory, &mut bytes))?;
    let discard = kind == bindings::VIRTIO_BLK_T_DISCARD;
    let mut ranges = Vec::new();
    for segment in bytes.chunks_exact(SEGMENT) {
        let word =
            |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap_or_default());
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (count, flags) = (word(8), word(12));
        let unmap = flags & bindings::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        // A discard has no flags, and the others are reserved.
        if flags & !bindings::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || unmap && discard {
            return Err(Failure::Unsupported);
        }
        if count > MAX_CLEARED_SECTORS {
            return Err(Failure::Io);
        }
        let range = disk.range(sector, u64::from(count) * SECTOR)?;
        if !range.is_empty() {
            ranges.push((range, discard || unmap));
        }
    }
    // Nothing is changed by a request with a bad segment.
    let mut file = disk.contents.file.try_clone()?;
    for (range, unmap) in ranges {
        session.go_on().map_err(|_| Failure::Abandoned)?;
        let len = range.end - range.start;
        if unmap && file.punch_hole(range.start, len).is_ok() {
            continue;
        }
        if discard {
            // A hint that the host can't use.
            continue;
        }
        file.write_all_zeroes_at(range.start, len as usize)?;
    }
    Ok(())
}
