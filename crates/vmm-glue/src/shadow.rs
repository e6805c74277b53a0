//! A copy of a function's DMA mappings in the host's IOMMU: what passes a real device through behind
//! the emulated one.
//!
//! A [`Shadow`] is an [`Observer`] of the emulated IOMMU. Whenever the guest completes an
//! invalidation it compares what it has mapped with what the guest's tables say, and tells a
//! [`MapTarget`] (a VFIO container, an iommufd address space) the difference.
//!
//! ```
//! use std::sync::Arc;
//! use amdvi_device::{Iommu, Options, Permissions};
//! use amdvi_regs::DeviceId;
//! use amdvi_vmm_glue::shadow::{Limits, MapTarget, Shadow};
//!
//! /// What the ioctls VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA would do.
//! struct Container;
//! impl MapTarget for Container {
//!     type Error = std::io::Error;
//!     fn map(&mut self, iova: u64, gpa: u64, len: u64, permissions: Permissions) -> std::io::Result<()> {
//!         // Find the RAM in gpa..gpa + len and map its host addresses; what is no RAM stays away.
//!         # let _ = (iova, gpa, len, permissions);
//!         Ok(())
//!     }
//!     fn unmap(&mut self, iova: u64, len: u64) {
//!         // Unmap whatever of it was mapped. When this returns the device can't reach it any more.
//!         # let _ = (iova, len);
//!     }
//! }
//!
//! # use amdvi_device::testing::{TestHost, TestMemory};
//! # let (memory, host) = (Arc::new(TestMemory::new(0x1000)), Arc::new(TestHost::default()));
//! // A guest tells of new mappings only if NpCache asks it to.
//! let options: Options = "amd-iommu,np-cache=on".parse()?;
//! let iommu = Iommu::new(&options, memory, host);
//! let nic = DeviceId::new(0, 5, 0);
//! // The addresses that the host's IOMMU translates, as VFIO_IOMMU_GET_INFO reports them.
//! let window = 0..=(1 << 48) - 1;
//! let shadow = Shadow::attach(&iommu, nic, window, Limits::default(), Container)?;
//! // From here on it follows by itself. What the guest can't have is told here:
//! assert!(shadow.take_problem().is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What holds
//!
//! - When the store of a COMPLETION_WAIT is visible, every mapping that was invalidated before is gone
//!   from the target, and what stands in the tables instead is there.
//! - Nothing is in the target that the guest's tables did not say, in its permissions, at the last
//!   invalidation or later.
//! - A mapping that has not changed is not touched: DMA through it goes on meanwhile.
//! - The target is given one mapping for each of the guest's pages, whatever their size, and each is
//!   unmapped as it was mapped: VFIO and iommufd refuse to unmap a part.
//! - Work and memory per invalidation are bounded ([`Limits`]). A guest whose tables exceed the limits
//!   has no mappings at all until they don't, and [`Shadow::take_problem`] tells why.
//!
//! Where the guest's device is not translated (identity domain, IommuEn=0) the mappings are a few huge
//! ranges whose GPA is the IOVA; the target maps the RAM in them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use amdvi_device::{AddressSpace, Changes, Invalidated, Iommu, Mapping, Observer, Permissions};
use amdvi_regs::DeviceId;

const PAGE: u64 = 0x1000;

/// Where mappings go: the host's side of a passed-through device.
///
/// Called with a lock of the [`Shadow`] held, from the thread that runs the guest's command or writes
/// its register: it must not access the shadow or the emulated IOMMU.
pub trait MapTarget: Send {
    /// Why a range can't be mapped.
    type Error: Error + Send + 'static;

    /// Lets the device access `len` bytes at `iova`, which are at guest physical address `gpa`.
    ///
    /// All three are multiples of 4 KiB, and nothing in the range is mapped. `gpa` is what a guest has
    /// written: there may be RAM behind all of it, some of it, or none. Map what is RAM.
    ///
    /// # Errors
    ///
    /// If the host refuses; then nothing of the range may stay mapped. It is tried again when the
    /// guest invalidates the range.
    fn map(
        &mut self,
        iova: u64,
        gpa: u64,
        len: u64,
        permissions: Permissions,
    ) -> Result<(), Self::Error>;

    /// Takes away what one [`map`](Self::map) made, with the same `iova` and `len`.
    ///
    /// It can't fail: the guest is going to give that memory to somebody else. If the host refuses,
    /// stop the device.
    fn unmap(&mut self, iova: u64, len: u64);
}

