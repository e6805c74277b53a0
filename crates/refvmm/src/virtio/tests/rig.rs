//! The machine that the driver runs on.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{Command, CompletionWait, InvalidateIommuPages, InvalidationRange};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::irte::Irte32;
use amdvi_regs::mmio::{Control, Status, offset};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, Config, EndpointConfig, FunctionBuilder, FunctionConfig, Injector};
use crate::ram::{Memory, Ram};

const IOMMU: u64 = 0xfeb8_0000;
const DEVICE_TABLE: u64 = 0x100_0000;
const COMMANDS: u64 = 0x120_0000;
const EVENTS: u64 = 0x121_0000;
const STORE: u64 = 0x122_0000;
const INTERRUPT_TABLE: u64 = 0x122_1000;
const ROOT: u64 = 0x123_0000;
/// Tables of the first 32 MiB of IOVAs, 2 MiB each.
const LEAVES: u64 = 0x124_0000;
const LEAF_TABLES: u64 = 16;
/// A page of zeros, for tables without an entry.
const EMPTY: u64 = 0x126_0000;
const FIRST_IOVA: u64 = 0x1_0000;
/// Pages are taken from here downwards, so that what is contiguous for a device is not in memory.
const TOP: u64 = 0x3f0_0000;
pub(crate) const PAGE: u64 = 0x1000;
const PRESENT: u64 = 1;
pub(crate) const READ: u64 = 1 << 61;
pub(crate) const WRITE: u64 = 1 << 62;
const DOMAIN: u16 = 3;
/// The vector to which entry 0 of the interrupt table leads.
pub(crate) const FIRST_VECTOR: u8 = 0x40;

/// Waits for something that other threads do.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// CPUs that remember the vectors of their interrupts, and what their writes would ring.
pub(crate) struct Cpus {
    /// How often each arrived.
    vectors: [AtomicUsize; 256],
    doorbells: Mutex<BTreeMap<u64, EventFd>>,
}

impl Default for Cpus {
    fn default() -> Self {
        Self {
            vectors: [const { AtomicUsize::new(0) }; 256],
            doorbells: Mutex::default(),
        }
    }
}

impl Injector for Cpus {
    fn inject(&self, delivery: &Delivery) {
        self.vectors[usize::from(delivery.vector)].fetch_add(1, Ordering::AcqRel);
    }

    fn add_doorbell(&self, gpa: u64, bell: &EventFd) -> bool {
        let before = self
            .doorbells
            .lock()
            .unwrap()
            .insert(gpa, bell.try_clone().unwrap());
        assert!(before.is_none(), "two doorbells at {gpa:#x}");
        true
    }

    fn remove_doorbell(&self, gpa: u64, _: &EventFd) {
        let before = self.doorbells.lock().unwrap().remove(&gpa);
        assert!(before.is_some(), "no doorbell at {gpa:#x}");
    }
}

impl Cpus {
    /// How often `vector` arrived.
    pub(crate) fn count(&self, vector: u8) -> usize {
        self.vectors[usize::from(vector)].load(Ordering::Acquire)
    }

    /// Where doorbells are.
    pub(crate) fn doorbells(&self) -> Vec<u64> {
        self.doorbells.lock().unwrap().keys().copied().collect()
    }

    /// Rings one, as the machine does in the place of a write.
    pub(crate) fn ring(&self, gpa: u64) {
        self.doorbells.lock().unwrap()[&gpa].write(1).unwrap();
    }
}

/// The machine. Its functions are at 08.0, 09.0 and so on.
pub(crate) struct Rig {
    pub(crate) board: Board,
    pub(crate) memory: Arc<Memory>,
    pub(crate) cpus: Arc<Cpus>,
    next_iova: Cell<u64>,
    next_page: Cell<u64>,
    commands: Cell<u64>,
}

impl Rig {
    pub(crate) fn new(functions: impl IntoIterator<Item = FunctionBuilder>) -> Self {
        let mut count = 0;
        let rig = Self::bare(functions.into_iter().inspect(|_| count += 1));
        rig.start_iommu(count);
        rig
    }

