//! Moving a machine to another process of the same host while it runs.
//!
//! The source sends RAM, then again and again what was written meanwhile, until little is left;
//! halts the machine, sends the rest and the state, and hands over:
//!
//! ```text
//! source                          destination
//! configuration           ──────▶ compares it
//!                         ◀────── ok
//! RAM, rounds of it       ──────▶ fills its RAM
//! (halts the machine)
//! last RAM, state, end    ──────▶ puts the state in
//!                         ◀────── ok: it could run
//! go                      ──────▶ runs
//! (ends)                  ◀────── ok: it runs
//! ```
//!
//! The machine is the source's until `go` is sent: up to there every failure lets it go on where it
//! is, and the destination, which has no `go`, never runs. Once `go` is on its way the source does
//! not run it again, whatever becomes of the destination. So it never runs twice.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::format::{FormatError, Kind, Reader, Writer};
use super::machine::Live;
use super::orders::bind;
use super::ram::{self, DirtyLog};
use super::store::Target;
use crate::kvm::Ending;

/// The longest answer.
const LINE: u64 = 4096;
/// How long the other process may be silent when it is its turn. The guest stands still for a part of
/// it at most once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rounds of RAM at most.
const ROUNDS: u32 = 30;
/// The machine is halted when the rest is expected to take no longer.
const DOWNTIME: Duration = Duration::from_millis(30);
/// Rounds that left no less than the one before: the guest writes faster than it is sent.
const FRUITLESS: u32 = 3;
/// Bytes between stream and socket.
const BUFFER: usize = 1 << 20;
/// The word that hands the machine over.
const GO: &str = "go\n";

/// What a move took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// The socket.
    pub to: String,
    /// Rounds in which RAM was sent while the guest ran.
    pub rounds: u32,
    /// Pages sent with the machine halted.
    pub last_pages: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// From the first byte to the last word, in milliseconds.
    pub total_ms: u64,
    /// From the halt here to the run there, in microseconds. None: the other process did not say.
    pub downtime_us: Option<u64>,
}

/// What the destination says.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn say(mut to: &UnixStream, answer: &Answer) -> io::Result<()> {
    // One write, which a socket takes as a whole or not.
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The source's side of the connection.
struct Peer {
    name: String,
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Peer {
    fn connect(socket: &Path) -> Result<Self, SnapshotError> {
        let name = format!("migrate {}", socket.display());
        let connected = UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let answers = BufReader::new(stream.try_clone()?);
            Ok((stream, answers))
        });
        let (stream, answers) = connected.map_err(|error| {
            SnapshotError::Peer(format!(
                "{name}: {error}; start an amdvi-refvmm with the same options and --incoming {} \
                 first",
                socket.display()
            ))
        })?;
        Ok(Self {
            name,
            stream,
            answers,
        })
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> SnapshotError {
        SnapshotError::Peer(format!("{}: {error}; the machine goes on here", self.name))
    }

    /// Waits for the other process to agree.
    fn agree(&mut self) -> Result<(), SnapshotError> {
        let mut line = String::new();
        let read = (&mut self.answers).take(LINE).read_line(&mut line);
        match read {
            Err(error) => Err(self.failed(&format_args!("no answer ({error})"))),
            Ok(0) => Err(self.failed(&"the other process has gone")),
            Ok(_) => match serde_json::from_str::<Answer>(&line) {
                Ok(Answer { ok: true, .. }) => Ok(()),
                Ok(Answer { error, .. }) => {
                    Err(self.failed(&error.unwrap_or_else(|| "it was refused".into())))
                }
                Err(_) => Err(self.failed(&"the other process is no amdvi-refvmm")),
            },
        }
    }
}

