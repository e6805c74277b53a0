//! A machine with one function behind an IOMMU, and a KVM that remembers what it was asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use amdvi_device::testing::{TestHost, TestMemory};
use amdvi_device::{Iommu, Options};
use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::command::{
    Command, CompletionWait, InvalidateDevtabEntry, InvalidateInterruptTable,
};
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{Irte128GuestLo, Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Control, CounterAddress, CounterEvent, CounterFunction, offset};
use amdvi_regs::msi::{DeliveryMode, Msi};
use amdvi_vmm_glue::endpoint::RemappedSource;
use amdvi_vmm_glue::kvm::{
    FunctionIrqfds, IrqfdObserver, Irqfds, KvmIrqfds, KvmIrqs, KvmMessage, MsiFormat, RouteTable,
};
use amdvi_vmm_glue::remap::{RemapSource, Unremapped};
use kvm_bindings::{kvm_irq_routing_entry, kvm_msi};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const NIC: DeviceId = DeviceId::new(0, 5, 0);
const OTHER: DeviceId = DeviceId::new(0, 6, 0);
const COMMANDS: u64 = 0x1_0000;
const STORE: u64 = 0x2_0000;
const DEVICE_TABLE: u64 = 0x3_0000;
const IRT: u64 = 0x4_0000;
/// The table of [`Dte::OtherTable`], whose entry n has target n + [`OTHER_TARGET`].
const OTHER_IRT: u64 = 0x5_0000;
/// Page of a guest virtual APIC.
const BACKING_PAGE: u64 = 0x6_0000;
const EVENTS: u64 = 0x10_0000;
/// 32,768 entries: more than any test logs.
const EVENTS_LENGTH: u64 = 15;

/// What entries of the other table have for targets.
pub(crate) const OTHER_TARGET: u16 = 1000;
/// Length of the table of [`Dte::ShortTable`].
pub(crate) const SHORT: u16 = 32;

/// What the function's DTE says of its interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dte {
    /// They are remapped by the table that [`Machine::write`] writes.
    Remap,
    /// By another table.
    OtherTable,
    /// By the first [`SHORT`] entries only.
    ShortTable,
    /// They are forwarded, IntCtl = 1.
    Forward,
    /// They are blocked, IntCtl = 0.
    Abort,
    /// IV = 0.
    NotValid,
}

/// Interrupts that make a vector hot.
pub(crate) const HOT: u32 = 64;

/// A KVM that knows what irqfds do: what is written while one is assigned becomes the interrupt of its
/// route, or is lost without one.
pub(crate) struct Kvm(Mutex<KvmState>);

struct KvmState {
    /// Which of many irqfds were written.
    epoll: Epoll,
    routes: BTreeMap<u32, KvmMessage>,
    irqfds: BTreeMap<u32, EventFd>,
    sent: Vec<KvmMessage>,
    tables: u64,
    lost: u64,
    refuse_tables: bool,
    /// What is written is delivered some time later, or when the irqfd is deassigned.
    defers: bool,
    on_their_way: Vec<u32>,
}

impl KvmState {
    fn interrupt(&mut self, gsi: u32) {
        if self.defers {
            self.on_their_way.push(gsi);
        } else {
            self.deliver(gsi);
        }
    }

    fn deliver(&mut self, gsi: u32) {
        match self.routes.get(&gsi) {
            Some(route) => self.sent.push(*route),
            None => self.lost += 1,
        }
    }

    fn pump(&mut self) {
        let mut events = [EpollEvent::default(); 8];
        while let Ok(count @ 1..) = self.epoll.wait(0, &mut events) {
            for event in &events[..count] {
                let gsi = event.data() as u32;
                self.irqfds[&gsi].read().unwrap();
                self.interrupt(gsi);
            }
        }
    }

    fn watch(&self, operation: ControlOperation, event: &EventFd, gsi: u32) {
        let readable = EpollEvent::new(EventSet::IN, gsi.into());
        self.epoll
            .ctl(operation, event.as_raw_fd(), readable)
            .unwrap();
    }
}

