//! What the guest is to do.

mod endpoint;
mod features;
mod measure;
mod stress;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use endpoint::{
    Affinity, Backend, Events, Limit, Msix, Pin, Provoke, Request, Target, UnmapFault, VfioDma,
};
pub use features::{Count, Counted, Counters, Dirty, Sva, Work};
pub use measure::{MeasureDisk, MeasureMap, MeasureMsi, MeasureNet, MeasureRetarget, Repeats};
pub use stress::Stress;

/// Where the plan is in the initramfs.
pub const PLAN: &str = "/plan.json";
/// Seconds that a check may take unless its step says otherwise.
pub const STEP_TIMEOUT: u64 = 60;
/// Seconds that all of it may take unless the plan says otherwise.
pub const PLAN_TIMEOUT: u64 = 600;

/// What the guest is to do, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Kernel modules to load, each after those it depends on: a path in the initramfs, and
    /// parameters after a space. `….ko` is loaded as it is, others are left to the kernel to
    /// decompress.
    pub modules: Vec<String>,
    /// What to check. A [`Check::Log`] runs after all others, wherever it stands.
    pub checks: Vec<Step>,
    /// Patterns of lines that the log may have besides those of [`crate::allow`].
    pub log_allow: Vec<String>,
    /// What to do in the end.
    pub then: Then,
    /// With [`Then::Kexec`]: the kernel to start, and what it is to do.
    pub kexec: Option<Box<Kexec>>,
    /// Seconds that all of it may take; then what is known is reported.
    pub timeout_s: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            checks: Vec::new(),
            log_allow: Vec::new(),
            then: Then::Poweroff,
            kexec: None,
            timeout_s: PLAN_TIMEOUT,
        }
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// The machine is switched off.
    #[default]
    Poweroff,
    /// The machine is reset.
    Reboot,
    /// Another kernel starts without a reset, see [`Plan::kexec`]. When it can't be loaded the
    /// report says so and the machine is switched off.
    Kexec,
}

/// A kernel to start without a reset. Its initramfs is made of what is in the one of now, with
/// another plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kexec {
    /// Where the kernel's image is in the initramfs.
    pub kernel: String,
    /// Its command line; that of the running kernel unless given.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// What it is to do.
    pub plan: Plan,
}

/// A check, with what concerns every check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Name of the result, if not that of the check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Seconds that it may take; [`STEP_TIMEOUT`] unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// The check itself.
    #[serde(flatten)]
    pub check: Check,
}

impl From<Check> for Step {
    fn from(check: Check) -> Self {
        Self {
            label: None,
            timeout_s: None,
            check,
        }
    }
}

/// What can be checked, each with its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Check {
    /// The kernel's log.
    Log(Log),
    /// `/proc/interrupts`.
    Interrupts(Interrupts),
    /// The IOMMU groups of the PCI functions.
    IommuGroups(IommuGroups),
    /// What the driver says of an IOMMU in `/sys/class/iommu`.
    SysfsIvhd(SysfsIvhd),
    /// The driver's debugfs files.
    Debugfs(Debugfs),
    /// Processors.
    Cpus(Cpus),
    /// Contents of files.
    Files(Files),
    /// Virtio disks.
    Disk(Disk),
    /// Virtio network interfaces whose peer sends back what it gets.
    Net(Net),
    /// The hardware random number generator.
    Rng(Rng),
    /// The virtio console.
    Console(Console),
    /// Timers and clocks.
    Timers(Timers),
    /// DMA of the test endpoint through mappings of vfio-pci.
    VfioDma(VfioDma),
    /// Every MSI-X vector of the test endpoint, received by vfio-pci.
    Msix(Msix),
    /// The test endpoint's MSI.
    Msi(Pin),
    /// The test endpoint's INTx.
    Intx(Pin),
    /// DMA after the unmap is a fault, and only that.
    UnmapFault(UnmapFault),
    /// How many MSI-X vectors there can be.
    Limit(Limit),
    /// Interrupts that move between processors while they fire.
    Affinity(Affinity),
    /// Events that the test endpoint provokes, and what Linux says to them.
    Events(Events),
    /// Processors that leave and come back.
    CpuHotplug(CpuHotplug),
    /// DMA with this process's own addresses: shared virtual addressing.
    Sva(Sva),
    /// Pages that the test endpoint has written, by the dirty bits of host tables.
    Dirty(Dirty),
    /// Performance counters of the IOMMU count what the test endpoint does.
    Counters(Counters),
    /// Interrupts that move, mappings, disks and networks, all at once.
    Stress(Stress),
    /// How fast a disk is.
    MeasureDisk(MeasureDisk),
    /// How many packets a network interface takes and gives.
    MeasureNet(MeasureNet),
    /// How fast mappings are made and taken away.
    MeasureMap(MeasureMap),
    /// How many interrupts a function sends when it is told to.
    MeasureMsi(MeasureMsi),
    /// How long it takes to move an interrupt to another processor.
    MeasureRetarget(MeasureRetarget),
    /// Leaves the names of the kernel's functions on the first disk, at [`amdvi_lab_init::NAMES`]: for a
    /// profile that is taken from outside. What is there is lost.
    Names,
}

