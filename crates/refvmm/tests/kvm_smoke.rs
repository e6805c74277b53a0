//! The payload's smoke scenario on a machine without an IOMMU: vCPUs, interrupts, NMIs and EOIs.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::Record;
use amdvi_guest::smoke;
use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_refvmm::kvm::bus::NoDevices;
use amdvi_refvmm::kvm::{
    Bus, Config, Injected, Injector, KvmError, Machine, Payload, Start, probe,
};
use amdvi_regs::msi::DeliveryMode;
use amdvi_vmm_glue::kvm::RouteTable;
use kvm_ioctls::VmFd;

/// Names the payload's ELF file.
const PAYLOAD: &str = "AMDVI_PAYLOAD";

/// The device that the smoke scenario expects.
struct Sender {
    injector: Injector,
    vm: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    eois: AtomicU32,
}

impl Bus for Sender {
    fn port_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_out(&self, _: usize, _: u16, _: &[u8]) {}

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        assert_eq!((gpa, data.len()), (smoke::BASE + smoke::EOIS, 4));
        data.copy_from_slice(&self.eois.load(Ordering::SeqCst).to_le_bytes());
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        assert_eq!(gpa, smoke::BASE + smoke::SEND);
        let bits = u64::from_le_bytes(data.try_into().expect("eight bytes"));
        let record = Record::from_bits(bits).expect("a valid record");
        let delivery = Delivery {
            dest: record.dest,
            dest_mode: if record.logical {
                DestMode::Logical
            } else {
                DestMode::Physical
            },
            delivery_mode: DeliveryMode::from_bits(record.delivery_mode),
            vector: record.vector,
            trigger: if record.level {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: true,
            redirection_hint: false,
            rq_eoi: false,
        };
        if record.level {
            // What makes KVM tell of the EOI is a pin's level-triggered route.
            let mut routes = self.routes.lock().unwrap();
            routes.set(5, Some(&delivery)).unwrap();
            routes.commit(&self.vm).unwrap();
        }
        assert_eq!(
            self.injector.deliver(&delivery).unwrap(),
            Injected::Accepted,
            "{delivery}"
        );
    }

    fn ioapic_eoi(&self, vector: u8) {
        assert_eq!(vector, smoke::LEVEL_VECTOR);
        self.eois.fetch_add(1, Ordering::SeqCst);
    }
}

/// The payload, or why the test says "skipped".
fn payload() -> Option<Payload> {
    if let Err(why) = probe() {
        eprintln!("skipped: {why}");
        return None;
    }
    let Some(path) = std::env::var_os(PAYLOAD) else {
        eprintln!(
            "skipped: {PAYLOAD} does not name the payload's file; `cargo xtask test` sets it"
        );
        return None;
    };
    Some(Payload::from_file(&PathBuf::from(path)).expect("the payload that the variable names"))
}

fn config(apic_ids: &[u32]) -> Config {
    Config {
        apic_ids: apic_ids.to_vec(),
        timeout: Duration::from_secs(30),
        ..Config::default()
    }
}

#[test]
fn every_cpu_gets_each_interrupt_once_apic_id_300_included() {
    let Some(payload) = payload() else { return };
    let began = Instant::now();
    let machine = Machine::new(config(&[0, 1, 2, 300])).unwrap();
    let built = began.elapsed();
    let sender = Sender {
        injector: machine.injector(),
        vm: Arc::clone(machine.vm().fd()),
        routes: Arc::clone(machine.vm().routes()),
        eois: AtomicU32::new(0),
    };
    let start = Start {
        rsdp: 0,
        scenario: smoke::SCENARIO,
    };
    let result = machine.run(Arc::new(sender), &payload, start).unwrap();
    let report = result.report;
    assert_eq!(report.passed, 1, "{}", report.detail());
    let per_cpu = smoke::VECTORS.len() as u64 + smoke::NMIS + 2;
    assert_eq!(report.delivered, 4 * per_cpu + 2);
    eprintln!(
        "{}; machine built in {built:?}, ran {:?}, {} ns per interrupt from MMIO write to handler",
        report.detail(),
        result.elapsed,
        report.total_ns / (4 * smoke::VECTORS.len() as u64),
    );
}

#[test]
fn a_scenario_that_does_not_exist_is_reported_not_run() {
    let Some(payload) = payload() else { return };
    let machine = Machine::new(config(&[0])).unwrap();
    let start = Start {
        rsdp: 0,
        scenario: "of-tomorrow",
    };
    let result = machine.run(Arc::new(NoDevices), &payload, start).unwrap();
    assert_eq!(result.report.passed, 0);
    assert!(
        result
            .report
            .detail()
            .contains("no scenario called \"of-tomorrow\""),
        "{}",
        result.report.detail()
    );
}