impl Kvm {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(KvmState {
            epoll: Epoll::new().unwrap(),
            routes: BTreeMap::new(),
            irqfds: BTreeMap::new(),
            sent: Vec::new(),
            tables: 0,
            lost: 0,
            refuse_tables: false,
            defers: false,
            on_their_way: Vec::new(),
        })))
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut KvmState) -> T) -> T {
        use_it(&mut self.0.lock().unwrap())
    }

    /// KVM takes a write at once; this KVM takes it now.
    pub(crate) fn pump(&self) {
        self.with(KvmState::pump);
    }

    pub(crate) fn take_sent(&self) -> Vec<KvmMessage> {
        self.with(|kvm| std::mem::take(&mut kvm.sent))
    }

    /// Tables that it has taken.
    pub(crate) fn tables(&self) -> u64 {
        self.with(|kvm| kvm.tables)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.with(|kvm| kvm.lost)
    }

    pub(crate) fn assigned(&self) -> usize {
        self.with(|kvm| kvm.irqfds.len())
    }

    /// From now on nothing is delivered on the spot.
    pub(crate) fn defer(&self) {
        self.with(|kvm| kvm.defers = true);
    }

    pub(crate) fn refuse_tables(&self, refuse: bool) {
        self.with(|kvm| kvm.refuse_tables = refuse);
    }
}

impl KvmIrqs for Kvm {
    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        self.with(|kvm| {
            if kvm.refuse_tables {
                return Err(io::Error::from_raw_os_error(12));
            }
            kvm.pump();
            let message = |entry: &kvm_irq_routing_entry| {
                // SAFETY: every route of these tests is of the MSI type, and all bits of its words are
                // numbers.
                let msi = unsafe { entry.u.msi };
                KvmMessage {
                    address_lo: msi.address_lo,
                    address_hi: msi.address_hi,
                    data: msi.data,
                }
            };
            kvm.routes = entries.iter().map(|e| (e.gsi, message(e))).collect();
            kvm.tables += 1;
            Ok(())
        })
    }

    fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool> {
        self.with(|kvm| kvm.sent.push(msi.into()));
        Ok(true)
    }
}

impl KvmIrqfds for Kvm {
    fn assign_irqfd(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.with(|kvm| {
            let event = event.try_clone()?;
            // What is in the counter makes an interrupt, and stays there.
            if let Ok(count) = event.read() {
                event.write(count)?;
                kvm.interrupt(gsi);
            }
            kvm.watch(ControlOperation::Add, &event, gsi);
            assert!(kvm.irqfds.insert(gsi, event).is_none(), "assigned twice");
            Ok(())
        })
    }

    fn deassign_irqfd(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        self.with(|kvm| {
            kvm.pump();
            let event = kvm.irqfds.remove(&gsi).expect("not assigned");
            kvm.watch(ControlOperation::Delete, &event, gsi);
            let waiting = std::mem::take(&mut kvm.on_their_way);
            let (ours, others) = waiting.into_iter().partition(|other| *other == gsi);
            kvm.on_their_way = others;
            let ours: Vec<u32> = ours;
            ours.into_iter().for_each(|gsi| kvm.deliver(gsi));
            Ok(())
        })
    }
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered(Delivery),
    Blocked,
}

/// The message of entry `n`.
pub(crate) fn message(n: u16) -> Msi {
    Msi {
        address: 0xfee0_0004,
        data: n.into(),
    }
}

/// Where an entry for target `n` sends interrupts; all different.
pub(crate) fn target(n: u16) -> Delivery {
    Delivery {
        dest: u32::from(n / 200) + 250,
        dest_mode: DestMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        vector: 0x20 + (n % 200) as u8,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: false,
    }
}

pub(crate) struct Machine {
    pub(crate) kvm: Arc<Kvm>,
    pub(crate) table: Arc<Mutex<RouteTable>>,
    pub(crate) irqfds: Arc<Irqfds<Arc<Kvm>>>,
    pub(crate) function: Arc<FunctionIrqfds<Arc<Kvm>>>,
    memory: Arc<TestMemory>,
    iommu: Arc<Iommu>,
    source: RemappedSource,
    programmed: RefCell<Vec<Msi>>,
    /// What each vector sent last.
    sent: RefCell<Vec<Msi>>,
}

impl Machine {
    /// A function whose vector n has the message of entry n, which has target n.
    pub(crate) fn new(vectors: u16) -> Self {
        let memory = Arc::new(TestMemory::new(0x40_0000));
        let options: Options = "amd-iommu,xtsup=on,numint2k=on,vapic=on,perf-counters=2x4"
            .parse()
            .unwrap();
        let iommu = Iommu::new(&options, memory.clone(), Arc::new(TestHost::default()));
        let write = |at, value: u64| iommu.mmio_write(at, &value.to_le_bytes());
        write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE);
        write(offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
        write(offset::EVENT_LOG_BASE, EVENTS | EVENTS_LENGTH << 56);

        let kvm = Kvm::new();
        let table = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let irqfds = Irqfds::new(kvm.clone(), table.clone());
        let source = || RemappedSource::new(iommu.endpoint(NIC));
        let machine = Self {
            function: irqfds.function(0, NIC, source(), vectors),
            source: source(),
            kvm,
            table,
            memory,
            irqfds,
            programmed: RefCell::new((0..vectors).map(message).collect()),
            sent: RefCell::new((0..vectors).map(message).collect()),
            iommu,
        };
        machine.set_dte(Dte::Remap);
        for n in 0..vectors {
            machine.write(n, Some(n));
        }
        machine.enable(true);
        let observer = IrqfdObserver::new(machine.irqfds.clone(), 0);
        machine.iommu.add_observer(Arc::new(observer));
        machine
    }