impl Check {
    /// The name that it has in a plan.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Interrupts(_) => "interrupts",
            Self::IommuGroups(_) => "iommu-groups",
            Self::SysfsIvhd(_) => "sysfs-ivhd",
            Self::Debugfs(_) => "debugfs",
            Self::Cpus(_) => "cpus",
            Self::Files(_) => "files",
            Self::Disk(_) => "disk",
            Self::Net(_) => "net",
            Self::Rng(_) => "rng",
            Self::Console(_) => "console",
            Self::Timers(_) => "timers",
            Self::VfioDma(_) => "vfio-dma",
            Self::Msix(_) => "msix",
            Self::Msi(_) => "msi",
            Self::Intx(_) => "intx",
            Self::UnmapFault(_) => "unmap-fault",
            Self::Limit(_) => "limit",
            Self::Affinity(_) => "affinity",
            Self::Events(_) => "events",
            Self::CpuHotplug(_) => "cpu-hotplug",
            Self::Sva(_) => "sva",
            Self::Dirty(_) => "dirty",
            Self::Counters(_) => "counters",
            Self::Stress(_) => "stress",
            Self::MeasureDisk(_) => "measure-disk",
            Self::MeasureNet(_) => "measure-net",
            Self::MeasureMap(_) => "measure-map",
            Self::MeasureMsi(_) => "measure-msi",
            Self::MeasureRetarget(_) => "measure-retarget",
            Self::Names => "names",
        }
    }
}

/// The parameters of [`Check::Log`]; patterns as in [`crate::pattern`]. That every line is
/// allowed is checked always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Each must match a line; what it matches is allowed.
    pub require: Vec<String>,
    /// None may match a line, allowed or not.
    pub forbid: Vec<String>,
}

/// The parameters of [`Check::Interrupts`]. A row is `<chip> <hardware number> <actions>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interrupts {
    /// Every interrupt of a device is remapped; that of the IOMMU, which can't be, is left out.
    pub remapped: bool,
    /// Each pattern must match a row.
    pub require: Vec<String>,
    /// None may match a row.
    pub forbid: Vec<String>,
    /// Rows that must have counted something.
    pub counted: Vec<String>,
}

impl Default for Interrupts {
    fn default() -> Self {
        Self {
            remapped: true,
            require: Vec::new(),
            forbid: Vec::new(),
            counted: Vec::new(),
        }
    }
}

/// The parameters of [`Check::IommuGroups`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IommuGroups {
    /// Types that a group may have, such as `DMA`, `DMA-FQ`, `identity`; any unless given.
    pub types: Vec<String>,
    /// Types of single functions, by address such as `0000:00:05.0`.
    pub functions: BTreeMap<String, String>,
    /// How many functions must have a group, at least.
    pub at_least: usize,
    /// Functions that have none, besides IOMMUs and host bridges.
    pub without: Vec<String>,
    /// Patterns of lines that a function's `reserved_regions` must have, by address.
    pub reserved: BTreeMap<String, Vec<String>>,
}

/// The parameters of [`Check::SysfsIvhd`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SysfsIvhd {
    /// Which IOMMU: `ivhd<index>`.
    pub index: u32,
    /// The capability header that it must show.
    pub cap: Option<u32>,
    /// The Extended Feature Register that it must show.
    pub efr: Option<u64>,
    /// The Extended Feature 2 Register that it must show.
    pub efr2: Option<u64>,
}

/// The parameters of [`Check::Debugfs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debugfs {
    /// Which IOMMU: `iommu<index>`.
    pub index: u32,
    /// Bits of MMIO registers.
    pub mmio: Vec<Bits>,
    /// Bits of dwords of the PCI capability.
    pub capability: Vec<Bits>,
    /// Device table entries and interrupt tables.
    pub devices: Vec<DeviceEntry>,
}

/// Bits that a register must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bits {
    /// Where the register is.
    pub offset: u32,
    /// The bits to look at.
    pub mask: u64,
    /// What they must be, in place.
    pub value: u64,
}

/// What the device table and the interrupt table must have for a function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceEntry {
    /// The function's address; `endpoint` stands for the first test endpoint.
    pub function: String,
    /// IntTabLen: the table has 2 to the power of it entries.
    pub int_tab_len: Option<u8>,
    /// The paging mode of the host's table.
    pub mode: Option<u8>,
    /// GV: there is a guest table.
    pub guest: Option<bool>,
    /// GIoV: it translates requests without PASID, too.
    pub guest_io: Option<bool>,
    /// Entries of the interrupt table that are valid, at least.
    pub irtes: Option<usize>,
}

/// The parameters of [`Check::Cpus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpus {
    /// How many there must be.
    pub online: Option<usize>,
    /// There is one with a higher APIC ID than this.
    pub apic_id_above: Option<u32>,
}

