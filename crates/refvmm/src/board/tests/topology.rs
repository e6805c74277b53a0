//! Several IOMMUs, segments, aliases and the HPET: whose requests go through what.

use amdvi_guest::endpoint::dma::{STRIDE, channel, op, status};
use amdvi_guest::endpoint::{outcome, reg};
use amdvi_regs::mmio::offset;
use amdvi_regs::{DeviceId, Segment};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{Machine, eventually};
use crate::board::{Config, EndpointConfig};
use crate::layout;

/// Where tests have their tables: a device table of 2 MiB for each IOMMU.
const TABLES: u64 = 0x0200_0000;
/// The page that IOVA 0 leads to by way of IOMMU n: `PAGES + n * 0x1000`.
const PAGES: u64 = 0x0300_0000;
/// Page tables, likewise.
const PAGE_TABLES: u64 = 0x0310_0000;
/// Registers of the IOMMUs in these tests.
const REGISTERS: [u64; 2] = [0xfeb8_0000, 0xfeb0_0000];

fn endpoint(segment: u16, device: u8) -> EndpointConfig {
    EndpointConfig {
        segment: Segment(segment),
        addr: Some(DeviceId::new(0, device, 0)),
        ..EndpointConfig::default()
    }
}

fn config(devices: &[&str], endpoints: &[EndpointConfig], ivrs: &str) -> Config {
    Config {
        iommus: devices.iter().map(|text| text.parse().unwrap()).collect(),
        endpoints: endpoints.to_vec(),
        ivrs: ivrs.parse().unwrap(),
        ..Config::default()
    }
}

/// Two IOMMUs in segment 0, an endpoint behind each.
fn two() -> Config {
    config(
        &[
            "amd-iommu",
            "amd-iommu,addr=10.2,mmio-base=0xfeb00000,numint2k=on",
        ],
        &[endpoint(0, 5), endpoint(0, 0x11)],
        "",
    )
}

/// A function's configuration space.
fn config_space(segment: usize, id: DeviceId) -> u64 {
    layout::ecam(segment).start + (u64::from(id.0) << 12)
}

impl Machine {
    fn words(&self, gpa: u64, words: &[u64]) {
        for (n, word) in (0..).zip(words) {
            self.memory
                .write_obj(*word, GuestAddress(gpa + 8 * n))
                .unwrap();
        }
    }

    /// Lets IOMMU `n` send every request of `id` for page 0 to its own page, and enables it.
    /// Interrupts stay as they are.
    fn map(&self, n: usize, id: DeviceId) {
        let n64 = n as u64;
        let table = PAGE_TABLES + n64 * 0x1000;
        // Readable and writable, last level.
        self.words(table, &[(PAGES + n64 * 0x1000) | 1 | 3 << 61]);
        // V, TV, one level, readable and writable.
        self.dte(n, id, [3 | 1 << 9 | table | 3 << 61, n64 + 1, 0, 0]);
    }

    fn dte(&self, n: usize, id: DeviceId, words: [u64; 4]) {
        let table = TABLES + n as u64 * 0x20_0000;
        self.words(table + 32 * u64::from(id.0), &words);
        self.enable(n);
    }

    fn enable(&self, n: usize) {
        let base = TABLES + n as u64 * 0x20_0000;
        let write = |register: u64, value: u64| {
            let at = REGISTERS[n] + register;
            self.board.mmio_write(at, &value.to_le_bytes());
        };
        write(offset::CONTROL, 0);
        write(offset::DEVICE_TABLE_BASE, base | 0x1ff);
        write(offset::CONTROL, 1);
    }

    /// The BAR 0 of an endpoint, which may send requests from now on.
    fn open(&self, segment: usize, id: DeviceId) -> u64 {
        let space = config_space(segment, id);
        self.board.mmio_write(space + 4, &[6]);
        u64::from(self.read(space + 0x10))
    }

    /// An endpoint writes 8 bytes to IOVA 0; its status.
    fn writes(&self, bar: u64, seed: u64) -> u32 {
        let at = |register| bar + reg::DMA_CHANNEL_0 + STRIDE + register;
        self.board
            .mmio_write(at(channel::OPERAND), &seed.to_le_bytes());
        self.write(at(channel::LENGTH), 8);
        self.write(at(channel::OPERATION), op::FILL | op::SYNC);
        self.read(at(channel::STATUS))
    }

