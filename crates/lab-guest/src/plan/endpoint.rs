//! Parameters of the checks that own a test endpoint through vfio-pci.

use serde::{Deserialize, Serialize};

/// How to get at a function and its IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The IOMMU group and a container of type 1, version 2.
    Group,
    /// The function's own device file, and iommufd.
    Cdev,
}

/// A test endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// Which of them, counted from 0 in order of their addresses.
    pub endpoint: usize,
    /// How to get at it; [`Backend::Cdev`] if the kernel has that, unless given.
    pub backend: Option<Backend>,
}

/// The parameters of [`super::Check::VfioDma`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VfioDma {
    /// The endpoint.
    pub target: Target,
    /// Where to map. Each must be in the aperture that the kernel offers.
    pub iovas: Vec<u64>,
    /// Bytes to map. Sizes above what memory there is in one piece are made of smaller pieces.
    pub sizes: Vec<u64>,
    /// MiB of memory to ask for, in huge pages where there are any.
    pub mib: u64,
    /// Sizes that must not be left out because memory is short.
    pub require_sizes: bool,
    /// The paging mode that the device table must have reached, if the kernel has debugfs files
    /// that show it.
    pub mode: Option<u8>,
}

impl Default for VfioDma {
    fn default() -> Self {
        Self {
            target: Target::default(),
            iovas: vec![0x10_0000, 1 << 32],
            sizes: vec![0x1000, 0x2000, 0x1_0000, 0x20_0000, 0x40_0000],
            mib: 64,
            require_sizes: true,
            mode: None,
        }
    }
}

/// The parameters of [`super::Check::Msix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Msix {
    /// The endpoint.
    pub target: Target,
    /// Vectors to ask for, all of which must be there.
    pub vectors: u32,
    /// How many to fire at a time; each entry fires every vector once.
    pub batches: Vec<u32>,
    /// IntTabLen of the device table entry, if the kernel has debugfs files that show it.
    pub int_tab_len: Option<u8>,
}

impl Default for Msix {
    fn default() -> Self {
        Self {
            target: Target::default(),
            vectors: 2048,
            batches: vec![1, 64, 2048],
            int_tab_len: None,
        }
    }
}

/// The parameters of [`super::Check::Msi`] and [`super::Check::Intx`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pin {
    /// The endpoint.
    pub target: Target,
    /// How often to fire.
    pub count: u32,
}

impl Default for Pin {
    fn default() -> Self {
        Self {
            target: Target::default(),
            count: 50,
        }
    }
}

/// The parameters of [`super::Check::UnmapFault`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnmapFault {
    /// The endpoint.
    pub target: Target,
    /// Where to map and unmap; each is one write and one read that fault. Linux prints no more
    /// than ten faults of a function in five seconds.
    pub iovas: Vec<u64>,
    /// The kernel maps by guest tables: events name PASID 0 instead of a domain.
    pub guest: bool,
    /// The address that the endpoint's requests carry instead of its own, as `0000:00:1d.0`: the
    /// kernel's lines name it, and no driver.
    pub alias: Option<String>,
}

impl Default for UnmapFault {
    fn default() -> Self {
        Self {
            target: Target::default(),
            iovas: vec![0x10_0000, 1 << 32],
            guest: false,
            alias: None,
        }
    }
}

/// The parameters of [`super::Check::Limit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// The endpoint.
    pub target: Target,
    /// So many vectors can be had.
    pub vectors: u32,
    /// So many can't.
    pub refused: u32,
    /// What the kernel's log says then.
    pub message: String,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            target: Target::default(),
            vectors: 512,
            refused: 513,
            message: "AMD-Vi: Failed to allocate IRTE".into(),
        }
    }
}

/// The parameters of [`super::Check::Affinity`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Affinity {
    /// The endpoint.
    pub target: Target,
    /// Vectors that are moved and fired.
    pub vectors: u32,
    /// How often each of them is fired while it moves.
    pub rounds: u32,
    /// Take processors away and bring them back meanwhile.
    pub hotplug: bool,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            target: Target::default(),
            vectors: 64,
            rounds: 20,
            hotplug: false,
        }
    }
}

/// The parameters of [`super::Check::Events`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// The endpoint.
    pub target: Target,
    /// One after the other.
    pub provoke: Vec<Provoke>,
}

/// A request of the endpoint, and what Linux must say to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provoke {
    /// The request.
    pub request: Request,
    /// DeviceID that DMA carries; the endpoint's own unless given.
    #[serde(default)]
    pub requester: Option<u16>,
    /// The IOMMU lets it pass.
    #[serde(default)]
    pub passes: bool,
    /// Patterns of lines that must come, each at least once. `{function}` stands for the
    /// endpoint's address.
    #[serde(default)]
    pub expect: Vec<String>,
    /// Patterns of lines that may come besides.
    #[serde(default)]
    pub allow: Vec<String>,
}

/// What the test endpoint can be made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A DMA write of 64 bytes to this IOVA.
    Write(u64),
    /// A DMA read of 64 bytes from this IOVA.
    Read(u64),
    /// An interrupt message with this address and data.
    Message(u64, u32),
    /// DMA writes to the page at this IOVA, this many milliseconds long.
    Flood(u64, u32),
}
