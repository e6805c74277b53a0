//! The stream that holds a saved machine: a file, or what a live migration sends.
//!
//! A header of 16 bytes, the magic number and the version, is followed by frames. A frame is kind,
//! length and checksum, 32 bits each and little-endian, and its contents. The checksum, a CRC-32,
//! covers the frame's number, too: a frame that is missing, doubled or in another place is noticed.
//! The last frame says so; a stream without it was cut off.
//!
//! What is read may come from anywhere. No length in it makes the reader take more memory than the
//! stream really has, and none more than the kind of frame allows.

use std::io::{self, Read, Write};

/// Begins every stream. It is no text, and a transfer as text damages it.
pub const MAGIC: [u8; 12] = *b"\x89amdvi-vm\r\n\x1a";
/// The version that is written, and the only one that is read.
///
/// A change of what a device's state *means* needs a new one; a new field, or a device that is not
/// always there, does not, since states name their fields.
pub const VERSION: u32 = 1;

/// Most bytes of RAM in a frame, besides its address.
pub const RAM_BYTES: usize = 1 << 20;
/// What the end of a stream takes.
pub(crate) const END_BYTES: u64 = 12;
/// Pages of RAM are these.
pub const PAGE: usize = 4096;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// What the machine is made of, JSON.
    Configuration = 1,
    /// GPA, 64 bits, and pages from there on.
    Ram = 2,
    /// GPA and number of pages, 64 bits each: these are zero now.
    Zeroes = 3,
    /// Devices and CPUs, JSON.
    State = 4,
    /// The end.
    End = 5,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Configuration,
        Self::Ram,
        Self::Zeroes,
        Self::State,
        Self::End,
    ];

    fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The longest contents.
    const fn limit(self) -> usize {
        match self {
            Self::Configuration => 1 << 20,
            Self::Ram => 8 + RAM_BYTES,
            Self::Zeroes => 16,
            // 1024 CPUs with 30 KiB each, and 64 endpoints with 2048 vectors each, fit. Parsed, a forged one
            // takes some twenty times as much.
            Self::State => 64 << 20,
            Self::End => 0,
        }
    }
}

/// Why a stream is no saved machine that this VMM can take.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is something else.
    #[error(
        "this is not a saved machine of amdvi-refvmm: give a file that its `save` command or \
         --save-to wrote"
    )]
    Foreign,
    /// It is of another version.
    #[error(
        "it has version {found} of the format, this amdvi-refvmm reads version {VERSION}: restore it \
         with the amdvi-refvmm that saved it, or with a newer one"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It ends early.
    #[error(
        "it ends in the middle, so saving or copying it was cut off: use another copy, or an \
         earlier save"
    )]
    Truncated,
    /// A checksum does not match.
    #[error("it is damaged ({0}): use another copy, or an earlier save")]
    Corrupt(String),
    /// It can't be read.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for FormatError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// A state that no machine could have written, although its checksum is right.
pub(crate) fn corrupt(what: impl Into<String>) -> FormatError {
    FormatError::Corrupt(what.into())
}

fn checksum(number: u64, head: &[u8; 8], contents: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(head);
    for part in contents {
        crc.update(part);
    }
    crc.finalize()
}

