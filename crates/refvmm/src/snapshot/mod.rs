//! Saving a whole machine and restoring it, to and from a file or another process.
//!
//! - [`mod@format`] is the stream, [`mod@file`] puts one into a file that is whole or not there;
//! - [`configuration`] says whether a saved machine fits this one;
//! - `vcpu`, `ram` and `machine` take a machine's state out and put it in;
//! - `store` saves to a file and restores from it, `migrate` moves a machine that runs;
//! - [`orders`] is how a person or a program asks for all that.

pub mod configuration;
pub mod file;
pub mod format;
mod machine;
mod migrate;
pub mod orders;
mod ram;
mod store;
mod vcpu;

use std::io;
use std::path::PathBuf;

use crate::board::StateError;
use crate::kvm::{KvmError, PauseError};
use format::FormatError;

pub use configuration::Configuration;
pub(crate) use machine::Live;
pub use migrate::Migration;
pub use orders::{Order, Orders};
pub(crate) use store::Waiting;
pub use store::{Origin, Saved};

/// Why a machine was not saved, restored or moved. Whatever runs goes on, and whatever file there was
/// is still there.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file of a saved machine, or the stream of one that comes in.
    #[error("{from}: {error}")]
    Read {
        /// The file or socket, with the option that named it.
        from: String,
        /// Why not.
        error: FormatError,
    },
    /// The file can't be written.
    #[error("can't save to {path}: {error}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another machine.
    #[error("{0}")]
    Configuration(String),
    /// A device can't give its state, or does not take one.
    #[error(transparent)]
    Device(#[from] StateError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The machine can't be brought to a halt.
    #[error("the machine can't be brought to a halt: {0}")]
    Halt(String),
    /// The other process, or the way to it.
    #[error("{0}")]
    Peer(String),
}

impl From<PauseError> for SnapshotError {
    fn from(error: PauseError) -> Self {
        Self::Halt(error.to_string())
    }
}
