//! An IOMMU that runs commands over and over.

use std::sync::Arc;

use amdvi_core::test_utils::TestMemory;
use amdvi_device::{Endpoint, Host, Iommu, Options};
use amdvi_irt::Delivery;
use amdvi_regs::command::{COMMAND_SIZE, Command, CompletionWait};
use amdvi_regs::mmio::{Control, RingBase, offset};
use amdvi_regs::{DeviceId, PhysMemory};

const RING: u64 = 0x1_0000;
/// log2 of the ring's entries.
const RING_LENGTH: u8 = 12;
const STORE: u64 = 0x8000;

struct Nobody;

impl Host for Nobody {
    fn deliver(&self, _: &Delivery) {}
    fn doorbell(&self, _: u32) {}
    fn commands_pending(&self) {}
}

/// An IOMMU with eight functions behind it whose command ring is full.
pub struct Commands {
    iommu: Arc<Iommu>,
    tail: u64,
    _functions: Vec<Endpoint>,
}

impl Commands {
    /// Fills the ring with `commands`, again and again.
    ///
    /// # Panics
    /// Never: the ring lies inside the memory that it makes itself.
    pub fn new(commands: &[Command]) -> Self {
        let memory = Arc::new(TestMemory::new(0x4_0000));
        for (slot, command) in (0..1u64 << RING_LENGTH).zip(commands.iter().cycle()) {
            for (word, value) in (0..).zip(command.words()) {
                memory
                    .store_u64(RING + slot * COMMAND_SIZE + word * 8, value)
                    .expect("the ring is backed");
            }
        }
        let options: Options = "amd-iommu,numint2k=on".parse().expect("these are options");
        let iommu = Iommu::new(&options, memory, Arc::new(Nobody));
        let functions = (0..8)
            .map(|n| iommu.endpoint(DeviceId::new(0, n, 0)))
            .collect();
        let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
        let ring = RingBase::new()
            .with_base_page(RING >> 12)
            .with_length(RING_LENGTH);
        write(offset::COMMAND_BUFFER_BASE, ring.into_bits());
        let control = Control::RESET.with_iommu_en(true).with_cmd_buf_en(true);
        write(offset::CONTROL, control.into_bits());
        Self {
            iommu,
            tail: 0,
            _functions: functions,
        }
    }

    /// A COMPLETION_WAIT that stores.
    pub fn wait() -> Command {
        CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .into()
    }

    /// Has the device run the next `count` commands.
    pub fn run(&mut self, count: u64) {
        self.tail = (self.tail + count * COMMAND_SIZE) & ((COMMAND_SIZE << RING_LENGTH) - 1);
        self.iommu
            .mmio_write(offset::COMMAND_TAIL, &self.tail.to_le_bytes());
    }

    /// Whether all commands were run.
    pub fn is_done(&self) -> bool {
        let mut head = [0; 8];
        self.iommu.mmio_read(offset::COMMAND_HEAD, &mut head);
        u64::from_le_bytes(head) == self.tail
    }
}
