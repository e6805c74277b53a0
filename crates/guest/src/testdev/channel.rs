//! The endpoint's DMA channels: one operation at a time, at once or in the background.

use super::TestDevice;
use crate::endpoint::dma::{STRIDE, channel, op, status};
use crate::endpoint::reg;
use crate::platform::Platform;

/// What a channel is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// One of [`op`], without [`op::SYNC`]; no COPY.
    pub code: u32,
    /// Where it reads, or where it writes.
    pub iova: u64,
    /// Bytes.
    pub length: u32,
    /// The pattern's seed, or the operand.
    pub operand: u64,
    /// The PASID register, see [`crate::endpoint::dma::pasid`].
    pub pasid: u32,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// See [`status`].
    pub status: u32,
    /// See [`crate::endpoint::dma::reason`].
    pub reason: u32,
    /// The RESULT register.
    pub result: u64,
    /// Bytes of the transactions that succeeded.
    pub done: u64,
    /// IOVA of the transaction that was aborted.
    pub fault_iova: u64,
}

const fn at(n: u32, register: u64) -> u64 {
    reg::DMA_CHANNEL_0 + STRIDE * n as u64 + register
}

impl TestDevice {
    /// Carries out an operation by channel 0.
    pub fn operate<P: Platform + ?Sized>(&self, p: &mut P, operation: &Operation) -> Ended {
        self.program(p, 0, operation, op::SYNC);
        self.ended(p, 0)
    }

    /// Begins an operation in the background.
    pub fn begin<P: Platform + ?Sized>(&self, p: &mut P, n: u32, operation: &Operation) {
        self.program(p, n, operation, 0);
    }

    fn program<P: Platform + ?Sized>(&self, p: &mut P, n: u32, operation: &Operation, flags: u32) {
        let Operation {
            code,
            iova,
            length,
            operand,
            pasid,
        } = *operation;
        let register = match code {
            op::CHECKSUM | op::COMPARE => channel::SOURCE,
            _ => channel::TARGET,
        };
        self.write64(p, at(n, register), iova);
        self.write64(p, at(n, channel::OPERAND), operand);
        // Two registers each, the lower one first: no interrupt, PASID; length, operation.
        self.write64(p, at(n, channel::INTERRUPT), u64::from(pasid) << 32);
        let start = u64::from(code | flags) << 32 | u64::from(length);
        self.write64(p, at(n, channel::LENGTH), start);
    }

    /// Whether the channel's operation has ended.
    pub fn has_ended<P: Platform + ?Sized>(&self, p: &mut P, n: u32) -> bool {
        self.read(p, at(n, channel::STATUS)) != status::RUNNING
    }

    /// Stops what a channel does.
    pub fn cancel<P: Platform + ?Sized>(&self, p: &mut P, n: u32) {
        self.write(p, at(n, channel::OPERATION), op::CANCEL);
    }

    /// What became of a channel's operation.
    pub fn ended<P: Platform + ?Sized>(&self, p: &mut P, n: u32) -> Ended {
        let both = self.read64(p, at(n, channel::STATUS));
        let mut ended = Ended {
            status: both as u32,
            reason: (both >> 32) as u32,
            result: self.read64(p, at(n, channel::RESULT)),
            done: 0,
            fault_iova: 0,
        };
        if ended.status != status::DONE {
            ended.done = self.read64(p, at(n, channel::DONE));
            ended.fault_iova = self.read64(p, at(n, channel::FAULT_IOVA));
        }
        ended
    }
}
