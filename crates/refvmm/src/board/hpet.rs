//! A small HPET (IA-PC HPET specification 1.0a) whose timers send messages through the IOMMU: as on
//! a machine whose firmware gives the HPET a DeviceID (IVHD entry 48h, variety 2).
//!
//! It has no wires: neither the legacy routes nor pins of the IOAPIC.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amdvi_regs::msi::Msi;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::FixedDevice;
use super::snapshot::{Snapshot, StateError, ensure, typed};
use super::socket::Handle;

/// Where its registers are, as on every PC.
pub(super) const BASE: u64 = 0xfed0_0000;
/// Bytes of its registers.
const SIZE: u64 = 0x400;
/// The number that IVRS and HPET table give it.
pub(super) const NUMBER: u8 = 0;

/// Nanoseconds of a tick.
const TICK: u64 = 100;
const TIMERS: usize = 3;
/// The shortest period that software should use.
const MIN_TICKS: u16 = 1000;
/// General Capabilities: revision 1, timers less one in \[12:8\], 64-bit counter 13, vendor in
/// \[31:16\], femtoseconds of a tick in \[63:32\].
const CAPABILITIES: u64 =
    1 | (TIMERS as u64 - 1) << 8 | 1 << 13 | 0x1022 << 16 | (TICK * 1_000_000) << 32;

const GENERAL_CONFIG: u64 = 0x10;
const COUNTER: u64 = 0xf0;
const TIMER_0: u64 = 0x100;
const TIMER_STRIDE: u64 = 0x20;

/// General Configuration\[0\]: the counter runs, and timers fire.
const ENABLE: u64 = 1;

/// Bits of a timer's configuration.
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const SET_ACCUMULATOR: u64 = 1 << 6;
const SHORT: u64 = 1 << 8;
const MESSAGES: u64 = 1 << 14;
/// What software can write: interrupt enable, periodic, 32-bit mode, messages. Set-accumulator acts
/// and is not kept.
const WRITABLE: u64 = INTERRUPT | PERIODIC | SHORT | MESSAGES;
/// Periodic capable, 64 bits wide, message capable; no route to any pin in \[63:32\].
const CAPABLE: u64 = 1 << 4 | 1 << 5 | 1 << 15;

/// The least time between two interrupts of the device: what a guest can ask of the host.
const LEAST: Duration = Duration::from_micros(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    /// FSB Interrupt Route: data in \[31:0\], address in \[63:32\].
    message: u64,
    /// The next write to the comparator sets it while the timer is periodic.
    set_accumulator: bool,
    /// Counter value at which it fires next.
    armed: Option<u64>,
}

impl Timer {
    /// Works out when the timer fires, if its comparator is new at `now`.
    fn arm(&mut self, now: u64) {
        let wanted = INTERRUPT | MESSAGES;
        self.armed = (self.config & wanted == wanted)
            .then(|| {
                if self.config & SHORT != 0 {
                    let delta = (self.comparator as u32).wrapping_sub(now as u32);
                    now.checked_add(delta.into())
                } else {
                    // A 64-bit comparator that lies behind is reached again in 58,000 years.
                    (self.comparator >= now).then_some(self.comparator)
                }
            })
            .flatten();
    }

    /// It fires: what it sends.
    fn fire(&mut self, now: u64) -> Msi {
        self.armed = None;
        if self.config & PERIODIC != 0 && self.period != 0 {
            // Periods that were missed are skipped.
            let missed = now.saturating_sub(self.comparator) / self.period;
            let ahead = self.period.saturating_mul(missed + 1);
            self.comparator = self.comparator.wrapping_add(ahead);
            self.arm(now);
        }
        Msi {
            address: self.message >> 32,
            data: self.message as u32,
        }
    }
}

struct State {
    enabled: bool,
    /// The counter when it was started or stopped last.
    base: u64,
    started: Instant,
    timers: [Timer; TIMERS],
    stop: bool,
    /// No timer fires.
    frozen: bool,
    /// Messages are on their way.
    sending: bool,
}

/// What is saved: the counter as it was, which does not count while the machine is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HpetState {
    enabled: bool,
    counter: u64,
    timers: [Timer; TIMERS],
}

impl State {
    fn now(&self) -> u64 {
        let ran = match self.enabled {
            true => self.started.elapsed().as_nanos() as u64 / TICK,
            false => 0,
        };
        self.base.wrapping_add(ran)
    }

    fn arm(&mut self) {
        let now = self.now();
        for timer in &mut self.timers {
            timer.arm(now);
        }
    }

