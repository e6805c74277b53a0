//! The kernel's log, from `/dev/kmsg`.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Severity, from 0 (emergency) to 7 (debug).
    pub level: u8,
    /// 0 for the kernel; else who wrote it, as in syslog.
    pub facility: u32,
    /// Position in the log; a number that is missing is a record that was overwritten.
    pub sequence: u64,
    /// Microseconds since the kernel started its clock.
    pub micros: u64,
    /// The text, without its time stamp.
    pub text: String,
}

impl Record {
    /// Takes a record as one read of `/dev/kmsg` gives it:
    /// `<prefix>,<sequence>,<micros>,<flags>[,…];<text>` and lines of properties.
    pub fn parse(raw: &str) -> Option<Self> {
        let (head, text) = raw.split_once(';')?;
        let mut fields = head.split(',');
        let prefix: u32 = fields.next()?.parse().ok()?;
        Some(Self {
            level: (prefix & 7) as u8,
            facility: prefix >> 3,
            sequence: fields.next()?.parse().ok()?,
            micros: fields.next()?.parse().ok()?,
            text: plain(text.lines().next().unwrap_or_default()),
        })
    }
}

/// The text that the kernel has escaped: what is not printable, and a backslash, as `\x5c`.
fn plain(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.strip_prefix(b"x").and_then(|hex| hex.get(..2));
        let code = code.filter(|_| byte == b'\\');
        let code = code.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All that is in the log.
///
/// # Errors
/// `/dev/kmsg` can't be opened or read.
pub fn read() -> io::Result<Vec<Record>> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut records = Vec::new();
    let mut raw = [0; 8192];
    loop {
        let length = match kmsg.read(&mut raw) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(records),
            // The record was overwritten before it was read: the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => return Err(error),
        };
        records.extend(Record::parse(&String::from_utf8_lossy(&raw[..length])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_its_prefix_and_the_first_line() {
        let raw = "6,339,5140900,-,caller=T1;NET: Registered PF_INET\n SUBSYSTEM=net\n";
        let expected = Record {
            level: 6,
            facility: 0,
            sequence: 339,
            micros: 5_140_900,
            text: "NET: Registered PF_INET".into(),
        };
        assert_eq!(Record::parse(raw), Some(expected));
        let user = Record::parse("12,1,0,-;a; b").unwrap();
        assert_eq!(
            (user.level, user.facility, user.text.as_str()),
            (4, 1, "a; b")
        );
        let escaped = Record::parse(r"6,1,0,-;\x09a \x5c_SB_ \xc3\xbc \x \y").unwrap();
        assert_eq!(escaped.text, "\ta \\_SB_ ü \\x \\y");
        assert_eq!(Record::parse("6,x,0,-;a"), None);
        assert_eq!(Record::parse("nothing"), None);
    }
}
