//! What a person or a program wants of a machine that runs: commands on a socket, or at a time.

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Live;
use crate::kvm::Ending;

/// The longest command.
const LINE: u64 = 4096;
/// How long a client waits at most: for a machine that stands still, or moves.
const ANSWER: Duration = Duration::from_secs(3600);

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Saves the machine, which goes on.
    Save(PathBuf),
    /// Saves the machine and ends.
    Suspend(PathBuf),
    /// Moves the machine to the process that listens on this socket, and ends.
    Migrate(PathBuf),
    /// Says that the machine runs.
    Status,
    /// Ends.
    Quit,
}

/// The commands and what they do, for `--help`.
pub const ORDERS: &[(&str, &str)] = &[
    (
        "save FILE",
        "saves the machine to FILE; it stands still meanwhile and then goes on",
    ),
    ("suspend FILE", "saves the machine to FILE and ends"),
    (
        "migrate SOCKET",
        "moves the machine, while it runs, to an amdvi-refvmm with --incoming SOCKET, and ends",
    ),
    ("status", "says how long the machine has run"),
    ("quit", "ends, as pulling the plug does"),
];

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let path = || match rest.trim() {
            "" => Err(format!("`{word}` needs a path behind it")),
            path => Ok(PathBuf::from(path)),
        };
        match (word, rest.trim()) {
            ("save", _) => Ok(Self::Save(path()?)),
            ("suspend", _) => Ok(Self::Suspend(path()?)),
            ("migrate", _) => Ok(Self::Migrate(path()?)),
            ("status", "") => Ok(Self::Status),
            ("quit", "") => Ok(Self::Quit),
            _ => {
                let known: Vec<_> = ORDERS.iter().map(|(order, _)| *order).collect();
                Err(format!(
                    "`{text}` is no command; known: {}",
                    known.join(", ")
                ))
            }
        }
    }
}

/// A command and when it is due, as `--at` has it: `MILLISECONDS:COMMAND`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// From the start of the VMM's machine.
    pub after: Duration,
    /// What is to be done.
    pub order: Order,
}

impl FromStr for Timed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (millis, order) = text
            .split_once(':')
            .ok_or("accepted: milliseconds, a colon and a command, such as 5000:save vm.state")?;
        let millis = millis
            .parse()
            .map_err(|_| format!("`{millis}` is no number of milliseconds"))?;
        Ok(Self {
            after: Duration::from_millis(millis),
            order: order.parse()?,
        })
    }
}

/// A command that is due when the guest has printed something, as `--after` has it:
/// `TEXT:MILLISECONDS:COMMAND`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// What the guest prints on its serial console.
    pub text: String,
    /// From then on.
    pub delay: Duration,
    /// What is to be done.
    pub order: Order,
}

impl FromStr for Marked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text may have colons itself; neither milliseconds nor the name of a command have.
        let parts = text.match_indices(':').find_map(|(at, _)| {
            let timed = text[at + 1..].split_once(':')?.0;
            let is_number = !timed.is_empty() && timed.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.split_at(at))
        });
        let (mark, timed) = parts.filter(|(mark, _)| !mark.is_empty()).ok_or(
            "accepted: a text, a colon, milliseconds, a colon and a command, such as \
             'login:500:save vm.state'",
        )?;
        let Timed { after, order } = timed[1..].parse()?;
        Ok(Self {
            text: mark.to_owned(),
            delay: after,
            order,
        })
    }
}

/// Listens to what a guest prints, for texts that commands wait for.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The last bytes, as many as the longest text has.
    tail: VecDeque<u8>,
    texts: Vec<(Vec<u8>, Option<Instant>)>,
}

impl Listener {
    fn new(marked: &[Marked]) -> Self {
        let texts = marked.iter().map(|marked| marked.text.clone().into_bytes());
        Self {
            heard: Mutex::new(Heard {
                tail: VecDeque::new(),
                texts: texts.map(|text| (text, None)).collect(),
            }),
        }
    }

    /// The guest prints this.
    pub(crate) fn hear(&self, bytes: &[u8]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let Heard { tail, texts } = &mut *heard;
        let waiting = |(_, seen): &&(Vec<u8>, Option<Instant>)| seen.is_none();
        let Some(longest) = texts
            .iter()
            .filter(waiting)
            .map(|(text, _)| text.len())
            .max()
        else {
            return;
        };
        for byte in bytes {
            tail.push_back(*byte);
            while tail.len() > longest {
                tail.pop_front();
            }
            for (text, seen) in texts.iter_mut().filter(|(_, seen)| seen.is_none()) {
                if tail.iter().rev().take(text.len()).eq(text.iter().rev()) {
                    *seen = Some(Instant::now());
                }
            }
        }
    }

