//! What the test endpoint can ask of the board.

use std::sync::Arc;

use amdvi_guest::endpoint::vmm;

use super::endpoint::Services;
use super::ioapic::BoardIoapic;
use super::socket::Socket;
use super::worker::Bell;

pub(super) struct Chipset {
    socket: Arc<Socket>,
    ioapic: Arc<BoardIoapic>,
    bell: Arc<Bell>,
}

impl Chipset {
    pub(super) fn new(socket: Arc<Socket>, ioapic: Arc<BoardIoapic>, bell: Arc<Bell>) -> Self {
        Self {
            socket,
            ioapic,
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
                self.ioapic.tables_changed();
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
}
