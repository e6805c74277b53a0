//! A target that follows a guest's mappings: always what the tables say, never what they don't.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use amdvi_device::testing::{TestHost, TestMemory};
use amdvi_device::{Access, Invalidated, Iommu, Options, Permissions};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, CompletionWait, InvalidateDevtabEntry, InvalidateIommuAll, InvalidateIommuPages,
    InvalidationRange,
};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, offset};
use amdvi_vmm_glue::shadow::{AttachError, Limits, MapTarget, Problem, Shadow};
use proptest::prelude::*;

const NIC: DeviceId = DeviceId::new(0, 5, 0);
const OTHER: DeviceId = DeviceId::new(0, 6, 0);
const COMMANDS: u64 = 0x1_0000;
const STORE: u64 = 0x2_0000;
const DEVICE_TABLE: u64 = 0x3_0000;
/// Two domains with a table of two levels each: a root, and a leaf table for each of its entries.
const ROOTS: [u64; 2] = [0x10_0000, 0x20_0000];
const DOMAINS: [u16; 2] = [7, 8];
/// Root entries that are in use.
const TABLES: u64 = 4;
const RW: u64 = 3 << 61;
const PAGE: u64 = 0x1000;
/// All that the tables can map.
const WINDOW: RangeInclusive<u64> = 0..=(TABLES << 21) - 1;

#[derive(Debug)]
struct Full;
impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no room")
    }
}
impl std::error::Error for Full {}

/// A container with VFIO's rules: no overlap, and nothing is unmapped but what was mapped.
struct Container {
    memory: Arc<TestMemory>,
    mapped: BTreeMap<u64, (u64, u64, Permissions)>,
    /// What the guest must not see yet while something is unmapped.
    next_store: u64,
    /// IOVAs that are refused.
    refused: BTreeSet<u64>,
    calls: usize,
}

impl MapTarget for Container {
    type Error = Full;

    fn map(&mut self, iova: u64, gpa: u64, len: u64, permissions: Permissions) -> Result<(), Full> {
        self.calls += 1;
        assert!(len > 0 && (iova | gpa | len) & 0xfff == 0 && !permissions.is_empty());
        if let Some((before, (_, its_len, _))) = self.mapped.range(..=iova + (len - 1)).next_back()
        {
            assert!(before + (its_len - 1) < iova, "overlaps what is mapped");
        }
        if self.refused.contains(&iova) {
            return Err(Full);
        }
        self.mapped.insert(iova, (gpa, len, permissions));
        Ok(())
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        self.calls += 1;
        let (_, its_len, _) = self.mapped.remove(&iova).expect("unmaps what is mapped");
        assert_eq!(its_len, len);
        assert_ne!(self.memory.read(STORE), self.next_store, "too late");
    }
}

impl Container {
    fn at(&self, byte: u64) -> Option<(u64, Permissions)> {
        let (iova, (gpa, len, permissions)) = self.mapped.range(..=byte).next_back()?;
        (byte - iova < *len).then(|| (gpa + (byte - iova), *permissions))
    }
}

struct Machine {
    memory: Arc<TestMemory>,
    iommu: Arc<Iommu>,
    shadow: Arc<Shadow<Container>>,
    waits: u64,
}

fn new_iommu(options: &str, memory: &Arc<TestMemory>) -> Arc<Iommu> {
    let options: Options = options.parse().unwrap();
    Iommu::new(&options, memory.clone(), Arc::new(TestHost::default()))
}

fn container(memory: &Arc<TestMemory>) -> Container {
    Container {
        memory: memory.clone(),
        mapped: BTreeMap::new(),
        next_store: u64::MAX,
        refused: BTreeSet::new(),
        calls: 0,
    }
}