    /// When each text came first.
    fn seen(&self, index: usize) -> Option<Instant> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.texts.get(index).and_then(|(_, seen)| *seen)
    }
}

/// A command that came over the socket, and where its answer goes.
type Asked = (Order, Sender<Value>);

/// Where commands come from.
#[derive(Default)]
pub struct Orders {
    timed: VecDeque<Timed>,
    /// None: it has been carried out.
    marked: Vec<Option<Marked>>,
    listener: Arc<Listener>,
    control: Option<Control>,
    /// What became of those that were due at some time, for the report.
    pub done: Vec<Value>,
}

struct Control {
    path: PathBuf,
    asked: Receiver<Asked>,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Orders {
    /// Listens on a socket, and knows what is due when, or after what.
    ///
    /// # Errors
    /// The socket can't be made; the error says what to do.
    pub fn new(
        mut timed: Vec<Timed>,
        marked: Vec<Marked>,
        control: Option<&Path>,
    ) -> Result<Self, String> {
        timed.sort_by_key(|timed| timed.after);
        let control = control
            .map(|path| {
                Control::listen(path)
                    .map_err(|error| format!("--control {}: {error}", path.display()))
            })
            .transpose()?;
        Ok(Self {
            timed: timed.into(),
            listener: Arc::new(Listener::new(&marked)),
            marked: marked.into_iter().map(Some).collect(),
            control,
            done: Vec::new(),
        })
    }

    /// Whether there can be any.
    pub fn are_expected(&self) -> bool {
        self.control.is_some() || !self.timed.is_empty() || !self.marked.is_empty()
    }

    /// Who must be told what the guest prints, if anything waits for that.
    pub(crate) fn listener(&self) -> Option<Arc<Listener>> {
        (!self.marked.is_empty()).then(|| Arc::clone(&self.listener))
    }

    /// The next command that is due at its time or after its text.
    fn due(&mut self, ran: Duration) -> Option<Order> {
        if self.timed.front().is_some_and(|timed| timed.after <= ran) {
            return self.timed.pop_front().map(|timed| timed.order);
        }
        let listener = Arc::clone(&self.listener);
        let mut marked = self.marked.iter_mut().enumerate();
        let is_due = |index: usize, marked: &Marked| {
            let seen = listener.seen(index);
            seen.is_some_and(|seen| seen.elapsed() >= marked.delay)
        };
        let (_, marked) = marked.find(|(index, marked)| {
            let marked = marked.as_ref();
            marked.is_some_and(|marked| is_due(*index, marked))
        })?;
        marked.take().map(|marked| marked.order)
    }

    /// Does what is due, `ran` from the start.
    pub(crate) fn obey(&mut self, live: Live<'_>, ran: Duration) {
        while !live.end.is_reached() {
            if let Some(order) = self.due(ran) {
                let answer = carry_out(&order, live, ran);
                eprintln!("{answer}");
                self.done.push(answer);
            } else if let Some((order, answer)) = self
                .control
                .as_ref()
                .and_then(|control| control.asked.try_recv().ok())
            {
                // Who has gone does not want to know.
                let _ = answer.send(carry_out(&order, live, ran));
            } else {
                return;
            }
        }
    }
}

fn carry_out(order: &Order, live: Live<'_>, ran: Duration) -> Value {
    let answer = |name: &str, result: Result<Value, String>| match result {
        Ok(value) => json!({ "ok": true, name: value }),
        Err(error) => json!({ "ok": false, "error": error }),
    };
    let value = |value: Result<Value, serde_json::Error>| value.map_err(|error| error.to_string());
    match order {
        Order::Save(path) | Order::Suspend(path) => {
            let end = matches!(order, Order::Suspend(_));
            let saved = live.save(path, end).map_err(|error| error.to_string());
            answer(
                "saved",
                saved.and_then(|saved| value(serde_json::to_value(saved))),
            )
        }
        Order::Migrate(socket) => {
            let moved = live.migrate(socket).map_err(|error| error.to_string());
            answer(
                "migrated",
                moved.and_then(|moved| value(serde_json::to_value(moved))),
            )
        }
        Order::Status => answer(
            "status",
            Ok(json!({ "running": true, "ms": ran.as_millis() as u64 })),
        ),
        Order::Quit => {
            live.end.reach(Ending::Quit);
            answer("quit", Ok(true.into()))
        }
    }
}

impl Control {
    fn listen(path: &Path) -> io::Result<Self> {
        let listener = bind(path)?;
        let (to, asked) = mpsc::channel();
        // It ends with the process.
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let to = to.clone();
                    let serve = move || drop(serve(stream, &to));
                    let _ = std::thread::Builder::new()
                        .name("control".into())
                        .spawn(serve);
                }
            })?;
        Ok(Self {
            path: path.to_owned(),
            asked,
        })
    }
}

