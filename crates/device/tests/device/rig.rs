//! A device with its rings and tables in memory, and a driver's few words to use it.

use std::sync::Arc;

use amdvi_device::testing::{TestHost, TestMemory, TestObserver};
use amdvi_device::{Endpoint, Iommu, Options, Signal};
use amdvi_irt::Delivery;
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, CompletionWait, InvalidateDevtabEntry, InvalidateInterruptTable, InvalidateIommuAll,
};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::irte::{Irte32, Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, Status, offset};
use amdvi_regs::msi::Msi;

pub(crate) const COMMANDS: u64 = 0x1_0000;
pub(crate) const EVENTS: u64 = 0x2_0000;
pub(crate) const GA_LOG: u64 = 0x3_0000;
pub(crate) const STORE: u64 = 0x4_0000;
pub(crate) const IRT: u64 = 0x5_0000;
pub(crate) const GA_TAIL: u64 = 0x6_0000;
pub(crate) const BACKING: u64 = 0x7_0000;
pub(crate) const PAGE_TABLE: u64 = 0x8_0000;
pub(crate) const PPR_LOG: u64 = 0x9_0000;
pub(crate) const PPR_LOG_B: u64 = 0xa_0000;
pub(crate) const DEVICE_TABLE: u64 = 0x10_0000;
pub(crate) const RAM: u64 = 0x40_0000;
/// An address without memory behind it.
pub(crate) const NOWHERE: u64 = 0x1000_0000;

/// Len = 8: rings of 4 KiB.
pub(crate) const LEN_8: u64 = 8 << 56;

/// A NIC on a bus other than 0, so that a lost bus number shows.
pub(crate) const NIC: DeviceId = DeviceId::new(0x12, 3, 4);

pub(crate) const ALL_FEATURES: &str =
    "amd-iommu,xtsup=on,vapic=on,numint2k=on,segments=8,msi-cap-mmio=on";

/// Everything about page requests and devices' TLBs.
pub(crate) const SVA: &str = "amd-iommu,gtsup=on,pprsup=on,device-iotlb=on,ppr-auto-rsp=on,\
                              ppr-early=on,dual-ppr-log=on,prefsup=on";

pub(crate) struct Rig {
    pub(crate) memory: Arc<TestMemory>,
    pub(crate) host: Arc<TestHost>,
    pub(crate) iommu: Arc<Iommu>,
}

impl Rig {
    /// The device after reset.
    pub(crate) fn new(options: &str) -> Self {
        let memory = Arc::new(TestMemory::new(RAM));
        let host = Arc::new(TestHost::default());
        let options: Options = options.parse().expect("test options");
        let iommu = Iommu::new(&options, memory.clone(), host.clone());
        Self {
            memory,
            host,
            iommu,
        }
    }

    /// Rings and a full device table are in place, and everything but interrupts is enabled.
    pub(crate) fn enabled(options: &str) -> Self {
        let rig = Self::new(options);
        rig.enable();
        rig
    }

