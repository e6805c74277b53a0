//! PASIDs, the endpoint's own TLB and its page requests, against the tables of a guest.

use amdvi_guest::endpoint::dma::{STRIDE, channel, op, pasid, pattern, reason, status};
use amdvi_guest::endpoint::reg;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, CompletePprRequest, CompletionWait, InvalidateIommuAll, InvalidateIommuPages,
    InvalidateIotlbPages, InvalidationRange,
};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::log::PprLogEntry;
use amdvi_regs::mmio::{Control, offset};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{ENDPOINT_BAR0, Machine, eventually};
use crate::board::{Config, EndpointConfig};
use crate::layout;

const ENDPOINT: DeviceId = DeviceId::new(0, 5, 0);
const CONFIG: u64 = layout::ECAM_BASE + (5 << 15);
const REGISTERS: u64 = 0xfeb8_0000;
const DEVICE_TABLE: u64 = 0x0200_0000;
const COMMANDS: u64 = 0x0220_0000;
const STORE: u64 = 0x0220_2000;
const PPR_LOG: u64 = 0x0221_0000;
/// The host table: one level.
const HOST: u64 = 0x0230_0000;
/// GCR3 table, and the four levels of a guest table behind it.
const GCR3: u64 = 0x0240_0000;
const GUEST: u64 = 0x0241_0000;
/// Two pages that IOVAs lead to.
const PAGE: [u64; 2] = [0x0300_0000, 0x0300_1000];
const DOMAIN: u16 = 3;
/// Every ring has 256 entries.
const RING: u64 = 8 << 56;

/// The machine, and the next slot of its command buffer.
pub(super) struct Rig {
    pub(super) m: Machine,
    tail: std::cell::Cell<u64>,
}

/// One level, readable and writable.
fn host_entry(page: u64) -> u64 {
    page | 1 | 3 << 61
}

impl Rig {
    /// An endpoint with all capabilities behind an IOMMU that offers everything; page 0 of the host
    /// table leads to the first page.
    pub(super) fn new() -> Self {
        let config = Config {
            iommus: vec![
                "amd-iommu,gtsup=on,pprsup=on,device-iotlb=on"
                    .parse()
                    .unwrap(),
            ],
            endpoints: vec![EndpointConfig {
                pasid: true,
                ats: true,
                pri: true,
                ..EndpointConfig::default()
            }],
            ..Config::default()
        };
        let rig = Self {
            m: Machine::with(&config),
            tail: std::cell::Cell::new(0),
        };
        rig.store(HOST, host_entry(PAGE[0]));
        for (register, value) in [
            (offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1ff),
            (offset::COMMAND_BUFFER_BASE, COMMANDS | RING),
            (offset::PPR_LOG_BASE, PPR_LOG | RING),
        ] {
            rig.register(register, value);
        }
        rig.enable(0);
        rig
    }

    fn register(&self, register: u64, value: u64) {
        self.m
            .board
            .mmio_write(REGISTERS + register, &value.to_le_bytes());
    }

    /// Switches everything on, with this InvTimeOut.
    pub(super) fn enable(&self, inv_time_out: u8) {
        self.set_control(inv_time_out, true);
    }

    fn set_control(&self, inv_time_out: u8, commands: bool) {
        let control = Control::RESET
            .with_iommu_en(true)
            .with_cmd_buf_en(commands)
            .with_inv_time_out(inv_time_out)
            .with_gt_en(true)
            .with_ppr_en(true)
            .with_ppr_log_en(true);
        self.register(offset::CONTROL, control.into_bits());
    }

    /// Switches the command processor off, and on again with an empty ring.
    pub(super) fn restart(&self, inv_time_out: u8) {
        self.set_control(inv_time_out, false);
        self.register(offset::COMMAND_BUFFER_BASE, COMMANDS | RING);
        self.tail.set(0);
        self.set_control(inv_time_out, true);
    }

    fn store(&self, gpa: u64, word: u64) {
        self.m.memory.write_obj(word, GuestAddress(gpa)).unwrap();
    }

