//! Parameters of the check that does everything at once.

use serde::{Deserialize, Serialize};

use super::{Disk, Net, Target};

/// The parameters of [`super::Check::Stress`].
///
/// Everything that is asked for goes on at the same time until the time is up; what one turn of it
/// has begun is brought to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stress {
    /// How long, in seconds.
    pub seconds: u64,
    /// The endpoint that fires.
    pub target: Target,
    /// Its vectors.
    pub vectors: u32,
    /// Move the vectors between the processors all the time.
    pub affinity: bool,
    /// Take processors away and bring them back all the time.
    pub hotplug: bool,
    /// Another endpoint, for which memory is mapped and unmapped as fast as it goes, with DMA through
    /// each mapping.
    pub mappings: Option<Target>,
    /// Traffic on disks, over and over.
    pub disk: Option<Disk>,
    /// Traffic on networks, over and over.
    pub net: Option<Net>,
}

impl Default for Stress {
    fn default() -> Self {
        Self {
            seconds: 60,
            target: Target::default(),
            vectors: 2048,
            affinity: true,
            hotplug: false,
            mappings: None,
            disk: Some(Disk::default()),
            net: Some(Net::default()),
        }
    }
}
