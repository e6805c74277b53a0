//! A virtio queue whose rings and buffers are behind the IOMMU.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use amdvi_device::testing::TestHost;
use amdvi_device::{Iommu, Options};
use amdvi_regs::command::{Command, CompletionWait, InvalidateIommuPages};
use amdvi_regs::dte::{DteQ0, DteQ1};
use amdvi_regs::mmio::{Control, offset};
use amdvi_regs::{DeviceId, PhysMemory};
use amdvi_vmm_glue::dma::DmaSpace;
use amdvi_vmm_glue::ram::GuestRam;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    Permissions,
};

type Memory = GuestMemoryMmap<AtomicBitmap>;

const NIC: DeviceId = DeviceId::new(1, 0, 0);
const DEVICE_TABLE: u64 = 0x10_0000;
const ROOT: u64 = 0x30_0000;
const LEAVES: u64 = 0x30_1000;
const COMMANDS: u64 = 0x31_0000;
const EVENTS: u64 = 0x32_0000;
const STORE: u64 = 0x33_0000;
/// Two regions without a gap, so that a slice may end where one of them does.
const BORDER: u64 = 0x80_0000;
const PRESENT: u64 = 1;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

// The driver's addresses.
const RING: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const BUFFER: u64 = 0x2_0000;
const ANSWER: u64 = 0x3_0000;

struct Machine {
    memory: Arc<Memory>,
    ram: GuestRam<Memory>,
    iommu: Arc<Iommu>,
    tail: u64,
}

impl Machine {
    fn new() -> Self {
        let ranges = [
            (GuestAddress(0), BORDER as usize),
            (GuestAddress(BORDER), 0x80_0000),
        ];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let ram = GuestRam::new(memory.clone());
        let options: Options = "amd-iommu".parse().unwrap();
        let iommu = Iommu::new(
            &options,
            Arc::new(ram.clone()),
            Arc::new(TestHost::default()),
        );
        let machine = Self {
            memory,
            ram,
            iommu,
            tail: 0,
        };
        let q0 = DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(2)
            .with_host_pt_root(ROOT >> 12)
            .with_ir(true)
            .with_iw(true);
        let dte = DEVICE_TABLE + 32 * u64::from(NIC.0);
        machine.store(dte, q0.into_bits());
        machine.store(dte + 8, DteQ1::new().with_domain_id(3).into_bits());
        machine.store(ROOT, PRESENT | READ | WRITE | 1 << 9 | LEAVES);
        machine.map(RING, 0x50_0000, READ);
        machine.map(AVAIL, 0x60_3000, READ);
        machine.map(USED, 0x58_7000, READ | WRITE);
        machine.map(BUFFER, BORDER - 0x1000, READ | WRITE);
        machine.map(BUFFER + 0x1000, 0x40_0000, READ | WRITE);
        machine.map(ANSWER, 0x46_0000, READ | WRITE);
        machine.map(ANSWER + 0x1000, 0x42_0000, READ | WRITE);
        machine.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1f);
        machine.write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
        machine.write(offset::EVENT_LOG_BASE, EVENTS | 8 << 56);
        let control = Control::RESET
            .with_iommu_en(true)
            .with_cmd_buf_en(true)
            .with_event_log_en(true);
        machine.write(offset::CONTROL, control.into_bits());
        machine
    }

    fn store(&self, gpa: u64, word: u64) {
        self.ram.store_u64(gpa, word).unwrap();
    }

    fn map(&self, iova: u64, gpa: u64, permissions: u64) {
        let entry = if permissions == 0 {
            0
        } else {
            PRESENT | permissions | gpa
        };
        self.store(LEAVES + (iova >> 12) * 8, entry);
    }

    fn write(&self, at: u64, value: u64) {
        self.iommu.mmio_write(at, &value.to_le_bytes());
    }

    fn events(&self) -> u64 {
        let mut tail = [0; 8];
        self.iommu.mmio_read(offset::EVENT_TAIL, &mut tail);
        u64::from_le_bytes(tail) / 16
    }

    /// Invalidates the domain and waits, as far as the device does.
    fn invalidate(&mut self, data: u64) {
        let all = InvalidateIommuPages::new()
            .with_domain_id(3)
            .with_range(amdvi_regs::command::InvalidationRange::All);
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(data);
        for command in [Command::from(all), wait.into()] {
            for word in command.words() {
                self.store(COMMANDS + self.tail, word);
                self.tail += 8;
            }
        }
        self.write(offset::COMMAND_TAIL, self.tail);
    }

    fn space(&self) -> DmaSpace<Memory> {
        DmaSpace::new(self.iommu.endpoint(NIC), self.memory.clone())
    }

    /// A descriptor in the ring, written by the driver.
    fn descriptor(&self, n: u64, address: u64, len: u32, flags: u16, next: u16) {
        let at = 0x50_0000 + n * 16;
        self.store(at, address);
        self.store(
            at + 8,
            u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48,
        );
    }

    fn is_dirty(&self, gpa: u64) -> bool {
        let region = self.memory.find_region(GuestAddress(gpa)).unwrap();
        let offset = gpa - region.start_addr().0;
        region.bitmap().dirty_at(offset as usize)
    }
}

