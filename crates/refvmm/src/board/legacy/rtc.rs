//! The real-time clock of a PC, an MC146818 with 128 bytes: the time of day from the host's clock,
//! and memory. Its alarm and its periodic interrupt are not there: nothing raises IRQ 8.
//!
//! Time is always in BCD and 24-hour form, which register B says.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::board::config::FixedDevice;
use crate::board::snapshot::{Hex, Snapshot, StateError, ensure, typed};

/// The index port, and behind it the data port.
pub const RTC_PORTS: u16 = 0x70;
const DATA: u16 = RTC_PORTS + 1;
/// The top bit of the index masks NMIs.
const INDEX_MASK: u8 = 0x7f;

const SECONDS: usize = 0;
const MINUTES: usize = 2;
const HOURS: usize = 4;
const DAY_OF_WEEK: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const A: usize = 10;
const B: usize = 11;
const C: usize = 12;
const D: usize = 13;

/// A: the divider of a 32,768 Hz crystal. No update is ever in progress.
const DIVIDER: u8 = 0x26;
/// B: the time is being set, and stands still meanwhile.
const SET: u8 = 1 << 7;
/// B: 24-hour form.
const HOURS_24: u8 = 1 << 1;
/// D: memory and time are valid.
const VALID: u8 = 1 << 7;

const DAY_SECONDS: i64 = 86_400;

type TimeRegisters = [u8; 10];

struct State {
    index: u8,
    /// Alarm registers and memory; the others are made as they are read.
    memory: [u8; 128],
    /// How far the guest's time is from the host's, in seconds.
    offset: i64,
    /// The time while the guest sets it.
    setting: Option<TimeRegisters>,
}

/// What is saved. The time goes on with the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RtcState {
    index: u8,
    memory: Hex,
    offset: i64,
    setting: Option<TimeRegisters>,
}

/// The clock.
pub(super) struct Rtc {
    state: Mutex<State>,
    now: fn() -> i64,
}

fn host_time() -> i64 {
    // A host before 1970 has other problems.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

impl Rtc {
    pub(super) fn new() -> Self {
        Self::with_clock(host_time)
    }

    fn with_clock(now: fn() -> i64) -> Self {
        Self {
            state: Mutex::new(State {
                index: 0,
                memory: [0; 128],
                offset: 0,
                setting: None,
            }),
            now,
        }
    }
}

impl State {
    fn time(&self, now: i64) -> TimeRegisters {
        self.setting
            .unwrap_or_else(|| registers(now.saturating_add(self.offset)))
    }

    fn read(&self, now: i64) -> u8 {
        match usize::from(self.index) {
            index @ (SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR) => self.time(now)[index],
            A => DIVIDER,
            B if self.setting.is_some() => HOURS_24 | SET,
            B => HOURS_24,
            C => 0,
            D => VALID,
            index => self.memory[index],
        }
    }

    fn write(&mut self, now: i64, value: u8) {
        match usize::from(self.index) {
            index @ (SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR) => {
                let mut time = self.time(now);
                time[index] = value;
                if self.setting.is_some() {
                    self.setting = Some(time);
                } else {
                    self.set(now, &time);
                }
            }
            B if value & SET != 0 => self.setting = Some(self.time(now)),
            B => {
                if let Some(time) = self.setting.take() {
                    self.set(now, &time);
                }
            }
            A | C | D => {}
            index => self.memory[index] = value,
        }
    }

    /// What is no time leaves the clock as it was.
    fn set(&mut self, now: i64, time: &TimeRegisters) {
        if let Some(seconds) = seconds(time) {
            self.offset = seconds.saturating_sub(now);
        }
    }
}

impl Snapshot for Rtc {
    fn save(&self) -> Result<Value, StateError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(serde_json::to_value(RtcState {
            index: state.index,
            memory: Hex(state.memory.to_vec()),
            offset: state.offset,
            setting: state.setting,
        })?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let saved: RtcState = typed(state)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        ensure(
            saved.memory.0.len() == state.memory.len(),
            "a clock with another size of its memory",
        )?;
        state.index = saved.index & INDEX_MASK;
        state.memory.copy_from_slice(&saved.memory.0);
        (state.offset, state.setting) = (saved.offset, saved.setting);
        Ok(())
    }
}

impl FixedDevice for Rtc {
    fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            // Write-only on real hardware.
            RTC_PORTS => data.fill(0xff),
            DATA => data.fill(state.read((self.now)())),
            _ => return false,
        }
        true
    }

    fn port_write(&self, port: u16, data: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (port, data) {
            (RTC_PORTS, [index, ..]) => state.index = index & INDEX_MASK,
            (DATA, [value, ..]) => state.write((self.now)(), *value),
            _ => return false,
        }
        true
    }
}

