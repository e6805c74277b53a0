//! The source `kvm`: a KVM capability by number.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::answer::{Answer, Note, Situation};
use crate::aspect::Aspect;
use crate::fact::{Early, Fact, Late};
use crate::feature::Feature;
use crate::scope::{PciFunction, Scope};
use crate::source::os;
use crate::source::{HostCapSource, SourceError};
use crate::sys;

/// The last capability number that Linux is known to have given to something else
/// (KVM_CAP_GUEST_MEMFD_FLAGS, Linux 6.18).
pub const LAST_KNOWN_KVM_CAP: u32 = 244;

/// The system call, behind a trait for tests.
#[cfg_attr(any(test, feature = "mock"), mockall::automock)]
pub trait KvmCalls: Send + Sync {
    /// `KVM_CHECK_EXTENSION` on the device file at `path`.
    ///
    /// # Errors
    /// The system's error, `true` when it came from opening the file.
    fn check_extension(&self, path: PathBuf, number: u32) -> Result<i32, (bool, io::Error)>;
}

/// The running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxKvm;

impl KvmCalls for LinuxKvm {
    fn check_extension(&self, path: PathBuf, number: u32) -> Result<i32, (bool, io::Error)> {
        let mut options = File::options();
        let kvm = options.read(true).write(true).open(path);
        let kvm = kvm.map_err(|error| (true, error))?;
        sys::kvm_check_extension(kvm.as_fd(), number).map_err(|error| (false, error))
    }
}

/// Asks whether the host offers 2K interrupts by a KVM capability.
///
/// The capability was discussed and has no number upstream, so the number is the user's to give:
/// that it means this and nothing else is the user's word. More than 0 means that hardware and
/// kernel both have 2K; 0 that it is not supported. Named `kvm:NUMBER`.
pub struct Kvm {
    number: u32,
    path: PathBuf,
    calls: Box<dyn KvmCalls>,
}

impl Kvm {
    /// Asks `/dev/kvm` for a capability.
    ///
    /// # Errors
    /// The number is one that Linux has given to something else, whose yes would be mistaken for
    /// this one's.
    pub fn new(number: u32) -> Result<Self, SourceError> {
        if number <= LAST_KNOWN_KVM_CAP || i32::try_from(number).is_err() {
            return Err(SourceError::Option {
                option: "kvm".to_owned(),
                value: number.to_string(),
                accepted: format!(
                    "a capability number above {LAST_KNOWN_KVM_CAP} (those up to it mean \
                     something else) and below 2^31"
                ),
            });
        }
        Ok(Self {
            number,
            path: "/dev/kvm".into(),
            calls: Box::new(LinuxKvm),
        })
    }

    /// Asks another device file.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = path.into();
        self
    }

    /// Makes the system call in another way: for tests.
    #[must_use]
    pub fn with_calls(mut self, calls: impl KvmCalls + 'static) -> Self {
        self.calls = Box::new(calls);
        self
    }
}

impl HostCapSource for Kvm {
    fn name(&self) -> String {
        match self.path.to_str() {
            Some("/dev/kvm") => format!("kvm:{}", self.number),
            _ => format!("kvm:{},dev={}", self.number, self.path.display()),
        }
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let returned = self
            .calls
            .check_extension(self.path.clone(), self.number)
            .map_err(|(opening, error)| match opening {
                true => os::file_error(
                    &self.path,
                    &error,
                    "load the module kvm_amd (modprobe kvm_amd), enable SVM in the firmware's \
                     setup, and check the path",
                ),
                false => SourceError::Ioctl {
                    path: self.path.clone(),
                    ioctl: format!("KVM_CHECK_EXTENSION({})", self.number),
                    problem: error.to_string(),
                    remedy: "check that the path is KVM's".to_owned(),
                },
            })?;
        let mut seen = format!("KVM_CHECK_EXTENSION({})={returned}", self.number);
        let on = returned > 0;
        if !on {
            seen += ", not supported or not known to this kernel";
        }
        let fact = |aspect| {
            Fact::new(
                Feature::NumInt2K,
                on,
                aspect,
                Scope::Host,
                self.name(),
                seen.clone(),
            )
        };
        // A "no" is the kernel's: of the hardware nothing follows from it.
        let facts = match on {
            true => vec![fact(Aspect::Hardware), fact(Aspect::Kernel)],
            false => vec![fact(Aspect::Kernel)],
        };
        let notes = vec![Note {
            source: self.name(),
            scope: Scope::Host,
            text: seen.clone(),
        }];
        Ok(Answer {
            facts,
            notes,
            ..Answer::nothing()
        })
    }

    fn late_facts(&self, _: PciFunction) -> Result<Answer<Late>, SourceError> {
        Ok(Answer::nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EarlyFacts, Setting};

    fn decide(returned: i32) -> crate::Decision {
        let mut calls = MockKvmCalls::new();
        calls
            .expect_check_extension()
            .return_once(move |path, number| {
                assert_eq!((path.to_str(), number), (Some("/dev/kvm"), 245));
                Ok(returned)
            });
        let source = Kvm::new(245).unwrap().with_calls(calls);
        EarlyFacts::collect([&source as &dyn HostCapSource]).decide(Feature::NumInt2K, true)
    }

    #[test]
    fn a_capability_above_zero_is_a_yes_and_zero_is_a_no() {
        for yes in [1, 2048] {
            assert_eq!(decide(yes).granted, Setting::ON);
        }
        let no = decide(0);
        assert_eq!(no.granted, Setting::OFF);
        assert!(
            no.reason
                .contains("KVM_CHECK_EXTENSION(245)=0, not supported"),
            "{no}"
        );
    }

    #[test]
    fn a_number_that_means_something_else_is_refused() {
        for number in [0, 1, 188, LAST_KNOWN_KVM_CAP, 1 << 31] {
            let error = Kvm::new(number).err().unwrap().to_string();
            assert!(
                error.contains("kvm") && error.contains("above 244"),
                "{error}"
            );
        }
    }

    #[test]
    fn failures_name_the_path_the_call_and_what_to_do() {
        let error = |path: &str| {
            let source = Kvm::new(1000).unwrap().with_path(path);
            source.early_facts().unwrap_err().to_string()
        };
        let missing = error("/nonexistent/kvm");
        assert!(
            missing.contains("/nonexistent/kvm: No such file"),
            "{missing}"
        );
        assert!(missing.contains("modprobe kvm_amd"), "{missing}");
        let other = error("/dev/null");
        assert!(
            other.contains("KVM_CHECK_EXTENSION(1000) on /dev/null"),
            "{other}"
        );
    }
}
