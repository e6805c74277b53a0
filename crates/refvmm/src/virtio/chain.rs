//! Descriptor chains, read once and checked.

use std::collections::VecDeque;

use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::Broken;

/// A transfer did not happen: the IOMMU aborted it, which is logged, or nothing is at the translated
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// A buffer of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it is, for the device.
    pub(crate) iova: u64,
    /// Its length in bytes.
    pub(crate) len: u32,
}

/// Buffers that are one after the other as far as their contents go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Buffers {
    segments: VecDeque<Segment>,
    len: u64,
}

impl Buffers {
    /// Appends a segment.
    pub(crate) fn push(&mut self, segment: Segment) {
        if segment.len > 0 {
            self.len += u64::from(segment.len);
            self.segments.push_back(segment);
        }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `count` bytes away, or all there are.
    pub(crate) fn take(&mut self, count: u64) -> Self {
        let mut taken = Self::default();
        while taken.len < count
            && let Some(first) = self.segments.front_mut()
        {
            // At most the segment's length, which is a u32.
            let len = (count - taken.len).min(u64::from(first.len)) as u32;
            taken.push(Segment {
                iova: first.iova,
                len,
            });
            // An address that wraps is refused by whoever translates it.
            first.iova = first.iova.wrapping_add(u64::from(len));
            first.len -= len;
            if first.len == 0 {
                self.segments.pop_front();
            }
        }
        self.len -= taken.len;
        taken
    }

    /// Takes the last byte away: where block requests have their status.
    pub(crate) fn take_last(&mut self) -> Option<Self> {
        let mut rest = self.take(self.len.checked_sub(1)?);
        std::mem::swap(self, &mut rest);
        Some(rest)
    }

    /// The memory behind all of it, as far as the requester may access it so.
    pub(crate) fn slices<'m, M: GuestMemory>(
        &self,
        memory: &'m M,
        access: Permissions,
    ) -> Result<Vec<VolatileSlice<'m, BS<'m, M::Bitmap>>>, Fault> {
        let mut slices = Vec::new();
        for segment in &self.segments {
            let pieces = memory
                .get_slices(GuestAddress(segment.iova), segment.len as usize, access)
                .map_err(|_| Fault)?;
            for piece in pieces {
                slices.push(piece.map_err(|_| Fault)?);
            }
        }
        Ok(slices)
    }

    /// Copies as much as there is, and fits, to `data`. Returns how much that is.
    pub(crate) fn read<M: GuestMemory>(
        &self,
        memory: &M,
        mut data: &mut [u8],
    ) -> Result<usize, Fault> {
        let mut done = 0;
        for segment in &self.segments {
            let len = (segment.len as usize).min(data.len());
            let (now, rest) = data.split_at_mut(len);
            memory
                .read_slice(now, GuestAddress(segment.iova))
                .map_err(|_| Fault)?;
            data = rest;
            done += len;
        }
        Ok(done)
    }

    /// Copies as much of `data` as there is room for. Returns how much that is.
    pub(crate) fn write<M: GuestMemory>(
        &self,
        memory: &M,
        mut data: &[u8],
    ) -> Result<usize, Fault> {
        let mut done = 0;
        for segment in &self.segments {
            let (now, rest) = data.split_at((segment.len as usize).min(data.len()));
            memory
                .write_slice(now, GuestAddress(segment.iova))
                .map_err(|_| Fault)?;
            data = rest;
            done += now.len();
        }
        Ok(done)
    }
}

/// What the driver made available at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The descriptor that names it when it is used.
    pub(crate) head: u16,
    /// What the device reads.
    pub(crate) readable: Buffers,
    /// What the device writes.
    pub(crate) writable: Buffers,
}

impl Chain {
    /// Reads all descriptors of a chain, `max` of them at most, which is the queue's size: a driver
    /// must not make a longer one, indirect or not.
    pub(super) fn read<M: GuestMemory>(
        descriptors: virtio_queue::DescriptorChain<&M>,
        max: u16,
    ) -> Result<Self, Broken> {
        let mut chain = Self {
            head: descriptors.head_index(),
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut count = 0;
        let mut more = true;
        for descriptor in descriptors {
            count += 1;
            if count > max {
                return Err(Broken("a descriptor chain is longer than its queue"));
            }
            let segment = Segment {
                iova: descriptor.addr().0,
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(Broken("a buffer to read follows one to write"));
            }
            more = descriptor.has_next();
        }
        if more {
            // The iterator ends without a word at what it can't read or follow.
            return Err(Broken(
                "a descriptor chain is empty, loops, leaves its table or can't be read",
            ));
        }
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(segments: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        for &(iova, len) in segments {
            buffers.push(Segment { iova, len });
        }
        buffers
    }

    #[test]
    fn taking_splits_segments_where_it_must() {
        let mut all = buffers(&[(0x1000, 16), (0x9000, 0), (0x2000, 4), (0x3000, 8)]);
        assert_eq!(all.len(), 28);
        assert_eq!(all.take(10), buffers(&[(0x1000, 10)]));
        assert_eq!(all.take(8), buffers(&[(0x100a, 6), (0x2000, 2)]));
        assert_eq!(all, buffers(&[(0x2002, 2), (0x3000, 8)]));
        assert_eq!(all.take(100), buffers(&[(0x2002, 2), (0x3000, 8)]));
        assert!(all.is_empty() && all.take(1).is_empty());
    }

    #[test]
    fn the_last_byte_is_taken_from_the_end() {
        let mut all = buffers(&[(0x1000, 512), (0x2000, 2)]);
        assert_eq!(all.take_last(), Some(buffers(&[(0x2001, 1)])));
        assert_eq!(all, buffers(&[(0x1000, 512), (0x2000, 1)]));
        assert_eq!(Buffers::default().take_last(), None);
    }
}