/// The number of days from 1970-01-01 to a day of the Gregorian calendar. Counts years from March,
/// so that the leap day is the last of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year
        - 719_468
}

/// Seconds since 1970 as registers.
fn registers(seconds: i64) -> TimeRegisters {
    let day_number = seconds.div_euclid(DAY_SECONDS);
    let in_day = seconds.rem_euclid(DAY_SECONDS);
    // A first guess that is never too late, and at most one year early.
    let mut year = 1970 + day_number.div_euclid(366);
    while days(year + 1, 1, 1) <= day_number {
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|month| days(year, *month, 1) <= day_number)
        .unwrap_or(1);
    let mut time = [0; 10];
    time[SECONDS] = bcd(in_day % 60);
    time[MINUTES] = bcd(in_day / 60 % 60);
    time[HOURS] = bcd(in_day / 3600);
    // 1970-01-01 was a Thursday; Sunday is 1.
    time[DAY_OF_WEEK] = ((day_number + 4).rem_euclid(7) + 1) as u8;
    time[DAY] = bcd(day_number - days(year, month, 1) + 1);
    time[MONTH] = bcd(month);
    time[YEAR] = bcd(year.rem_euclid(100));
    time
}

/// Registers as seconds since 1970; `None` when they are no time. Years are 1970 to 2069.
fn seconds(time: &TimeRegisters) -> Option<i64> {
    let get = |index: usize, range: std::ops::RangeInclusive<i64>| {
        let (tens, ones) = (time[index] >> 4, time[index] & 0xf);
        let value = i64::from(tens) * 10 + i64::from(ones);
        (tens < 10 && ones < 10 && range.contains(&value)).then_some(value)
    };
    let year = get(YEAR, 0..=99)?;
    let year = if year < 70 { 2000 + year } else { 1900 + year };
    let date = days(year, get(MONTH, 1..=12)?, get(DAY, 1..=31)?);
    Some(
        date * DAY_SECONDS
            + get(HOURS, 0..=23)? * 3600
            + get(MINUTES, 0..=59)? * 60
            + get(SECONDS, 0..=59)?,
    )
}

fn bcd(value: i64) -> u8 {
    (value / 10 * 16 + value % 10) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: i64 = 1_709_251_198;

    fn read(rtc: &Rtc, index: usize) -> u8 {
        let mut data = [0];
        assert!(rtc.port_write(RTC_PORTS, &[index as u8 | 0x80]));
        assert!(rtc.port_read(DATA, &mut data));
        data[0]
    }

    fn write(rtc: &Rtc, index: usize, value: u8) {
        assert!(rtc.port_write(RTC_PORTS, &[index as u8]));
        assert!(rtc.port_write(DATA, &[value]));
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd() {
        let rtc = Rtc::with_clock(|| LEAP);
        let time = [YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, DAY_OF_WEEK];
        let time = time.map(|index| read(&rtc, index));
        assert_eq!(time, [0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
        assert_eq!(read(&rtc, A) & 0x80, 0, "no update in progress");
        assert_eq!((read(&rtc, B), read(&rtc, D)), (0x02, 0x80));
    }

    #[test]
    fn every_day_of_a_hundred_years_comes_back() {
        for day in 0..36_525 {
            let time = registers(day * DAY_SECONDS + 45_296);
            let at = day * DAY_SECONDS + 45_296;
            assert_eq!(seconds(&time), Some(at), "{time:x?}");
        }
        assert_eq!(days(2000, 3, 1) - days(2000, 2, 28), 2);
        assert_eq!(days(2100, 3, 1) - days(2100, 2, 28), 1);
    }

    #[test]
    fn the_guest_can_set_the_time_and_nonsense_does_not_count() {
        let rtc = Rtc::with_clock(|| LEAP);
        write(&rtc, B, SET | HOURS_24);
        assert_eq!(read(&rtc, B), SET | HOURS_24);
        for (index, value) in [(YEAR, 0x25), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x01)] {
            write(&rtc, index, value);
        }
        write(&rtc, B, HOURS_24);
        let time = [YEAR, MONTH, DAY, HOURS, MINUTES].map(|index| read(&rtc, index));
        assert_eq!(time, [0x25, 0x12, 0x31, 0x01, 0x59]);
        write(&rtc, MINUTES, 0x6f);
        assert_eq!(read(&rtc, MINUTES), 0x59);
    }

    #[test]
    fn memory_keeps_what_is_written_and_no_interrupt_is_ever_pending() {
        let rtc = Rtc::with_clock(|| LEAP);
        write(&rtc, 0x5a, 0xc3);
        write(&rtc, B, 0x70 | HOURS_24);
        assert_eq!(read(&rtc, 0x5a), 0xc3);
        assert_eq!((read(&rtc, B), read(&rtc, C)), (HOURS_24, 0));
    }
}