    fn load(&self, gpa: u64) -> u64 {
        self.m.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    /// Host translation, with ATS and page requests allowed.
    pub(super) fn host(&self) {
        let q0 = DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(1)
            .with_ir(true)
            .with_iw(true)
            .with_ppr(true);
        self.entry(
            Dte {
                q0,
                q1: DteQ1::new().with_domain_id(DOMAIN).with_i(true),
                q2: DteQ2::new(),
                ..Dte::default()
            }
            .with_host_pt_address(HOST),
        );
    }

    fn entry(&self, dte: Dte) {
        for (n, word) in (0..).zip(dte.words()) {
            self.store(DEVICE_TABLE + 32 * u64::from(ENDPOINT.0) + 8 * n, word);
        }
        self.command(InvalidateIommuAll::new().into());
    }

    /// Runs a command, and COMPLETION_WAIT after it.
    fn command(&self, command: Command) {
        self.begin(command);
        self.end();
    }

    pub(super) fn is_complete(&self) -> bool {
        self.load(STORE) == 1
    }

    pub(super) fn end(&self) {
        eventually("COMPLETION_WAIT", || self.is_complete());
    }

    /// Tells the IOMMU of a command, and of a COMPLETION_WAIT after it.
    pub(super) fn begin(&self, command: Command) {
        self.store(STORE, 0);
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(1);
        for command in [command, wait.into()] {
            for (n, word) in (0..).zip(command.words()) {
                self.store(COMMANDS + self.tail.get() + 8 * n, word);
            }
            self.tail.set((self.tail.get() + 16) % 0x1000);
        }
        self.m
            .write(REGISTERS + offset::COMMAND_TAIL, self.tail.get() as u32);
    }

    /// What takes all translations of the endpoint away.
    pub(super) fn invalidate_device() -> Command {
        InvalidateIotlbPages::new()
            .with_device_id(ENDPOINT.0)
            .with_queue_id(ENDPOINT.0)
            .with_max_pend(32)
            .with_range(InvalidationRange::All)
            .into()
    }

    /// Takes the IOMMU's own translations away, and with `device` those of the endpoint.
    fn invalidate(&self, device: bool) {
        let pages = InvalidateIommuPages::new()
            .with_domain_id(DOMAIN)
            .with_range(InvalidationRange::All);
        self.command(pages.into());
        if device {
            self.command(Self::invalidate_device());
        }
    }

    /// Sets the control register of an extended capability.
    fn control(&self, id: u16, register: u64, value: u16) {
        let mut at = 0x100;
        while self.m.read(CONFIG + at) as u16 != id {
            at = u64::from(self.m.read(CONFIG + at) >> 20);
            assert_ne!(at, 0, "no capability {id:#x}");
        }
        self.m
            .board
            .mmio_write(CONFIG + at + register, &value.to_le_bytes());
    }

    fn pasid(&self, control: u16) {
        self.control(0x1b, 6, control);
    }

    pub(super) fn ats(&self, on: bool) {
        self.control(0x0f, 6, u16::from(on) << 15);
    }

    fn pri(&self, on: bool) {
        self.control(0x13, 4, u16::from(on));
    }

    fn channel(&self, register: u64) -> u32 {
        self.m
            .read(ENDPOINT_BAR0 + reg::DMA_CHANNEL_0 + STRIDE + register)
    }

    fn set(&self, register: u64, value: u64) {
        let at = ENDPOINT_BAR0 + reg::DMA_CHANNEL_0 + STRIDE + register;
        self.m.write(at, value as u32);
        if matches!(register, channel::TARGET | channel::OPERAND) {
            self.m.write(at + 4, (value >> 32) as u32);
        }
    }

    /// Writes 8 bytes to `iova`; status and reason.
    fn writes(&self, iova: u64, seed: u64, flags: u32) -> (u32, u32) {
        self.set(channel::TARGET, iova);
        self.set(channel::OPERAND, seed);
        self.set(channel::LENGTH, 8);
        self.set(channel::OPERATION, (op::FILL | flags).into());
        (self.channel(channel::STATUS), self.channel(channel::REASON))
    }

    pub(super) fn counter(&self, register: u64) -> u64 {
        self.m.endpoint64(register)
    }
}

const DONE: (u32, u32) = (status::DONE, reason::NONE);
const NO_PAGE: (u32, u32) = (status::ABORTED, reason::NO_PAGE);

#[test]
fn the_tlb_keeps_a_translation_until_it_is_invalidated() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    assert_eq!(rig.writes(0, 1, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[0]), pattern(1, 0));
    assert_eq!(rig.counter(reg::TLB_ENTRIES), 1);
    rig.store(HOST, host_entry(PAGE[1]));
    rig.invalidate(false);
    assert_eq!(rig.writes(0, 2, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[0]), pattern(2, 0), "its own translation");
    assert_eq!(rig.counter(reg::TLB_HITS), 1);
    rig.invalidate(true);
    assert_eq!(rig.counter(reg::TLB_INVALIDATIONS), 1);
    assert_eq!(rig.counter(reg::TLB_ENTRIES), 0);
    assert_eq!(rig.writes(0, 3, op::SYNC), DONE);
    assert_eq!(
        [rig.load(PAGE[0]), rig.load(PAGE[1])],
        [pattern(2, 0), pattern(3, 0)]
    );
}