/// The parameters of [`Check::Files`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// A pattern by path: a line of the file must match it. No pattern: there is no such file.
    pub files: BTreeMap<String, Option<String>>,
}

/// The parameters of [`Check::Disk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// Disks that there must be.
    pub disks: usize,
    /// MiB to write to each, at its start.
    pub mib: u64,
    /// Threads for each disk, each bound to a processor.
    pub threads: usize,
    /// Queues that each disk must have and, if there are as many processors, that must have been
    /// used.
    pub queues: usize,
    /// What is written follows from it, see [`crate::data`].
    pub seed: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            disks: 1,
            mib: 8,
            threads: 4,
            queues: 1,
            seed: 1,
        }
    }
}

/// The parameters of [`Check::Net`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Net {
    /// Interfaces that there must be. At the other end of each is a peer of its own.
    pub interfaces: usize,
    /// The peer's address. The guest takes the addresses of this /24 network behind it.
    pub peer: Ipv4Addr,
    /// The peer's UDP and TCP port that sends back what comes.
    pub port: u16,
    /// Datagrams to send on each interface.
    pub datagrams: usize,
    /// Datagrams of a thread on their way at a time.
    pub window: usize,
    /// Threads for each interface, each bound to a processor.
    pub threads: usize,
    /// KiB to send over a TCP connection.
    pub stream_kib: u64,
    /// What is sent follows from it.
    pub seed: u64,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            interfaces: 1,
            peer: Ipv4Addr::new(192, 0, 2, 1),
            port: 7,
            datagrams: 1000,
            window: 8,
            threads: 2,
            stream_kib: 1024,
            seed: 1,
        }
    }
}

/// The parameters of [`Check::Rng`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rng {
    /// Bytes to read.
    pub bytes: usize,
}

impl Default for Rng {
    fn default() -> Self {
        Self { bytes: 4096 }
    }
}

/// The parameters of [`Check::Timers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// How long threads sleep, in milliseconds.
    pub millis: u64,
    /// The most that one may be woken too late.
    pub late_millis: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            millis: 2000,
            // A processor that is emulated may be kept waiting.
            late_millis: 5000,
        }
    }
}

/// The parameters of [`Check::Console`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Console {
    /// The device.
    pub path: String,
    /// Lines to write to it.
    pub lines: usize,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            path: "/dev/hvc0".into(),
            lines: 100,
        }
    }
}

/// The parameters of [`Check::CpuHotplug`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuHotplug {
    /// Processors to take away one after the other, and to bring back.
    pub cpus: Vec<u32>,
}

impl Default for CpuHotplug {
    fn default() -> Self {
        Self { cpus: vec![1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Plan, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_plan_says_only_what_differs_from_the_usual() {
        let plan = parse(
            r#"{"modules":["/modules/vfio.ko"],
                "checks":[{"name":"log","require":["AMD-Vi: X2APIC enabled"]},
                          {"name":"msix","vectors":512,"timeout_s":90,"label":"msix-512"},
                          {"name":"disk"}],
                "log_allow":["x*"],"then":"reboot"}"#,
        )
        .unwrap();
        assert_eq!(plan.then, Then::Reboot);
        assert_eq!(plan.timeout_s, PLAN_TIMEOUT);
        assert_eq!(plan.checks[1].timeout_s, Some(90));
        assert_eq!(plan.checks[1].label.as_deref(), Some("msix-512"));
        let expected = Msix {
            vectors: 512,
            ..Msix::default()
        };
        assert_eq!(plan.checks[1].check, Check::Msix(expected));
        assert_eq!(plan.checks[2].check, Check::Disk(Disk::default()));
        let again = serde_json::to_string(&plan).unwrap();
        assert_eq!(parse(&again).unwrap(), plan);
    }

    #[test]
    fn what_nobody_knows_in_a_plan_is_an_error() {
        for json in [
            r#"{"module":[]}"#,
            r#"{"checks":[{"name":"lag"}]}"#,
            r#"{"checks":[{"name":"log","requires":[]}]}"#,
            r#"{"checks":[{"require":[]}]}"#,
            r#"{"then":"sleep"}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_name_of_a_check_is_the_one_in_the_plan() {
        for check in [
            Check::IommuGroups(IommuGroups::default()),
            Check::SysfsIvhd(SysfsIvhd::default()),
            Check::UnmapFault(UnmapFault::default()),
            Check::CpuHotplug(CpuHotplug::default()),
            Check::VfioDma(VfioDma::default()),
            Check::Sva(Sva::default()),
            Check::Dirty(Dirty::default()),
            Check::Counters(Counters::default()),
            Check::Stress(Stress::default()),
            Check::MeasureRetarget(MeasureRetarget::default()),
            Check::Names,
        ] {
            let json = serde_json::to_value(Step::from(check.clone())).unwrap();
            assert_eq!(json["name"], check.name());
        }
    }
}