/// Bounds for what a guest can make a [`Shadow`] do and keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most mappings at a time (about 64 bytes each here, more in the host). The default is
    /// 65,535, as many as VFIO allows by default (`dma_entry_limit`).
    pub mappings: usize,
    /// The most loads from the guest's tables for one notification. The default, 2^22, is enough to
    /// read 16 GiB of 4 KiB pages and takes a few hundredths of a second.
    pub loads: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mappings: 65_535,
            loads: 1 << 22,
        }
    }
}

/// Why a [`Shadow`] can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The guest is not told to invalidate when it adds a mapping.
    #[error(
        "passing a device through needs np-cache=on, or the guest does not tell of new mappings: \
         write amd-iommu,np-cache=on"
    )]
    NpCacheOff,
    /// The window is empty or not made of whole pages.
    #[error(
        "the DMA window {first:#x}–{last:#x} is not made of whole pages: its start and its end + 1 \
         must be multiples of 0x1000"
    )]
    Window {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
    },
}

/// Why a part of the guest's mappings is missing in the target.
#[derive(Debug, thiserror::Error)]
pub enum Problem<E: Error + 'static> {
    /// More mappings than [`Limits::mappings`]; nothing is mapped now.
    #[error("the guest maps more than {limit} pages; none is mapped for the device now")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// [`Limits::loads`] did not suffice to read the tables; nothing is mapped now.
    #[error(
        "the guest's tables take more than {limit} loads; nothing is mapped for the device now"
    )]
    TooManyLoads {
        /// The limit.
        limit: u64,
    },
    /// The host refuses a mapping; the others stand.
    #[error("the host does not map {len:#x} bytes at IOVA {iova:#x}")]
    Refused {
        /// The first IOVA.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Why.
        source: E,
    },
}

/// Keeps a [`MapTarget`] at what the guest maps for one function.
pub struct Shadow<T: MapTarget> {
    iommu: Weak<Iommu>,
    window: RangeInclusive<u64>,
    limits: Limits,
    inner: Mutex<Inner<T>>,
}

struct Inner<T: MapTarget> {
    target: T,
    device_id: DeviceId,
    /// What the DTE said when it was last invalidated; `None` once detached.
    space: Option<AddressSpace>,
    /// What the target has, by first IOVA; none overlaps another.
    mapped: BTreeMap<u64, Mapping>,
    /// Nothing is mapped because a limit was exceeded.
    given_up: bool,
    problem: Option<Problem<T::Error>>,
}

