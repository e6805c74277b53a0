//! The source `iommufd`: a VFIO device is bound, not attached, and its IOMMU asked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::answer::{Answer, Gap, Served, Situation};
use crate::fact::{Early, Late, Phase};
use crate::hw_info::RawHwInfo;
use crate::scope::{PciFunction, Scope};
use crate::source::os;
use crate::source::{HostCapSource, SourceError, Sysfs};
use crate::sys;

/// A step of asking an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening `/dev/iommu`.
    OpenIommufd,
    /// Opening `/dev/vfio/devices/vfioN`.
    OpenDevice,
    /// `VFIO_DEVICE_BIND_IOMMUFD`.
    Bind,
    /// `IOMMU_GET_HW_INFO`.
    GetHwInfo,
}

/// The system calls, behind a trait so that everything around them is tested without devices.
#[cfg_attr(any(test, feature = "mock"), mockall::automock)]
pub trait IommufdCalls: Send + Sync {
    /// Opens both files, binds the device without attaching it, and asks for its IOMMU; closes
    /// (and thereby unbinds) again. The paths are the iommufd's and the device's.
    ///
    /// # Errors
    /// The step that failed and the system's error.
    fn hw_info(&self, iommufd: PathBuf, device: PathBuf) -> Result<RawHwInfo, (Step, io::Error)>;
}

/// The running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl IommufdCalls for Linux {
    fn hw_info(&self, iommufd: PathBuf, device: PathBuf) -> Result<RawHwInfo, (Step, io::Error)> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let at = |step| move |error| (step, error);
        let iommufd = open(&iommufd).map_err(at(Step::OpenIommufd))?;
        let device = open(&device).map_err(at(Step::OpenDevice))?;
        let id = sys::vfio_bind_iommufd(device.as_fd(), iommufd.as_fd()).map_err(at(Step::Bind))?;
        sys::hw_info(iommufd, id).map_err(at(Step::GetHwInfo))
    }
}

/// Asks `IOMMU_GET_HW_INFO` about functions.
///
/// Functions named beforehand are asked early, by binding them without attaching them: no
/// address space and no RAM is needed for that, so what they teach may decide where RAM goes.
/// Any function can be asked late. The device must not be bound elsewhere at that moment; a VMM
/// that has it bound already uses [`hw_info_of_bound`]. Named `iommufd:PATH[,FUNCTION…]`.
pub struct Iommufd {
    path: PathBuf,
    devices: PathBuf,
    sysfs: Sysfs,
    early: Vec<(PciFunction, Option<PathBuf>)>,
    calls: Box<dyn IommufdCalls>,
}

impl Default for Iommufd {
    fn default() -> Self {
        Self::new("/dev/iommu")
    }
}

/// `IOMMU_GET_HW_INFO` for a device that the caller has bound: `dev_id` is what
/// `VFIO_DEVICE_BIND_IOMMUFD` returned for `iommufd`. [`RawHwInfo::answer`] makes facts of it.
///
/// # Errors
/// The system's error.
pub fn hw_info_of_bound(iommufd: BorrowedFd<'_>, dev_id: u32) -> io::Result<RawHwInfo> {
    sys::hw_info(File::from(iommufd.try_clone_to_owned()?), dev_id)
}

