//! What can go wrong between the VMM and KVM, in words that say what to do.

use std::io;
use std::time::Duration;

use super::payload::PayloadError;

/// Why a machine could not be built or did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No access to KVM.
    #[error("/dev/kvm can't be opened: {source} ({})", advice(source))]
    Open {
        /// The error of `open(2)`.
        source: io::Error,
    },
    /// KVM is too old, or built without something.
    #[error("this kernel's KVM lacks {capability}, which is needed for {purpose}")]
    Capability {
        /// Name of the capability, as the kernel's documentation has it.
        capability: &'static str,
        /// What the machine uses it for.
        purpose: &'static str,
    },
    /// A call of KVM failed.
    #[error("{call} failed: {source}")]
    Call {
        /// Name of the ioctl.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The machine that was asked for can't exist.
    #[error("{0}")]
    Config(String),
    /// The payload's file is not usable.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Guest memory could not be mapped or accessed.
    #[error("guest memory: {0}")]
    Memory(String),
    /// A vCPU stopped in a way that no payload should bring about.
    #[error("CPU {cpu} stopped: {why}; {}", tail(log))]
    Stopped {
        /// Index of the CPU.
        cpu: usize,
        /// The exit and where the CPU was.
        why: String,
        /// What the payload has printed.
        log: String,
    },
    /// The payload ended with an error code.
    #[error("the payload ended with code {code:#x}{}; {}", meaning(*code), tail(log))]
    Exit {
        /// The code, as written to the exit port.
        code: u32,
        /// What the payload has printed.
        log: String,
    },
    /// The machine goes on elsewhere.
    #[error("the machine was {0} before the payload ended")]
    Gone(&'static str),
    /// The payload did not end.
    #[error("the payload did not end within {} s ({cpus}); {}", limit.as_secs_f32(), tail(log))]
    Timeout {
        /// The limit.
        limit: Duration,
        /// Where the CPUs were.
        cpus: String,
        /// What the payload has printed.
        log: String,
    },
    /// The payload ended well but left no report.
    #[error("the payload ended without a report: magic {magic:#x}; {}", tail(log))]
    NoReport {
        /// What stands in place of the magic number.
        magic: u64,
        /// What the payload has printed.
        log: String,
    },
}

impl KvmError {
    /// For `map_err` on a kvm-ioctls call.
    pub(crate) fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Call {
            call,
            source: error.into(),
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "load the kvm_amd or kvm_intel module, or pass the device into the container"
        }
        io::ErrorKind::PermissionDenied => "add yourself to the group that owns it, often `kvm`",
        _ => "is it KVM's device node?",
    }
}

fn meaning(code: u32) -> String {
    match code {
        1 => " (panic)".to_owned(),
        0x100..=0x1ff => format!(" (exception {})", code & 0xff),
        _ => String::new(),
    }
}

/// Lines of the log that an error shows.
const TAIL_LINES: usize = 12;

pub(super) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return "it printed nothing".to_owned();
    }
    let first = lines.len().saturating_sub(TAIL_LINES);
    format!("its last lines:\n  {}", lines[first..].join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_end_of_the_log_and_the_meaning_of_the_code() {
        let log = (0..40).map(|n| format!("line {n}\n")).collect();
        let text = KvmError::Exit { code: 0x10e, log }.to_string();
        assert!(text.contains("(exception 14)"), "{text}");
        assert!(
            text.contains("line 39") && !text.contains("line 27\n"),
            "{text}"
        );
        let text = KvmError::Exit {
            code: 1,
            log: String::new(),
        }
        .to_string();
        assert!(
            text.contains("(panic)") && text.contains("printed nothing"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_device_node_comes_with_advice() {
        let source = io::ErrorKind::PermissionDenied.into();
        let text = KvmError::Open { source }.to_string();
        assert!(
            text.contains("/dev/kvm") && text.contains("group"),
            "{text}"
        );
    }
}