    /// A machine whose IOMMU is off.
    pub(crate) fn bare(functions: impl IntoIterator<Item = FunctionBuilder>) -> Self {
        let memory = Arc::new(Ram::default().map().unwrap());
        let cpus = Arc::new(Cpus::default());
        let options: amdvi_device::Options = "amd-iommu".parse().unwrap();
        let mut count = 0;
        let functions = functions.into_iter().map(|build| {
            count += 1;
            FunctionConfig {
                name: "test".into(),
                segment: Default::default(),
                addr: Some(DeviceId::new(0, 7 + count, 0)),
                build,
            }
        });
        let config = Config {
            iommus: vec![options.into()],
            endpoints: vec![EndpointConfig::default()],
            functions: functions.collect(),
            ..Config::default()
        };
        let board = Board::new(&config, &memory, &[0, 1], Arc::clone(&cpus) as _).unwrap();
        Self {
            board,
            memory,
            cpus,
            next_iova: Cell::new(FIRST_IOVA),
            next_page: Cell::new(TOP),
            commands: Cell::new(0),
        }
    }

    fn start_iommu(&self, functions: u8) {
        for n in 0..functions {
            let id = DeviceId::new(0, 8 + n, 0);
            let q0 = DteQ0::new()
                .with_v(true)
                .with_tv(true)
                .with_mode(2)
                .with_host_pt_root(ROOT >> 12)
                .with_ir(true)
                .with_iw(true);
            let q2 = DteQ2::new()
                .with_iv(true)
                .with_int_tab_len(5)
                .with_int_ctl(2)
                .with_int_tab_address(INTERRUPT_TABLE);
            let dte = DEVICE_TABLE + 32 * u64::from(id.0);
            self.store(dte, q0.into_bits());
            self.store(dte + 8, DteQ1::new().with_domain_id(DOMAIN).into_bits());
            self.store(dte + 16, q2.into_bits());
        }
        for n in 0..32u8 {
            let entry = Irte32::new()
                .with_remap_en(true)
                .with_vector(FIRST_VECTOR + n);
            let at = GuestAddress(INTERRUPT_TABLE + 4 * u64::from(n));
            self.memory.write_obj(entry.into_bits(), at).unwrap();
        }
        for n in 0..LEAF_TABLES {
            let table = LEAVES + n * PAGE;
            self.store(ROOT + 8 * n, PRESENT | READ | WRITE | 1 << 9 | table);
        }
        self.iommu(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1f);
        self.iommu(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
        self.iommu(offset::EVENT_LOG_BASE, EVENTS | 8 << 56);
        let control = Control::RESET
            .with_iommu_en(true)
            .with_cmd_buf_en(true)
            .with_event_log_en(true);
        self.iommu(offset::CONTROL, control.into_bits());
    }

    fn iommu(&self, register: u64, value: u64) {
        self.board
            .mmio_write(IOMMU + register, &value.to_le_bytes());
    }

    /// A register of the IOMMU.
    pub(crate) fn iommu_register(&self, register: u64) -> u64 {
        let mut value = [0; 8];
        self.board.mmio_read(IOMMU + register, &mut value);
        u64::from_le_bytes(value)
    }

    /// From now on function `id` reaches no memory and no CPU: its tables are there, and empty.
    pub(crate) fn cage(&self, id: DeviceId) {
        let q0 = DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(1)
            .with_host_pt_root(EMPTY >> 12)
            .with_ir(true)
            .with_iw(true);
        let q2 = DteQ2::new()
            .with_iv(true)
            .with_int_tab_len(9)
            .with_int_ctl(2)
            .with_int_tab_address(EMPTY);
        let dte = DEVICE_TABLE + 32 * u64::from(id.0);
        self.store(dte + 8, DteQ1::new().with_domain_id(DOMAIN + 1).into_bits());
        self.store(dte + 16, q2.into_bits());
        self.store(dte, q0.into_bits());
    }

    /// Starts the event log again, empty.
    pub(crate) fn restart_events(&self) {
        let control = self.iommu_register(offset::CONTROL);
        let without = Control::from_bits(control).with_event_log_en(false);
        self.iommu(offset::CONTROL, without.into_bits());
        self.iommu(
            offset::STATUS,
            Status::new().with_event_overflow(true).into_bits(),
        );
        for register in [offset::EVENT_HEAD, offset::EVENT_TAIL] {
            self.iommu(register, 0);
        }
        self.iommu(offset::CONTROL, control);
    }

    pub(crate) fn store(&self, gpa: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(gpa)).unwrap();
    }