impl Iommufd {
    /// Asks through the iommufd at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            devices: "/dev/vfio/devices".into(),
            sysfs: Sysfs::default(),
            early: Vec::new(),
            calls: Box::new(Linux),
        }
    }

    /// Asks about a function early. Its VFIO device is found through sysfs unless it is given.
    #[must_use]
    pub fn with_function(mut self, function: PciFunction, device: Option<PathBuf>) -> Self {
        self.early.push((function, device));
        self
    }

    /// Looks up devices in another tree than `/sys`.
    #[must_use]
    pub fn with_sysfs(mut self, sysfs: Sysfs) -> Self {
        self.sysfs = sysfs;
        self
    }

    /// Where VFIO's device files are, instead of `/dev/vfio/devices`.
    #[must_use]
    pub fn with_devices(mut self, directory: impl Into<PathBuf>) -> Self {
        self.devices = directory.into();
        self
    }

    /// Makes the system calls in another way: for tests.
    #[must_use]
    pub fn with_calls(mut self, calls: impl IommufdCalls + 'static) -> Self {
        self.calls = Box::new(calls);
        self
    }

    /// The VFIO device file of a function.
    fn device(&self, function: PciFunction) -> Result<PathBuf, SourceError> {
        if let Some((_, Some(path))) = self.early.iter().find(|(f, _)| *f == function) {
            return Ok(path.clone());
        }
        let directory = self.sysfs.device(function).join("vfio-dev");
        let remedy = "bind the function to vfio-pci (driverctl, or driver_override in its sysfs \
                      directory) on a kernel with CONFIG_VFIO_DEVICE_CDEV";
        let names = os::names(&directory, remedy)?;
        match names.iter().find(|name| name.starts_with("vfio")) {
            Some(name) => Ok(self.devices.join(name)),
            None => Err(os::unexpected(&directory, "it is empty", remedy)),
        }
    }

    fn ask<P: Phase>(&self, function: PciFunction) -> Result<Answer<P>, SourceError> {
        let device = self.device(function)?;
        let raw = self
            .calls
            .hw_info(self.path.clone(), device.clone())
            .map_err(|(step, error)| explain(step, &error, &self.path, &device))?;
        let iommu = self.sysfs.iommu_of(function).ok().flatten();
        let mut answer = raw.answer(function, iommu.as_deref(), &self.name());
        answer
            .served
            .extend(iommu.map(|iommu| Served { function, iommu }));
        Ok(answer)
    }
}

/// The error of a step, with what to do about it.
fn explain(step: Step, error: &io::Error, iommufd: &Path, device: &Path) -> SourceError {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    let (path, ioctl) = match step {
        Step::OpenIommufd => (iommufd, None),
        Step::OpenDevice => (device, None),
        Step::Bind => (device, Some("VFIO_DEVICE_BIND_IOMMUFD")),
        Step::GetHwInfo => (iommufd, Some("IOMMU_GET_HW_INFO")),
    };
    let remedy = match (step, errno) {
        (Step::OpenIommufd | Step::OpenDevice, Some(Errno::EACCES)) => {
            "run as a user who may open it, or give this user access (a udev rule)"
        }
        (Step::OpenIommufd, Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)) => {
            "load the module iommufd (modprobe iommufd); the kernel needs CONFIG_IOMMUFD"
        }
        (Step::OpenDevice, Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)) => {
            "bind the function to vfio-pci (modprobe vfio-pci); the kernel needs \
             CONFIG_VFIO_DEVICE_CDEV"
        }
        (Step::OpenDevice | Step::Bind, Some(Errno::EBUSY)) => {
            "end the VMM that uses the device, or ask about another one"
        }
        (Step::Bind, Some(Errno::EPERM)) => {
            "the host does not remap this device's interrupts: enable interrupt remapping (or, if \
             its guests are trusted, iommufd.allow_unsafe_interrupts=1)"
        }
        (Step::Bind, Some(Errno::EINVAL)) => {
            "the device is bound already, or the iommufd is not one: open each anew"
        }
        (Step::Bind, Some(Errno::ENOTTY)) => {
            "this is no VFIO device file, or its kernel lacks CONFIG_VFIO_DEVICE_CDEV"
        }
        (Step::GetHwInfo, Some(Errno::ENOTTY)) => {
            "this is no iommufd, or a kernel before 6.6; use a newer one"
        }
        (Step::GetHwInfo, Some(Errno::EOPNOTSUPP)) => {
            "the kernel's driver for this IOMMU can't be asked; use a newer kernel"
        }
        (Step::GetHwInfo, Some(Errno::ENOENT)) => "the device is not bound to this iommufd",
        (Step::OpenIommufd, _) => "load the module iommufd, and check the path",
        (Step::OpenDevice, _) => "check the path and that the function is bound to vfio-pci",
        (Step::Bind | Step::GetHwInfo, _) => "see the kernel's log (dmesg)",
    };
    match ioctl {
        None => os::unexpected(path, &error.to_string(), remedy),
        Some(ioctl) => SourceError::Ioctl {
            path: path.to_owned(),
            ioctl: ioctl.to_owned(),
            problem: error.to_string(),
            remedy: remedy.to_owned(),
        },
    }
}

