//! The test endpoint: a PCI Express function that sends any interrupt it is told to, and does DMA.
//!
//! Shared by its drivers, in the bare-metal guest and in Linux's userspace, and by the model in the
//! VMM. It has vendor and device ID [`VENDOR_ID`] and [`DEVICE_ID`] and class FF0000h, which no
//! driver of an operating system binds.
//!
//! | BAR | size | content |
//! | --- | --- | --- |
//! | 0 | [`BAR0_SIZE`] | registers ([`reg`]), DMA buffer, DMA [channels](dma), counters of vectors |
//! | 2 | 16 bytes for each vector, 4 KiB or more | MSI-X table; [`BAR2_SIZE`] with 2048 vectors |
//! | 4 | [`BAR4_SIZE`] | MSI-X pending bits |
//!
//! The BARs are 32-bit memory BARs, or 64-bit ones if the machine was built with `bar64=on`.
//! Capabilities: PCI Express (root complex integrated endpoint, Function Level Reset), MSI (up to 32
//! vectors, maskable), MSI-X, and INTA#. Registers are little-endian and take aligned accesses of 4
//! or 8 bytes; a 64-bit register can be written in two halves, low half first. Everything but
//! reading registers needs Bus Master Enable in the Command register, as on any function: without
//! it messages are [`outcome::MASKED`] and DMA is aborted.

pub mod dma;

/// PCI vendor ID.
pub const VENDOR_ID: u16 = 0x1af5;
/// PCI device ID.
pub const DEVICE_ID: u16 = 0x2048;
/// Vectors of its MSI-X table, unless the machine was built with fewer: see [`reg::VECTORS`].
pub const VECTORS: u16 = 2048;
/// Vectors of its MSI capability.
pub const MSI_VECTORS: u16 = 32;
/// Size of BAR 0.
pub const BAR0_SIZE: u32 = 0x8000;
/// Size of BAR 2, the MSI-X table, with [`VECTORS`] vectors.
pub const BAR2_SIZE: u32 = 0x8000;
/// Size of BAR 4: the MSI-X pending bits.
pub const BAR4_SIZE: u32 = 0x1000;

