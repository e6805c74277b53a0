//! The event log, the PPR logs and the GA log (48882 §2.5–2.7): the one path by which anything is
//! logged.
//!
//! An entry's words are written before the tail that makes it visible. When the log is full the
//! entry is lost, the overflow bit is set and the log stops; where its memory can't be written, the
//! entry is lost and nothing else happens.

use amdvi_regs::event::{EVENT_SIZE, Event};
use amdvi_regs::log::{GA_LOG_ENTRY_SIZE, GaLogEntry, PPR_LOG_ENTRY_SIZE, PprLogEntry};
use amdvi_regs::mmio::Status;
use amdvi_regs::{DeviceId, PhysMemory};

use crate::state::{PprLogs, Registers};

impl Registers {
    /// Appends to the event log.
    pub(crate) fn log_event(&mut self, memory: &dyn PhysMemory, event: &Event) {
        if !self.status().event_log_run() {
            return;
        }
        if self.event.is_full(EVENT_SIZE) {
            self.event_stopped = true;
            self.set_status(|status| status.with_event_overflow(true));
            return;
        }
        let at = self.event.address() + self.event.tail;
        let [low, high] = event.words();
        // The code, which says that the entry is there, stands in the low word.
        let written = memory
            .store_u64(at + 8, high)
            .and_then(|()| memory.store_u64(at, low));
        if written.is_ok() {
            self.event.tail = self.event.next(self.event.tail, EVENT_SIZE);
            self.set_status(|status| status.with_event_log_int(true));
        }
    }

    /// Logs an IO_PAGE_FAULT of a device whose DTE has SE=1, unless it had one since its DTE was
    /// last invalidated.
    pub(crate) fn log_event_once(
        &mut self,
        memory: &dyn PhysMemory,
        device_id: DeviceId,
        event: &Event,
    ) {
        if self.faulted_once.insert(device_id.0) {
            self.log_event(memory, event);
        }
    }

    /// Appends to the GA log and tells the guest where its tail is.
    pub(crate) fn log_ga(&mut self, memory: &dyn PhysMemory, entry: GaLogEntry) {
        if !self.status().ga_log_run() {
            return;
        }
        if self.ga.is_full(GA_LOG_ENTRY_SIZE) {
            self.ga_stopped = true;
            self.set_status(|status| status.with_gal_overflow(true));
            return;
        }
        let at = self.ga.address() + self.ga.tail;
        if memory.store_u64(at, entry.into_bits()).is_err() {
            return;
        }
        self.ga.tail = self.ga.next(self.ga.tail, GA_LOG_ENTRY_SIZE);
        self.set_status(|status| status.with_ga_int(true));
        if self.ga_tail_address != 0 {
            // A guest that gives an address without memory behind it reads the register instead.
            let _ = memory.store_u64(self.ga_tail_address, self.ga.tail);
        }
    }

    /// Appends to the PPR log in use; whether the entry is there.
    ///
    /// With automatic change between the logs, a full one leaves the entry to the other. Where there
    /// is no room left the entry is lost and logging stops.
    pub(crate) fn log_ppr(&mut self, memory: &dyn PhysMemory, entry: PprLogEntry) -> bool {
        const OVERFLOW: [Status; 2] = [
            Status::new().with_ppr_overflow(true),
            Status::new().with_ppr_overflow_b(true),
        ];
        const EARLY: [Status; 2] = [
            Status::new().with_ppr_ovrflw_early(true),
            Status::new().with_ppr_ovrflw_early_b(true),
        ];
        if !self.status().ppr_log_run() {
            return false;
        }
        let control = self.control();
        let mut log = self.ppr.active(control);
        if self.ppr.logs[log].is_full(PPR_LOG_ENTRY_SIZE) {
            self.status |= OVERFLOW[log].into_bits();
            let other = 1 - log;
            if control.dual_ppr_log_en() != PprLogs::SWAP
                || self.status & OVERFLOW[other].into_bits() != 0
                || self.ppr.logs[other].is_full(PPR_LOG_ENTRY_SIZE)
            {
                self.ppr.stopped = true;
                return false;
            }
            self.ppr.swapped = other == 1;
            log = other;
        }
        let ring = self.ppr.logs[log];
        let at = ring.address() + ring.tail;
        let [low, high] = entry.words();
        // The code, which says that the entry is there, stands in the low word.
        let written = memory
            .store_u64(at + 8, high)
            .and_then(|()| memory.store_u64(at, low));
        if written.is_err() {
            return false;
        }
        self.ppr.logs[log].tail = ring.next(ring.tail, PPR_LOG_ENTRY_SIZE);
        self.set_status(|status| status.with_ppr_int(true));
        if self.ppr.nearly_full(log) {
            self.status |= EARLY[log].into_bits();
        }
        true
    }
}