impl Machine {
    /// Translation is on, and the function is in the first, empty domain.
    fn new(limits: Limits) -> Self {
        let memory = Arc::new(TestMemory::new(0x40_0000));
        let iommu = new_iommu("amd-iommu,np-cache=on", &memory);
        for root in ROOTS {
            for n in 0..TABLES {
                memory.write(root + 8 * n, 1 | RW | 1 << 9 | table(root, n));
            }
        }
        let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
        write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE);
        write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
        let target = container(&memory);
        let shadow = Shadow::attach(&iommu, NIC, WINDOW, limits, target).unwrap();
        let mut machine = Self {
            memory,
            iommu,
            shadow,
            waits: 0,
        };
        machine.set_dte(NIC, dte(0));
        machine.enable(true);
        machine
    }

    fn enable(&self, iommu_en: bool) {
        let control = Control::RESET
            .with_iommu_en(iommu_en)
            .with_cmd_buf_en(true)
            .into_bits();
        self.iommu
            .mmio_write(offset::CONTROL, &control.to_le_bytes());
    }

    fn set_dte(&mut self, device: DeviceId, [q0, q1]: [u64; 2]) {
        let at = DEVICE_TABLE + 32 * u64::from(device.0);
        self.memory.write_all(at, &[q0, q1]);
    }

    /// Queues the commands and a COMPLETION_WAIT with a store of a new number.
    fn run(&mut self, commands: &[Command]) {
        self.waits += 1;
        self.shadow.with_target(|t| t.next_store = self.waits);
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(self.waits);
        let mut tail = [0; 8];
        self.iommu.mmio_read(offset::COMMAND_TAIL, &mut tail);
        let mut tail = u64::from_le_bytes(tail);
        for command in commands.iter().copied().chain([wait.into()]) {
            self.memory.write_all(COMMANDS + tail, &command.words());
            tail = (tail + 16) % 0x1000;
        }
        self.iommu
            .mmio_write(offset::COMMAND_TAIL, &tail.to_le_bytes());
        while self.iommu.run_commands() {}
        assert_eq!(self.memory.read(STORE), self.waits);
        self.shadow.with_target(|t| t.next_store = u64::MAX);
    }

    fn set_leaf(&self, domain: usize, page: u64, entry: u64) {
        let table = table(ROOTS[domain], page >> 9);
        self.memory.write(table + (page & 0x1ff) * 8, entry);
    }

    /// What the tables say of each page, one translation at a time, by another IOMMU that has cached
    /// nothing: this one's IOTLB may still have what the guest changed and did not tell of.
    fn literal(&self) -> Vec<Option<(u64, Permissions)>> {
        let iommu = new_iommu("amd-iommu,iotlb-entries=64", &self.memory);
        for (at, value) in [
            (offset::DEVICE_TABLE_BASE, DEVICE_TABLE),
            (offset::CONTROL, self.iommu.control().into_bits()),
        ] {
            iommu.mmio_write(at, &value.to_le_bytes());
        }
        let mut endpoint = iommu.endpoint(NIC);
        let mut one = |iova, access| endpoint.translate(iova, 1, access).ok().map(|m| m.gpa);
        (0..*WINDOW.end() / PAGE + 1)
            .map(|page| {
                let read = one(page * PAGE, Access::Read);
                let write = one(page * PAGE, Access::Write);
                let mut permissions = Permissions::empty();
                permissions.set(Permissions::READ, read.is_some());
                permissions.set(Permissions::WRITE, write.is_some());
                read.or(write).map(|gpa| (gpa, permissions))
            })
            .collect()
    }

    fn shadowed(&self) -> Vec<Option<(u64, Permissions)>> {
        self.shadow.with_target(|target| {
            (0..*WINDOW.end() / PAGE + 1)
                .map(|page| target.at(page * PAGE))
                .collect()
        })
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.shadowed() == self.literal(), "the target differs");
        assert!(self.shadow.take_problem().is_none());
    }
}

const fn table(root: u64, n: u64) -> u64 {
    root + 0x1_0000 + n * 0x1000
}

/// A DTE of the n-th domain.
fn dte(n: usize) -> [u64; 2] {
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_mode(2)
        .with_host_pt_root(ROOTS[n] >> 12)
        .with_ir(true)
        .with_iw(true);
    [
        q0.into_bits(),
        DteQ1::new().with_domain_id(DOMAINS[n]).into_bits(),
    ]
}

fn pages(domain: usize, range: InvalidationRange) -> Command {
    let (address, s) = range.encode();
    InvalidateIommuPages::new()
        .with_domain_id(DOMAINS[domain])
        .with_address_page(address >> 12)
        .with_s(s)
        .with_pde(true)
        .into()
}

fn page_range(first: u64, last: u64) -> InvalidationRange {
    InvalidationRange::covering(first * PAGE, last * PAGE + 0xfff)
}

fn devtab(device: DeviceId) -> Command {
    InvalidateDevtabEntry::new().with_device_id(device.0).into()
}

#[test]
fn np_cache_and_a_window_of_pages_are_required() {
    let memory = Arc::new(TestMemory::new(0x1000));
    let iommu = new_iommu("amd-iommu", &memory);
    let attach = |iommu: &Arc<Iommu>, window| {
        Shadow::attach(iommu, NIC, window, Limits::default(), container(&memory)).unwrap_err()
    };
    assert_eq!(attach(&iommu, 0..=0xfff), AttachError::NpCacheOff);
    let iommu = new_iommu("amd-iommu,np-cache=on", &memory);
    for (first, last) in [(0x800, 0xfff), (0, 0x1000), (0x2000, 0x1fff)] {
        assert_eq!(
            attach(&iommu, first..=last),
            AttachError::Window { first, last }
        );
    }
}

