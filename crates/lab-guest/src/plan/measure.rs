//! Parameters of what is measured. Every measure is repeated, and gives a number for each time.

use std::net::Ipv4Addr;

use amdvi_lab_init::PciId;
use serde::{Deserialize, Serialize};

/// How often something is measured, and how long each time. Once more at the beginning does not
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repeats {
    /// How often.
    pub count: usize,
    /// Milliseconds each time.
    pub millis: u64,
}

impl Default for Repeats {
    fn default() -> Self {
        Self {
            count: 3,
            millis: 700,
        }
    }
}

/// The parameters of [`super::Check::MeasureDisk`]: the first virtio disk, past the cache. Gives
/// `disk-read` and `disk-write` (MiB/s, requests of 128 KiB in order), the same with memory in one piece as
/// `disk-read-whole` and `disk-write-whole`, `disk-iops` (random reads of
/// 4 KiB per second, four threads for each processor), and `disk-interrupts` (per second, when each
/// processor has one read of 512 bytes on its way at a time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureDisk {
    /// How often and how long.
    pub repeats: Repeats,
    /// MiB of the disk to use, at its start. What is there is lost.
    pub mib: u64,
}

impl Default for MeasureDisk {
    fn default() -> Self {
        Self {
            repeats: Repeats::default(),
            mib: 32,
        }
    }
}

/// The parameters of [`super::Check::MeasureNet`]: the first virtio network interface, whose peer
/// sends back what it gets. Gives `net-packets` per second, both ways together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureNet {
    /// How often and how long.
    pub repeats: Repeats,
    /// The peer's address. The guest takes the next one.
    pub peer: Ipv4Addr,
    /// The peer's UDP port.
    pub port: u16,
    /// Bytes of a datagram.
    pub bytes: usize,
    /// Datagrams on their way at a time, of each processor.
    pub window: usize,
}

impl Default for MeasureNet {
    fn default() -> Self {
        Self {
            repeats: Repeats::default(),
            peer: Ipv4Addr::new(192, 0, 2, 1),
            port: 7,
            bytes: 64,
            window: 16,
        }
    }
}

/// The parameters of [`super::Check::MeasureMap`]: a function under vfio-pci, in a container of
/// type 1. Gives `map-4k` and `map-2m`: mappings of that size that are made and taken away again,
/// per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureMap {
    /// How often and how long.
    #[serde(default)]
    pub repeats: Repeats,
    /// The function; the first one with these IDs.
    pub function: PciId,
}

/// The parameters of [`super::Check::MeasureMsi`]: the test endpoint, or QEMU's edu, under vfio-pci.
/// Gives `msi`: interrupts per second, each of which is sent when the one before has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureMsi {
    /// How often and how long.
    pub repeats: Repeats,
}

/// The parameters of [`super::Check::MeasureRetarget`]: the interrupt for received packets of the
/// first virtio network interface is moved from processor to processor. Gives `retarget-write`, the
/// microseconds that writing the affinity takes. With `arrival`, the same is done with the interrupt of
/// a function that sends one when it is told to, as with [`super::Check::MeasureMsi`], and
/// `retarget-arrival` are the microseconds from before the write until one has come to the new processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureRetarget {
    /// Whether there is such a function under an IOMMU.
    pub arrival: bool,
    /// How often it is moved, in each repetition.
    pub moves: usize,
    /// How many repetitions; each gives the median of its moves.
    pub repeats: usize,
    /// The peer's address. The guest takes the next one.
    pub peer: Ipv4Addr,
    /// The peer's UDP port.
    pub port: u16,
}

impl Default for MeasureRetarget {
    fn default() -> Self {
        Self {
            arrival: false,
            moves: 100,
            repeats: 3,
            peer: Ipv4Addr::new(192, 0, 2, 1),
            port: 7,
        }
    }
}