#[test]
fn a_name_that_does_not_fit_is_refused_before_anything_runs() {
    let Some(payload) = payload() else { return };
    let start = Start {
        rsdp: 0,
        scenario: "a-name-that-is-longer-than-the-room-for-it",
    };
    let result = Machine::new(config(&[0]))
        .unwrap()
        .run(Arc::new(NoDevices), &payload, start);
    let error = result.err().expect("an error").to_string();
    assert!(error.contains("1 to 32 bytes"), "{error}");
}

#[test]
fn a_panic_and_an_exception_in_the_payload_say_where() {
    let Some(payload) = payload() else { return };
    for (scenario, expected_code, expected) in [
        (smoke::PANIC, 1, "bare/mod.rs"),
        (
            smoke::EXCEPTION,
            0x106,
            "exception 6 (#UD) on CPU 0: RIP 0x10",
        ),
    ] {
        let start = Start { rsdp: 0, scenario };
        let result =
            Machine::new(config(&[0, 1]))
                .unwrap()
                .run(Arc::new(NoDevices), &payload, start);
        let error = result.err().expect("an error");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(
            matches!(error, KvmError::Exit { code, .. } if code == expected_code),
            "{error}"
        );
    }
}

/// Runs `code` instead of the payload, on one CPU.
fn run_code(code: &[u8], timeout: Duration) -> Option<KvmError> {
    if let Err(why) = probe() {
        eprintln!("skipped: {why}");
        return None;
    }
    let config = Config {
        timeout,
        ..config(&[0, 7])
    };
    let start = Start {
        rsdp: 0,
        scenario: "code",
    };
    let result = Machine::new(config).unwrap().run(
        Arc::new(NoDevices),
        &Payload::flat(1 << 20, code),
        start,
    );
    Some(result.map(|ok| ok.log).expect_err("an error"))
}

#[test]
fn a_payload_that_does_not_end_is_stopped_and_its_places_are_told() {
    // jmp to itself
    let Some(error) = run_code(&[0xeb, 0xfe], Duration::from_millis(300)) else {
        return;
    };
    assert!(matches!(error, KvmError::Timeout { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CPU 0 at RIP 0x100000 (eb fe 00"), "{text}");
    assert!(text.contains("CPU 1 at RIP 0x100000"), "{text}");
}

#[test]
fn halted_cpus_can_be_stopped() {
    // hlt, with interrupts off: nothing but the VMM can end this
    let Some(error) = run_code(&[0xf4, 0xeb, 0xfd], Duration::from_millis(300)) else {
        return;
    };
    assert!(matches!(error, KvmError::Timeout { .. }), "{error}");
}

#[test]
fn a_triple_fault_names_the_cpu_and_the_place() {
    // ud2 without an IDT
    let Some(error) = run_code(&[0x0f, 0x0b], Duration::from_secs(10)) else {
        return;
    };
    assert!(matches!(error, KvmError::Stopped { .. }), "{error}");
    assert!(error.to_string().contains("0x100000"), "{error}");
}

#[test]
fn an_exit_code_is_an_error_with_the_log() {
    // mov dx, e9h; mov al, 'X'; out dx, al; mov dl, f4h; mov eax, 1; out dx, eax; hlt
    let code = [
        0x66, 0xba, 0xe9, 0x00, 0xb0, b'X', 0xee, 0xb2, 0xf4, 0xb8, 1, 0, 0, 0, 0xef, 0xf4,
    ];
    let Some(error) = run_code(&code, Duration::from_secs(10)) else {
        return;
    };
    let KvmError::Exit { code, log } = &error else {
        panic!("{error}")
    };
    assert_eq!(*code, 1);
    assert!(log.starts_with('X'), "{log:?}");
}

#[test]
fn a_delivery_that_the_machine_cannot_make_is_refused_with_a_reason() {
    if let Err(why) = probe() {
        eprintln!("skipped: {why}");
        return;
    }
    let machine = Machine::new(config(&[0, 1])).unwrap();
    let delivery = Delivery {
        dest: 0,
        dest_mode: DestMode::Physical,
        delivery_mode: DeliveryMode::Smi,
        vector: 0,
        trigger: Trigger::Edge,
        assert: false,
        redirection_hint: false,
        rq_eoi: false,
    };
    for delivery_mode in [
        DeliveryMode::Smi,
        DeliveryMode::ExtInt,
        DeliveryMode::Reserved(3),
    ] {
        let answer = machine.injector().deliver(&Delivery {
            delivery_mode,
            ..delivery
        });
        assert!(
            matches!(answer, Ok(Injected::Refused(_))),
            "{delivery_mode:?}: {answer:?}"
        );
    }
    let nobody = Delivery {
        dest: 99,
        delivery_mode: DeliveryMode::Fixed,
        vector: 0x40,
        ..delivery
    };
    assert_eq!(
        machine.injector().deliver(&nobody).unwrap(),
        Injected::Ignored
    );
}