/// Writes a stream.
pub struct Writer<W> {
    to: W,
    frames: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    ///
    /// # Errors
    /// That of the output.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        Ok(Self {
            to,
            frames: 0,
            bytes: 16,
        })
    }

    /// Writes a frame whose contents are in several parts.
    ///
    /// # Errors
    /// That of the output, or the contents are longer than such a frame can be.
    pub fn frame(&mut self, kind: Kind, contents: &[&[u8]]) -> io::Result<()> {
        let len: usize = contents.iter().map(|part| part.len()).sum();
        if len > kind.limit() {
            return Err(io::Error::other(format!(
                "{kind:?} of the machine is {len} bytes; the format has room for {}",
                kind.limit()
            )));
        }
        let mut head = [0; 8];
        head[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        // At most 64 MiB.
        head[4..].copy_from_slice(&(len as u32).to_le_bytes());
        self.to.write_all(&head)?;
        let crc = checksum(self.frames, &head, contents);
        self.to.write_all(&crc.to_le_bytes())?;
        for part in contents {
            self.to.write_all(part)?;
        }
        self.frames += 1;
        self.bytes += 12 + len as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// That of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.frame(Kind::End, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    /// What is written to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }
}

/// Reads a stream.
pub struct Reader<R> {
    from: R,
    frames: u64,
    ended: bool,
    contents: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Begins with the header.
    ///
    /// # Errors
    /// The stream is of something else, or of another version.
    pub fn new(mut from: R) -> Result<Self, FormatError> {
        let mut magic = [0; MAGIC.len()];
        match from.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            // Too short for a header counts as something else: nothing of ours is so short.
            _ => return Err(FormatError::Foreign),
        }
        let mut version = [0; 4];
        from.read_exact(&mut version)?;
        let found = u32::from_le_bytes(version);
        if found != VERSION {
            return Err(FormatError::Version { found });
        }
        Ok(Self {
            from,
            frames: 0,
            ended: false,
            contents: Vec::new(),
        })
    }

    /// The next frame and its contents; `None` at the end.
    ///
    /// # Errors
    /// The stream is cut off or damaged.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, FormatError> {
        if self.ended {
            return Ok(None);
        }
        let number = self.frames;
        let mut head = [0; 8];
        self.from.read_exact(&mut head)?;
        let mut crc = [0; 4];
        self.from.read_exact(&mut crc)?;
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&head[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let kind = Kind::of(word(0))
            .ok_or_else(|| corrupt(format!("frame {number} is of no known kind")))?;
        let len = word(4) as usize;
        if len > kind.limit() {
            return Err(corrupt(format!(
                "frame {number}, {kind:?}, claims {len} bytes"
            )));
        }
        // Memory is taken as the contents come, not as they are announced.
        self.contents.clear();
        let read = (&mut self.from)
            .take(len as u64)
            .read_to_end(&mut self.contents)?;
        if read < len {
            return Err(FormatError::Truncated);
        }
        if checksum(number, &head, &[&self.contents]) != u32::from_le_bytes(crc) {
            return Err(corrupt(format!(
                "the checksum of frame {number}, {kind:?}, does not match"
            )));
        }
        self.frames += 1;
        if kind == Kind::End {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some((kind, &self.contents)))
    }

    /// What is read from, behind the end.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.frame(Kind::Configuration, &[b"{}"]).unwrap();
        let page = [7; PAGE];
        writer
            .frame(Kind::Ram, &[&0x1000u64.to_le_bytes(), &page])
            .unwrap();
        writer.frame(Kind::State, &[b"[1,", b"2]"]).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Kind, Vec<u8>)>, FormatError> {
        let mut reader = Reader::new(bytes)?;
        let mut frames = Vec::new();
        while let Some((kind, contents)) = reader.next_frame()? {
            frames.push((kind, contents.to_vec()));
        }
        Ok(frames)
    }

    #[test]
    fn what_was_written_is_read() {
        let frames = read(&stream()).unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0], (Kind::Configuration, b"{}".to_vec()));
        assert_eq!((frames[1].0, frames[1].1.len()), (Kind::Ram, 8 + PAGE));
        assert_eq!(frames[2], (Kind::State, b"[1,2]".to_vec()));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let whole = stream();
        for len in 0..whole.len() {
            let error = read(&whole[..len]).unwrap_err();
            let expected = if len < MAGIC.len() {
                matches!(error, FormatError::Foreign)
            } else {
                matches!(error, FormatError::Truncated)
            };
            assert!(expected, "{len} bytes: {error}");
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let whole = stream();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn frames_that_are_missing_doubled_or_moved_are_noticed() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let mut cuts = vec![writer.bytes() as usize];
        for gpa in 0..3u64 {
            let gpa = (gpa * 4096).to_le_bytes();
            writer.frame(Kind::Ram, &[&gpa, &[1; PAGE]]).unwrap();
            cuts.push(writer.bytes() as usize);
        }
        let whole = writer.finish().unwrap();
        let frame = |n: usize| &whole[cuts[n]..cuts[n + 1]];
        let head = &whole[..cuts[0]];
        let end = &whole[cuts[3]..];
        for order in [&[0, 1][..], &[0, 1, 2, 2], &[1, 0, 2], &[0, 2]] {
            let mut bytes = head.to_vec();
            order.iter().for_each(|n| bytes.extend(frame(*n)));
            bytes.extend(end);
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{order:?}: {error}");
        }
    }

    #[test]
    fn something_else_and_another_version_say_what_to_do() {
        for foreign in [&b""[..], b"#!/bin/sh\n", &[0; 64], b"\x7fELF"] {
            let error = read(foreign).unwrap_err().to_string();
            assert!(error.contains("not a saved machine"), "{error}");
        }
        for version in [0, VERSION + 1, u32::MAX] {
            let mut bytes = stream();
            bytes[12..16].copy_from_slice(&version.to_le_bytes());
            let error = read(&bytes).unwrap_err().to_string();
            assert!(
                error.contains(&format!("version {version} ")) && error.contains("restore it with"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_length_that_is_only_claimed_takes_no_memory() {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((Kind::State as u32).to_le_bytes());
        bytes.extend((60u32 << 20).to_le_bytes());
        bytes.extend([0; 40]);
        let mut reader = Reader::new(&*bytes).unwrap();
        assert!(matches!(reader.next_frame(), Err(FormatError::Truncated)));
        assert!(reader.contents.capacity() < 1 << 20);
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read(&bytes), Err(FormatError::Corrupt(_))));
    }

    #[test]
    fn contents_that_do_not_fit_are_not_written() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        assert!(writer.frame(Kind::Ram, &[&vec![0; RAM_BYTES + 9]]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let mut ours = MAGIC.to_vec();
            ours.extend(VERSION.to_le_bytes());
            ours.extend(&bytes);
            prop_assert!(read(&ours).is_err());
        }
    }
}