#[test]
fn the_tlb_goes_when_ats_is_switched_off() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    assert_eq!(rig.writes(0, 1, op::SYNC), DONE);
    rig.ats(false);
    assert_eq!(rig.counter(reg::TLB_ENTRIES), 0);
    rig.store(HOST, host_entry(PAGE[1]));
    rig.invalidate(false);
    assert_eq!(rig.writes(0, 2, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[1]), pattern(2, 0));
}

#[test]
fn without_permission_of_the_device_table_entry_nothing_is_translated() {
    let rig = Rig::new();
    rig.host();
    rig.store(HOST, host_entry(PAGE[0]) & !(1 << 62));
    rig.invalidate(false);
    rig.ats(true);
    assert_eq!(rig.writes(0, 1, op::SYNC), NO_PAGE, "read-only");
    let at = DEVICE_TABLE + 32 * u64::from(ENDPOINT.0) + 8;
    rig.store(at, rig.load(at) & !(1 << 32));
    rig.command(InvalidateIommuAll::new().into());
    let refused = (status::ABORTED, reason::IOMMU);
    assert_eq!(rig.writes(0, 1, op::SYNC), refused, "DTE.I is 0");
    assert_eq!(rig.load(PAGE[0]), 0);
}

#[test]
fn a_replaced_iommu_still_tells_the_endpoint_of_invalidations() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    assert_eq!(rig.writes(0, 1, op::SYNC), DONE);
    rig.m
        .tell(reg::VMM_COMMAND, amdvi_guest::endpoint::vmm::SAVE_RESTORE);
    assert_eq!(rig.m.endpoint(reg::VMM_STATUS), 0);
    rig.invalidate(true);
    assert_eq!(rig.counter(reg::TLB_INVALIDATIONS), 1);
    assert_eq!(rig.counter(reg::TLB_ENTRIES), 0);
}

/// Answers the one page request in the log.
fn answer(rig: &Rig, code: u16) -> PprLogEntry {
    let mut tail = 0;
    eventually("a page request", || {
        tail = rig.m.read(REGISTERS + offset::PPR_TAIL);
        tail != rig.m.read(REGISTERS + offset::PPR_HEAD)
    });
    let at = PPR_LOG + u64::from(tail) - 16;
    let entry = PprLogEntry::from_words([rig.load(at), rig.load(at + 8)]);
    rig.m.write(REGISTERS + offset::PPR_HEAD, tail);
    let complete = CompletePprRequest::new()
        .with_device_id(ENDPOINT.0)
        .with_completion_tag(code << 12 | entry.tag());
    rig.command(complete.into());
    entry
}