impl Live<'_> {
    /// Moves the machine to the process that listens on `socket`. After success the run ends.
    pub(crate) fn migrate(self, socket: &Path) -> Result<Migration, SnapshotError> {
        let began = Instant::now();
        let mut peer = Peer::connect(socket)?;
        let out = peer.stream.try_clone();
        let out = out.map_err(|error| peer.failed(&error))?;
        let to = BufWriter::with_capacity(BUFFER, out);
        let mut writer = Writer::new(to).map_err(|error| peer.failed(&error))?;
        let configuration =
            serde_json::to_vec(self.configuration).map_err(|error| peer.failed(&error))?;
        self.send(&peer, &mut writer, |writer| {
            writer.frame(Kind::Configuration, &[&configuration])
        })?;
        peer.agree()?;

        // With the machine halted, since what is written while logs begin would be in none.
        let halted = self.halt()?;
        let log = DirtyLog::start(self.vm, self.memory)?;
        drop(halted);
        let mut round = Instant::now();
        let mut sent = self.send(&peer, &mut writer, |writer| {
            ram::write_all(self.memory, writer)
        })?;
        let (mut rounds, mut fruitless, mut before) = (1, 0, u64::MAX);
        let rest = loop {
            let dirty = log.take()?;
            let pages = dirty.pages();
            // At least one: a division by it follows.
            let speed = (sent.pages + sent.zeroes).max(1);
            let expected = round.elapsed().mul_f64(pages as f64 / speed as f64);
            fruitless = if pages >= before { fruitless + 1 } else { 0 };
            before = pages;
            if expected <= DOWNTIME || rounds == ROUNDS || fruitless == FRUITLESS {
                break dirty;
            }
            round = Instant::now();
            sent = self.send(&peer, &mut writer, |writer| {
                ram::write_dirty(self.memory, &dirty, writer)
            })?;
            rounds += 1;
        };

        let stopped = Instant::now();
        let still = self.halt()?;
        let mut last = log.take()?;
        last.add(&rest);
        let state = serde_json::to_vec(&still.state()?).map_err(|error| peer.failed(&error))?;
        let sent = self.send(&peer, &mut writer, |writer| {
            let sent = ram::write_dirty(self.memory, &last, writer)?;
            writer.frame(Kind::State, &[&state])?;
            Ok(sent)
        })?;
        let bytes = writer.bytes() + super::format::END_BYTES;
        writer.finish().map_err(|error| peer.failed(&error))?;
        peer.agree()?;
        // So few bytes are sent as a whole or not at all: if this fails, it was not told to run.
        (&peer.stream)
            .write_all(GO.as_bytes())
            .map_err(|error| peer.failed(&error))?;
        drop(log);
        still.end(Ending::Moved);
        let runs = peer.agree().is_ok();
        Ok(Migration {
            to: socket.display().to_string(),
            rounds,
            last_pages: sent.pages + sent.zeroes,
            bytes,
            total_ms: began.elapsed().as_millis() as u64,
            downtime_us: runs.then(|| stopped.elapsed().as_micros() as u64),
        })
    }

    fn send<W: Write, T>(
        &self,
        peer: &Peer,
        writer: &mut Writer<W>,
        write: impl FnOnce(&mut Writer<W>) -> io::Result<T>,
    ) -> Result<T, SnapshotError> {
        let written = write(writer).and_then(|value| {
            writer.get_mut().flush()?;
            Ok(value)
        });
        written.map_err(|error| peer.failed(&error))
    }
}

/// The destination's side of the connection.
pub(crate) struct Incoming {
    stream: UnixStream,
}

impl Incoming {
    /// Waits for a source.
    pub(crate) fn accept(socket: &Path) -> Result<Self, SnapshotError> {
        let failed = |error: io::Error| {
            SnapshotError::Peer(format!("--incoming {}: {error}", socket.display()))
        };
        let listener = bind(socket).map_err(failed)?;
        eprintln!("waiting for a machine on {}", socket.display());
        let (stream, _) = listener.accept().map_err(failed)?;
        // Nobody else is served, and the next machine needs another process.
        let _ = std::fs::remove_file(socket);
        Ok(Self { stream })
    }

    /// Takes a machine, up to the word that hands it over.
    pub(crate) fn receive(&self, name: &str, target: &Target<'_>) -> Result<(), SnapshotError> {
        let gone = |error: &dyn std::fmt::Display| {
            SnapshotError::Peer(format!(
                "{name}: {error}; the machine, if it was not saved, is still the other process'"
            ))
        };
        let read = |error: FormatError| SnapshotError::Read {
            from: name.to_owned(),
            error,
        };
        let from = BufReader::with_capacity(BUFFER, &self.stream);
        let mut reader = Reader::new(from).map_err(read)?;
        let agreed = Answer {
            ok: true,
            error: None,
        };
        target.take(name, &mut reader, |_| {
            say(&self.stream, &agreed).map_err(|error| gone(&error))
        })?;
        say(&self.stream, &agreed).map_err(|error| gone(&error))?;
        let mut word = String::new();
        reader
            .get_mut()
            .take(LINE)
            .read_line(&mut word)
            .map_err(|error| gone(&error))?;
        if word != GO {
            return Err(gone(&"it was not handed over"));
        }
        Ok(())
    }

    /// Tells the source why not.
    pub(crate) fn refuse(&self, error: &SnapshotError) {
        let error = Some(error.to_string());
        // Who has gone needs no answer.
        let _ = say(&self.stream, &Answer { ok: false, error });
    }

    /// Tells the source that the machine runs.
    pub(crate) fn running(&self) {
        // It has ended already if it does not hear it.
        let answer = Answer {
            ok: true,
            error: None,
        };
        let _ = say(&self.stream, &answer);
    }
}
