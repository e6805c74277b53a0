//! virtio-blk, virtio 1.2 section 5.2: a file or block device of the host.

mod file;
mod request;

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::virtio_blk as bindings;

use super::chain::Chain;
use super::lane::{Handler, Lane};
use super::{Backend, Identity, Model, QueueModel};
use crate::board::snapshot::{StateError, typed};
use file::Contents;
use request::{MAX_SEGMENTS, SECTOR, Scratch};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// The most queues.
pub(crate) const MAX_QUEUES: u16 = 64;
/// Sectors of one discard or write-zeroes segment: 64 MiB, which bounds the work of a request.
const MAX_CLEARED_SECTORS: u32 = 1 << 17;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file, or block device, with the contents. What is behind its last whole sector of 512
    /// bytes does not exist for the guest.
    pub path: PathBuf,
    /// Request queues, 1–64: one for each vCPU is best.
    pub queues: u16,
    /// The guest can't write.
    pub readonly: bool,
    /// What the guest reads as the disk's serial number; at most 20 bytes of it.
    pub serial: String,
    /// Requests to the file after which the disk fails: each further one ends as if the host could not
    /// do it. For seeing what a guest makes of that.
    pub fail_after: Option<u64>,
}

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file can't be opened.
    #[error("--disk path={path}: {error}{hint}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// What could help.
        hint: &'static str,
    },
    /// There is not a single sector.
    #[error("--disk path={path}: is shorter than a sector of 512 bytes", path = .0.display())]
    Empty(PathBuf),
    /// Too many queues, or none.
    #[error("--disk queues={0}: 1 to {MAX_QUEUES} are possible")]
    Queues(u16),
}

/// The opened disk, shared by its queues.
pub(super) struct Disk {
    path: PathBuf,
    contents: Contents,
    sectors: u64,
    readonly: bool,
    serial: [u8; 20],
    /// Requests that are left until it fails.
    left: Option<AtomicU64>,
}

impl Disk {
    /// Opens the file. Without `direct` all of its contents take the way that they take when the host
    /// has to wait for them.
    pub(super) fn open(config: &DiskConfig, direct: bool) -> Result<Self, DiskError> {
        let error = |error: io::Error| DiskError::Open {
            path: config.path.clone(),
            hint: match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                    if !config.readonly =>
                {
                    "; readonly=on would be enough for a disk that is only read"
                }
                _ => "",
            },
            error,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!config.readonly)
            .custom_flags(libc::O_CLOEXEC)
            .open(&config.path)
            .map_err(error)?;
        // Also right for block devices, whose metadata has no length.
        let sectors = file.seek(SeekFrom::End(0)).map_err(error)? / SECTOR;
        if sectors == 0 {
            return Err(DiskError::Empty(config.path.clone()));
        }
        let mut serial = [0; 20];
        for (byte, value) in serial.iter_mut().zip(config.serial.bytes()) {
            *byte = value;
        }
        Ok(Self {
            path: config.path.clone(),
            contents: Contents::new(file, direct),
            sectors,
            readonly: config.readonly,
            serial,
            left: config.fail_after.map(AtomicU64::new),
        })
    }

    /// Whether the disk still works; counts a request.
    fn works(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        self.left.as_ref().is_none_or(|left| {
            left.try_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
        })
    }

    fn features(&self, queues: u16) -> u64 {
        let mut features = 1 << bindings::VIRTIO_BLK_F_SEG_MAX
            | 1 << bindings::VIRTIO_BLK_F_BLK_SIZE
            | 1 << bindings::VIRTIO_BLK_F_FLUSH;
        if self.readonly {
            features |= 1 << bindings::VIRTIO_BLK_F_RO;
        } else {
            features |=
                1 << bindings::VIRTIO_BLK_F_DISCARD | 1 << bindings::VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if queues > 1 {
            features |= 1 << bindings::VIRTIO_BLK_F_MQ;
        }
        features
    }

    /// struct virtio_blk_config.
    fn registers(&self, queues: u16) -> Vec<u8> {
        let mut registers = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            registers[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.sectors.to_le_bytes());
        // seg_max: a chain also has the header and the status.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &queues.to_le_bytes());
        put(36, &MAX_CLEARED_SECTORS.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &MAX_CLEARED_SECTORS.to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        registers
    }
}

/// The file of a disk, as a saved machine remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    sectors: u64,
    /// Seconds and nanoseconds of the last change; only files have it.
    changed: Option<(i64, i64)>,
}

struct Contained(Arc<Disk>);

impl Contained {
    fn look(&self) -> io::Result<FileState> {
        let metadata = self.0.contents.file.metadata()?;
        let changed = metadata
            .is_file()
            .then(|| (metadata.mtime(), metadata.mtime_nsec()));
        Ok(FileState {
            sectors: self.0.sectors,
            changed,
        })
    }
}

impl Backend for Contained {
    fn save(&self) -> Result<Value, StateError> {
        let disk = &self.0;
        let path = disk.path.display();
        let error = |error: io::Error| StateError(format!("--disk path={path}: {error}"));
        if !disk.readonly {
            disk.contents.file.sync_all().map_err(error)?;
        }
        Ok(serde_json::to_value(self.look().map_err(error)?)?)
    }

    fn check(&self, saved: &Value) -> Result<(), StateError> {
        let saved: FileState = typed(saved)?;
        let path = self.0.path.display();
        let here = self
            .look()
            .map_err(|error| StateError(format!("--disk path={path}: {error}")))?;
        if here.sectors != saved.sectors {
            return Err(StateError(format!(
                "--disk path={path}: it has {} sectors, that of the saved machine has {}; give the \
                 same disk",
                here.sectors, saved.sectors
            )));
        }
        if here.changed != saved.changed {
            return Err(StateError(format!(
                "--disk path={path}: it was written to since the machine was saved, and the guest \
                 would damage it further; give the disk as it was then (a copy with its time stamp, \
                 `cp --preserve=timestamps`)"
            )));
        }
        Ok(())
    }
}

/// One queue of the disk.
struct Requests {
    disk: Arc<Disk>,
    scratch: Scratch,
}

impl Handler for Requests {
    fn turn(&mut self, lane: &Lane) -> bool {
        let Self { disk, scratch } = self;
        lane.serve(|session, chain: Chain| request::carry_out(disk, scratch, session, chain));
        false
    }
}

/// Opens the disk.
pub(super) fn model(config: &DiskConfig) -> Result<Model, DiskError> {
    if !(1..=MAX_QUEUES).contains(&config.queues) {
        return Err(DiskError::Queues(config.queues));
    }
    Ok(model_of(Disk::open(config, true)?, config.queues))
}

/// The device for a disk.
pub(super) fn model_of(disk: Disk, queues: u16) -> Model {
    let disk = Arc::new(disk);
    let queue = |_| QueueModel {
        max_size: QUEUE_SIZE,
        handler: Box::new(Requests {
            disk: Arc::clone(&disk),
            scratch: Scratch::default(),
        }),
    };
    Model {
        identity: Identity {
            name: "virtio-blk",
            virtio_id: 2,
            class: [0x01, 0x80, 0x00],
        },
        features: disk.features(queues),
        registers: Box::new(disk.registers(queues)),
        queues: (0..queues).map(queue).collect(),
        backend: Some(Box::new(Contained(Arc::clone(&disk)))),
    }
}