    /// The events so far: code, DeviceID and address.
    pub(crate) fn events(&self) -> Vec<(u64, u16, u64)> {
        let mut tail = [0; 8];
        self.board.mmio_read(IOMMU + offset::EVENT_TAIL, &mut tail);
        let word = |at| self.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        (0..u64::from_le_bytes(tail) / 16)
            .map(|n| {
                let first = word(EVENTS + 16 * n);
                (first >> 60, first as u16, word(EVENTS + 16 * n + 8))
            })
            .collect()
    }

    /// Maps the page at `iova`, or unmaps it, and invalidates what the IOMMU knows of the domain.
    pub(crate) fn map(&self, iova: u64, gpa: u64, permissions: u64) {
        let entry = match permissions {
            0 => 0,
            _ => PRESENT | permissions | gpa,
        };
        self.store(LEAVES + (iova >> 12) * 8, entry);
        let all = InvalidateIommuPages::new()
            .with_domain_id(DOMAIN)
            .with_range(InvalidationRange::All);
        let token = self.commands.get() + 1;
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(token);
        let mut tail = self.commands.get() % 0x1000;
        for command in [Command::from(all), wait.into()] {
            for word in command.words() {
                self.store(COMMANDS + tail, word);
                tail += 8;
            }
        }
        self.commands.set(self.commands.get() + 32);
        self.iommu(offset::COMMAND_TAIL, tail % 0x1000);
        eventually("COMPLETION_WAIT", || {
            self.memory.read_obj::<u64>(GuestAddress(STORE)).unwrap() == token
        });
    }

    /// Memory for a device, mapped with these permissions.
    pub(crate) fn buffer(&self, len: u64, permissions: u64) -> Buffer<'_> {
        let iova = self.next_iova.get();
        let pages: Vec<_> = (0..len.div_ceil(PAGE))
            .map(|n| {
                let page = self.next_page.get() - PAGE;
                self.next_page.set(page);
                self.map(iova + n * PAGE, page, permissions);
                page
            })
            .collect();
        // A page in between stays unmapped.
        self.next_iova.set(iova + (pages.len() as u64 + 1) * PAGE);
        Buffer {
            rig: self,
            iova,
            pages,
        }
    }
}

/// Memory of the driver.
pub(crate) struct Buffer<'r> {
    rig: &'r Rig,
    pub(crate) iova: u64,
    pub(crate) pages: Vec<u64>,
}

impl Buffer<'_> {
    fn gpa(&self, at: u64) -> GuestAddress {
        GuestAddress(self.pages[(at / PAGE) as usize] + at % PAGE)
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        for (n, byte) in data.iter().enumerate() {
            let to = self.gpa(at + n as u64);
            self.rig.memory.write_obj(*byte, to).unwrap();
        }
    }

    pub(crate) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let byte = |n| self.rig.memory.read_obj(self.gpa(at + n)).unwrap();
        (0..len).map(byte).collect()
    }

    pub(super) fn word(&self, at: u64) -> u16 {
        self.rig
            .memory
            .load(self.gpa(at), Ordering::Acquire)
            .unwrap()
    }

    pub(super) fn set_word(&self, at: u64, value: u16) {
        let to = self.gpa(at);
        self.rig.memory.store(value, to, Ordering::Release).unwrap();
    }
}