impl HostCapSource for Iommufd {
    fn name(&self) -> String {
        let mut name = format!("iommufd:{}", self.path.display());
        for (function, device) in &self.early {
            name += &format!(",{function}");
            if let Some(device) = device {
                name += &format!("={}", device.display());
            }
        }
        name
    }

    fn situation(&self) -> Situation {
        Situation::Passthrough
    }

    fn early_facts(&self) -> Result<Answer<Early>, SourceError> {
        let mut all = Answer::nothing();
        for (function, _) in &self.early {
            match self.ask(*function) {
                Ok(answer) => all.merge(answer),
                Err(error) if self.early.len() == 1 => return Err(error),
                Err(error) => all.gaps.push(Gap {
                    source: self.name(),
                    scope: Scope::Function(*function),
                    problem: error.to_string(),
                }),
            }
        }
        if self.early.is_empty() {
            return Ok(all);
        }
        // RAM is shared by all functions: an IOMMU that was not asked leaves a hole in the proof.
        for iommu in self.sysfs.iommus().unwrap_or_default() {
            if !all.served.iter().any(|served| served.iommu == iommu) {
                all.gaps.push(Gap {
                    source: self.name(),
                    scope: Scope::Iommu(iommu),
                    problem: "no function behind it was asked; name one".to_owned(),
                });
            }
        }
        Ok(all)
    }

    fn late_facts(&self, function: PciFunction) -> Result<Answer<Late>, SourceError> {
        self.ask(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Subject;
    use crate::feature::Feature;
    use std::os::unix::fs::symlink;

    const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);

    fn fail(step: Step, errno: i32) -> MockIommufdCalls {
        let mut calls = MockIommufdCalls::new();
        calls
            .expect_hw_info()
            .returning(move |_, _| Err((step, io::Error::from_raw_os_error(errno))));
        calls
    }

    fn succeed() -> MockIommufdCalls {
        let mut calls = MockIommufdCalls::new();
        calls
            .expect_hw_info()
            .times(1)
            .returning(|iommufd, device| {
                assert_eq!(iommufd, Path::new("/dev/iommu"));
                assert_eq!(device, Path::new("/dev/vfio/devices/vfio3"));
                let words = [0x2465_77ef_a225_4afa_u64, 0x910, 1 << 43];
                Ok(RawHwInfo {
                    data_type: 4,
                    data_len: 24,
                    data: words.iter().flat_map(|w| w.to_le_bytes()).collect(),
                    ..RawHwInfo::default()
                })
            });
        calls
    }

    /// A tree in which two IOMMUs exist and NIC is vfio3 behind the first.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("bus/pci/devices/0000:c1:00.0");
        std::fs::create_dir_all(device.join("vfio-dev/vfio3")).unwrap();
        for iommu in ["ivhd0", "ivhd1"] {
            std::fs::create_dir_all(dir.path().join("class/iommu").join(iommu)).unwrap();
        }
        symlink("../../../../class/iommu/ivhd0", device.join("iommu")).unwrap();
        dir
    }

    #[test]
    fn a_function_is_asked_through_its_vfio_device_and_speaks_for_its_iommu() {
        let dir = tree();
        let source = Iommufd::default()
            .with_sysfs(Sysfs::new(dir.path()))
            .with_calls(succeed());
        let answer = source.late_facts(NIC).unwrap();
        assert_eq!(answer.served[0].iommu, "ivhd0");
        let two_k = answer
            .facts
            .iter()
            .find(|f| f.subject() == Subject::Feature(Feature::NumInt2K));
        assert_eq!(*two_k.unwrap().scope(), Scope::Iommu("ivhd0".to_owned()));
        assert_eq!(two_k.unwrap().source(), "iommufd:/dev/iommu");
    }

