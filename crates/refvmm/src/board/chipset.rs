//! What the test endpoint can ask of the board.

use std::sync::Arc;

use amdvi_device::{Changes, Observer};
use amdvi_guest::endpoint::vmm;
use amdvi_vmm_glue::kvm::IrqfdCounters;

use super::Injector;
use super::endpoint::Services;
use super::ioapic::BoardIoapic;
use super::routes::RouteKeeper;
use super::socket::Socket;
use super::worker::Bell;

pub(super) struct Chipset {
    socket: Arc<Socket>,
    ioapic: Arc<BoardIoapic>,
    routes: Arc<RouteKeeper>,
    injector: Arc<dyn Injector>,
    bell: Arc<Bell>,
}

impl Chipset {
    pub(super) fn new(
        socket: Arc<Socket>,
        ioapic: Arc<BoardIoapic>,
        routes: Arc<RouteKeeper>,
        injector: Arc<dyn Injector>,
        bell: Arc<Bell>,
    ) -> Self {
        Self {
            socket,
            ioapic,
            routes,
            injector,
            bell,
        }
    }
}

impl Services for Chipset {
    fn set_pin(&self, pin: u8, level: bool) {
        self.ioapic.set_line(pin, level);
    }

    fn vmm_command(&self, command: u32) -> bool {
        match command {
            vmm::SAVE_RESTORE => {
                let restored = self.socket.save_and_restore().is_ok();
                // What the guest had invalidated without waiting for it is no part of the state.
                self.routes.changed(&Changes::All);
                // The saved device may have had commands left to run.
                self.bell.ring();
                restored
            }
            vmm::RESET => {
                self.socket.with(|iommu| iommu.reset());
                true
            }
            _ => false,
        }
    }

    fn route_counters(&self) -> Option<IrqfdCounters> {
        self.injector.route_counters()
    }
}
