//! A disk's file, read into and written from guest memory without a copy in between where the host
//! can do that without waiting.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Slices of one system call; Linux takes 1024.
const MAX_SLICES: usize = 256;

/// What a transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// So many bytes, at least one.
    Done(usize),
    /// None: it would wait for the disk below, or can't tell whether it would.
    WouldWait,
}

/// The file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) file: File,
    /// The file system can tell whether it would wait; taken for granted until it says no.
    tells: AtomicBool,
}

/// Bytes of the first [`MAX_SLICES`] slices, without the first `skip` of all.
fn vectors<B: BitmapSlice>(
    slices: &[VolatileSlice<'_, B>],
    mut skip: usize,
    mut address: impl FnMut(&VolatileSlice<'_, B>) -> *mut u8,
) -> Vec<libc::iovec> {
    let mut vectors = Vec::new();
    for slice in slices {
        if vectors.len() == MAX_SLICES {
            break;
        }
        match slice.offset(skip.min(slice.len())) {
            Ok(rest) if !rest.is_empty() => {
                skip = 0;
                vectors.push(libc::iovec {
                    iov_base: address(&rest).cast(),
                    iov_len: rest.len(),
                });
            }
            _ => skip -= slice.len().min(skip),
        }
    }
    vectors
}

impl Contents {
    /// The contents of `file`. Without `direct` every transfer is taken for one that would wait.
    pub(super) fn new(file: File, direct: bool) -> Self {
        Self {
            file,
            tells: AtomicBool::new(direct),
        }
    }

    /// Whether [`read_now`](Self::read_now) and [`write_now`](Self::write_now) are worth a try.
    pub(super) fn may_be_direct(&self) -> bool {
        self.tells.load(Ordering::Relaxed)
    }

    /// Fills the slices, but for their first `skip` bytes, with what the file has at `offset`, as
    /// far as that needs no waiting: the caller holds up invalidations meanwhile.
    pub(super) fn read_now<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        skip: usize,
        offset: u64,
    ) -> io::Result<Transfer> {
        if !self.may_be_direct() {
            return Ok(Transfer::WouldWait);
        }
        // The guards keep what backs the memory mapped.
        let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors = vectors(slices, skip, |slice| slice.ptr_guard_mut().as_ptr());
        // SAFETY: each vector is a part of a `VolatileSlice`, which is valid for writes of its
        // length while `guards` lives; guest memory may change at any time, and the kernel copies
        // to it without making references. The descriptor is open.
        let count = unsafe {
            libc::preadv2(
                self.file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                offset as libc::off_t,
                libc::RWF_NOWAIT,
            )
        };
        drop(guards);
        let transfer = self.transfer(count, io::ErrorKind::UnexpectedEof)?;
        if let Transfer::Done(done) = transfer {
            let mut rest = skip + done;
            for slice in slices {
                let len = rest.min(slice.len());
                slice.bitmap().mark_dirty(0, len);
                rest -= len;
            }
        }
        Ok(transfer)
    }

    /// Writes the slices, but for their first `skip` bytes, to the file at `offset`, as far as that
    /// needs no waiting.
    pub(super) fn write_now<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        skip: usize,
        offset: u64,
    ) -> io::Result<Transfer> {
        if !self.may_be_direct() {
            return Ok(Transfer::WouldWait);
        }
        let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
        let vectors = vectors(slices, skip, |slice| slice.ptr_guard().as_ptr().cast_mut());
        // SAFETY: as in `read_now`; pwritev2 only reads from the vectors.
        let count = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                offset as libc::off_t,
                libc::RWF_NOWAIT,
            )
        };
        drop(guards);
        self.transfer(count, io::ErrorKind::WriteZero)
    }

    /// What a system call returned; `none` is the error when that is no bytes at all.
    fn transfer(&self, count: isize, none: io::ErrorKind) -> io::Result<Transfer> {
        match usize::try_from(count) {
            Ok(0) => Err(none.into()),
            Ok(done) => Ok(Transfer::Done(done)),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(Transfer::WouldWait),
                    Some(libc::EOPNOTSUPP) => {
                        self.tells.store(false, Ordering::Relaxed);
                        Ok(Transfer::WouldWait)
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// Reads from the file, waiting for it if need be.
    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    /// Writes to the file, likewise.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Slices of 8 bytes: 300 are more than one system call takes.
    fn slices(memory: &mut [u8]) -> Vec<VolatileSlice<'_>> {
        memory.chunks_mut(8).map(VolatileSlice::from).collect()
    }

    #[test]
    fn what_one_call_does_not_do_the_next_one_does() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..2400u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        file.write_all(&[0xee; 5]).unwrap();
        file.write_all(&content).unwrap();
        let contents = Contents::new(file, true);
        let mut memory = vec![0; 2400];
        let mut done = 0;
        while done < memory.len() {
            let at = 5 + done as u64;
            match contents.read_now(&slices(&mut memory), done, at).unwrap() {
                Transfer::Done(len) => done += len,
                Transfer::WouldWait => {
                    contents.read(&mut memory[done..], at).unwrap();
                    done = memory.len();
                }
            }
        }
        assert_eq!(memory, content);

        let copy = Contents::new(tempfile::tempfile().unwrap(), true);
        let mut done = 0;
        while done < memory.len() {
            let at = done as u64;
            match copy.write_now(&slices(&mut memory), done, at).unwrap() {
                Transfer::Done(len) => {
                    assert!(len <= 8 * MAX_SLICES);
                    done += len;
                }
                Transfer::WouldWait => {
                    copy.write(&memory[done..], at).unwrap();
                    done = memory.len();
                }
            }
        }
        let mut read = vec![0; 2400];
        copy.read(&mut read, 0).unwrap();
        assert_eq!(read, content);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8]).unwrap();
        let contents = Contents::new(file, true);
        let mut memory = vec![0; 8];
        match contents.read_now(&slices(&mut memory), 0, 8) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            Ok(Transfer::WouldWait) => assert!(contents.read(&mut [0; 8], 8).is_err()),
            Ok(done) => panic!("{done:?}"),
        }
    }

    #[test]
    fn what_can_not_tell_whether_it_waits_is_not_asked() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8]).unwrap();
        let contents = Contents::new(file, false);
        let mut memory = vec![0; 8];
        let of = slices(&mut memory);
        assert_eq!(contents.read_now(&of, 0, 0).unwrap(), Transfer::WouldWait);
        assert_eq!(contents.write_now(&of, 0, 0).unwrap(), Transfer::WouldWait);
    }
}