/// A socket that only this user can connect to. What an earlier process left there goes.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket; give another path",
            ));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there; give another path, or end it",
            ));
        }
        fs::remove_file(path)?;
    }
    // Under another name at first: who sees the socket can connect, and only this user can.
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let listener = UnixListener::bind(&new)?;
    let named = fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&new, path));
    if let Err(error) = named {
        // It is nobody's.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    Ok(listener)
}

/// Answers each line of a client with one.
fn serve(stream: UnixStream, to: &Sender<Asked>) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if (&mut lines).take(LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match line.parse() {
            _ if !line.ends_with('\n') && line.len() as u64 == LINE => {
                json!({ "ok": false, "error": "a command of more than 4096 bytes" })
            }
            Ok(order) => ask(order, to),
            Err(error) => json!({ "ok": false, "error": error }),
        };
        writeln!(stream, "{answer}")?;
    }
}

fn ask(order: Order, to: &Sender<Asked>) -> Value {
    let (answer, answered) = mpsc::channel();
    let gone = || json!({ "ok": false, "error": "the machine has ended" });
    if to.send((order, answer)).is_err() {
        return gone();
    }
    answered.recv_timeout(ANSWER).unwrap_or_else(|_| gone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_others_say_what_is_known() {
        assert_eq!("save /a b".parse(), Ok(Order::Save("/a b".into())));
        assert_eq!(" suspend x \n".parse(), Ok(Order::Suspend("x".into())));
        assert_eq!("migrate s".parse(), Ok(Order::Migrate("s".into())));
        assert_eq!("status".parse(), Ok(Order::Status));
        for (text, part) in [
            ("save", "needs a path"),
            ("quit now", "known: save FILE"),
            ("", "known: save FILE"),
        ] {
            let error = text.parse::<Order>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(
            "250:save x".parse(),
            Ok(Timed {
                after: Duration::from_millis(250),
                order: Order::Save("x".into())
            })
        );
        for text in ["save x", "x:save y", "-1:quit", "5:"] {
            assert!(text.parse::<Timed>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_command_after_a_text_is_due_when_the_guest_has_printed_all_of_it() {
        let marked = |text: &str| text.parse::<Marked>();
        assert_eq!(
            marked("a: b:250:save x:7:y"),
            Ok(Marked {
                text: "a: b".into(),
                delay: Duration::from_millis(250),
                order: Order::Save("x:7:y".into())
            })
        );
        for text in [
            "login",
            ":5:quit",
            "login:5",
            "login:x:quit",
            "login:5:dance",
        ] {
            assert!(marked(text).is_err(), "{text}");
        }
        let wanted = vec![
            marked("aab:0:status").unwrap(),
            marked("…:0:quit").unwrap(),
            marked("late:60000:quit").unwrap(),
        ];
        let mut orders = Orders::new(Vec::new(), wanted, None).unwrap();
        assert!(orders.are_expected());
        let listener = orders.listener().unwrap();
        let mut due = || orders.due(Duration::ZERO);
        for part in ["a late", " a", "a", "c"] {
            listener.hear(part.as_bytes());
            assert_eq!(due(), None, "{part}");
        }
        listener.hear(b"xaaab");
        assert_eq!(due(), Some(Order::Status));
        assert_eq!(due(), None);
        "aab …".bytes().for_each(|byte| listener.hear(&[byte]));
        assert_eq!(due(), Some(Order::Quit));
        assert_eq!(due(), None);
    }

    #[test]
    fn a_socket_is_not_taken_from_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let first = bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(first);
        bind(&path).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(bind(&file).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
    }
}