    fn word(&self, offset: u64) -> u64 {
        match offset {
            0 => CAPABILITIES,
            GENERAL_CONFIG => u64::from(self.enabled),
            COUNTER => self.now(),
            _ => match self.timer(offset) {
                Some((n, 0)) => self.timers[n].config | CAPABLE,
                Some((n, 8)) => self.timers[n].comparator,
                Some((n, 16)) => self.timers[n].message,
                _ => 0,
            },
        }
    }

    /// The timer, and which of its registers.
    fn timer(&self, offset: u64) -> Option<(usize, u64)> {
        let offset = offset.checked_sub(TIMER_0)?;
        let n = (offset / TIMER_STRIDE) as usize;
        (n < TIMERS).then_some((n, offset % TIMER_STRIDE))
    }

    /// Writes the bits of `mask`.
    fn set(&mut self, offset: u64, value: u64, mask: u64) {
        let over = |old: u64| old & !mask | value & mask;
        match offset {
            GENERAL_CONFIG => {
                let enable = over(u64::from(self.enabled)) & ENABLE != 0;
                if enable != self.enabled {
                    self.base = self.now();
                    self.started = Instant::now();
                    self.enabled = enable;
                }
                self.arm();
            }
            COUNTER if !self.enabled => {
                self.base = over(self.base);
                self.arm();
            }
            _ => {
                let now = self.now();
                let Some((n, register)) = self.timer(offset) else {
                    return;
                };
                let timer = &mut self.timers[n];
                match register {
                    0 => {
                        let new = over(timer.config);
                        timer.set_accumulator = new & SET_ACCUMULATOR != 0;
                        timer.config = new & WRITABLE;
                        timer.arm(now);
                    }
                    8 => {
                        // Of a periodic timer, a write sets the period, unless the accumulator
                        // was asked for.
                        if timer.config & PERIODIC == 0 {
                            timer.comparator = over(timer.comparator);
                        } else if timer.set_accumulator {
                            timer.comparator = over(timer.comparator);
                            timer.set_accumulator = false;
                        } else {
                            timer.period = over(timer.period);
                        }
                        timer.arm(now);
                    }
                    16 => timer.message = over(timer.message),
                    _ => {}
                }
            }
        }
    }
}

/// The HPET table (HPET specification 3.2.4) behind its ACPI header.
pub(super) fn acpi_body() -> [u8; 20] {
    let mut body = [0; 20];
    // Event Timer Block ID is the lower half of the capabilities.
    body[..4].copy_from_slice(&(CAPABILITIES as u32).to_le_bytes());
    // Base address: in memory, 64 bits wide.
    body[5] = 64;
    body[8..16].copy_from_slice(&BASE.to_le_bytes());
    body[16] = NUMBER;
    // The shortest period, in ticks, that loses no interrupt.
    body[17..19].copy_from_slice(&MIN_TICKS.to_le_bytes());
    body
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    handle: Arc<Handle>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for timers and sends their messages, until the device goes.
    fn run(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = state.now();
            let enabled = state.enabled && !state.frozen;
            let next = state.timers.iter().filter_map(|timer| timer.armed).min();
            let Some(next) = next.filter(|_| enabled) else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if next > now {
                let wait = Duration::from_nanos((next - now).saturating_mul(TICK));
                state = self
                    .changed
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            }
            let due = state
                .timers
                .iter_mut()
                .filter(|timer| timer.armed.is_some_and(|at| at <= now));
            let messages: Vec<Msi> = due.map(|timer| timer.fire(now)).collect();
            state.sending = true;
            drop(state);
            for message in messages {
                self.handle.signal(message);
            }
            self.lock().sending = false;
            self.changed.notify_all();
            std::thread::sleep(LEAST);
            state = self.lock();
        }
    }
}

