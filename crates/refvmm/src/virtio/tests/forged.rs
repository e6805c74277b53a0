//! States that somebody forged: saved ones with other values here and there. Whatever is in them, a board
//! refuses them or takes them; it does not panic, and it comes to a halt again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amdvi_regs::DeviceId;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::Random;
use super::blk::{build, image};
use super::rig::Cpus;
use crate::board::legacy::{Legacy, Power};
use crate::board::snapshot::BoardState;
use crate::board::{Board, Config, FunctionConfig};
use crate::layout;
use crate::ram::Ram;
use crate::virtio::{ConsoleConfig, NetBackend, NetConfig, console, net, rng};

/// States that are tried, unless PROPTEST_CASES says otherwise.
const STATES: u32 = 300;
/// A board that is given one does not take longer, not even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

struct NoPower;

impl Power for NoPower {
    fn off(&self) {}
    fn reset(&self) {}
}

/// A board with a device of each kind.
fn config(disk: &NamedTempFile, input: std::io::PipeReader) -> Config {
    let options = "amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on,gtsup=on,device-iotlb=on,pprsup=on";
    let mut config = Config::scenario(options.parse().unwrap());
    let functions = [
        build(disk),
        net(NetConfig {
            backend: NetBackend::Loopback,
            mac: None,
        }),
        console(ConsoleConfig::Buffer {
            output: Arc::default(),
            input: Arc::new(input.into()),
        }),
        rng(),
    ];
    let function = |(n, build): (u8, _)| FunctionConfig {
        name: "test".into(),
        segment: Default::default(),
        addr: Some(DeviceId::new(0, 8 + n, 0)),
        build,
    };
    config.functions = (0..).zip(functions).map(function).collect();
    config.legacy = Some(Legacy {
        console: Arc::new(|_| ()),
        power: Arc::new(NoPower),
    });
    config.ivrs.hpet = Some(DeviceId::new(0, 0x14, 1));
    config
}

fn board(config: &Config) -> Board {
    let memory = Arc::new(Ram::default().map().unwrap());
    Board::new(config, &memory, &[0, 1], Arc::<Cpus>::default()).unwrap()
}

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn number(&mut self) -> Value {
        let bits = self.below(64) as u32;
        match self.below(6) {
            0 => json!(0),
            1 => json!(u64::MAX >> bits),
            2 => json!(1u64 << bits),
            3 => json!(-1),
            4 => json!(self.below(8)),
            _ => json!(self.next() >> bits),
        }
    }

    /// Changes one value somewhere; the way to it is chosen fork by fork, so that a long table is not
    /// all that is ever changed.
    fn forge(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.below(40) > 0 => {
                let at = self.below(fields.len());
                if let Some(field) = fields.values_mut().nth(at) {
                    self.forge(field);
                }
            }
            Value::Array(items) if !items.is_empty() && self.below(8) > 0 => {
                let at = self.below(items.len());
                self.forge(&mut items[at]);
            }
            Value::Array(items) => match (self.below(3), items.last().cloned()) {
                (0, Some(last)) => items.extend(vec![last; 1 + self.below(5000)]),
                (1, _) => drop(items.pop()),
                _ => items.clear(),
            },
            Value::Object(_) | Value::Null => *value = self.number(),
            Value::Bool(bit) => *bit = !*bit,
            Value::Number(_) => *value = self.number(),
            Value::String(text) => match self.below(3) {
                0 => text.truncate(self.below(text.len() + 1) & !1),
                1 => text.push_str(&"5a".repeat(1 + self.below(5000))),
                _ => {
                    let digits = text.chars().map(|_| {
                        let digit = self.below(16) as u32;
                        char::from_digit(digit, 16).unwrap_or('0')
                    });
                    *text = digits.collect();
                }
            },
        }
    }
}

/// Panics of threads that are no tests.
static PANICS: AtomicU32 = AtomicU32::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if !thread.name().unwrap_or_default().contains("::") {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
}

/// Uses the registers a little: reads all of configuration space and the beginning of each BAR, and writes
/// some there.
fn touch(board: &Board, random: &mut Random) {
    let mut data = [0; 4];
    for device in 0..32 {
        let function = layout::ECAM_BASE + (device << 15);
        // Memory space and bus master.
        board.mmio_write(function + 4, &[6, 0]);
        for register in (0..0x100).step_by(4) {
            board.mmio_read(function + register, &mut data);
            let bar = u32::from_le_bytes(data) & !0xf;
            if !(0x10..0x28).contains(&register) || matches!(bar, 0 | 0xffff_fff0) {
                continue;
            }
            for offset in (0..0x400).step_by(4) {
                board.mmio_read(u64::from(bar) + offset, &mut data);
            }
            for _ in 0..8 {
                let offset = random.below(0x1000) as u64 & !3;
                board.mmio_write(u64::from(bar) + offset, &[random.below(4) as u8, 0, 0, 0]);
            }
        }
    }
    for register in (0..0x4000).step_by(8) {
        board.mmio_read(0xfeb8_0000 + register, &mut [0; 8]);
    }
    for port in [0x3f8, 0x3f9, 0x3fd, 0x70, 0x71] {
        board.port_read(port, &mut [0]);
    }
    (0x20..=0xff).for_each(|vector| board.eoi(vector));
}

#[test]
fn a_forged_state_is_refused_or_taken_and_harms_nothing() {
    count_panics();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = now.as_nanos() as u64 | 1;
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let (file, _content) = image(64);
    let (input, _writer) = std::io::pipe().unwrap();
    let config = config(&file, input);
    let original = {
        let board = board(&config);
        touch(&board, &mut random);
        board.freeze();
        serde_json::to_value(board.save().unwrap()).unwrap()
    };
    let states = std::env::var("PROPTEST_CASES").ok();
    let states = states.and_then(|n| n.parse().ok()).unwrap_or(STATES);
    let (mut refused, mut taken) = (0, 0);
    for number in 0..states {
        let mut forged = original.clone();
        (0..1 + random.below(3)).for_each(|_| random.forge(&mut forged));
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let Ok(state) = serde_json::from_value::<BoardState>(forged.clone()) else {
                return false;
            };
            let board = board(&config);
            board.freeze();
            if board.restore(&state).is_err() {
                return false;
            }
            board.thaw();
            touch(&board, &mut random);
            std::thread::sleep(Duration::from_millis(1));
            board.freeze();
            board.save().unwrap();
            true
        }));
        let changes = || {
            let mut changes = Vec::new();
            differences(&original, &forged, String::new(), &mut changes);
            changes.join("; ")
        };
        assert!(
            outcome.is_ok(),
            "state {number}, seed {seed}: {}",
            changes()
        );
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{number}: {}", changes());
        assert!(began.elapsed() < LIMIT, "state {number}: {}", changes());
        if outcome.unwrap() {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    eprintln!("{refused} refused, {taken} taken");
    assert!(refused > states / 20 && taken > states / 20);
}

fn differences(before: &Value, after: &Value, at: String, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) if before.len() == after.len() => {
            for (name, value) in before {
                differences(value, &after[name], format!("{at}/{name}"), found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (n, value) in before.iter().enumerate() {
                differences(value, &after[n], format!("{at}/{n}"), found);
            }
        }
        _ if before == after => {}
        _ => {
            let short = |value: &Value| value.to_string().chars().take(60).collect::<String>();
            found.push(format!("{at}: {} → {}", short(before), short(after)));
        }
    }
}
