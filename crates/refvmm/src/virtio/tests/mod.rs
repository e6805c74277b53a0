//! The devices as a driver uses them: through the board, behind an IOMMU that translates.

mod blk;
mod chars;
mod driver;
mod forged;
mod hostile;
mod net;
mod rig;
mod snapshot;
mod transport;
