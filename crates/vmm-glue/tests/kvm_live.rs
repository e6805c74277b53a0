//! The KVM adapters against a real `/dev/kvm`: split irqchip, 32-bit x2APIC IDs.
//!
//! Where `/dev/kvm` is missing or lacks something that is needed, each test prints a line
//! `skipped: …` past libtest's capture and passes.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::DeviceId;
use amdvi_regs::msi::{DeliveryMode, Msi, MsiData};
use amdvi_vmm_glue::ioapic::Ioapic;
use amdvi_vmm_glue::kvm::{
    IrqfdErrors, Irqfds, KvmIrqs, KvmMessage, KvmPins, MsiFormat, PinErrors, RouteTable,
};
use amdvi_vmm_glue::remap::RemapSource;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MP_STATE_RUNNABLE,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_mp_state, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An APIC ID that 8 bits can't hold.
const HIGH_ID: u32 = 300;

struct Machine {
    // Field order is drop order: vCPUs, then the VM, then the memory it maps.
    low: VcpuFd,
    high: VcpuFd,
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
}

fn enable(vm: &VmFd, cap: u32, name: &str, arg: u64) -> Result<(), String> {
    let mut request = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    request.args[0] = arg;
    vm.enable_cap(&request)
        .map_err(|error| format!("{name}: {error}"))
}

/// A vCPU in x2APIC mode with its local APIC enabled by software.
fn vcpu(kvm: &Kvm, vm: &VmFd, id: u32) -> Result<VcpuFd, String> {
    let vcpu = vm
        .create_vcpu(u64::from(id))
        .map_err(|e| format!("KVM_CREATE_VCPU {id}: {e}"))?;
    let mut cpuid = kvm
        .get_supported_cpuid(256)
        .map_err(|e| format!("CPUID: {e}"))?;
    for entry in cpuid
        .as_mut_slice()
        .iter_mut()
        .filter(|entry| entry.function == 1)
    {
        entry.ecx |= 1 << 21;
    }
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| format!("KVM_SET_CPUID2: {e}"))?;
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| format!("KVM_GET_SREGS: {e}"))?;
    sregs.apic_base |= 3 << 10;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)
        .map_err(|e| format!("KVM_SET_SREGS with x2APIC: {e}"))?;
    let mut lapic = vcpu
        .get_lapic()
        .map_err(|e| format!("KVM_GET_LAPIC: {e}"))?;
    // Spurious-interrupt vector register: vector ffh, APIC enabled.
    lapic.regs[0xf0] = 0xff_u8 as i8;
    lapic.regs[0xf1] = 1;
    vcpu.set_lapic(&lapic)
        .map_err(|e| format!("KVM_SET_LAPIC: {e}"))?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
    .map_err(|e| format!("KVM_SET_MP_STATE: {e}"))?;
    Ok(vcpu)
}

fn build() -> Result<Machine, String> {
    let kvm = Kvm::new().map_err(|error| error.to_string())?;
    let vm = kvm
        .create_vm()
        .map_err(|error| format!("KVM_CREATE_VM: {error}"))?;
    enable(&vm, KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", 24)?;
    let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(&vm, KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", flags.into())?;
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).map_err(|e| e.to_string())?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0x1_0000,
        userspace_addr: memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| error.to_string())? as u64,
    };
    // SAFETY: the region is an anonymous mapping of exactly this size, owned by `memory`, which the
    // returned `Machine` drops after the VM and its vCPUs.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| format!("KVM_SET_USER_MEMORY_REGION: {error}"))?;
    let low = vcpu(&kvm, &vm, 0)?;
    let high = vcpu(&kvm, &vm, HIGH_ID)?;
    Ok(Machine {
        low,
        high,
        vm: Arc::new(vm),
        memory,
    })
}

