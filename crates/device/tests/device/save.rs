//! Save, restore, reset.

use amdvi_device::{Changes, RestoreError, SavedState};
use amdvi_regs::command::{Command, CompletionWait};
use amdvi_regs::mmio::offset;
use serde_json::{Value, json};

use crate::rig::*;

/// A device in which every register has a value of its own.
fn busy() -> Rig {
    let rig = Rig::enabled(ALL_FEATURES);
    rig.enable_msi(0x51);
    rig.set_config(0x04, 0x6);
    rig.set_config(0x3c, 0x0b);
    rig.write(offset::DEVICE_TABLE_SEGMENT_1, 0x30_0000 | 0xff);
    rig.write(offset::EXCLUSION_BASE, 0x1000 | 1);
    rig.write(offset::EXCLUSION_LIMIT, 0x2000);
    rig.write(offset::GA_LOG_BASE, GA_LOG | LEN_8);
    rig.write(offset::GA_LOG_TAIL_ADDRESS, GA_TAIL);
    rig.write(offset::GA_HEAD, 0x1008);
    for n in 0..3 {
        rig.write(offset::XT_GENERAL_INTERRUPT + 8 * n, 0x31 << 32 | n << 8);
    }
    rig.set_control(|c| {
        c.with_ga_en(true)
            .with_xt_en(true)
            .with_num_int_remap_mode(1)
            .with_ga_log_en(true)
    });
    rig.remap_interrupts(NIC, 9);
    rig.nic().signal(msi(0));
    rig.submit(&[CompletionWait::new().with_i(true)]);
    rig
}

/// Another device with the same memory, restored through JSON.
fn moved(rig: &Rig) -> Rig {
    let text = serde_json::to_string(&rig.iommu.save()).unwrap();
    let state: SavedState = serde_json::from_str(&text).unwrap();
    assert_eq!(state, rig.iommu.save());
    let options = ALL_FEATURES.parse().unwrap();
    let host = std::sync::Arc::new(amdvi_device::testing::TestHost::default());
    let iommu = amdvi_device::Iommu::new(&options, rig.memory.clone(), host.clone());
    iommu.restore(&state).unwrap();
    Rig {
        memory: rig.memory.clone(),
        host,
        iommu,
    }
}

#[test]
fn a_restored_device_has_every_register_of_the_saved_one() {
    let rig = busy();
    let moved = moved(&rig);
    for at in (0..0x4000).step_by(8) {
        assert_eq!(moved.read(at), rig.read(at), "{at:#x}");
    }
    for at in (0..0x100).step_by(4) {
        assert_eq!(moved.config(at), rig.config(at), "{at:#x}");
    }
    assert_eq!(moved.iommu.save(), rig.iommu.save());
    assert!(
        moved.host.take_deliveries().is_empty(),
        "pending interrupts are not sent twice"
    );
}

#[test]
fn a_restored_device_remaps_at_once() {
    let rig = busy();
    rig.set_irte128(
        1,
        amdvi_regs::irte::Irte128Lo::new().with_remap_en(true),
        amdvi_regs::irte::Irte128Hi::new().with_vector(0x45),
    );
    let moved = moved(&rig);
    assert_eq!(delivered(moved.nic().signal(msi(1))).vector, 0x45);
    moved.completion_wait();
}

#[test]
fn restore_drops_what_endpoints_have_cached_and_tells_observers() {
    let rig = Rig::enabled("amd-iommu");
    let clean = Rig::new("amd-iommu").iommu.save();
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(0x31, fixed(0x99, 0));
    let mut nic = rig.nic();
    assert_eq!(delivered(nic.signal(msi(0x31))).vector, 0x99);
    let observer = rig.observer();
    rig.iommu.restore(&clean).unwrap();
    assert_eq!(observer.take(), [Changes::All]);
    assert_eq!(delivered(nic.signal(msi(0x31))).vector, 0x31, "IommuEn=0");
}

#[test]
fn a_state_saved_between_two_batches_of_commands_continues() {
    let rig = busy();
    rig.set_control(|c| c.with_cmd_buf_en(false));
    rig.write(offset::COMMAND_BUFFER_BASE, 0x8_0000 | 15 << 56);
    for n in 0..2000u64 {
        let command: Command = completion_wait_store(STORE, n + 1).into();
        rig.memory.write_all(0x8_0000 + 16 * n, &command.words());
    }
    rig.set_control(|c| c.with_cmd_buf_en(true));
    rig.write32(offset::COMMAND_TAIL, 2000 * 16);
    assert_eq!(rig.memory.read(STORE), 1024);
    let moved = moved(&rig);
    assert_eq!(moved.host.pending_calls(), 1);
    assert_eq!(rig.memory.read(STORE), 1024, "restore itself runs nothing");
    while moved.iommu.run_commands() {}
    assert_eq!(rig.memory.read(STORE), 2000);
    assert_eq!(moved.read(offset::COMMAND_HEAD), 2000 * 16);
}

