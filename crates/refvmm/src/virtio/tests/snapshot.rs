//! A machine with virtio devices, taken out of one board and put into another.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::blk::{Frame, SECTOR, build, image};
use super::driver::*;
use super::rig::*;
use crate::board::FunctionBuilder;
use crate::board::snapshot::BoardState;
use crate::virtio::{ConsoleConfig, NetBackend, NetConfig, console, net, rng};

const OK: u8 = 0;
const IN: u32 = 0;
const OUT: u32 = 1;

impl Rig {
    /// The state of the board, as text, and RAM; the board stays frozen.
    pub(super) fn save(&self) -> (String, Vec<u8>) {
        self.board.freeze();
        let state = serde_json::to_string(&self.board.save().unwrap()).unwrap();
        let mut ram = vec![0; 64 << 20];
        self.memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
        (state, ram)
    }

    /// A new machine with the same functions that has the state, and goes on with it.
    pub(super) fn restored(
        functions: impl IntoIterator<Item = FunctionBuilder>,
        (state, ram): &(String, Vec<u8>),
    ) -> Result<Self, String> {
        let rig = Self::bare(functions);
        rig.memory.write_slice(ram, GuestAddress(0)).unwrap();
        rig.board.freeze();
        let state: BoardState = serde_json::from_str(state).unwrap();
        rig.board
            .restore(&state)
            .map_err(|error| error.to_string())?;
        let again = serde_json::to_value(rig.board.save().unwrap()).unwrap();
        assert_eq!(again, serde_json::to_value(&state).unwrap());
        rig.board.thaw();
        Ok(rig)
    }

    pub(super) fn byte(&self, gpa: u64) -> u8 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }
}

#[test]
fn a_request_that_was_made_available_is_served_after_the_restore_and_only_once() {
    let (file, content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 1 << 29);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, READ | WRITE);
    // Some have been served before.
    for sector in 0..5 {
        let part = [into(data.iova, SECTOR)];
        assert_eq!(frame.request(&queues[0], IN, sector, &part).0, OK);
    }
    let waiting = Frame::new(&rig);
    waiting.prepare(OUT, 9);
    data.write(0, &[0x5a; 512]);
    queues[0].set_used_event(5);
    let saved = {
        rig.board.freeze();
        // With the device frozen, so that it is in the ring and not yet served.
        queues[0].add(&waiting.parts(&[out(data.iova, SECTOR)]));
        queues[0].kick();
        assert_eq!(queues[0].used_index(), 5);
        rig.save()
    };
    let status = waiting.status.pages[0];
    let used = queues[0].used.pages[0];

    let other = Rig::restored([build(&file)], &saved).unwrap();
    eventually("the request's end", || other.byte(status) == OK);
    eventually("the used index", || other.byte(used + 2) == 6);
    eventually("its interrupt", || other.cpus.count(FIRST_VECTOR) == 1);
    let mut sector = [0; 512];
    file.as_file()
        .read_exact_at(&mut sector, 9 * SECTOR)
        .unwrap();
    assert_eq!(sector, [0x5a; 512]);
    file.as_file()
        .read_exact_at(&mut sector, 10 * SECTOR)
        .unwrap();
    assert_eq!(sector, content[5120..5632]);
    // The old machine, which was not ended, stands still: it has served nothing.
    assert_eq!(rig.byte(status), 0xee);
}

#[test]
fn a_masked_interrupt_stays_pending_and_comes_once() {
    let (file, _content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 0);
    driver.program(0, 0, true);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, READ | WRITE);
    assert_eq!(
        frame
            .request(&queues[0], IN, 1, &[into(data.iova, SECTOR)])
            .0,
        OK
    );
    eventually("a pending bit", || driver.is_pending(0));
    let other = Rig::restored([build(&file)], &rig.save()).unwrap();
    assert_eq!(other.cpus.count(FIRST_VECTOR), 0);
    let driver = Driver::new(&other, 0);
    assert!(driver.is_pending(0));
    assert_eq!(driver.status(), LIVE);
    driver.program(0, 0, false);
    assert_eq!(other.cpus.count(FIRST_VECTOR), 1);
    assert!(!driver.is_pending(0));
}

#[test]
fn every_kind_of_device_comes_back() {
    let (file, _content) = image(64);
    let output = Arc::default();
    let (input, _writer) = std::io::pipe().unwrap();
    let input = Arc::new(input.into());
    let functions = || {
        [
            build(&file),
            net(NetConfig {
                backend: NetBackend::Loopback,
                mac: None,
            }),
            console(ConsoleConfig::Buffer {
                output: Arc::clone(&output),
                input: Arc::clone(&input),
            }),
            rng(),
        ]
    };
    let rig = Rig::new(functions());
    let queues = [1, 2, 2, 1];
    let drivers: Vec<_> = (0..4).map(|n| Driver::new(&rig, n)).collect();
    for (driver, queues) in drivers.iter().zip(queues) {
        driver.start(queues, 0);
    }
    let other = Rig::restored(functions(), &rig.save()).unwrap();
    for n in 0..4 {
        assert_eq!(Driver::new(&other, n).status(), LIVE, "device {n}");
    }
}

#[test]
fn a_disk_that_was_written_to_since_and_another_one_are_refused_by_name() {
    let (file, _content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    driver.start(1, 0);
    let saved = rig.save();
    let refused = |file: &tempfile::NamedTempFile| {
        let error = Rig::restored([build(file)], &saved).err().unwrap();
        assert!(error.contains("--disk path="), "{error}");
        error
    };
    let (smaller, _content) = image(32);
    assert!(refused(&smaller).contains("32 sectors"));
    // A tick of the file system's clock later.
    eventually("another time stamp", || {
        file.as_file().write_all_at(&[1], 0).unwrap();
        Rig::restored([build(&file)], &saved).is_err()
    });
    assert!(refused(&file).contains("written to since"));
    let error = Rig::restored([rng()], &saved).err().unwrap();
    assert!(error.contains("0000:00:08.0"), "{error}");
    assert!(
        Rig::restored([], &saved)
            .err()
            .unwrap()
            .contains("other PCI functions")
    );
}

#[test]
fn states_that_no_driver_could_have_left_are_refused() {
    let (file, _content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    driver.start(1, 0);
    let (state, ram) = rig.save();
    for (pointer, value) in [
        ("/common/offered", serde_json::json!(1)),
        ("/common/status", serde_json::json!(4)),
        ("/common/driver_features", serde_json::json!(0)),
        ("/common/queues/0/size", serde_json::json!(3)),
        ("/common/queues/0/max_size", serde_json::json!(32768)),
        ("/queues/0/size", serde_json::json!(512)),
        ("/queues/0/desc", serde_json::json!(1)),
        ("/queues/0/held", serde_json::json!("00")),
        ("/queues", serde_json::json!([])),
        ("/interrupts/queues", serde_json::json!([])),
        ("/interrupts/msix/table", serde_json::json!("00")),
        ("/config", serde_json::json!("00")),
        ("/backend", serde_json::Value::Null),
    ] {
        let mut changed: serde_json::Value = serde_json::from_str(&state).unwrap();
        let place = format!("/functions/0000:00:08.0{pointer}");
        *changed
            .pointer_mut(&place)
            .unwrap_or_else(|| panic!("{place}")) = value;
        let error = Rig::restored([build(&file)], &(changed.to_string(), ram.clone()));
        let error = error
            .err()
            .unwrap_or_else(|| panic!("{pointer} was accepted"));
        assert!(error.contains("0000:00:08.0"), "{pointer}: {error}");
    }
}
