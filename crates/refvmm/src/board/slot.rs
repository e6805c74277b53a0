//! The place that a PCI function gets on the board, and what it can use there.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use amdvi_regs::{DeviceId, Segment};

use super::Injector;
use super::doorbells::Doorbells;
use super::ioapic::BoardIoapic;
use super::recorder::Recorder;
use super::routes::{RouteSource, Vectors};
use super::socket::{Handle, Socket};
use crate::layout;
use crate::ram::Memory;

/// BARs are placed this far apart at least, so that each has pages of its own whatever the guest's
/// page size.
const BAR_ALIGNMENT: u64 = 0x1_0000;

/// Places BARs as firmware does.
pub(super) struct BarAllocator {
    window: Range<u64>,
    next: Mutex<u64>,
}

impl BarAllocator {
    pub(super) fn new(window: Range<u64>) -> Self {
        Self {
            next: Mutex::new(window.start),
            window,
        }
    }

    /// A place for a BAR of `size` bytes, a power of two; 0, "not placed", when there is no room.
    fn place(&self, size: u64) -> u64 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.next_multiple_of(size.max(BAR_ALIGNMENT));
        match at.checked_add(size) {
            Some(end) if end <= self.window.end => {
                *next = end;
                at
            }
            _ => 0,
        }
    }
}

/// The lines to the IOAPIC's pins. Several devices can share a pin: it is asserted while one of
/// them asserts it.
pub struct Lines {
    ioapic: Weak<BoardIoapic>,
    asserted: Mutex<[u32; 256]>,
}

impl Lines {
    pub(super) fn new(ioapic: &Arc<BoardIoapic>) -> Arc<Self> {
        Arc::new(Self {
            ioapic: Arc::downgrade(ioapic),
            asserted: Mutex::new([0; 256]),
        })
    }

    /// A line to this pin, not asserted.
    pub fn line(self: &Arc<Self>, pin: u8) -> Line {
        Line {
            lines: Arc::clone(self),
            pin,
            level: Mutex::new(false),
        }
    }

    fn change(&self, pin: u8, up: bool) {
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        let count = &mut asserted[usize::from(pin)];
        let before = *count > 0;
        *count = if up {
            count.saturating_add(1)
        } else {
            count.saturating_sub(1)
        };
        let after = *count > 0;
        // Under the lock, so that the pin follows the last change.
        if before != after
            && let Some(ioapic) = self.ioapic.upgrade()
        {
            ioapic.set_line(pin, after);
        }
    }
}

/// One device's line to a pin of the IOAPIC. Released when dropped.
pub struct Line {
    lines: Arc<Lines>,
    pin: u8,
    level: Mutex<bool>,
}

impl Line {
    /// The pin's number, which is the GSI.
    pub fn pin(&self) -> u8 {
        self.pin
    }

    /// Asserts or releases the line. Whether the pin is active low is the guest's business: the
    /// IOAPIC's redirection entry only has to agree with the firmware tables.
    pub fn set(&self, asserted: bool) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *level != asserted {
            *level = asserted;
            self.lines.change(self.pin, asserted);
        }
    }

    /// Asserts and releases the line at once: an edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A PCI function's place.
#[derive(Clone)]
pub struct Slot {
    pub(super) segment: Segment,
    pub(super) device_id: DeviceId,
    pub(super) requester: DeviceId,
    pub(super) socket: Arc<Socket>,
    pub(super) memory: Arc<Memory>,
    pub(super) bars: Arc<BarAllocator>,
    pub(super) lines: Arc<Lines>,
    /// The IOMMU's place in [`Config::iommus`](super::Config::iommus).
    pub(super) iommu: usize,
    pub(super) injector: Arc<dyn Injector>,
    pub(super) recorder: Arc<Recorder>,
}

impl Slot {
    /// Its PCI segment.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// Bus, device and function.
    pub fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// The DeviceID that its requests carry: its own, or its alias.
    pub fn requester(&self) -> DeviceId {
        self.requester
    }

    /// A way through the IOMMU that the function is behind: to guest memory by IOVA, and for its
    /// interrupts. Each thread or queue should have its own.
    pub fn handle(&self) -> Arc<Handle> {
        self.socket.handle(self.requester)
    }

    /// The function's MSI-X vectors, to be asked for once: they go by routes where there are some.
    pub fn vectors(&self, count: u16) -> Vectors {
        let source = Arc::new(RouteSource(self.handle()));
        let routes = self
            .injector
            .vectors(self.iommu as u32, self.requester, source, count);
        Vectors::new(routes, Arc::clone(&self.recorder))
    }

    /// What wakes a thread without a way through the board.
    pub fn doorbells(&self) -> Doorbells {
        Doorbells::new(Arc::clone(&self.injector))
    }

    /// Guest memory by GPA. A function uses [`handle`](Self::handle) instead; this is what a
    /// backend may need to share or to log dirty pages.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A place for a memory BAR of `size` bytes, a power of two, as firmware gives one: below
    /// 4 GiB, so good for 32-bit and 64-bit BARs. 0 when the window is full.
    pub fn place_bar(&self, size: u64) -> u64 {
        self.bars.place(size)
    }

    /// The line that INTA–INTD (`pin` 0–3) of this function is wired to.
    pub fn intx(&self, pin: u8) -> Line {
        self.lines
            .line(layout::intx_pin(self.device_id.device(), pin))
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }
}