#[test]
fn the_target_follows_what_the_guest_maps_and_unmaps() {
    let mut machine = Machine::new(Limits::default());
    assert!(machine.shadow.is_empty());
    machine.set_leaf(0, 5, 1 | RW | 0x9000);
    machine.set_leaf(0, 6, 1 | 1 << 61 | 0x4000);
    // Not told yet.
    assert!(machine.shadow.is_empty());
    machine.run(&[pages(0, page_range(4, 7))]);
    assert_eq!(machine.shadow.len(), 2);
    machine.check();
    let calls = machine.shadow.with_target(|target| target.calls);

    machine.set_leaf(0, 5, 0);
    machine.run(&[pages(0, page_range(5, 5))]);
    machine.check();
    // The neighbour was not touched.
    assert_eq!(machine.shadow.with_target(|target| target.calls), calls + 1);
    // Nor is anything by an invalidation of another domain, or of what has not changed.
    machine.set_leaf(0, 6, 0);
    machine.run(&[pages(1, InvalidationRange::All)]);
    assert_eq!(machine.shadow.len(), 1);
    machine.set_leaf(0, 6, 1 | 1 << 61 | 0x4000);
    machine.run(&[pages(0, InvalidationRange::All)]);
    assert_eq!(machine.shadow.with_target(|target| target.calls), calls + 1);
    machine.check();
}

#[test]
fn a_large_page_is_one_mapping_and_goes_as_a_whole() {
    let mut machine = Machine::new(Limits::default());
    // A root entry that is a leaf: 2 MiB.
    machine.memory.write(ROOTS[0], 1 | RW | 0x80_0000);
    machine.run(&[pages(0, page_range(0, 0))]);
    // One page of it was invalidated: the rest of the guest's change is told with it or later.
    machine.run(&[pages(0, page_range(0, 511))]);
    machine.check();
    machine
        .memory
        .write(ROOTS[0], 1 | RW | 1 << 9 | table(ROOTS[0], 0));
    machine.set_leaf(0, 3, 1 | RW | 0x5000);
    // Any page of the large one.
    machine.run(&[pages(0, page_range(77, 77))]);
    machine.check();
    assert_eq!(machine.shadow.len(), 1);
}

#[test]
fn another_domain_an_identity_and_no_translation_are_followed_too() {
    let mut machine = Machine::new(Limits::default());
    machine.set_leaf(0, 1, 1 | RW | 0x8000);
    machine.set_leaf(1, 2, 1 | RW | 0xa000);
    machine.run(&[pages(0, InvalidationRange::All)]);
    machine.check();
    machine.set_dte(NIC, dte(1));
    // Until it is told, the old table goes on to be followed.
    machine.set_leaf(0, 3, 1 | RW | 0xb000);
    machine.run(&[pages(0, page_range(3, 3))]);
    assert_eq!(machine.shadow.len(), 2);
    machine.run(&[devtab(OTHER)]);
    assert_eq!(machine.shadow.len(), 2);
    machine.run(&[devtab(NIC)]);
    machine.check();
    assert_eq!(machine.shadow.len(), 1);

    machine.enable(false);
    machine.check();
    assert_eq!(machine.shadow.len(), 1);
    assert_eq!(machine.shadowed()[100].unwrap().0, 100 * PAGE);
    machine.enable(true);
    machine.check();
    // V=1, TV=0 blocks; V=0 passes.
    machine.set_dte(NIC, [1, 0]);
    machine.run(&[devtab(NIC)]);
    assert!(machine.shadow.is_empty());
    machine.set_dte(NIC, [0, 0]);
    machine.run(&[InvalidateIommuAll::new().into()]);
    machine.check();
    assert_eq!(machine.shadow.len(), 1);
    // Another bus: that function is blocked.
    machine.set_dte(OTHER, [1, 0]);
    machine.shadow.set_device_id(OTHER);
    assert!(machine.shadow.is_empty());
    machine.iommu.reset();
    assert_eq!(machine.shadow.len(), 1);
}

