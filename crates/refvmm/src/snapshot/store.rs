//! Saving to a file; restoring from one, or from another process.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use serde::Serialize;

use super::configuration::Configuration;
use super::file::NewFile;
use super::format::{FormatError, Kind, Reader, Writer, corrupt};
use super::machine::{Live, MachineState, Still};
use super::migrate::Incoming;
use super::{SnapshotError, ram};
use crate::board::Board;
use crate::kvm::Ending;
use crate::ram::Memory;

/// Bytes between the stream and the file.
const BUFFER: usize = 1 << 20;

/// What saving took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Pages of RAM in it; the others are zero.
    pub pages: u64,
    /// How long the guest stood still, in milliseconds.
    pub still_ms: u64,
}

impl Still<'_> {
    fn write(&self, path: &Path, file: &mut NewFile) -> Result<(u64, u64), SnapshotError> {
        let failed = |error: io::Error| SnapshotError::Write {
            path: path.to_owned(),
            error,
        };
        let state = self.state()?;
        let text = |value: serde_json::Result<Vec<u8>>| value.map_err(io::Error::other);
        let write = || -> io::Result<(u64, u64)> {
            let mut writer = Writer::new(BufWriter::with_capacity(BUFFER, file))?;
            let configuration = text(serde_json::to_vec(self.configuration()))?;
            writer.frame(Kind::Configuration, &[&configuration])?;
            let sent = ram::write_all(self.memory(), &mut writer)?;
            writer.frame(Kind::State, &[&text(serde_json::to_vec(&state))?])?;
            let bytes = writer.bytes() + super::format::END_BYTES;
            writer.finish()?.flush()?;
            Ok((bytes, sent.pages))
        };
        write().map_err(failed)
    }
}

impl Live<'_> {
    /// Saves the machine to a file. With `end` it does not run again; else it goes on.
    pub(crate) fn save(self, path: &Path, end: bool) -> Result<Saved, SnapshotError> {
        let failed = |error: io::Error| SnapshotError::Write {
            path: path.to_owned(),
            error,
        };
        let mut file = NewFile::create(path).map_err(failed)?;
        let stopped = Instant::now();
        let still = self.halt()?;
        let (bytes, pages) = still.write(path, &mut file)?;
        let saved = |still_ms: Duration| Saved {
            file: path.to_owned(),
            bytes,
            pages,
            still_ms: still_ms.as_millis() as u64,
        };
        if end {
            // Only what is safe on the disk may end.
            file.complete().map_err(failed)?;
            still.end(Ending::Saved);
            return Ok(saved(stopped.elapsed()));
        }
        drop(still);
        let took = stopped.elapsed();
        file.complete().map_err(failed)?;
        Ok(saved(took))
    }
}

/// Where a machine comes from that is not started anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// Another process, which connects to this socket.
    Socket(PathBuf),
}

/// A saved machine that waits for one to be put into. A file has been checked to its end.
pub(crate) struct Waiting {
    name: String,
    from: From,
}

enum From {
    File(File),
    Socket(Incoming),
}

impl Waiting {
    /// Opens the file and checks it, or waits until another process connects.
    pub(crate) fn open(origin: &Origin) -> Result<Self, SnapshotError> {
        match origin {
            Origin::File(path) => {
                let name = format!("--restore {}", path.display());
                let from = check(path).map_err(|error| SnapshotError::Read {
                    from: name.clone(),
                    error,
                })?;
                Ok(Self {
                    name,
                    from: From::File(from),
                })
            }
            Origin::Socket(path) => Ok(Self {
                name: format!("--incoming {}", path.display()),
                from: From::Socket(Incoming::accept(path)?),
            }),
        }
    }