impl<T: MapTarget + 'static> Shadow<T> {
    /// Maps for `target` what the guest maps for the function `device_id`, and follows from there.
    /// `window` is what the target can map; mappings outside it are left out, so the device faults
    /// there.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the guest isn't asked to tell of new mappings, or for a window that is not
    /// made of pages.
    pub fn attach(
        iommu: &Arc<Iommu>,
        device_id: DeviceId,
        window: RangeInclusive<u64>,
        limits: Limits,
        target: T,
    ) -> Result<Arc<Self>, AttachError> {
        let (first, last) = (*window.start(), *window.end());
        if first > last || first % PAGE != 0 || last % PAGE != PAGE - 1 {
            return Err(AttachError::Window { first, last });
        }
        if !iommu.np_cache() {
            return Err(AttachError::NpCacheOff);
        }
        let shadow = Arc::new(Self {
            iommu: Arc::downgrade(iommu),
            window,
            limits,
            inner: Mutex::new(Inner {
                target,
                device_id,
                space: None,
                mapped: BTreeMap::new(),
                given_up: false,
                problem: None,
            }),
        });
        // Who hears of a change meanwhile waits for the lock, and looks again.
        let mut inner = shadow.lock();
        iommu.add_observer(shadow.clone());
        shadow.replay(&mut inner, iommu);
        drop(inner);
        Ok(shadow)
    }

    /// Unmaps everything and stops following.
    pub fn detach(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.unmap_all();
        inner.space = None;
        drop(inner);
        if let Some(iommu) = self.iommu.upgrade() {
            let me: Arc<dyn Observer> = self.clone();
            iommu.remove_observer(&me);
        }
    }

    /// Follows another DeviceID: the function's bus was renumbered.
    pub fn set_device_id(&self, device_id: DeviceId) {
        let mut inner = self.lock();
        inner.device_id = device_id;
        if inner.space.is_some()
            && let Some(iommu) = self.iommu.upgrade()
        {
            self.replay(&mut inner, &iommu);
        }
    }

    /// The latest reason why a part of the guest's mappings is missing, once.
    pub fn take_problem(&self) -> Option<Problem<T::Error>> {
        self.lock().problem.take()
    }

    /// How many mappings the target has.
    pub fn len(&self) -> usize {
        self.lock().mapped.len()
    }

    /// Whether the target has no mappings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the target to `use_target`, between two changes of its mappings.
    pub fn with_target<R>(&self, use_target: impl FnOnce(&mut T) -> R) -> R {
        use_target(&mut self.lock().target)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // A target that panicked has left its mapping undone, which a later invalidation repairs.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at everything.
    fn replay(&self, inner: &mut Inner<T>, iommu: &Iommu) {
        inner.space = Some(iommu.address_space(inner.device_id));
        let mut loads = self.limits.loads;
        self.refresh(inner, iommu, 0, u64::MAX, &mut loads);
    }

    /// Makes the target equal to the guest's tables from `first` to `last`, with at most `loads` loads.
    fn refresh(&self, inner: &mut Inner<T>, iommu: &Iommu, first: u64, last: u64, loads: &mut u64) {
        let Some(space) = inner.space else { return };
        let (mut first, mut last) = if inner.given_up {
            (*self.window.start(), *self.window.end())
        } else {
            (
                first.max(*self.window.start()),
                last.min(*self.window.end()),
            )
        };
        if first > last {
            return;
        }
        // A mapping that overlaps goes as a whole, so look at all of it.
        if let Some(mapping) = inner.at_or_before(first).filter(|m| m.last() >= first) {
            first = mapping.iova;
        }
        if let Some(mapping) = inner.at_or_before(last) {
            last = last.max(mapping.last());
        }

        let before: Vec<Mapping> = inner.mapped.range(first..=last).map(|(_, m)| *m).collect();
        let room = self.limits.mappings - (inner.mapped.len() - before.len());
        let mut mappings = iommu.mappings(&space, first..=last, *loads);
        let now: Vec<Mapping> = mappings.by_ref().take(room + 1).collect();
        *loads = loads.saturating_sub(mappings.loads());
        let problem = if now.len() > room {
            Some(Problem::TooManyMappings {
                limit: self.limits.mappings,
            })
        } else {
            mappings.rest().map(|_| Problem::TooManyLoads {
                limit: self.limits.loads,
            })
        };
        inner.given_up = problem.is_some();
        if inner.given_up {
            inner.problem = problem;
            inner.unmap_all();
            return;
        }

        let same = |list: &[Mapping], mapping: &Mapping| {
            list.binary_search_by_key(&mapping.iova, |m| m.iova)
                .is_ok_and(|n| list[n] == *mapping)
        };
        for mapping in before.iter().filter(|mapping| !same(&now, mapping)) {
            inner.mapped.remove(&mapping.iova);
            inner.target.unmap(mapping.iova, mapping.len);
        }
        for mapping in now.iter().filter(|mapping| !same(&before, mapping)) {
            let &Mapping {
                iova,
                gpa,
                len,
                permissions,
            } = mapping;
            match inner.target.map(iova, gpa, len, permissions) {
                Ok(()) => {
                    inner.mapped.insert(iova, *mapping);
                }
                Err(source) => inner.problem = Some(Problem::Refused { iova, len, source }),
            }
        }
    }
}

impl<T: MapTarget> Inner<T> {
    fn at_or_before(&self, iova: u64) -> Option<Mapping> {
        let (_, mapping) = self.mapped.range(..=iova).next_back()?;
        Some(*mapping)
    }

    fn unmap_all(&mut self) {
        while let Some((_, mapping)) = self.mapped.pop_first() {
            self.target.unmap(mapping.iova, mapping.len);
        }
    }
}

impl<T: MapTarget + 'static> Observer for Shadow<T> {
    fn changed(&self, changes: &Changes) {
        let mut inner = self.lock();
        if inner.space.is_some()
            && changes.touches(inner.device_id)
            && let Some(iommu) = self.iommu.upgrade()
        {
            self.replay(&mut inner, &iommu);
        }
    }

    fn invalidated(&self, ranges: &Invalidated) {
        let mut inner = self.lock();
        let Some((space, domain)) = inner.space.and_then(|s| Some((s, s.domain()?))) else {
            return;
        };
        let Some(iommu) = self.iommu.upgrade() else {
            return;
        };
        let mut loads = self.limits.loads;
        match ranges {
            Invalidated::All => self.refresh(&mut inner, &iommu, 0, u64::MAX, &mut loads),
            Invalidated::Ranges(list) if space.is_nested() => {
                if list.iter().any(|(d, _)| *d == domain) {
                    self.refresh(&mut inner, &iommu, 0, u64::MAX, &mut loads);
                }
            }
            Invalidated::Ranges(list) => {
                for (_, range) in list.iter().filter(|(d, _)| *d == domain) {
                    let (first, last) = (range.first(), range.last());
                    self.refresh(&mut inner, &iommu, first, last, &mut loads);
                }
            }
        }
    }
}

impl<T: MapTarget> fmt::Debug for Shadow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("window", &self.window)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
