//! The pages that the VMM's own devices write, as live migration needs to know them.
//!
//! KVM logs what the CPUs write. What devices write, through the IOMMU or not, and what the IOMMU
//! itself writes (its logs, completion stores, accessed and dirty bits) is known to [`vm_memory`]
//! alone: every write of it marks the bitmap of its region. [`DirtyPages`] is such a bitmap that
//! costs one load where nobody asked for it, and takes memory only once somebody did.
//!
//! ```
//! use amdvi_vmm_glue::dirty::DirtyPages;
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let ram = GuestMemoryMmap::<DirtyPages>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! let region = ram.iter().next().expect("one region");
//! let log = vm_memory::MmapRegion::bitmap(region);
//! log.start();
//! ram.write_obj(1u64, GuestAddress(0x5000))?;
//! assert_eq!(log.take()[0], 1 << 5);
//! # use vm_memory::GuestMemoryBackend;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes that a bit of the log stands for: KVM's page.
pub const PAGE: usize = 4096;

/// The bitmap of a region of guest RAM, off until it is started.
///
/// [`start`](Self::start) it while no device accesses memory: a write that began before and is marked
/// after would else be seen by nobody.
#[derive(Debug, Default)]
pub struct DirtyPages {
    bytes: usize,
    on: AtomicBool,
    log: OnceLock<AtomicBitmap>,
}

impl DirtyPages {
    /// Begins to log; nothing is dirty yet.
    pub fn start(&self) {
        let log = self.log.get_or_init(|| {
            const SIZE: NonZeroUsize = NonZeroUsize::new(PAGE).expect("it is not 0");
            AtomicBitmap::new(self.bytes, SIZE)
        });
        log.reset();
        self.on.store(true, Ordering::Release);
    }

    /// Ends the log. What was logged and not taken is forgotten.
    pub fn stop(&self) {
        self.on.store(false, Ordering::Release);
    }

    /// The pages written since the start or the last call, one bit each, the first page in bit 0 of
    /// the first word: the layout of `KVM_GET_DIRTY_LOG`. Empty where nothing is logged.
    pub fn take(&self) -> Vec<u64> {
        self.active()
            .map(AtomicBitmap::get_and_reset)
            .unwrap_or_default()
    }

    fn active(&self) -> Option<&AtomicBitmap> {
        if self.on.load(Ordering::Acquire) {
            self.log.get()
        } else {
            None
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(log) = self.active() {
            log.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.active().is_some_and(|log| log.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyPages {
    fn with_len(len: usize) -> Self {
        Self {
            bytes: len,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_logged_before_the_start_and_after_the_end() {
        let pages = DirtyPages::with_len(0x10_0000);
        pages.mark_dirty(0, 1);
        assert!(pages.take().is_empty() && !pages.dirty_at(0));
        pages.start();
        assert_eq!(pages.take(), [0; 4]);
        pages.mark_dirty(0x1fff, 2);
        pages.slice_at(0x8_0000).mark_dirty(0x1000, 0x1000);
        assert!(pages.dirty_at(0x2000) && !pages.dirty_at(0x3000));
        assert_eq!(pages.take(), [0b110, 0, 1 << 1, 0]);
        assert_eq!(pages.take(), [0; 4]);
        pages.mark_dirty(0, 1);
        pages.stop();
        pages.mark_dirty(0, 1);
        assert!(pages.take().is_empty());
        pages.start();
        assert_eq!(pages.take(), [0; 4], "a new log begins empty");
    }

    #[test]
    fn a_mark_behind_the_end_is_ignored() {
        let pages = DirtyPages::with_len(0x1800);
        pages.start();
        pages.mark_dirty(0x1000, usize::MAX);
        assert_eq!(pages.take(), [0b10]);
    }
}
