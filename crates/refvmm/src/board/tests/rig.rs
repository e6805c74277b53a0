//! A board, and the CPUs' end of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_irt::Delivery;

use crate::board::{Board, Config, Injector};
use crate::layout;
use crate::ram::{Memory, Ram};

/// CPUs that remember what they were sent, and the routes that the EOIs take.
#[derive(Default)]
pub(super) struct Log {
    pub(super) sent: Mutex<Vec<Delivery>>,
    pub(super) routes: Mutex<Vec<(u8, bool)>>,
}

impl Log {
    pub(super) fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    pub(super) fn vectors(&self) -> Vec<u8> {
        self.take().iter().map(|delivery| delivery.vector).collect()
    }
}

impl Injector for Log {
    fn inject(&self, delivery: &Delivery) {
        self.sent.lock().unwrap().push(*delivery);
    }

    fn route_pin(&self, pin: u8, delivery: Option<&Delivery>) {
        self.routes.lock().unwrap().push((pin, delivery.is_some()));
    }
}

pub(super) struct Machine {
    pub(super) board: Board,
    pub(super) memory: Arc<Memory>,
    pub(super) log: Arc<Log>,
}

/// BARs of the test endpoint as the board places them.
pub(super) const ENDPOINT_BAR0: u64 = 0xc000_0000;
pub(super) const ENDPOINT_BAR2: u64 = 0xc001_0000;
pub(super) const ENDPOINT_BAR4: u64 = 0xc002_0000;

/// Offset of the MSI-X capability's Message Control in the endpoint's ECAM page.
pub(super) const MSIX_CONTROL: u64 = layout::ECAM_BASE + (5 << 15) + 0x42;

impl Machine {
    /// The board of the scenarios, the endpoint's BARs and bus mastering enabled.
    pub(super) fn new() -> Self {
        Self::with(&Config::scenario("amd-iommu,numint2k=on".parse().unwrap()))
    }

    /// A board of 64 MiB and two CPUs.
    pub(super) fn with(config: &Config) -> Self {
        let memory = Arc::new(Ram::default().map().unwrap());
        let log = Arc::new(Log::default());
        let board = Board::new(config, &memory, &[0, 1], Arc::clone(&log) as _).unwrap();
        // Memory Space Enable and Bus Master Enable of the endpoint.
        board.mmio_write(layout::ECAM_BASE + (5 << 15) + 4, &[6]);
        Self { board, memory, log }
    }

    pub(super) fn read(&self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        self.board.mmio_read(gpa, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn read64(&self, gpa: u64) -> u64 {
        let mut data = [0; 8];
        self.board.mmio_read(gpa, &mut data);
        u64::from_le_bytes(data)
    }

    pub(super) fn write(&self, gpa: u64, value: u32) {
        self.board.mmio_write(gpa, &value.to_le_bytes());
    }

    pub(super) fn endpoint(&self, register: u64) -> u32 {
        self.read(ENDPOINT_BAR0 + register)
    }

    pub(super) fn endpoint64(&self, register: u64) -> u64 {
        self.read64(ENDPOINT_BAR0 + register)
    }

    pub(super) fn tell(&self, register: u64, value: u32) {
        self.write(ENDPOINT_BAR0 + register, value);
    }

    /// Programs and unmasks vector `n` of the table with data `data`.
    pub(super) fn program(&self, n: u64, data: u32) {
        let at = ENDPOINT_BAR2 + 16 * n;
        self.write(at, 0xfee0_0000);
        self.write(at + 4, 0);
        self.write(at + 8, data);
        self.write(at + 12, 0);
    }

    pub(super) fn msix(&self, control: u16) {
        self.board.mmio_write(MSIX_CONTROL, &control.to_le_bytes());
    }

    /// Writes an IOAPIC register.
    pub(super) fn ioapic(&self, index: u32, value: u32) {
        self.write(layout::IOAPIC_BASE, index);
        self.write(layout::IOAPIC_BASE + 0x10, value);
    }

    pub(super) fn iommu(&self, register: u64) -> u64 {
        0xfeb8_0000 + register
    }
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}