    /// The 8 bytes at the start of the page of IOMMU `n`.
    fn page(&self, n: u64) -> u64 {
        self.memory
            .read_obj(GuestAddress(PAGES + n * 0x1000))
            .unwrap()
    }
}

fn pattern(seed: u64) -> u64 {
    amdvi_guest::endpoint::dma::pattern(seed, 0)
}

#[test]
fn each_of_two_iommus_translates_its_own_functions_only() {
    let m = Machine::with(&two());
    let (first, second) = (DeviceId::new(0, 5, 0), DeviceId::new(0, 0x11, 0));
    let bars = [m.open(0, first), m.open(0, second)];
    // Both tables know both functions.
    for id in [first, second] {
        m.map(0, id);
    }
    assert_eq!(m.writes(bars[0], 1), status::DONE);
    assert_eq!((m.page(0), m.page(1)), (pattern(1), 0));
    // The other IOMMU is off: IOVA 0 is GPA 0 there.
    assert_eq!(m.writes(bars[1], 2), status::DONE);
    let low: u64 = m.memory.read_obj(GuestAddress(0)).unwrap();
    assert_eq!((low, m.page(1)), (pattern(2), 0));
    for id in [first, second] {
        m.map(1, id);
    }
    assert_eq!(m.writes(bars[1], 3), status::DONE);
    assert_eq!((m.page(0), m.page(1)), (pattern(1), pattern(3)));
    m.dte(1, first, [3, 0, 0, 0]);
    assert_eq!(m.writes(bars[0], 4), status::DONE, "not its table");
    m.dte(1, second, [3, 0, 0, 0]);
    assert_eq!(m.writes(bars[1], 5), status::ABORTED);
}

#[test]
fn a_scan_finds_every_iommu_as_a_function_of_a_device_with_function_0() {
    let m = Machine::with(&two());
    for device in [0, 0x10] {
        let zero = config_space(0, DeviceId::new(0, device, 0));
        assert_eq!(m.read(zero + 8) >> 16, 0x0600);
        assert_eq!(m.read(zero + 0xc) >> 16 & 0x80, 0x80, "more functions");
        let mut header_type = [0];
        m.board.mmio_read(zero + 0xe, &mut header_type);
        assert_eq!(header_type, [0x80]);
        let iommu = config_space(0, DeviceId::new(0, device, 2));
        assert_eq!(m.read(iommu + 8) >> 8, 0x08_0600);
        assert_eq!(m.read(iommu + 0xc) >> 16 & 0x80, 0);
    }
    let endpoint = config_space(0, DeviceId::new(0, 5, 0));
    assert_eq!(m.read(endpoint + 0xc) >> 16 & 0x80, 0, "one function");
}

#[test]
fn the_same_device_id_in_two_segments_is_two_requesters() {
    let m = Machine::with(&config(
        &["amd-iommu", "amd-iommu,segment=1,mmio-base=0xfeb00000"],
        &[endpoint(0, 5), endpoint(1, 5)],
        "",
    ));
    let id = DeviceId::new(0, 5, 0);
    let bars = [m.open(0, id), m.open(1, id)];
    assert!(layout::bar_window(1).contains(&bars[1]));
    assert_eq!(m.read(config_space(1, DeviceId::new(0, 0x14, 0))), u32::MAX);
    m.map(0, id);
    m.map(1, id);
    assert_eq!(m.writes(bars[0], 1), status::DONE);
    assert_eq!(m.writes(bars[1], 2), status::DONE);
    assert_eq!((m.page(0), m.page(1)), (pattern(1), pattern(2)));
    m.dte(1, id, [3, 0, 0, 0]);
    assert_eq!(m.writes(bars[0], 3), status::DONE);
    assert_eq!(m.writes(bars[1], 4), status::ABORTED);
}

