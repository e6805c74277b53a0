//! virtio-console, virtio 1.2 section 5.3: one port.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::chain::Chain;
use super::lane::{Handler, Lane, Source};
use super::{Identity, Model, QueueModel, lock};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 64;
/// What is copied at once: guest data of any length takes so much memory here.
const CHUNK: u64 = 4096;

/// Where the console goes, and where its input comes from.
#[derive(Clone, Debug)]
pub enum ConsoleConfig {
    /// To standard output; there is no input.
    Stdout,
    /// To a file, which is created or emptied; there is no input.
    File(PathBuf),
    /// To and from a new pseudo terminal, whose name is printed on standard error. What is written
    /// while nobody reads it is lost.
    Pty,
    /// To memory, and from a descriptor that can be read without waiting.
    Buffer {
        /// What the guest wrote.
        output: Arc<Mutex<Vec<u8>>>,
        /// What it reads.
        input: Arc<OwnedFd>,
    },
}

impl ConsoleConfig {
    /// Opens both ends.
    fn open(&self) -> io::Result<(Box<dyn Write + Send>, Input)> {
        match self {
            Self::Stdout => Ok((Box::new(io::stdout()), Input::default())),
            Self::File(path) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(path);
                let file = file.map_err(|error| {
                    let text = format!("--console file={}: {error}", path.display());
                    io::Error::new(error.kind(), text)
                })?;
                Ok((Box::new(file), Input::default()))
            }
            Self::Pty => {
                let (terminal, other, name) = pty().map_err(|error| {
                    io::Error::other(format!(
                        "--console pty: can't open a pseudo terminal: {error}"
                    ))
                })?;
                eprintln!("virtio-console: {name}");
                let input = Input {
                    _other: Some(other),
                    ..Input::new(terminal.try_clone()?)
                };
                Ok((Box::new(terminal), input))
            }
            Self::Buffer { output, input } => {
                let output = Shared(Arc::clone(output));
                Ok((Box::new(output), Input::new(input.try_clone()?.into())))
            }
        }
    }
}

/// Opens a pseudo terminal whose reads and writes never wait: this side, the other, and its name.
fn pty() -> io::Result<(File, OwnedFd, String)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let terminal = posix_openpt(flags)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let name = ptsname_r(&terminal)?;
    let other = open(name.as_str(), flags, Mode::empty())?;
    // No echo: it would come back as input.
    let mut raw = tcgetattr(&other)?;
    cfmakeraw(&mut raw);
    tcsetattr(&other, SetArg::TCSANOW, &raw)?;
    Ok((File::from(OwnedFd::from(terminal)), other, name))
}

/// Output to memory.
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// receiveq: what the guest reads.
#[derive(Default)]
struct Input {
    file: Option<File>,
    /// The other side of a terminal: while nobody has it open the terminal hangs up, which would
    /// wake the thread all the time.
    _other: Option<OwnedFd>,
    ended: bool,
    buffer: Vec<u8>,
}

impl Input {
    fn new(file: File) -> Self {
        Self {
            file: Some(file),
            ..Self::default()
        }
    }
}

impl Handler for Input {
    fn source(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn turn(&mut self, lane: &Lane) -> bool {
        // What has ended would wake the thread all the time.
        lane.fill(self) && !self.ended
    }

    fn held(&self) -> Vec<u8> {
        self.buffer.clone()
    }

    fn hold(&mut self, held: &[u8]) -> bool {
        self.buffer = held.to_vec();
        held.len() as u64 <= CHUNK
    }
}

impl Source for Input {
    const WHOLE: bool = false;

    fn piece(&mut self) -> Option<&[u8]> {
        if self.buffer.is_empty()
            && !self.ended
            && let Some(file) = &mut self.file
        {
            let mut chunk = [0; CHUNK as usize];
            match file.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => self.ended = true,
            }
        }
        (!self.buffer.is_empty()).then_some(&self.buffer)
    }

    fn take(&mut self, count: usize) {
        self.buffer.drain(..count);
    }
}

/// transmitq: what the guest writes.
struct Output {
    to: Box<dyn Write + Send>,
}

impl Handler for Output {
    fn turn(&mut self, lane: &Lane) -> bool {
        let to = &mut self.to;
        lane.serve(|session, mut chain: Chain| {
            while !chain.readable.is_empty() {
                session.go_on()?;
                let buffers = chain.readable.take(CHUNK);
                let mut chunk = vec![0; buffers.len() as usize];
                let read = session.memory(|memory| buffers.read(memory, &mut chunk));
                if read.is_err() {
                    break;
                }
                // A console without a reader loses what is written to it.
                let _ = to.write_all(&chunk);
            }
            let _ = to.flush();
            Ok(0)
        });
        false
    }
}

/// Opens the console.
pub(super) fn model(config: &ConsoleConfig) -> io::Result<Model> {
    let (to, input) = config.open()?;
    if let Some(file) = &input.file {
        let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    let queue = |handler| QueueModel {
        max_size: QUEUE_SIZE,
        handler,
    };
    Ok(Model {
        identity: Identity {
            name: "virtio-con",
            virtio_id: 3,
            class: [0x07, 0x80, 0x00],
        },
        features: 0,
        // Size of the terminal, number of ports, emergency write: behind features not offered.
        registers: Box::new(Vec::new()),
        queues: vec![queue(Box::new(input)), queue(Box::new(Output { to }))],
        backend: None,
    })
}
