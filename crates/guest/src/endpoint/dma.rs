//! The DMA channels of the test endpoint: registers, operations, and what they compute.
//!
//! A channel is programmed with one operation at a time. Fill in its registers, clear
//! [`INTERRUPT`](channel::INTERRUPT) or choose a vector, then write
//! [`OPERATION`](channel::OPERATION): that starts it. It runs in the background, unless
//! [`op::SYNC`] is set: then it has ended when the write returns. Poll
//! [`STATUS`](channel::STATUS) until it is not [`status::RUNNING`], or wait for the interrupt.
//! A write to a channel that runs is dropped, but for [`op::CANCEL`].
//!
//! An operation is carried out in order of addresses, as transactions of at most [`TRANSACTION`]
//! bytes that end at multiples of it; the first that is aborted ends it, and
//! [`DONE`](channel::DONE) and [`FAULT_IOVA`](channel::FAULT_IOVA) say how far it came. Each
//! transaction is translated when its turn comes. Channels run at the same time as each other.
//!
//! While ATS is enabled in the function's ATS capability, it asks for translations, keeps up to 256
//! of them, and sends requests with translated addresses. While its Page Request Interface is
//! enabled, too, an operation in the background asks for a page that is not there and waits up to
//! 10 s for the answer; one with [`op::SYNC`] does not, since who would answer may be who waits.

/// Channels.
pub const CHANNELS: u32 = 16;
/// Bytes from one channel's registers to the next one's.
pub const STRIDE: u64 = 0x80;
/// The most bytes of one operation: 64 MiB.
pub const LIMIT: u32 = 64 << 20;
/// The most bytes of a transaction.
pub const TRANSACTION: u64 = 4096;

/// Registers of a channel; 32 bits unless noted.
pub mod channel {
    /// RW, 64 bits: IOVA that COPY, CHECKSUM and COMPARE read from.
    pub const SOURCE: u64 = 0x00;
    /// RW, 64 bits: IOVA that COPY, FILL and the atomic operations write to.
    pub const TARGET: u64 = 0x08;
    /// RW: bytes, 1 to [`LIMIT`](super::LIMIT); of an atomic operation, 4 or 8.
    pub const LENGTH: u64 = 0x10;
    /// RW: writing it starts the operation, see [`op`](super::op).
    pub const OPERATION: u64 = 0x14;
    /// RW, 64 bits: the pattern's seed for FILL and COMPARE; the operand of an atomic operation.
    pub const OPERAND: u64 = 0x18;
    /// RW, 64 bits: what COMPARE_AND_SWAP expects.
    pub const EXPECTED: u64 = 0x20;
    /// RO, 64 bits: the checksum of COPY, FILL and CHECKSUM; the offset of the first byte at which
    /// COMPARE found a difference, or [`EQUAL`](super::EQUAL); what an atomic operation found.
    pub const RESULT: u64 = 0x28;
    /// RO: see [`status`](super::status).
    pub const STATUS: u64 = 0x30;
    /// RO: why the operation was aborted, see [`reason`](super::reason).
    pub const REASON: u64 = 0x34;
    /// RO, 64 bits: bytes of the transactions that succeeded; of COPY, those written.
    pub const DONE: u64 = 0x38;
    /// RO, 64 bits: IOVA of the transaction that was aborted.
    pub const FAULT_IOVA: u64 = 0x40;
    /// RW: [`INTERRUPT_ON`](super::INTERRUPT_ON) and a vector in \[10:0\]: the operation's end sends
    /// that vector of MSI-X or MSI; with both disabled it raises INTA#.
    pub const INTERRUPT: u64 = 0x48;
    /// RW: PASID that the requests carry, see [`pasid`](super::pasid).
    pub const PASID: u64 = 0x4c;
    /// RO, 64 bits: operations of this channel that have ended since the function was reset.
    pub const ENDED: u64 = 0x50;
}