fn machine() -> Option<Machine> {
    match build() {
        Ok(machine) => Some(machine),
        Err(reason) => {
            // libtest captures the print macros, not the stream.
            let line = format!("skipped: /dev/kvm unusable: {reason}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// Whether `vector` is requested (in the IRR) at this vCPU.
fn pending(vcpu: &VcpuFd, vector: u8) -> bool {
    let lapic = vcpu.get_lapic().unwrap();
    let byte = 0x200 + usize::from(vector / 32) * 0x10 + usize::from(vector % 32 / 8);
    lapic.regs[byte] as u8 & 1 << (vector % 8) != 0
}

fn fixed(dest: u32, vector: u8) -> Delivery {
    Delivery {
        dest,
        dest_mode: DestMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        vector,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: false,
    }
}

fn signal(machine: &Machine, delivery: &Delivery) -> bool {
    let message = KvmMessage::encode(delivery, MsiFormat::X2ApicApi).unwrap();
    machine.vm.as_ref().signal_msi(message.to_msi()).unwrap() > 0
}

#[test]
fn a_signalled_msi_reaches_the_named_apic_and_no_other() {
    let Some(machine) = machine() else { return };
    assert!(signal(&machine, &fixed(HIGH_ID, 0x51)));
    assert!(pending(&machine.high, 0x51) && !pending(&machine.low, 0x51));
    assert!(signal(&machine, &fixed(0, 0x52)));
    assert!(pending(&machine.low, 0x52) && !pending(&machine.high, 0x52));
    assert!(
        !signal(&machine, &fixed(HIGH_ID + 1, 0x53)),
        "nobody has that ID"
    );
    // The low byte of 300 is 44: a truncated destination would have hit nobody as well, so name it.
    assert!(!signal(&machine, &fixed(HIGH_ID & 0xff, 0x54)));
}

#[test]
fn a_logical_destination_is_an_x2apic_cluster() {
    let Some(machine) = machine() else { return };
    // Logical x2APIC ID: cluster = ID[31:4], one bit for ID[3:0].
    let dest = HIGH_ID >> 4 << 16 | 1 << (HIGH_ID & 0xf);
    let logical = Delivery {
        dest_mode: DestMode::Logical,
        ..fixed(dest, 0x55)
    };
    assert!(signal(&machine, &logical));
    assert!(pending(&machine.high, 0x55) && !pending(&machine.low, 0x55));
    let lowest = Delivery {
        delivery_mode: DeliveryMode::LowestPriority,
        vector: 0x56,
        ..logical
    };
    assert!(signal(&machine, &lowest));
    assert!(pending(&machine.high, 0x56));
}

#[test]
fn nmi_is_taken_and_extint_is_dropped_by_kvm() {
    let Some(machine) = machine() else { return };
    let nmi = Delivery {
        delivery_mode: DeliveryMode::Nmi,
        ..fixed(HIGH_ID, 0)
    };
    assert!(signal(&machine, &nmi));
    let events = machine.high.get_vcpu_events().unwrap();
    assert!(events.nmi.pending != 0 || events.nmi.injected != 0);
    let ext = Delivery {
        delivery_mode: DeliveryMode::ExtInt,
        ..fixed(HIGH_ID, 0x57)
    };
    assert!(
        !signal(&machine, &ext),
        "KvmMessage documents that KVM drops these"
    );
    assert!(!pending(&machine.high, 0x57));
}

/// An irqfd's work may be deferred by the kernel: asks for a while.
fn soon(condition: impl Fn() -> bool) -> bool {
    (0..500).any(|_| {
        let done = condition();
        if !done {
            std::thread::sleep(Duration::from_millis(2));
        }
        done
    })
}

#[test]
fn an_irqfd_follows_its_route() {
    let Some(machine) = machine() else { return };
    let mut routes = RouteTable::new(MsiFormat::X2ApicApi, 24);
    let gsi = routes.allocate().unwrap();
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    routes.set(gsi, Some(&fixed(HIGH_ID, 0x61))).unwrap();
    assert!(routes.commit(&machine.vm).unwrap());
    machine.vm.register_irqfd(&line, gsi).unwrap();
    line.write(1).unwrap();
    assert!(soon(|| pending(&machine.high, 0x61)));

    routes.set(gsi, Some(&fixed(0, 0x62))).unwrap();
    assert!(routes.commit(&machine.vm).unwrap());
    line.write(1).unwrap();
    assert!(soon(|| pending(&machine.low, 0x62)));
    assert!(!pending(&machine.high, 0x62) && !pending(&machine.low, 0x61));

    // Blocked: no route. A second irqfd tells when the first has had its time.
    let other = EventFd::new(EFD_NONBLOCK).unwrap();
    let other_gsi = routes.allocate().unwrap();
    routes.set(gsi, None).unwrap();
    routes.set(other_gsi, Some(&fixed(0, 0x63))).unwrap();
    assert!(routes.commit(&machine.vm).unwrap());
    machine.vm.register_irqfd(&other, other_gsi).unwrap();
    line.write(1).unwrap();
    other.write(1).unwrap();
    assert!(soon(|| pending(&machine.low, 0x63)));
    assert!(!pending(&machine.high, 0x62));
    assert!(!routes.commit(&machine.vm).unwrap());
    assert_eq!(routes.commits(), 3);
}

/// Message n goes to vector n at the low CPU or at the high one, or is blocked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Low,
    High,
    /// Both: KVM does not do that on the spot.
    All,
    Blocked,
}

struct Tables(Mutex<Entry>);

impl Tables {
    fn set(&self, entry: Entry) {
        *self.0.lock().unwrap() = entry;
    }
}

impl RemapSource for Tables {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        let dest = match *self.0.lock().unwrap() {
            Entry::Low => 0,
            Entry::High => HIGH_ID,
            Entry::All => u32::MAX,
            Entry::Blocked => return None,
        };
        Some(fixed(dest, msi.data as u8))
    }
    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.request(msi)
    }
}

/// Takes `vector` out of the IRR, as if it had been handled; whether it was there.
fn take(vcpu: &VcpuFd, vector: u8) -> bool {
    let was = pending(vcpu, vector);
    let mut lapic = vcpu.get_lapic().unwrap();
    let byte = 0x200 + usize::from(vector / 32) * 0x10 + usize::from(vector % 32 / 8);
    lapic.regs[byte] &= !(1 << (vector % 8)) as i8;
    vcpu.set_lapic(&lapic).unwrap();
    was
}

#[test]
fn irqfds_follow_the_tables_with_few_tables_of_routes() {
    const VECTORS: u16 = 64;
    const FIRST: u8 = 0x40;
    let Some(machine) = machine() else { return };
    let table = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
    let irqfds = Irqfds::new(Arc::clone(&machine.vm), table);
    let tables = Arc::new(Tables(Mutex::new(Entry::High)));
    let function = irqfds.function(0, DeviceId::new(0, 5, 0), Arc::clone(&tables), VECTORS);
    let message = |vector: u16| Msi {
        address: 0xfee0_0000,
        data: u32::from(FIRST) + u32::from(vector),
    };
    let producers: Vec<_> = (0..VECTORS)
        .map(|vector| function.producer(vector).unwrap())
        .collect();
    let fire = |vector: u16| {
        producers[usize::from(vector)].write(1).unwrap();
        // What the VMM's event loop does for an eventfd that can be read.
        function.service(vector);
    };
    let arrives = |cpu: &VcpuFd, vector: u16| {
        let vector = FIRST + vector as u8;
        assert!(soon(|| take(cpu, vector)), "{vector:#x} does not arrive");
    };
    let other = |cpu| {
        let (high, low) = (&machine.high, &machine.low);
        if std::ptr::eq(cpu, high) { low } else { high }
    };
    let all_arrive = |cpu: &VcpuFd| {
        (0..VECTORS).for_each(&fire);
        (0..VECTORS).for_each(|vector| arrives(cpu, vector));
        assert!((0..VECTORS).all(|vector| !pending(other(cpu), FIRST + vector as u8)));
    };

    (0..VECTORS).for_each(|vector| function.set_message(vector, Some(message(vector))));
    all_arrive(&machine.high);
    assert_eq!(irqfds.counters().commits, 0);
    // Hot: all get their routes at once.
    for _ in 0..64 {
        fire(0);
        arrives(&machine.high, 0);
    }
    assert_eq!(irqfds.counters().commits, 1);
    assert!((0..VECTORS).all(|vector| function.route(vector).is_some()));
    all_arrive(&machine.high);

    // All of them go elsewhere: one table.
    tables.set(Entry::Low);
    irqfds.tables_changed(0, |_| true, || ());
    assert_eq!(irqfds.counters().commits, 2);
    let by_userspace = irqfds.counters().by_userspace;
    all_arrive(&machine.low);
    assert_eq!(
        irqfds.counters().by_userspace,
        by_userspace,
        "KVM did it alone"
    );
    // Nothing has changed: none.
    irqfds.tables_changed(0, |_| true, || ());
    assert_eq!(irqfds.counters().commits, 2);

    // Blocked: nothing arrives, and each came to the VMM.
    tables.set(Entry::Blocked);
    irqfds.tables_changed(0, |_| true, || ());
    (0..VECTORS).for_each(&fire);
    assert_eq!(
        irqfds.counters().by_userspace,
        by_userspace + u64::from(VECTORS)
    );
    // Masked: kept until it is not.
    tables.set(Entry::High);
    function.set_message(5, None);
    fire(5);
    assert!(!pending(&machine.high, FIRST + 5));
    function.set_message(5, Some(message(5)));
    arrives(&machine.high, 5);
    all_arrive(&machine.high);
    assert_eq!(irqfds.take_errors(), IrqfdErrors::default());
}

#[test]
fn once_settled_every_interrupt_is_in_a_local_apic() {
    const VECTORS: u16 = 32;
    const ROUNDS: u32 = 50;
    let Some(machine) = machine() else { return };
    let table = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
    let irqfds = Irqfds::new(Arc::clone(&machine.vm), table);
    let tables = Arc::new(Tables(Mutex::new(Entry::All)));
    let function = irqfds.function(0, DeviceId::new(0, 5, 0), tables, VECTORS);
    let message = |vector: u16| Msi {
        address: 0xfee0_0000,
        data: 0x40 + u32::from(vector),
    };
    let send = |vector| function.trigger(vector, message(vector), |_| ()).is_some();
    for vector in (0..VECTORS).chain((1..64).map(|_| 0)) {
        send(vector);
    }
    let mut at_once = 0;
    for round in 0..ROUNDS {
        for vector in 0..VECTORS {
            assert!(send(vector), "all have routes");
            at_once += u32::from(pending(&machine.low, 0x40 + vector as u8));
        }
        irqfds.settle();
        let vectors = || (0x40..).take(VECTORS.into());
        for (vector, cpu) in
            vectors().flat_map(|vector| [(vector, &machine.low), (vector, &machine.high)])
        {
            assert!(take(cpu, vector), "{vector:#x} in round {round}");
        }
        irqfds.settle();
        assert!(
            !vectors().any(|vector| pending(&machine.low, vector)),
            "twice"
        );
    }
    let all = ROUNDS * u32::from(VECTORS);
    eprintln!("{at_once} of {all} interrupts were there before");
    assert_eq!(irqfds.take_errors(), IrqfdErrors::default());
}

#[test]
fn kvm_accepts_a_full_table() {
    let Some(machine) = machine() else { return };
    let mut routes = RouteTable::new(MsiFormat::X2ApicApi, 24);
    for gsi in 0..4096 {
        routes.set(gsi, Some(&fixed(HIGH_ID, 0x40))).unwrap();
    }
    assert!(routes.commit(&machine.vm).unwrap());
    for gsi in 0..4096 {
        routes.set(gsi, None).unwrap();
    }
    assert!(
        routes.commit(&machine.vm).unwrap(),
        "the empty table is accepted, too"
    );
}

/// Index 9 → vector 99h at APIC ID 300; everything else is blocked.
struct OneEntry;

impl RemapSource for OneEntry {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        let data = MsiData::from_bits(msi.data);
        (data.irte_index() == 9).then(|| Delivery {
            trigger: if data.level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: data.assert(),
            ..fixed(HIGH_ID, 0x99)
        })
    }
    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        self.request(msi)
    }
}