    /// Puts the saved machine into one that has not run. When this returns, it is this process'
    /// machine alone, and may run once its board is thawed.
    pub(crate) fn restore(
        self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        memory: &Memory,
        board: &Board,
        configuration: &Configuration,
    ) -> Result<Restored, SnapshotError> {
        board.freeze();
        let target = Target {
            vm,
            vcpus,
            memory,
            board,
            configuration,
        };
        match self.from {
            From::File(mut file) => {
                let read = |error: FormatError| SnapshotError::Read {
                    from: self.name.clone(),
                    error,
                };
                file.rewind().map_err(|error| read(error.into()))?;
                let mut reader =
                    Reader::new(BufReader::with_capacity(BUFFER, file)).map_err(read)?;
                target.take(&self.name, &mut reader, |_| Ok(()))?;
                Ok(Restored(None))
            }
            From::Socket(incoming) => match incoming.receive(&self.name, &target) {
                Ok(()) => Ok(Restored(Some(incoming))),
                Err(error) => {
                    incoming.refuse(&error);
                    Err(error)
                }
            },
        }
    }
}

/// A machine that was put in, and whoever waits to hear that it runs.
pub(crate) struct Restored(Option<Incoming>);

impl Restored {
    /// It runs.
    pub(crate) fn running(self) {
        if let Some(source) = self.0 {
            source.running();
        }
    }
}

/// Reads a file to its end before anything is done with it.
fn check(path: &Path) -> Result<File, FormatError> {
    // Opening a pipe would wait for somebody who writes it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(FormatError::Foreign);
    }
    let mut file = File::open(path)?;
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, &mut file))?;
    let (mut configurations, mut states) = (0, 0);
    while let Some((kind, _)) = reader.next_frame()? {
        configurations += u32::from(kind == Kind::Configuration);
        states += u32::from(kind == Kind::State);
    }
    let mut more = [0];
    if reader.get_mut().read(&mut more)? != 0 {
        return Err(corrupt("something follows its end"));
    }
    if (configurations, states) != (1, 1) {
        return Err(corrupt("it has not one configuration and one state"));
    }
    Ok(file)
}

/// A machine that has not run, for a saved one.
pub(crate) struct Target<'a> {
    vm: &'a VmFd,
    vcpus: &'a [VcpuFd],
    memory: &'a Memory,
    board: &'a Board,
    configuration: &'a Configuration,
}

impl Target<'_> {
    /// Takes a machine out of a stream. `fits` is called when the configuration was found to fit.
    pub(crate) fn take<R: Read>(
        &self,
        name: &str,
        reader: &mut Reader<R>,
        fits: impl FnOnce(&mut R) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let read = |error: FormatError| SnapshotError::Read {
            from: name.to_owned(),
            error,
        };
        let text = |what: &'static str| {
            move |error: serde_json::Error| corrupt(format!("{what}: {error}"))
        };
        match reader.next_frame().map_err(read)? {
            Some((Kind::Configuration, contents)) => {
                let saved: Configuration = serde_json::from_slice(contents)
                    .map_err(text("its configuration"))
                    .map_err(read)?;
                if let Some(why) = self.configuration.refuses(&saved) {
                    return Err(SnapshotError::Configuration(format!("{name}: {why}")));
                }
            }
            _ => return Err(read(corrupt("it does not begin with a configuration"))),
        }
        fits(reader.get_mut())?;
        ram::clear(self.memory).map_err(read)?;
        let mut state: Option<MachineState> = None;
        while let Some((kind, contents)) = reader.next_frame().map_err(read)? {
            match kind {
                Kind::Ram | Kind::Zeroes if state.is_none() => {
                    ram::load(self.memory, kind, contents).map_err(read)?;
                }
                Kind::State if state.is_none() => {
                    let parsed = serde_json::from_slice(contents).map_err(text("its state"));
                    state = Some(parsed.map_err(read)?);
                }
                _ => return Err(read(corrupt("its parts are in no order"))),
            }
        }
        let state = state.ok_or_else(|| read(corrupt("it has no state")))?;
        state.restore(self.vm, self.vcpus, self.board)
    }
}