/// Values of OPERATION.
pub mod op {
    /// Stops what the channel does; its status is [`CANCELLED`](super::status::CANCELLED) then.
    /// Nothing of it is on its way any more when the write returns.
    pub const CANCEL: u32 = 0;
    /// Writes the [pattern](super::pattern).
    pub const FILL: u32 = 1;
    /// Reads and checksums, see [`Checksum`](super::Checksum).
    pub const CHECKSUM: u32 = 2;
    /// Reads from SOURCE and writes to TARGET, and checksums.
    pub const COPY: u32 = 3;
    /// Reads and compares with the [pattern](super::pattern).
    pub const COMPARE: u32 = 4;
    /// Adds OPERAND to the little-endian number at TARGET, atomically.
    pub const FETCH_ADD: u32 = 5;
    /// Exchanges the number at TARGET for OPERAND, atomically.
    pub const SWAP: u32 = 6;
    /// As SWAP if the number is EXPECTED, atomically; else TARGET stays as it is.
    pub const COMPARE_AND_SWAP: u32 = 7;
    /// Flag: the write to OPERATION returns when the operation has ended.
    pub const SYNC: u32 = 1 << 31;
}

/// Values of STATUS.
pub mod status {
    /// Nothing was started since the function was reset.
    pub const IDLE: u32 = 0;
    /// Not ended yet.
    pub const RUNNING: u32 = 1;
    /// Ended well. A COMPARE that found a difference did, too.
    pub const DONE: u32 = 2;
    /// A transaction was aborted.
    pub const ABORTED: u32 = 3;
    /// Not started: no such operation, or a LENGTH, alignment or PASID that is not possible.
    pub const BAD: u32 = 4;
    /// Stopped by CANCEL or by a reset of the function.
    pub const CANCELLED: u32 = 5;
}

/// Values of REASON.
pub mod reason {
    /// Nothing was aborted.
    pub const NONE: u32 = 0;
    /// The IOMMU aborted the transaction.
    pub const IOMMU: u32 = 1;
    /// The IOMMU let it pass, but there is no memory at the address that resulted.
    pub const NO_MEMORY: u32 = 2;
    /// Bus Master Enable is 0.
    pub const NO_BUS_MASTER: u32 = 3;
    /// With ATS: there is no page with these permissions, and page requests are disabled, or were
    /// not answered with success.
    pub const NO_PAGE: u32 = 4;
}

/// Bits of PASID.
pub mod pasid {
    /// The requests carry the PASID in \[19:0\]. Needs a PASID capability that is enabled.
    pub const ON: u32 = 1 << 31;
    /// Privileged Mode Requested.
    pub const PRIVILEGED: u32 = 1 << 30;
    /// Execute Requested.
    pub const EXECUTE: u32 = 1 << 29;
}

/// INTERRUPT: send one.
pub const INTERRUPT_ON: u32 = 1 << 31;
/// RESULT of a COMPARE that found no difference.
pub const EQUAL: u64 = u64::MAX;

/// Word `n` of the pattern with this seed: byte i of the memory that FILL writes is byte i mod 8 of
/// the little-endian word i / 8.
///
/// No two words of a pattern are alike, nor those of two seeds at the same place, so that a page at
/// the wrong address is seen.
pub const fn pattern(seed: u64, n: u64) -> u64 {
    // The finishing steps of splitmix64.
    let mut word = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// Fills `bytes`, which stand at `offset` of the range, with the pattern.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let mut word = [0; 8];
    for (n, byte) in bytes.iter_mut().enumerate() {
        let at = offset.wrapping_add(n as u64);
        if n == 0 || at.is_multiple_of(8) {
            word = pattern(seed, at / 8).to_le_bytes();
        }
        *byte = word[(at % 8) as usize];
    }
}

/// The checksum of COPY, FILL and CHECKSUM: FNV-1a with 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// A checksum that goes on from a [`value`](Self::value).
    pub const fn resumed(value: u64) -> Self {
        Self(value)
    }

    /// Goes on with these bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The checksum so far.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut sum = Self::default();
        sum.add(bytes);
        sum.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_tells_places_and_seeds_apart() {
        let mut words: [u64; 64] = core::array::from_fn(|n| pattern(n as u64 / 32, n as u64 % 32));
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
        let (mut whole, mut part) = ([0; 24], [0; 9]);
        fill(7, 0, &mut whole);
        fill(7, 5, &mut part);
        assert_eq!(whole[5..14], part);
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(Checksum::of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Checksum::of(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
