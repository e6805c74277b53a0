//! What the IOMMU asks of the board.

use std::sync::Arc;
use std::time::Instant;

use amdvi_device::{Host, InvalidationWait};
use amdvi_irt::Delivery;

use super::Injector;
use super::patience::Patience;
use super::recorder::Recorder;
use super::worker::Bell;

/// One IOMMU's host. It records every interrupt, and passes it on to the CPUs.
pub(super) struct BoardHost {
    injector: Arc<dyn Injector>,
    recorder: Arc<Recorder>,
    bell: Arc<Bell>,
    patience: Arc<Patience>,
}

impl BoardHost {
    pub(super) fn new(
        injector: Arc<dyn Injector>,
        recorder: Arc<Recorder>,
        bell: Arc<Bell>,
        patience: Arc<Patience>,
    ) -> Self {
        Self {
            injector,
            recorder,
            bell,
            patience,
        }
    }
}

impl Host for BoardHost {
    fn deliver(&self, delivery: &Delivery) {
        self.recorder.push(delivery);
        self.injector.inject(delivery);
    }

    fn doorbell(&self, _physical_apic_id: u32) {
        // A doorbell tells a *running* virtual CPU of a nested guest to look at its backing page.
        // The scenarios have no nested guest: they read the page and the GA log themselves.
    }

    fn commands_pending(&self) {
        self.bell.ring();
    }

    fn await_invalidations(&self, wait: &InvalidationWait) -> bool {
        self.patience.begin(wait, Instant::now());
        self.bell.set_clock();
        true
    }
}