/// BAR 0 registers; 32 bits unless noted.
pub mod reg {
    /// RO: [`super::ID_VALUE`].
    pub const ID: u64 = 0x00;
    /// W: sends the message of this vector: the MSI-X one if MSI-X is enabled, else the MSI one if MSI
    /// is enabled, else none. A vector that is masked becomes pending.
    pub const FIRE: u64 = 0x04;
    /// RW: first vector of a range.
    pub const FIRE_START: u64 = 0x08;
    /// W: sends that many vectors from `FIRE_START` on, in order; RW otherwise.
    pub const FIRE_COUNT: u64 = 0x0c;
    /// RW, 64 bits: address of a raw interrupt message.
    pub const RAW_ADDRESS: u64 = 0x10;
    /// W: sends the raw interrupt message (`RAW_ADDRESS`, this value) as the endpoint's own.
    pub const RAW_DATA: u64 = 0x18;
    /// RO: outcome of the last message, see [`super::outcome`].
    pub const OUTCOME: u64 = 0x1c;
    /// RO, 64 bits: messages that left the IOMMU as interrupts since `RESET_STATS`.
    pub const DELIVERED: u64 = 0x20;
    /// RO, 64 bits: messages that the IOMMU blocked since `RESET_STATS`.
    pub const BLOCKED: u64 = 0x28;
    /// RO, 64 bits: host nanoseconds spent in remapping and injecting since `RESET_STATS`.
    pub const NANOS: u64 = 0x30;
    /// W: any value clears the recorder and every counter of messages: `DELIVERED`, `BLOCKED`,
    /// `NANOS`, `SENT`, `HELD_BACK`, and those of each vector.
    pub const RESET_STATS: u64 = 0x38;
    /// RW: 1 starts a background stream of the vectors of the range, round robin; 0 stops it and
    /// returns when the last message of the stream is delivered.
    pub const STORM: u64 = 0x40;
    /// RO, 64 bits: messages sent by the stream since it was started.
    pub const STORM_SENT: u64 = 0x48;
    /// RW, 64 bits: IOVA of a DMA transfer.
    pub const DMA_IOVA: u64 = 0x50;
    /// RW: bytes of a DMA transfer, at most [`super::DMA_BUFFER_SIZE`].
    pub const DMA_LENGTH: u64 = 0x58;
    /// W: 1 copies memory to the buffer, 2 the buffer to memory.
    pub const DMA_COMMAND: u64 = 0x5c;
    /// RO: 0 idle, 1 done, 2 aborted: by the IOMMU, because nothing is at the address, or because bus
    /// mastering is off.
    pub const DMA_STATUS: u64 = 0x60;
    /// RW: DeviceID that DMA_COMMAND's transfers carry, as behind a bridge that was renumbered; the
    /// function's own after reset.
    pub const DMA_REQUESTER: u64 = 0x64;
    /// RW: 1 starts a background stream of DMA writes into the `DMA_STORM_BYTES` at `DMA_IOVA`;
    /// 0 stops it and returns when its last write has ended. Write n, from 1 on, stores the 64-bit
    /// number n where [`super::storm_offset`] says.
    pub const DMA_STORM: u64 = 0x68;
    /// RW: bytes of the range of the DMA stream, whole pages.
    pub const DMA_STORM_BYTES: u64 = 0x6c;
    /// RO, 64 bits: writes of the DMA stream that have ended since it was started, in order.
    pub const DMA_STORM_SENT: u64 = 0x70;
    /// RO, 64 bits: those of them that were aborted.
    pub const DMA_STORM_ABORTED: u64 = 0x78;
    /// RO, 64 bits: interrupts recorded since `RESET_STATS`, of every source in the machine.
    pub const RECORDED: u64 = 0x80;
    /// RO, 64 bits: messages that went to the IOMMU since `RESET_STATS`: delivered, blocked, or
    /// posted to a guest virtual APIC.
    pub const SENT: u64 = 0x88;
    /// W: sets the level of an IOAPIC pin, of any in the machine: pin in \[15:8\], level in bit 0.
    pub const PIN: u64 = 0x90;
    /// RO, 64 bits: requests since `RESET_STATS` that sent nothing because MSI and MSI-X were
    /// disabled, or the vector masked, or bus mastering was off.
    pub const HELD_BACK: u64 = 0x98;
    /// W: asks the VMM for something, see [`super::vmm`]; done when the write returns.
    pub const VMM_COMMAND: u64 = 0xa0;
    /// RO: 0 when the last VMM command succeeded.
    pub const VMM_STATUS: u64 = 0xa4;
    /// RO: vectors of the MSI-X table.
    pub const VECTORS: u64 = 0xa8;
    /// RO: what this endpoint was built with, see [`super::feature`].
    pub const FEATURES: u64 = 0xac;
    /// RW: bit 0 is the interrupt condition of INTA#, which Status\[3\] (Interrupt Status) shows;
    /// the line is asserted while it is 1 and Command\[10\] (Interrupt Disable) is 0. Write 1 to
    /// raise it, 0 to clear it. Bit 1, RO: the line is asserted.
    pub const INTX: u64 = 0xb0;
    /// RO: DMA channels; see [`super::dma`].
    pub const DMA_CHANNELS: u64 = 0xb4;
    /// RO: the most bytes that a DMA channel moves at once.
    pub const DMA_LIMIT: u64 = 0xb8;
    /// RO, 64 bits: translations in the function's TLB (ATS).
    pub const TLB_ENTRIES: u64 = 0xc0;
    /// RO, 64 bits: accesses since the machine started whose translation was found there.
    pub const TLB_HITS: u64 = 0xc8;
    /// RO, 64 bits: invalidations of the TLB that the IOMMU has asked for since then.
    pub const TLB_INVALIDATIONS: u64 = 0xd0;
    /// RO, 64 bits: page requests (PRI) since then, repeated ones included.
    pub const PAGE_REQUESTS: u64 = 0xd8;
    /// RO, 64 bits: page requests since then that software has answered.
    pub const PAGE_RESPONSES: u64 = 0xe0;
    /// RO, 64 bits: tables of routes that the VMM has given to KVM since the machine started, for all
    /// functions and for the IOAPIC. 0 where it has none, here and in the next two.
    pub const ROUTE_COMMITS: u64 = 0xe8;
    /// RO, 64 bits: times since then that interrupt tables of functions with routes changed:
    /// COMPLETION_WAITs behind an invalidation, and register writes that change what tables mean.
    pub const ROUTE_CHANGES: u64 = 0xf0;
    /// RO, 64 bits: interrupts since then that KVM delivered by a route, without the IOMMU.
    pub const ROUTED: u64 = 0xf8;
    /// RW: 1 makes the TLB deaf: it counts invalidations, but carries none out and answers none.
    pub const TLB_MUTE: u64 = 0x7f8;
    /// RO, 64 bits each: the last [`super::RECORDS`] interrupts, see [`super::Record`];
    /// interrupt n stands at `RECORD_0 + 8·(n mod RECORDS)`.
    pub const RECORD_0: u64 = 0x100;
    /// RW: the DMA buffer.
    pub const DMA_BUFFER: u64 = 0x800;
    /// RW: the first DMA channel; channel n stands [`super::dma::STRIDE`]·n behind it.
    pub const DMA_CHANNEL_0: u64 = 0x1000;
    /// RO, 32 bits each: messages of vector n that went to the IOMMU since `RESET_STATS`, at
    /// `VECTOR_SENT + 4·n`. Vectors of MSI and of MSI-X count alike; raw messages do not.
    pub const VECTOR_SENT: u64 = 0x2000;
    /// RO, 32 bits each: those of them that left it as an interrupt.
    pub const VECTOR_DELIVERED: u64 = 0x4000;
}