#[test]
fn a_state_saved_inside_a_completion_wait_runs_it_again() {
    struct Saver(
        std::sync::Weak<amdvi_device::Iommu>,
        std::sync::Mutex<Option<SavedState>>,
    );
    impl amdvi_device::Observer for Saver {
        fn changed(&self, _: &Changes) {
            *self.1.lock().unwrap() = Some(self.0.upgrade().unwrap().save());
        }
    }
    let rig = Rig::enabled("amd-iommu");
    let saver = std::sync::Arc::new(Saver(std::sync::Arc::downgrade(&rig.iommu), None.into()));
    rig.iommu.add_observer(saver.clone());
    rig.submit(&[
        Command::from(invalidate_irt(NIC)),
        completion_wait_store(STORE, 5).into(),
    ]);
    let state = saver.1.lock().unwrap().take().unwrap();
    rig.memory.write(STORE, 0);
    rig.iommu.restore(&state).unwrap();
    assert_eq!(rig.read(offset::COMMAND_HEAD), 16);
    assert!(!rig.iommu.run_commands());
    assert_eq!(rig.memory.read(STORE), 5);
    assert_eq!(rig.read(offset::COMMAND_HEAD), 32);
}

#[test]
fn a_halted_command_buffer_and_a_stopped_log_stay_so() {
    let rig = Rig::enabled(ALL_FEATURES);
    rig.remap_interrupts(NIC, 9);
    let mut nic = rig.nic();
    for _ in 0..256 {
        nic.signal(msi(0));
    }
    rig.write32(offset::STATUS, 1);
    rig.submit(&[Command::decode([0, 0])]);
    let moved = moved(&rig);
    assert!(!moved.status().cmd_buf_run() && !moved.status().event_log_run());
    assert_eq!(moved.host.pending_calls(), 0);
}

#[test]
fn an_impossible_value_is_refused_and_the_device_untouched() {
    let rig = busy();
    let good = serde_json::to_value(rig.iommu.save()).unwrap();
    let control = good["registers"]["control"].as_u64().unwrap();
    let ring = |base: u64, head: u64, tail: u64| json!({"base": base, "head": head, "tail": tail});
    let bad: Vec<(&str, Value, &str)> = vec![
        ("control", json!(u64::MAX), "CONTROL"),
        ("control", json!(control | 2 << 43), "CONTROL"),
        ("control", json!(control & !(1 << 17)), "CONTROL"),
        ("control", json!(control | 1 << 1), "CONTROL"),
        ("status", json!(1 << 3), "STATUS"),
        ("status", json!(1 << 5), "STATUS"),
        (
            "status",
            json!(1),
            "STATUS (overflow of a log that is not stopped)",
        ),
        (
            "status",
            json!(1 << 9),
            "STATUS (overflow of a log that is not stopped)",
        ),
        (
            "device_tables",
            json!([1u64 << 52, 0, 0, 0, 0, 0, 0, 0]),
            "device table base",
        ),
        (
            "device_tables",
            json!([0, 0, 0xff, 0, 0, 0, 0, 0]),
            "device table base",
        ),
        ("exclusion", json!([4, 0]), "exclusion base"),
        ("exclusion", json!([0, 1]), "exclusion limit"),
        ("command", ring(0x1000 | 7 << 56, 0, 0), "command base"),
        ("command", ring(1 << 63 | LEN_8, 0, 0), "command base"),
        ("command", ring(LEN_8, 0x1000, 0), "command head"),
        ("command", ring(LEN_8, 0, 8), "command tail"),
        ("event", ring(LEN_8, 1 << 40, 0), "event head"),
        ("event", ring(LEN_8, 0, 0x1000), "event tail"),
        ("ga", ring(LEN_8, 0, 0x1000), "GA log tail"),
        ("ga", ring(LEN_8, 1 << 19, 0), "GA log head"),
        ("ga_tail_address", json!(4), "GA log tail address"),
        ("xt_interrupts", json!([1, 0, 0]), "XT interrupt control"),
        (
            "msi",
            json!({"enabled": true, "address_low": 1, "address_high": 0, "data": 0}),
            "MSI address",
        ),
        ("pci_command", json!(1), "PCI command"),
    ];
    for (field, value, name) in bad {
        let mut state = good.clone();
        state["registers"][field] = value.clone();
        let state: SavedState = serde_json::from_value(state).unwrap();
        let before = rig.iommu.save();
        match rig.iommu.restore(&state) {
            Err(RestoreError::Value { field: found, .. }) => assert_eq!(found, name, "{value}"),
            other => panic!("{field} = {value}: {other:?}"),
        }
        assert_eq!(rig.iommu.save(), before);
    }
    rig.iommu
        .restore(&serde_json::from_value(good).unwrap())
        .unwrap();
}