#[test]
fn invalidations_that_are_too_many_to_be_listed_are_followed() {
    let mut machine = Machine::new(Limits::default());
    machine.set_leaf(0, 5, 1 | RW | 0x9000);
    // As many domains as are told one by one, and ours.
    let mut commands: Vec<Command> = (100..100 + Invalidated::MAX_RANGES as u16)
        .map(|domain| InvalidateIommuPages::new().with_domain_id(domain).into())
        .collect();
    commands.push(pages(0, page_range(5, 5)));
    machine.run(&commands);
    assert_eq!(machine.shadow.len(), 1);
    machine.check();
}

#[test]
fn what_the_host_refuses_is_told_and_tried_again() {
    let mut machine = Machine::new(Limits::default());
    machine
        .shadow
        .with_target(|target| target.refused.insert(5 * PAGE));
    machine.set_leaf(0, 4, 1 | RW | 0x8000);
    machine.set_leaf(0, 5, 1 | RW | 0x9000);
    machine.run(&[pages(0, page_range(4, 5))]);
    let problem = machine.shadow.take_problem().unwrap();
    assert!(
        matches!(problem, Problem::Refused { iova, len, .. } if (iova, len) == (5 * PAGE, PAGE))
    );
    assert_eq!(machine.shadow.len(), 1);
    machine.shadow.with_target(|target| target.refused.clear());
    machine.run(&[pages(0, page_range(5, 5))]);
    machine.check();
}

#[test]
fn tables_beyond_the_limits_map_nothing_until_they_are_within_them() {
    let limits = Limits {
        mappings: 10,
        loads: 600,
    };
    let mut machine = Machine::new(limits);
    // Four tables are too much to read already.
    let problem = machine.shadow.take_problem();
    assert!(matches!(
        problem,
        Some(Problem::TooManyLoads { limit: 600 })
    ));
    let roots = |machine: &Machine, entry: fn(u64) -> u64| {
        for n in 1..TABLES {
            machine.memory.write(ROOTS[0] + 8 * n, entry(n));
        }
    };
    roots(&machine, |_| 0);
    for page in 0..10 {
        machine.set_leaf(0, 2 * page, 1 | RW | page << 12);
    }
    machine.run(&[pages(0, page_range(0, 63))]);
    assert_eq!(machine.shadow.len(), 10);
    machine.set_leaf(0, 1, 1 | RW | 0x3000);
    machine.run(&[pages(0, page_range(1, 1))]);
    let problem = machine.shadow.take_problem();
    assert!(matches!(
        problem,
        Some(Problem::TooManyMappings { limit: 10 })
    ));
    assert!(machine.shadow.is_empty());
    // One less; the notification names only that, but all has to be read, and that is too much again.
    machine.set_leaf(0, 1, 0);
    roots(&machine, |n| 1 | RW | 1 << 9 | table(ROOTS[0], n));
    machine.run(&[pages(0, page_range(1, 1))]);
    let problem = machine.shadow.take_problem();
    assert!(matches!(
        problem,
        Some(Problem::TooManyLoads { limit: 600 })
    ));
    assert!(machine.shadow.is_empty());
    // Fewer tables to read.
    roots(&machine, |_| 0);
    machine.run(&[pages(0, page_range(1, 1))]);
    assert_eq!(machine.shadow.len(), 10);
    machine.check();
}

