//! The devices as a driver uses them: through the board, behind an IOMMU that translates.

mod blk;
mod chars;
mod doorbells;
mod driver;
mod forged;
mod hostile;
mod net;
mod rig;
mod snapshot;
mod suppression;
mod transport;

/// The same numbers each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