#[test]
fn state_of_features_that_are_not_offered_is_refused() {
    let rig = Rig::new("amd-iommu,ga=off");
    let good = serde_json::to_value(rig.iommu.save()).unwrap();
    for (field, value) in [
        ("ga", json!({"base": LEN_8, "head": 8, "tail": 0})),
        ("ga_tail_address", json!(8)),
        ("xt_interrupts", json!([0, 0, 4])),
        ("status", json!(1 << 10)),
        ("device_tables", json!([0, 0x1000, 0, 0, 0, 0, 0, 0])),
    ] {
        let mut state = good.clone();
        state["registers"][field] = value;
        let state: SavedState = serde_json::from_value(state).unwrap();
        assert!(
            matches!(rig.iommu.restore(&state), Err(RestoreError::Value { .. })),
            "{field}"
        );
    }
}

#[test]
fn another_version_other_features_and_unknown_fields_are_refused() {
    let rig = Rig::new("amd-iommu");
    let good = serde_json::to_value(rig.iommu.save()).unwrap();
    let mut state = good.clone();
    state["version"] = json!(3);
    let state: SavedState = serde_json::from_value(state).unwrap();
    assert_eq!(
        rig.iommu.restore(&state),
        Err(RestoreError::Version {
            found: 3,
            oldest: 1,
            supported: SavedState::VERSION
        })
    );
    let error = Rig::new("amd-iommu,numint2k=on")
        .iommu
        .restore(&rig.iommu.save())
        .unwrap_err();
    assert_eq!(
        error,
        RestoreError::Features {
            register: "EFR2",
            saved: 0,
            here: 0x100
        }
    );
    assert!(error.to_string().contains("same amd-iommu options"));
    let error = Rig::new("amd-iommu,ia=off")
        .iommu
        .restore(&rig.iommu.save())
        .unwrap_err();
    assert!(matches!(
        error,
        RestoreError::Features {
            register: "EFR",
            ..
        }
    ));
    for path in ["", "registers"] {
        let mut state = good.clone();
        let object = if path.is_empty() {
            &mut state
        } else {
            &mut state[path]
        };
        object["surprise"] = json!(0);
        assert!(serde_json::from_value::<SavedState>(state).is_err());
    }
}

#[test]
fn a_state_of_version_1_is_one_of_a_device_without_the_newer_features() {
    let rig = busy();
    let mut old = serde_json::to_value(rig.iommu.save()).unwrap();
    old["version"] = json!(1);
    for field in ["ppr", "invalidations"] {
        old["registers"].as_object_mut().unwrap().remove(field);
    }
    for field in ["device_iotlb", "perf_counters", "counters"] {
        old.as_object_mut().unwrap().remove(field);
    }
    let old: SavedState = serde_json::from_value(old).unwrap();
    let other = Rig::new(ALL_FEATURES);
    other.iommu.restore(&old).unwrap();
    assert_eq!(other.iommu.save(), rig.iommu.save());
}

#[test]
fn what_the_capability_and_the_ivhd_say_must_be_the_same_too() {
    for (option, name) in [
        ("device-iotlb=on", "IotlbSup"),
        ("perf-counters=1x2", "NCounterBanks"),
    ] {
        let with = Rig::new(&format!("amd-iommu,{option}"));
        let other = match name {
            "IotlbSup" => "amd-iommu",
            _ => "amd-iommu,perf-counters=2x2",
        };
        let error = with
            .iommu
            .restore(&Rig::new(other).iommu.save())
            .unwrap_err();
        assert!(
            matches!(error, RestoreError::Features { register, .. } if register == name),
            "{error}"
        );
    }
}

#[test]
fn reset_is_a_new_device_with_the_same_endpoints() {
    let rig = busy();
    let mut nic = rig.nic();
    rig.iommu.reset();
    assert_eq!(rig.iommu.save(), Rig::new(ALL_FEATURES).iommu.save());
    assert!(
        rig.host
            .take_deliveries()
            .iter()
            .all(|delivery| delivery.vector != 0)
    );
    assert_eq!(
        delivered(nic.signal(msi(0x31))).vector,
        0x31,
        "IommuEn=0: as it came"
    );
}
