//! What the AMD IOMMU engines share.
//!
//! Interrupt remapping (`amdvi-irt`) and DMA remapping (`amdvi-dma`) look at the same registers,
//! find their Device Table Entry in the same way and obey the same invalidation rules. Those
//! things stand here, once:
//!
//! - [`View`]: the registers that an engine reads, as atomics.
//! - [`dtab`]: from a DeviceID to the address of its DTE.
//! - [`Fabric`], [`Slot`], [`Requester`]: generations that say whether a cached entry may still be
//!   used, and the in-flight guard that lets COMPLETION_WAIT mean what it says.
//! - [`Counters`]: what a guest wants counted.
//! - [`Journal`]: the invalidations of translations, for caches that keep what was not meant.
//!
//! # The protocol
//!
//! Each requester handle belongs to one thread. It keeps its cache to itself, so a hit takes no
//! lock and writes nothing that another thread reads, except the handle's own in-flight word:
//!
//! | user of a translation | invalidation |
//! |---|---|
//! | in-flight word := epoch | generation += 1 |
//! | **light barrier** | epoch += 1; **heavy barrier** |
//! | read generation; entry of another generation is not used | for each handle: an older epoch in flight? wait |
//! | use the translation | the invalidation is complete |
//! | in-flight word := 0 | |
//!
//! Either the user sees the new generation, or the invalidation sees the user and waits for it
//! (Dekker's argument). With [`Barrier::Portable`] both barriers are sequentially consistent fences;
//! with `Barrier::Membarrier` the light one costs nothing and the heavy one is `membarrier(2)`.
//!
//! For the journal, read *head* instead of *generation*: a translation that was good when the head
//! was h is good while no record from h on covers it.
#![cfg_attr(not(loom), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

mod barrier;
mod counters;
pub mod dtab;
mod fabric;
mod journal;
mod sync;
#[cfg(any(feature = "test-utils", test))]
pub mod test_utils;
mod view;

pub use barrier::Barrier;
#[cfg(loom)]
pub use barrier::modelled;
pub use counters::{Counters, Subject};
pub use fabric::{Fabric, InFlight, Requester, Slot};
pub use journal::{Invalidation, Journal};
pub use view::View;
