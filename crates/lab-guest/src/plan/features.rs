//! Parameters of the checks of what an IOMMU can do besides translation: PASIDs and page requests,
//! dirty bits, counters.

use serde::{Deserialize, Serialize};

use super::Target;

/// The parameters of [`super::Check::Sva`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sva {
    /// The endpoint; it goes to the driver `uio_pci_sva`.
    pub target: Target,
    /// Pages that the endpoint writes, none of which has been touched before.
    pub pages: u64,
    /// The kernel refuses: there is no PASID.
    pub refused: bool,
    /// What invalidates the IOMMU's cached translations of the PASID is counted, by performance
    /// counters.
    pub counted: bool,
}

impl Default for Sva {
    fn default() -> Self {
        Self {
            target: Target::default(),
            pages: 64,
            refused: false,
            counted: false,
        }
    }
}

/// The parameters of [`super::Check::Dirty`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dirty {
    /// The endpoint, which is owned through iommufd.
    pub target: Target,
    /// Where the first mapping is.
    pub iova: u64,
    /// Bytes of each mapping, each of which has one dirty bit: a page of the host's table.
    pub granule: u64,
    /// Mappings, one behind the other.
    pub count: u64,
    /// Those that the endpoint writes; it reads all.
    pub written: Vec<u64>,
    /// Those that it writes afterwards.
    pub written_later: Vec<u64>,
}

impl Default for Dirty {
    fn default() -> Self {
        Self {
            target: Target::default(),
            iova: 1 << 32,
            granule: 4096,
            count: 200,
            written: vec![0, 1, 7, 63, 64, 130, 199],
            written_later: vec![2, 64],
        }
    }
}

/// The parameters of [`super::Check::Counters`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// The endpoint.
    pub target: Target,
    /// The IOMMU: `amd_iommu_<index>`.
    pub index: u32,
    /// DMA writes, none longer than a page.
    pub writes: u32,
    /// DMA writes to what is not mapped. Linux prints no more than ten faults of a function in five
    /// seconds.
    pub aborted: u32,
    /// MSI-X messages.
    pub interrupts: u32,
    /// Mappings that are made and unmade.
    pub unmaps: u32,
    /// What must have been counted; there can be no more events than counters.
    pub counts: Vec<Count>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// DMA writes that pass.
    Writes,
    /// DMA writes that are aborted.
    Aborted,
    /// Interrupts.
    Interrupts,
    /// Mappings that are unmade.
    Unmaps,
    /// Both kinds of DMA writes.
    Requests,
}

/// How often something must have been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// As often as this was done, of the endpoint.
    Exactly(Work),
    /// As often as this was done or more often, of all functions.
    AtLeast(Work),
}

/// Events whose counts must have a sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Names of the driver's events, whose counts are added up.
    pub events: Vec<String>,
    /// What they must be.
    pub is: Counted,
}

impl Count {
    fn of(events: &[&str], is: Counted) -> Self {
        Self {
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            is,
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        use Counted::{AtLeast, Exactly};
        Self {
            target: Target::default(),
            index: 0,
            writes: 100,
            aborted: 5,
            interrupts: 64,
            unmaps: 20,
            counts: vec![
                Count::of(&["mem_trans_total"], Exactly(Work::Writes)),
                Count::of(&["mem_target_abort"], Exactly(Work::Aborted)),
                Count::of(&["mem_dte_hit", "mem_dte_mis"], Exactly(Work::Requests)),
                Count::of(&["int_dte_hit", "int_dte_mis"], Exactly(Work::Interrupts)),
                Count::of(&["cmd_processed_inv"], AtLeast(Work::Unmaps)),
                Count::of(&["tlb_inv"], AtLeast(Work::Unmaps)),
            ],
        }
    }
}