    /// What [`enabled`](Self::enabled) does to a device after reset.
    pub(crate) fn enable(&self) {
        self.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE | 0x1ff);
        self.write(offset::COMMAND_BUFFER_BASE, COMMANDS | LEN_8);
        self.write(offset::EVENT_LOG_BASE, EVENTS | LEN_8);
        self.set_control(|c| {
            c.with_iommu_en(true)
                .with_cmd_buf_en(true)
                .with_event_log_en(true)
        });
    }

    pub(crate) fn read(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.iommu.mmio_read(at, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.iommu.mmio_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, at: u64, value: u64) {
        self.iommu.mmio_write(at, &value.to_le_bytes());
    }

    pub(crate) fn write32(&self, at: u64, value: u32) {
        self.iommu.mmio_write(at, &value.to_le_bytes());
    }

    pub(crate) fn config(&self, at: u16) -> u32 {
        let mut data = [0; 4];
        self.iommu.config_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn set_config(&self, at: u16, value: u32) {
        self.iommu.config_write(at, &value.to_le_bytes());
    }

    pub(crate) fn control(&self) -> Control {
        Control::from_bits(self.read(offset::CONTROL))
    }

    pub(crate) fn set_control(&self, change: impl FnOnce(Control) -> Control) {
        self.write(offset::CONTROL, change(self.control()).into_bits());
    }

    pub(crate) fn status(&self) -> Status {
        Status::from_bits(self.read(offset::STATUS))
    }

    /// Puts commands behind the tail without telling the device; returns the new tail.
    pub(crate) fn queue<C: Into<Command> + Copy>(&self, commands: &[C]) -> u64 {
        let base = self.read(offset::COMMAND_BUFFER_BASE);
        let (address, bytes) = (
            base & 0x000f_ffff_ffff_f000,
            1u64 << ((base >> 56 & 15) + 4),
        );
        let mut tail = self.read(offset::COMMAND_TAIL);
        for &command in commands {
            self.memory
                .write_all(address + tail, &command.into().words());
            tail = (tail + 16) % bytes;
        }
        tail
    }

    pub(crate) fn submit<C: Into<Command> + Copy>(&self, commands: &[C]) {
        let tail = self.queue(commands);
        self.write32(offset::COMMAND_TAIL, tail as u32);
    }

    /// Submits a COMPLETION_WAIT with a store and checks that it has happened.
    pub(crate) fn completion_wait(&self) {
        self.memory.write(STORE, 0);
        self.submit(&[completion_wait_store(STORE, 0x1234_5678_9abc_def0)]);
        assert_eq!(self.memory.read(STORE), 0x1234_5678_9abc_def0);
    }

    /// Takes the events that are in the log.
    pub(crate) fn take_events(&self) -> Vec<Event> {
        let tail = self.read(offset::EVENT_TAIL);
        let mut head = self.read(offset::EVENT_HEAD);
        let mut events = Vec::new();
        while head != tail {
            let words = [
                self.memory.read(EVENTS + head),
                self.memory.read(EVENTS + head + 8),
            ];
            events.push(Event::decode(words));
            head = (head + 16) % 0x1000;
        }
        self.write32(offset::EVENT_HEAD, head as u32);
        events
    }

    /// The raw words of the only event in the log.
    pub(crate) fn take_event_words(&self) -> [u64; 2] {
        let events = self.take_events();
        assert_eq!(events.len(), 1, "{events:?}");
        events[0].words()
    }

    pub(crate) fn set_dte(&self, id: DeviceId, q0: DteQ0, q1: DteQ1, q2: DteQ2) {
        let gpa = DEVICE_TABLE + 32 * u64::from(id.0);
        self.memory
            .write_all(gpa, &[q0.into_bits(), q1.into_bits(), q2.into_bits(), 0]);
    }

    /// DMA blocked or not is nobody's business: V=0. Interrupts by a table of 2^len entries.
    pub(crate) fn remap_interrupts(&self, id: DeviceId, len: u8) {
        self.set_dte(id, DteQ0::new(), DteQ1::new(), remapping(len));
    }

    pub(crate) fn set_irte32(&self, index: u64, irte: Irte32) {
        let gpa = IRT + 4 * index;
        let shift = 8 * (gpa & 4);
        let word = self.memory.read(gpa & !7) & !(0xffff_ffff << shift);
        self.memory
            .write(gpa & !7, word | u64::from(irte.into_bits()) << shift);
    }

    pub(crate) fn set_irte128(&self, index: u64, low: Irte128Lo, high: Irte128Hi) {
        self.memory
            .write_all(IRT + 16 * index, &[low.into_bits(), high.into_bits()]);
    }

    pub(crate) fn nic(&self) -> Endpoint {
        self.iommu.endpoint(NIC)
    }

    pub(crate) fn observer(&self) -> Arc<TestObserver> {
        let observer = Arc::new(TestObserver::default());
        self.iommu.add_observer(observer.clone());
        observer
    }

    /// Programs the device's own MSI capability: vector to APIC 0.
    pub(crate) fn enable_msi(&self, vector: u8) {
        self.set_config(0x68, 0xfee0_0000);
        self.set_config(0x6c, 0);
        self.set_config(0x70, vector.into());
        self.set_config(0x64, 1 << 16);
    }

    /// The vectors of the device's deliveries since the last call.
    pub(crate) fn take_vectors(&self) -> Vec<u8> {
        self.host
            .take_deliveries()
            .iter()
            .map(|delivery| delivery.vector)
            .collect()
    }
}

/// DTE\[191:128\] with IV=1, IntCtl=10b and the table at [`IRT`].
pub(crate) fn remapping(len: u8) -> DteQ2 {
    DteQ2::new()
        .with_iv(true)
        .with_int_tab_len(len)
        .with_int_ctl(2)
        .with_int_tab_address(IRT)
}

pub(crate) fn completion_wait_store(gpa: u64, data: u64) -> CompletionWait {
    CompletionWait::new()
        .with_s(true)
        .with_store_address_8(gpa >> 3)
        .with_store_data(data)
}

pub(crate) fn invalidate_dte(id: DeviceId) -> InvalidateDevtabEntry {
    InvalidateDevtabEntry::new().with_device_id(id.0)
}

pub(crate) fn invalidate_irt(id: DeviceId) -> InvalidateInterruptTable {
    InvalidateInterruptTable::new().with_device_id(id.0)
}

pub(crate) fn invalidate_all() -> InvalidateIommuAll {
    InvalidateIommuAll::new()
}

pub(crate) fn fixed(vector: u8, dest: u8) -> Irte32 {
    Irte32::new()
        .with_remap_en(true)
        .with_vector(vector)
        .with_destination(dest)
}

pub(crate) const fn msi(index: u32) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: index,
    }
}

pub(crate) fn delivered(signal: Signal) -> Delivery {
    match signal {
        Signal::Delivered(delivery) => delivery,
        other => panic!("not delivered: {other:?}"),
    }
}