/// Value of the ID register: the device in the upper half, the revision of this interface in the
/// lower.
pub const ID_VALUE: u32 = 0x2048_0003;
/// Bytes of the DMA buffer.
pub const DMA_BUFFER_SIZE: u32 = 0x800;
/// 64-bit words at the start of each page that the DMA stream writes: few, so that a guest can
/// look at all of them.
pub const STORM_WORDS: u64 = 32;

/// Where in a range of `pages` 4 KiB pages write `n` (from 1) of the DMA stream goes; 0 for an
/// empty range.
///
/// Each page of the range has its turn, one of its words after the other.
pub const fn storm_offset(n: u64, pages: u64) -> u64 {
    let n = n.wrapping_sub(1);
    match (n.checked_rem(pages), n.checked_div(pages)) {
        (Some(page), Some(turn)) => 4096 * page + 8 * (turn % STORM_WORDS),
        _ => 0,
    }
}

/// Interrupts that the recorder keeps.
pub const RECORDS: u64 = 32;

/// Bits of the FEATURES register.
pub mod feature {
    /// It has an MSI capability.
    pub const MSI: u32 = 1 << 0;
    /// It has an interrupt pin.
    pub const INTX: u32 = 1 << 1;
    /// It has a PASID capability.
    pub const PASID: u32 = 1 << 2;
    /// It has an ATS capability.
    pub const ATS: u32 = 1 << 3;
    /// It has a PRI capability.
    pub const PRI: u32 = 1 << 4;
    /// Its vectors can be delivered by routes of KVM that the VMM keeps in step with the tables.
    pub const IRQFD: u32 = 1 << 5;
}

/// Values of the OUTCOME register.
pub mod outcome {
    /// Nothing sent since reset.
    pub const NONE: u32 = 0;
    /// Left the IOMMU as an interrupt.
    pub const DELIVERED: u32 = 1;
    /// Target abort: blocked by the IOMMU.
    pub const BLOCKED: u32 = 2;
    /// Not sent: MSI-X and MSI disabled, function or vector masked, or bus mastering off.
    pub const MASKED: u32 = 3;
    /// Posted to a guest virtual APIC.
    pub const POSTED: u32 = 4;
}

/// Values of the VMM_COMMAND register.
pub mod vmm {
    /// Saves the IOMMU's state, builds a new device and restores the state into it.
    pub const SAVE_RESTORE: u32 = 1;
    /// Resets the IOMMU as a platform reset does.
    pub const RESET: u32 = 2;
}

/// One recorded interrupt, as RECORD_n holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Destination.
    pub dest: u32,
    /// Vector.
    pub vector: u8,
    /// Delivery mode, three bits as in MSI data\[10:8\].
    pub delivery_mode: u8,
    /// Destination mode: logical.
    pub logical: bool,
    /// Trigger mode: level.
    pub level: bool,
    /// IRTE.RqEoi.
    pub rq_eoi: bool,
}

impl Record {
    /// The register's value: destination \[31:0\], vector \[39:32\], delivery mode \[42:40\],
    /// logical 43, level 44, RqEoi 45, valid 63.
    pub const fn into_bits(self) -> u64 {
        self.dest as u64
            | (self.vector as u64) << 32
            | (self.delivery_mode as u64 & 7) << 40
            | (self.logical as u64) << 43
            | (self.level as u64) << 44
            | (self.rq_eoi as u64) << 45
            | 1 << 63
    }

    /// Decodes a register value; `None` when nothing is recorded there.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits >> 63 == 0 {
            return None;
        }
        Some(Self {
            dest: bits as u32,
            vector: (bits >> 32) as u8,
            delivery_mode: (bits >> 40) as u8 & 7,
            logical: bits >> 43 & 1 == 1,
            level: bits >> 44 & 1 == 1,
            rq_eoi: bits >> 45 & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dma_stream_visits_each_page_in_turn_and_each_of_its_words() {
        let offsets: [u64; 6] = core::array::from_fn(|n| storm_offset(n as u64 + 1, 4));
        assert_eq!(offsets, [0, 0x1000, 0x2000, 0x3000, 8, 0x1008]);
        let last = 4 * STORM_WORDS;
        assert_eq!(storm_offset(last, 4), 0x3000 + 8 * (STORM_WORDS - 1));
        assert_eq!(storm_offset(last + 1, 4), 0);
        assert_eq!(storm_offset(7, 0), 0);
    }
}