/// The device.
pub(super) struct Hpet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Hpet {
    /// The device, whose requests go through `handle`.
    pub(super) fn new(handle: Arc<Handle>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                enabled: false,
                base: 0,
                started: Instant::now(),
                timers: [Timer::default(); TIMERS],
                stop: false,
                frozen: false,
                sending: false,
            }),
            changed: Condvar::new(),
            handle,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hpet".into())
            .spawn(move || theirs.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Hpet {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Snapshot for Hpet {
    fn freeze(&self) {
        let mut state = self.shared.lock();
        state.frozen = true;
        let sent = self.shared.changed.wait_while(state, |state| state.sending);
        drop(sent);
    }

    fn thaw(&self) {
        self.shared.lock().frozen = false;
        self.shared.changed.notify_all();
    }

    fn save(&self) -> Result<Value, StateError> {
        let state = self.shared.lock();
        Ok(serde_json::to_value(HpetState {
            enabled: state.enabled,
            counter: state.now(),
            timers: state.timers,
        })?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let saved: HpetState = typed(state)?;
        let possible = saved
            .timers
            .iter()
            .all(|timer| timer.config & !WRITABLE == 0);
        ensure(possible, "a timer with bits that can't be set")?;
        let mut state = self.shared.lock();
        state.enabled = saved.enabled;
        state.base = saved.counter;
        state.started = Instant::now();
        state.timers = saved.timers;
        Ok(())
    }
}

/// The offset of an access, if it lies in the registers.
fn offset(gpa: u64, len: usize) -> Option<u64> {
    let offset = gpa.checked_sub(BASE)?;
    (offset.checked_add(len as u64)? <= SIZE).then_some(offset)
}

impl FixedDevice for Hpet {
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let Some(first) = offset(gpa, data.len()) else {
            return false;
        };
        let state = self.shared.lock();
        for (n, byte) in data.iter_mut().enumerate() {
            let at = first + n as u64;
            *byte = state.word(at & !7).to_le_bytes()[(at & 7) as usize];
        }
        true
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        let Some(first) = offset(gpa, data.len()) else {
            return false;
        };
        // Registers take aligned accesses of 4 and 8 bytes.
        let len = data.len() as u64;
        if matches!(len, 4 | 8) && first.is_multiple_of(len) {
            let mut value = [0; 8];
            value[..data.len()].copy_from_slice(data);
            let shift = 8 * (first & 7);
            let mask = (u64::MAX >> (64 - 8 * len)) << shift;
            let value = u64::from_le_bytes(value) << shift;
            self.shared.lock().set(first & !7, value, mask);
            self.shared.changed.notify_one();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            enabled: false,
            base: 1000,
            started: Instant::now(),
            timers: [Timer::default(); TIMERS],
            stop: false,
            frozen: false,
            sending: false,
        }
    }

    const ALL: u64 = u64::MAX;

    #[test]
    fn a_timer_fires_when_the_low_half_of_the_counter_is_its_comparator() {
        let mut state = state();
        state.base = 0x5_ffff_fff0;
        state.set(TIMER_0, INTERRUPT | SHORT | MESSAGES, ALL);
        state.set(TIMER_0 + 8, 0x10, ALL);
        assert_eq!(state.timers[0].armed, Some(0x6_0000_0010));
        state.set(TIMER_0 + 8, 0xffff_fff0, 0xffff_ffff);
        assert_eq!(state.timers[0].armed, Some(0x5_ffff_fff0), "at once");
    }

    #[test]
    fn a_timer_without_interrupts_or_messages_never_fires() {
        let mut state = state();
        state.set(TIMER_0 + 8, 2000, ALL);
        for config in [0, INTERRUPT, MESSAGES] {
            state.set(TIMER_0, config, ALL);
            assert_eq!(state.timers[0].armed, None);
        }
        state.set(TIMER_0, INTERRUPT | MESSAGES, ALL);
        assert_eq!(state.timers[0].armed, Some(2000));
        state.set(TIMER_0 + 8, 999, ALL);
        assert_eq!(state.timers[0].armed, None, "it lies behind");
    }

    #[test]
    fn a_periodic_timer_goes_on_and_skips_what_it_missed() {
        let mut state = state();
        let config = INTERRUPT | MESSAGES | PERIODIC;
        state.set(TIMER_0, config | SET_ACCUMULATOR, ALL);
        state.set(TIMER_0 + 8, 1100, ALL);
        state.set(TIMER_0 + 8, 50, ALL);
        state.set(TIMER_0 + 16, 0xfee0_1000_0000_0033, ALL);
        assert_eq!(state.timers[0].armed, Some(1100));
        let message = state.timers[0].fire(1230);
        assert_eq!((message.address, message.data), (0xfee0_1000, 0x33));
        assert_eq!(state.timers[0].armed, Some(1250));
    }

    #[test]
    fn the_counter_can_be_written_only_while_it_stands() {
        let mut state = state();
        state.set(COUNTER, 77, 0xffff_ffff);
        assert_eq!(state.word(COUNTER), 77);
        state.set(GENERAL_CONFIG, ENABLE, ALL);
        state.set(COUNTER, 5, ALL);
        assert!(state.word(COUNTER) >= 77);
        state.set(GENERAL_CONFIG, 0, ALL);
        let stands = state.word(COUNTER);
        assert_eq!(state.word(COUNTER), stands);
    }

    #[test]
    fn its_capabilities_say_that_messages_are_the_only_way() {
        let state = state();
        assert_eq!(state.word(0) >> 32, 100_000_000, "femtoseconds");
        assert_eq!(state.word(0) >> 15 & 1, 0, "no legacy routes");
        for n in 0..TIMERS as u64 {
            assert_eq!(state.word(TIMER_0 + n * TIMER_STRIDE), CAPABLE);
        }
    }
}
