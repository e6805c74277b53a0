//! Where facts come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Situation};
use crate::fact::{Early, Late};
use crate::scope::PciFunction;

mod debugfs;
mod described;
#[cfg(feature = "file")]
mod file;
mod fixed;
mod inference;
#[cfg(feature = "iommufd")]
mod iommufd;
#[cfg(feature = "kvm")]
mod kvm;
pub(crate) mod os;
mod several;
mod sysfs;

pub use debugfs::Debugfs;
pub use described::Described;
#[cfg(feature = "file")]
pub use file::RecordedFile;
pub use fixed::{Emulated, Fixed, LegacyVfio, Unusable};
pub use inference::KernelInference;
#[cfg(all(feature = "iommufd", any(test, feature = "mock")))]
pub use iommufd::MockIommufdCalls;
#[cfg(feature = "iommufd")]
pub use iommufd::{Iommufd, IommufdCalls, Linux, Step, hw_info_of_bound};
#[cfg(all(feature = "kvm", any(test, feature = "mock")))]
pub use kvm::MockKvmCalls;
#[cfg(feature = "kvm")]
pub use kvm::{Kvm, KvmCalls, LAST_KNOWN_KVM_CAP, LinuxKvm};
pub use os::KernelVersion;
pub use several::Several;
pub use sysfs::{Features, FeaturesError, FeaturesFormat, OrderBy, Sysfs, read_features};

/// A place that can be asked what the host's IOMMU can do.
///
/// Arguments and results are owned, so that the trait can be mocked; with the crate feature
/// `mock` there is a `MockHostCapSource`. An implementation answers from what it finds and does
/// not guess: what it does not know it leaves out, and what it was asked and could not read it
/// reports as a [`Gap`](crate::Gap), or as an error when it could read nothing.
#[cfg_attr(any(test, feature = "mock"), mockall::automock)]
pub trait HostCapSource: Send + Sync {
    /// The name by which facts and reasons call this source, as the option spells it:
    /// `legacy-vfio`, `sysfs:/sys`.
    fn name(&self) -> String;

    /// The situation of a guest whose functions this source speaks for.
    fn situation(&self) -> Situation;

    /// What is known before RAM is laid out and before any device is bound.
    ///
    /// # Errors
    /// Nothing could be learnt: which file, ioctl or option failed, and what to do.
    fn early_facts(&self) -> Result<Answer<Early>, SourceError>;

    /// What binding `function` taught.
    ///
    /// # Errors
    /// As for [`HostCapSource::early_facts`].
    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError>;
}

/// A source that could not be asked.
///
/// Each message names the object, the problem and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SourceError {
    /// A file could not be opened or read, or holds something unexpected.
    #[error("{}: {problem}; {remedy}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong: the system's message, or what was found instead of what.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// An ioctl failed or returned something unexpected.
    #[error("{ioctl} on {}: {problem}; {remedy}", path.display())]
    Ioctl {
        /// The device file.
        path: PathBuf,
        /// The ioctl's name as in the kernel's headers.
        ioctl: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// An option of the source can't be used.
    #[error("{option}: `{value}` can't be used; accepted: {accepted}")]
    Option {
        /// The option's name.
        option: String,
        /// Its value.
        value: String,
        /// What is accepted.
        accepted: String,
    },
}