fn queue() -> Queue {
    let mut queue = Queue::new(16).unwrap();
    queue.set_size(16);
    queue.set_desc_table_address(Some(RING as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    queue
}

#[test]
fn a_virtio_queue_works_over_iovas_and_marks_guest_physical_pages() {
    const NEXT: u16 = 1;
    const DEVICE_WRITES: u16 = 2;
    let machine = Machine::new();
    let mut space = machine.space();
    let mut queue = queue();
    machine.descriptor(0, BUFFER + 0xff0, 0x20, NEXT, 1);
    machine.descriptor(1, ANSWER + 0xf00, 0x200, DEVICE_WRITES, 0);
    let request: Vec<u8> = (0..0x20).collect();
    machine
        .memory
        .write_slice(&request[..0x10], GuestAddress(BORDER - 0x10))
        .unwrap();
    machine
        .memory
        .write_slice(&request[0x10..], GuestAddress(0x40_0000))
        .unwrap();
    // avail: one chain, head 0.
    machine
        .memory
        .write_obj(1u16, GuestAddress(0x60_3002))
        .unwrap();
    assert!(!machine.is_dirty(0x58_7000));

    let memory = space.enter();
    assert!(queue.is_valid(&memory));
    let chain = queue
        .pop_descriptor_chain(&memory)
        .expect("the driver has made one available");
    let head = chain.head_index();
    let descriptors: Vec<_> = chain.collect();
    let mut read = vec![0; 0x20];
    memory.read_slice(&mut read, descriptors[0].addr()).unwrap();
    assert_eq!(read, request);
    memory
        .write_slice(&[0xa5; 0x200], descriptors[1].addr())
        .unwrap();
    queue.add_used(&memory, head, 0x200).unwrap();
    drop(memory);

    let byte = |gpa| machine.memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
    assert_eq!((byte(0x46_0eff), byte(0x46_0f00)), (0, 0xa5));
    assert_eq!((byte(0x42_00ff), byte(0x42_0100)), (0xa5, 0));
    assert_eq!(byte(0x46_1000), 0, "behind the page");
    assert_eq!(
        machine
            .memory
            .read_obj::<u16>(GuestAddress(0x58_7002))
            .unwrap(),
        1
    );
    for (gpa, dirty) in [
        (0x46_0000, true),
        (0x42_0000, true),
        (0x58_7000, true),
        (0x46_1000, false),
        // The driver's addresses mean nothing here.
        (ANSWER, false),
        (USED, false),
    ] {
        assert_eq!(machine.is_dirty(gpa), dirty, "{gpa:#x}");
    }
    assert_eq!(machine.events(), 0);
}

#[test]
fn what_is_not_permitted_is_an_error_with_one_event_and_a_question_is_none() {
    let machine = Machine::new();
    let mut space = machine.space();
    let memory = space.enter();
    let range = |iova, len, access| memory.check_range(GuestAddress(iova), len, access);
    assert!(range(BUFFER, 0x2000, Permissions::ReadWrite));
    assert!(!range(BUFFER, 0x2001, Permissions::Read));
    assert!(!range(RING, 1, Permissions::Write));
    assert!(!range(u64::MAX, 2, Permissions::Read));
    assert!(
        range(u64::MAX, 0, Permissions::Read),
        "nothing is asked for"
    );
    assert_eq!(machine.events(), 0);
    let error = memory.write_slice(&[1; 8], GuestAddress(RING)).unwrap_err();
    assert!(
        error.to_string().contains("not permitted at level 1"),
        "{error}"
    );
    assert_eq!(machine.events(), 1);
    // Runs into an unmapped page: what comes before it is done, and the rest is one event.
    let written = memory
        .write(&[7; 0x1000], GuestAddress(BUFFER + 0x1800))
        .unwrap();
    assert_eq!((written, machine.events()), (0x800, 2));
}

#[test]
fn a_translation_to_where_no_memory_is_fails() {
    let machine = Machine::new();
    machine.map(BUFFER, 0x4000_0000, READ | WRITE);
    let mut space = machine.space();
    let memory = space.enter();
    assert!(!memory.check_range(GuestAddress(BUFFER), 8, Permissions::Read));
    assert!(memory.read_obj::<u64>(GuestAddress(BUFFER)).is_err());
}

#[test]
fn completion_wait_waits_for_slices_and_later_accesses_see_the_new_mapping() {
    let mut machine = Machine::new();
    let mut space = machine.space();
    let memory = machine.memory.clone();
    let stored = || memory.read_obj::<u64>(GuestAddress(STORE)).unwrap();
    let waiting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let dma = space.enter();
        let slice = dma
            .get_slices(GuestAddress(BUFFER), 8, Permissions::Write)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        machine.map(BUFFER, 0x44_0000, READ | WRITE);
        scope.spawn(|| {
            waiting.store(true, Ordering::Release);
            machine.invalidate(1);
        });
        while !waiting.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            std::thread::yield_now();
            assert_eq!(stored(), 0);
        }
        // The old page, and nobody was promised otherwise yet.
        slice.copy_from(&[0x11u8; 8]);
        drop(dma);
    });
    assert_eq!(stored(), 1);
    let dma = space.enter();
    dma.write_obj(0x2222_2222u32, GuestAddress(BUFFER)).unwrap();
    drop(dma);
    assert_eq!(
        memory
            .read_obj::<u32>(GuestAddress(BORDER - 0x1000))
            .unwrap(),
        0x1111_1111
    );
    assert_eq!(
        memory.read_obj::<u32>(GuestAddress(0x44_0000)).unwrap(),
        0x2222_2222
    );
}

#[test]
fn another_thread_has_a_space_of_its_own() {
    let machine = Machine::new();
    let mut space = machine.space();
    let mut other = space.clone();
    let held = space.enter();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            other.enter().write_obj(5u8, GuestAddress(BUFFER)).unwrap();
            other.endpoint().set_device_id(NIC);
        });
    });
    assert_eq!(held.read_obj::<u8>(GuestAddress(BUFFER)).unwrap(), 5);
}
