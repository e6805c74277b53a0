//! A disk's file, read into and written from guest memory without a copy in between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Slices of one system call; Linux takes 1024.
const MAX_SLICES: usize = 256;

/// What a transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// So many bytes, at least one.
    Done(usize),
    /// None: it would wait for the disk below.
    WouldWait,
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

/// Fills the slices, but for their first `skip` bytes, with what the file has at `offset`, as far
/// as it is in the page cache: the caller holds up invalidations meanwhile and must not wait.
pub(super) fn read_cached<B: BitmapSlice>(
    file: &File,
    slices: &[VolatileSlice<'_, B>],
    skip: usize,
    offset: u64,
) -> io::Result<Transfer> {
    // The guards keep what backs the memory mapped.
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors = vectors(slices, skip, |slice| slice.ptr_guard_mut().as_ptr());
    // SAFETY: each vector is a part of a `VolatileSlice`, which is valid for writes of its length
    // while `guards` lives; guest memory may change at any time, and the kernel copies to it without
    // making references. The descriptor is open.
    let count = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len() as libc::c_int,
            offset as libc::off_t,
            libc::RWF_NOWAIT,
        )
    };
    drop(guards);
    match usize::try_from(count) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(done) => {
            let mut rest = skip + done;
            for slice in slices {
                let len = rest.min(slice.len());
                slice.bitmap().mark_dirty(0, len);
                rest -= len;
            }
            Ok(Transfer::Done(done))
        }
        Err(_) => match io::Error::last_os_error() {
            // Not every file system can tell.
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)) => {
                Ok(Transfer::WouldWait)
            }
            error => Err(error),
        },
    }
}

/// Writes the slices, but for their first `skip` bytes, to the file at `offset`. How many bytes.
pub(super) fn write<B: BitmapSlice>(
    file: &File,
    slices: &[VolatileSlice<'_, B>],
    skip: usize,
    offset: u64,
) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
    let vectors = vectors(slices, skip, |slice| slice.ptr_guard().as_ptr().cast_mut());
    // SAFETY: as in `read_cached`; pwritev only reads from the vectors.
    let count = unsafe {
        libc::pwritev(
            file.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len() as libc::c_int,
            offset as libc::off_t,
        )
    };
    drop(guards);
    match usize::try_from(count) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Ok(done) => Ok(done),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Reads from the file, waiting for it if need be.
pub(super) fn read_waiting(file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(data, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// 300 slices of 8 bytes: more than one system call takes.
    fn slices(memory: &mut [u8]) -> Vec<VolatileSlice<'_>> {
        memory.chunks_mut(8).map(VolatileSlice::from).collect()
    }

    #[test]
    fn what_one_call_does_not_do_the_next_one_does() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..2400u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        file.write_all(&[0xee; 5]).unwrap();
        file.write_all(&content).unwrap();
        let mut memory = vec![0; 2400];
        let mut done = 0;
        while done < memory.len() {
            let to = slices(&mut memory);
            match read_cached(&file, &to, done, 5 + done as u64).unwrap() {
                Transfer::Done(len) => done += len,
                Transfer::WouldWait => {
                    read_waiting(&file, &mut memory[done..], 5 + done as u64).unwrap();
                    done = memory.len();
                }
            }
        }
        assert_eq!(memory, content);

        let copy = tempfile::tempfile().unwrap();
        let mut done = 0;
        while done < memory.len() {
            let len = write(&copy, &slices(&mut memory), done, done as u64).unwrap();
            assert!(len <= 8 * MAX_SLICES);
            done += len;
        }
        let mut read = vec![0; 2400];
        read_waiting(&copy, &mut read, 0).unwrap();
        assert_eq!(read, content);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8]).unwrap();
        let mut memory = vec![0; 8];
        let to = slices(&mut memory);
        match read_cached(&file, &to, 0, 8) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            Ok(Transfer::WouldWait) => {
                assert!(read_waiting(&file, &mut [0; 8], 8).is_err());
            }
            Ok(done) => panic!("{done:?}"),
        }
    }
}