#[test]
fn a_detached_target_is_empty_and_hears_nothing_more() {
    let mut machine = Machine::new(Limits::default());
    machine.set_leaf(0, 5, 1 | RW | 0x9000);
    machine.run(&[pages(0, page_range(5, 5))]);
    assert_eq!(machine.shadow.len(), 1);
    machine.shadow.detach();
    assert!(machine.shadow.is_empty());
    machine.run(&[InvalidateIommuAll::new().into()]);
    machine.shadow.set_device_id(OTHER);
    assert!(machine.shadow.is_empty());
    // Ours and the machine's; the IOMMU's is gone.
    assert_eq!(Arc::strong_count(&machine.shadow), 1);
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes a leaf of 4 KiB: domain, page, entry.
    Leaf(usize, u64, u64),
    /// Writes a root entry: domain, index, and a table's permissions, a large page, or nothing.
    Root(usize, u64, u64),
    /// Moves the function: to a domain, or what else a DTE may say.
    Dte(usize),
    /// Tells of what has changed since, and waits: 0 page by page, 1 the smallest range around all, 2
    /// domains, 3 everything.
    Flush(u8),
    /// A flush that names something at random instead.
    Wrong(usize, u64, u64),
    /// IommuEn off and on.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let permissions = prop_oneof![4 => Just(RW), 1 => Just(1u64 << 61), 1 => Just(1u64 << 62),
        1 => Just(0u64)];
    let page = prop_oneof![0u64..6, 508u64..516, 0u64..TABLES << 9];
    let entry = (0u64..8, any::<bool>(), permissions.clone())
        .prop_map(|(gpa, present, permissions)| u64::from(present) | permissions | gpa << 21);
    prop_oneof![
        12 => (0usize..2, page.clone(), entry).prop_map(|(d, p, e)| Step::Leaf(d, p, e)),
        4 => (0usize..2, 0..TABLES, prop_oneof![
                permissions.clone().prop_map(|p| 1 | p | 1 << 9),
                (permissions, 0u64..4).prop_map(|(p, n)| 1 | p | 0x100_0000 | n << 21),
                Just(0u64),
            ]).prop_map(|(d, n, e)| Step::Root(d, n, e)),
        2 => (0usize..5).prop_map(Step::Dte),
        6 => (0u8..4).prop_map(Step::Flush),
        3 => (0usize..2, page.clone(), page).prop_map(|(d, a, b)| Step::Wrong(d, a, b)),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// After any edits, invalidations and a COMPLETION_WAIT the target is what the tables say, if the
    /// guest told of all that it changed; and if it did not, each page is what the tables say or what
    /// the target had before.
    #[test]
    fn the_target_is_what_the_tables_say(steps in proptest::collection::vec(step(), 1..60)) {
        let mut machine = Machine::new(Limits::default());
        let mut dirty: BTreeSet<(usize, u64, u64)> = BTreeSet::new();
        let mut dte_dirty = false;
        // The domain whose table translates, as last told.
        let (mut said, mut in_domain) = (Some(0), Some(0));
        for step in steps.into_iter().chain([Step::Flush(0)]) {
            let before = machine.shadowed();
            match step {
                Step::Leaf(domain, page, entry) => {
                    machine.set_leaf(domain, page, entry);
                    dirty.insert((domain, page, page));
                }
                Step::Root(domain, n, entry) => {
                    let entry = if entry >> 9 & 7 == 1 {
                        entry | table(ROOTS[domain], n)
                    } else {
                        entry
                    };
                    machine.memory.write(ROOTS[domain] + 8 * n, entry);
                    dirty.insert((domain, n << 9, n << 9 | 0x1ff));
                }
                Step::Dte(what) => {
                    let words = match what {
                        0 | 1 => dte(what),
                        2 => [0, 0],
                        3 => [1, 0],
                        // Identity, read only.
                        _ => [3 | 1 << 61, u64::from(DOMAINS[0])],
                    };
                    machine.set_dte(NIC, words);
                    dte_dirty = true;
                    said = (what < 2).then_some(what);
                }
                Step::Flush(how) => {
                    let mut commands: Vec<Command> = match how {
                        0 => dirty
                            .iter()
                            .map(|&(d, a, b)| pages(d, page_range(a, b)))
                            .collect(),
                        1 => (0..2)
                            .filter_map(|domain| {
                                let mine = dirty.iter().filter(|(d, ..)| *d == domain);
                                let first = mine.clone().map(|(_, a, _)| *a).min()?;
                                let last = mine.map(|(_, _, b)| *b).max()?;
                                Some(pages(domain, page_range(first, last)))
                            })
                            .collect(),
                        2 => (0..2).map(|d| pages(d, InvalidationRange::All)).collect(),
                        _ => vec![InvalidateIommuAll::new().into()],
                    };
                    if dte_dirty {
                        commands.push(devtab(NIC));
                    }
                    machine.run(&commands);
                    dirty.clear();
                    dte_dirty = false;
                    in_domain = said;
                    prop_assert!(machine.shadowed() == machine.literal(), "after {:?}", how);
                }
                Step::Wrong(domain, a, b) => {
                    machine.run(&[pages(domain, page_range(a, b))]);
                    // The literal translations see a new DTE at once.
                    if !dte_dirty {
                        let (now, literal) = (machine.shadowed(), machine.literal());
                        for page in 0..now.len() {
                            let named = (a.min(b)..=a.max(b)).contains(&(page as u64));
                            prop_assert!(
                                now[page] == literal[page]
                                    || now[page] == before[page] && !(named && in_domain == Some(domain)),
                                "page {:#x}", page
                            );
                        }
                    }
                }
                Step::Restart => {
                    machine.enable(false);
                    prop_assert!(machine.shadowed() == machine.literal());
                    machine.enable(true);
                    // Everything was looked at again, as it is now.
                    dirty.clear();
                    dte_dirty = false;
                    in_domain = said;
                    prop_assert!(machine.shadowed() == machine.literal());
                }
            }
            prop_assert!(machine.shadow.take_problem().is_none());
        }
    }
}