#[test]
fn the_requests_of_an_alias_follow_the_entries_of_its_source() {
    let m = Machine::with(&config(
        &["amd-iommu"],
        &[endpoint(0, 5), endpoint(0, 7)],
        "alias=07.0-07.7@05.0",
    ));
    let (source, alias) = (DeviceId::new(0, 5, 0), DeviceId::new(0, 7, 0));
    let bar = m.open(0, alias);
    m.map(0, source);
    m.dte(0, alias, [3, 0, 0, 0]);
    assert_eq!(m.writes(bar, 1), status::DONE);
    assert_eq!(m.page(0), pattern(1));
    let raw = || {
        m.write(bar + reg::RAW_ADDRESS, 0xfee0_0000);
        m.write(bar + reg::RAW_DATA, 0x41);
        m.read(bar + reg::OUTCOME)
    };
    assert_eq!(raw(), outcome::DELIVERED);
    // Interrupts of the source: IV set, IntCtl 0 aborts them.
    m.dte(0, source, [3, 0, 1, 0]);
    assert_eq!(raw(), outcome::BLOCKED);
    assert_eq!(m.writes(bar, 2), status::ABORTED);
}

#[test]
fn the_ioapic_s_requests_carry_the_device_id_that_it_was_given() {
    let m = Machine::with(&config(&["amd-iommu"], &[], "ioapic=1f.0,southbridge=isa"));
    assert_eq!(
        m.read(config_space(0, DeviceId::new(0, 0x1f, 0)) + 8) >> 16,
        0x0601
    );
    assert_eq!(m.read(config_space(0, DeviceId::new(0, 0x14, 0))), u32::MAX);
    let fires = || {
        m.ioapic(0x10 + 2 * 4, 0x1_0000);
        m.ioapic(0x10 + 2 * 4, 0x44);
        let line = m.board.lines.line(4);
        line.pulse();
        m.log.vectors()
    };
    m.dte(0, DeviceId::new(0, 0x14, 0), [3, 0, 1, 0]);
    assert_eq!(fires(), [0x44]);
    m.dte(0, DeviceId::new(0, 0x1f, 0), [3, 0, 1, 0]);
    assert!(fires().is_empty());
}

#[test]
fn an_hpet_timer_sends_its_message_through_the_iommu() {
    const HPET: u64 = 0xfed0_0000;
    let m = Machine::with(&config(&["amd-iommu"], &[], "hpet=1e.0"));
    let set = |register: u64, value: u64| {
        m.board.mmio_write(HPET + register, &value.to_le_bytes());
    };
    let start = || {
        set(0x10, 0);
        set(0xf0, 0);
        set(0x110, 0xfee0_0000_0000_0051);
        // Messages, periodic, set the accumulator, interrupts.
        set(0x100, 1 << 14 | 1 << 6 | 1 << 3 | 1 << 2);
        set(0x108, 1000);
        set(0x108, 10_000);
        set(0x10, 1);
    };
    start();
    eventually("the second period", || {
        m.log.sent.lock().unwrap().len() >= 2
    });
    assert!(m.log.vectors().iter().all(|vector| *vector == 0x51));
    set(0x10, 0);
    assert!(m.read64(HPET + 0xf0) >= 11_000, "two periods");
    m.dte(0, DeviceId::new(0, 0x1e, 0), [3, 0, 1, 0]);
    m.log.take();
    start();
    eventually("the first period", || m.read64(HPET + 0x108) > 1000);
    set(0x10, 0);
    assert!(m.log.vectors().is_empty(), "its entry blocks interrupts");
}

