//! One operation, transaction by transaction.

use std::sync::atomic::Ordering;

use amdvi_dma::Pasid;
use amdvi_guest::endpoint::dma::{Checksum, EQUAL, LIMIT, TRANSACTION, fill, op, pasid, status};

use super::super::dma::{Aborted, AddressSpace, Atomic, Interruption};
use super::super::tlb::Enabled;
use super::{Channel, Outcome, Program, Progress};
use crate::board::snapshot::Hex;

impl Program {
    fn code(&self) -> u32 {
        self.operation & !op::SYNC
    }

    pub(super) fn is_atomic(&self) -> bool {
        matches!(self.code(), op::FETCH_ADD | op::SWAP | op::COMPARE_AND_SWAP)
    }

    fn reads(&self) -> bool {
        matches!(self.code(), op::CHECKSUM | op::COPY | op::COMPARE)
    }

    fn writes(&self) -> bool {
        matches!(self.code(), op::FILL | op::COPY)
    }

    /// Where the addresses are; only what runs in the background waits for pages.
    pub(super) fn space<'a>(&self, channel: &'a Channel) -> AddressSpace<'a> {
        let pasid = (self.pasid & pasid::ON != 0)
            .then(|| Pasid::new(self.pasid & Pasid::MAX))
            .flatten();
        AddressSpace {
            pasid: pasid.map(|pasid| {
                pasid
                    .with_execute(self.pasid & pasid::EXECUTE != 0)
                    .with_privileged(self.pasid & pasid::PRIVILEGED != 0)
            }),
            wait: (self.operation & op::SYNC == 0).then_some(Interruption {
                cancel: &channel.cancel,
                suspend: &channel.suspend,
            }),
        }
    }

    /// The status of an operation that is not possible.
    pub(super) fn problem(&self, enabled: Enabled) -> Option<u32> {
        let length = u64::from(self.length);
        let possible = if self.is_atomic() {
            matches!(length, 4 | 8) && self.target.is_multiple_of(length)
        } else {
            self.reads() || self.writes()
        };
        let in_range = (1..=LIMIT).contains(&self.length)
            && (!self.reads() || self.source.checked_add(length - 1).is_some())
            && (!self.writes() || self.target.checked_add(length - 1).is_some());
        // A bit of the prefix that is not enabled must not be sent.
        let may = |bit, enabled| enabled || self.pasid & bit == 0;
        let pasid = self.pasid & pasid::ON == 0
            || enabled.pasid
                && may(pasid::EXECUTE, enabled.execute)
                && may(pasid::PRIVILEGED, enabled.privileged);
        let bad = !possible || !in_range || !pasid;
        bad.then_some(status::BAD)
    }
}

/// An operation that is carried out.
pub(super) struct Run<'a> {
    pub(super) channel: &'a Channel,
    pub(super) program: &'a Program,
    pub(super) checksum: Checksum,
    pub(super) buffer: Box<[u8; TRANSACTION as usize]>,
    pub(super) expected: Box<[u8; TRANSACTION as usize]>,
    pub(super) difference: u64,
    /// `buffer` has what the transaction reads.
    pub(super) read: bool,
}

impl Run<'_> {
    /// Where it is, before the transaction that begins `done` bytes from the start or in the middle
    /// of it.
    pub(super) fn progress(&self, done: u64) -> Progress {
        let read = || Hex(self.buffer[..self.next(done)].to_vec());
        Progress {
            program: *self.program,
            done,
            checksum: self.checksum.value(),
            difference: self.difference,
            read: self.read.then(read),
        }
    }

    /// Bytes of the transaction that begins `done` bytes from the start.
    pub(super) fn next(&self, done: u64) -> usize {
        let room = |iova: u64| TRANSACTION - iova.wrapping_add(done) % TRANSACTION;
        let mut len = u64::from(self.program.length) - done;
        if self.program.reads() {
            len = len.min(room(self.program.source));
        }
        if self.program.writes() {
            len = len.min(room(self.program.target));
        }
        // At most TRANSACTION.
        len as usize
    }

    pub(super) fn transaction(&mut self, done: u64, len: usize) -> Result<(), (u64, Aborted)> {
        let dma = self.channel.dma();
        let space = self.program.space(self.channel);
        let data = &mut self.buffer[..len];
        let (source, target) = (
            self.program.source.wrapping_add(done),
            self.program.target.wrapping_add(done),
        );
        if self.read {
            // Of a copy that was suspended: what it read may be overwritten by now.
        } else if self.program.reads() {
            dma.read(space, source, data)
                .map_err(|aborted| (source, aborted))?;
            self.read = true;
        } else {
            fill(self.program.operand, done, data);
        }
        if self.program.writes() {
            dma.write(space, target, data)
                .map_err(|aborted| (target, aborted))?;
        }
        self.read = false;
        if self.program.code() != op::COMPARE {
            self.checksum.add(data);
        } else if self.difference == EQUAL {
            let expected = &mut self.expected[..len];
            fill(self.program.operand, done, expected);
            let different = data.iter().zip(expected.iter()).position(|(a, b)| a != b);
            if let Some(at) = different {
                self.difference = done + at as u64;
            }
        }
        Ok(())
    }

    pub(super) fn outcome(&self, status: u32) -> Outcome {
        Outcome {
            status,
            result: if self.program.code() == op::COMPARE {
                self.difference
            } else {
                self.checksum.value()
            },
            ..Outcome::default()
        }
    }

    /// What an atomic operation found.
    pub(super) fn atomic(&self) -> Result<u64, Aborted> {
        let program = self.program;
        let atomic = Atomic {
            operation: program.code(),
            operand: program.operand,
            expected: program.expected,
        };
        // 4 or 8.
        let len = program.length as usize;
        let space = program.space(self.channel);
        self.channel
            .dma()
            .atomic(space, program.target, len, atomic)
    }

    pub(super) fn atomic_outcome(&self, found: Result<u64, Aborted>) -> Outcome {
        let program = self.program;
        match found {
            Ok(found) => {
                self.channel
                    .done
                    .store(program.length.into(), Ordering::Release);
                Outcome {
                    status: status::DONE,
                    result: found,
                    ..Outcome::default()
                }
            }
            Err(aborted) => Outcome {
                status: status::ABORTED,
                reason: aborted.reason(),
                fault_iova: program.target,
                ..Outcome::default()
            },
        }
    }
}