/// What the guest program does, as the VMM sees it.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Eoi(u8),
    Port(u8),
    Other(String),
}

/// Real-mode guest: waits for interrupts; the handler of 99h sends an EOI and writes port 10h.
fn load_guest(memory: &GuestMemoryMmap) {
    const MAIN: [u8; 4] = [0xfb, 0xf4, 0xeb, 0xfd]; // sti; l: hlt; jmp l
    const HANDLER: [u8; 17] = [
        0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00, // mov ecx, 80bh (x2APIC EOI)
        0x66, 0x31, 0xc0, // xor eax, eax
        0x66, 0x31, 0xd2, // xor edx, edx
        0x0f, 0x30, // wrmsr
        0xe6, 0x10, // out 10h, al
        0xcf, // iret
    ];
    memory.write_slice(&MAIN, GuestAddress(0x1000)).unwrap();
    memory.write_slice(&HANDLER, GuestAddress(0x1100)).unwrap();
    memory
        .write_obj(0x0000_1100u32, GuestAddress(0x99 * 4))
        .unwrap();
}

#[test]
fn a_level_pin_ends_by_the_eoi_exit_of_its_remapped_vector() {
    let Some(Machine {
        low,
        mut high,
        vm,
        memory,
    }) = machine()
    else {
        return;
    };
    load_guest(&memory);
    let mut regs = high.get_regs().unwrap();
    regs.rip = 0x1000;
    regs.rsp = 0x8000;
    regs.rflags = 2;
    high.set_regs(&regs).unwrap();

    let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
    let mut ioapic = Ioapic::new(
        0,
        KvmPins::new(OneEntry, Arc::clone(&vm), Arc::clone(&routes)),
    );
    // Pin 9: index 9, level triggered, unmasked.
    ioapic.mmio_write(0x00, &[0x22]);
    ioapic.mmio_write(0x10, &0x0000_8009u32.to_le_bytes());
    ioapic.set_line(9, true).unwrap();
    assert!(ioapic.rte(9).unwrap().remote_irr());
    assert!(pending(&high, 0x99));

    // The vCPU runs on its own thread, so that a guest that hangs fails the test instead.
    let (seen, exits) = mpsc::channel();
    let (resume, resumed) = mpsc::channel();
    let runner = std::thread::spawn(move || {
        loop {
            let exit = match high.run() {
                Ok(VcpuExit::IoapicEoi(vector)) => Seen::Eoi(vector),
                Ok(VcpuExit::IoOut(0x10, data)) => Seen::Port(data[0]),
                other => Seen::Other(format!("{other:?}")),
            };
            // The VMM is done when either end is closed.
            if seen.send(exit).is_err() || resumed.recv().is_err() {
                return;
            }
        }
    });
    let next = || {
        exits
            .recv_timeout(Duration::from_secs(30))
            .expect("the guest hangs")
    };

    // Each round is one EOI exit and one port write. KVM owes the EOI exit before the guest is
    // entered again; a backend that emulates several instructions at once may be at the port first.
    for round in 0..2 {
        let (mut ended, mut wrote) = (false, false);
        while !(ended && wrote) {
            match next() {
                Seen::Eoi(vector) => {
                    assert_eq!(vector, 0x99, "the remapped vector, not the RTE's 09h");
                    ioapic.set_line(9, round == 0).unwrap();
                    ioapic.eoi(vector);
                    // Still asserted in round 0: sent again at once.
                    assert_eq!(ioapic.rte(9).unwrap().remote_irr(), round == 0);
                    ended = true;
                }
                Seen::Port(value) => {
                    assert!((value, wrote) == (0, false), "one interrupt, one write");
                    wrote = true;
                }
                Seen::Other(exit) => panic!("unexpected exit {exit}"),
            }
            if !(round == 1 && ended && wrote) {
                resume.send(()).unwrap();
            }
        }
    }
    drop(resume);
    runner.join().unwrap();

    assert_eq!(
        routes.lock().unwrap().commits(),
        1,
        "two interrupts, one new table"
    );
    assert_eq!(ioapic.sink_mut().take_errors(), PinErrors::default());
    assert!(!pending(&low, 0x99));
    drop((vm, memory));
}

#[test]
fn what_kvm_refuses_is_reported_with_the_ioctls_name() {
    let Some(machine) = machine() else { return };
    // A low byte in address_hi is invalid with 32-bit IDs.
    let bad = KvmMessage {
        address_lo: 0xfee0_0000,
        address_hi: 0x1,
        data: 0x40,
    };
    let refused = KvmIrqs::set_gsi_routing(machine.vm.as_ref(), &[bad.to_route(24)]);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(22));
    let many = vec![KvmMessage::default().to_route(0); 4097];
    let refused = KvmIrqs::set_gsi_routing(machine.vm.as_ref(), &many).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("KVM_SET_GSI_ROUTING with 4097 entries"),
        "{refused}"
    );
}