    #[test]
    fn a_named_function_is_asked_early_and_an_iommu_that_was_not_asked_is_a_gap() {
        let dir = tree();
        let source = Iommufd::default()
            .with_sysfs(Sysfs::new(dir.path()))
            .with_function(NIC, None)
            .with_calls(succeed());
        let early = crate::EarlyFacts::collect([&source as &dyn HostCapSource]);
        let decision = early.decide(Feature::HtRangeIgnore, true);
        assert!(!decision.is_granted(), "{decision}");
        assert!(decision.reason.contains("for ivhd1"), "{decision}");
        std::fs::remove_dir(dir.path().join("class/iommu/ivhd1")).unwrap();
        let source = source.with_calls(succeed());
        let early = crate::EarlyFacts::collect([&source as &dyn HostCapSource]);
        assert!(early.decide(Feature::HtRangeIgnore, true).is_granted());
    }

    #[test]
    fn nothing_is_opened_before_a_function_is_named() {
        let source = Iommufd::default().with_calls(MockIommufdCalls::new());
        assert_eq!(source.early_facts().unwrap(), Answer::nothing());
    }

    #[test]
    fn each_failure_names_the_path_the_call_and_what_to_do() {
        const EACCES: i32 = 13;
        const ENOENT: i32 = 2;
        const EPERM: i32 = 1;
        const EBUSY: i32 = 16;
        const EOPNOTSUPP: i32 = 95;
        for (step, errno, said) in [
            (
                Step::OpenIommufd,
                EACCES,
                ["/dev/iommu: Permission denied", "give this user access"],
            ),
            (
                Step::OpenIommufd,
                ENOENT,
                ["/dev/iommu: No such file", "modprobe iommufd"],
            ),
            (
                Step::OpenDevice,
                ENOENT,
                ["vfio9: No such file", "modprobe vfio-pci"],
            ),
            (
                Step::Bind,
                EPERM,
                [
                    "VFIO_DEVICE_BIND_IOMMUFD on /dev/vfio/devices/vfio9",
                    "interrupt remapping",
                ],
            ),
            (
                Step::Bind,
                EBUSY,
                ["VFIO_DEVICE_BIND_IOMMUFD on", "end the VMM"],
            ),
            (
                Step::GetHwInfo,
                EOPNOTSUPP,
                ["IOMMU_GET_HW_INFO on /dev/iommu", "newer kernel"],
            ),
        ] {
            let source = Iommufd::default()
                .with_function(NIC, Some("/dev/vfio/devices/vfio9".into()))
                .with_calls(fail(step, errno));
            let error = source.early_facts().unwrap_err().to_string();
            for part in said {
                assert!(error.contains(part), "no `{part}` in: {error}");
            }
        }
    }

    #[test]
    fn a_function_without_a_vfio_device_says_how_it_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let source = Iommufd::default()
            .with_sysfs(Sysfs::new(dir.path()))
            .with_calls(MockIommufdCalls::new());
        let error = source.late_facts(NIC).unwrap_err().to_string();
        for part in [
            "0000:c1:00.0/vfio-dev",
            "vfio-pci",
            "CONFIG_VFIO_DEVICE_CDEV",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_real_calls_fail_at_the_step_that_fails() {
        let calls = |iommufd: &str, device: &str| {
            Linux.hw_info(iommufd.into(), device.into()).unwrap_err().0
        };
        assert_eq!(calls("/nonexistent", "/dev/null"), Step::OpenIommufd);
        assert_eq!(calls("/dev/null", "/nonexistent"), Step::OpenDevice);
        assert_eq!(calls("/dev/null", "/dev/null"), Step::Bind);
        let null = File::open("/dev/null").unwrap();
        assert_eq!(
            hw_info_of_bound(null.as_fd(), 1)
                .unwrap_err()
                .raw_os_error(),
            Some(25)
        );
    }
}
