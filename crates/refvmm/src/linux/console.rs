//! The serial port's other end: this process' standard input and output.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::terminal::Terminal as _;

use crate::board::legacy::{Console, SerialPort};

/// Bytes that wait to be printed. A guest that prints faster than somebody reads has to wait.
const BACKLOG: usize = 1 << 16;
/// Ctrl-A, which begins a command to the VMM.
const ESCAPE: u8 = 0x01;
/// How long a guest that does not read its port is given, and how often it is looked at.
const PATIENCE: u32 = 100;
const RETRY: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The last byte that was queued ended a line.
    at_line_end: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn put(&self, bytes: &[u8]) {
        let waited = self
            .changed
            .wait_while(lock(&self.queue), |queue| queue.bytes.len() >= BACKLOG);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        queue.bytes.extend_from_slice(bytes);
        if let Some(last) = bytes.last() {
            queue.at_line_end = *last == b'\n';
        }
        self.changed.notify_all();
    }

    /// Writes until there is nothing more to come. A thread of its own, since a guest sends byte by
    /// byte, and a system call for each would cost more than the exit.
    fn write_out(&self, mut out: impl Write) {
        loop {
            let waited = self.changed.wait_while(lock(&self.queue), |queue| {
                queue.bytes.is_empty() && !queue.closed
            });
            let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
            let bytes = mem::take(&mut queue.bytes);
            drop(queue);
            self.changed.notify_all();
            if bytes.is_empty() {
                return;
            }
            // Nobody who could be told reads it.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        }
    }
}

/// Where the guest's output goes, and its input comes from, while it is alive.
pub(super) struct Terminal {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    port: Arc<Mutex<Option<Arc<SerialPort>>>>,
    raw: bool,
}

impl Terminal {
    /// Takes standard input and output. `quit` is called when the user wants the VMM to end.
    ///
    /// # Errors
    /// A thread can't be started.
    pub(super) fn open(quit: impl Fn() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("console-out".into())
            .spawn(move || theirs.write_out(io::stdout()))?;
        let port: Arc<Mutex<Option<Arc<SerialPort>>>> = Arc::default();
        let raw = io::stdin().is_terminal() && io::stdin().lock().set_raw_mode().is_ok();
        let target = Arc::clone(&port);
        // Of its own, since who reads standard input has it locked.
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It ends with the input, or with the process: a read can't be called off.
        std::thread::Builder::new()
            .name("console-in".into())
            .spawn(move || read_in(input, &target, raw, quit))?;
        Ok(Self {
            shared,
            writer: Some(writer),
            port,
            raw,
        })
    }

    /// What takes the guest's output.
    pub(super) fn sink(&self) -> Console {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |bytes| shared.put(bytes))
    }

    /// Connects input to a machine's port, or to nobody.
    pub(super) fn connect(&self, port: Option<Arc<SerialPort>>) {
        *lock(&self.port) = port;
    }

    /// Prints what is left, and gives standard input and output back. What the process prints next
    /// starts on a line of its own.
    pub(super) fn close(&mut self) {
        self.connect(None);
        let Some(writer) = self.writer.take() else {
            return;
        };
        {
            let mut queue = lock(&self.shared.queue);
            if !queue.at_line_end {
                queue.bytes.push(b'\n');
            }
            queue.closed = true;
        }
        self.shared.changed.notify_all();
        let _ = writer.join();
        if self.raw {
            let _ = io::stdin().lock().set_canon_mode();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a byte of input means on a terminal that passes every key to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Quit,
    Nothing,
}

/// Ctrl-A x ends the VMM, Ctrl-A Ctrl-A is Ctrl-A.
fn key(byte: u8, escaped: &mut bool) -> Key {
    if mem::take(escaped) {
        return match byte {
            b'x' | b'X' => Key::Quit,
            ESCAPE => Key::Guest(ESCAPE),
            _ => Key::Nothing,
        };
    }
    if byte == ESCAPE {
        *escaped = true;
        return Key::Nothing;
    }
    Key::Guest(byte)
}

fn read_in(mut input: File, port: &Mutex<Option<Arc<SerialPort>>>, raw: bool, quit: impl Fn()) {
    let mut chunk = [0; 64];
    let mut escaped = false;
    while let Ok(length @ 1..) = input.read(&mut chunk) {
        let mut bytes = Vec::with_capacity(length);
        for byte in &chunk[..length] {
            let key = if raw {
                key(*byte, &mut escaped)
            } else {
                Key::Guest(*byte)
            };
            match key {
                Key::Guest(byte) => bytes.push(byte),
                Key::Quit => return quit(),
                Key::Nothing => {}
            }
        }
        send(port, &bytes);
    }
}

/// A machine that does not read, or is just being reset, loses input in the end.
fn send(port: &Mutex<Option<Arc<SerialPort>>>, mut bytes: &[u8]) {
    for _ in 0..PATIENCE {
        let current = lock(port).clone();
        let taken = current.map_or(0, |port| port.receive(bytes));
        bytes = &bytes[taken..];
        if bytes.is_empty() {
            return;
        }
        std::thread::sleep(RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ctrl_a_x_is_kept_from_the_guest() {
        let mut escaped = false;
        let keys: Vec<_> = b"a\x01\x01\x01zb\x03\x01x"
            .iter()
            .map(|byte| key(*byte, &mut escaped))
            .filter(|key| *key != Key::Nothing)
            .collect();
        let guest = |byte| Key::Guest(byte);
        assert_eq!(
            keys,
            [guest(b'a'), guest(1), guest(b'b'), guest(3), Key::Quit]
        );
    }

    #[test]
    fn everything_that_was_put_is_written_before_the_writer_ends() {
        let shared = Shared::default();
        for byte in b"one\ntwo" {
            shared.put(&[*byte]);
        }
        assert!(!lock(&shared.queue).at_line_end);
        lock(&shared.queue).closed = true;
        let mut out = Vec::new();
        shared.write_out(&mut out);
        assert_eq!(out, b"one\ntwo");
    }
}