#[test]
fn a_page_that_is_not_there_is_asked_for_and_then_written() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    assert_eq!(rig.writes(0x1000, 1, op::SYNC), NO_PAGE);
    rig.writes(0x1000, 1, 0);
    eventually("the end, as PRI is off", || {
        rig.channel(channel::STATUS) == status::ABORTED
    });
    rig.pri(true);
    assert_eq!(rig.writes(0x1000, 1, op::SYNC), NO_PAGE, "who waits");
    assert_eq!(rig.counter(reg::PAGE_REQUESTS), 0);
    rig.writes(0x1008, 7, 0);
    eventually("the request", || rig.counter(reg::PAGE_REQUESTS) == 1);
    rig.store(HOST + 8, host_entry(PAGE[1]));
    let entry = answer(&rig, 0);
    assert!(entry.write() && entry.last_page() && !entry.gn());
    assert_eq!(entry.address_page(), 1);
    eventually("the end", || rig.channel(channel::STATUS) == status::DONE);
    assert_eq!(rig.load(PAGE[1] + 8), pattern(7, 0));
    let counted = [reg::PAGE_REQUESTS, reg::PAGE_RESPONSES].map(|at| rig.counter(at));
    assert_eq!(counted, [1, 1]);
}

#[test]
fn a_page_request_that_is_refused_ends_the_operation() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    rig.pri(true);
    rig.writes(0x1000, 1, 0);
    answer(&rig, 1);
    eventually("the end", || {
        rig.channel(channel::STATUS) == status::ABORTED
    });
    assert_eq!(rig.channel(channel::REASON), reason::NO_PAGE);
}

#[test]
fn cancelling_ends_the_wait_for_a_page() {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    rig.pri(true);
    rig.writes(0x1000, 1, 0);
    eventually("the request", || rig.counter(reg::PAGE_REQUESTS) == 1);
    rig.set(channel::OPERATION, op::CANCEL.into());
    assert_eq!(rig.channel(channel::STATUS), status::CANCELLED);
}

#[test]
fn requests_with_a_pasid_are_translated_by_its_own_table() {
    let rig = Rig::new();
    // Four levels, all for address 0: present, writable, user.
    for level in 0..3 {
        let at = GUEST + 0x1000 * level;
        rig.store(at, (at + 0x1000) | 7);
    }
    rig.store(GUEST + 0x3000, PAGE[1] | 7);
    rig.store(GCR3 + 8 * 5, GUEST | 1);
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_ir(true)
        .with_iw(true)
        .with_gv(true);
    rig.entry(
        Dte {
            q0,
            q1: DteQ1::new().with_domain_id(DOMAIN).with_i(true),
            q2: DteQ2::new(),
            ..Dte::default()
        }
        .with_gcr3_address(GCR3),
    );
    rig.set(channel::PASID, (pasid::ON | 5).into());
    assert_eq!(rig.writes(0, 1, op::SYNC).0, status::BAD, "not enabled");
    rig.pasid(1);
    assert_eq!(rig.writes(0, 1, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[1]), pattern(1, 0));
    rig.set(channel::PASID, (pasid::ON | 6).into());
    let refused = (status::ABORTED, reason::IOMMU);
    assert_eq!(rig.writes(0, 2, op::SYNC), refused, "no such PASID");
    let privileged = pasid::ON | pasid::PRIVILEGED | 5;
    rig.set(channel::PASID, privileged.into());
    assert_eq!(rig.writes(0, 2, op::SYNC).0, status::BAD, "not enabled");
    rig.pasid(0b101);
    assert_eq!(rig.writes(0, 2, op::SYNC), DONE);
    // By the TLB, which tells PASIDs apart.
    rig.ats(true);
    rig.set(channel::PASID, (pasid::ON | 5).into());
    assert_eq!(rig.writes(0, 3, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[1]), pattern(3, 0));
    rig.set(channel::PASID, (pasid::ON | 6).into());
    assert_ne!(rig.writes(0, 4, op::SYNC), DONE);
    assert_eq!(rig.load(PAGE[1]), pattern(3, 0));
}