#[test]
fn what_can_not_be_is_an_error_that_says_why() {
    let error = |devices: &[&str], endpoints: &[EndpointConfig], ivrs: &str| {
        config(devices, endpoints, ivrs)
            .check()
            .unwrap_err()
            .to_string()
    };
    let other = "amd-iommu,addr=10.2,mmio-base=0xfeb00000";
    for (devices, endpoints, ivrs, part) in [
        (
            &["amd-iommu", "amd-iommu,addr=10.2"][..],
            &[][..],
            "",
            "mmio-base",
        ),
        (
            &["amd-iommu", "amd-iommu,mmio-base=0xfeb00000"],
            &[],
            "",
            "its own device",
        ),
        (
            &["amd-iommu", "amd-iommu,segment=1,mmio-base=0xf0800000"],
            &[],
            "",
            "0xf1000000",
        ),
        (&["amd-iommu,serves=00.0-0f.7"], &[], "", "IOAPIC"),
        (
            &[
                "amd-iommu",
                "amd-iommu,addr=10.2,mmio-base=0xfeb00000,serves=00.0-1f.7",
            ],
            &[],
            "",
            "serves",
        ),
        (&["amd-iommu"], &[endpoint(1, 5)], "", "no IOMMU serves it"),
        (
            &["amd-iommu"],
            &[endpoint(0, 5), endpoint(0, 5)],
            "",
            "something else",
        ),
        (&["amd-iommu"], &[endpoint(0, 0x14)], "", "something else"),
        (
            &["amd-iommu", other],
            &[],
            "alias=05.0@11.0",
            "another IOMMU",
        ),
        (
            &["amd-iommu", other],
            &[],
            "alias=05.0@10.2",
            "an IOMMU is there",
        ),
        (&["amd-iommu"], &[], "ioapic=00.2,southbridge=off", "taken"),
        (&[], &[], "", "IOAPIC"),
    ] {
        let error = error(devices, endpoints, ivrs);
        assert!(error.contains(part), "{devices:?} {ivrs}: {error}");
    }
    let full = vec![EndpointConfig::default(); 27];
    let message = error(&["amd-iommu"], &full, "");
    assert!(message.contains("every device"), "{message}");
    let segments: Vec<_> = (0..5).map(|n| endpoint(n, 5)).collect();
    let message = error(&["amd-iommu"], &segments, "");
    assert!(message.contains("5 PCI segments"), "{message}");
}

#[test]
fn functions_without_a_place_get_free_devices_and_named_ones_theirs() {
    let unnamed = EndpointConfig::default();
    let m = Machine::with(&config(
        &["amd-iommu"],
        &[unnamed.clone(), endpoint(0, 5), unnamed],
        "",
    ));
    let at: Vec<String> = m
        .board
        .endpoint_counts()
        .into_iter()
        .map(|counts| counts.at)
        .collect();
    assert_eq!(at, ["0000:00:06.0", "0000:00:05.0", "0000:00:07.0"]);
}

#[test]
fn a_function_without_a_place_keeps_off_the_device_ids_of_others() {
    let unnamed = EndpointConfig::default();
    let m = Machine::with(&config(
        &["amd-iommu"],
        &[unnamed.clone(), unnamed],
        "alias=1f.0@05.0,hpet=06.1,acpi=AMDI0010@08.0",
    ));
    let at: Vec<String> = m
        .board
        .endpoint_counts()
        .into_iter()
        .map(|counts| counts.at)
        .collect();
    assert_eq!(at, ["0000:00:07.0", "0000:00:09.0"]);
}

#[test]
fn a_guest_that_pokes_two_segments_and_the_hpet_harms_nothing() {
    let m = Machine::with(&config(
        &["amd-iommu", "amd-iommu,segment=1,mmio-base=0xfeb00000"],
        &[endpoint(0, 5), endpoint(1, 5)],
        "hpet=1e.0,alias=07.0@05.0",
    ));
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let id = DeviceId::new(0, 5, 0);
    for n in 0..20_000u64 {
        // Function Level Resets move the BARs away.
        if n % 256 == 0 {
            for segment in 0..2 {
                let space = config_space(segment, id);
                let window = layout::bar_window(segment).start;
                for (register, bar) in [(0x10, 0), (0x18, 0x1_0000), (0x20, 0x2_0000)] {
                    write(&m, space + register, (window + bar) as u32);
                }
                m.board.mmio_write(space + 4, &[6]);
            }
        }
        let segment = (next() % 2) as usize;
        let bars = layout::bar_window(segment).start;
        let base = match next() % 8 {
            0 => bars + (next() & 0x7000),
            1 => bars + 0x1_0000,
            2 => bars + 0x2_0000,
            3 => config_space(segment, id),
            4 => layout::ecam(segment).end - 0x1000,
            5 => 0xfed0_0000,
            6 => bars + reg::DMA_CHANNEL_0 - 0x800,
            _ => REGISTERS[segment],
        };
        let gpa = base + next() % 0x1010;
        let len = 1 + (next() % 8) as usize;
        let mut data = next().to_le_bytes();
        if next().is_multiple_of(2) {
            m.board.mmio_write(gpa, &data[..len]);
        } else {
            m.board.mmio_read(gpa, &mut data[..len]);
        }
    }
}

fn write(m: &Machine, gpa: u64, value: u32) {
    m.board.mmio_write(gpa, &value.to_le_bytes());
}