    /// The same with a route for each vector.
    pub(crate) fn hot(vectors: u16) -> Self {
        let machine = Self::new(vectors);
        machine.invalidate();
        machine.wait();
        for vector in (0..vectors).chain((1..HOT).map(|_| 0)) {
            machine.fire(vector);
        }
        assert_eq!(machine.routed(), usize::from(vectors));
        machine
    }

    /// A way through the IOMMU for another thread.
    pub(crate) fn another_source(&self) -> RemappedSource {
        RemappedSource::new(self.iommu.endpoint(NIC))
    }

    /// Another function with the same DeviceID and messages.
    pub(crate) fn another_function(&self, iommu: u32) -> Arc<FunctionIrqfds<Arc<Kvm>>> {
        self.irqfds
            .function(iommu, NIC, self.another_source(), 2048)
    }

    pub(crate) fn drop_function(&mut self) {
        self.function = self.irqfds.function(0, OTHER, Unremapped, 0);
    }

    pub(crate) fn format(&self) -> MsiFormat {
        self.table.lock().unwrap().format()
    }

    fn register(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.iommu.mmio_read(at, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn enable(&self, on: bool) {
        let control = Control::RESET
            .with_iommu_en(on)
            .with_cmd_buf_en(true)
            .with_event_log_en(true)
            .with_ga_en(true)
            .with_xt_en(true)
            .with_gam_en(1)
            .with_num_int_remap_mode(1)
            .into_bits();
        self.iommu
            .mmio_write(offset::CONTROL, &control.to_le_bytes());
    }

    /// Events that were ever logged.
    pub(crate) fn events(&self) -> u64 {
        self.register(offset::EVENT_TAIL) / 16
    }

    pub(crate) fn told(&self) -> u64 {
        self.irqfds.counters().notifications
    }

    fn counter(function: CounterFunction) -> u64 {
        CounterAddress {
            bank: 0,
            counter: 0,
            function,
        }
        .offset()
    }

    /// Turns a counter of interrupts on or off; whether that is a change.
    pub(crate) fn count_interrupts(&self, on: bool) -> bool {
        let at = Self::counter(CounterFunction::Source);
        let event = CounterEvent::VapicIntNonGuest.bits();
        let source = if on { u64::from(event) } else { 0 };
        let before = self.register(at);
        self.iommu.mmio_write(at, &source.to_le_bytes());
        before != source
    }

    pub(crate) fn counted(&self) -> u64 {
        self.register(Self::counter(CounterFunction::Value))
    }

    /// Rewrites the function's DTE; the IOMMU need not notice before it is invalidated.
    pub(crate) fn set_dte(&self, dte: Dte) {
        let table = match dte {
            Dte::OtherTable => OTHER_IRT,
            _ => IRT,
        };
        if dte == Dte::OtherTable {
            let entries = self.programmed.borrow().len() as u16;
            (0..entries).for_each(|n| self.write_at(table, n, Some(n + OTHER_TARGET)));
        }
        let q2 = DteQ2::new()
            .with_iv(dte != Dte::NotValid)
            .with_int_ctl(match dte {
                Dte::Forward => 1,
                Dte::Abort => 0,
                _ => 2,
            })
            .with_int_tab_len(if dte == Dte::ShortTable {
                SHORT.ilog2() as u8
            } else {
                11
            })
            .with_int_tab_address(table);
        let gpa = DEVICE_TABLE + 32 * u64::from(NIC.0);
        self.memory.write(gpa + 16, q2.into_bits());
    }

    /// Rewrites entry `n`; the IOMMU need not notice before it is invalidated.
    pub(crate) fn write(&self, n: u16, to: Option<u16>) {
        self.write_at(IRT, n, to);
    }

    /// Makes entry `n` that of a guest virtual APIC.
    pub(crate) fn write_guest(&self, n: u16) {
        let low = Irte128GuestLo::new()
            .with_remap_en(true)
            .with_guest_mode(true);
        let high = Irte128Hi::new()
            .with_vector(0x40)
            .with_ga_root(BACKING_PAGE >> 12);
        let at = IRT + 16 * u64::from(n);
        self.memory
            .write_all(at, &[low.into_bits(), high.into_bits()]);
    }

    fn write_at(&self, table: u64, n: u16, to: Option<u16>) {
        let delivery = to.map(target);
        let (dest, vector) = delivery.map_or((0, 0), |d| (d.dest, d.vector));
        let low = Irte128Lo::new()
            .with_remap_en(to.is_some())
            .with_destination_lo(dest);
        let high = Irte128Hi::new().with_vector(vector);
        let at = table + 16 * u64::from(n);
        self.memory
            .write_all(at, &[low.into_bits(), high.into_bits()]);
    }

    fn command(&self, command: Command) {
        let tail = self.register(offset::COMMAND_TAIL);
        self.memory.write_all(COMMANDS + tail, &command.words());
        let tail = (tail + 16) % 0x1000;
        self.iommu
            .mmio_write(offset::COMMAND_TAIL, &tail.to_le_bytes());
    }

    pub(crate) fn invalidate(&self) {
        self.command(InvalidateInterruptTable::new().with_device_id(NIC.0).into());
    }

    /// What a guest sends after it changed the DTE.
    pub(crate) fn invalidate_dte(&self) {
        self.command(InvalidateDevtabEntry::new().with_device_id(NIC.0).into());
        self.invalidate();
    }

    pub(crate) fn invalidate_other(&self) {
        self.command(
            InvalidateInterruptTable::new()
                .with_device_id(OTHER.0)
                .into(),
        );
    }

    pub(crate) fn wait(&self) {
        let wait = CompletionWait::new()
            .with_s(true)
            .with_store_address_8(STORE >> 3)
            .with_store_data(1);
        self.memory.write(STORE, 0);
        self.command(wait.into());
        assert_eq!(self.memory.read(STORE), 1);
    }

    /// Gives `vector` the message of entry `entry`.
    pub(crate) fn program(&self, vector: u16, entry: u16) {
        self.programmed.borrow_mut()[usize::from(vector)] = message(entry);
    }

    pub(crate) fn programmed(&self, vector: u16) -> Msi {
        self.programmed.borrow()[usize::from(vector)]
    }

    pub(crate) fn fire(&self, vector: u16) -> Outcome {
        let msi = self.programmed(vector);
        self.sent.borrow_mut()[usize::from(vector)] = msi;
        self.fire_through(&self.function, vector, msi)
    }

    /// Fires a vector, as a device in the VMM does, and checks that KVM sends one interrupt or none.
    pub(crate) fn fire_through(
        &self,
        function: &FunctionIrqfds<Arc<Kvm>>,
        vector: u16,
        msi: Msi,
    ) -> Outcome {
        let mut told = None;
        let routed = function.trigger(vector, msi, |delivery| told = Some(*delivery));
        assert_eq!(told, routed);
        let delivery = routed.or_else(|| {
            self.source.request_with(msi, &mut |delivery| {
                let message = KvmMessage::encode(delivery, self.format()).unwrap();
                self.kvm.signal_msi(message.to_msi()).unwrap();
            })
        });
        self.kvm.pump();
        let expected = delivery.map(|d| KvmMessage::encode(&d, self.format()).unwrap());
        assert_eq!(self.kvm.take_sent(), Vec::from_iter(expected));
        delivery.map_or(Outcome::Blocked, Outcome::Delivered)
    }

    /// Vectors that have a route.
    pub(crate) fn routed(&self) -> usize {
        let vectors = self.programmed.borrow().len() as u16;
        let routed = (0..vectors).filter(|v| self.function.route(*v).is_some());
        let routed = routed.count();
        assert_eq!(routed, self.kvm.assigned(), "KVM has the eventfds of these");
        routed
    }

    /// What KVM would do with a write to any irqfd is what the tables say now.
    pub(crate) fn assert_routes_are_fresh(&self) {
        let mut fresh = Vec::new();
        for (vector, msi) in (0..).zip(self.sent.borrow().iter()) {
            if let Some(route) = self.function.route(vector) {
                assert_eq!(Some(route), self.source.route(*msi), "vector {vector}");
                fresh.push(KvmMessage::encode(&route, self.format()).unwrap());
            }
        }
        let mut kvm: Vec<_> = self.kvm.with(|kvm| {
            let route = |gsi: &u32| *kvm.routes.get(gsi).expect("an irqfd without a route");
            kvm.irqfds.keys().map(route).collect()
        });
        for messages in [&mut fresh, &mut kvm] {
            messages.sort_by_key(|m| (m.address_hi, m.address_lo, m.data));
        }
        assert_eq!(kvm, fresh);
    }
}
